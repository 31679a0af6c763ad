#!/bin/sh
# Builds the Debian package. One command: packaging/deb.sh [-f] [-o DIR] [-p PROGRAMS]
#   -f           fast: a large package
#   -o DIR       where the package goes (default: target/debian)
#   -p PROGRAMS  a directory with programs that are built already (default: builds the release)
# Prints the name of the package. Needs dpkg-deb, gzip and strip, which Debian machines with a compiler have.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
top=$(dirname "$here")
out=$top/target/debian
built=
level=6
while getopts fo:p: option; do
    case $option in
    f) level=0 ;;
    o) out=$OPTARG ;;
    p) built=$OPTARG ;;
    *) exit 2 ;;
    esac
done
if [ -z "$built" ]; then
    (cd "$top" && cargo build --release --workspace --bins) >&2
    built=$top/target/release
fi

version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$top/Cargo.toml")
arch=$(dpkg --print-architecture)
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
umask 022
# It stands for / of where it is installed.
chmod 755 "$tree"

put() { # MODE FROM TO
    install -D -m "$1" "$2" "$tree/$3"
}

# Programs. Servers are started by their units, not by people.
for program in pstorage pstorage-mdsd pstorage-csd pstorage-mount pstorage-license pstorage-hwflush-check pcs-bench; do
    put 755 "$built/$program" "usr/bin/$program"
    strip --strip-unneeded "$tree/usr/bin/$program"
done
# By this name mount(8) finds it for lines of /etc/fstab.
mkdir -p "$tree/usr/sbin"
ln -s ../bin/pstorage-mount "$tree/usr/sbin/mount.fuse.pstorage"

# Services.
put 644 "$here/systemd/pstorage-mds@.service" "usr/lib/systemd/system/pstorage-mds@.service"
put 644 "$here/systemd/pstorage-cs@.service" "usr/lib/systemd/system/pstorage-cs@.service"
put 644 "$here/pstorage.sysusers" usr/lib/sysusers.d/pstorage.conf
# Keys are made here: for root and the servers only.
install -d -m 750 "$tree/etc/pstorage"

# Manual pages: of pstorage and its commands by itself, of the others what they say of themselves.
man=$tree/usr/share/man/man1
mkdir -p "$man"
"$built/pstorage" man "$man"
for program in pstorage-mdsd pstorage-csd pstorage-mount pstorage-license pstorage-hwflush-check pcs-bench; do
    help=$("$built/$program" --help)
    {
        echo ".TH $program 1"
        echo ".SH NAME"
        echo "$program \\- $(echo "$help" | sed 's/\.$//;q')"
        echo ".SH DESCRIPTION"
        echo ".nf"
        echo "$help" | sed 's/\\/\\\\/g; s/-/\\-/g; s/^\([.'"'"']\)/\\\&\1/'
        echo ".fi"
        echo ".SH SEE ALSO"
        echo ".BR pstorage (1)"
    } >"$man/$program.1"
done
gzip -9n "$man"/*

# Completion.
mkdir -p "$tree/usr/share/bash-completion/completions" "$tree/usr/share/zsh/vendor-completions" \
    "$tree/usr/share/fish/vendor_completions.d"
"$built/pstorage" completion bash >"$tree/usr/share/bash-completion/completions/pstorage"
"$built/pstorage" completion zsh >"$tree/usr/share/zsh/vendor-completions/_pstorage"
"$built/pstorage" completion fish >"$tree/usr/share/fish/vendor_completions.d/pstorage.fish"

# Documentation.
doc=usr/share/doc/pstorage
put 644 "$here/debian/copyright" "$doc/copyright"
put 644 "$top/CHANGELOG.md" "$doc/changelog"
gzip -9n "$tree/$doc/changelog"
(cd "$top/docs" && find . -name '*.md' -printf '%P\n' -o -name '*.png' -printf '%P\n') | while read -r page; do
    put 644 "$top/docs/$page" "$doc/$page"
done
put 644 "$here/grafana/pstorage.json" "$doc/grafana/pstorage.json"

# The C library of this machine, or a newer one: the programs may use all it has.
libc=$(dpkg-query -W -f '${Version}' libc6 | sed 's/-.*//')
mkdir "$tree/DEBIAN"
for script in postinst prerm postrm; do
    install -m 755 "$here/debian/$script" "$tree/DEBIAN/$script"
done
cat >"$tree/DEBIAN/control" <<END
Package: pstorage
Version: $version
Architecture: $arch
Maintainer: the authors of pstorage <pstorage@localhost>
Installed-Size: $(du -sk --exclude=DEBIAN "$tree" | cut -f1)
Depends: libc6 (>= $libc), libgcc-s1
Recommends: fuse3, chrony | time-daemon
Suggests: avahi-daemon, bash-completion
Section: admin
Priority: optional
Description: distributed storage for virtual machines
 Files are cut into chunks that lie on several chunk servers; metadata servers
 know where; hosts mount the cluster through FUSE. A write is acknowledged when
 it is on stable storage of all its replicas.
 .
 This package has the servers, the mount, and the administrator's commands.
END
(cd "$tree" && find . -type f ! -path './DEBIAN/*' -printf '%P\n' | LC_ALL=C sort | xargs md5sum >DEBIAN/md5sums)

mkdir -p "$out"
dpkg-deb --root-owner-group -Zxz -z$level --build "$tree" "$out/pstorage_${version}_$arch.deb" >&2
echo "$out/pstorage_${version}_$arch.deb"
