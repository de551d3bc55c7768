#!/usr/bin/env bash
# Runs the mirror's tests on each given major version of Postgres and prints each
# server's version text. A version that is not installed is downloaded into
# .cache, once.
#
#   scripts/test-postgres.sh 14 15 16 17 18
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../cdc"

[ $# -gt 0 ] || { echo "usage: scripts/test-postgres.sh VERSION..." >&2; exit 2; }
failed=()
for version in "$@"; do
  # Inside a package's folder, go test shows the output of passing tests.
  # shellcheck disable=SC2086 # GOTESTFLAGS may be several words
  POSTGRES_VERSION=$version go test -count=1 -vet=off -timeout 10m ${GOTESTFLAGS:-} || failed+=("$version")
done
[ ${#failed[@]} = 0 ] || { echo "failed on Postgres ${failed[*]}" >&2; exit 1; }
