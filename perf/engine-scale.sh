#!/usr/bin/env bash
# Whether requests cost more on a server with 100,000 chunks than on one with a few: two clusters of one MDS and one CS,
# measured in turns. Usage: perf/engine-scale.sh [DIR on a disk] [options of engine-scale]; as root.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${1:-/var/tmp}
shift || true
source perf/cluster.sh "$dir" engine-scale
for cluster in few many; do
    $bin/pstorage local up "$work/$cluster" --mds 1 --cs 1 --shards 1 --replicas 1 --capacity-gb 16 >&2
done
mkdir "$work/many/mnt/many"
$bin/pstorage -c local --etc "$work/many/etc" set-attr -p many chunk-size=1M >&2
$bin/engine-scale "$work/few" "$work/many" "$@"
