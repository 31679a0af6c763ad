#!/usr/bin/env bash
# What a second core gives for reads served from the read cache (in memory: /dev/shm), with server and clients on one core
# and on two. Usage: perf/engine-cores.sh [DIR on a disk] [options of engine-cores]; as root.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${1:-/var/tmp}
shift || true
source perf/cluster.sh "$dir" engine-cores
cache=$(mktemp -d /dev/shm/engine-cores.XXXXXX)
trap 'cleanup; rm -rf "$cache"' EXIT
$bin/pstorage local up "$work/cluster" --mds 1 --cs 1 --shards 2 --replicas 1 --capacity-gb 4 >&2
$bin/pstorage local down "$work/cluster" >&2
$bin/pstorage -c local --etc "$work/cluster/etc" configure-cs -r "$work/cluster/cs1" --cache "$cache" --cache-size 512M >&2
$bin/pstorage local up "$work/cluster" >&2
$bin/engine-cores "$work/cluster" "$@"
$bin/pstorage -c local --etc "$work/cluster/etc" stat | grep -A3 -i cache || true
