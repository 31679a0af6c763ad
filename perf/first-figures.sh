#!/usr/bin/env bash
# The first figures of a whole cluster on this machine: makes one (3 MDS, 3 CS, replicas 3:2) in a temporary directory,
# measures the raw file system, the mount and the client library in turns, prints one Markdown table, removes all.
# Usage: perf/first-figures.sh [DIR on a disk] [options of first-figures]; as root, for the mount.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${1:-/var/tmp}
shift || true
cargo build --release -q -p pstorage-tools -p mds -p engine -p client -p perf --bin pstorage --bin pstorage-mdsd \
    --bin pstorage-csd --bin pstorage-mount --bin first-figures
bin=target/release
work=$(mktemp -d "$dir/first-figures.XXXXXX")
cleanup() {
    $bin/pstorage local down "$work/cluster" >/dev/null || true
    # Never through a mount that is still there.
    mountpoint -q "$work/cluster/mnt" || rm -rf "$work"
}
trap cleanup EXIT
mkdir "$work/raw"
$bin/pstorage local up "$work/cluster" --capacity-gb 4 >&2
echo "Kernel $(uname -r), $(nproc) cores ($(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)), $(df --output=fstype "$work" | tail -1), $(date +%F), commit $(git rev-parse --short HEAD)"
echo
$bin/first-figures "$work/cluster" --raw "$work/raw" "$@"
