#!/bin/sh
# dpkg says `remove`, then perhaps `purge`; rpm says the number of versions that stay.
# The user stays, because files may belong to it.
set -e
[ ! -d /run/systemd/system ] || systemctl daemon-reload
case ${1:-} in
  remove | 0)
    echo "dinnerbell is removed. Its replication slot keeps WAL in Postgres until dinnerbell comes back or you drop the slot: SELECT pg_drop_replication_slot('dinnerbell')"
    ;;
  purge)
    # The state is a cache; the file has passwords.
    rm -rf /var/lib/dinnerbell /etc/dinnerbell/environment
    ;;
esac
