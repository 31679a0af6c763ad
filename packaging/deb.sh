#!/bin/sh
# Builds the Debian package. One command: packaging/deb.sh [-f] [-o DIR] [-p PROGRAMS]
#   -f           fast: a large package
#   -o DIR       where the package goes (default: target/debian)
#   -p PROGRAMS  a directory with programs that are built already (default: builds the release)
# Prints the name of the package. Needs dpkg-deb, gzip and strip, which Debian machines with a compiler have.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=$(dirname "$here")/target/debian
zsh=usr/share/zsh/vendor-completions
. "$here/tree.sh"
arch=$(dpkg --print-architecture)

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

dpkg-deb --root-owner-group -Zxz ${fast:+-z0} --build "$tree" "$out/pstorage_${version}_$arch.deb" >&2
echo "$out/pstorage_${version}_$arch.deb"
