#!/bin/bash
# Builds the collection's archive and installs it into a folder of its own (.build/collections): what a user would get.
# With --check, Ansible then has to find there what the collection promises.
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PWD/.venv/bin:$PATH
export ANSIBLE_COLLECTIONS_PATH=$PWD/.build/collections

rm -rf .build/collections .build/archive
mkdir -p .build/archive
ansible-galaxy collection build --output-path .build/archive . >/dev/null
ansible-galaxy collection install --offline --no-deps --collections-path .build/collections .build/archive/*.tar.gz >/dev/null
# Tools that look for a repository around a collection would find ours, which ignores all of .build.
if command -v git >/dev/null; then
    env -u GIT_DIR -u GIT_INDEX_FILE -u GIT_WORK_TREE git init --quiet .build/collections/ansible_collections/fleetclean/docker
fi
[ "${1:-}" = --check ] || exit 0

cd /
ansible-doc --type module --json fleetclean.docker.docker_{disk_report,clean,log_truncate} >/dev/null
ansible-doc --type role --json fleetclean.docker.cleanup >/dev/null
for playbook in clean report truncate_logs; do
    ansible-playbook --syntax-check --inventory localhost, "fleetclean.docker.$playbook" >/dev/null
done
printf 'build: %s (%s files) installs, and Ansible finds its modules, role and playbooks\n' \
    "$(cd - >/dev/null && ls .build/archive)" "$(find "$ANSIBLE_COLLECTIONS_PATH" -name .git -prune -o -type f -print | wc -l)"
