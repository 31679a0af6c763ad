#!/usr/bin/env bash
# What a 4 KiB read and a durable 4 KiB write cost, process by process and layer by layer, with replicas 3 and 1: makes clusters of 3 MDS and 3 CS
# in a temporary directory, measures, shows traces of single requests, removes all.
# Usage: perf/budget.sh [DIR on a disk] [options of budget]; as root; needs perf (linux-perf). REPLICAS="3 1" unless set.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${1:-/var/tmp}
shift || true
source perf/cluster.sh "$dir" budget
machine
for replicas in ${REPLICAS:-3 1}; do
    cluster=$work/replicas$replicas
    # One shard: a chunk is one thread's.
    $bin/pstorage local up "$cluster" --shards 1 --replicas "$replicas" --capacity-gb 2 >&2
    $bin/budget "$cluster" --samples "$work" "$@"
    head -c 1M /dev/urandom > "$cluster/mnt/traced"
    for way in "" --write; do
        echo
        echo '```'
        # shellcheck disable=SC2086 # an option or none
        $bin/pstorage -c local --etc "$cluster/etc" trace traced --count 100 $way
        echo '```'
    done
    echo
    $bin/pstorage local down "$cluster" >&2
done
