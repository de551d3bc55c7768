#!/usr/bin/env bash
# Runs the mirror's tests on Postgres of each major version named, and prints
# what each server says that it is. A version that is not installed is
# downloaded into .cache, once.
#
#   scripts/test-postgres.sh 14 15 16 17 18
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../cdc"

[ $# -gt 0 ] || { echo "usage: scripts/test-postgres.sh VERSION..." >&2; exit 2; }
failed=()
for version in "$@"; do
  # In the package's own folder go test shows what the tests print.
  # shellcheck disable=SC2086 # GOTESTFLAGS are several
  POSTGRES_VERSION=$version go test -count=1 -vet=off -timeout 10m ${GOTESTFLAGS:-} || failed+=("$version")
done
[ ${#failed[@]} = 0 ] || { echo "failed on Postgres ${failed[*]}" >&2; exit 1; }
