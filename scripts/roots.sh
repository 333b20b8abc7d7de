#!/bin/bash
# Makes the root file systems with other engines, from the mirror that this machine's own packages come from.
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

. scripts/mirror.sh
for suite in bullseye trixie forky; do
    if ! [ -d "${FLEETCLEAN_CACHE:-$HOME/.cache/fleetclean}/roots/$suite" ]; then echo "roots: debootstrap of $suite (a minute)"; fi
    # It ends with this script.
    setpriv --pdeathsig KILL -- .venv/bin/python -m tests.fleet roots "$suite" >/dev/null
done
echo "roots: bullseye, trixie and forky are there"
