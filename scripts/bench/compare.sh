#!/usr/bin/env bash
# Measures this tree's daemon and another revision's in turn, with the same
# benchmark program, and compares them with benchstat.
#
#   scripts/bench/compare.sh REVISION [FLAG OF bin/bench...]
#
# ROUNDS=n sets how often each is measured (default 6, benchstat's advice for
# a confidence interval). Without flags, the small sizes of bench-quick on kfake.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

benchstat=golang.org/x/perf/cmd/benchstat@v0.0.0-20260908200009-22c9c6c9d4da

base=${1:-}
[ -n "$base" ] || { echo "usage: make bench-compare BASE=revision [BENCHFLAGS=...]" >&2; exit 2; }
shift
flags=("$@")
[ ${#flags[@]} -gt 0 ] || flags=(-quick -brokers kfake -only fanout,small,latency)
rev=$(git rev-parse --verify --short=12 "$base^{commit}")

out=$PWD/build/compare
tree=$(mktemp -d "${TMPDIR:-/tmp}/dinnerbell-base.XXXXXX")
trap 'git worktree remove --force "$tree" >/dev/null 2>&1 || rm -rf "$tree"' EXIT
trap 'exit 130' INT TERM
mkdir -p "$out"
rm -f "$out"/*.txt
git worktree add --quiet --detach "$tree" "$rev"
(cd "$tree" && go build -trimpath -o "$out/dinnerbell-base" ./cmd/dinnerbell)
cp bin/dinnerbell "$out/dinnerbell-this"

# The two take turns, and so does the beginner of a round.
for round in $(seq 1 "${ROUNDS:-6}"); do
  order="base this"
  [ $((round % 2)) = 1 ] || order="this base"
  for who in $order; do
    echo "=== round $round: $who" >&2
    bin/bench "${flags[@]}" -runs 1 -binary "$out/dinnerbell-$who" -json "$out/last.json" -gobench "$out/last.txt" >/dev/null
    cat "$out/last.txt" >>"$out/$who.txt"
  done
done
go run "$benchstat" "$rev=$out/base.txt" "this=$out/this.txt"
