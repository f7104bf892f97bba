#!/usr/bin/env bash
# Two sites by hand, on one machine, over TCP: keys exchanged with one token, first copy, an outage, a takeover.
# KAGAMI names the program (default: the build of this checkout, else the one in PATH). Everything is removed at the end.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
kagami="${KAGAMI:-$here/../../target/release/kagami}"
[[ -x $kagami ]] || kagami="$(command -v kagami)" || { echo "build it first: cargo build --release" >&2; exit 1; }
dir="$(mktemp -d)"
tokyo() { "$kagami" -c "$dir/tokyo/site.toml" "$@"; }
osaka() { "$kagami" -c "$dir/osaka/site.toml" "$@"; }
say() { printf '\n# %s\n' "$*"; }

# A node ends on SIGTERM: it unmounts, flushes and removes its pid file.
stop() {
    local pid_file="$dir/$1/state/node.pid" pid
    pid="$(cat "$pid_file" 2>/dev/null)" || return 0
    kill "$pid" 2>/dev/null || true
    for _ in {1..100}; do kill -0 "$pid" 2>/dev/null || return 0; sleep 0.1; done
    kill -9 "$pid" 2>/dev/null || true
}
# A node that was killed leaves its mount behind.
detach() { umount -l "$1" 2>/dev/null || fusermount3 -uz "$1" 2>/dev/null || true; }
trap 'stop tokyo; stop osaka; detach "$dir/tokyo/mnt"; detach "$dir/osaka/mnt"; rm -rf "$dir"' EXIT

say "two directories stand for two machines; each has its site file"
for site in tokyo osaka; do
    mkdir -p "$dir/$site/mnt"
    cp "$here/$site.toml" "$dir/$site/site.toml"
    # Other ports, when somebody uses these: TOKYO_PORT, OSAKA_PORT.
    sed -i "s/:7301/:${TOKYO_PORT:-7301}/; s/:7302/:${OSAKA_PORT:-7302}/" "$dir/$site/site.toml"
done
tokyo region create
osaka region create
tokyo keygen
osaka keygen

say "tokyo runs and invites; the token is pasted at osaka: each has the other's key now"
tokyo node -d
token="$(tokyo peer invite)"
echo "kagami peer accept ${token:0:30}…"
osaka peer accept "$token"
osaka node -d

say "the first copy, then in step"
echo "a paper" >"$dir/tokyo/mnt/paper.txt"
tokyo pair wait docs --timeout 60
tokyo status
echo "at osaka, readable without kagami: $(cat "$dir/osaka/region/tree/paper.txt")"

say "osaka is away; work goes on at tokyo; back, only the change is copied"
stop osaka
echo "a second paper" >"$dir/tokyo/mnt/second.txt"
osaka node -d
tokyo pair wait docs --timeout 60
tokyo status

say "tokyo is killed; osaka takes over and mounts the volume"
kill -9 "$(cat "$dir/tokyo/state/node.pid")"
detach "$dir/tokyo/mnt"
# Until osaka has seen the link break it refuses (exit 4): tokyo might be alive.
for _ in {1..50}; do osaka takeover docs && break || [[ $? == 4 ]]; sleep 0.2; done
cat "$dir/osaka/mnt/paper.txt" "$dir/osaka/mnt/second.txt"
echo "a third one, made at osaka" >"$dir/osaka/mnt/third.txt"

say "tokyo comes back, as a secondary"
tokyo node -d
osaka pair wait docs --timeout 60
tokyo status
echo "at tokyo: $(cat "$dir/tokyo/region/tree/third.txt")"
