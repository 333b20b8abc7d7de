#!/bin/bash
# Runs molecule's scenarios one after another: molecule.sh SCENARIO... Quiet, unless one fails.
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PWD/.venv/bin:$PATH

mkdir -p .build
for scenario in "$@"; do
    log=.build/molecule-$scenario.log
    begin=$SECONDS
    # Molecule's own place for this is named by the clone's folder alone, and in the user's home.
    export MOLECULE_EPHEMERAL_DIRECTORY=$PWD/.build/molecule/$scenario
    # It ends with this script, and the hosts with it (molecule/shared/up.py).
    if ! setpriv --pdeathsig KILL -- molecule test --no-command-borders --scenario-name "$scenario" >"$log" 2>&1 </dev/null; then
        grep -a -E '^(E  |FAILED|fatal|CRITICAL)|ERROR|CRITICAL' "$log" | tail -n 60
        echo "molecule: scenario $scenario failed; the whole output is in $log"
        exit 1
    fi
    printf 'molecule: scenario %-10s passed in %d s: %s\n' "$scenario" $((SECONDS - begin)) "$(grep -aEo '[0-9]+ passed[^=]*' "$log" | tail -n 1)"
done
