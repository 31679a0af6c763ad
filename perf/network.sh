#!/usr/bin/env bash
# 1 MiB writes and reads over a network of a given rate: a client, 3 chunk servers and 3 metadata servers, each on a host of its own (a network
# namespace), all on one bridge, each port limited in both directions. Shares of the line rate, and what each port carries.
# Usage: perf/network.sh [DIR on a disk] [options of network-figures]; as root; needs iproute2. RATES="1 10" (Gb/s) unless set.
# All runs in namespaces of its own (networks, mounts, processes), and ends with them.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${NETWORK_INSIDE:-}" ]; then
    source perf/build.sh network-figures
    NETWORK_INSIDE=1 exec unshare --net --mount --pid --fork --mount-proc --kill-child "$0" "$@"
fi
dir=${1:-/var/tmp}
shift || true
bin=target/release
work=$(mktemp -d "$dir/network.XXXXXX")
servers=()
cleanup() {
    [ ${#servers[@]} = 0 ] || { kill "${servers[@]}" && wait "${servers[@]}"; } 2> /dev/null || true
    umount "$work/sys" || true
    rm -rf --one-file-system "$work"
}
trap cleanup EXIT
mkdir -p /run/netns "$work"/{sys,etc,logs}
# Names of namespaces are files: of nobody else.
mount -t tmpfs tmpfs /run/netns
# Shows the ports of the bridge to whoever runs on a host.
mount -t sysfs sysfs "$work/sys"

hosts="client mds1 mds2 mds3 cs1 cs2 cs3"
address() { echo "10.78.0.$(($(tr ' ' '\n' <<< "$hosts" | grep -nx "$1" | cut -d: -f1) + 10))"; }
on() { nsenter --net="/run/netns/$1" "${@:2}"; }
ip link add br0 type bridge && ip link set br0 up
for host in $hosts; do
    ip netns add "$host"
    ip link add "p-$host" type veth peer name eth0 netns "$host"
    ip link set "p-$host" master br0 up
    on "$host" ip link set lo up
    on "$host" ip address add "$(address "$host")/24" dev eth0
    on "$host" ip link set eth0 up
done
# Out of the host at its card, into it at the bridge. A burst is what a card's queue sends at once; waiting packets: 5 ms, as in a switch.
limit() {
    for host in $hosts; do
        on "$host" tc qdisc replace dev eth0 root tbf rate "$1gbit" burst 256kb latency 5ms
        tc qdisc replace dev "p-$host" root tbf rate "$1gbit" burst 256kb latency 5ms
    done
}

export PSTORAGE_ETC=$work/etc PSTORAGE_NAME=network
start() { # HOST PROGRAM
    # Not by on(): the process would be a shell's, not the server.
    nsenter --net="/run/netns/$1" "$bin/$2" -r "$work/$1" > "$work/logs/$1" 2>&1 &
    servers+=($!)
}
until_said() { # WHAT COMMAND…
    for _ in $(seq 100); do "${@:2}" > /dev/null 2>&1 && return; sleep 0.2; done
    echo "network: $1: not within 20 s; last of the logs:" >&2
    tail -n 3 "$work"/logs/* >&2
    return 1
}
stat() { on client "$bin/pstorage" --json stat; }
echo network > "$work/password"
on mds1 "$bin/pstorage" make-mds -I -a "$(address mds1)" -r "$work/mds1" --password-file "$work/password" >&2
start mds1 pstorage-mdsd
until_said "the first metadata server" stat
for n in 2 3; do
    on "mds$n" "$bin/pstorage" add-mds -a "$(address "mds$n")" -r "$work/mds$n" >&2
    start "mds$n" pstorage-mdsd
done
for n in 1 2 3; do
    on "cs$n" "$bin/pstorage" make-cs -a "$(address "cs$n")" -r "$work/cs$n" --shards "${SHARDS:-1}" >&2
    start "cs$n" pstorage-csd
done
all_there() { [ "$(stat | grep -c '"active"')" -ge 3 ]; }
until_said "three chunk servers" all_there
echo "Kernel $(uname -r), $(nproc) cores ($(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)), $(date +%F), commit $(git rev-parse --short HEAD)"
pids=$(for n in 3 4 5; do echo "--server cs$((n - 2))=${servers[$n]}"; done)
for rate in ${RATES:-1 10}; do
    limit "$rate"
    # shellcheck disable=SC2086 # a list
    on client "$bin/network-figures" --gbit "$rate" --ports "$work/sys/class/net" $pids "$@"
done
