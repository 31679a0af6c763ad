#!/usr/bin/env bash
# Others' initiators against pstorage-iscsid on a local cluster (1 MDS, 3 CS, replicas 3:2): libiscsi's conformance tests
# (iscsi-test-cu) and tools, and qemu.
#
#   tests/iscsi.sh [DIR [WHAT...]]     DIR for the cluster (default below /var/tmp); WHAT: suite chap qemu (default: all)
#
# As root. Installs libiscsi-bin and qemu-block-extra with apt-get if they are missing. BIN is where the programs are (target/release, built
# first unless NO_BUILD is set). SUITE is what iscsi-test-cu runs (ALL). Ends with 1 if a test fails that is not in the list of known ones.
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
dir=${1:-/var/tmp/pstorage-iscsi.$$}
shift || true
what=("$@")
[ ${#what[@]} -gt 0 ] || what=(suite chap qemu)
bin=${BIN:-$here/target/release}
address=127.0.0.1:13260
initiator=iqn.2026-11.local.pstorage:initiator
export PSTORAGE_NAME=local PSTORAGE_ETC=$dir/etc PSTORAGE_ISCSI_SOCKET=$dir/iscsi.sock

# Tests of the suite that fail, and why that is right.
known=(
    # Asks for the status of the block behind an unmapped range, and expects that of the physical block behind that: right only where
    # both are one.
    GetLBAStatus.UnmapSingle
)

say() { echo "iscsi: $*"; }
fail() { say "FAILED: $*" >&2; exit 1; }
needs() { # COMMAND PACKAGE
    command -v "$1" > /dev/null || apt-get install -y -q "$2" > /dev/null 2>&1 || fail "needs $1 (apt-get install $2)"
}
iscsi() { "$bin/pstorage-iscsi" "$@"; }

finish() {
    status=$?
    [ -z "${gateway:-}" ] || { kill "$gateway" && wait "$gateway"; } || true
    "$bin/pstorage" local down "$dir" > /dev/null 2>&1 || true
    if [ "$status" = 0 ]; then rm -rf "$dir"; else say "the cluster's files stay in $dir" >&2; fi
    exit "$status"
}

suite() {
    local target; target=$(iscsi create -n suite -s 1G -a $address)
    iscsi start -t "$target"
    iscsi-test-cu --dataloss --allow-sanitize -V --test="${SUITE:-ALL}" -i $initiator -I $initiator-2 "iscsi://$address/$target/0" > "$dir/suite.log" 2>&1 || true
    # A line for each test: its name and how it ended; between the two is what it says.
    awk '/^Suite: /{suite = $2} / Test: /{test = $2; skipped = ""} /\[SKIPPED\]/{skipped = "skipped "}
        /^passed|\.\.\. *passed/{print skipped "passed", suite "." test} /^FAILED|\.\.\. *FAILED/{print "FAILED", suite "." test}' \
        "$dir/suite.log" > "$dir/suite.tests"
    iscsi stop -t "$target" && iscsi delete -t "$target"
    say "suite: $(grep -c '^passed' "$dir/suite.tests") passed, $(grep -c '^skipped' "$dir/suite.tests") skipped, $(grep -c '^FAILED' "$dir/suite.tests") failed"
    [ -s "$dir/suite.tests" ] || fail "suite: it ran no test: $(tail -n 5 "$dir/suite.log")"
    local name
    for name in $(sed -n 's/^FAILED //p' "$dir/suite.tests"); do
        case " ${known[*]} " in
            *" $name "*) say "suite: $name fails, as is known" ;;
            *) fail "suite: $name (see $dir/suite.log)" ;;
        esac
    done
}

chap() {
    local target; target=$(iscsi create -n guarded -s 64M -a $address)
    echo 'a secret of alice' | iscsi account-create -u alice --secret-stdin
    echo 'a secret of ours' | iscsi account-create -u target --secret-stdin
    iscsi set -t "$target" -u alice --mutual-user target
    iscsi start -t "$target"
    iscsi-ls -i $initiator "iscsi://$address" | grep -q "$target" || fail "it is not discovered"
    local ask=(iscsi-inq -i $initiator)
    if "${ask[@]}" "iscsi://$address/$target/0" > "$dir/chap.log" 2>&1; then fail "let in without a secret"; fi
    if "${ask[@]}" "iscsi://alice%wrong@$address/$target/0" > "$dir/chap.log" 2>&1; then fail "let in with a wrong secret"; fi
    "${ask[@]}" "iscsi://alice%a secret of alice@$address/$target/0" > "$dir/chap.log" 2>&1 || fail "chap: $(cat "$dir/chap.log")"
    "${ask[@]}" "iscsi://alice%a secret of alice@$address/$target/0?target_user=target&target_password=a secret of ours" \
        > "$dir/chap.log" 2>&1 || fail "mutual chap: $(cat "$dir/chap.log")"
    if "${ask[@]}" "iscsi://alice%a secret of alice@$address/$target/0?target_user=target&target_password=another secret" \
        > "$dir/chap.log" 2>&1; then fail "a target with a wrong secret was believed"; fi
    iscsi stop -t "$target" && iscsi delete -t "$target"
    say "chap: one-way and mutual, and refused"
}

qemu() {
    local target; target=$(iscsi create -n qemu -s 256M -a $address)
    iscsi start -t "$target"
    local uri="iscsi://$address/$target/0"
    qemu-img info "$uri" | grep -q '256 MiB' || fail "qemu-img info: $(qemu-img info "$uri")"
    qemu-io -f raw -d unmap -c 'write -P 7 1M 8M' -c 'write -P 9 1049088 512' -c 'write -f -P 3 100M 64k' -c flush \
        -c 'read -P 7 1M 512' -c 'read -P 9 1049088 512' -c 'read -P 7 1049600 8387072' -c 'read -P 3 100M 64k' -c 'read -P 0 9M 1M' \
        -c 'discard 2M 1M' -c 'read -P 0 2M 1M' -c 'write -z -u 3M 1M' -c 'read -P 0 3M 1M' "$uri" > "$dir/qemu.log" 2>&1 \
        || fail "qemu-io: $(cat "$dir/qemu.log")"
    if grep -q 'verification failed' "$dir/qemu.log"; then fail "qemu-io: $(cat "$dir/qemu.log")"; fi
    head -c 200M /dev/urandom > "$dir/image"
    truncate -s 256M "$dir/image"
    local began; began=$(date +%s%N)
    qemu-img convert -n -f raw -O raw "$dir/image" "$uri"
    say "qemu: 256 MB converted in $((($(date +%s%N) - began) / 1000000)) ms"
    qemu-img compare -q -f raw -F raw "$dir/image" "$uri" || fail "the image differs"
    qemu-img convert -f raw -O qcow2 "$uri" "$dir/back.qcow2"
    qemu-img compare -q -f raw -F qcow2 "$dir/image" "$dir/back.qcow2" || fail "what was read back differs"
    iscsi stop -t "$target" && iscsi delete -t "$target"
    say "qemu: written, discarded, converted there and back"
}

needs iscsi-test-cu libiscsi-bin
needs qemu-io qemu-utils
[ -e /usr/lib/"$(uname -m)"-linux-gnu/qemu/block-iscsi.so ] || apt-get install -y -q qemu-block-extra > /dev/null 2>&1 || fail "needs qemu-block-extra"
[ -n "${NO_BUILD:-}" ] || cargo build -q --release --workspace --manifest-path "$here/Cargo.toml"
mkdir -p "$dir"
trap finish EXIT
"$bin/pstorage" local up "$dir" --mds 1 --cs 3 --shards 1 --replicas 3:2 > /dev/null
"$bin/pstorage-iscsid" 2> "$dir/iscsid.log" &
gateway=$!
for _ in $(seq 100); do iscsi state > /dev/null 2>&1 && break; sleep 0.1; done
for part in "${what[@]}"; do "$part"; done
