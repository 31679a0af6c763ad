#!/bin/sh
# Builds the RPM package. One command: packaging/rpm.sh [-f] [-o DIR] [-p PROGRAMS]
#   -f           fast: a large package
#   -o DIR       where the package goes (default: target/rpm)
#   -p PROGRAMS  a directory with programs that are built already (default: builds the release)
# Prints the name of the package. Needs rpmbuild (Debian: apt install rpm; Fedora: dnf install rpm-build), gzip and strip.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=$(dirname "$here")/target/rpm
zsh=usr/share/zsh/site-functions
. "$here/tree.sh"

# Only what is said here, whatever distribution this is built on; which C library they need, rpmbuild reads from the programs.
level=${fast:+1}
level=${level:-6}
work=$(mktemp -d)
trap 'rm -rf "$tree" "$work"' EXIT
{
    cat <<END
%global debug_package %{nil}
%global __os_install_post %{nil}
%global _build_id_links none
%global _binary_payload w$level.gzdio
Name: pstorage
Version: $version
Release: 1
Summary: Distributed storage for virtual machines
License: $(sed -n '/^\[workspace.package\]/,/^\[/s/^license = "\(.*\)"/\1/p' "$top/Cargo.toml")
Recommends: fuse3
Recommends: chrony
%description
Files are cut into chunks that lie on several chunk servers; metadata servers know
where; hosts mount the cluster through FUSE. A write is acknowledged when it is on
stable storage of all its replicas.

This package has the servers, the mount, and the administrator's commands.
END
    echo "%install"
    echo "cp -a '$tree/.' \"\$RPM_BUILD_ROOT\""
    for name in post preun postun; do
        echo "%$name"
        sed 1d "$here/rpm/$name"
    done
    echo "%files"
    echo "%dir %attr(750,root,root) /etc/pstorage"
    (cd "$tree" && find . \( -type f -o -type l \) -printf '/%P\n' | LC_ALL=C sort)
} >"$work/pstorage.spec"
rpmbuild -bb --quiet --buildroot "$work/root" --define "_topdir $work" --define "_rpmdir $work/out" \
    "$work/pstorage.spec" >&2
package=$(find "$work/out" -name '*.rpm')
mv "$package" "$out/"
echo "$out/$(basename "$package")"
