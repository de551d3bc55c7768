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

# An empty program first: to load ours takes a minute, and the database is asked after it.
probe=$(mktemp -d)
trap 'rm -rf "$probe"' EXIT
printf 'module probe\n' >"$probe/go.mod"
printf 'package main\n\nfunc main() {}\n' >"$probe/main.go"
if ! "$tool" -C "$probe" . >"$probe/output" 2>&1; then
  if reason=$(grep -m 1 'fetching vulnerabilities: ' "$probe/output"); then
    echo "SKIPPED: vulnerabilities are not checked: ${reason#govulncheck: }"
    exit 0
  fi
  cat "$probe/output" >&2
  exit 1
fi
GOMEMLIMIT=${GOMEMLIMIT:-1GiB} "$tool" "$@" ./cmd/dinnerbell
