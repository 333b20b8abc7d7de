# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run over many hosts costs the controller, beside ``ping`` and community.docker's ``docker_prune``: ratios, never a limit in seconds.

    make bench-fleet                               # all of it, on a host that is made for it and gone afterwards
    .venv/bin/python benchmarks/fleet.py --help    # fewer hosts, or the controller alone

One throwaway host with an engine and nothing to do stands for all of them: a fleet of 50 are 50 names in the inventory, each with an SSH
connection and a ``state_dir`` of its own. Their modules share this machine's CPUs with the controller, so the clock says how busy those are;
what an Ansible controller does for them shows in its CPU seconds.

"clean.yml" is this collection's playbook, "ping" one task, "docker_prune" the same work without it: ``command: docker system df``, docker_prune
with what is older than a week, and a ``command`` that shortens logs of more than 100 MB. None gathers facts. All connections are open before the
first is measured, and the order is another one in each round.

With a local connection the modules are the controller's children, so their CPU seconds and memory are in its own.

With ``--canned`` hosts answer what they answered before, at once and without Python: what is left is the controller's own work.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, Optional

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from benchmarks import common  # noqa: E402
from benchmarks.clean import VENV, fetch_peer, install_for_peer  # noqa: E402
from benchmarks.common import idle_cpus, markdown, say, span  # noqa: E402
from tests.fleet import Fleet, FleetError, Host, HostSpec  # noqa: E402
from tests.fleet.system import die_with_parent  # noqa: E402

PING, OURS, THEIRS = "ping", "clean.yml", "docker_prune"
#: Times a ping that a run with nothing to do may take, by the clock and of the controller's CPU, over 40 hosts and more.
AIM, AIM_HOSTS = 3.0, 40
WEEK = {"until": "168h"}
PEER_TASKS: list[dict[str, Any]] = [
    {"name": "Look", "ansible.builtin.command": "docker system df", "changed_when": False},
    {"name": "Shorten logs", "ansible.builtin.command": r"find /var/lib/docker/containers -name '*-json.log' -size +100M -exec truncate -s 10M {} ;"},
    {"name": "Prune", "community.docker.docker_prune": {
        "containers": True, "containers_filters": WEEK, "images": True, "images_filters": {"dangling": False, **WEEK},
        "networks": True, "networks_filters": WEEK, "builder_cache": True, "builder_cache_filters": WEEK},
     "vars": {"ansible_python_interpreter": f"{VENV}/bin/python3"}},
]
#: Stands for the Python of a host: takes what Ansible sends, and answers what that module answered before.
CANNED = """#!/bin/sh
[ $# -gt 0 ] && [ "$1" != - ] && exec /usr/bin/python3 "$@"
module=$(grep -a -o -m1 'modules[./]docker_[a-z_]*' | head -n1 | tr -c 'a-z_\\n' .)
cat >/dev/null
exec cat "/opt/canned/${module##*.}"
"""


@dataclass
class Series(common.Series):
    """What one contender took in all rounds: also megabytes of memory at once, and bytes sent to each host."""

    memory: list[float] = field(default_factory=list)
    sent: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "memory_mb": round(median(self.memory), 1), "sent_bytes_per_host": round(median(self.sent))}


class Memory(threading.Thread):
    """Looks twice a second at what a process and all its children take; what they share is counted once (proc_pid_smaps(5), Pss)."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self._ended, self.peak = pid, threading.Event(), 0

    def run(self) -> None:
        while not self._ended.wait(0.5):
            self.peak = max(self.peak, sum(map(self._pss, self._family())))

    def end(self) -> float:
        self._ended.set()
        self.join()
        return self.peak / 1e6

    def _family(self) -> list[int]:
        parents: dict[int, list[int]] = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                parents.setdefault(int(path.read_text().rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
        family = [self._pid]
        for pid in family:
            family += parents.get(pid, ())
        return family

    @staticmethod
    def _pss(pid: int) -> int:
        with suppress(OSError, ValueError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        return 0


class Controller:
    """Ansible as users run it, with one host under many names."""

    def __init__(self, fleet: Fleet, host: Host, folder: Path, peer: bool) -> None:
        self.host, self._folder = host, folder
        self._record = next(group["hosts"][host.name] for group in json.loads(fleet.inventory.read_text()).values())
        self._environment = common.ansible_environment(folder, folder)
        plays = {PING: [{"name": "Ping", "ansible.builtin.ping": {}}], **({THEIRS: PEER_TASKS} if peer else {})}
        self.playbooks = {OURS: str(REPOSITORY / "playbooks/clean.yml")}
        for name, tasks in plays.items():
            path = folder / f"{name}.yml"
            path.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "become": True, "tasks": tasks}]))
            self.playbooks[name] = str(path)

    def inventory(self, connection: str, hosts: int, canned: bool = False) -> str:
        common_args = self._record["ansible_ssh_common_args"].rpartition(" -o ControlPath=")[0]
        found = {}
        for number in range(hosts):
            if connection == "local":
                values = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "cleanup_docker_host": f"unix://{self.host.socket}"}
            else:
                values = {**self._record, "ansible_ssh_common_args": f"{common_args} -o ControlPath={self._folder}/s/{number}"}
            if canned:
                values["ansible_python_interpreter"] = "/opt/canned/python3"
            found[f"h{number}"] = {**values, "cleanup_state_dir": f"{self._folder if connection == 'local' else '/var/lib'}/fleetclean-{number}"}
        (self._folder / "s").mkdir(exist_ok=True)
        path = self._folder / f"{connection}-{hosts}{'-canned' if canned else ''}.yml"
        path.write_text(json.dumps({"all": {"hosts": found}}))
        return str(path)

    def can(self) -> None:
        """Have the host's answers kept in it."""
        answers = (("docker_disk_report", "_cleanup_engine"), ("docker_log_truncate", "_cleanup_logs"), ("docker_clean", "_cleanup_clean"))
        tasks = [{"ansible.builtin.import_role": {"name": "fleetclean.docker.cleanup"}}] + [
            {"ansible.builtin.copy": {"dest": f"{self._folder}/{module}", "content": f"{{{{ {variable} | to_json }}}}"}, "delegate_to": "localhost"}
            for module, variable in answers
        ]
        path = self._folder / "can.yml"
        path.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
        self._run(str(path), self.inventory("ssh", 1), 1)
        folder = self.host.path("/opt/canned")
        folder.mkdir(parents=True)
        (folder / "python3").write_text(CANNED)
        (folder / "python3").chmod(0o755)
        for module, _variable in answers:
            answer = json.loads((self._folder / module).read_text())
            for key in ("failed_when_result", "warnings", "deprecations"):
                answer.pop(key, None)
            (folder / module).write_text(json.dumps(answer))

    def measure(self, name: str, inventory: str, hosts: int, forks: int, series: Series) -> None:
        before, began = self._received(), time.monotonic()
        memory, usage = self._run(self.playbooks[name], inventory, forks)
        series.seconds.append(time.monotonic() - began)
        series.cpu.append(usage.ru_utime + usage.ru_stime)
        series.memory.append(memory)
        series.sent.append((self._received() - before) / hosts)

    def _received(self) -> int:
        """Bytes that came to the host over its network."""
        lines = self.host.exec(["cat", "/proc/net/dev"]).stdout.splitlines()
        return next(int(line.partition(":")[2].split()[0]) for line in lines if line.strip().startswith("eth0:"))

    def _run(self, playbook: str, inventory: str, forks: int) -> tuple[float, Any]:
        command = ["ansible-playbook", "-i", inventory, "-f", str(forks), playbook]
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(command, env=self._environment, cwd=self._folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
            memory = Memory(process.pid)
            memory.start()
            _pid, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            peak = memory.end()
            if process.returncode:
                output.seek(0)
                raise FleetError(f"{' '.join(command)} ended with {process.returncode}: {output.read()[-3000:]}")
        return peak, usage


def table(title: str, taken: dict[str, Series]) -> list[str]:
    ping = taken[PING]
    rows = [[title, "seconds", "from-to", "/ ping", "CPU s", "/ ping", "MB", "kB to a host"]]
    for name, series in taken.items():
        cpu = series.middle_cpu
        rows.append([name, f"{series.middle:.1f}", series.from_to, f"{series.middle / ping.middle:.2f}", f"{cpu:.1f}", f"{cpu / ping.middle_cpu:.2f}",
                     f"{median(series.memory):.0f}", f"{median(series.sent) / 1e3:.0f}"])
    return markdown(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description="clean.yml over many hosts beside ping and docker_prune: ratios of one run (needs root).")
    parser.add_argument("--hosts", type=int, nargs="+", default=[1, 10, 50, 200], help="how many (default: 1 10 50 200)")
    parser.add_argument("--forks", type=int, nargs="+", default=[5, 20, 50], help="as many at once (default: 5 20 50)")
    parser.add_argument("--connection", choices=("ssh", "local"), nargs="+", default=["ssh", "local"], help="over what (default: both)")
    parser.add_argument("--rounds", type=int, default=3, help="of each (default: %(default)s)")
    parser.add_argument("--canned", action="store_true", help="hosts answer at once, without Python: the controller's own work (SSH only, no docker_prune)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root, for the throwaway host")
    die_with_parent(os.getppid())
    figures: dict[str, dict[str, Series]] = {}
    idle: list[float] = []
    missing: Optional[str] = None
    try:
        with Fleet([HostSpec("bench", "ext4")]) as fleet, tempfile.TemporaryDirectory(prefix="fleetclean-bench-") as folder:
            host = fleet["bench"]
            if not options.canned:
                try:
                    fetch_peer(Path(folder))
                    install_for_peer(host)
                except (FleetError, metadata.PackageNotFoundError) as error:
                    missing = str(error)
            controller = Controller(fleet, host, Path(folder), peer=not options.canned and missing is None)
            if options.canned:
                controller.can()
            for connection in ("ssh",) if options.canned else options.connection:
                for hosts in options.hosts:
                    inventory = controller.inventory(connection, hosts, options.canned)
                    # docker_prune and its like are the host's own; with a local connection there is none.
                    names = [name for name in controller.playbooks if name != THEIRS or connection == "ssh"]
                    controller.measure(PING, inventory, hosts, 20, Series())
                    # More forks than hosts are as many forks as hosts.
                    for forks in sorted({min(forks, hosts) for forks in options.forks}):
                        taken = {name: Series() for name in (PING, OURS, THEIRS) if name in names}
                        for _round in range(options.rounds):
                            idle.append(round(idle_cpus(), 1))
                            for name in random.sample(sorted(names), len(names)):
                                controller.measure(name, inventory, hosts, forks, taken[name])
                        figures[f"{hosts} hosts, {connection}, forks {forks}"] = taken
                        say(f"{hosts} hosts, {connection}, forks {forks}")
    except FleetError as error:
        print(f"fleet: {error}", file=sys.stderr)
        return 1
    print(f"ansible-core {metadata.version('ansible-core')}, {len(os.sched_getaffinity(0))} CPUs, idle before each round: {span(idle)}"
          f"{', canned answers' if options.canned else ''}.")
    if missing:
        print(f"Without docker_prune: {missing}")
    for title, taken in figures.items():
        print("", *table(title, taken), sep="\n")
    big = [(title, taken) for title, taken in figures.items() if int(title.split()[0]) >= AIM_HOSTS]
    for title, taken in big:
        seconds, cpu = taken[OURS].middle / taken[PING].middle, taken[OURS].middle_cpu / taken[PING].middle_cpu
        words = "met" if max(seconds, cpu) <= AIM else "missed"
        print(f"\n{title}: at most {AIM} of a ping: {words}, {seconds:.2f} by the clock, {cpu:.2f} of the controller's CPU")
    if options.json:
        options.json.write_text(json.dumps({"idle_cpus": idle, **{title: {name: series.to_json() for name, series in taken.items()}
                                                                  for title, taken in figures.items()}}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
