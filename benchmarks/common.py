# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the benchmarks share: what one contender took, how busy the machine was, tables as Markdown has them."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from tests.fleet import FleetError

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass
class Series:
    """What one contender took in all rounds, by the clock and of CPU."""

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def middle(self) -> float:
        return median(self.seconds)

    @property
    def middle_cpu(self) -> float:
        return median(self.cpu)

    @property
    def from_to(self) -> str:
        return f"{min(self.seconds):.2f}-{max(self.seconds):.2f}"

    def to_json(self) -> dict[str, Any]:
        return {"seconds": [round(value, 4) for value in self.seconds], "median": round(self.middle, 4), "cpu_median": round(self.middle_cpu, 4)}


def ansible_environment(folder: Path, peers: Path) -> dict[str, str]:
    """The environment of an Ansible that has nothing of its user's: it finds this collection and those in ``peers``, and keeps its things in ``folder``."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "DOCKER_"))}
    return {
        **environment,
        "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": f"{REPOSITORY / 'playbooks/collections'}:{peers}",
        "ANSIBLE_HOME": str(folder / "home"),
        "ANSIBLE_NOCOLOR": "1",
        # The connection stays open while objects are made.
        "ANSIBLE_SSH_ARGS": "-C -o ControlMaster=auto -o ControlPersist=1800s",
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
    }


def cpu_of_children() -> float:
    """Seconds of CPU of all processes that were started here and have ended; what the engine does for them is not among it."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def idle_cpus(seconds: float = 0.5) -> float:
    """How many of the machine's CPUs nobody uses at this moment, see proc_stat(5)."""
    def read() -> tuple[int, int]:
        ticks = [int(part) for part in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return ticks[3] + ticks[4], sum(ticks)

    idle, every = read()
    time.sleep(seconds)
    idle_then, every_then = read()
    return (idle_then - idle) / max(1, every_then - every) * (os.cpu_count() or 1)


def span(idle: Sequence[float]) -> str:
    """How idle the machine was, over all that was measured."""
    return f"{min(idle)} to {max(idle)}, median {median(idle):.1f}"


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table as Markdown has it: the first row is the head, the first column stands to the left."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["| " + " | ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]) + " |" for row in rows]
    lines.insert(1, "| " + " | ".join(["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]) + " |")
    return lines


_BEGAN = time.monotonic()


def say(text: str) -> None:
    """Tell whoever waits what was done."""
    print(f"{time.monotonic() - _BEGAN:4.0f} s  {text}", file=sys.stderr, flush=True)


def wait_for(what: Callable[[], object], words: str, seconds: float = 60) -> None:
    """Wait until something is so, which ``words`` say; raises :class:`FleetError` when it does not come true."""
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            raise FleetError(f"after {seconds:.0f} s it is not so that {words}")
        time.sleep(0.02)
