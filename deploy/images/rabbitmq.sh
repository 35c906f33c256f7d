#!/usr/bin/env bash
# Make a local RabbitMQ image from Debian's packages, without any image registry.
#
#     deploy/images/rabbitmq.sh [4|3.10] [DEBIAN-MIRROR]
#
# 4 makes rabbitmq:4-local (Debian 13), 3.10 makes rabbitmq:3.10-local (Debian 12). An image that is there is kept:
# remove it with `docker rmi` to have it made again. For air-gapped sites: a mirror of Debian is all this needs, and
# `docker save rabbitmq:4-local` carries the result anywhere. Needs root, debootstrap and Docker.
#
# Like the official image it reads RABBITMQ_DEFAULT_USER, _PASS and _VHOST, and serves 5672, 15672 and 15692.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=deploy/images/debian.sh
. "$here/debian.sh"

version=${1:-4}
case $version in
    4) suite=trixie ;;
    3.10) suite=bookworm ;;
    *) die "no such version: $version (4 or 3.10)" ;;
esac
image=rabbitmq:$version-local

require_tools
if have_image "$image"; then
    say "$image is there already"
    exit 0
fi
make_root "$suite" "${2:-$(debian_mirror)}"
install_packages rabbitmq-server
install -m 644 "$here/../rabbitmq/rabbitmq.conf" "$here/../rabbitmq/enabled_plugins" "$ROOT/etc/rabbitmq/"
rm -f "$ROOT/var/lib/rabbitmq/.erlang.cookie" # every container makes its own secret
import_root "$image" \
    'USER rabbitmq' \
    'WORKDIR /var/lib/rabbitmq' \
    'ENV HOME=/var/lib/rabbitmq LANG=C.UTF-8 PATH=/usr/lib/rabbitmq/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
    'EXPOSE 5672 15672 15692' \
    'LABEL org.comitia.image=rabbitmq' \
    'CMD ["/usr/lib/rabbitmq/bin/rabbitmq-server"]'
