# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How fast docker_disk_report is, beside ``du -sx`` and ``docker system df -v`` on the same host: ratios, never a limit in seconds.

    make bench-report                              # all of it, on a host that is made for it and gone afterwards
    .venv/bin/python benchmarks/report.py --help   # smaller, or on a host that stays for the next run

One host with a million files in 300 images, 200 containers and 200 volumes. Everything is measured in turn and in several rounds, so that
what else the machine does meets all alike; what is shown is the median, and the least and the most. The module runs as its own process in
the host, as Ansible starts it there, but without the controller. "Start-up" is the module asked for nothing (``include: []``): Python, its
imports and one question to the engine, which no host of any size can save; "work" is a run less that.

With a cold cache the kernel has forgotten all files of the machine (drop_caches), the programs' own too. The disk below the machine may
remember some of them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from benchmarks import common  # noqa: E402
from benchmarks.common import cpu_of_children, idle_cpus, markdown, say  # noqa: E402
from tests.fleet import Fleet, FleetError, Host, HostSpec  # noqa: E402
from tests.fleet.crowded import Crowd, crowd  # noqa: E402
from tests.fleet.system import die_with_parent  # noqa: E402
from tests.integration.bare import Bare, Outcome  # noqa: E402

STATE = "/var/lib/fleetclean"
DU, DF, STARTUP = "du -sx", "docker system df -v", "start-up (include: [])"
FAST, FIRST, SECOND = "fast", "exact, first", "exact, second"
ROUGH = ", not gentle"
#: The aims: what, on which cache, against what, at most.
AIMS = ((FAST, "warm", DU, 0.1), (FAST, "warm", DF, 1.0), (FAST, "cold", DF, 1.0), (FIRST, "warm", DU, 1.0), (FIRST, "cold", DU, 1.0),
        (SECOND, "warm", DU, 0.1), (SECOND, "cold", DU, 0.1))
MB = 1_000_000


@dataclass
class Series(common.Series):
    """What one contender took in all rounds."""

    memory: int = 0
    processes: list[int] = field(default_factory=list)

    def add(self, seconds: float, cpu: float, outcome: Optional[Outcome] = None) -> None:
        self.seconds.append(seconds)
        self.cpu.append(cpu)
        if outcome:
            self.memory = max(self.memory, outcome.peak, outcome.workers_peak)
            self.processes.append(outcome.result.get("measured", {}).get("processes", 0))

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "peak_bytes": self.memory or None, "processes": self.processes}


@dataclass(frozen=True)
class Contender:
    name: str
    run: Callable[[], Optional[Outcome]]
    #: What has to be so before, and is not timed.
    before: Callable[[], None] = lambda: None


def contenders(host: Host) -> Iterator[Contender]:
    """Those that are measured, in their order: the second exact run finds what the first remembered."""
    bare = Bare(host)

    def forget() -> None:
        host.exec(["rm", "-rf", STATE])

    def module(**options: Any) -> Callable[[], Outcome]:
        return lambda: bare.run(state_dir=STATE, **options)

    def du() -> None:
        host.exec(["du", "-sx", host.data_root], timeout=600)

    def df() -> None:
        host.docker("system", "df", "-v")

    yield Contender(DU, du)
    yield Contender(DF, df)
    yield Contender(STARTUP, module(include=[]))
    for rough in ("", ROUGH):
        gentle = not rough
        yield Contender(FAST + rough, module(measure="fast", gentle=gentle))
        if knows_exact(bare):
            yield Contender(FIRST + rough, module(measure="exact", gentle=gentle), forget)
            yield Contender(SECOND + rough, module(measure="exact", gentle=gentle))


def knows_exact(bare: Bare) -> bool:
    try:
        bare.run(include=[], measure="exact")
    except AssertionError:
        return False
    return True


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def measure(host: Host, rounds: int, cold: bool, idle: list[float]) -> dict[str, Series]:
    """Each contender ``rounds`` times, in turn; how idle the machine was before each round is added to ``idle``."""
    field_of = list(contenders(host))
    taken: dict[str, Series] = {contender.name: Series() for contender in field_of}
    # With a warm cache the first round only warms it.
    for number in range(rounds if cold else rounds + 1):
        if cold or number:
            idle.append(round(idle_cpus(), 1))
        for contender in field_of:
            contender.before()
            if cold:
                drop_caches()
            used, began = cpu_of_children(), time.perf_counter()
            outcome = contender.run()
            seconds, cpu = time.perf_counter() - began, cpu_of_children() - used
            if cold or number:
                taken[contender.name].add(seconds, cpu, outcome)
        say(f"{'cold' if cold else 'warm'} cache, round {number}" + ("" if cold or number else " (not counted)"))
    return taken


def what_is_there(host: Host) -> dict[str, Any]:
    """What has been measured, and whether it is the same to all: nothing of the machine but its number of CPUs."""
    du = host.exec(["du", "-sxB1", host.data_root], timeout=600).stdout.split()[0]
    files = host.exec(["du", "-sx", "--inodes", host.data_root], timeout=600).stdout.split()[0]
    info = host.must("GET", "/info")
    bare = Bare(host)
    exact = bare.run(state_dir=STATE, measure="exact").result if knows_exact(bare) else {}
    return {
        "files_and_folders": int(files), "images": info["Images"], "containers": info["Containers"], "volumes": len(host.must("GET", "/volumes")["Volumes"]),
        "filesystem": host.spec.filesystem, "driver": info["Driver"], "engine": info["ServerVersion"],
        "cpus": len(os.sched_getaffinity(0)), "du_bytes": int(du), "exact_bytes": exact.get("totals", {}).get("disk_bytes"),
        "exact": exact.get("measured"),
    }


def table(title: str, taken: dict[str, Series]) -> list[str]:
    """A table of at most 100 columns, as Markdown has it."""
    du, df, startup = taken[DU].middle, taken[DF].middle, taken[STARTUP].middle
    rows = [[title, "seconds", "from-to", "/ du", "/ df", "work / du", "/ df", "CPU s", "MB"]]
    for name, series in taken.items():
        work = max(0.0, series.middle - startup)
        ours = name not in (DU, DF, STARTUP)
        rows.append([
            name, f"{series.middle:.2f}", series.from_to, f"{series.middle / du:.2f}",
            f"{series.middle / df:.2f}", f"{work / du:.2f}" if ours else "", f"{work / df:.2f}" if ours else "", f"{series.middle_cpu:.2f}",
            f"{series.memory / MB:.0f}" if series.memory else ""])
    return markdown(rows)


def aims(by_cache: dict[str, dict[str, Series]]) -> list[str]:
    """What was aimed at, and what came of it, as a whole and without the start-up."""
    lines = []
    for name, cache, other, most in AIMS:
        taken = by_cache.get(cache, {})
        if name in taken:
            against = taken[other].middle
            whole = taken[name].middle / against
            work = max(0.0, taken[name].middle - taken[STARTUP].middle) / against
            met = "met" if whole <= most else "met without start-up" if work <= most else "missed"
            lines.append(f"{name}, {cache}: {whole:.2f} of {other}, {work:.2f} without start-up; aim {most:g}: {met}")
    return lines


@contextmanager
def the_host(directory: Optional[Path], wanted: Crowd, filesystem: str) -> Iterator[Host]:
    """The crowded host: one for this run, or one that stays in ``directory``."""
    # Sparse; ext4 makes one inode for 16 KiB of it.
    spec = HostSpec("bench", filesystem, data_size="40G", ssh=False)
    if directory is None:
        with Fleet([spec]) as fleet:
            crowd(fleet["bench"], wanted)
            yield fleet["bench"]
        return
    ready = directory / "crowded"
    try:
        fleet = Fleet.attach(directory)
    except FleetError:
        fleet = Fleet([spec], directory)
        fleet.up()
    if not ready.exists():
        crowd(fleet["bench"], wanted)
        ready.touch()
    yield fleet["bench"]


def main() -> int:
    parser = argparse.ArgumentParser(description="docker_disk_report beside du -sx and docker system df -v: ratios of one run (needs root).")
    parser.add_argument("--rounds", type=int, default=5, help="with a warm cache (default: %(default)s)")
    parser.add_argument("--cold-rounds", type=int, default=3, help="with a cold cache (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of files in images (default: %(default)s, a million)")
    parser.add_argument("--filesystem", default="ext4", help="of the data root (default: %(default)s)")
    parser.add_argument("--dir", type=Path, help="keep the host in this folder for the next run; end it with: python3 -m tests.fleet down --dir DIR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--profile", choices=("fast", "exact"), help="measure nothing, show where the module spends its time")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root, for the throwaway host")
    die_with_parent(os.getppid())
    wanted = Crowd(images=300, layers=3, files=int(1096 * options.scale), containers=200, container_files=20, volumes=200, volume_files=50)
    say(f"a host with {wanted.all_files:,} files in {wanted.images} images, {wanted.containers} containers and {wanted.volumes} volumes")
    try:
        with the_host(options.dir, wanted, options.filesystem) as host:
            say("it is there")
            if options.profile:
                return profile(host, options.profile)
            there = what_is_there(host)
            by_cache: dict[str, dict[str, Series]] = {}
            idle: dict[str, list[float]] = {}
            for cache, rounds in (("warm", options.rounds), ("cold", options.cold_rounds)):
                if rounds:
                    idle[cache] = []
                    by_cache[cache] = measure(host, rounds, cache == "cold", idle[cache])
    except FleetError as error:
        print(f"report: {error}", file=sys.stderr)
        return 1
    print(f"{there['files_and_folders']:,} files and folders, {there['images']} images, {there['containers']} containers, {there['volumes']} volumes; "
          f"{there['filesystem']},\n{there['driver']}, Engine {there['engine']}, {there['cpus']} CPUs. "
          f"Bytes: du {there['du_bytes']:,}, exact {there['exact_bytes'] or 0:,}.")
    for cache, taken in by_cache.items():
        print("", *table(f"{cache} cache", taken), sep="\n")
        # Several processes gain nothing where others have the CPUs.
        print(f"\nidle CPUs before each round: {', '.join(map(str, idle[cache]))}")
        if FIRST in taken:
            print(f"{FIRST}: walked with {', '.join(map(str, taken[FIRST].processes))} processes")
    print("", *aims(by_cache), sep="\n")
    if options.json:
        figures = {"host": there, "idle_cpus": idle, **{cache: {name: series.to_json() for name, series in taken.items()} for cache, taken in by_cache.items()}}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def profile(host: Host, mode: str) -> int:
    """Print where one run spends its time; what it does in other processes is not seen."""
    import pstats

    inside = "/run/bare/profile"
    Bare(host).run(state_dir=f"{STATE}-profile", measure=mode, profile=inside)
    statistics = pstats.Stats(str(host.path(inside)))
    statistics.strip_dirs().sort_stats("cumulative").print_stats(45)
    statistics.sort_stats("tottime").print_stats(25)
    return 0


if __name__ == "__main__":
    sys.exit(main())
