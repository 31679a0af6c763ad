#!/usr/bin/env bash
# MooseFS: a master, three chunk servers, goal 3, FUSE mount, settings as installed.
# Packages: moosefs-master moosefs-chunkserver moosefs-client
# Usage: moosefs.sh up|down DIR; mounts DIR/mnt, writes the servers' processes to DIR/processes, one of a chunk server to DIR/victim. In namespaces of its own: compare.sh.
set -euo pipefail
case $1 in
    up)
        data=$2/data
        mkdir -p "$data"/{master,cs1,cs2,cs3,disk1,disk2,disk3} "$2/mnt"
        cp /var/lib/mfs/metadata.mfs.empty "$data/master/metadata.mfs"
        echo "* / rw,alldirs,maproot=0" > "$data/exports"
        printf 'WORKING_USER = root\nWORKING_GROUP = root\nDATA_PATH = %s\nEXPORTS_FILENAME = %s\n' "$data/master" "$data/exports" > "$data/master.cfg"
        mfsmaster -c "$data/master.cfg" start
        for n in 1 2 3; do
            echo "$data/disk$n" > "$data/hdd$n"
            printf 'WORKING_USER = root\nWORKING_GROUP = root\nDATA_PATH = %s\nHDD_CONF_FILENAME = %s\nMASTER_HOST = 10.77.1.1\nCSSERV_LISTEN_PORT = %s\nHDD_LEAVE_SPACE_DEFAULT = 64MiB\n' \
                "$data/cs$n" "$data/hdd$n" $((9522 + n)) > "$data/cs$n.cfg"
            mfschunkserver -c "$data/cs$n.cfg" start
        done
        for try in $(seq 50); do mfsmount "$2/mnt" -H 10.77.1.1 && break; sleep 0.5; done
        mountpoint "$2/mnt"
        mfssetgoal -r 3 "$2/mnt"
        # Until a write finds three servers.
        for try in $(seq 60); do dd if=/dev/zero of="$2/mnt/first" bs=1M count=1 conv=fsync 2> /dev/null && break; sleep 1; done
        rm "$2/mnt/first"
        mfsmaster -v | head -1 > "$2/version"
        echo "acknowledged from the page caches of three servers (no fsync there, as installed)" > "$2/durability"
        pgrep mfs > "$2/processes"
        pgrep -f "mfschunkserver -c $data/cs1.cfg" > "$2/victim"
        ;;
    down)
        umount "$2/mnt"
        for n in 1 2 3; do mfschunkserver -c "$2/data/cs$n.cfg" stop; done
        mfsmaster -c "$2/data/master.cfg" stop
        ;;
esac
