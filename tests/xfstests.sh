#!/usr/bin/env bash
# fsstress and the generic tests of xfstests on mounts of local clusters of release builds.
#
#   tests/xfstests.sh [DIR [WHAT...]]     DIR for all that is made (default below /var/tmp; in memory, /dev/shm, it takes less long); WHAT: stress, a group of xfstests (auto,
#                                         quick, ...) or a test (generic/001); default: stress auto
#
# As root. Prints a line for each test that does not pass, and ends with 1 if one failed that docs/testing.md does not list. Installs what
# is missing with apt-get. XFSTESTS is a directory with the sources of xfstests (fetched if not set); LIMIT_S (300) is for each test;
# STRESS_S (600) for fsstress; BIN is where the programs are (target/release, built first unless NO_BUILD is set).
#
# All runs in a mount namespace of its own, where the users the tests need and the helper of mount(8) are put over the machine's own:
# nothing of it is left behind. Each test has a namespace of processes too, which ends with it.
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
dir=${1:-/var/tmp/pstorage-xfstests.$$}
shift || true
what=("$@")
[ ${#what[@]} -gt 0 ] || what=(stress auto)
bin=${BIN:-$here/target/release}
limit=${LIMIT_S:-300}
tests=$dir/xfstests
port=$((20000 + $$ % 2500 * 4))
servers=()
# What is mounted is known to xfstests by the names of two clusters.
export PSTORAGE_ETC=$dir/etc TEST_DEV=pstorage://test SCRATCH_DEV=pstorage://scratch TEST_DIR=$dir/mnt/test SCRATCH_MNT=$dir/mnt/scratch
export FSTYP=fuse FUSE_SUBTYP=.pstorage HOST_OPTIONS=$dir/local.config RESULT_BASE=$dir/results MOUNT_OPTIONS=-odefaults TEST_FS_MOUNT_OPTS=-odefaults

say() { echo "xfstests: $*"; }
fail() { say "FAILED: $*" >&2; exit 1; }

finish() {
    status=$?
    umount -l "$TEST_DIR" "$SCRATCH_MNT" 2> /dev/null || true
    [ ${#servers[@]} = 0 ] || kill "${servers[@]}" 2> /dev/null || true
    [ ! -d "$dir/local" ] || "$bin/pstorage" local down "$dir/local" > /dev/null 2>&1 || true
    wait
    if [ "$status" = 0 ]; then rm -rf "$dir"; else say "the files stay in $dir" >&2; fi
    exit "$status"
}

# The sources are built in DIR, as the tests write there.
build() {
    local packages=(acl attr autoconf automake bc gawk gcc libacl1-dev libaio-dev libattr1-dev libcap-dev libgdbm-dev libtool-bin make
        psmisc quota uuid-dev uuid-runtime xfslibs-dev xfsprogs)
    dpkg -s "${packages[@]}" > /dev/null 2>&1 || apt-get install -y -q "${packages[@]}" > "$dir/apt" 2>&1 || fail "apt-get: $(tail -n 3 "$dir/apt")"
    if [ -n "${XFSTESTS:-}" ]; then
        cp -a "$XFSTESTS" "$tests"
    else
        git clone -q --depth 1 https://git.kernel.org/pub/scm/fs/xfs/xfstests-dev.git "$tests"
    fi
    [ -x "$tests/ltp/fsstress" ] || make -C "$tests" -j"$(nproc)" > "$dir/make" 2>&1 || fail "make: $(tail -n 5 "$dir/make")"
}

# Over the machine's own: users that the tests become, the helper of mount(8), and /tmp, where tests name files after their process.
cover() {
    mount --make-rprivate /
    mount -t tmpfs tmpfs /tmp
    mkdir -p "$dir/cover/upper" "$dir/cover/work"
    for file in passwd shadow group; do cp -p "/etc/$file" "$dir/cover/$file"; done
    local id=9000
    for user in fsgqa 123456-fsgqa fsgqa2; do
        id=$((id + 1))
        echo "$user:x:$id:$id::/tmp:/bin/bash" >> "$dir/cover/passwd"
        echo "$user:*:20000::::::" >> "$dir/cover/shadow"
        echo "$user:x:$id:" >> "$dir/cover/group"
    done
    for file in passwd shadow group; do mount --bind "$dir/cover/$file" "/etc/$file"; done
    mount -t overlay overlay -o "lowerdir=/usr/sbin,upperdir=$dir/cover/upper,workdir=$dir/cover/work" /usr/sbin
    ln -s "$bin/pstorage-mount" /usr/sbin/mount.fuse.pstorage
}

# A cluster of this name, of one metadata server and one chunk server.
make_cluster() { # NAME PORT
    local of=$dir/clusters/$1
    mkdir -p "$of"
    "$bin/pstorage" -c "$1" make-mds -I -a "127.0.0.1:$2" -r "$of/mds" > /dev/null
    "$bin/pstorage-mdsd" -r "$of/mds" > "$of/mds.out" 2>&1 &
    servers+=($!)
    "$bin/pstorage" -c "$1" make-cs -r "$of/cs" -a 127.0.0.1 --shards 1 --journal-size 64M --capacity 10G > /dev/null
    "$bin/pstorage-csd" -r "$of/cs" > "$of/cs.out" 2>&1 &
    servers+=($!)
}

# On three replicas.
stress() {
    local at=$dir/local/mnt/work
    mkdir -p "$dir/local"
    "$bin/pstorage" local up "$dir/local" --mds 3 --cs 3 --shards 1 > /dev/null
    mkdir "$at"
    "$tests/ltp/fsstress" -d "$at" -p 8 --duration="${STRESS_S:-600}" -s 1 > "$dir/fsstress" 2>&1 || fail "fsstress: $(tail -n 5 "$dir/fsstress")"
    local names; names=$(find "$at" | wc -l)
    # Of each file the beginning: holes make some of them large.
    find "$at" -type f -exec head -qc 1M {} + > /dev/null || fail "fsstress left files that can't be read"
    "$bin/pstorage" -c local --etc "$dir/local/etc" check > "$dir/check" || fail "replicas differ: $(cat "$dir/check")"
    rm -rf "$at"
    "$bin/pstorage" local down "$dir/local" > /dev/null
    say "fsstress: ${STRESS_S:-600} s by 8 processes; $names names were left, read and removed; replicas are equal"
}

# Runs one test in namespaces of its own; prints what came out unless it passed.
one() { # generic/NNN
    local out=$dir/out/${1/\//-} result
    # A mount whose process went with the last test's namespace.
    umount -l "$TEST_DIR" "$SCRATCH_MNT" 2> /dev/null || true
    {
        (cd "$tests" && timeout -k 5 "$limit" unshare --pid --fork --kill-child --mount-proc bash -c './check "$1"; umount "$TEST_DIR" "$SCRATCH_MNT"' - "$1") \
            < /dev/null > "$out" 2>&1 || true
    } 2> /dev/null # Where bash says that it was killed.
    if grep -q '^Passed all 1 tests' "$out"; then
        result=pass
        grep -q "^Not run: $1" "$out" && result="not run: $(sed -n "s|^$1.*\[not run\] *||p" "$out")"
    elif grep -q "^Failures: $1" "$out"; then
        result="FAIL: $(sed -n "s|^$1 *||p" "$out" | head -n 1)"
    else
        result="FAIL: no end within $limit s, or none at all"
    fi
    echo "$1 $result" >> "$dir/list"
    [ "$result" = pass ] || echo "$1 $result"
}

generic() { # GROUP
    [ -s "$tests/tests/generic/group.list" ] || fail "xfstests has no list of groups"
    for number in $(awk -v group="$1" '/^[0-9]/ { for (i = 2; i <= NF; i++) if ($i == group) print $1 }' "$tests/tests/generic/group.list"); do
        one "generic/$number"
    done
}

known() { sed -n '/^## xfstests/,/^## [^x]/p' "$here/docs/testing.md" | grep -o 'generic/[0-9]*' | sort -u; }

if [ -z "${XFSTESTS_INSIDE:-}" ]; then
    [ -n "${NO_BUILD:-}" ] || (cd "$here" && cargo build -q --release --workspace --bins)
    XFSTESTS_INSIDE=1 exec unshare --mount "$0" "$dir" "${what[@]}"
fi
trap finish EXIT
trap 'exit 1' INT TERM
mkdir -p "$dir/out" "$TEST_DIR" "$SCRATCH_MNT" "$RESULT_BASE"
: > "$dir/list"
: > "$HOST_OPTIONS"
[ -x "$tests/ltp/fsstress" ] || build
cover
for each in "${what[@]}"; do
    case $each in
        stress) stress ;;
        *)
            [ -d "$dir/clusters" ] || { make_cluster test "$port"; make_cluster scratch $((port + 2)); }
            if [[ $each == generic/* ]]; then one "$each"; else generic "$each"; fi
            ;;
    esac
done
failed=$(awk '$2 == "FAIL:" { print $1 }' "$dir/list" | sort -u)
say "$(grep -c ' pass$' "$dir/list" || true) passed, $(grep -c ' not run: ' "$dir/list" || true) not run, $(wc -w <<< "$failed") failed"
new=$(comm -23 <(echo "$failed") <(known) | grep . || true)
[ -z "$new" ] || fail "not listed in docs/testing.md: $(tr '\n' ' ' <<< "$new")"
