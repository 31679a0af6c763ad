#!/usr/bin/env bash
# Has a change made it slower? Builds a commit and this tree, starts a cluster of each, measures both in turns, prints each ratio with its
# confidence interval, and fails if one is worse for sure by more than 5 %.
# Of twenty figures one lies outside by chance: what is "a little worse" once is to be measured again, with more rounds.
# Usage: perf/guard.sh [COMMIT, default: HEAD^] [DIR on a disk] [options of guard]; as root. BASE_PROGRAMS=DIR: they are built already.
set -euo pipefail
cd "$(dirname "$0")/.."
commit=$(git rev-parse --verify "${1:-HEAD^}^{commit}")
shift || true
dir=${1:-/var/tmp}
shift || true
programs="pstorage pstorage-mdsd pstorage-csd pstorage-mount pcs-bench"
base=${BASE_PROGRAMS:-$PWD/target/guard/$commit}

# In the current directory, to the directory named.
build() {
    # shellcheck disable=SC2046,SC2086 # lists
    CARGO_TARGET_DIR=$1 cargo build --release -q -p pstorage-tools -p mds -p engine -p client -p perf $(printf -- '--bin %s ' $programs)
}
if [ ! -x "$base/pcs-bench" ]; then
    tree=$(mktemp -d)
    trap 'git worktree remove --force "$tree"' EXIT
    git worktree add -q --detach "$tree" "$commit"
    (cd "$tree" && build "$OLDPWD/target/guard/build")
    mkdir -p "$base"
    for program in $programs; do cp "target/guard/build/release/$program" "$base/"; done
    git worktree remove --force "$tree"
    trap - EXIT
fi
build "$PWD/target"
cargo build --release -q -p perf --bin guard
work=$(mktemp -d "$dir/guard.XXXXXX")
cleanup() {
    # Never through a mount that is still there.
    ! grep -q " $work/" /proc/mounts && rm -rf "$work"
}
trap cleanup EXIT
echo "Kernel $(uname -r), $(nproc) cores, $(date +%F); base $(git rev-parse --short "$commit"), head $(git describe --always --dirty)"
echo
target/release/guard "$base" target/release --work "$work" "$@"
