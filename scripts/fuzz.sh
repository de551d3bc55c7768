#!/usr/bin/env bash
# Runs every fuzz target, one after the other, for FUZZTIME each (default 5s):
#
#   scripts/fuzz.sh                          all
#   FUZZTIME=20m scripts/fuzz.sh Payload     those whose name has Payload in it
#
# The first failure ends the run. Go has then written the input into testdata/fuzz of the
# package, where each later `go test` runs it: commit it with the mend. The seeds and these
# files run with the ordinary tests as well.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fuzztime=${FUZZTIME:-5s}
wanted=${1:-}
# A bound for each process; a target that holds gigabytes fails instead of swapping.
export GOMEMLIMIT=${GOMEMLIMIT:-512MiB}

targets=0
while IFS=: read -r file name; do
  case $name in *"$wanted"*) ;; *) continue ;; esac
  printf '\n--- %s %s\n' "$(dirname "$file")" "$name"
  go test -vet=off -run '^$' -fuzz "^$name\$" -fuzztime "$fuzztime" -parallel 2 -timeout 0 "./$(dirname "$file")" </dev/null
  targets=$((targets + 1))
done < <(grep -roE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+' cmd cdc internal state stream | sed 's/func //' | sort)
[ "$targets" -gt 0 ] || { echo "fuzz: no target has \"$wanted\" in its name" >&2; exit 2; }
printf '\n%d targets, %s each: no failure\n' "$targets" "$fuzztime"
