#!/usr/bin/env bash
# Runs a command with KAFKA_BROKERS. If the variable is not set, the script starts
# a real Kafka on an empty folder for the command and stops it afterwards.
#
#   scripts/with-kafka.sh go test ./...
set -euo pipefail

[ $# -gt 0 ] || { echo "usage: scripts/with-kafka.sh COMMAND [ARGUMENT...]" >&2; exit 2; }
if [ -z "${KAFKA_BROKERS:-}" ]; then
  here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
  # A new folder and new ports leave a server of the developer's alone.
  KAFKA_DIR=$(mktemp -d "${TMPDIR:-/tmp}/dinnerbell-kafka.XXXXXX")
  export KAFKA_DIR
  trap '"$here/kafka.sh" clean' EXIT
  trap 'exit 130' INT TERM
  brokers=$("$here/kafka.sh" start)
  export "${brokers?}"
fi
"$@"
