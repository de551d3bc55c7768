#!/usr/bin/env bash
# Runs govulncheck over everything that is linked: 0 nothing found, 3 vulnerabilities that
# the code reaches. Where the vulnerability database cannot be reached, the script says
# SKIPPED and why, and ends with 0: a build without the network is no finding.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=v1.9.0
tool=.cache/bin/govulncheck-$version
if [ ! -x "$tool" ]; then
  GOBIN=$PWD/.cache/bin go install "golang.org/x/vuln/cmd/govulncheck@$version"
  mv .cache/bin/govulncheck "$tool"
fi

errors=$(mktemp)
trap 'rm -f "$errors"' EXIT
code=0
GOMEMLIMIT=${GOMEMLIMIT:-1GiB} "$tool" "$@" ./cmd/dinnerbell 2>"$errors" || code=$?
if [ $code = 1 ] && reason=$(grep -m 1 'fetching vulnerabilities: ' "$errors"); then
  echo "SKIPPED: vulnerabilities are not checked: ${reason#govulncheck: }"
  exit 0
fi
cat "$errors" >&2
exit $code
