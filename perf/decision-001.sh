#!/usr/bin/env bash
# Decision 001: the request path of a chunk server on our runtime and on glommio 0.9, and fio on the raw disk beside
# them, in turns.
# Usage: perf/decision-001.sh [DIR on a file system with O_DIRECT] [options of path-compare]
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${1:-/var/tmp}
shift || true
# glommio registers 10 MiB of buffers; below that limit it copes, but the comparison shall not depend on it.
ulimit -l unlimited 2>/dev/null || echo "memlock stays at $(ulimit -l) KiB: glommio works without registered buffers" >&2
cargo build --release -q -p perf --features glommio --bin path-ring --bin path-glommio --bin path-compare
work=$(mktemp -d "$dir/decision-001.XXXXXX")
trap 'rm -rf "$work"' EXIT
echo "Kernel $(uname -r), $(nproc) cores ($(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)), $(df --output=fstype "$work" | tail -1), $(date +%F)"
echo
target/release/path-compare "$work" "$@"
