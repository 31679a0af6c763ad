#!/usr/bin/env bash
# This product against its peers: starts each on this machine with three replicas, lets `compare` measure the same work on all of them and on
# the raw disk in turns, kills a server of each, prints a page (with --plots DIR and pictures, with --json FILE and all figures), removes all.
# Usage: perf/compare.sh [DIR on a disk] [options of compare]; as root; PEERS="glusterfs moosefs" for some of them only (default: all in perf/peers).
# Installs what is missing with apt-get. All runs in namespaces of its own (network, mounts, processes): what the peers leave ends with them.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck disable=SC2086 # a list
all="pstorage $(printf '%s\n' ${PEERS:-$(basename -s .sh perf/peers/*.sh)} | grep -vx pstorage || true)"
if [ -z "${COMPARE_INSIDE:-}" ]; then
    source perf/build.sh compare
    packages="fio iproute2"
    for peer in $all; do packages+=" $(sed -n 's/^# Packages: //p' "perf/peers/$peer.sh")"; done
    # shellcheck disable=SC2086 # a list
    dpkg -s $packages > /dev/null 2>&1 || apt-get install -y -q $packages >&2
    COMPARE_INSIDE=1 exec unshare --net --mount --pid --fork --mount-proc --kill-child "$0" "$@"
fi
dir=${1:-/var/tmp}
shift || true
work=$(mktemp -d "$dir/compare.XXXXXX")
peers=()
cleanup() {
    for peer in "${peers[@]}"; do bash "perf/peers/$peer.sh" down "$work/$peer" > /dev/null 2>&1 || true; done
    # Never through a mount that is still there.
    ! grep -q " $work/" /proc/mounts || { echo "compare: mounts in $work are still there: remove it by hand" >&2; return; }
    rm -rf "$work"
}
trap cleanup EXIT
# Peers refuse the addresses of the loopback interface that all know.
ip link set lo up
for host in 1 2 3; do ip address add "10.77.1.$host/24" dev lo; done

mkdir "$work/raw"
systems=(--system "raw disk=$work/raw")
for peer in $all; do
    mkdir "$work/$peer"
    peers+=("$peer")
    if bash "perf/peers/$peer.sh" up "$work/$peer" > "$work/$peer/log" 2>&1; then
        systems+=(--system "$peer=$work/$peer/mnt")
    else
        echo "compare: $peer did not start, left out: $(tail -n 1 "$work/$peer/log")" >&2
    fi
done
target/release/compare "${systems[@]}" "$@"
