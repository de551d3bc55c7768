#!/usr/bin/env bash
# Builds a release into build/release: static programs for each platform with their
# completions, the manual page and the licences of what they link, deb and rpm, an SBOM, and SHA256SUMS. The same commit
# gives the same bytes, whatever the folder, the user and the time.
#
#   scripts/release.sh                                      every platform
#   PLATFORMS="linux/amd64" scripts/release.sh              some
#   VERSION=v1.2.3 scripts/release.sh                       otherwise git describe
#   TWICE=1 PLATFORMS=linux/amd64 scripts/release.sh        builds in two folders and compares the bytes
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
out=${OUT:-$root/build/release}
platforms=${PLATFORMS:-linux/amd64 linux/arm64 darwin/amd64 darwin/arm64}
version=${VERSION:-$(git describe --tags --always --dirty)}
commit=$(git rev-parse --short=12 HEAD)
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH CGO_ENABLED=0

# tool NAME MODULE VERSION installs a program of the Go module proxy, once.
tool() {
  local at=$root/.cache/bin/$1-$3
  [ -x "$at" ] || { GOBIN=$root/.cache/bin go install "$2@$3" >&2 && mv "$root/.cache/bin/$1" "$at"; }
  echo "$at"
}

# archive FOLDER writes FOLDER.tar.gz without anything of this machine.
archive() {
  tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" -C "$(dirname "$1")" -cf - "$(basename "$1")" | gzip -n -9 >"$1.tar.gz"
}

build() {
  local os=$1 arch=$2 stage=$3
  mkdir -p "$stage"
  GOOS=$os GOARCH=$arch go build -trimpath -buildvcs=false -tags nodemo \
    -ldflags "-s -w -buildid= -X main.version=$version -X main.commit=$commit" -o "$stage/dinnerbell" ./cmd/dinnerbell
}

release() {
  rm -rf "$out"
  mkdir -p "$out"
  local host=$out/.host
  build "$(go env GOHOSTOS)" "$(go env GOHOSTARCH)" "$host" # writes completions and manual
  for platform in $platforms; do
    local os=${platform%/*} arch=${platform#*/}
    local stage=$out/dinnerbell-$version-$os-$arch
    build "$os" "$arch" "$stage"
    mkdir -p "$stage/completion"
    "$host/dinnerbell" completion bash >"$stage/completion/dinnerbell.bash"
    "$host/dinnerbell" completion zsh >"$stage/completion/_dinnerbell"
    "$host/dinnerbell" completion fish >"$stage/completion/dinnerbell.fish"
    "$host/dinnerbell" __manual >"$stage/dinnerbell.1"
    GOOS=$os GOARCH=$arch scripts/licenses.sh "$stage/licenses"
    [ "$os" != linux ] || scripts/package.sh "$stage" "$arch" "$version" "$out" >&2
    cp LICENSE README.md CHANGELOG.md scripts/role.sql deploy/systemd/dinnerbell.service "$stage/"
    archive "$stage"
    rm -rf "$stage"
  done
  local sbom
  sbom=$(tool cyclonedx-gomod github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod v1.10.0)
  "$sbom" bin -json -licenses -noserial -notimestamp -version "$version" -output "$out/dinnerbell-$version.cdx.json" "$host/dinnerbell" # of what is linked
  rm -rf "$host"
  (cd "$out" && find . -maxdepth 1 -type f ! -name SHA256SUMS -printf '%f\n' | sort | xargs sha256sum >SHA256SUMS)
}

if [ "${TWICE:-}" ]; then
  # The second time in another folder, from a clone, with an empty build cache for our
  # own packages' paths: -trimpath must hide all of it.
  other=$(mktemp -d)
  trap 'rm -rf "$other"' EXIT
  git clone -q . "$other/somewhere-else"
  ln -s "$root/.cache" "$other/somewhere-else/.cache"
  (cd "$other/somewhere-else" && git checkout -q "$commit" && TWICE='' OUT=$other/release VERSION=$version PLATFORMS=$platforms scripts/release.sh >/dev/null)
  release
  diff "$out/SHA256SUMS" "$other/release/SHA256SUMS"
  echo "two builds are identical" >&2
else
  release
fi
cat "$out/SHA256SUMS"
