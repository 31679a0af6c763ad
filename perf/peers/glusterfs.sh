#!/usr/bin/env bash
# GlusterFS: one volume of replica 3 on three bricks, FUSE mount, settings as installed.
# Packages: glusterfs-server glusterfs-client
# Usage: glusterfs.sh up|down DIR; mounts DIR/mnt, writes the servers' processes to DIR/processes, one of a brick to DIR/victim. In namespaces of its own: compare.sh.
set -euo pipefail
case $1 in
    up)
        for place in /var/lib/glusterd /var/log/glusterfs /run/gluster; do
            mkdir -p "$2$place" "$place"
            mount --bind "$2$place" "$place"
        done
        glusterd
        mkdir -p "$2"/brick{1,2,3} "$2/mnt"
        for try in $(seq 50); do gluster --mode=script volume info > /dev/null 2>&1 && break; sleep 0.2; done
        gluster --mode=script volume create v replica 3 10.77.1.1:"$2/brick1" 10.77.1.1:"$2/brick2" 10.77.1.1:"$2/brick3" force
        gluster --mode=script volume start v
        for try in $(seq 20); do mount -t glusterfs 10.77.1.1:/v "$2/mnt" && break; sleep 0.5; done
        mountpoint "$2/mnt"
        glusterd --version | head -1 > "$2/version"
        echo "O_DSYNC and fsync reach three bricks" > "$2/durability"
        pgrep gluster > "$2/processes"
        pgrep -f 'glusterfsd.*brick1' > "$2/victim"
        ;;
    down)
        umount "$2/mnt"
        gluster --mode=script volume stop v force
        # The bricks have ended with the volume.
        xargs kill < "$2/processes" || true
        sleep 1
        umount /var/lib/glusterd /var/log/glusterfs /run/gluster
        ;;
esac
