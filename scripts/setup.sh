#!/bin/bash
# Prepares a machine for every check: Debian packages (as root, where apt-get is), and .venv with pinned versions.
# Safe to run again; the second time it only looks. Starts no service and needs no git.
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'setup: %s\n' "$*"; }
fail() {
    say "$*" >&2
    exit 1
}

# What has to be there, and the Debian package that brings it. By program rather than by package, so that
# an engine or an sshd from elsewhere is left alone.
PROGRAMS=(
    dockerd:docker.io docker:docker-cli sshd:openssh-server ssh:openssh-client sudo:sudo ip:iproute2 ps:procps
    mkfs.ext4:e2fsprogs mkfs.xfs:xfsprogs mkfs.btrfs:btrfs-progs fuse-overlayfs:fuse-overlayfs debootstrap:debootstrap
    unshare:util-linux losetup:mount chromium:chromium
)
# What only the emulated machines need (`setup.sh vm`, called by `make test-vm`): 90 MB, which nobody else shall wait for.
if [ "${1:-}" = vm ]; then PROGRAMS+=(qemu-system-x86_64:qemu-system-x86); fi
POLICY=/usr/sbin/policy-rc.d

PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

missing_packages() {
    local entry
    for entry in "${PROGRAMS[@]}"; do
        command -v "${entry%%:*}" >/dev/null || echo "${entry#*:}"
    done
    # The test images are made of it: it has to run alone in an empty image.
    if ! [ -f /bin/busybox ] || grep -q -a -m 1 'ld-linux' <(head -c 4096 /bin/busybox); then echo busybox-static; fi
    if [ -z "$(find_python)" ]; then echo python3-venv; fi
}

# The first Python that is new enough and can make a virtual environment. Debian's own comes first: a python3 in
# front of it may be a shim that means something else in another folder.
find_python() {
    local candidate
    for candidate in ${PYTHON:-} /usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
}

install_packages() {
    local wanted=() package
    # Debian 12 has the client within docker.io; from Debian 13 on it is a package of its own.
    say "apt-get update"
    apt_get update
    for package in "$@"; do
        if [ "$package" != docker-cli ] || [ -n "$(apt-cache search --names-only '^docker-cli$')" ]; then
            wanted+=("$package")
        fi
    done
    if ! [ -e "$POLICY" ]; then
        say "no service is started meanwhile ($POLICY, for the time of the installation)"
        trap 'rm -f "$POLICY"' EXIT
        trap 'exit 130' INT
        trap 'exit 143' TERM HUP
        printf '#!/bin/sh\nexit 101\n' >"$POLICY"
        chmod 755 "$POLICY"
    fi
    say "apt-get install ${wanted[*]}"
    apt_get install --yes --no-install-recommends "${wanted[@]}"
    if [ "$(trap -p EXIT)" ]; then
        rm -f "$POLICY"
        trap - EXIT INT TERM HUP
    fi
}

apt_get() {
    DEBIAN_FRONTEND=noninteractive apt-get -q=2 -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 "$@" >"$log" 2>&1 </dev/null || {
        tail -n 30 "$log" >&2
        fail "apt-get $1 failed; its last lines are above, all of it is in $log"
    }
}

debian_packages() {
    local missing
    mapfile -t missing < <(missing_packages)
    if [ "${#missing[@]}" = 0 ]; then
        say "all programs are there"
    elif ! command -v apt-get >/dev/null; then
        say "this is no Debian: install what stands for ${missing[*]} yourself; checks that need it skip or fail with its name"
    elif [ "$(id -u)" != 0 ]; then
        say "not root: cannot install ${missing[*]}; checks that need test hosts need root anyway"
    else
        install_packages "${missing[@]}"
    fi
}

virtual_environment() {
    local python wanted
    python=$(find_python)
    [ -n "$python" ] || fail "no Python 3.11 or newer that can make a virtual environment (Debian: apt-get install python3-venv)"
    wanted=$("$python" -c 'import sys; print(sys.version)' && cat requirements-dev.txt constraints-dev.txt && pwd)
    if [ -e .venv/made-from ] && [ "$(cat .venv/made-from)" = "$wanted" ]; then
        touch .venv/made-from 2>/dev/null || true
        say ".venv is up to date"
        return
    fi
    say "making .venv with $("$python" --version 2>&1) ($(command -v "$python"))"
    "$python" -m venv --clear .venv
    say "pip install -r requirements-dev.txt (half a minute)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements-dev.txt >"$log" 2>&1 </dev/null || {
        tail -n 30 "$log" >&2
        fail "pip install failed; its last lines are above, all of it is in $log"
    }
    printf '%s\n' "$wanted" >.venv/made-from
}

mkdir -p .build
log=$PWD/.build/setup.log
debian_packages
virtual_environment
