#!/usr/bin/env bash
# Runs a command with KAFKA_BROKERS set: to what it is already, else to a real
# Kafka that is started on an empty folder for the command and stopped after it.
#
#   scripts/with-kafka.sh go test ./...
set -euo pipefail

[ $# -gt 0 ] || { echo "usage: scripts/with-kafka.sh COMMAND [ARGUMENT...]" >&2; exit 2; }
if [ -z "${KAFKA_BROKERS:-}" ]; then
  here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
  # A folder and ports of its own: a server of the developer's stays as it is.
  KAFKA_DIR=$(mktemp -d "${TMPDIR:-/tmp}/dinnerbell-kafka.XXXXXX")
  export KAFKA_DIR
  trap '"$here/kafka.sh" clean' EXIT
  trap 'exit 130' INT TERM
  brokers=$("$here/kafka.sh" start)
  export "${brokers?}"
fi
"$@"
