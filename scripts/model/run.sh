#!/usr/bin/env bash
# Checks the model of the protocol, and that the check fails without each rule.
# Exits with 1 if a result is not the expected one. Takes under a minute on two
# idle cores and less than 2 GB.
#
#   scripts/model/run.sh             all variants, as a table
#   scripts/model/run.sh -t NAME     one variant; prints the shortest trace to its violation
#   STEPS=4 scripts/model/run.sh     with four steps instead of three (some minutes)
# Variants whose names begin with "late" run late.pml, the others lane.pml.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# NAME | defines | expected: "holds" or the violated invariant | meaning
variants() {
  cat <<'LIST'
protocol          |                                            | holds                     | the protocol; a daemon that goes on alone can ship everything
protocol-live     | -DLIVE                                     | holds                     | the same as a liveness property: the daemon does ship everything
no-cas            | -DNO_CAS -DHALT_ALLOWED                    | an outbox row is written  | no compare-and-swap in DECIDE
no-seq            | -DNO_SEQ -DGUESS_UNDECIDED                 | holds                     | redundant: the seq in the CAS; even if an unanswered COMMIT is tried again, the outbox key refuses the step
no-outbox-key     | -DNO_OUTBOX_KEY -DGUESS_UNDECIDED          | holds                     | redundant: the outbox key; the seq in the CAS refuses the step
no-seq-no-key     | -DNO_SEQ -DNO_OUTBOX_KEY -DGUESS_UNDECIDED | an outbox row is written  | without both, nothing refuses the step
no-epoch-safety   | -DNO_EPOCH -DHALT_ALLOWED                  | holds                     | redundant for the data: the epoch in the CAS, beside the seq
no-epoch          | -DNO_EPOCH                                 | no halt                   | without it, a takeover mistakes a live predecessor for a rollback
no-fence          | -DNO_FENCING                               | output = payloads 1..K    | each daemon has a transactional id of its own
read-before-fence | -DNO_FENCE_BEFORE_READ                     | output = payloads 1..K    | TAKEOVER reads K, then fences
epoch-last        | -DEPOCH_LAST                               | no halt                   | TAKEOVER fences, reads K, then raises the epoch
halt-at-once      | -DHALT_AT_ONCE                             | no halt                   | TAKEOVER halts without reading the epoch again
progress-outside  | -DPROGRESS_OUTSIDE_TXN                     | output = payloads 1..K    | progress is written after the transaction
guess-shipped     | -DGUESS_SHIPPED                            | output = payloads 1..K    | EndTxn unanswered: go on as if committed, no re-read
guess-unshipped   | -DGUESS_UNSHIPPED                          | output = payloads 1..K    | EndTxn unanswered: go on as if aborted, no re-read
ship-undecided    | -DSHIP_UNDECIDED                           | a record is what Postgres | EndTxn is sent before the answer to COMMIT
guess-decided     | -DGUESS_DECIDED                            | a record is what Postgres | COMMIT unanswered: go on as if committed, no re-read
no-unique-index   | -DNO_UNIQUE_INDEX                          | payloads are disjoint     | no unique index under a lost delivered cache
ship-unreturned   | -DSHIP_UNRETURNED                          | payloads are disjoint     | the payload lists what ON CONFLICT left out
no-idle-timeout   | -DNO_IDLE_TIMEOUT                          | stuck                     | Postgres never ends a silent owner's transaction
late              | -DF=2                                      | holds                     | late subscribers: two lanes, two mirrors, two failures
late-no-reach     | -DF=1 -DNO_REACH                           | a subscriber of a live    | a mirror joins before it has reached the lane's position
late-no-rejoin    | -DF=1 -DNO_REJOIN                          | a subscriber of a live    | no join again where the log does not reach back
late-no-history   | -DF=1 -DNO_HISTORY                         | a subscriber of a live    | a source that was set back keeps the history of its log
late-register     | -DF=1 -DREGISTER_LATE                      | a subscriber of a live    | a restaurant enters the set with the step's commit, not before its view
late-no-wait      | -DF=1 -DNO_WAIT                            | a subscriber of a live    | campaigns are looked up while a step with an earlier view is under way
late-move-early   | -DF=1 -DMOVE_EARLY                         | a subscriber of a live    | the position moves before the step that notifies
late-no-version   | -DF=1 -DNO_VERSION                         | a late pick is of the     | a late pick does not compare the row's version
LIST
}

need_spin() {
  local missing=()
  command -v spin >/dev/null || missing+=(spin)
  command -v gcc >/dev/null || missing+=(gcc libc6-dev)
  [ ${#missing[@]} -gt 0 ] || return 0
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "model: please install: ${missing[*]} (https://spinroot.com)" >&2
    exit 1
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq </dev/null >&2
  apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null >&2
}

# check DIR MODEL DEFINES EXPECTED verifies one variant of MODEL in DIR and writes its outcome to
# DIR/outcome as "states|result". It searches for an expected violation breadth
# first, which finds the shortest trace.
check() {
  local dir=$1 model=$2 defines=$3 expected=$4 search=(-O2 -DSAFETY) flags=() result=holds states
  mkdir -p "$dir"
  cd "$dir"
  case $defines in
    *LIVE*) search=(-O2) flags=(-a) ;;
    *) [ "$expected" = holds ] || search=(-DSAFETY -DBFS) ;;
  esac
  # shellcheck disable=SC2086  # defines are words
  spin -DN="${STEPS:-3}" $defines -a "$here/$model" >spin.log
  gcc -w -DMEMLIM=1900 -DNOBOUNDCHECK "${search[@]}" -o pan pan.c
  ./pan -m100000 -w22 "${flags[@]}" >pan.log 2>&1 || true
  states=$(awk '/ states, stored/ { print $1; exit }' pan.log)
  if grep -q 'errors: 0' pan.log && ! grep -qi 'max search depth too small\|reached.*MEMLIM\|out of memory' pan.log; then
    result=holds
  elif grep -q '^pan:1: invalid end state' pan.log; then
    result=stuck
  elif grep -q '^pan:1: acceptance cycle' pan.log; then
    result='never ends'
  elif grep -q '^pan:1: assertion violated' pan.log; then
    # shellcheck disable=SC2086
    spin -DN="${STEPS:-3}" $defines -T -t -k "$model.trail" "$here/$model" >trail.log 2>&1 || true
    result=$(sed -n 's/^ *VIOLATED: //p' trail.log | head -n 1)
  else
    result='not finished'
  fi
  echo "$states|${result:-unknown}" >outcome
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
need_spin
only=
[ "${1:-}" != -t ] || only=${2:?"usage: $0 [-t NAME]"}
[ -z "$only" ] || variants | grep -q "^$only " || { echo "model: no variant is called $only" >&2; exit 2; }

# trim TEXT prints the text without the spaces around it.
trim() { local s=$1; s=${s#"${s%%[![:space:]]*}"}; printf '%s' "${s%"${s##*[![:space:]]}"}"; }

# Two at a time: each one is a single thread.
began=$SECONDS
while IFS='|' read -r name defines expected _; do
  name=$(trim "$name")
  [ -z "$only" ] || [ "$only" = "$name" ] || continue
  while [ "$(jobs -rp | wc -l)" -ge 2 ]; do wait -n || true; done
  model=lane.pml
  [[ $name != late* ]] || model=late.pml
  (check "$work/$name" "$model" "$(trim "$defines")" "$(trim "$expected")") &
done < <(variants)
wait

wrong=0
printf '%-18s %9s  %-26s %-40s %-5s  %s\n' variant states expected result "" "meaning"
while IFS='|' read -r name defines expected why; do
  name=$(trim "$name") expected=$(trim "$expected") states='' result='not run'
  [ -z "$only" ] || [ "$only" = "$name" ] || continue
  [ ! -e "$work/$name/outcome" ] || IFS='|' read -r states result <"$work/$name/outcome"
  verdict=ok
  [[ $result == "$expected"* ]] || { verdict=WRONG; wrong=1; }
  printf '%-18s %9s  %-26s %-40s %-5s  %s\n' "$name" "$states" "$expected" "$result" "$verdict" "$(trim "$why")"
  [ -z "$only" ] || [ ! -e "$work/$name/trail.log" ] || grep -E '^([01]|postgres|kafka|daemon|calm|VIOLATED): ' "$work/$name/trail.log"
  [ $verdict = ok ] || head -n 5 "$work/$name/pan.log" >&2 || true
done < <(variants)
echo "$((SECONDS - began))s in all"
exit $wrong
