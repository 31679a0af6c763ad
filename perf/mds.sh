#!/usr/bin/env bash
# Rates of the metadata service: three metadata servers and a chunk server on this machine, and the clients beside them.
# Usage: perf/mds.sh [DIR on a disk] [options of mds-rates]; as root.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${1:-/var/tmp}
shift || true
source perf/cluster.sh "$dir" mds-rates
$bin/pstorage local up "$work/mds" --mds 3 --cs 1 --shards 1 --replicas 1 --capacity-gb 4 >&2
machine
$bin/mds-rates "$work/mds" "$@"
