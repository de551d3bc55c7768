#!/bin/sh
# An upgrade restarts a running daemon, which finishes its steps first. A first installation
# starts nothing: the configuration has to be written, and `dinnerbell setup` has to be run.
set -e
[ -d /run/systemd/system ] || exit 0
systemctl daemon-reload
systemctl try-restart dinnerbell.service ||
  echo "dinnerbell did not start again; see: journalctl -u dinnerbell" >&2
