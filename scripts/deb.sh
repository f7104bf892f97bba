#!/usr/bin/env bash
# Makes the Debian package: deb.sh PROGRAM OUTPUT_DIR. Completions and man pages come from the program itself.
# The same program and commit give the same bytes. Prints the name of the package.
set -euo pipefail
(($# == 2)) || { echo "usage: deb.sh PROGRAM OUTPUT_DIR" >&2; exit 2; }
program="$(readlink -f "$1")"
mkdir -p "$2"
out="$(readlink -f "$2")"
cd "$(dirname "$0")/.."
export LC_ALL=C TZ=UTC
umask 022
SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y Cargo.toml)}"
export SOURCE_DATE_EPOCH
for tool in dpkg-deb gzip; do command -v "$tool" >/dev/null || { echo "deb: $tool is missing" >&2; exit 1; }; done

version="$("$program" --version | cut -d' ' -f2)"
arch="$(dpkg --print-architecture)"
root="$(mktemp -d)"
trap 'rm -rf "$root"' EXIT

put() { install -D -m "$1" "$2" "$root/$3"; }
squeeze() { gzip -9n; }

put 755 "$program" usr/bin/kagami
strip --strip-unneeded "$root/usr/bin/kagami" 2>/dev/null || true
mkdir -p "$root/usr/sbin"
for name in mount.kagami mount.fuse.kagami; do ln -s ../bin/kagami "$root/usr/sbin/$name"; done
# Not in PATH, where the real ones may be: who wants these puts the directory there (docs/HORCM.md).
mkdir -p "$root/usr/lib/kagami/horcm"
for name in paircreate pairsplit pairresync pairdisplay pairvolchk pairevtwait pairsyncwait horctakeover; do
    ln -s ../../../bin/kagami "$root/usr/lib/kagami/horcm/$name"
done

for unit in mount-helpers/systemd/*.service; do put 644 "$unit" "usr/lib/systemd/system/${unit##*/}"; done
for unit in mount-helpers/systemd/user/*.service; do put 644 "$unit" "usr/lib/systemd/user/${unit##*/}"; done
put 644 mount-helpers/systemd/kagami.tmpfiles usr/lib/tmpfiles.d/kagami.conf
put 644 mount-helpers/kagami.default etc/default/kagami
mkdir -p "$root/etc/kagami"

completions() { mkdir -p "$root/$(dirname "$2")"; "$program" completions "$1" >"$root/$2"; }
completions bash usr/share/bash-completion/completions/kagami
completions zsh usr/share/zsh/vendor-completions/_kagami
completions fish usr/share/fish/vendor_completions.d/kagami.fish

"$program" man --dir "$root/man" >/dev/null
for page in "$root"/man/*; do
    section="${page##*.}"
    mkdir -p "$root/usr/share/man/man$section"
    squeeze <"$page" >"$root/usr/share/man/man$section/${page##*/}.gz"
done
rm -r "$root/man"
ln -s mount.kagami.8.gz "$root/usr/share/man/man8/mount.fuse.kagami.8.gz"

doc=usr/share/doc/kagami
for file in README.md docs/*.md; do put 644 "$file" "$doc/${file##*/}"; done
for file in $(cd examples && find . -type f -path './*/*'); do put "$([[ -x examples/$file ]] && echo 755 || echo 644)" "examples/$file" "$doc/examples/$file"; done
put 644 mount-helpers/site.toml "$doc/examples/site.toml"
put 644 mount-helpers/prometheus/kagami.rules.yml "$doc/examples/kagami.rules.yml"
put 644 mount-helpers/grafana/kagami.json "$doc/examples/kagami.json"
squeeze <CHANGELOG.md >"$root/$doc/changelog.gz"
cat >"$root/$doc/copyright" <<EOF
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: kagami

Files: *
Copyright: the authors of kagami
License: MIT or Apache-2.0
 See /usr/share/common-licenses/Apache-2.0 for the latter.
EOF
chmod 644 "$root/$doc"/*.gz "$root/$doc/copyright"

# The oldest C library that has every symbol version the program asks for.
glibc="$(grep -aoE 'GLIBC_2\.[0-9]+' "$root/usr/bin/kagami" | sort -Vu | tail -1 | cut -d_ -f2)"
size="$(du -k -s --apparent-size "$root" | cut -f1)"
mkdir "$root/DEBIAN"
cat >"$root/DEBIAN/control" <<EOF
Package: kagami
Version: $version
Architecture: $arch
Maintainer: ${DEBFULLNAME:-The authors of kagami} <${DEBEMAIL:-kagami@localhost}>
Installed-Size: $size
Depends: libc6 (>= ${glibc:-2.34}), libgcc-s1, fuse3, mount
Section: admin
Priority: optional
Description: mounted mirror kept at up to three sites
 kagami mounts a volume and keeps it at up to three sites: every change goes
 synchronously to one of them and asynchronously, in order, to another. When a
 site was away its return copies only what changed.
 .
 This package has the program, the mount helper for mount(8) and fstab(5),
 units for systemd, completions for bash, zsh and fish, and manual pages.
EOF
echo /etc/default/kagami >"$root/DEBIAN/conffiles"
cat >"$root/DEBIAN/postinst" <<'EOF'
#!/bin/sh
set -e
if [ "$1" = configure ] && [ -d /run/systemd/system ]; then
    systemd-tmpfiles --create kagami.conf || true
    systemctl daemon-reload || true
fi
EOF
cat >"$root/DEBIAN/postrm" <<'EOF'
#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
fi
# Site files, keys and replicas in /etc/kagami and /var/lib/kagami are data: they stay, also on purge.
EOF
chmod 755 "$root/DEBIAN/postinst" "$root/DEBIAN/postrm"
(cd "$root" && find . -path ./DEBIAN -prune -o -type f -printf '%P\n' | sort | xargs md5sum >DEBIAN/md5sums)
chmod 644 "$root"/DEBIAN/{control,conffiles,md5sums}
chmod 755 "$root"
find "$root" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
package="$out/kagami_${version}_$arch.deb"
dpkg-deb --root-owner-group -Zxz --build "$root" "$package" >/dev/null
echo "$package"
