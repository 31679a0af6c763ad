#!/usr/bin/env bash
# What a second core gives for reads served from the read cache (in memory: /dev/shm), with server and clients on one core
# and on two. Usage: perf/engine-cores.sh [DIR on a disk] [options of engine-cores]; as root.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${1:-/var/tmp}
shift || true
cargo build --release -q -p pstorage-tools -p mds -p engine -p client -p perf --bin pstorage --bin pstorage-mdsd \
    --bin pstorage-csd --bin pstorage-mount --bin engine-cores
bin=target/release
work=$(mktemp -d "$dir/engine-cores.XXXXXX")
cache=$(mktemp -d /dev/shm/engine-cores.XXXXXX)
cleanup() {
    $bin/pstorage local down "$work/cluster" >/dev/null || true
    rm -rf "$cache"
    mountpoint -q "$work/cluster/mnt" || rm -rf "$work"
}
trap cleanup EXIT
$bin/pstorage local up "$work/cluster" --mds 1 --cs 1 --shards 2 --replicas 1 --capacity-gb 4 >&2
$bin/pstorage local down "$work/cluster" >&2
$bin/pstorage -c local --etc "$work/cluster/etc" configure-cs -r "$work/cluster/cs1" --cache "$cache" --cache-size 512M >&2
$bin/pstorage local up "$work/cluster" >&2
$bin/engine-cores "$work/cluster" "$@"
$bin/pstorage -c local --etc "$work/cluster/etc" stat | grep -A3 -i cache || true
