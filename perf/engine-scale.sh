#!/usr/bin/env bash
# Whether requests cost more on a server with 100,000 chunks than on one with a few: two clusters of one MDS and one CS,
# measured in turns. Usage: perf/engine-scale.sh [DIR on a disk] [options of engine-scale]; as root.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${1:-/var/tmp}
shift || true
cargo build --release -q -p pstorage-tools -p mds -p engine -p client -p perf --bin pstorage --bin pstorage-mdsd \
    --bin pstorage-csd --bin pstorage-mount --bin engine-scale
bin=target/release
work=$(mktemp -d "$dir/engine-scale.XXXXXX")
cleanup() {
    for cluster in few many; do
        $bin/pstorage local down "$work/$cluster" >/dev/null || true
        mountpoint -q "$work/$cluster/mnt" && return
    done
    rm -rf "$work"
}
trap cleanup EXIT
for cluster in few many; do
    $bin/pstorage local up "$work/$cluster" --mds 1 --cs 1 --shards 1 --replicas 1 --capacity-gb 16 >&2
done
mkdir "$work/many/mnt/many"
$bin/pstorage set-attr "$work/many/mnt/many" chunk-size=1M >&2
$bin/engine-scale "$work/few" "$work/many" "$@"
