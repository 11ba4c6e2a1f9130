#!/bin/bash
# Feeds every reader with what libFuzzer makes of its corpus, and prints executions and finds last.
#   fuzz.sh [SECONDS [TARGET …]]      60 seconds for each of all targets, unless told; finds stay in fuzz/finds/TARGET
# A stable toolchain and a C++ compiler are enough. What it finds becomes a file `found-…` in fuzz/corpus/TARGET, which every
# test run replays.
set -e
cd "$(dirname "$0")"/../../fuzz
SECONDS_EACH=${1:-60}; shift || true
TRIPLE=$(rustc -vV | sed -n 's/^host: //p')
# What cargo-fuzz passes, less the sanitizers: the readers have no unsafe code of their own.
CARGO_TARGET_DIR=target RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares" \
  cargo build --release --quiet --target "$TRIPLE"
TARGETS=${*:-$(ls corpus)}
W=$(mktemp -d); trap 'rm -rf "$W"' EXIT
for target in $TARGETS; do
  mkdir -p "$W/$target" "finds/$target"
  BITMILL_FUZZ=$target "target/$TRIPLE/release/fuzz" "$W/$target" "corpus/$target" -max_total_time="$SECONDS_EACH" -max_len=65536 -timeout=20 \
    -rss_limit_mb=2048 -print_final_stats=1 -artifact_prefix="finds/$target/" >"$W/$target.log" 2>&1 || tail -n 40 "$W/$target.log"
done
for target in $TARGETS; do
  executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$W/$target.log")
  covered=$(grep -o 'cov: [0-9]*' "$W/$target.log" | tail -1)
  echo "$target: ${executions:-?} executions, $covered edges, $(find "finds/$target" -type f | wc -l) finds"
done
