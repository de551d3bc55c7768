#!/bin/sh
# The user exists before the configuration file gets its group.
set -e
getent group dinnerbell >/dev/null || groupadd --system dinnerbell
getent passwd dinnerbell >/dev/null ||
  useradd --system --gid dinnerbell --home-dir /var/lib/dinnerbell --no-create-home --shell /usr/sbin/nologin dinnerbell
