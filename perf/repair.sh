#!/usr/bin/env bash
# Repair of lost chunk servers: rate against the disk's, and what it costs the clients. Makes a cluster of 1 MDS and 5 CS
# (replicas 3) in a temporary directory, measures, removes it. Takes about 15 GB.
# Usage: perf/repair.sh [DIR on a disk] [options of repair-figures]; as root.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${1:-/var/tmp}
shift || true
source perf/cluster.sh "$dir" repair-figures
mkdir "$work/raw"
$bin/pstorage local up "$work/cluster" --mds 1 --cs 5 --shards 1 --replicas 3 --capacity-gb 8 >&2
machine
$bin/repair-figures "$work/cluster" --raw "$work/raw" "$@"
