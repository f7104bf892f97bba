#!/usr/bin/env bash
# The long forms of the tests that draw what they do: crashes, power cuts, every case of the procedures, sequences against
# the model, real faults, decoders, hostile peers, the simulation, fuzzing. Ends with a table of what each of them did.
#
#   scripts/soak.sh [PART...]      all parts, or these; their logs are in target/soak
#
# SOAK_FUZZ_SECONDS: time of each fuzz target (600). A part that is not there (the simulation, cargo-fuzz) is named as such.
set -uo pipefail
cd "$(dirname "$0")/.."
logs="${CARGO_TARGET_DIR:-target}/soak"
mkdir -p "$logs"
KAGAMI_SKIPPED="$(mktemp)"
export KAGAMI_SKIPPED
trap 'rm -f "$KAGAMI_SKIPPED"' EXIT
parts=(crash power arbiter model realfaults matrix decoders hostile sim fuzz)
(($# == 0)) || parts=("$@")
table=()
failed=0

# What a log says of how much was done: lines with a sum, and how many single rounds there were.
figures() {
    grep -aE '^[a-z0-9_]+: [0-9]+ (sequences|rounds|cases|inputs|mutated|seeds)|^ *[0-9]+ (cases|seeds|sequences|persist points)' "$1" | head -16
    local rounds
    rounds="$(grep -acE '^round [0-9]+: ' "$1")"
    ((rounds == 0)) || printf '%d rounds in all\n' "$rounds"
}

# part NAME [VARIABLE=VALUE...] -- TEST...
part() {
    local name="$1" begun=$SECONDS result=ok
    shift
    printf '\n== %s\n' "$name"
    local variables=()
    while [[ $1 != -- ]]; do variables+=("$1"); shift; done
    shift
    env "${variables[@]}" cargo test "$@" -- --nocapture </dev/null >"$logs/$name.log" 2>&1 || { result=FAILED; failed=1; }
    grep -aE '^test |panicked|KAGAMI_TEST_SEED=' "$logs/$name.log"
    table+=("$(printf '%-11s %-6s %5d s' "$name" "$result" $((SECONDS - begun)))")
    while IFS= read -r line; do table+=("              $line"); done < <(figures "$logs/$name.log")
}

fuzz() {
    local seconds="${SOAK_FUZZ_SECONDS:-600}" target
    if ! command -v cargo-fuzz >/dev/null; then
        table+=("fuzz        not run: cargo-fuzz is not installed")
        return
    fi
    for target in fuzz/fuzz_targets/*.rs; do
        target="$(basename "$target" .rs)"
        printf '\n== fuzz %s\n' "$target"
        local result=ok
        (cd fuzz && cargo +nightly fuzz run "$target" -- -max_total_time="$seconds") </dev/null >"$logs/fuzz-$target.log" 2>&1 ||
            { result=FAILED; failed=1; }
        table+=("$(printf '%-11s %-6s %5d s  %s' "fuzz" "$result" "$seconds" "$target")")
    done
}

for name in "${parts[@]}"; do
    case "$name" in
        crash) part crash KAGAMI_ROUNDS=50 -- --test all crash:: ;;
        power) part power KAGAMI_ROUNDS=30 -- --test all power:: ;;
        arbiter) part arbiter KAGAMI_ROUNDS=20 -- --test all arbiter:: ;;
        model) part model KAGAMI_SEQUENCES=10000 KAGAMI_ROUNDS=100 -- --test all model:: ;;
        realfaults) part realfaults KAGAMI_ROUNDS=170 -- --test all realfaults:: ;;
        matrix) part matrix KAGAMI_FULL=1 -- --test all matrix:: ;;
        decoders) part decoders KAGAMI_MUTATIONS=100000 -- --test decoders ;;
        hostile) part hostile -- --test all hostile:: ;;
        sim)
            if [[ -e tests/sim.rs ]]; then
                part sim KAGAMI_SEEDS=100000 -- --test sim
            else
                table+=("sim         not there")
            fi
            ;;
        fuzz) fuzz ;;
        *) printf 'no such part: %s\n' "$name" >&2; exit 2 ;;
    esac
done
printf '\n%s processors, %s\n' "$(nproc)" "$(uname -sr)"
printf '%s\n' "${table[@]}"
sort -u "$KAGAMI_SKIPPED"
if ((failed)); then echo "SOAK FAILED"; else echo "nothing failed"; fi
exit "$failed"
