#!/usr/bin/env bash
# The mount against FUSE with nothing behind it (null-fuse) and the raw disk, by fio in turns: makes a cluster of one MDS and one CS
# (replicas 1, read cache in memory) in a temporary directory, mounts null-fuse, prints one table, removes all.
# Usage: perf/fuse.sh [DIR on a disk] [options of fuse-figures]; as root; needs fio.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${1:-/var/tmp}
shift || true
source perf/cluster.sh "$dir" fuse-figures
[ -n "${NO_BUILD:-}" ] || cargo build --release -q -p perf --bin null-fuse
cache=$(mktemp -d /dev/shm/fuse-figures.XXXXXX)
trap 'umount "$work/null" 2> /dev/null || true; rm -rf "$cache"; cleanup' EXIT
mkdir "$work/raw" "$work/null"
$bin/pstorage local up "$work/cluster" --mds 1 --cs 1 --shards "${SHARDS:-2}" --replicas 1 --capacity-gb 4 >&2
$bin/pstorage local down "$work/cluster" >&2
$bin/pstorage -c local --etc "$work/cluster/etc" configure-cs -r "$work/cluster/cs1" --cache "$cache" --cache-size 256M >&2
$bin/pstorage local up "$work/cluster" >&2
$bin/null-fuse "$work/null" &
until [ -e "$work/null/data" ]; do sleep 0.1; done
machine
$bin/fuse-figures "$work/cluster" --raw "$work/raw" --null "$work/null" --null-pid $! "$@"
