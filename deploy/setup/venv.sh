#!/usr/bin/env bash
# Make .venv with Comitia and its development tools: deploy/setup/venv.sh [PYTHON]
#
# pip's own settings (PIP_INDEX_URL, PIP_FIND_LINKS …) decide where packages come from.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${1:-python3}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "venv.sh: $python is missing or older than 3.11; name another one: make setup PYTHON=python3.12" >&2
    exit 2
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null && command -v apt-get >/dev/null; then
    deploy/setup/apt.sh python3-venv
fi
"$python" -m venv .venv
.venv/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
touch .venv/stamp
