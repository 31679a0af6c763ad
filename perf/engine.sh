#!/usr/bin/env bash
# One chunk server against its disk: makes a cluster of one MDS and one CS (replicas 1, journal and data on the same
# disk) in a temporary directory, measures fio on a raw file and client threads in turns, prints the ratios, removes all.
# fio runs one job, so the server gets one shard and one client unless SHARDS says otherwise.
# Usage: perf/engine.sh [DIR on a disk] [options of engine-figures]; as root; needs fio.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${1:-/var/tmp}
shift || true
source perf/cluster.sh "$dir" engine-figures
mkdir "$work/raw"
$bin/pstorage local up "$work/cluster" --mds 1 --cs 1 --shards "${SHARDS:-1}" --replicas 1 --capacity-gb 8 >&2
machine
$bin/engine-figures "$work/cluster" --raw "$work/raw" --clients "${SHARDS:-1}" "$@"
