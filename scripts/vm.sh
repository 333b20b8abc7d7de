#!/bin/bash
# Makes ready what `make test-vm` needs: vm.sh DRIVER... The emulator's packages, and the images that the machines boot from (once).
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh vm
. scripts/mirror.sh
for driver in "$@"; do
    # It ends with this script.
    setpriv --pdeathsig KILL -- .venv/bin/python -m tests.vm --image "$driver"
done
