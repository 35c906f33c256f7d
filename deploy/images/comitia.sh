#!/usr/bin/env bash
# Make the image comitia:local from this checkout.
#
#     deploy/images/comitia.sh [BASE-IMAGE] [DEBIAN-MIRROR]
#
# BASE-IMAGE has Python 3.11 (python:3.11-slim, say, where a registry can be reached). Without one, python:3.11-local is
# made from Debian 12's packages, once, like the RabbitMQ image: that needs root and debootstrap. Wheels come through the
# pip of .venv, with its settings. Made anew each time, since the checkout may have changed; the
# dependencies' layer is kept by Docker.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$here/../..
# shellcheck source=deploy/images/debian.sh
. "$here/debian.sh"

base=${1:-python:3.11-local}
[ -x "$root/.venv/bin/pip" ] || die "no .venv: run make setup"
docker info >/dev/null 2>&1 || die "no Docker daemon answers: start dockerd"
if [ "$base" = python:3.11-local ] && ! have_image "$base"; then
    require_tools
    make_root bookworm "${2:-$(debian_mirror)}"
    install_packages python3 python3-venv
    import_root "$base" 'ENV LANG=C.UTF-8' 'CMD ["python3"]'
fi

context=$root/build/image
rm -rf "$root/build" # also setuptools' copies of modules that may be gone by now
mkdir -p "$context"
cp "$here/Dockerfile" "$context/"
say "collect wheels"
"$root/.venv/bin/pip" wheel --quiet --no-deps --wheel-dir "$context/comitia" "$root"
"$root/.venv/bin/pip" download --quiet --only-binary=:all: --dest "$context/dependencies" --constraint "$root/constraints.txt" \
    --python-version 3.11 --implementation cp --abi cp311 --abi abi3 --abi none \
    --platform "manylinux_2_28_$(uname -m)" --platform "manylinux_2_27_$(uname -m)" \
    --platform "manylinux_2_17_$(uname -m)" --platform "manylinux2014_$(uname -m)" --platform any \
    "$context"/comitia/comitia-*.whl
rm "$context"/dependencies/comitia-*.whl
say "build comitia:local on $base"
# The classic builder is part of Docker itself; BuildKit's command is a plug-in that Debian does not ship.
DOCKER_BUILDKIT=0 docker build --quiet --build-arg "BASE=$base" --tag comitia:local "$context" >/dev/null
rm -rf "$root/build"
say "made comitia:local"
