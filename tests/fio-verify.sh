#!/bin/sh
# fio with verification on a local cluster of release builds, twice: undisturbed, and with kill -9 of a chunk server in
# the middle. Afterwards the cluster must get healthy, and `pstorage check` compares all replicas byte by byte.
#
#   tests/fio-verify.sh [SIZE [DIR]]      SIZE of each file (default 2G), DIR for the cluster
#
# Ends with 77 when fio is missing, 1 when anything was lost or differs. Figures: one line per run.
set -eu

SIZE=${1:-2G}
HERE=$(cd "$(dirname "$0")/.." && pwd)
DIR=${2:-/var/tmp/pstorage-fio-verify.$$}
BIN=$HERE/target/release
KILL_AFTER_S=${KILL_AFTER_S:-4}
DOWN_FOR_S=${DOWN_FOR_S:-5}

command -v fio > /dev/null || { echo "fio-verify: fio is not installed (apt install fio)" >&2; exit 77; }
[ -n "${NO_BUILD:-}" ] || (cd "$HERE" && cargo build -q --release --workspace --bins)

pstorage() { "$BIN/pstorage" "$@"; }
admin() { pstorage -c local --etc "$DIR/etc" "$@"; }
say() { echo "fio-verify: $*"; }

finish() {
    status=$?
    pstorage local down "$DIR" > /dev/null 2>&1 || true
    if [ "$status" = 0 ]; then rm -rf "$DIR"; else say "FAILED; the cluster's files stay in $DIR" >&2; fi
    exit "$status"
}
trap finish EXIT
trap 'exit 1' INT TERM

# One line per direction; the longest latency is the longest stall.
figures() { # JSON
    python3 - "$1" << 'PY' 2> /dev/null || grep -E '^ *(read|write):' "$1" || true
import json, sys
text = open(sys.argv[1]).read()
for job in json.loads(text[text.index("{"):])["jobs"]:
    for way in ("write", "read"):
        r = job[way]
        if r["io_bytes"]:
            ns = r["clat_ns"]
            p = ns.get("percentile", {})
            print(f"  {job['jobname']:<24} {way:<5} {r['bw_bytes'] / 1e6:8.1f} MB/s {r['iops']:9.0f} IOPS  "
                  f"p50 {p.get('50.000000', 0) / 1e6:7.2f} ms  p99 {p.get('99.000000', 0) / 1e6:8.2f} ms  "
                  f"longest {ns['max'] / 1e6:8.1f} ms")
PY
}

# fio writes the whole file, then reads it back and checks each block's CRC-32C.
run_fio() { # NAME RW BS DEPTH
    if ! fio --name="$1" --filename="$DIR/mnt/$1" --size="$SIZE" --rw="$2" --bs="$3" --iodepth="$4" \
        --ioengine=libaio --direct=1 --verify=crc32c --verify_fatal=1 --do_verify=1 --end_fsync=1 \
        --output-format=json --output="$DIR/logs/$1.json" > "$DIR/logs/$1.out" 2>&1; then
        cat "$DIR/logs/$1.out" "$DIR/logs/$1.json" >&2
        say "$1: fio found an error" >&2
        return 1
    fi
    figures "$DIR/logs/$1.json"
}

wait_healthy() {
    tries=0
    # Healthy: a quorum, all chunk servers active, every chunk with all its replicas.
    until admin stat 2> /dev/null | awk '
        /^Cluster/ { cluster = $NF }
        /^Chunks:/ { chunks = $4 }
        END { exit !(cluster == "healthy" && chunks == "100.00%") }'; do
        tries=$((tries + 1))
        if [ "$tries" -gt 600 ]; then admin stat >&2; say "not healthy after 300 s" >&2; return 1; fi
        sleep 0.5
    done
}

kill_one() {
    sleep "$KILL_AFTER_S"
    kill -9 "$(cat "$DIR/run/cs2.pid")"
    sleep "$DOWN_FOR_S"
    pstorage local up "$DIR" > /dev/null
}

say "size $SIZE, replicas 3:2, 3 MDS, 3 CS of 2 shards, $(nproc) cores, $(uname -r)"
pstorage local up "$DIR" --replicas 3:2
for what in "rand4k randwrite 4k 16" "seq1m write 1M 4"; do
    set -- $what
    say "$1: undisturbed"
    run_fio "$1" "$2" "$3" "$4"
    say "$1: kill -9 of CS#2 after $KILL_AFTER_S s, back after $DOWN_FOR_S s"
    kill_one &
    killer=$!
    run_fio "$1-kill" "$2" "$3" "$4"
    wait "$killer"
    admin get-event | grep -q "CS#2 .*inactive" || { say "nobody noticed that CS#2 was killed" >&2; exit 1; }
    began=$(date +%s)
    wait_healthy
    say "healthy $(($(date +%s) - began)) s after the run"
    admin check
    rm -f "$DIR/mnt/$1" "$DIR/mnt/$1-kill"
done
say "passed"
