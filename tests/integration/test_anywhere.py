# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules run on hosts that have nothing but Python and an engine, also with 0 bytes free, and write to no disk."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, Set

import pytest

from tests.fleet import Fleet, FleetError, Host, HostSpec, dirty
from tests.integration.support import REPOSITORY, Ansible, on_all, start, state

SPECS = [
    HostSpec("deb11", root="bullseye"),
    HostSpec("deb12", "btrfs"),
    HostSpec("deb13", "xfs", root="trixie"),
    HostSpec("sid", root="forky"),
]
#: What an SSH server notes of each login.
NOTED = ("/var/log/", "/run/", "/proc/", "/sys/", "/dev/")
#: The engine's own databases: it writes down there what it is asked for (BuildKit's sizes, containerd's leases).
DATABASES = ("/buildkit/", "/containerd/daemon/io.containerd.metadata.v1.bolt/")


@pytest.fixture(scope="module")
def fleet(here: None) -> Iterator[Fleet]:
    """Hosts without a free byte on /, /tmp and the data root."""
    with start(SPECS) as hosts:
        on_all(hosts, lambda host: dirty(host, "small", log_bytes=20_000_000, aged=True))
        for host in hosts:
            # What sudo is told lies in memory: the disk will be full.
            host.exec(["sh", "-ec", "mkdir -m 755 /run/sudoers.d; echo '#includedir /run/sudoers.d' > /etc/sudoers.d/more"])
            for path in ("/", "/tmp", host.data_root):
                host.fill(path)
        yield hosts


def written(host: Host) -> Set[str]:
    """Files on the host's disks that are younger than the mark."""
    command = ["find", "/", host.data_root, "-xdev", "-newer", "/run/mark", "-not", "-type", "d"]
    found = host.exec(command, check=False).stdout.splitlines()
    return {
        path
        for path in found
        # Containers write their logs all the time. A host of the machine's root sees what happens on the machine.
        if not path.startswith(NOTED)
        and not (host.spec.root == "machine" and same_here(host, path))
        and not path.endswith("-json.log")
        and not any(part in path for part in DATABASES)
    }


def same_here(host: Host, path: str) -> bool:
    """Whether the machine itself has this very file."""
    try:
        return os.lstat(path).st_mtime_ns == os.lstat(host.path("/") / path.lstrip("/")).st_mtime_ns
    except OSError:
        return False


def test_ansible_alone_does_not_get_in(ansible: Ansible) -> None:
    run = ansible.run(["ansible", "-i", ansible.inventory, "all", "-m", "ansible.builtin.ping"])
    assert run.code != 0
    assert {line["outcome"] for line in run.lines} <= {"failed", "unreachable"}, run.text
    assert "No space left on device" in run.text


def tell_sudo(host: Host, line: str) -> None:
    host.exec(["sh", "-ec", "printf '%s\\n' \"$1\" > /run/sudoers.d/tty", "sh", line])


KILLED = "ansible_fleetclean.docker.docker_clean_payload_killed00"


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"ansible_user": "ops", "ansible_become": True},
        {"ansible_ssh_extra_args": "-tt"},
        {"ansible_user": "ops", "ansible_become": True, "ansible_ssh_extra_args": "-tt"},
        {"ansible_pipelining": False, "ansible_become": True},
        {"ansible_user": "ops", "ansible_become": True, "requiretty": True},
    ],
    ids=["root", "sudo", "root without pipelining", "sudo without pipelining", "pipelining turned off", "sudo that wants a terminal"],
)
def test_a_module_runs_on_a_full_host_and_writes_nothing(fleet: Fleet, ansible: Ansible, how: Dict[str, Any]) -> None:
    for host in fleet:
        tell_sudo(host, "Defaults:ops requiretty" if how.get("requiretty") else "")
        host.exec(["touch", "/run/mark"])
        # What a run left that was killed the day before yesterday.
        host.exec(["mkdir", "-m", "700", f"/dev/shm/{KILLED}"])
        host.exec(["touch", "-d", "2 days ago", f"/dev/shm/{KILLED}"])
    results = ansible.module("docker_disk_report", {"top": 1}, **how)
    for host in fleet:
        result = results[host.name]
        assert result.get("engine", {}).get("root_dir_proven"), result
        assert result["filesystems"][0]["available"] < 65536
        assert written(host) == set()
        assert [name for name in host.exec(["ls", "-A", "/dev/shm"]).stdout.split() if "ansible" in name or "cacert" in name] == []


def test_a_job_runs_on_a_full_host_and_writes_nothing(fleet: Fleet, ansible: Ansible) -> None:
    """``async``: its file is on a tmpfs, and async_status finds it by the id in the result. Its sudo wants a terminal, too."""
    hosts = [fleet["deb11"], fleet["deb12"]]
    for host in hosts:
        tell_sudo(host, "Defaults:ops requiretty")
        host.exec(["touch", "/run/mark"])
    variables = json.dumps({"ansible_user": "ops", "ansible_become": True})
    run = ansible.run(["ansible-playbook", "-i", ansible.inventory, "tests/integration/jobs.yml", "-e", variables, "--limit", "deb11,deb12"])
    assert run.code == 0, run.text
    for host in hosts:
        assert run.task("Wait for it")[host.name]["engine"]["root_dir_proven"]
        assert run.task("Fetch its answer")[host.name]["engine"]["root_dir_proven"]
        assert run.task("Start a job")[host.name]["ansible_job_id"] == run.task("Start a job")[host.name]["results_file"]
        assert written(host) == set()
        assert not host.path("/root/.ansible_async").exists()


def test_a_host_that_cannot_run_a_module_says_why_and_what_to_do(fleet: Fleet, ansible: Ansible) -> None:
    host = fleet["deb12"]
    # No Python of 3.7 and before is on the hosts: these two lines are what 3.6.15 writes.
    fake = "#!/bin/sh\ncat >/dev/null\nprintf '%s\\n' '  File \"<stdin>\", line 3' 'SyntaxError: future feature annotations is not defined' >&2\nexit 1\n"
    host.exec(["sh", "-ec", "cat > /run/fake-python3.6; chmod 755 /run/fake-python3.6"], input=fake)
    for how, words in (
        ({"ansible_python_interpreter": "/run/fake-python3.6"}, "need Python 3.8 or newer on the host; set ansible_python_interpreter"),
        ({"ansible_user": "ops", "ansible_become": True, "ansible_become_exe": "/run/no/sudo"}, "/run/no/sudo: not found. Install sudo there"),
    ):
        result = ansible.module("docker_disk_report", {"include": []}, hosts=host.name, **how)[host.name]
        assert result["failed"] and result["failure"] == "no_answer", result
        assert words in result["msg"] and "json" not in result["msg"].lower(), result
    host.exec(["mount", "-o", "remount,ro", "/dev/shm"])
    try:
        for pipelining in (True, False):
            result = ansible.module("docker_disk_report", {"include": []}, hosts=host.name, ansible_pipelining=pipelining)[host.name]
            assert result["failure"] == "no_answer", result
            assert "No temporary folder can be written there" in result["msg"] and "environment: {TMPDIR: /run}" in result["msg"], result
    finally:
        host.exec(["mount", "-o", "remount,rw", "/dev/shm"])


def test_a_local_connection_on_a_full_host(fleet: Fleet) -> None:
    """As ansible-pull does it: the controller is the full host itself, and has its own files on a tmpfs."""
    host = fleet["deb12"]
    if not host.path(sys.executable).exists():
        pytest.skip("not here: this Python lies where hosts have a folder of their own")
    command = [
        "env", "HOME=/dev/shm", "TMPDIR=/dev/shm", "ANSIBLE_LOCAL_TEMP=/dev/shm/controller", f"ANSIBLE_CONFIG={REPOSITORY}/ansible.cfg",
        sys.executable, "-m", "ansible", "adhoc", "localhost", "-c", "local", "-m", "fleetclean.docker.docker_disk_report",
        "-a", json.dumps({"include": []}), "-e", "ansible_python_interpreter=/usr/bin/python3",
    ]
    done = host.exec(command, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "/var/lib/docker" in done.stdout


def test_cleaning_a_full_host_gives_space_back(fleet: Fleet, ansible: Ansible) -> None:
    run = ansible.play("clean", cleanup_profile="standard", cleanup_logs_larger_than="10MB", cleanup_logs_keep="1MB")
    assert run.code == 0, run.text
    for host in fleet:
        assert run.changed()[host.name]
        # btrfs keeps an extent whole as long as a part of it is in use: the bed's log is one such extent.
        assert host.free_bytes(host.data_root) > (5_000_000 if host.spec.filesystem == "btrfs" else 10_000_000)
    again = ansible.play("clean", cleanup_profile="standard", cleanup_logs_larger_than="10MB", cleanup_logs_keep="1MB")
    assert not any(again.changed().values()), again.table


def test_the_commands_of_the_quick_start_need_ansible_core_alone(fleet: Fleet, ansible: Ansible, tmp_path: Path) -> None:
    """On a controller that has nothing else (see support.py), from the archive that users install."""
    for command in (
        ["ansible-galaxy", "collection", "build", "--output-path", str(tmp_path), str(REPOSITORY)],
        ["ansible-galaxy", "collection", "install", "--offline", "-p", str(tmp_path / "collections"), "{archive}"],
        ["ansible-playbook", "fleetclean.docker.report", "-i", ansible.inventory],
        ["ansible-playbook", "fleetclean.docker.clean", "-i", ansible.inventory],
    ):
        archive = next(tmp_path.glob("*.tar.gz"), tmp_path)
        run = ansible.run([word.format(archive=archive) for word in command], ANSIBLE_COLLECTIONS_PATH=str(tmp_path / "collections"))
        assert run.code == 0, run.text
    assert {line["host"] for line in run.lines} == set(fleet.hosts)
    assert run.table[-1].startswith("fleet")


def test_a_full_disk_that_keeps_the_engine_from_starting_is_named_with_what_helps(fleet: Fleet, ansible: Ansible) -> None:
    """On xfs; on ext4 an engine starts with its last blocks. What the error says to do is done, word for word."""
    host = fleet["deb13"]
    host.stop_engine()
    ident = "ab" * 32
    host.exec(["mkdir", f"{host.data_root}/containers/{ident}"])
    host.exec(["sh", "-c", f"head -c 25000000 /dev/zero > {host.data_root}/containers/{ident}/{ident}-json.log"])
    host.fill(host.data_root)
    with pytest.raises(FleetError, match="no space left on device"):
        host.start_engine()
    result = ansible.module("docker_disk_report", {"include": []}, hosts=host.name)[host.name]
    assert result["failure"] == "engine_down"
    said = re.fullmatch(
        r"docker_disk_report: engine does not answer: /var/run/docker\.sock: connection refused\. The usual data root /var/lib/docker has \d\S* K?B free, "
        r"which keeps an engine from starting: make room there first, such as with: (truncate -s 0 /\S+) \(\S+ MB; while no engine runs nobody writes its logs\)\. "
        r"Start the engine \(systemctl start docker\)\.",
        result["msg"],
    )
    assert said and ident in said[1], result["msg"]
    host.exec(["sh", "-c", said[1]])
    host.start_engine()
    assert not ansible.module("docker_disk_report", {"include": []}, hosts=host.name)[host.name].get("failed")


def test_the_socket_of_an_engine_without_root_and_the_environments_address_are_named(fleet: Fleet, ansible: Ansible, tmp_path: Path) -> None:
    host = fleet["deb13"]
    host.stop_engine()
    host.exec(["rm", "-f", "/var/run/docker.sock"])
    path = "/run/user/1000/docker.sock"
    host.exec(["mkdir", "-p", "/run/user/1000"])
    host.exec(["python3", "-c", f"import os, socket; socket.socket(socket.AF_UNIX).bind('{path}'); os.chown('{path}', 1000, 1000)"])
    task = {"fleetclean.docker.docker_disk_report": {"include": []}, "failed_when": False}
    tasks = [{"name": "Usual", **task}, {"name": "Environment", **task, "environment": {"DOCKER_HOST": "unix:///srv/nowhere.sock"}}]
    (tmp_path / "play.yml").write_text(json.dumps([{"hosts": host.name, "gather_facts": False, "tasks": tasks}]))
    run = ansible.run(["ansible-playbook", "-i", ansible.inventory, str(tmp_path / "play.yml")])
    host.exec(["rm", path])
    usual, environment = (run.task(name)[host.name] for name in ("Usual", "Environment"))
    assert usual["failure"] == environment["failure"] == "engine_down"
    assert usual["msg"].endswith(
        "/var/run/docker.sock: no such file. Start the engine (systemctl start docker), or name its socket in docker_host. "
        f"unix://{path} is a socket of user 1000; if the engine that you mean listens there, name it in docker_host and run this as that user (become_user)."
    )
    assert "/srv/nowhere.sock: no such file." in environment["msg"] and environment["msg"].endswith(
        "The address is that of DOCKER_HOST in the host's environment; docker_host wins over it."
    )


def test_hosts_in_trouble_are_told_apart_and_stop_nobody(fleet: Fleet, ansible: Ansible) -> None:
    fleet["sid"].stop_engine()
    fleet.add_to_inventory("gone", "198.18.255.253", ansible_ssh_extra_args="-o ConnectTimeout=1")
    host = fleet["deb13"]
    host.stop_engine()
    # An overlay needs room to take a file away.
    host.exec(["sh", "-ec", "rm -f /.filler /usr/sbin/dockerd /var/run/docker.sock; umount /var/lib/docker; rmdir /var/lib/docker"])
    run = ansible.play("clean")
    assert run.code != 0
    table = " ".join(" ".join(run.table).split())
    assert "gone" in table and "unreachable: " in table
    assert "engine does not answer: /var/run/docker.sock: " in table
    assert "no Docker here: /var/run/docker.sock: no such file, no dockerd, and no /var/lib/docker." in table
    assert run.table[-1].startswith("fleet") and "1 without Docker, 2 need a look" in run.table[-1]
    assert run.outcome("Remove what the profile allows")["deb11"] == "ok"
    assert run.outcome("Say which hosts need a look") == {
        "deb11": "skipped", "deb12": "skipped", "deb13": "skipped", "sid": "failed", "gone": "failed",
    }
    assert all(len(line) <= 160 for line in run.table)


def test_everything_is_still_there(fleet: Fleet) -> None:
    assert state(fleet["deb12"])["containers"]
