#!/bin/bash
# The documentation that ships, read as antsibull-docs and ansible-doc read it.
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PWD/.venv/bin:$PATH

bash scripts/build.sh
export ANSIBLE_COLLECTIONS_PATH=$PWD/.build/collections
cd .build/collections/ansible_collections/fleetclean/docker
# The filters are the role's own and nothing for a user.
rm -rf plugins/filter
antsibull-docs lint-collection-docs --plugin-docs --validate-collection-refs self .
for module in plugins/modules/*.py; do
    module=$(basename "$module" .py)
    # ansible-doc says on stderr what it cannot render, and then goes on.
    said=$(ansible-doc --type module "fleetclean.docker.$module" 2>&1 >/dev/null)
    [ -z "$said" ] || { printf '%s: %s\n' "$module" "$said" && exit 1; }
done
ansible-doc --type role fleetclean.docker.cleanup >/dev/null
echo "docs: modules and role can be read"
