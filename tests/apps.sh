#!/usr/bin/env bash
# Applications on the mount of a local cluster of release builds (3 MDS, 3 CS, replicas 3:2): a tree of files, git, SQLite, PostgreSQL,
# virtual-machine images, fsx. Some are killed with -9, and so is a chunk server under them: what they had committed must be there.
#
#   tests/apps.sh [DIR [WHAT...]]     DIR for the cluster (default below /var/tmp); WHAT: tree git sqlite postgres images fsx (default: all)
#
# As root. Installs what is missing with apt-get. Ends with 1 at the first thing that is wrong. FSX_OPERATIONS (100000) is for each of fsx's
# two runs; BIN is where the programs are (target/release, built first unless NO_BUILD is set).
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
dir=${1:-/var/tmp/pstorage-apps.$$}
shift || true
what=("$@")
[ ${#what[@]} -gt 0 ] || what=(tree git sqlite postgres images fsx)
bin=${BIN:-$here/target/release}
mnt=$dir/mnt

say() { echo "apps: $*"; }
fail() { say "FAILED: $*" >&2; exit 1; }
needs() { # COMMAND PACKAGE
    command -v "$1" > /dev/null || apt-get install -y -q "$2" > /dev/null 2>&1 || fail "needs $1 (apt-get install $2)"
}
pstorage() { "$bin/pstorage" "$@"; }
admin() { pstorage -c local --etc "$dir/etc" "$@"; }
up() { pstorage local up "$dir" --mds 3 --cs 3 --shards 1 > /dev/null; }
process() { cat "$dir/run/$1.pid"; }
healthy() {
    for _ in $(seq 240); do
        admin stat | grep -q 'healthy$' && return
        sleep 0.5
    done
    fail "the cluster does not get healthy: $(admin stat)"
}
# Kills a chunk server after some seconds and starts it anew some seconds later, in the background.
disturb() { # CS SECONDS
    (sleep "$2"; kill -9 "$(process "$1")"; sleep 3; up) &
    disturber=$!
}

finish() {
    status=$?
    pstorage local down "$dir" > /dev/null 2>&1 || true
    if [ "$status" = 0 ]; then rm -rf "$dir"; else say "the cluster's files stay in $dir" >&2; fi
    exit "$status"
}

# The toolchain's documentation and libraries: some 10,000 files, links among them.
tree() {
    local from; from=$(rustc --print sysroot)
    tar -C "$from" --exclude=share/doc -cf "$dir/tree.tar" lib bin
    mkdir "$mnt/tree"
    local began; began=$(date +%s%N)
    tar -C "$mnt/tree" -xf "$dir/tree.tar"
    say "tree: $(find "$mnt/tree" -type f | wc -l) files, $(du -sm --apparent-size "$mnt/tree" | cut -f1) MB in $((($(date +%s%N) - began) / 1000000)) ms"
    tar -C "$mnt/tree" -df "$dir/tree.tar" || fail "tar finds differences"
    cp -a "$mnt/tree/bin" "$mnt/tree/copy"
    diff -r "$mnt/tree/bin" "$mnt/tree/copy" || fail "a copy within the mount differs"
    rm -rf "$mnt/tree" "$dir/tree.tar"
}

git_() {
    needs git git
    git clone -q --no-local "$here" "$mnt/clone"
    git -C "$mnt/clone" fsck --full --strict > "$dir/fsck" 2>&1 || fail "git fsck: $(cat "$dir/fsck")"
    git -C "$mnt/clone" checkout -q -b work
    for n in 1 2 3 4 5; do
        echo "$n" > "$mnt/clone/file-$n"
        git -C "$mnt/clone" add . && git -C "$mnt/clone" -c user.name=a -c user.email=a@b commit -q -m "$n"
    done
    git -C "$mnt/clone" gc -q --prune=now
    git -C "$mnt/clone" fsck --full > "$dir/fsck" 2>&1 || fail "git fsck after gc: $(cat "$dir/fsck")"
    [ -z "$(git -C "$mnt/clone" status --porcelain)" ] || fail "git status shows changes"
    say "git: $(git -C "$mnt/clone" rev-list --count HEAD) commits cloned, five made, repacked, checked"
    rm -rf "$mnt/clone"
}

# What was committed when sqlite3 was killed must be there, in both kinds of journal.
sqlite() {
    needs sqlite3 sqlite3
    for mode in DELETE WAL; do
        local db=$mnt/$mode.db
        sqlite3 "$db" "PRAGMA journal_mode=$mode; CREATE TABLE t (n INTEGER PRIMARY KEY, text BLOB);" > /dev/null
        local rounds=0 committed=0
        disturb cs1 2
        while [ $rounds -lt 6 ]; do
            rounds=$((rounds + 1))
            : > "$dir/committed"
            (for n in $(seq 100000); do
                echo "BEGIN; INSERT INTO t (text) VALUES (randomblob(2000)); INSERT INTO t (text) VALUES (randomblob(20)); COMMIT; SELECT max(n) FROM t;"
            done) | sqlite3 -cmd "PRAGMA synchronous=FULL" "$db" > "$dir/committed" 2> /dev/null &
            local writer=$!
            sleep 1.5
            pkill -9 -P $$ -x sqlite3 || kill -9 $writer || true
            { wait $writer || true; } 2> /dev/null
            committed=$(tail -n 1 "$dir/committed")
            [ "$(sqlite3 "$db" 'PRAGMA integrity_check')" = ok ] || fail "sqlite ($mode): integrity check"
            local found; found=$(sqlite3 "$db" 'SELECT max(n) FROM t')
            [ "$found" -ge "${committed:-0}" ] || fail "sqlite ($mode): $committed was committed, $found is there"
            [ $((found % 2)) = 0 ] || fail "sqlite ($mode): half a transaction"
        done
        wait "$disturber"
        say "sqlite: $mode: $found rows, killed $rounds times, a chunk server once"
    done
    healthy
}

# (-n: else pgbench empties its history first.)
# pgbench's balances agree with its history whenever the server is killed.
postgres() {
    needs /usr/lib/postgresql/15/bin/postgres postgresql-15
    local pg=/usr/lib/postgresql/15/bin db=$mnt/pgdata port=54399 user=postgres
    mkdir "$db" && chown $user "$db" && chmod 700 "$db"
    as() { setpriv --reuid=$user --regid=$user --clear-groups -- env -C / HOME=/tmp "$@"; }
    start() { as "$pg/pg_ctl" -D "$db" -w -t 120 -l "$db/log" -o "-p $port -k /tmp -h ''" start > /dev/null || fail "postgres: $(tail "$db/log")"; }
    query() { as psql -h /tmp -p $port -At -c "$1" postgres; }
    as "$pg/initdb" -D "$db" --data-checksums -A trust > /dev/null
    start
    as "$pg/pgbench" -h /tmp -p $port -q -i -s 5 postgres > "$dir/pgbench" 2>&1 || fail "pgbench -i: $(cat "$dir/pgbench")"
    for round in 1 2 3; do
        as "$pg/pgbench" -h /tmp -p $port -n -c 4 -j 2 -T 20 postgres > "$dir/pgbench" 2>&1 &
        local bench=$!
        [ $round != 2 ] || disturb cs2 3
        sleep 10
        kill -9 "$(head -n 1 "$db/postmaster.pid")"
        wait $bench || true
        # Its children end when they see that it is gone.
        while pgrep -u $user -f "$db|postgres: " > /dev/null; do sleep 0.2; done
        # Where nobody reaps it, it looks alive.
        rm -f "$db/postmaster.pid" "/tmp/.s.PGSQL.$port.lock"
        start
        local sums; sums=$(query "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(bbalance) FROM pgbench_branches),
            (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)")
        [ "$(tr '|' '\n' <<< "$sums" | sort -u | wc -l)" = 1 ] || fail "postgres: balances $sums"
        [ $round != 2 ] || wait "$disturber"
    done
    query 'CREATE EXTENSION amcheck' > /dev/null
    as "$pg/pg_amcheck" -h /tmp -p $port --all --heapallindexed > "$dir/amcheck" 2>&1 || fail "pg_amcheck: $(cat "$dir/amcheck")"
    as "$pg/pgbench" -h /tmp -p $port -n -c 4 -j 2 -T 15 postgres > "$dir/pgbench" 2>&1
    say "postgres: $(query 'SELECT count(*) FROM pgbench_history') transactions, killed 3 times, a chunk server once; $(grep '^tps' "$dir/pgbench")"
    as "$pg/pg_ctl" -D "$db" -m fast stop > /dev/null
    as "$pg/pg_checksums" --check -D "$db" > "$dir/checksums" || fail "pg_checksums: $(cat "$dir/checksums")"
    rm -rf "$db"
    healthy
}

images() {
    needs qemu-img qemu-utils
    local raw=$mnt/disk.raw qcow=$mnt/disk.qcow2
    qemu-img create -q -f raw "$raw" 2G
    qemu-io -f raw -c 'write -P 17 0 64M' -c 'write -P 18 1G 32M' -c 'flush' "$raw" > /dev/null
    qemu-img convert -f raw -O qcow2 "$raw" "$qcow"
    qemu-img check -q "$qcow" || fail "qemu-img check"
    qemu-img compare -q -f raw -F qcow2 "$raw" "$qcow" || fail "qemu-img compare"
    qemu-io -f qcow2 -c 'write -P 19 512M 16M' -c 'discard 0 16M' -c 'read -P 19 512M 16M' -c 'read -P 18 1G 32M' "$qcow" > "$dir/qemu-io"
    ! grep -q 'Pattern verification failed' "$dir/qemu-io" || fail "qemu-io reads something else"
    qemu-img snapshot -c one "$qcow" && qemu-img check -q "$qcow" || fail "qemu-img check after a snapshot"
    say "images: raw and qcow2 made, converted, compared, checked; $(du -m "$raw" | cut -f1) MB of 2048 on disk"
    rm "$raw" "$qcow"
}

# Once on this mount, and once with two mounts that take turns.
fsx() {
    command -v fsx > /dev/null || PATH=$PATH:$HOME/.cargo/bin
    command -v fsx > /dev/null || cargo install -q fsx
    local operations=${FSX_OPERATIONS:-100000} second=$dir/second round=0
    cat > "$dir/fsx.toml" << 'EOF'
[opsize]
max = 65536
[weights]
close_open = 1
read = 10
write = 10
mapread = 10
mapwrite = 10
truncate = 5
fsync = 1
fdatasync = 1
invalidate = 1
punch_hole = 3
copy_file_range = 2
EOF
    command fsx -q -f "$dir/fsx.toml" -N "$operations" -S 42 -P "$dir" "$mnt/fsx" > "$dir/fsx.log" 2>&1 || fail "fsx: $(tail -n 40 "$dir/fsx.log")"
    mkdir -p "$second"
    "$bin/pstorage-mount" -c local --etc "$dir/etc" "$second"
    # A run of fsx leaves its file for good: the other mount must find the same bytes in it, and goes on with one of its own.
    while [ $round -lt 20 ]; do
        round=$((round + 1))
        local here=$mnt there=$second
        [ $((round % 2)) = 0 ] || { here=$second; there=$mnt; }
        command fsx -q -f "$dir/fsx.toml" -N $((operations / 20)) -S $round -P "$dir" "$here/turns" > "$dir/fsx.log" 2>&1 || fail "fsx: $(tail -n 40 "$dir/fsx.log")"
        local sums; sums=$(sha256sum < "$here/turns")
        [ "$(sha256sum < "$there/turns")" = "$sums" ] || fail "two mounts see different bytes"
    done
    umount "$second"
    say "fsx: $operations operations on one mount, as many on two that took turns"
    rm -f "$mnt/fsx" "$mnt/turns"
}

[ -n "${NO_BUILD:-}" ] || (cd "$here" && cargo build -q --release --workspace --bins)
trap finish EXIT
trap 'exit 1' INT TERM
mkdir -p "$dir"
up
for one in "${what[@]}"; do
    case $one in
        git) git_ ;;
        tree | sqlite | postgres | images | fsx) $one ;;
        *) fail "what is '$one'?" ;;
    esac
done
healthy
admin check > "$dir/check" || fail "replicas differ: $(cat "$dir/check")"
say "replicas are equal; all is well"
