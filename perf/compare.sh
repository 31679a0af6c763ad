#!/usr/bin/env bash
# This product against its peers: starts each on this machine with three replicas, lets `compare` measure the same work on all of them and on
# the raw disk in turns, writes a page, removes all.
# Usage: perf/compare.sh [DIR on a disk] [options of compare]; as root; PEERS="glusterfs moosefs" for some of them only (default: all in perf/peers).
# Installs what is missing with apt-get. All runs in namespaces of its own (network, mounts, processes): what the peers leave ends with them.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${COMPARE_INSIDE:-}" ]; then
    [ -n "${NO_BUILD:-}" ] || cargo build --release -q -p pstorage-tools -p mds -p engine -p client -p perf --bin pstorage --bin pstorage-mdsd \
        --bin pstorage-csd --bin pstorage-mount --bin compare
    for peer in ${PEERS:-$(ls perf/peers)}; do
        packages=$(sed -n 's/^# Packages: //p' "perf/peers/${peer%.sh}.sh")
        # shellcheck disable=SC2086 # a list
        [ -z "$packages" ] || dpkg -s $packages > /dev/null 2>&1 || apt-get install -y -q $packages iproute2 fio >&2
    done
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
for peer in pstorage $(for p in ${PEERS:-$(ls perf/peers)}; do echo "${p%.sh}"; done | grep -v '^pstorage$'); do
    mkdir "$work/$peer"
    peers+=("$peer")
    if bash "perf/peers/$peer.sh" up "$work/$peer" > "$work/$peer/log" 2>&1; then
        systems+=(--system "$peer=$work/$peer/mnt")
    else
        echo "compare: $peer did not start, left out: $(tail -n 1 "$work/$peer/log")" >&2
    fi
done
target/release/compare "${systems[@]}" "$@"
