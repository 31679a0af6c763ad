#!/usr/bin/env bash
# What net.encrypt=on costs: makes two clusters (1 MDS, 3 CS, replicas 3:2) in a temporary directory, one plain and one
# encrypted, measures both in turns through the client library, prints one Markdown table of ratios, removes both.
# Usage: perf/encryption.sh [DIR on a disk] [options of encryption-figures]; as root.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${1:-/var/tmp}
shift || true
source perf/cluster.sh "$dir" encryption-figures
for side in plain encrypted; do
    $bin/pstorage local up "$work/$side" --mds 1 --shards 1 --capacity-gb 4 >&2
done
$bin/pstorage -c local --etc "$work/encrypted/etc" set-config net.encrypt=on >&2
machine
$bin/encryption-figures "$work/plain" "$work/encrypted" "$@"
