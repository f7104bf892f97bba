#!/usr/bin/env bash
# What a resync costs: 2,000 files, the sync site away, 20 changes, back; prints what was examined and copied.
# KAGAMI names the program (default: the build of this checkout, else the one in PATH). Everything is removed at the end.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
kagami="${KAGAMI:-$here/../../target/release/kagami}"
[[ -x $kagami ]] || kagami="$(command -v kagami)" || { echo "build it first: cargo build --release" >&2; exit 1; }
dir="$(mktemp -d)"
lab="$dir/lab"
trap '"$kagami" lab down "$lab" --purge >/dev/null 2>&1 || true; rm -rf "$dir"' EXIT

"$kagami" lab up "$lab" --sites 2
mnt="$lab/mnt"
for d in {1..20}; do
    mkdir "$mnt/d$d"
    for f in {1..100}; do echo "file $f of $d" >"$mnt/d$d/f$f"; done
done
head -c 8M /dev/urandom >"$mnt/large"
"$kagami" lab wait "$lab"
echo "2,000 small files and one of 8 MiB are at both sites"

"$kagami" lab kill "$lab" sync
for i in {1..8}; do echo "changed" >>"$mnt/d$i/f1"; done                  # 8 edits
for i in 1 3 5; do printf X | dd of="$mnt/large" bs=1 seek=$((i << 20)) conv=notrunc status=none; done # 3 in the large file
for i in {1..4}; do echo "new" >"$mnt/d$i/new"; done                     # 4 new files
for i in {1..3}; do rm "$mnt/d$i/f2"; done                               # 3 deleted
chmod 600 "$mnt/d9/f1"                                                   # 1 mode
mv "$mnt/d20" "$mnt/renamed"                                             # 1 directory of 100 files
echo "the sync site was killed; 20 changes were made without it"

# A primary that still had the entries queued would simply send them. After a restart only the journals know.
"$kagami" lab kill "$lab" primary
"$kagami" lab start "$lab" primary
echo "the primary was killed as well, and is back"

"$kagami" lab start "$lab" sync
"$kagami" lab wait "$lab"
"$kagami" -c "$lab/primary/site.toml" status
# Content, names, modes, times; directories' own sizes depend on the disk.
list() { (cd "$1" && find . -type f -printf '%p %m %s %T@\n' -o -type d -printf '%p %m\n' | sort && find . -type f -exec cksum {} + | sort); }
cmp <(list "$lab/primary/region/tree") <(list "$lab/sync/region/tree")
echo "both trees are equal"
