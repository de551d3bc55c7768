#!/usr/bin/env bash
# Writes a deb and an rpm of a built program into a folder. Equal input gives equal bytes:
# every file has the time SOURCE_DATE_EPOCH.
#
#   scripts/package.sh STAGE ARCH VERSION OUT [CONFIG]
#
# STAGE holds dinnerbell, dinnerbell.1, completion and licenses, as an unpacked archive of a
# release does. VERSION is a version or what git describe prints. CONFIG replaces the
# packaged configuration file.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
stage=$(realpath "$1") arch=$2 version=$3 out=$(realpath "$4") config=${5:-deploy/package/dinnerbell.yaml}
mtime=$(date -u -d "@${SOURCE_DATE_EPOCH:?}" +%Y-%m-%dT%H:%M:%SZ)
nfpm=.cache/bin/nfpm-v2.44.2

# package_number prints the version as packages have it. Commits behind a tag make a newer
# version than the tag (1.2.3-4-gabc is 1.2.3+4.gabc); nfpm would make 1.2.3~4-gabc, which
# is older. A version that is only a commit becomes 0.0.0~commit.
package_number() {
  local number
  number=$(sed -E 's/^v//; s/-([0-9]+)-(g[0-9a-f]{7,})/+\1.\2/; s/(\+.*)-dirty$/\1.dirty/; s/-dirty$/+dirty/' <<<"$1")
  [[ $number == [0-9]*.[0-9]* ]] || number=0.0.0~$(tr -c '0-9A-Za-z\n' . <<<"$number")
  echo "$number"
}

[ -x $nfpm ] || { GOBIN=$PWD/.cache/bin CGO_ENABLED=0 go install github.com/goreleaser/nfpm/v2/cmd/nfpm@${nfpm##*-} && mv .cache/bin/nfpm $nfpm; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
gzip -n -9 -c "$stage/dinnerbell.1" >"$work/dinnerbell.1.gz"
sed "s|@MTIME@|$mtime|; s|@STAGE@|$stage|; s|@WORK@|$work|; s|@ARCH@|$arch|; s|@CONFIG@|$config|; s|@VERSION@|$(package_number "$version")|" deploy/package/nfpm.yaml >"$work/nfpm.yaml"
for format in deb rpm; do
  $nfpm package --config "$work/nfpm.yaml" --packager $format --target "$out/"
done
