#!/usr/bin/env bash
# Builds the packages for this machine and installs, upgrades and removes them in fresh
# Debian roots: the deb with dpkg, the rpm with Debian's rpm. The roots are copies of one
# that debootstrap makes in .cache, once. Where that is not possible, the script says
# SKIPPED and why, and ends with 0.
#
#   scripts/test-packages.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

skip() { echo "SKIPPED: packages are not installed: $*"; exit 0; }
[ "$(id -u)" = 0 ] || skip "this needs root"
command -v apt-get >/dev/null || skip "this needs Debian"
scripts/install-tools.sh packages
unshare --pid --fork --mount true 2>/dev/null || skip "no namespaces here"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
arch=$(dpkg --print-architecture) # amd64 and arm64 as Go says it
base=.cache/packages-root
root=
failed=0

fail() { echo "FAIL: $*" >&2; failed=1; }

# same WHAT GOT WANT compares two texts.
same() { [ "$2" = "$3" ] || fail "$1: got"$'\n'"$2"$'\n'"want"$'\n'"$3"; }

# inside COMMAND... runs a command in the root, with processes of its own and no input.
inside() {
  unshare --pid --fork --kill-child --mount-proc="$root/proc" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/run TERM=dumb LC_ALL=C.UTF-8 \
    chroot "$root" "$@" </dev/null
}

# make_base makes the root that the others are copies of.
make_base() {
  [ ! -e $base/etc/debian_version ] || return 0
  rm -rf $base $base.part
  mkdir -p .cache
  debootstrap --variant=minbase --include=systemd,man-db,bash-completion,zsh,fish stable $base.part \
    >"$work/debootstrap" || skip "debootstrap: $(tail -n 1 "$work/debootstrap")"
  mv $base.part $base
}

# fresh_root NAME makes a root. Its systemctl writes down what the packages' scripts ask for.
fresh_root() {
  root=$work/$1
  cp -a --reflink=auto $base "$root"
  mkdir -p "$root/run/systemd/system" "$root/packages"
  cp "$work"/out*/*.{deb,rpm} "$root/packages/"
  rm "$root/usr/bin/systemctl"
  printf '#!/bin/sh\necho "$*" >>/run/systemctl\n' >"$root/usr/bin/systemctl"
  chmod 755 "$root/usr/bin/systemctl"
}

# asked prints what systemctl was asked for since the last call, in one line.
asked() { { paste -sd ';' "$root/run/systemctl" && rm "$root/run/systemctl"; } 2>/dev/null || true; }

# files lists everything of the root that a package may leave behind: not caches, logs, the
# package managers' own files, nor the users.
files() {
  (cd "$root" && find . \( -path ./proc -o -path ./sys -o -path ./run -o -path ./var/lib/dpkg -o -path ./var/lib/rpm -o -path ./var/cache -o -path ./var/log \) -prune \
    -o ! -path './etc/*passwd*' ! -path './etc/*group*' ! -path './etc/*shadow*' ! -path './etc/sub?id*' -print | sort)
}

# build makes the packages of a release, and of two later versions from the same program:
# the second has another configuration file.
build() {
  PLATFORMS=linux/$arch VERSION=v1.2.3 OUT=$work/out1 scripts/release.sh >/dev/null
  local stage=$work/dinnerbell-v1.2.3-linux-$arch
  tar -xzf "$work/out1/$(basename "$stage").tar.gz" -C "$work"
  { cat deploy/package/dinnerbell.yaml; echo "# the next version's"; } >"$work/next.yaml"
  mkdir "$work/out2" "$work/out3"
  SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
  export SOURCE_DATE_EPOCH
  scripts/package.sh "$stage" "$arch" v1.2.3-4-g0123456789ab "$work/out2" >/dev/null
  scripts/package.sh "$stage" "$arch" v1.2.4 "$work/out3" "$work/next.yaml" >/dev/null
}

# check_installed VERSION compares the installed files, the user and the program.
check_installed() {
  local completions=/usr/share/zsh/vendor-completions
  [ "$kind" = deb ] || completions=/usr/share/zsh/site-functions
  same "$kind: owners and modes" "$(inside stat -c '%A %U %G %n' /usr/bin/dinnerbell /etc/dinnerbell /etc/dinnerbell/dinnerbell.yaml /usr/lib/systemd/system/dinnerbell.service \
    /usr/share/man/man1/dinnerbell.1.gz /usr/share/bash-completion/completions/dinnerbell $completions/_dinnerbell /usr/share/fish/vendor_completions.d/dinnerbell.fish \
    /usr/share/doc/dinnerbell/LICENSE /usr/share/doc/dinnerbell/role.sql /usr/share/doc/dinnerbell/licenses /usr/share/doc/dinnerbell/licenses/MODULES.txt 2>&1)" \
    "-rwxr-xr-x root root /usr/bin/dinnerbell
drwxr-x--- root dinnerbell /etc/dinnerbell
-rw-r----- root dinnerbell /etc/dinnerbell/dinnerbell.yaml
-rw-r--r-- root root /usr/lib/systemd/system/dinnerbell.service
-rw-r--r-- root root /usr/share/man/man1/dinnerbell.1.gz
-rw-r--r-- root root /usr/share/bash-completion/completions/dinnerbell
-rw-r--r-- root root $completions/_dinnerbell
-rw-r--r-- root root /usr/share/fish/vendor_completions.d/dinnerbell.fish
-rw-r--r-- root root /usr/share/doc/dinnerbell/LICENSE
-rw-r--r-- root root /usr/share/doc/dinnerbell/role.sql
drwxr-xr-x root root /usr/share/doc/dinnerbell/licenses
-rw-r--r-- root root /usr/share/doc/dinnerbell/licenses/MODULES.txt"
  same "$kind: files that others can write" "$(files | (cd "$root" && grep -i dinnerbell | xargs -d '\n' -I{} find {} -maxdepth 0 ! -type l -perm /022))" ""
  same "$kind: the user" "$(inside getent passwd dinnerbell | sed -E 's/:[1-9][0-9]{2}:/:SYSTEM:/g; s/:[0-9]+:/:SYSTEM:/')" "dinnerbell:x:SYSTEM:SYSTEM::/var/lib/dinnerbell:/usr/sbin/nologin"
  same "$kind: the program" "$(inside dinnerbell --version 2>&1 | cut -d ' ' -f 1,2)" "$1"
  inside setpriv --reuid=dinnerbell --regid=dinnerbell --init-groups env DINNERBELL_PASSWORD=x dinnerbell -c /etc/dinnerbell/dinnerbell.yaml config check >"$work/said" 2>&1 ||
    fail "$kind: the user cannot use the configuration: $(cat "$work/said")"
  ! inside setpriv --reuid=nobody --regid=nogroup --clear-groups cat /etc/dinnerbell/dinnerbell.yaml >/dev/null 2>&1 || fail "$kind: everybody can read the configuration"
}

# check_surroundings uses what the package brings for other programs.
check_surroundings() {
  local out
  out=$(inside systemd-analyze verify --recursive-errors=no /usr/lib/systemd/system/dinnerbell.service 2>&1) || fail "$kind: the unit: $out"
  same "$kind: what systemd says about the unit" "$(grep dinnerbell <<<"$out" || true)" ""
  # minbase leaves out manual pages, so the page is named by its file.
  inside man --warnings /usr/share/man/man1/dinnerbell.1.gz >"$work/page" 2>"$work/said" || fail "$kind: the manual page: $(cat "$work/said")"
  grep -Eq 'dinnerbell +- +' "$work/page" || fail "$kind: the manual page has no name: $(head -n 5 "$work/page")"
  same "$kind: what man says about the page" "$(cat "$work/said")" ""
  # shellcheck disable=SC2016 # expanded inside
  out=$(inside bash -c '. /usr/share/bash-completion/bash_completion; _completion_loader dinnerbell; complete -p dinnerbell' 2>&1) || fail "$kind: bash finds no completion: $out"
  out=$(inside fish -c 'complete -C "dinnerbell stat"' 2>&1)
  grep -q '^status' <<<"$out" || fail "$kind: fish completes: $out"
  [ "$kind" = deb ] || return 0 # Debian's zsh does not look into site-functions
  # shellcheck disable=SC2016
  same "$kind: the completion in zsh" "$(inside zsh -fc 'autoload -Uz compinit; compinit -D; print $_comps[dinnerbell]' 2>&1)" _dinnerbell
}

# edit changes the installed configuration as an operator does, and makes state.
edit() {
  echo '# edited' >>"$root/etc/dinnerbell/dinnerbell.yaml"
  echo DINNERBELL_PASSWORD=x >"$root/etc/dinnerbell/environment"
  inside install -d -o dinnerbell -g dinnerbell -m 700 /var/lib/dinnerbell/state
}

# check_edited fails unless the operator's configuration and the state are there.
check_edited() {
  [ "$(tail -n 1 "$root/etc/dinnerbell/dinnerbell.yaml")" = '# edited' ] || fail "$kind: $1 loses the operator's configuration"
  same "$kind: $1: the configuration" "$(inside stat -c '%A %U %G' /etc/dinnerbell/dinnerbell.yaml)" "-rw-r----- root dinnerbell"
  [ -d "$root/var/lib/dinnerbell/state" ] && [ -e "$root/etc/dinnerbell/environment" ] || fail "$kind: $1 deletes the state or the passwords"
}

test_deb() {
  kind=deb
  fresh_root deb
  local before
  before=$(files)
  dpkg_install() { inside dpkg "${@:2}" -i "/packages/dinnerbell_$1_$arch.deb" >"$work/said" 2>&1 || fail "dpkg -i of $1: $(cat "$work/said")"; }
  dpkg_install 1.2.3
  check_installed "dinnerbell v1.2.3"
  check_surroundings
  same "deb: a first installation asks systemd for" "$(asked)" "daemon-reload;try-restart dinnerbell.service"
  same "deb: files without a package" "$(files | comm -13 <(echo "$before") - | cut -c2- >"$root/run/new"; inside xargs -a /run/new -d '\n' dpkg -S 2>&1 >/dev/null)" ""
  same "deb: useradd is there before the first script" "$(dpkg-deb -f "$work/out1/dinnerbell_1.2.3_$arch.deb" Pre-Depends)" passwd
  inside dpkg --verify dinnerbell >"$work/said" 2>&1 || fail "deb: dpkg --verify: $(cat "$work/said")"
  edit
  # The configuration of this version is the same: dpkg must not ask, for nobody answers.
  dpkg_install 1.2.3+4.g0123456789ab
  check_edited "an upgrade"
  same "deb: an upgrade asks systemd for" "$(asked)" "daemon-reload;daemon-reload;try-restart dinnerbell.service"
  dpkg_install 1.2.4 --force-confold
  check_edited "an upgrade to another configuration"
  [ -e "$root/etc/dinnerbell/dinnerbell.yaml.dpkg-dist" ] || fail "deb: the new configuration is not beside the operator's"
  ! grep -i downgrad "$work/said" || fail "deb: a commit behind a tag is newer than the next tag"
  asked >/dev/null
  inside dpkg -r dinnerbell >"$work/said" 2>&1 || fail "dpkg -r: $(cat "$work/said")"
  grep -q pg_drop_replication_slot "$work/said" || fail "deb: a removal does not speak of the slot: $(cat "$work/said")"
  same "deb: a removal asks systemd for" "$(asked)" "disable --now dinnerbell.service;daemon-reload"
  check_edited "a removal"
  same "deb: programs after a removal" "$(cd "$root" && find usr -name '*dinnerbell*')" ""
  inside dpkg -P dinnerbell >"$work/said" 2>&1 || fail "dpkg -P: $(cat "$work/said")"
  same "deb: files after a purge" "$(files | comm -3 <(echo "$before") -)" ""
  dpkg_install 1.2.4
  inside dpkg -P dinnerbell >"$work/said" 2>&1 || fail "dpkg -P of what is installed: $(cat "$work/said")"
  # A second life: an untouched configuration file is replaced without a question.
  dpkg_install 1.2.3
  dpkg_install 1.2.4
  grep -q "next version" "$root/etc/dinnerbell/dinnerbell.yaml" || fail "deb: an untouched configuration file is not replaced"
  rm -rf "$root"
}

test_rpm() {
  kind=rpm
  fresh_root rpm
  local before machine
  machine=$(uname -m)
  # Debian's rpm has no database of Debian's packages: dependencies are compared below.
  rpm_run() { rpm --root "$root" --dbpath /var/lib/rpm --force-debian --nodeps "$@" >"$work/said" 2>&1 </dev/null || fail "rpm $*: $(cat "$work/said")"; }
  mkdir "$root/usr/share/zsh/site-functions" # belongs to zsh there
  before=$(files)
  rpm_run -i "$work/out1/dinnerbell-1.2.3-1.$machine.rpm"
  check_installed "dinnerbell v1.2.3"
  check_surroundings
  same "rpm: a first installation asks systemd for" "$(asked)" "daemon-reload;try-restart dinnerbell.service"
  rpm_run -V dinnerbell
  same "rpm: requires" "$(rpm -qp --requires "$work/out1/dinnerbell-1.2.3-1.$machine.rpm" | grep -v '^rpmlib' | sort -u)" $'/usr/bin/getent\n/usr/sbin/groupadd\n/usr/sbin/useradd'
  same "rpm: the building machine" "$(rpm -qp --qf '%{BUILDHOST}' "$work/out1/dinnerbell-1.2.3-1.$machine.rpm")" localhost
  edit
  rpm_run -U "$work/out2/dinnerbell-1.2.3+4.g0123456789ab-1.$machine.rpm"
  check_edited "an upgrade"
  same "rpm: an upgrade asks systemd for" "$(asked)" "daemon-reload;try-restart dinnerbell.service;daemon-reload"
  rpm_run -U "$work/out3/dinnerbell-1.2.4-1.$machine.rpm"
  check_edited "an upgrade to another configuration"
  [ -e "$root/etc/dinnerbell/dinnerbell.yaml.rpmnew" ] || fail "rpm: the new configuration is not beside the operator's"
  asked >/dev/null
  rpm_run -e dinnerbell
  grep -q pg_drop_replication_slot "$work/said" || fail "rpm: a removal does not speak of the slot: $(cat "$work/said")"
  same "rpm: a removal asks systemd for" "$(asked)" "disable --now dinnerbell.service;daemon-reload"
  same "rpm: what a removal leaves" "$(files | comm -13 <(echo "$before") - | paste -sd ' ')" \
    "./etc/dinnerbell ./etc/dinnerbell/dinnerbell.yaml.rpmnew ./etc/dinnerbell/dinnerbell.yaml.rpmsave ./etc/dinnerbell/environment ./var/lib/dinnerbell ./var/lib/dinnerbell/state"
  rm -rf "$root"
}

build
make_base
test_deb
test_rpm
[ $failed = 0 ] || exit 1
echo "deb and rpm: installed, upgraded, removed"
