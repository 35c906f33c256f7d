#!/usr/bin/env bash
# Make sure that a RabbitMQ can be had: a URL, a Docker daemon or an installed rabbitmq-server will do. Otherwise it is
# installed with apt (the service itself is not started), if this is root on a machine with apt.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

[ -z "${COMITIA_BROKER_URLS:-}${COMITIA_TEST_BROKER_URL:-}" ] || exit 0
[ ! -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || exit 0
! command -v rabbitmq-server >/dev/null || exit 0
! timeout 3 docker version >/dev/null 2>&1 || exit 0
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    "$here/apt.sh" rabbitmq-server
else
    echo "broker.sh: no Docker daemon answers and rabbitmq-server is not installed; as root, make broker installs it" >&2
fi
