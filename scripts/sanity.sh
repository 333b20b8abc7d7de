#!/bin/bash
# ansible-test's sanity tests, on what ships (scripts/build.sh) and with the Python of .venv.
# Arguments go to ansible-test, such as --test validate-modules.
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PWD/.venv/bin:$PATH
python=$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
config=${PIP_CONFIG_FILE:-${XDG_CONFIG_HOME:-$HOME/.config}/pip/pip.conf}

bash scripts/build.sh

# A home of its own, for two reasons. ansible-test keeps its environments there, and it fetches pip's bootstrap script from
# a host that not every network lets through; the venv's own bundled pip does as well, and takes that script's place.
home=$PWD/.build/sanity-home
mkdir -p "$home/.ansible/test/cache" "$home/.config/pip"
if [ -e "$config" ]; then cp "$config" "$home/.config/pip/pip.conf"; fi
version=$(.venv/bin/python - "$python" <<'VERSION'
import sys
from types import SimpleNamespace

from ansible_test._internal.python_requirements import get_venv_packages

print(get_venv_packages(SimpleNamespace(version=sys.argv[1]))["pip"].replace(".", "_"))
VERSION
)
cat >"$home/.ansible/test/cache/get_pip_$version.py" <<'BOOTSTRAP'
import runpy
import sys

sys.argv = ["ensurepip", "--default-pip"]
runpy.run_module("ensurepip", run_name="__main__")
BOOTSTRAP

cd .build/collections/ansible_collections/fleetclean/docker
HOME=$home ansible-test sanity --local --requirements --python "$python" --color no "$@" >"$home/log" 2>&1 </dev/null || {
    # Without the many lines about what pip installed; all of it is in the log.
    grep -E '^(ERROR|FATAL|See documentation)' "$home/log" || tail -n 30 "$home/log"
    echo "sanity: failed; the whole output is in $home/log"
    exit 1
}
printf 'sanity: %s tests of ansible-test %s passed\n' "$(grep -c '^Running sanity test' "$home/log")" "$(ansible --version | sed -n '1s/.*core \(.*\)\]/\1/p')"
