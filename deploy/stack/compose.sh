#!/usr/bin/env bash
# The stack in containers, by deploy/compose.yaml: deploy/stack/compose.sh up|down [ARGUMENTS OF docker compose up|down]
#
# The first `up` makes what the file asks for, in .comitia/compose: the keys of a federation of 20 clients, a directory
# for the clients' state, and an environment file with a password for the broker. `N` is the number of workers, which
# share out the clients, `STAGES` the number of processes that sum beside the coordinator (0). Data stay until
# `down --volumes`, which removes the model log in the broker's volume; the clients' state belongs to that log, so it
# goes with it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
here=$PWD/.comitia/compose
clients=20
workers=${N:-4}
stages=${STAGES:-0}

die() { echo "compose.sh: $*" >&2; exit 2; }

docker compose version >/dev/null 2>&1 || die "Docker with its compose plug-in is not here; make up needs neither"
action=${1:-}
shift || true

prepare() {
    docker image inspect comitia:local >/dev/null 2>&1 || deploy/images/comitia.sh
    if [ ! -e "$here/env" ]; then
        rm -rf "$here"
        mkdir -p -m 700 "$here" "$here/state"
        .venv/bin/comitia keys init --federation compose --out "$here/federation"
        .venv/bin/comitia keys enroll --dir "$here/federation" --site site-1 --clients "$clients"
        (umask 077 && cat >"$here/env.new" <<ENV)
FEDERATION_DIR=$here/federation
STATE_DIR=$here/state
STACK_USER=$(id -u):$(id -g)
BROKER_PASSWORD=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
ENV
        mv "$here/env.new" "$here/env"
    fi
}

compose() { docker compose --file deploy/compose.yaml --env-file "$here/env" "$@"; }

case $action in
    up)
        [ "$workers" -ge 1 ] && [ "$workers" -le "$clients" ] || die "N: must be 1 to $clients, not $workers"
        prepare
        compose up --detach --wait --scale worker="$workers" --scale summing="$stages" "$@"
        ;;
    down)
        [ -e "$here/env" ] || die "there is nothing: make compose-up makes it"
        compose down "$@"
        case " $* " in *" --volumes "* | *" -v "*) rm -rf "$here" ;; esac
        ;;
    *) die "up or down?" ;;
esac
