# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How docker_log_truncate shortens a large log, beside the ways people do it by hand: ratios, never a limit in seconds.

    make bench-logs                                           # 5 GB logs on ext4, xfs and btrfs
    make bench-logs ARGS='--size 250M --quick'                # the same in small, each once
    .venv/bin/python benchmarks/logs.py --help

One container's json-file log is made anew for each contender: while the container stands still, since the engine remembers how far it has
written; then the container starts, prints nothing, and the engine holds its log open. What is asked for is its newest 10 MB.

``truncate -s 0``
    keeps nothing; the quickest there can be.
copy-truncate
    ``tail -c 10M`` into a file, ``truncate -s 0``, and the file is written back: what a script does that wants to keep something.
logrotate
    with ``copytruncate``, if this machine has it; else what it does (a whole copy, then ``truncate -s 0``), which is said.
docker_log_truncate
    the module as its own process in the host, as Ansible starts it there, but without the controller. "The cut" is the same decision and the
    same deed without the start-up, "start-up" the module once more, with nothing to do.

Nobody prints when seconds and disk space are measured. The space is asked for again and again meanwhile: "extra" is what was missing at the
worst moment, "freed" what there is more of in the end. Then the container prints a little, and ``docker logs`` has to show it. Lines are counted
on smaller logs, with a container that prints numbered ones as fast as the engine takes them: lost is what is neither in the log nor in a copy,
of all that followed a line that stayed, and of the newest 10 MB at a contender's end.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Optional

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from benchmarks import common  # noqa: E402
from benchmarks.common import cpu_of_children, idle_cpus, markdown, say, span, wait_for  # noqa: E402
from tests.fleet import Fleet, FleetError, Host, HostSpec  # noqa: E402
from tests.fleet.dirty import load_image  # noqa: E402
from tests.fleet.host import FILESYSTEMS, size_bytes  # noqa: E402
from tests.fleet.system import die_with_parent  # noqa: E402
from tests.integration.bare import Bare  # noqa: E402

TRUNCATE, COPY, ROTATE = "truncate -s 0", "copy-truncate", "logrotate, copytruncate"
IMITATED = "logrotate's way, imitated"
MODULE, CUT, STARTUP = "docker_log_truncate", "the cut alone", "start-up, nothing to do"
KEEP = 10 << 20
MB = 1_000_000
NAME = "printer"
#: Seconds that readers are given to show what they should.
PATIENCE = 20
#: Seconds that a cut may take.
CUT_AIM = 1.0
# What was there before anybody prints: records as the engine writes them.
_OLD = json.dumps({"log": f"old {'x' * 200}\n", "stream": "stdout", "time": "2024-01-01T00:00:00.123456789Z"}, separators=(",", ":")).encode() + b"\n"
_NUMBERED = re.compile(rb'\{"log":"L(\d+) (\d+) x+ \2\.\\n","stream":"stdout","time":"[^"]+"\}')
# Prints numbered lines, as fast as they are taken, from the moment when somebody writes a run's number into one file until there is another.
_PRINTER = """
while read run <>/w/go; do
    n=0
    until [ -e /w/stop ]; do
        i=0
        while [ $i -lt 500 ]; do n=$((n+1)); i=$((i+1)); echo "L$run $n {pad} $n."; done
    done
    echo $n >/w/new
    /bin/busybox mv /w/new /w/last
done
"""
_BTRFS_FS_INFO = 0x8400941F
# Decides and cuts as the module does, without its start-up.
_CUTTER = r"""
import json, sys, time

archive, root, ident, major, keep = sys.argv[1:]
sys.path.insert(0, archive)
from ansible_collections.fleetclean.docker.plugins.module_utils import log_cuts, log_holders, logs

began, used = time.perf_counter(), time.process_time()
holders = log_holders.Holders(root)
with logs.claim(root, ident, logs.JSON_FILE) as descriptor:
    held = holders.of(descriptor)
    writer = log_cuts.Writer(bool(held), all(log.appends for log in held))
    plans, why = log_cuts.decide(descriptor, logs.JSON_FILE.format, writer, int(major), int(keep), int(keep))
    log_cuts.carry_out(descriptor, logs.JSON_FILE.format, plans, None)
print(json.dumps([time.perf_counter() - began, time.process_time() - used]))
"""


@dataclass
class Quiet(common.Series):
    """What one contender took on a log that nobody writes at that moment, and what readers say afterwards."""

    extra: list[int] = field(default_factory=list)
    freed: list[int] = field(default_factory=list)
    readers: list[dict[str, str]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "extra": self.extra, "freed": self.freed, "readers": self.readers}


@dataclass
class Busy(common.Series):
    """The same under a container that prints; ``printed``, ``lost``, ``torn`` and ``disordered`` are lines, one number for each round."""

    printed: list[int] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    torn: list[int] = field(default_factory=list)
    disordered: list[int] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "printed": self.printed, "lost": self.lost, "torn": self.torn, "disordered": self.disordered}


class Log:
    """One container and its log, which can be made as large as wanted."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._words = host.path("/run/printer")
        self._words.mkdir()
        os.mkfifo(self._words / "go")
        load_image(host, "bench/base:1", {})
        self.ident = str(host.must("POST", f"/containers/create?name={NAME}", {
            "Image": "bench/base:1", "Cmd": ["/bin/sh", "-c", _PRINTER.format(pad="x" * 180)],
            "HostConfig": {"NetworkMode": "none", "Binds": ["/run/printer:/w"]}})["Id"])
        self.inside = f"{host.data_root}/containers/{self.ident}/{self.ident}-json.log"
        self.path = host.path(self.inside)
        #: Which run of lines the newest is.
        self.run = 0
        self.spoilt = False

    @property
    def copies(self) -> list[Path]:
        """What contenders put beside it."""
        return [path for path in self.path.parent.iterdir() if path.name.startswith(f"{self.path.name}.")]

    def fill(self, size: int) -> None:
        """Begin anew with old lines of so many bytes, of which nothing is in memory; the container runs and prints nothing."""
        if self.run:
            self.host.must("POST", f"/containers/{self.ident}/kill")
            self.host.must("POST", f"/containers/{self.ident}/wait")
        if self.spoilt:
            # Readers that hang keep an engine busy.
            self.host.restart_engine()
            self.spoilt = False
        for copy in self.copies:
            copy.unlink()
        piece = _OLD * (MB // len(_OLD))
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_TRUNC | os.O_CREAT, 0o640)
        try:
            for number in range(size // len(piece)):
                os.write(descriptor, piece)
                # A log grows for weeks: its extents are many.
                if number % 16 == 15:
                    os.fdatasync(descriptor)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
        self.host.must("POST", f"/containers/{self.ident}/start")
        self.settle()

    def settle(self) -> None:
        self.host.exec(["sync", "--file-system", self.host.data_root], timeout=600)

    def begin(self) -> None:
        """Let the container print, as fast as it can."""
        self.run += 1
        for name in ("stop", "last"):
            (self._words / name).unlink(missing_ok=True)
        (self._words / "go").write_text(f"{self.run}\n")

    def hush(self) -> int:
        """Let it print no more; the number of its last line, once that is in the log."""
        (self._words / "stop").touch()
        wait_for((self._words / "last").exists, "the container is silent")
        number = int((self._words / "last").read_text())
        wait_for(lambda: self.newest() == number, "the last line is in the log")
        return number

    def newest(self) -> int:
        """The number of the newest line in the log."""
        found = _NUMBERED.findall(tail(self.path, 1 << 16))
        return int(found[-1][1]) if found and int(found[-1][0]) == self.run else 0


def tail(path: Path, most: int) -> bytes:
    with open(path, "rb") as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - most))
        return stream.read()


# -- contenders --------------------------------------------------------------------------------

#: Does it, and says its seconds and its CPU's if the clock outside would tell more than that.
Deed = Callable[[Log], Optional[tuple[float, float]]]


def by_shell(script: str, log: Log) -> None:
    log.host.exec(["sh", "-ec", script, "sh", log.inside], timeout=1800)


def by_logrotate(folder: Path, log: Log) -> None:
    """Rotate once: from outside the host, since no host has it."""
    configuration = folder / "logrotate.conf"
    configuration.write_text(f"{log.path} {{\n copytruncate\n rotate 1\n nocompress\n}}\n")
    subprocess.run(["logrotate", "--force", "--state", str(folder / "state"), str(configuration)], check=True, capture_output=True, timeout=1800)


def by_module(bare: Bare, log: Log) -> None:
    bare.run(containers=[NAME], keep=str(KEEP), stale_readers="allow")


def by_parts(major: int, log: Log) -> tuple[float, float]:
    done = log.host.exec([log.host.python, "-c", _CUTTER, "/run/bare/module.zip", log.host.data_root, log.ident, str(major), str(KEEP)])
    seconds, cpu = json.loads(done.stdout)
    return seconds, cpu


def contenders(host: Host, folder: Path) -> dict[str, Deed]:
    major = int(host.must("GET", "/version")["Version"].split(".")[0])
    rotate: dict[str, Deed] = {ROTATE: partial(by_logrotate, folder)} if shutil.which("logrotate") else {
        IMITATED: partial(by_shell, 'cp --reflink=never "$1" "$1.1"; truncate -s 0 "$1"')}
    return {
        TRUNCATE: partial(by_shell, 'truncate -s 0 "$1"'),
        COPY: partial(by_shell, 'tail -c 10M "$1" >"$1.copy"; truncate -s 0 "$1"; cat "$1.copy" >>"$1"; rm "$1.copy"'),
        **rotate,
        MODULE: partial(by_module, Bare(host, "docker_log_truncate")),
        CUT: partial(by_parts, major),
    }


# -- measuring ---------------------------------------------------------------------------------


class Least(threading.Thread):
    """Asks a filesystem a thousand times a second for its free bytes, and remembers the ``least``."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self._folder = os.open(folder, os.O_RDONLY)
        self._promised = promised(self._folder)
        self._end = threading.Event()
        self.least = self.free()
        self.start()

    def free(self) -> int:
        figures = os.statvfs(self._folder)
        return figures.f_bfree * figures.f_frsize - sum(int(path.read_text()) for path in self._promised)

    def run(self) -> None:
        while not self._end.wait(0.001):
            self.least = min(self.least, self.free())

    def stop(self) -> None:
        self._end.set()
        self.join()
        os.close(self._folder)


def promised(folder: int) -> list[Path]:
    """Where btrfs says what it has promised to files and not written yet, which statvfs leaves out there (and nowhere else)."""
    about = bytearray(1024)
    try:
        fcntl.ioctl(folder, _BTRFS_FS_INFO, about)
    except OSError:
        return []
    return [Path(f"/sys/fs/btrfs/{uuid.UUID(bytes=bytes(about[16:32]))}/allocation/data/bytes_{what}") for what in ("may_use", "reserved")]


@contextmanager
def least(folder: Path) -> Iterator[Least]:
    watcher = Least(folder)
    try:
        yield watcher
    finally:
        watcher.stop()


def timed(deed: Deed, log: Log, into: common.Series) -> None:
    used, began = cpu_of_children(), time.perf_counter()
    said = deed(log)
    seconds, cpu = time.perf_counter() - began, cpu_of_children() - used
    into.seconds.append(said[0] if said else seconds)
    into.cpu.append(said[1] if said else cpu)


def quiet(log: Log, deed: Deed, into: Quiet) -> None:
    """Seconds and disk space, and then the readers."""
    with following(log) as shown:
        log.settle()
        with least(log.host.path(log.host.data_root)) as watcher:
            before = watcher.free()
            timed(deed, log, into)
            log.settle()
            into.extra.append(max(0, before - watcher.least))
            into.freed.append(watcher.free() - before)
        into.readers.append(what_readers_say(log, shown))


@contextmanager
def following(log: Log) -> Iterator[Path]:
    """`docker logs -f`, from the last line on; the file that it prints to."""
    with tempfile.NamedTemporaryFile(prefix="fleetclean-bench-", dir="/dev/shm") as printed:
        client = log.host.popen(["/usr/bin/docker", "logs", "-f", "--tail", "1", NAME], stdin=subprocess.DEVNULL, stdout=printed, stderr=subprocess.STDOUT)
        try:
            wait_for(lambda: os.path.getsize(printed.name), "docker logs -f shows the last line")
            yield Path(printed.name)
        finally:
            client.kill()
            client.wait()


def what_readers_say(log: Log, shown: Path) -> dict[str, str]:
    """Whether `docker logs` in its ways shows what is in the log, in which the container prints some more lines now."""
    log.begin()
    time.sleep(0.1)
    sign = f"L{log.run} {log.hush()} ".encode()
    end = time.monotonic() + PATIENCE
    wanted = [str(record["log"]) for record in records(tail(log.path, 256 << 20))]
    said = {"--tail": of_tail(log, wanted[-10:]), "-f": "silent"}
    while said["-f"] == "silent":
        if sign in tail(shown, 4096):
            said["-f"] = "repeats" if shown.read_bytes().count(b"old ") > 1 else "ok"
        if time.monotonic() > end:
            break
        time.sleep(0.1)
    said["all"] = of_all(log, wanted)
    log.spoilt = said["--tail"] != "ok" or said["-f"] == "silent"
    return said


def records(text: bytes) -> Iterator[dict[str, Any]]:
    """The records of a log that somebody would see."""
    for line in text.split(b"\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue  # half a line
        if "stream" in record:
            yield record


def of_tail(log: Log, wanted: list[str]) -> str:
    try:
        done = log.host.docker("logs", "--tail", "10", NAME, check=False, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return "hangs"
    return "ok" if done.stdout == "".join(wanted) else "silent" if not done.stdout else "wrong"


def of_all(log: Log, wanted: list[str]) -> str:
    began = time.perf_counter()
    try:
        done = log.host.docker("logs", NAME, check=False, timeout=900)
    except subprocess.TimeoutExpired:
        return "hangs"
    seconds = time.perf_counter() - began
    shown = done.stdout.splitlines(keepends=True)
    if shown == wanted:
        return f"ok, {seconds:.1f} s"
    return f"shows {len(shown)} of {len(wanted)}"


def busy(log: Log, deed: Deed, into: Busy) -> None:
    """Lines, under a container that prints all the time."""
    begin = log.path.stat().st_size
    log.begin()
    wait_for(lambda: log.path.stat().st_size > begin + 2 * KEEP, "the container has printed a good deal")
    before, size = log.newest(), log.path.stat().st_size
    timed(deed, log, into)
    # Of a log that was emptied this very moment the newest line cannot be told.
    after, shorter = max(before, log.newest()), log.path.stat().st_size < size
    time.sleep(0.5)
    last = log.hush()
    log.settle()
    numbers, torn = numbered(log.path, log.run, 0 if shorter else begin)
    there = set(numbers)
    for copy in log.copies:
        there.update(numbered(copy, log.run, begin)[0])
    # At least what was the newest 10 MB in the end has to be there, and all that follows a line that was kept.
    longest = len(tail(log.path, 1 << 16).rstrip(b"\n").rpartition(b"\n")[2]) + 1
    first = max(1, min(min(there), after - KEEP // longest + 2))
    into.printed.append(after - before)
    into.lost.append(last - first + 1 - sum(first <= number <= last for number in there))
    into.torn.append(torn)
    into.disordered.append(sum(later <= earlier for earlier, later in zip(numbers, numbers[1:])))


def numbered(path: Path, run: int, begin: int) -> tuple[list[int], int]:
    """The numbers of a life's lines in a file from ``begin`` on, and how many lines are no records, before the last one ends."""
    numbers, torn = [], 0
    with open(path, "rb") as stream:
        stream.seek(begin)
        for line in stream:
            match = _NUMBERED.fullmatch(line.strip(b" \n"))
            if match:
                if int(match[1]) == run:
                    numbers.append(int(match[2]))
            elif line.endswith(b"\n") and line != _OLD and line.strip() and not record(line):
                torn += 1
    return numbers, torn


def record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


@dataclass
class Measured:
    """All of one filesystem, by contender's name."""

    engine: str
    quiet: dict[str, Quiet] = field(default_factory=dict)
    busy: dict[str, Busy] = field(default_factory=dict)


def measure(host: Host, folder: Path, sizes: tuple[int, int], rounds: int, idle: list[float]) -> Measured:
    """Each contender ``rounds`` times, in another order each time; how idle the machine was before each is added to ``idle``."""
    here = contenders(host, folder)
    log = Log(host)
    taken = Measured(host.must("GET", "/version")["Version"])
    taken.quiet = {name: Quiet() for name in (*here, STARTUP)}
    taken.busy = {name: Busy() for name in here if name != CUT}
    order = list(here)
    for number in range(rounds):
        random.shuffle(order)
        for name in order:
            log.fill(sizes[0])
            idle.append(round(idle_cpus(), 1))
            quiet(log, here[name], taken.quiet[name])
            if name == MODULE:
                timed(here[name], log, taken.quiet[STARTUP])
            say(f"{host.spec.filesystem}, round {number + 1} of {rounds}: {name} {taken.quiet[name].seconds[-1]:.2f}")
        for name in order:
            if name in taken.busy:
                log.fill(sizes[1])
                busy(log, here[name], taken.busy[name])
        say(f"{host.spec.filesystem}, round {number + 1} of {rounds}, lost: " + ", ".join(f"{name} {series.lost[-1]}" for name, series in taken.busy.items()))
    return taken


# -- saying ------------------------------------------------------------------------------------


def quiet_table(title: str, taken: dict[str, Quiet]) -> list[str]:
    truncate, copy = taken[TRUNCATE].middle, taken[COPY].middle
    rows = [[title, "seconds", "from-to", "/ truncate", "/ copy", "CPU s", "extra MB", "freed MB", "--tail 10", "-f", "docker logs"]]
    for name, series in taken.items():
        disk = [f"{max(series.extra) / MB:.1f}", f"{round(median(series.freed) / MB)}"] if series.freed else ["", ""]
        rows.append([name, f"{series.middle:.2f}", series.from_to, f"{series.middle / truncate:.1f}", f"{series.middle / copy:.2f}",
                     f"{series.middle_cpu:.2f}", *disk, *(said(series.readers, how) for how in ("--tail", "-f", "all"))])
    return markdown(of_rounds(rows, taken[TRUNCATE]))


def of_rounds(rows: list[list[str]], series: common.Series) -> list[list[str]]:
    """Without from-to (the third column) where there was one round."""
    return rows if len(series.seconds) > 1 else [[*row[:2], *row[3:]] for row in rows]


def said(readers: list[dict[str, str]], how: str) -> str:
    return " or ".join(sorted({words[how] for words in readers}))


def busy_table(measured: dict[str, Measured]) -> list[str]:
    rows = [["under a container that prints", "seconds", "from-to", "lines meanwhile", "lost", "torn", "out of order"]]
    for filesystem, taken in measured.items():
        for name, series in taken.busy.items():
            rows.append([f"{filesystem}, {name}", f"{series.middle:.2f}", series.from_to, f"{median(series.printed):,.0f}",
                         each(series.lost), each(series.torn), each(series.disordered)])
    return markdown(of_rounds(rows, next(iter(measured.values())).busy[TRUNCATE]))


def each(numbers: list[int]) -> str:
    return f"{numbers[0]:,}" if min(numbers) == max(numbers) else f"{min(numbers):,}-{max(numbers):,}"


def aims(measured: dict[str, Measured]) -> Iterator[str]:
    """What was aimed at, and what came of it."""
    for filesystem, taken in measured.items():
        cut, whole = taken.quiet[CUT], taken.quiet[MODULE]
        yield f"{filesystem}: the cut alone {cut.middle:.2f} s; aim under {CUT_AIM:g}: {met(cut.middle < CUT_AIM)}"
        yield f"{filesystem}: the module's process {whole.middle:.2f} s; aim under {CUT_AIM:g}: {met(whole.middle < CUT_AIM)}"
        extra = max(cut.extra + whole.extra)
        yield f"{filesystem}: {extra / MB:.1f} MB of disk more at the worst moment; aim 0: {met(not extra)}"
        lost = sum(taken.busy[MODULE].lost)
        yield f"{filesystem}: {lost} lines lost; aim 0: {met(not lost)}"


def met(right: bool) -> str:
    return "met" if right else "missed"


def main() -> int:
    parser = argparse.ArgumentParser(description="docker_log_truncate beside truncate, copy-truncate and logrotate: ratios of one run (needs root).")
    parser.add_argument("--size", default="5G", help="of a log (default: %(default)s)")
    parser.add_argument("--printing-size", default="500M", help="of a log into which a container prints all the time (default: %(default)s, at most --size)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--filesystems", nargs="+", choices=FILESYSTEMS, default=list(FILESYSTEMS), help="(default: all)")
    parser.add_argument("--root", default="trixie", help="whose engine, see make roots (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root, for the throwaway host")
    die_with_parent(os.getppid())
    size = size_bytes(options.size)
    sizes = size, min(size, size_bytes(options.printing_size))
    measured: dict[str, Measured] = {}
    idle: dict[str, list[float]] = {}
    try:
        for filesystem in options.filesystems:
            # Sparse. logrotate's way wants the log twice, and what is printed meanwhile as well.
            spec = HostSpec("bench", filesystem, root=options.root, data_size=2 * size + (4 << 30), ssh=False)
            idle[filesystem] = []
            with Fleet([spec]) as fleet, tempfile.TemporaryDirectory(prefix="fleetclean-bench-") as folder:
                measured[filesystem] = measure(fleet["bench"], Path(folder), sizes, 1 if options.quick else options.rounds, idle[filesystem])
    except FleetError as error:
        print(f"logs: {error}", file=sys.stderr)
        return 1
    print(f"A log of {size / MB:,.0f} MB is cut to {KEEP / MB:.1f} MB; Engine {next(iter(measured.values())).engine}, {len(os.sched_getaffinity(0))} CPUs.")
    for filesystem, taken in measured.items():
        print("", *quiet_table(f"{filesystem}, {size / MB:,.0f} MB", taken.quiet), sep="\n")
        print(f"\nidle CPUs before each: {span(idle[filesystem])}")
    print("", *busy_table(measured), sep="\n")
    print("", *aims(measured), sep="\n")
    if options.json:
        figures = {filesystem: {"engine": taken.engine, "idle_cpus": idle[filesystem],
                                "quiet": {name: series.to_json() for name, series in taken.quiet.items()},
                                "printing": {name: series.to_json() for name, series in taken.busy.items()}} for filesystem, taken in measured.items()}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
