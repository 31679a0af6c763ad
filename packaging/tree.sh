# The files of a package, in a directory that stands for / of where it is installed. Read by deb.sh and rpm.sh, with
# $here: this directory, $out: where packages go if -o does not say, $zsh: where zsh looks for completions.
# Sets $tree, removed at the end, $out and $version.
top=$(dirname "$here")
built=
fast=
while getopts fo:p: option; do
    case $option in
    f) fast=yes ;;
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
mkdir -p "$out"
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
umask 022
chmod 755 "$tree"

put() { # MODE FROM TO
    install -D -m "$1" "$2" "$tree/$3"
}

# Programs. Servers are started by their units, not by people.
programs="pstorage-mdsd pstorage-csd pstorage-mount pstorage-iscsid pstorage-iscsi pstorage-license pstorage-hwflush-check pcs-bench"
for program in pstorage $programs; do
    put 755 "$built/$program" "usr/bin/$program"
    strip --strip-unneeded "$tree/usr/bin/$program"
done
# By this name mount(8) finds it for lines of /etc/fstab.
mkdir -p "$tree/usr/sbin"
ln -s ../bin/pstorage-mount "$tree/usr/sbin/mount.fuse.pstorage"

# Services.
for unit in "$here"/systemd/*.service; do
    put 644 "$unit" "usr/lib/systemd/system/$(basename "$unit")"
done
put 644 "$here/pstorage.sysusers" usr/lib/sysusers.d/pstorage.conf
for script in restart-servers first-start; do
    put 755 "$here/$script" "usr/lib/pstorage/$script"
done
# Keys are made here: for root and the servers only.
install -d -m 750 "$tree/etc/pstorage"

# Manual pages: of pstorage and its commands by itself, of the others what they say of themselves.
man=$tree/usr/share/man/man1
mkdir -p "$man"
"$built/pstorage" man "$man"
for program in $programs; do
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
mkdir -p "$tree/usr/share/bash-completion/completions" "$tree/$zsh" \
    "$tree/usr/share/fish/vendor_completions.d"
"$built/pstorage" completion bash >"$tree/usr/share/bash-completion/completions/pstorage"
"$built/pstorage" completion zsh >"$tree/$zsh/_pstorage"
"$built/pstorage" completion fish >"$tree/usr/share/fish/vendor_completions.d/pstorage.fish"

# Documentation.
doc=usr/share/doc/pstorage
put 644 "$here/debian/copyright" "$doc/copyright"
put 644 "$top/CHANGELOG.md" "$doc/changelog"
gzip -9n "$tree/$doc/changelog"
(cd "$top/docs" && find . -name '*.md' -printf '%P\n' -o -path './pictures/*' -printf '%P\n') | while read -r page; do
    put 644 "$top/docs/$page" "$doc/$page"
done
put 644 "$here/grafana/pstorage.json" "$doc/grafana/pstorage.json"
for example in "$here"/examples/*; do
    put 644 "$example" "$doc/examples/$(basename "$example")"
done
