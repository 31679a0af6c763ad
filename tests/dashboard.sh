#!/usr/bin/env bash
# The dashboard of a local cluster (3 MDS, 6 CS in two rooms) in a real browser: what its page holds, well and with a chunk server and then
# all metadata servers killed, and a picture of it for the guide.
#
#   tests/dashboard.sh [DIR [PICTURE]]     DIR for the cluster (default below /var/tmp), PICTURE (default docs/pictures/dashboard.png)
#
# As root. Installs chromium, curl and openssl with apt-get if they are missing. BIN is where the programs are (target/release, built first unless NO_BUILD is
# set), SECONDS_OF_LOAD how long there is something to be seen in the curves (90).
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
dir=${1:-/var/tmp/pstorage-dashboard.$$}
picture=${2:-$here/docs/pictures/dashboard.png}
bin=${BIN:-$here/target/release}
port=${PORT:-19530}
url=http://127.0.0.1:$port/
export PSTORAGE_NAME=local PSTORAGE_ETC=$dir/etc
. "$here/tests/chromium.sh"

say() { echo "dashboard: $*"; }
fail() { say "FAILED: $*" >&2; exit 1; }

finish() {
    status=$?
    for process in ${load:-} ${dashboard:-}; do kill "$process" 2> /dev/null && wait "$process" || true; done
    "$bin/pstorage" local down "$dir" > /dev/null 2>&1 || true
    if [ "$status" = 0 ]; then rm -rf "$dir"; else say "the cluster's files stay in $dir" >&2; fi
    exit "$status"
}

browse() { # OPTIONS...: once the page has drawn what it asked for
    chromium_in "$dir/browser" --window-size=1400,1000 --virtual-time-budget=3000 "$@" "$url" 2> "$dir/browser.log"
}

shows() { # TEXT...: the page does, within a minute; its words alone, without marks
    local text
    for _ in $(seq 30); do
        browse --dump-dom | sed 's/<[^>]*>//g' > "$dir/page.txt"
        missing=
        for text in "$@"; do grep -qF -- "$text" "$dir/page.txt" || missing=$text; done
        [ -n "$missing" ] || return 0
        sleep 1
    done
    fail "the page does not show '$missing':
$(cat "$dir/page.txt")"
}

work() { # something for the curves, until it is killed
    for n in $(seq 100000); do
        dd if=/dev/urandom of="$dir/mnt/f$((n % 8))" bs=64k count=$((32 + n % 7 * 40)) conv=fsync,notrunc status=none
        dd if="$dir/mnt/f$((n * 5 % 8))" of=/dev/null bs=128k iflag=direct status=none 2> /dev/null || true
        sleep 0.$((n * 7 % 10))
    done
}

guarded() { # https, with a password
    local at=127.0.0.1:$((port + 1)) process
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=DNS:localhost \
        -keyout "$dir/key.pem" -out "$dir/cert.pem" 2> /dev/null
    (umask 077; echo 'open sesame' > "$dir/password")
    "$bin/pstorage" dashboard --listen "$at" --password-file "$dir/password" --tls-cert "$dir/cert.pem" --tls-key "$dir/key.pem" > /dev/null &
    process=$!
    local ask=(curl -s --retry 10 --retry-connrefused --retry-delay 1 --cacert "$dir/cert.pem" -o /dev/null -w '%{http_code}' "https://localhost:$((port + 1))/")
    local codes; codes="$("${ask[@]}") $("${ask[@]}" -u a:wrong) $("${ask[@]}" -u 'a:open sesame')"
    kill "$process" && wait "$process" || true
    [ "$codes" = '401 401 200' ] || fail "https with a password: $codes"
    say "https: nobody without the password"
}

for program in chromium curl openssl; do
    command -v $program > /dev/null && continue
    { apt-get update -q && apt-get install -y -q --no-install-recommends $program fonts-dejavu-core; } > /dev/null 2>&1 || fail "needs $program"
done
[ -n "${NO_BUILD:-}" ] || cargo build -q --release --workspace --manifest-path "$here/Cargo.toml"
mkdir -p "$dir" "$(dirname "$picture")"
trap finish EXIT
shape=(--mds 3 --cs 6 --shards 1 --replicas 3:2 --capacity 2G)
"$bin/pstorage" local up "$dir" "${shape[@]}" > /dev/null
"$bin/pstorage" local down "$dir" > /dev/null
for n in 1 2 3 4 5 6; do
    "$bin/pstorage" configure-cs -r "$dir/cs$n" --location "$([ "$n" -le 3 ] && echo east || echo west).1.$((n % 3 / 2 + 1))" > /dev/null
done
"$bin/pstorage" local up "$dir" > /dev/null
"$bin/pstorage" dashboard --listen "127.0.0.1:$port" > "$dir/dashboard.log" &
dashboard=$!

shows local 'CS active' '6 of 6' '3 of 3 answer' CS#1 CS#2 CS#3 CS#4 CS#5 CS#6 MDS#1 MDS#2 MDS#3 'room east' 'room west' became
[ "$(grep -c 'CSP\|Content Security Policy\|Uncaught' "$dir/browser.log")" = 0 ] || fail "the browser complains: $(cat "$dir/browser.log")"
say "the page shows the cluster"

guarded

work &
load=$!
sleep "${SECONDS_OF_LOAD:-90}"
kill -9 "$(cat "$dir/run/cs5.pid")"
shows degraded 'inactive: CS#5' 'start them within mds.wd.offline_tout' '1 of 1 not well' '5 of 6'
browse --screenshot="$picture" > /dev/null
[ -s "$picture" ] || fail "no picture: $(cat "$dir/browser.log")"
say "a killed chunk server is shown, in words and in $picture"

kill "$load" && wait "$load" || true
for n in 1 2 3; do kill -9 "$(cat "$dir/run/mds$n.pid")"; done
shows 'not current' 'No metadata server answers' 'all below is' 'CS#6'
say "without metadata servers it says so, and shows what was"
