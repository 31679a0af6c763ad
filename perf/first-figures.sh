#!/usr/bin/env bash
# The first figures of a whole cluster on this machine: makes one (3 MDS, 3 CS, replicas 3:2) in a temporary directory,
# measures the raw file system, the mount and the client library in turns, prints one Markdown table, removes all.
# Usage: perf/first-figures.sh [DIR on a disk] [options of first-figures]; as root, for the mount.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${1:-/var/tmp}
shift || true
source perf/cluster.sh "$dir" first-figures
mkdir "$work/raw"
$bin/pstorage local up "$work/cluster" --capacity-gb 4 >&2
machine
$bin/first-figures "$work/cluster" --raw "$work/raw" "$@"
