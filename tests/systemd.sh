#!/usr/bin/env bash
# The package, its units and its scripts under a real systemd: four machines, each with a systemd of its own as process 1, in namespaces, joined
# by a bridge. They are installed, used, upgraded, broken and purged as docs/admin-guide says; then machines install themselves with
# packaging/examples.
#
#   tests/systemd.sh [DIR]     DIR for the machines, on a file system with direct I/O (default below /var/tmp); kept after a failure
#
# As root. BIN is where the programs are (target/release, built first unless NO_BUILD is set). ROOT is the Debian that all machines share
# (target/systemd-root, made by mmdebstrap the first time). SHOW=1 shows every command. Says SKIP and why, and ends with 0, where systemd can't run;
# ends with 1 if something fails, and after LIMIT seconds (1800) in any case. Nothing of it is left on this machine.
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
dir=${1:-/var/tmp/pstorage-systemd.$$}
bin=${BIN:-$here/target/release}
base=${ROOT:-$here/target/systemd-root}
cgroups=${CGROUPS:-}
# Of the guide's examples, so that they can be run as they stand.
net=10.30.100

say() { echo "systemd: $(date +%T) $*"; }
# HOLD=1: everything stays as it is, to be looked at from outside (nsenter -t PID -a).
fail() { say "FAILED: $*" >&2; [ -z "${HOLD:-}" ] || sleep infinity; exit 1; }
skip() { say "SKIP: $*"; exit 0; }

# ---------------------------------------------------------------------------------------------------------- outside

outside() {
    [ "$(id -u)" = 0 ] || skip "needs root, for namespaces"
    [ -e /dev/fuse ] || skip "there is no /dev/fuse"
    command -v ip > /dev/null || skip "there is no ip (iproute2), for networks of the machines"
    # The tree of version 2, wherever it is: systemd needs no controllers in it.
    local v2; v2=$(awk '$3 == "cgroup2" {print $2; exit}' /proc/mounts)
    [ -n "$v2" ] || skip "no cgroup2 is mounted"
    cgroups=$v2/pstorage-systemd.$$
    if [ ! -e "$base/usr/bin/systemctl" ]; then
        command -v mmdebstrap > /dev/null || apt-get install -y -qq mmdebstrap > /dev/null 2>&1 || skip "there is no mmdebstrap, and apt-get can't get it"
        say "making a Debian in $base"
        rm -rf "$base"
        timeout 900 mmdebstrap --quiet --mode=root --variant=minbase \
            --include=systemd,systemd-sysv,systemd-timesyncd,dbus,fuse3,curl,wget,iproute2,procps,ca-certificates,cloud-init,libiscsi-bin,python3 \
            bookworm "$base.new" > /dev/null || { rm -rf "$base.new"; skip "mmdebstrap can't make a Debian here"; }
        mv "$base.new" "$base"
    fi
    [ -n "${NO_BUILD:-}" ] || cargo build -q --release --workspace --bins --manifest-path "$here/Cargo.toml"

    mkdir -p "$dir" "$cgroups"
    trap finish EXIT
    trap 'exit 130' INT TERM
    # All that is started or mounted is in namespaces, and ends with their first process.
    CGROUPS=$cgroups INSIDE=yes unshare --mount --net --pid --fork --kill-child --mount-proc "$0" "$dir" &
    inside=$!
    (sleep "${LIMIT:-1800}" && say "FAILED: it takes too long" && kill -9 $inside) &
    limit=$!
    disown $limit
    wait $inside
}

finish() {
    local status=$?
    # The limit's sleep first, or it would stay.
    kill "$(pgrep -P $limit)" $limit 2> /dev/null || true
    { kill -9 $inside && wait $inside; } 2> /dev/null || true
    for _ in $(seq 50); do
        find "$cgroups" -depth -type d -exec rmdir {} + 2> /dev/null && break
        sleep 0.1
    done
    if [ "$status" = 0 ]; then rm -rf "$dir"; else say "the machines' files and journals stay in $dir" >&2; fi
    exit "$status"
}

# --------------------------------------------------------------------------------------------------------- machines

# What systemd expects of who starts it in a container (systemd.io/CONTAINER_INTERFACE): /proc/sys and /sys to read only, its part of the
# cgroup tree, a small /dev, a /run. $1: the root directory, mounted already.
boot='
cd "$1"
mount -t proc proc proc && mount --bind proc/sys proc/sys && mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys && mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev && mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts dev/pts
mount -t tmpfs tmpfs dev/shm && mount -t tmpfs -o mode=755 tmpfs run
# The journal tells boots apart by it.
cat proc/sys/kernel/random/uuid >run/boot_id && mount --bind run/boot_id proc/sys/kernel/random/boot_id
for node in null zero full random urandom tty fuse loop-control $(cd /dev && echo loop[0-9]*); do
    touch dev/$node && mount --bind /dev/$node dev/$node
done
for link in ptmx:pts/ptmx fd:/proc/self/fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do ln -s ${link#*:} dev/${link%%:*}; done
hostname $(cat etc/hostname)
mkdir run/old && pivot_root . run/old && cd / && umount -l run/old && rmdir run/old
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin /sbin/init </dev/null >/dev/null 2>&1'

# fresh N: an empty machine, host N: the shared Debian below a layer of its own, /pstorage and /srv beside it on the real file system.
fresh() {
    local at=$dir/host$1
    ! mountpoint -q "$at/root" || umount -R "$at/root"
    rm -rf --one-file-system "$at" && mkdir -p "$at"/{upper,work,root,pstorage,srv}
    mount -t overlay overlay -o "lowerdir=$base,upperdir=$at/upper,workdir=$at/work" "$at/root"
    mkdir -p "$at/root/pstorage"
    local name
    for name in pstorage srv; do mount --bind "$at/$name" "$at/root/$name"; done
    echo "host$1" > "$at/root/etc/hostname"
    printf '127.0.0.1 localhost\n%s.1 install.example\n%s.10%s host%s\n' $net $net "$1" "$1" > "$at/root/etc/hosts"
    : > "$at/root/etc/machine-id"
}

# start N: its process 1, and its network.
start() {
    local pid
    [ -e "/run/netns/host$1" ] || {
        ip netns add "host$1"
        ip link add "veth$1" type veth peer name eth0 netns "host$1"
        ip link set "veth$1" master br0 up
        ip -n "host$1" link set lo up
        ip -n "host$1" address add "$net.10$1/24" dev eth0
        ip -n "host$1" link set eth0 up
    }
    mkdir -p "$cgroups/host$1"
    # The cgroup first: the namespace of cgroups begins where its first process is.
    sh -c 'echo $$ > "$1/cgroup.procs"; exec nsenter --net="$2" unshare --mount --uts --ipc --pid --cgroup --fork sh -euc "$3" boot "$4"' \
        sh "$cgroups/host$1" "/run/netns/host$1" "$boot" "$dir/host$1/root" 2> "$dir/host$1/boot.log" &
    for _ in $(seq 100); do
        pid=$(pgrep -P $! || true)
        [ -z "$pid" ] || [ "$(cat "/proc/$pid/comm")" != systemd ] || break
        sleep 0.1
    done
    if [ "$(cat "/proc/${pid:-none}/comm" 2> /dev/null)" != systemd ]; then
        [ ${#pids[@]} -gt 0 ] || skip "systemd does not start in namespaces of this machine: $(cat "$dir/host$1/boot.log")"
        fail "systemd does not start again: $(cat "$dir/host$1/boot.log")"
    fi
    pids[$1]=$pid
}
declare -A pids

# on N COMMANDS: as root, in a shell there.
on() {
    [ -z "${SHOW:-}" ] || echo "host$1# $2" >&2
    nsenter -t "${pids[$1]}" -m -u -i -n -p -C -- \
        env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 sh -c "cd; $2" < /dev/null
}

# must N COMMANDS: fails with what they say. never N COMMANDS: fails if they succeed.
must() { local said; said=$(on "$1" "$2" 2>&1) || fail "host$1: $2: $said"; }
never() { local said; if said=$(on "$1" "$2" 2>&1); then fail "host$1: succeeded, and should not: $2: $said"; fi; }

# soon SECONDS N COMMANDS: until they succeed.
soon() {
    local said until=$((SECONDS + $1))
    until said=$(on "$2" "$3" 2>&1); do
        [ $SECONDS -lt $until ] || fail "host$2: not within $1 s: $3: $said"
        sleep 0.5
    done
}

# booted N…: systemd is through, and nothing has failed.
booted() {
    local n state
    for n in "$@"; do
        soon 30 "$n" '[ -S /run/systemd/private ] && systemctl list-jobs >/dev/null'
        state=$(on "$n" 'timeout 120 systemctl is-system-running --wait' || true)
        [ "$state" = running ] || fail "host$n is $state: $(on "$n" 'systemctl --failed --no-legend; systemctl list-jobs; journalctl -b -p warning -n 30' 2>&1)"
    done
}

gone() {
    for _ in $(seq 900); do
        kill -0 "${pids[$1]}" 2> /dev/null || return 0
        sleep 0.1
    done
    fail "host$1 does not end: $(on "$1" 'systemctl list-jobs' 2>&1)"
}
# Gently, as by its button; as by its cable.
power_off() { local n; for n in "$@"; do on "$n" 'systemctl --no-block poweroff' > /dev/null 2>&1 || true; done; for n in "$@"; do gone "$n"; done; }
power_cut() { local n; for n in "$@"; do kill -9 "${pids[$n]}"; done; for n in "$@"; do gone "$n"; done; }

healthy() { # MDS CS
    soon 90 1 "pstorage -c pcs1 stat > /tmp/stat && grep -q \"'pcs1': healthy\" /tmp/stat && grep -q 'MDS nodes: $1 of $1' /tmp/stat && grep -q '$2 of $2 ($2 avail' /tmp/stat"
}

mds=$(systemd-escape --path --template=pstorage-mds@.service /pstorage/pcs1-mds)
cs=$(systemd-escape --path --template=pstorage-cs@.service /pstorage/pcs1-cs)
cs2=$(systemd-escape --path --template=pstorage-cs@.service /srv/disk2/cs)
# Looked for on every host in the end.
password=correct-horse-7361
small='--capacity 1G --shards 1 --journal-size 64M'

# package VERSION: with this version.
package() {
    local tree; tree=$(mktemp -d "$dir/package.XXX")
    dpkg-deb -R "$deb" "$tree"
    sed -i "s/^Version: .*/Version: $1/" "$tree/DEBIAN/control"
    dpkg-deb --root-owner-group -Znone --build "$tree" "$dir/pstorage_$1.deb" > /dev/null
    rm -rf "$tree"
}

# ------------------------------------------------------------------------------------------------------------ parts

machines() {
    local n
    for n in 1 2 3; do fresh "$n"; start "$n"; done
    booted 1 2 3
    say "three machines with $(on 1 'systemctl --version | head -n 1')"
}

install() { # as packages.md says
    local n
    files 3 > "$dir/bare"
    for n in 1 2 3; do
        cp "$deb" "$dir/host$n/root/root/pstorage.deb"
        must "$n" 'apt-get install -y ./pstorage.deb'
        must "$n" 'id pstorage && systemctl cat pstorage-mds@.service pstorage-cs@.service pstorage-iscsi@.service pstorage-first-start.service'
        must "$n" '[ -z "$(systemctl list-units --plain --no-legend "pstorage-*")" ]'
        must "$n" "! systemd-analyze verify --man=no '$mds' '$cs' pstorage-iscsi@pcs1.service pstorage-first-start.service 2>&1 | grep pstorage"
    done
}

servers() {
    local n
    must 1 "umask 077; echo $password > password"
    must 1 "pstorage -c pcs1 make-mds -I -a $net.101 -r /pstorage/pcs1-mds --password-file password"
    must 1 "systemctl enable --now '$mds'"
    must 1 "systemctl is-active '$mds'"
    for n in 2 3; do
        must $n "mkdir -p /etc/pstorage/clusters/pcs1 && echo $net.101:2510 > /etc/pstorage/clusters/pcs1/bs.list"
        must $n "echo $password | pstorage -c pcs1 auth-node"
        must $n "pstorage -c pcs1 add-mds -a $net.10$n -r /pstorage/pcs1-mds"
        must $n "systemctl enable --now '$mds'"
        soon 30 1 "pstorage -c pcs1 stat | grep ' $n  *avail'"
    done
    for n in 1 2 3; do
        must $n "printf '$net.10%s:2510\n' 1 2 3 > /etc/pstorage/clusters/pcs1/bs.list"
        # Its journal and cache on another disk.
        must $n "mkdir -p /srv/ssd && pstorage -c pcs1 make-cs -r /pstorage/pcs1-cs -a $net.10$n $small --journal /srv/ssd --cache /srv/ssd --cache-size 64M"
        must $n "systemctl enable --now '$cs'"
    done
    # A second one on host 2, on a disk with a line in /etc/fstab.
    must 2 'truncate -s 3G /srv/disk2.img && mkfs.ext4 -q /srv/disk2.img && mkdir /srv/disk2'
    must 2 "echo '/srv/disk2.img /srv/disk2 ext4 loop,nofail 0 0' >> /etc/fstab && systemctl daemon-reload && systemctl start srv-disk2.mount"
    must 2 "pstorage -c pcs1 make-cs -r /srv/disk2/cs -a $net.102 $small && systemctl enable --now '$cs2'"
    must 1 'pstorage -c pcs1 set-attr -R / replicas=3:2'
    healthy 3 4
    say "servers: 3 MDS and 4 CS made and enabled as the guide says"
}

complaints='buffers_not_registered|ERROR|Permission denied|Operation not permitted'
# What the units promise, of every server that runs on N.
rights() {
    local n=$1 unit
    for unit in $(on "$n" "systemctl list-units --plain --no-legend 'pstorage-mds@*' 'pstorage-cs@*' | cut -d' ' -f1"); do
        # Two rights (DAC_OVERRIDE 1, IPC_LOCK 14), no way to more, calls of the system filtered.
        must "$n" "pid=\$(systemctl show -P MainPID '$unit') && set -- \$(awk '/^(CapEff|CapBnd|NoNewPrivs|Seccomp):/ {print \$2}' /proc/\$pid/status) &&
            [ \"\$*\" = '0000000000004002 0000000000004002 1 2' ] && [ \$(stat -c %U /proc/\$pid) = pstorage ]"
        must "$n" "[ \$(systemctl show -P NRestarts '$unit') = 0 ]"
        must "$n" "journalctl -b -u '$unit' | grep -q INFO"
        never "$n" "journalctl -b -u '$unit' | grep -E '$complaints'"
    done
}

hardening() {
    local n
    for n in 1 2 3; do rights $n; done
    # What it sees: /usr to read only, an empty /root, no devices.
    must 1 "nsenter -t \$(systemctl show -P MainPID '$cs') -m sh -c '! touch /usr/x 2>/dev/null && [ -z \"\$(ls /root)\" ] && [ ! -e /dev/fuse ]'"
    say "hardening: $(on 1 "systemd-analyze security --no-pager '$mds' '$cs' | sed -n 's/^→ Overall exposure level for .*: /exposure /p' | tr '\n' ' '")"
}

watchdog() {
    local unit pid
    for unit in "$mds" "$cs"; do
        must 3 "systemctl restart '$unit' && [ \$(systemctl show -P WatchdogUSec '$unit') = 1min ]"
        # A minute is long: the same with a few seconds.
        must 3 "mkdir -p '/etc/systemd/system/$unit.d' && printf '[Service]\nWatchdogSec=4\n' > '/etc/systemd/system/$unit.d/watchdog.conf' && systemctl daemon-reload && systemctl restart '$unit'"
        pid=$(on 3 "systemctl show -P MainPID '$unit'")
        sleep 6
        must 3 "[ \$(systemctl show -P MainPID '$unit') = $pid ]"
        must 3 "kill -STOP $pid"
        soon 30 3 "[ \$(systemctl show -P NRestarts '$unit') = 1 ] && systemctl is-active '$unit' && [ \$(systemctl show -P MainPID '$unit') != $pid ]"
        must 3 "journalctl -b -u '$unit' | grep -q 'Watchdog timeout'"
        must 3 "kill -9 \$(systemctl show -P MainPID '$unit')"
        soon 30 3 "[ \$(systemctl show -P NRestarts '$unit') = 2 ] && systemctl is-active '$unit'"
        must 3 "rm -r '/etc/systemd/system/$unit.d' && systemctl daemon-reload && systemctl restart '$unit'"
    done
    healthy 3 4
    say "watchdog: servers that stood still or were killed run again"
}

mounts() {
    local n
    for n in 1 2; do
        must $n 'mkdir -p /mnt/pcs1'
        must $n "echo 'pstorage://pcs1 /mnt/pcs1 fuse.pstorage rw,nosuid,nodev,_netdev,log=/var/log/pstorage-pcs1.log 0 0' >> /etc/fstab"
    done
    must 1 'mount /mnt/pcs1'
    must 2 'systemctl daemon-reload && systemctl start mnt-pcs1.mount'
    # Not asked to be flushed: unmounting does it.
    must 2 'head -c 64M /dev/urandom > data && cp data /mnt/pcs1/data && systemctl stop mnt-pcs1.mount && ! mountpoint -q /mnt/pcs1'
    must 2 '! pgrep pstorage-mount'
    must 1 'cat /mnt/pcs1/data > data'
    must 2 'systemctl start mnt-pcs1.mount && cmp data /mnt/pcs1/data'
    cmp "$dir/host1/root/root/data" "$dir/host2/root/root/data" || fail "host 1 reads something else"
    say "mounts: lines of /etc/fstab, flushed when their unit is stopped"
}

iscsi() {
    must 1 'systemctl enable --now pstorage-iscsi@pcs1'
    soon 20 1 'pstorage-iscsi -c pcs1 list'
    must 1 "pstorage-iscsi -c pcs1 create -n vm1 -s 100M -a $net.101 && pstorage-iscsi -c pcs1 start -t vm1"
    inquire
    must 1 'systemctl restart pstorage-iscsi@pcs1'
    inquire
    never 1 "journalctl -b -u pstorage-iscsi@pcs1 | grep -E '$complaints'"
    say "iscsi: a target is served, also after a restart"
}
inquire() { soon 30 3 "iscsi-inq iscsi://$net.101/iqn.2026-11.local.pstorage:vm1/0"; }

metrics() {
    must 1 "mkdir -p '/etc/systemd/system/$cs.d' && printf '[Service]\nEnvironment=PSTORAGE_METRICS=127.0.0.1:9526\n' > '/etc/systemd/system/$cs.d/override.conf' && systemctl daemon-reload && systemctl restart '$cs'"
    soon 20 1 'curl -sf http://127.0.0.1:9526/healthz && curl -sf http://127.0.0.1:9526/metrics | grep -q ^pstorage_cs_reads_total'
    healthy 3 4
    say "metrics: of a line in the unit"
}

absent_disk() {
    must 2 "systemctl stop '$cs2' && systemctl stop srv-disk2.mount && mv /srv/disk2.img /srv/disk2.away"
    never 2 "systemctl start '$cs2'"
    must 2 '[ -z "$(ls /srv/disk2)" ]'
    must 2 "mv /srv/disk2.away /srv/disk2.img && systemctl start '$cs2' && mountpoint -q /srv/disk2"
    healthy 3 4
    say "absent disk: its server does not begin"
}

reboots() {
    local n
    for n in 1 2 3; do
        [ $n = 3 ] || must $n "head -c 32M /dev/urandom > last && cp last /mnt/pcs1/last$n"
        power_off $n
        start $n
        booted $n
        [ $n = 3 ] || must $n "mountpoint -q /mnt/pcs1 && cmp last /mnt/pcs1/last$n"
        # Mounts went first, the servers below them afterwards, and nothing had to be killed.
        must $n 'journalctl -b -1 | sed "1,/Stopped target multi-user/d" > ended && grep "Stopped pstorage-mds" ended && ! grep -E "pstorage|pcs1" ended | grep -E "timed out|SIG|Failed"'
        [ $n = 3 ] || must $n 'grep -E "Unmounted mnt-pcs1|Stopped pstorage-(mds|cs)" ended | sed 1q | grep Unmounted'
        healthy 3 4
    done
    must 1 'journalctl -b -u pstorage-iscsi@pcs1 | grep -q Started'
    inquire
    say "reboots: one host after the other; all comes back, what was written last too"
    must 1 'echo written > /mnt/pcs1/synced && sync /mnt/pcs1/synced'
    power_cut 1 2 3
    for n in 1 2 3; do start $n; done
    booted 1 2 3
    healthy 3 4
    must 1 'grep written /mnt/pcs1/synced'
    must 2 "cmp data /mnt/pcs1/data"
    inquire
    say "power cut: of all hosts at once; all comes back"
}

# Of every server: when it was stopped last, and when it served again, in microseconds.
restarts() {
    local n
    for n in 1 2 3; do
        on $n "for unit in \$(systemctl list-units --plain --no-legend 'pstorage-mds@*' 'pstorage-cs@*' 'pstorage-iscsi@*' | cut -d' ' -f1); do
            echo \$(systemctl show -P ActiveExitTimestampMonotonic \$unit) \$(systemctl show -P ActiveEnterTimestampMonotonic \$unit) host$n:\$unit; done"
    done
}

upgrade() {
    local n began version=$version+1
    package "$version"
    # A line and a flush a time; how long the longest took, and what is in the file in the end.
    cat > "$dir/host1/root/root/writer" <<'EOF'
n=0 longest=0
while [ ! -e /root/enough ]; do
    n=$((n + 1)) then=${EPOCHREALTIME/./}
    echo $n | dd of=/mnt/pcs1/lines oflag=append conv=notrunc,fsync status=none || exit 1
    took=$((${EPOCHREALTIME/./} - then))
    [ $took -lt $longest ] || longest=$took
done
seq $n | cmp - /mnt/pcs1/lines && echo "$n lines, the longest took $((longest / 1000)) ms"
EOF
    cat > "$dir/host1/root/root/watcher" <<'EOF'
while [ ! -e /root/enough ]; do pstorage -c pcs1 stat 2>&1 | grep -E 'MDS nodes|CS nodes|can|error' | tr '\n' ' '; echo; done
EOF
    must 1 'systemd-run --unit=writer -p RemainAfterExit=yes bash /root/writer; systemd-run --unit=watcher -p StandardOutput=file:/root/watched bash /root/watcher'
    sleep 2
    began=$(awk '{print int($1 * 1000000)}' /proc/uptime)
    for n in 1 2 3; do
        cp "$dir/pstorage_$version.deb" "$dir/host$n/root/root/new.deb"
        must $n 'apt-get install -y ./new.deb > upgraded 2>&1'
        must $n "dpkg -s pstorage | grep -qx 'Version: $version'"
        never $n 'grep -i -E "yourself|fail|error" upgraded'
        healthy 3 4
    done
    must 1 'touch enough'
    soon 10 1 "systemctl show -P SubState writer | grep -E 'exited|failed'"
    must 1 'journalctl -u writer -o cat | grep "lines, the longest took"'
    # All of them, one by one.
    restarts | sort -n > "$dir/restarts"
    awk -v began="$began" '$1 < began {print $3 " was not restarted"} $1 < back {print $3 " was stopped before " before " was back"} {back = $2; before = $3}
        END {if (NR != 8) print NR " servers"}' "$dir/restarts" > "$dir/wrong"
    [ ! -s "$dir/wrong" ] || fail "upgrade: $(cat "$dir/wrong" "$dir/restarts")"
    # A new master takes servers for inactive until they have come to it.
    if grep -vE 'MDS nodes: [23] of 3.*, 0 offline' "$dir/host1/root/root/watched"; then fail "upgrade: it was seen so"; fi
    say "upgrade: $(wc -l < "$dir/restarts") servers in turn; $(on 1 'journalctl -u writer -o cat | grep longest'); stat was asked $(wc -l < "$dir/host1/root/root/watched") times"
    # A server that was stopped before is not waited for.
    must 2 "systemctl stop '$cs2' && /usr/lib/pstorage/restart-servers && ! systemctl is-active '$cs2' && systemctl start '$cs2'"
    healthy 3 4
}

# What lies where on N, but for what the system itself writes.
files() { on "$1" 'find / -xdev \( -path /proc -o -path /var/cache -o -path /var/log -o -path /var/lib/apt -o -path /var/lib/dpkg -o -path /var/lib/systemd -o -path /tmp -o -path /var/tmp -o -path /root \) -prune -o -print; find /pstorage /srv' | sort; }

removal() {
    files 3 > "$dir/installed"
    must 3 'apt-get remove -y pstorage'
    must 3 "[ -z \"\$(systemctl list-units --plain --no-legend --state=active 'pstorage-*')\" ] && ! pgrep pstorage"
    must 3 'apt-get purge -y pstorage'
    must 3 'systemctl daemon-reload && [ -z "$(systemctl list-units --failed --no-legend)" ]'
    files 3 > "$dir/purged"
    # What is left that was not there at first, and what is missing that is not of the package.
    comm -13 "$dir/bare" "$dir/purged" | grep -vE '^/(etc/pstorage|pstorage|srv)(/|$)' > "$dir/left" || true
    comm -23 "$dir/installed" "$dir/purged" | grep -E '^/(etc/pstorage|pstorage|srv)(/|$)' > "$dir/missing" || true
    [ ! -s "$dir/left" ] || fail "left by a purge: $(cat "$dir/left")"
    [ ! -s "$dir/missing" ] || fail "taken by a purge: $(cat "$dir/missing")"
    soon 30 1 'pstorage -c pcs1 stat | grep -q "MDS nodes: 2 of 3"'
    must 3 'apt-get install -y ./new.deb'
    must 3 "systemctl enable --now '$mds' '$cs'"
    healthy 3 4
    say "removal: programs and services go, data and keys stay; installed again, it is as before"
}

# Servers that are taken out of the cluster end for good.
leaving() {
    must 1 'pstorage -c pcs1 rm-cs --wait 4'
    soon 30 2 "[ \$(systemctl show -P ActiveState '$cs2') = inactive ]"
    must 1 'pstorage -c pcs1 rm-mds 3'
    soon 30 3 "[ \$(systemctl show -P ActiveState '$mds') = inactive ]"
    # Nor at the next boot for more than a moment.
    must 2 "systemctl start '$cs2'"
    sleep 5
    must 2 "[ \$(systemctl show -P ActiveState '$cs2') = inactive ] && [ -z \"\$(systemctl list-units --failed --no-legend)\" ]"
    must 3 "[ \$(systemctl show -P ActiveState '$mds') = inactive ]"
    healthy 2 3
    say "leaving: servers that are removed from the cluster end, and are not started again"
}

life() {
    machines
    install
    servers
    hardening
    mounts
    iscsi
    metrics
    watchdog
    absent_disk
    reboots
    upgrade
    removal
    leaving
    power_off 1 2 3
}

# -------------------------------------------------------------------------------------------------------- first start

# Answers for https://install.example, which the examples ask: the package, the password, what hosts are to be.
install_server() {
    local www=$dir/www
    mkdir -p "$www/secret" "$www/conf"
    cp "$deb" "$www/pstorage_amd64.deb"
    echo $password > "$www/secret/pcs1"
    local n
    for n in 1 2 3; do
        cat > "$www/conf/host$n" <<EOF
CLUSTER=pcs1
ROLES="mds cs client"
PASSWORD_URL=https://install.example/secret/pcs1
BOOTSTRAP="$net.101:2510 $net.102:2510 $net.103:2510"
MDS_DIR=/pstorage/pcs1-mds
LOCATION=room1.row1.rack$n
CS_DIRS="/srv/disk*"
CS_OPTIONS="$small"
MOUNT=/mnt/pcs1
EOF
    done
    echo FIRST_MDS=yes >> "$www/conf/host1"
    openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=install.example -addext subjectAltName=DNS:install.example \
        -keyout "$dir/www.key" -out "$dir/www.crt" 2> /dev/null
    cat > "$dir/www.py" <<'EOF'
import functools, http.server, ssl, sys
address, www, cert, key = sys.argv[1:]
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
tls.load_cert_chain(cert, key)
server = http.server.ThreadingHTTPServer((address, 443), functools.partial(http.server.SimpleHTTPRequestHandler, directory=www))
server.socket = tls.wrap_socket(server.socket, server_side=True)
server.serve_forever()
EOF
    python3 "$dir/www.py" "$net.1" "$www" "$dir/www.crt" "$dir/www.key" > "$dir/www.log" 2>&1 &
}

# What is in every image: who is trusted for https.
trusts() {
    cp "$dir/www.crt" "$dir/host$1/root/usr/local/share/ca-certificates/install.crt"
    chroot "$dir/host$1/root" update-ca-certificates > /dev/null 2>&1
}

# The installer's last step, with the new system below /target.
preseeded() {
    local n=$1 at=$dir/host9/root late
    fresh 9
    trusts 9
    mkdir -p "$at/target"
    mount --rbind "$dir/host$n/root" "$at/target"
    printf '#!/bin/sh\nexec chroot /target "$@"\n' > "$at/usr/bin/in-target"
    chmod 755 "$at/usr/bin/in-target"
    late=$(sed -n '/late_command/,$p' "$here/packaging/examples/preseed.cfg" | sed '1d; s/\\$//')
    unshare --uts sh -c 'hostname $1; exec chroot $2 env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive sh -euc "$3"' sh "host$n" "$at" "$late" > "$dir/preseed$n.log" 2>&1 ||
        fail "preseed: $(cat "$dir/preseed$n.log")"
    umount -R "$at"
}

first_start() {
    local n
    install_server
    debconf-set-selections -c "$here/packaging/examples/preseed.cfg" || fail "preseed.cfg is not as debconf has it"
    for n in 1 2 3; do
        fresh $n
        trusts $n
        mkdir -p "$dir/host$n/srv/disk1"
        preseeded $n
    done
    # Others may be there before the one that makes the cluster.
    start 2; start 3
    sleep 5
    start 1
    for n in 1 2 3; do soon 120 $n '[ -e /etc/pstorage/first-start.done ] && mountpoint -q /mnt/pcs1'; done
    healthy 3 3
    say "preseed: three hosts made themselves a cluster"

    fresh 4
    trusts 4
    mkdir -p "$dir/host4"/srv/disk{1,2} "$dir/host4/root/var/lib/cloud/seed/nocloud"
    # Small ones for this test; all else as it stands there.
    sed "s|^\( *\)CS_DIRS=.*|&\n\1CS_OPTIONS=\"$small\"|" "$here/packaging/examples/cloud-init.yaml" > "$dir/host4/root/var/lib/cloud/seed/nocloud/user-data"
    printf 'instance-id: host4\nlocal-hostname: host4\n' > "$dir/host4/root/var/lib/cloud/seed/nocloud/meta-data"
    start 4
    must 4 'for try in $(seq 60); do cloud-init schema --config-file /var/lib/cloud/seed/nocloud/user-data && exit; sleep 1; done; exit 1'
    soon 180 4 '[ -e /etc/pstorage/first-start.done ] && mountpoint -q /mnt/pcs1'
    healthy 3 5
    say "cloud-init: a fourth host is a chunk server of two disks, and a client"

    must 4 'echo from host 4 > /mnt/pcs1/file && sync /mnt/pcs1/file'
    soon 5 1 'grep "from host 4" /mnt/pcs1/file'
    for n in 1 2 3 4; do
        # Nothing of the mount is in the service of the first start, which may be stopped.
        must $n 'systemctl stop pstorage-first-start && mountpoint -q /mnt/pcs1'
        if grep -rl -e $password "$dir/host$n/upper" "$dir/host$n/pstorage" "$dir/host$n/srv"; then fail "host$n keeps the password"; fi
    done
    power_cut 1 2 3 4
    for n in 1 2 3 4; do start $n; done
    booted 1 2 3
    healthy 3 5
    for n in 1 2 3 4; do must $n 'systemctl is-active mnt-pcs1.mount'; done
    must 2 'grep "from host 4" /mnt/pcs1/file'
    say "first start: the password is on none of the hosts; after a power cut of all of them everything is there again"
}

# ------------------------------------------------------------------------------------------------------------ inside

inside() {
    mount --make-rprivate /
    mount -t tmpfs tmpfs /run
    ip link set lo up
    ip link add br0 type bridge
    ip address add "$net.1/24" dev br0
    ip link set br0 up
    deb=$("$here/packaging/deb.sh" -f -o "$dir" -p "$bin" 2> /dev/null)
    version=$(dpkg-deb -f "$deb" Version)
    local part
    for part in ${PARTS:-life first_start}; do "$part"; done
    say "all is well"
}

if [ -n "${INSIDE:-}" ]; then inside; else outside; fi
