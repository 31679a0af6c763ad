#!/usr/bin/env bash
# One chunk server against its disk: makes a cluster of one MDS and one CS (replicas 1, journal and data on the same
# disk) in a temporary directory, measures fio on a raw file and client threads in turns, prints the ratios, removes all.
# Usage: perf/engine.sh [DIR on a disk] [options of engine-figures]; as root; needs fio.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${1:-/var/tmp}
shift || true
cargo build --release -q -p pstorage-tools -p mds -p engine -p client -p perf --bin pstorage --bin pstorage-mdsd \
    --bin pstorage-csd --bin pstorage-mount --bin engine-figures
bin=target/release
work=$(mktemp -d "$dir/engine.XXXXXX")
cleanup() {
    $bin/pstorage local down "$work/cluster" >/dev/null || true
    # Never through a mount that is still there.
    mountpoint -q "$work/cluster/mnt" || rm -rf "$work"
}
trap cleanup EXIT
mkdir "$work/raw"
$bin/pstorage local up "$work/cluster" --mds 1 --cs 1 --shards "${SHARDS:-2}" --replicas 1 --capacity-gb 8 >&2
echo "Kernel $(uname -r), $(nproc) cores ($(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)), $(df --output=fstype "$work" | tail -1), $(date +%F), commit $(git rev-parse --short HEAD)"
echo
$bin/engine-figures "$work/cluster" --raw "$work/raw" "$@"
