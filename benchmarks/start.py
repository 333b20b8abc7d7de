# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a module costs before it does anything, beside ``ansible.builtin.stat``: ratios, never a limit in seconds.

    make bench-start                               # on a host that is made for it and gone afterwards
    .venv/bin/python benchmarks/start.py --help    # more rounds, or another collection beside this one

Each contender is the file that Ansible sends for a call, as its own process in a throwaway host, which reads it from its standard input as with
pipelining. So Ansible's own unpacking is in it, as it is in that of ``stat``; the connection and the controller are not. ``--before`` names a checkout of
an earlier release, whose modules are measured in turn with these.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from benchmarks.common import Series, cpu_of_children, idle_cpus, markdown, say, span  # noqa: E402
from tests.fleet import Fleet, Host, HostSpec  # noqa: E402

STAT, PING = "stat", "ping"
#: Times what ``stat`` takes, by the clock and of CPU, that a module may take which is asked for nothing.
AIM = 1.3
SECTIONS = ("containers", "images", "volumes", "networks", "build_cache")
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    STAT: ("ansible.builtin.stat", {"path": "/"}),
    PING: ("ansible.builtin.ping", {}),
    "docker_disk_report, include: []": ("fleetclean.docker.docker_disk_report", {"include": []}),
    "docker_clean, no section": ("fleetclean.docker.docker_clean", {}),
    "docker_clean, nothing that old": ("fleetclean.docker.docker_clean", {name: {"older_than": "7d"} for name in SECTIONS}),
    "docker_log_truncate, no container": ("fleetclean.docker.docker_log_truncate", {"containers": []}),
    "docker_disk_report, empty host": ("fleetclean.docker.docker_disk_report", {}),
}
#: Those that are asked for nothing.
IDLE = ("docker_disk_report, include: []", "docker_clean, no section", "docker_log_truncate, no container")
#: What Ansible's action plugins send for a module, by its name and arguments; also without an action plugin of the module's own.
_PACK = """
import json, sys
from ansible.executor.module_common import modify_module
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader, module_loader
from ansible.template import Templar
init_plugin_loader([sys.argv[1]])
arguments = {**json.loads(sys.argv[3]), "_ansible_remote_tmp": "/dev/shm", "_ansible_keep_remote_files": False}
path = module_loader.find_plugin_with_context(sys.argv[2]).plugin_resolved_path
variables = {"ansible_python_interpreter": "/usr/bin/python3"}
built = modify_module(module_name=sys.argv[2], module_path=path, module_args=arguments, templar=Templar(DataLoader(), variables),
                      task_vars=variables, module_compression="ZIP_DEFLATED")
sys.stdout.buffer.write(built[0] if isinstance(built, tuple) else built.b_module_data)
"""


def pack(repository: Path, module: str, arguments: dict[str, Any]) -> bytes:
    """The bytes that Ansible sends for a call of a module of this checkout."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    command = [sys.executable, "-c", _PACK, str(repository / "playbooks/collections"), module, json.dumps(arguments)]
    return subprocess.run(command, env=environment, capture_output=True, check=True).stdout


def run(host: Host, payload: Path) -> tuple[float, float, dict[str, Any]]:
    """Start a module, and return its seconds by the clock and of CPU, and its result."""
    cpu, began = cpu_of_children(), time.monotonic()
    with payload.open("rb") as stdin:
        done = subprocess.run(host.command(["/usr/bin/python3"], {"TMPDIR": "/dev/shm"}), stdin=stdin, capture_output=True, check=False)
    seconds = time.monotonic() - began
    return seconds, cpu_of_children() - cpu, json.loads(done.stdout[done.stdout.index(b"{"):])


@contextmanager
def a_host() -> Iterator[Host]:
    with Fleet([HostSpec("start", ssh=False)]) as fleet:
        yield fleet["start"]


def measure(host: Host, contenders: dict[str, bytes], rounds: int, idle: list[float]) -> dict[str, Series]:
    """Run each of them in turn, in another order in each round."""
    series = {name: Series() for name in contenders}
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / str(number) for number, name in enumerate(contenders)}
        for name, payload in contenders.items():
            files[name].write_bytes(payload)
            run(host, files[name])
        for number in range(rounds):
            idle.append(round(idle_cpus(), 1))
            for name in random.sample(list(contenders), len(contenders)):
                seconds, cpu, _result = run(host, files[name])
                series[name].seconds.append(seconds)
                series[name].cpu.append(cpu)
            say(f"round {number + 1} of {rounds}")
    return series


def table(series: dict[str, Series], sizes: dict[str, int]) -> list[str]:
    """Seconds and CPU beside those of ``stat``, and the bytes of a call."""
    base = series[STAT]
    rows = [["one call", "seconds", "from-to", "/ stat", "CPU s", "/ stat", "kB sent"]]
    for name, found in series.items():
        rows.append([
            name, f"{found.middle:.3f}", found.from_to, f"{found.middle / base.middle:.2f}", f"{found.middle_cpu:.3f}",
            f"{found.middle_cpu / base.middle_cpu:.2f}", f"{sizes[name] / 1000:.0f}",
        ])
    return markdown(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--before", type=Path, help="a checkout to compare with")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    contenders = {name: pack(REPOSITORY, *call) for name, call in CALLS.items()}
    if options.before:
        ours = {name: call for name, call in CALLS.items() if call[0].startswith("fleetclean.")}
        contenders.update({f"before: {name}": pack(options.before.resolve(), *call) for name, call in ours.items()})
    idle: list[float] = []
    with a_host() as host:
        series = measure(host, contenders, options.rounds, idle)
    sizes = {name: len(payload) for name, payload in contenders.items()}
    print("\n".join(table(series, sizes)))
    base = series[STAT]
    ratios = {name: max(series[name].middle / base.middle, series[name].middle_cpu / base.middle_cpu) for name in IDLE}
    print(f"\nIdle CPUs before each round: {span(idle)}. At most {AIM} times stat: "
          + ", ".join(f"{name} {'met' if ratio <= AIM else 'missed'} ({ratio:.2f})" for name, ratio in ratios.items()))
    if options.json:
        figures = {name: {**found.to_json(), "sent_bytes": sizes[name]} for name, found in series.items()}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
