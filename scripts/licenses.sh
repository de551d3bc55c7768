#!/usr/bin/env bash
# Writes the licence texts and notices of every module that is linked into the released
# program (tag nodemo, no C), of Go's library and of the page's charts, below a folder.
# Fails if a licence is none of MIT, BSD, Apache-2.0, ISC and MPL-2.0.
#
#   scripts/licenses.sh                                   into build/licenses
#   GOOS=darwin GOARCH=arm64 scripts/licenses.sh FOLDER   for another platform
#   scripts/licenses.sh --name FILE                       names the licence in a file
set -euo pipefail

# license_of FILE prints the licence's name, or fails. Words of a foreign licence beside a
# known one are not known either: an addition may take away what the known one grants.
license_of() {
  local text
  text=$(tr -s '[:space:]#*/' ' ' <"$1" | tr '[:upper:]' '[:lower:]')
  case $text in
    *"business source license"* | *"commons clause"* | *"server side public license"* | *"elastic license"* | *"polyform"* | *"noncommercial"*) return 1 ;;
    *"mozilla public license"*"2.0"*) echo MPL-2.0 ;; # its text names the GPL
    *"general public license"*) return 1 ;;
    *"apache license"*"version 2.0"*) echo Apache-2.0 ;;
    *"permission is hereby granted, free of charge, to any person obtaining a copy"*) echo MIT ;;
    *"redistribution and use in source and binary forms, with or without modification, are permitted"*) echo BSD ;;
    *"permission to use, copy, modify, and"*"distribute this software for any purpose with or without fee is hereby granted"*) echo ISC ;;
    *) return 1 ;;
  esac
}

if [ "${1:-}" = --name ]; then
  license_of "$2" || { echo "licenses: $2 is none of MIT, BSD, Apache-2.0, ISC, MPL-2.0" >&2; exit 1; }
  exit
fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:-build/licenses}
rm -rf "$out"
mkdir -p "$out"
failed=0

# add NAME FOLDER copies the licences and notices of a folder to $out/NAME. A module's root
# must have a licence; the folders below it may have more of them.
add() {
  local name=$1 folder=$2 root=${3:-} file kind found=''
  for file in "$folder"/*; do
    [ -f "$file" ] || continue
    case $(basename "$file" | tr '[:upper:]' '[:lower:]') in
      *.go) continue ;;
      license* | licence* | copying* | unlicense*)
        if ! kind=$(license_of "$file"); then
          echo "licenses: $file is none of MIT, BSD, Apache-2.0, ISC, MPL-2.0; see whether it may be distributed" >&2
          failed=1
          continue
        fi
        found+="${found:+, }$kind"
        ;;
      notice*) ;;
      *) continue ;;
    esac
    mkdir -p "$out/$name"
    install -m 644 "$file" "$out/$name/"
  done
  if [ -n "$root" ]; then
    [ -n "$found" ] || { echo "licenses: $name has no licence in $folder" >&2; failed=1; }
    printf '%s\t%s\n' "$name" "$found" >>"$out/MODULES.txt"
  fi
}

list=$(CGO_ENABLED=0 go list -deps -tags nodemo \
  -f '{{with .Module}}{{if not .Main}}{{.Path}}@{{.Version}} {{.Dir}} {{$.Dir}}{{end}}{{end}}' ./cmd/dinnerbell)
# Debian's Go has no LICENSE in its folder; that of golang.org/x/sys is the same.
goroot=$(go env GOROOT)
[ -f "$goroot/LICENSE" ] || goroot=$(go list -m -f '{{.Dir}}' golang.org/x/sys)
add go "$goroot" root
while read -r module root; do
  add "$module" "$root" root
done < <(cut -d' ' -f1,2 <<<"$list" | sort -u)
# Folders of linked packages, and those above them, that have a licence of their own.
while read -r module root folder; do
  while [ "$folder" != "$root" ]; do
    echo "$module${folder#"$root"} $folder"
    folder=$(dirname "$folder")
  done
done <<<"$list" | sort -u >"$out/.folders"
while read -r name folder; do
  add "$name" "$folder"
done <"$out/.folders"
rm "$out/.folders"
for file in cmd/dinnerbell/internal/livepage/assets/*-LICENSE.txt; do
  kind=$(license_of "$file") || { echo "licenses: $file is not known" >&2; failed=1; continue; }
  install -m 644 "$file" "$out/"
  printf '%s\t%s\n' "$(basename "$file" -LICENSE.txt)" "$kind" >>"$out/MODULES.txt"
done
[ $failed = 0 ] || exit 1
echo "licenses: $(wc -l <"$out/MODULES.txt") of them in $out" >&2
