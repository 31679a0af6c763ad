#!/usr/bin/env bash
# Where a large cluster would saturate: measures what heartbeats, sessions and requests cost the metadata servers (clusters of 3 MDS and 3 CS, of 3
# and of 48 shards), then computes clusters of up to 3,000 chunk servers and 1,000 clients from such figures (docs/scale.md).
# Usage: perf/scale.sh [DIR on a disk] [options of scale-model]; as root.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${1:-/var/tmp}
shift || true
for program in idle-costs mds-rates; do source perf/build.sh $program; done
source perf/cluster.sh "$dir" scale-model
$bin/pstorage local up "$work/few" --shards 1 --capacity-gb 1 >&2
$bin/pstorage local up "$work/many" --shards 16 --capacity-gb 1 >&2
machine
$bin/idle-costs "$work/few" "$work/many"
$bin/pstorage local down "$work/many" >&2
echo
$bin/mds-rates "$work/few" --files 50000 --rounds 1
echo
$bin/scale-model "$@"
