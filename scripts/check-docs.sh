#!/usr/bin/env bash
# Holds the documents to the code:
#  - every requirement row of docs/coverage.md names tests that exist, or says "not yet";
#  - every relative link of every *.md leads to a file (and to a heading, where it names one).
set -euo pipefail
cd "$(dirname "$0")/.."
problems=0
problem() { printf 'docs: %s\n' "$*" >&2; problems=$((problems + 1)); }

# All function names after #[test] (with other attributes in between), also those inside proptest! blocks; and the names that
# the simulation, which has no standard harness, lists.
test_functions() {
    {
        find src tests -name '*.rs' -print0 | xargs -0 awk '
            FNR == 1 { armed = 0 }
            /^[[:space:]]*#\[test\]/ { armed = 1; next }
            armed && match($0, /fn [a-z0-9_]+/) { print substr($0, RSTART + 3, RLENGTH - 3); armed = 0 }'
        grep -ohE '"d[0-9]_[a-z0-9_]+"' tests/sim/suite.rs | tr -d '"'
    } | sort -u
}

# Rows look like: | MS-4 | what it says | `file::test_name`, `other_test` |
check_coverage() {
    local file=docs/coverage.md known id cell name names open=0 rows=0
    [[ -f $file ]] || { problem "$file is missing"; return; }
    known="$(test_functions)"
    while IFS='|' read -r _ id _ cell _; do
        id="${id//[[:space:]]/}"
        [[ $id =~ ^[A-Z]{1,2}-?[0-9]+$ ]] || continue
        rows=$((rows + 1))
        names="$(grep -oE '`[A-Za-z0-9_:/.]+`' <<<"$cell" | tr -d '`' || true)"
        if [[ -z $names ]]; then
            if [[ $cell == *"not yet"* ]]; then open=$((open + 1)); else problem "$file: $id names no test"; fi
            continue
        fi
        while read -r name; do
            grep -qx "${name##*::}" <<<"$known" || problem "$file: $id names \`$name\`, which is no test"
        done <<<"$names"
    done <"$file"
    ((rows > 0)) || problem "$file has no rows"
    printf 'docs: %d requirement rows, %d not yet covered\n' "$rows" "$open"
}

# GitHub's anchors: lower case, punctuation dropped, blanks to dashes.
anchors() {
    { grep -E '^#+ ' "$1" || true; } | sed -E 's/^#+ +//' | tr '[:upper:]' '[:lower:]' | sed -E 's/[^a-z0-9 _-]//g; s/ /-/g'
}

check_links() {
    local file link path anchor target
    while IFS= read -r file; do
        while IFS= read -r link; do
            case "$link" in http://* | https://* | mailto:* | '') continue ;; esac
            path="${link%%#*}"
            anchor=""
            [[ $link == *#* ]] && anchor="${link#*#}"
            if [[ -z $path ]]; then target="$file"; else target="$(dirname "$file")/$path"; fi
            [[ -e $target ]] || { problem "$file: link to $link, which is not there"; continue; }
            if [[ -n $anchor && $target == *.md ]]; then
                anchors "$target" | grep -qxF -- "$anchor" || problem "$file: $link names no heading"
            fi
        done < <(awk '/^ *```/ { code = !code } !code' "$file" | sed 's/`[^`]*`//g' | grep -oE '\]\([^) ]+\)' | sed -E 's/^\]\(//; s/\)$//')
    done < <(git ls-files --cached --others --exclude-standard '*.md')
}

check_coverage
check_links
((problems == 0)) || { printf 'docs: %d problems\n' "$problems" >&2; exit 1; }
