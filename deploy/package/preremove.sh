#!/bin/sh
# A removal stops the daemon; an upgrade does not. dpkg says `remove`, rpm the number of
# versions that stay.
set -e
case ${1:-} in remove | 0) ;; *) exit 0 ;; esac
command -v systemctl >/dev/null || exit 0
if [ -d /run/systemd/system ]; then
  systemctl disable --now dinnerbell.service
else
  systemctl disable dinnerbell.service
fi
