#!/usr/bin/env bash
# The long forms of the tests that draw what they do: crashes, power cuts, every case of the procedures, sequences against
# the model, real faults, decoders, hostile peers, the simulation, schedules, fuzzing. Ends with a table of what each of them did.
#
#   scripts/soak.sh [PART...]      all parts, or these; their logs are in target/soak
#
# SOAK_FUZZ_SECONDS: time of each fuzz target (600); as many at one time as there are processors. Needs a C++ compiler.
set -uo pipefail
cd "$(dirname "$0")/.."
logs="${CARGO_TARGET_DIR:-target}/soak"
mkdir -p "$logs"
KAGAMI_SKIPPED="$(mktemp)"
export KAGAMI_SKIPPED
trap 'rm -f "$KAGAMI_SKIPPED"' EXIT
parts=(crash power arbiter model realfaults matrix decoders hostile sim schedules fuzz)
(($# == 0)) || parts=("$@")
table=()
failed=0

# What a log says of how much was done: lines with a sum, and how many single rounds there were.
figures() {
    grep -aE '^[a-z0-9_:]+: [0-9]+ (sequences|rounds|cases|inputs|mutated|seeds|schedules)|^ *[0-9]+ (cases|seeds|sequences|persist points)' "$1" | head -16
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

# Instrumented as libFuzzer wants it; without a sanitizer the stable compiler can do that.
FUZZ_FLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions"
# fuzz_one PROGRAM: from the kept corpus and what earlier runs added to it; what it fails with is beside its log.
fuzz_one() {
    local name begun=$SECONDS result=ok
    name="$(basename "$1")"
    mkdir -p "$logs/corpus/$name"
    "$1" -max_total_time="$SOAK_FUZZ_SECONDS" -max_len=65536 -print_final_stats=1 -artifact_prefix="$logs/fuzz-$name-" \
        "$logs/corpus/$name" "fuzz/corpus/$name" </dev/null >"$logs/fuzz-$name.log" 2>&1 || result=FAILED
    printf 'fuzz        %-6s %5d s  %s: %s inputs, %s edges\n' "$result" $((SECONDS - begun)) "$name" \
        "$(awk '/stat::number_of_executed_units/ { print $2 }' "$logs/fuzz-$name.log")" \
        "$(awk '{ for (i = 1; i < NF; i++) if ($i == "cov:") n = $(i + 1) } END { print n }' "$logs/fuzz-$name.log")"
}

fuzz() {
    local host built begun=$SECONDS
    printf '\n== fuzz\n'
    host="$(rustc -vV | sed -n 's/^host: //p')"
    built="$(realpath "${CARGO_TARGET_DIR:-target}")/fuzz"
    if ! (cd fuzz && RUSTFLAGS="$FUZZ_FLAGS" cargo build --quiet --locked --release --target "$host" --target-dir "$built") >"$logs/fuzz-build.log" 2>&1; then
        table+=("fuzz        not built: see $logs/fuzz-build.log")
        failed=1
        return
    fi
    export -f fuzz_one
    export logs SOAK_FUZZ_SECONDS="${SOAK_FUZZ_SECONDS:-600}"
    local said
    said="$(for t in fuzz/fuzz_targets/*.rs; do
        printf '%s\0' "$built/$host/release/$(basename "$t" .rs)"
    done | xargs -0 -n 1 -P "$(nproc)" bash -c 'fuzz_one "$0"')"
    while IFS= read -r line; do table+=("$line"); done <<<"$said"
    [[ $said != *FAILED* ]] || failed=1
    printf 'fuzzing ended after %d s\n' $((SECONDS - begun))
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
        sim) part sim KAGAMI_SEEDS=100000 KAGAMI_FULL=1 -- --test sim ;;
        schedules) part schedules KAGAMI_SCHEDULES=50 -- --lib --features schedules schedules ;;
        fuzz) fuzz ;;
        *) printf 'no such part: %s\n' "$name" >&2; exit 2 ;;
    esac
done
printf '\n%s processors, %s\n' "$(nproc)" "$(uname -sr)"
printf '%s\n' "${table[@]}"
sort -u "$KAGAMI_SKIPPED"
if ((failed)); then echo "SOAK FAILED"; else echo "nothing failed"; fi
exit "$failed"
