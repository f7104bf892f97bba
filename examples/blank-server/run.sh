#!/usr/bin/env bash
# A blank server takes over: an application and its DBMS run at tokyo, tokyo is killed, and osaka, which was given nothing
# but a site file, mounts its replicas and starts both. Every row that was committed must be there; else it ends with 1.
# usage: run.sh [DIR]   DIR: an empty directory (default: a temporary one); what is made in it is removed at the end.
# It needs PostgreSQL and python3. As root, both run as the user postgres.
# KAGAMI: the program (default: the build of this checkout, else the one in PATH). TOKYO_PORT, OSAKA_PORT, PGPORT, AP_PORT:
# other ports. PGBIN: the directory with PostgreSQL's programs.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
kagami="${KAGAMI:-$here/../../target/release/kagami}"
[[ -x $kagami ]] || kagami="$(command -v kagami)" || { echo "build it first: cargo build --release" >&2; exit 1; }
pgbin="${PGBIN:-$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -1)}"
[[ -x $pgbin/initdb ]] || { echo "PostgreSQL is missing (PGBIN: where its programs are): apt-get install postgresql" >&2; exit 1; }
[[ -x /usr/bin/python3 ]] || { echo "/usr/bin/python3 is missing: apt-get install python3" >&2; exit 1; }
TOKYO_PORT="${TOKYO_PORT:-7311}" OSAKA_PORT="${OSAKA_PORT:-7312}" PGPORT="${PGPORT:-7313}" AP_PORT="${AP_PORT:-7314}"

user="$(id -un)" as_user=()
if [[ $user == root ]]; then # PostgreSQL does not run as root
    user=postgres as_user=(setpriv --reuid postgres --regid postgres --clear-groups)
fi
given="${1:-}"
dir="$(realpath "${given:-$(mktemp -d)}")"
[[ -z $(ls -A "$dir") ]] || { echo "$dir is not empty" >&2; exit 1; }
chmod a+rx "$dir" # for the user postgres
ap="$dir/AP/vol1" db="$dir/DB/vol1"
tokyo() { "$kagami" -c "$dir/tokyo/site.toml" "$@"; }
osaka() { "$kagami" -c "$dir/osaka/site.toml" "$@"; }
say() { printf '\n# %s\n' "$*"; }

# A node ends on SIGTERM: it stops its applications, unmounts and removes its pid file.
stop() {
    local pid
    pid="$(cat "$dir/$1/state/node.pid" 2>/dev/null)" || return 0
    kill "$pid" 2>/dev/null || true
    for _ in {1..300}; do kill -0 "$pid" 2>/dev/null || return 0; sleep 0.1; done
    kill -9 "$pid" 2>/dev/null || true
}
detach() { umount -l "$1" 2>/dev/null || fusermount3 -uz "$1" 2>/dev/null || true; }
background=()
clean_up() {
    local code=$?
    trap - EXIT
    for pid in "${background[@]}"; do kill "$pid" 2>/dev/null || true; done
    if ((code)); then
        echo "it went wrong; what the nodes and the applications said:" >&2
        tail -n 15 "$dir"/*/state/*.log "$dir"/*/state/apps/*/* >&2 2>/dev/null || true
    fi
    stop tokyo
    stop osaka
    detach "$ap"
    detach "$db"
    rm -rf "$dir"/{AP,DB,tokyo,osaka,definitions,acknowledged}
    [[ -n $given ]] || rmdir "$dir"
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# A file of this directory as this machine and this user need it.
adapted() {
    sed -e "s!\"/AP/!\"$dir/AP/!; s!\"/DB/!\"$dir/DB/!; s!/usr/lib/postgresql/15/bin!$pgbin!g; s!\"postgres\"!\"$user\"!" \
        -e "s/:7311\"/:$TOKYO_PORT\"/; s/:7312\"/:$OSAKA_PORT\"/" "$here/$1"
}
# Asks the application: METHOD [BODY]. Gives the body of the answer; not 0 without an answer of 200 or 201.
ask() {
    local body="${2:-}" status
    exec 3<>"/dev/tcp/127.0.0.1/$AP_PORT" || return 1
    printf '%s /rows HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s' "$1" "${#body}" "$body" >&3
    read -r _ status _ <&3 || return 1
    sed '1,/^\r$/d' <&3
    [[ $status == 20[01] ]]
} 2>/dev/null
# The rows, as soon as the application answers; at most a minute.
until_it_answers() {
    local rows
    for _ in {1..1200}; do
        rows="$(ask GET)" && { printf '%s\n' "$rows"; return 0; }
        sleep 0.05
    done
    echo "the application does not answer" >&2
    return 1
}

say "tokyo: the volumes ap (one drive) and db (raid1, two drives) are mounted the first time: that writes their heads"
mkdir -p "$dir/tokyo" "$dir/definitions" "$ap" "$db"
adapted tokyo.toml >"$dir/tokyo/site.toml"
tokyo region create
tokyo keygen
tokyo node -d

say "tokyo: the DBMS's data go to /DB/vol1, the application to /AP/vol1, what to start and with what into the volumes"
cp "$here/ap/server.py" "$ap/"
# Everybody on this machine may use this database ("trust"): it is an example.
mkdir "$db/data"
[[ $EUID != 0 ]] || chown postgres "$db/data"
(cd / && "${as_user[@]}" "$pgbin/initdb" -D "$db/data" -A trust -U shop --locale=C >/dev/null)
printf '%s\n' "PGDATA=$db/data" "PGHOST=127.0.0.1" "PGPORT=$PGPORT" "PGUSER=shop" "PSQL=$pgbin/psql" \
    "AP_PORT=$AP_PORT" >>"$ap/env.txt"
for f in db ap; do adapted $f.toml >"$dir/definitions/$f.toml"; done
tokyo define shop --dbms "$dir/definitions/db.toml" --dbms-at "$db/db.toml" --application "$dir/definitions/ap.toml"
tokyo boot
until_it_answers >/dev/null
for i in {1..20}; do
    ask POST "row $i, before there was a second site"
    echo "row $i, before there was a second site" >>"$dir/acknowledged"
done
echo "20 rows were written through the application"

say "osaka: a blank server, with a site file and nothing else"
mkdir "$dir/osaka"
adapted osaka.toml >"$dir/osaka/site.toml"
osaka region create
osaka keygen
osaka peer accept "$(tokyo peer invite)"
osaka boot & # starts its node, and says what it waits for, until its applications run
background+=($!)
tokyo pair wait shop --timeout 120
tokyo status

say "rows go on being written; tokyo is killed in the middle"
(
    for ((i = 21; ; i++)); do
        ask POST "row $i, at both sites" || exit 0
        echo "row $i, at both sites" >>"$dir/acknowledged"
    done
) &
writer=$!
background+=("$writer")
while (($(wc -l <"$dir/acknowledged") < 60)); do
    kill -0 "$writer" || { echo "the application no longer answers" >&2; exit 1; }
    sleep 0.05
done
begin="$(date +%s%N)"
kill -9 "$(cat "$dir/tokyo/state/node.pid")"
wait "$writer"
committed="$(wc -l <"$dir/acknowledged")"
echo "tokyo is dead; $committed rows were answered as committed"
rows="$(until_it_answers)"
ms=$((($(date +%s%N) - begin) / 1000000))
wait "${background[0]}" # boot at osaka
osaka status
osaka app list

say "the application answers at osaka"
missing="$(grep -vxFf <(echo "$rows") "$dir/acknowledged")" || [[ $? == 1 ]]
[[ -z $missing ]] || { printf 'missing at osaka:\n%s\n' "$missing" >&2; exit 1; }
ask POST "written at osaka"
[[ $(ask GET | tail -1) == "written at osaka" ]] || { echo "osaka does not take a new row" >&2; exit 1; }
printf 'osaka has all %d committed rows, and takes new ones\n' "$committed"
printf 'from kill -9 to the first answer: %d.%03d s\n' $((ms / 1000)) $((ms % 1000))
