#!/usr/bin/env bash
# Checks for the tools that the build and the tests need beside Go modules. As
# root on Debian it installs missing ones; elsewhere it names their packages.
#
#   scripts/install-tools.sh go kcat java postgres pgbouncer promtool chromium axe packages
#
# axe is the npm package axe-core, which judges the accessibility of the live page in
# tests: it is downloaded into .cache, checked, and no part of the repository (MPL-2.0).
set -euo pipefail

axe_version=4.14.1
axe_sha256=e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745

missing=()

# need NAME COMMAND PACKAGE... adds the packages to `missing` if the command fails.
need() {
  local name=$1 found=$2
  shift 2
  if ! eval "$found" >/dev/null 2>&1; then
    echo "install-tools: $name is missing (Debian: $*)" >&2
    missing+=("$@")
  fi
}

# java_17 checks the version of Java: Kafka 4 refuses older ones.
java_17() {
  local major
  major=$(java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -n 1)
  [ "${major:-0}" -ge 17 ]
}

# compiler finds a C compiler, which the race detector and zstd need.
compiler() { command -v "$(go env CC 2>/dev/null || echo cc)"; }

postgres() { [ -n "${POSTGRES_BIN:-}" ] || command -v postgres || ls /usr/lib/postgresql/*/bin/postgres; }

# pgbouncer also looks in sbin, which is not in every PATH.
pgbouncer() { type -P pgbouncer || ls /usr/sbin/pgbouncer; }

# fetch_axe downloads axe-core, unless this version is there.
fetch_axe() {
  local dir=.cache/axe
  [ "$(cat $dir/version 2>/dev/null)" != $axe_version ] || return 0
  mkdir -p $dir
  npm pack --loglevel error --pack-destination $dir "axe-core@$axe_version" </dev/null >/dev/null
  echo "$axe_sha256  $dir/axe-core-$axe_version.tgz" | sha256sum --check --quiet
  tar -xzf "$dir/axe-core-$axe_version.tgz" -C $dir --strip-components 1 package/axe.min.js package/LICENSE
  rm "$dir/axe-core-$axe_version.tgz"
  echo $axe_version >$dir/version
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
axe=
[ $# -gt 0 ] || { echo "usage: scripts/install-tools.sh go|kcat|java|python|postgres|psql|jq|pgbouncer|promtool|chromium|axe|packages ..." >&2; exit 2; }
for tool in "$@"; do
  case $tool in
    go)
      need "Go" "command -v go" golang-go
      need "a C compiler" compiler gcc libc6-dev
      ;;
    kcat) need "kcat, the Kafka command line client," "command -v kcat" kcat ;;
    java)
      need "Java 17 with its compiler" "java_17 && command -v javac" openjdk-17-jdk-headless
      need "Maven" "command -v mvn" maven
      ;;
    python) need "Python with venv" "python3 -c 'import ensurepip, venv'" python3 python3-venv ;;
    postgres) need "Postgres" postgres postgresql ;;
    psql) need "psql" "command -v psql" postgresql-client ;;
    jq) need "jq" "command -v jq" jq ;;
    pgbouncer) need "pgbouncer" pgbouncer pgbouncer ;;
    promtool) need "promtool" "command -v promtool" prometheus ;;
    # Without a font the page has no text to look at.
    chromium) need "Chromium" "command -v chromium && ls /usr/share/fonts/truetype/*/*.ttf" chromium fonts-dejavu-core ;;
    axe)
      need "npm" "command -v npm" npm
      axe=yes
      ;;
    packages)
      need "debootstrap" "command -v debootstrap" debootstrap
      need "rpm" "command -v rpm" rpm
      ;;
    *) echo "install-tools: unknown tool $tool" >&2; exit 2 ;;
  esac
done

# The last step of every way out that has all packages.
finish() { [ -z "$axe" ] || fetch_axe; }

if [ ${#missing[@]} = 0 ]; then
  finish
  exit
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "install-tools: not root on a Debian system; please install: ${missing[*]}" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq </dev/null >&2
# A server package would start its server; 101 is "action forbidden by policy".
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
  printf '#!/bin/sh\nexit 101\n' >$policy
  chmod +x $policy
  trap 'rm -f $policy' EXIT
fi
apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null >&2
finish
