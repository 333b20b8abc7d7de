"""The Ansible inventory of a fleet. It is JSON, which is YAML too, so that the standard library can write it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

GROUP = "docker_hosts"


def ssh_arguments(directory: Path) -> str:
    """Options for ssh to a host of the fleet in ``directory``: nothing of the caller's own known hosts, agent or settings."""
    options = {
        "UserKnownHostsFile": directory / "known_hosts",
        "StrictHostKeyChecking": "accept-new",
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "ConnectTimeout": 10,
        # A host that vanished must not hold a connection, nor a ControlPersist master, for long.
        "ServerAliveInterval": 5,
        "ServerAliveCountMax": 2,
        "ControlPath": directory / "s" / "%h%r",
    }
    return "-F /dev/null " + " ".join(f"-o {key}={value}" for key, value in options.items())


def variables(directory: Path, address: str, user: str = "root") -> dict[str, Any]:
    """The variables with which Ansible reaches a host."""
    return {
        "ansible_host": address,
        "ansible_user": user,
        "ansible_ssh_private_key_file": str(directory / "id_ed25519"),
        "ansible_ssh_common_args": ssh_arguments(directory),
        "ansible_python_interpreter": "/usr/bin/python3",
    }


def write(path: Path, hosts: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the inventory of ``hosts`` (name: variables) at once: a reader sees the old one or the new one."""
    _replace(path, {GROUP: {"hosts": {name: dict(values) for name, values in hosts.items()}}})


def add(path: Path, name: str, values: Optional[Mapping[str, Any]] = None) -> None:
    """Add a host, or replace it."""
    content = json.loads(path.read_text())
    content[GROUP]["hosts"][name] = dict(values or {})
    _replace(path, content)


def _replace(path: Path, content: Any) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(json.dumps(content, indent=2) + "\n")
    fresh.replace(path)
