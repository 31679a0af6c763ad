#!/usr/bin/env bash
# The pictures of the guide: 'pstorage top' in a terminal, at work, and the report of pcs-bench. (The dashboard's is tests/dashboard.sh's.)
#
#   tests/pictures.sh [DIR [PICTURES]]     DIR on the disk to be measured (default below /var/tmp), PICTURES (default docs/pictures)
#
# As root. Installs tmux, chromium and python3 with apt-get if they are missing. BIN is where the programs are (target/release, built first
# unless NO_BUILD is set). NO_BENCH=1: only top.
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
dir=${1:-/var/tmp/pstorage-pictures.$$}
pictures=${2:-$here/docs/pictures}
bin=${BIN:-$here/target/release}
export PSTORAGE_NAME=local PSTORAGE_ETC=$dir/cluster/etc TERM=xterm-256color
. "$here/tests/chromium.sh"
tmux="tmux -L pstorage-pictures.$$"

finish() {
    status=$?
    $tmux kill-server 2> /dev/null || true
    [ -z "${load:-}" ] || kill "$load" 2> /dev/null || true
    "$bin/pstorage" local down "$dir/cluster" > /dev/null 2>&1 || true
    rm -rf "$dir"
    exit "$status"
}
trap finish EXIT

for tool in tmux chromium python3; do
    command -v "$tool" > /dev/null || apt-get install -y --no-install-recommends "$tool" > /dev/null
done
[ -n "${NO_BUILD:-}" ] || (cd "$here" && cargo build --release --workspace --bins)
mkdir -p "$dir" "$pictures"

if [ -z "${NO_BENCH:-}" ]; then
    "$bin/pcs-bench" disk "$dir" --html "$dir/report.html" > /dev/null
    chromium_in "$dir/browser" --window-size=1100,1250 --screenshot="$pictures/pcs-bench.png" "file://$dir/report.html" 2> "$dir/browser.log"
fi

"$bin/pstorage" local up "$dir/cluster" --cs 4 --replicas 3:2 --capacity 2G
for n in $(seq 1000); do
    dd if=/dev/urandom of="$dir/cluster/mnt/image$((n % 4))" bs=64k count=$((32 + n % 7 * 40)) conv=fsync,notrunc status=none
    dd if="$dir/cluster/mnt/image$((n * 3 % 4))" of=/dev/null bs=128k iflag=direct status=none 2> /dev/null || true
done &
load=$!
$tmux new-session -d -x 120 -y 36 "$bin/pstorage top"
sleep 20
$tmux capture-pane -e -p > "$dir/top.txt"
python3 "$here/tests/terminal_to_svg.py" "pstorage -c local top" < "$dir/top.txt" > "$pictures/top.svg"
echo "pictures: $pictures/top.svg, $pictures/pcs-bench.png"
