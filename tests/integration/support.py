# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Throwaway hosts, and Ansible run on them as users run it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Optional

from tests.fleet import Fleet, Host, HostSpec, roots

REPOSITORY = Path(__file__).resolve().parents[2]
#: What an engine's daemon.json says for containerd's image store.
CONTAINERD = {"features": {"containerd-snapshotter": True}}


@dataclass
class Run:
    """One run of ansible or ansible-playbook: its words, and each task's result."""

    code: int
    text: str
    lines: List[Dict[str, Any]] = field(default_factory=list)

    def task(self, ending: str) -> Dict[str, Dict[str, Any]]:
        """The results of the task whose name ends so, by host."""
        return {line["host"]: line["result"] for line in self.lines if line["task"].endswith(ending)}

    def outcome(self, ending: str) -> Dict[str, str]:
        return {line["host"]: line["outcome"] for line in self.lines if line["task"].endswith(ending)}

    def changed(self) -> Dict[str, bool]:
        """Whether any task changed a host."""
        hosts: Dict[str, bool] = {}
        for line in self.lines:
            hosts[line["host"]] = hosts.get(line["host"], False) or bool(line["result"].get("changed"))
        return hosts

    @property
    def table(self) -> List[str]:
        """The lines of the fleet's table."""
        return next((found for found in self.tables), [])

    @property
    def tables(self) -> List[List[str]]:
        """All tables that were shown."""
        return [line["result"]["msg"] for line in self.lines if line["task"].endswith(": The fleet") and line["outcome"] == "ok"]


#: What the tests' own Python has and a controller need not have.
_NOT_ON_CONTROLLERS = ("docker", "requests", "urllib3", "paramiko")


class Ansible:
    """Runs the Ansible of this Python on a fleet's inventory, as if nothing but ansible-core were installed here."""

    def __init__(self, inventory: str, liars: bool = False) -> None:
        """:param liars: some of its hosts answer what no module returns. What all others answer has to come in whole."""
        self.inventory = inventory
        self._liars = liars

    def run(self, argv: List[str], **environment: str) -> Run:
        with tempfile.TemporaryDirectory(prefix="fleetclean-run-") as folder:
            results = Path(folder, "results")
            absent = Path(folder, "absent")
            absent.mkdir()
            for name in _NOT_ON_CONTROLLERS:
                (absent / f"{name}.py").write_text(f"raise ModuleNotFoundError(\"No module named '{name}'\", name='{name}')\n")
            env = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "DOCKER_"))}
            env.update(
                ANSIBLE_CONFIG=str(REPOSITORY / "ansible.cfg"),
                ANSIBLE_CALLBACK_PLUGINS=str(REPOSITORY / "tests/integration/callback_plugins"),
                ANSIBLE_CALLBACKS_ENABLED="results",
                ANSIBLE_LOAD_CALLBACK_PLUGINS="1",
                ANSIBLE_LOCAL_TEMP=folder,
                ANSIBLE_NOCOLOR="1",
                ANSIBLE_FORKS="10",
                FLEETCLEAN_RESULTS=str(results),
                PATH=f"{Path(sys.executable).parent}:{env.get('PATH', '')}",
                PYTHONPATH=str(absent),
                **environment,
            )
            done = subprocess.run(
                argv, cwd=REPOSITORY, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600
            )
            lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
        text = done.stdout + done.stderr
        assert self._liars or not re.search(r"does\s+not\s+document|unexpected_answer", text), text
        return Run(done.returncode, text, lines)

    def module(self, name: str, args: Optional[Dict[str, Any]] = None, hosts: str = "all", check: bool = False, **variables: Any) -> Dict[str, Dict[str, Any]]:
        """Run one of the collection's modules; return its result by host."""
        argv = ["ansible", "-i", self.inventory, hosts, "-m", f"fleetclean.docker.{name}"]
        argv += ["-a", json.dumps(args)] if args else []
        argv += ["-e", json.dumps(variables)] if variables else []
        run = self.run(argv + (["--check"] if check else []))
        assert run.lines, run.text
        return {line["host"]: {**line["result"], "failed": line["outcome"] in ("failed", "unreachable")} for line in run.lines}

    def play(self, name: str, *argv: str, hosts: str = "", **variables: Any) -> Run:
        """Run one of the collection's playbooks."""
        command = ["ansible-playbook", f"playbooks/{name}.yml", "-i", self.inventory, *argv]
        command += ["-e", json.dumps(variables)] if variables else []
        return self.run(command + (["--limit", hosts] if hosts else []))


def start(specs: List[HostSpec]) -> Fleet:
    """A fleet of those hosts whose root can be had on this machine."""
    usable = []
    for spec in specs:
        if spec.root == "machine" or roots.made(spec.root):
            usable.append(spec)
        elif os.environ.get("FLEETCLEAN_NO_SKIP") == "1":
            raise AssertionError(f"{spec.name}: the root {spec.root} is not made; run make roots")
    return Fleet(usable)


def on_all(hosts: Iterable[Host], act: Callable[[Host], Any], at_once: int = 4) -> Dict[str, Any]:
    """Do something on several hosts at once; return what came of it by name. What mostly waits can be done on more of them."""
    found = list(hosts)
    with ThreadPoolExecutor(max_workers=at_once) as pool:
        return dict(zip([host.name for host in found], pool.map(act, found)))


def state(host: Host) -> Dict[str, Any]:
    """What an engine has, by the names that tests know."""
    containers = host.must("GET", "/containers/json?all=1")
    images = host.must("GET", "/images/json?all=1")
    volumes = host.must("GET", "/volumes")["Volumes"] or []
    networks = host.must("GET", "/networks")
    return {
        "containers": {name.lstrip("/"): entry["Id"] for entry in containers for name in entry["Names"]},
        "running": {entry["Names"][0].lstrip("/") for entry in containers if entry["State"] == "running"},
        "images": {entry["Id"] for entry in images},
        "tags": {tag for entry in images for tag in entry["RepoTags"] or [] if tag != "<none>:<none>"},
        "volumes": {entry["Name"] for entry in volumes},
        "networks": {entry["Name"] for entry in networks},
    }
