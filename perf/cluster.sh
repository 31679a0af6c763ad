# Sourced by the scripts that measure clusters of their own, with DIR and the name of a program of perf/: builds what they
# need (unless NO_BUILD is set); makes $work, a temporary directory in DIR; at the end stops every cluster in it and removes it.
source perf/build.sh "$2"
bin=target/release
work=$(mktemp -d "$1/$2.XXXXXX")
cleanup() {
    for etc in "$work"/*/etc; do
        $bin/pstorage local down "${etc%/etc}" >/dev/null || true
        # Never through a mount that is still there.
        ! mountpoint -q "${etc%/etc}/mnt" || return
    done
    rm -rf "$work"
}
trap cleanup EXIT

# The machine, for the head of a table.
machine() {
    echo "Kernel $(uname -r), $(nproc) cores ($(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)), $(df --output=fstype "$work" | tail -1), $(date +%F), commit $(git rev-parse --short HEAD)"
    echo
}
