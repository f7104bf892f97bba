#!/usr/bin/env bash
# Runs every test and ends with plain lines that say what happened. Extra arguments go to cargo test.
set -uo pipefail
cd "$(dirname "$0")/.."
log="$(mktemp)"
KAGAMI_SKIPPED="$(mktemp)" # tests add a line for what they leave out, and why
export KAGAMI_SKIPPED
trap 'rm -f "$log" "$KAGAMI_SKIPPED"' EXIT

begin=$SECONDS
cargo test --no-fail-fast "$@" </dev/null 2>&1 | tee "$log"
status=${PIPESTATUS[0]}

# "test result: ok. 3 passed; 0 failed; 1 ignored; …", one line for each test program.
sum() { awk -v word="$1" '/^test result:/ { for (i = 2; i <= NF; i++) if ($i ~ "^" word) n += $(i - 1) } END { print n + 0 }' "$log"; }
echo
grep -hE '^test .* \.\.\. FAILED' "$log" | sed 's/ \.\.\. FAILED//; s/^test /failed: /'
sort -u "$KAGAMI_SKIPPED"
echo "tests: $(sum passed) passed, $(sum failed) failed, $(sum ignored) ignored, $((SECONDS - begin)) s"
if ((status == 0)); then echo "all tests passed"; else echo "TESTS FAILED"; fi
exit "$status"
