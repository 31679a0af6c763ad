#!/usr/bin/env bash
# This product: three metadata servers, three chunk servers, replicas 3. A write is on stable storage of all three when it is acknowledged.
# Usage: pstorage.sh up|down DIR; mounts DIR/mnt, writes the servers' processes to DIR/processes, one of a chunk server to DIR/victim.
set -euo pipefail
bin=$(dirname "$0")/../../target/release
case $1 in
    up)
        $bin/pstorage local up "$2/cluster" --replicas 3 --capacity-gb 8
        mkdir -p "$2/mnt"
        mount --bind "$2/cluster/mnt" "$2/mnt"
        $bin/pstorage --version | head -1 > "$2/version"
        echo "each write on stable storage of three servers" > "$2/durability"
        pgrep pstorage > "$2/processes"
        cp "$2/cluster/run/cs1.pid" "$2/victim"
        ;;
    down)
        umount "$2/mnt"
        $bin/pstorage local down "$2/cluster"
        ;;
esac
