# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A module's own process on a host, without the controller, so that its time and its memory can be told.

It runs as Ansible's wrapper runs it: out of a zip on a tmpfs, compiled anew each time, with its arguments on stdin.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, List, Tuple

import ansible

from tests.fleet import Host
from tests.fleet.system import children

REPOSITORY = Path(__file__).resolve().parents[2]
_FOLDER = "/run/bare"
# Prints the module's own result on stdout, and on stderr what it took, as JSON.
_RUNNER = r"""
import json, os, resource, runpy, sys

archive, module, profile = sys.argv[1:]
sys.path.insert(0, archive)
from ansible.module_utils import basic

basic._ANSIBLE_ARGS, basic._ANSIBLE_PROFILE = sys.stdin.buffer.read(), "legacy"
sys.argv = [module]
if profile:
    import cProfile
    profiler = cProfile.Profile()
    profiler.enable()
code = 0
try:
    runpy.run_module("ansible_collections.fleetclean.docker.plugins.modules." + module, run_name="__main__", alter_sys=True)
except SystemExit as end:
    code = end.code
if profile:
    profiler.dump_stats(profile)
with open("/proc/self/status") as status:
    # Not ru_maxrss, which remembers what the process was before it became this program.
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
own, below = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
took = {"peak": peak, "workers_peak": below.ru_maxrss * 1024, "cpu": own.ru_utime + own.ru_stime + below.ru_utime + below.ru_stime}
sys.stdout.flush()
sys.stderr.write("\n" + json.dumps(took))
sys.exit(code)
"""


@dataclass(frozen=True)
class Outcome:
    """A run's result, and what it took: seconds by the clock and of CPU, bytes of memory at the peak.

    ``peak``: of the module's process; ``workers_peak``: of the largest process that it started, pages that it shares with the module
    included; ``together``: of all at once, shared pages counted once, as far as it was watched (else 0).
    """

    result: Dict[str, Any]
    seconds: float
    cpu: float
    peak: int
    workers_peak: int
    together: int


class Bare:
    """Runs one module on ``host`` by itself."""

    def __init__(self, host: Host, module: str = "docker_disk_report") -> None:
        self.host = host
        self.module = module
        folder = host.path(_FOLDER)
        folder.mkdir(exist_ok=True)
        (folder / "module.zip").write_bytes(_packed())
        (folder / "run.py").write_text(_RUNNER)

    def run(self, watch: bool = False, profile: str = "", **options: Any) -> Outcome:
        """Run the module with these options; ``watch`` its memory (which slows it down), write a ``profile`` (a file's path in the host)."""
        outcome = self.start(watch, profile, **options).end()
        assert not outcome.result.get("failed"), {key: value for key, value in outcome.result.items() if key != "invocation"}
        return outcome

    def fails(self, **options: Any) -> Dict[str, Any]:
        """Run the module with these options, which it has to complain of; its result."""
        result = self.start(**options).end().result
        assert result.get("failed"), {key: value for key, value in result.items() if key != "invocation"}
        return result

    def start(self, watch: bool = False, profile: str = "", **options: Any) -> Started:
        """Start the module, and do not wait for it."""
        # As Ansible sends them.
        arguments = {"_ansible_module_name": f"fleetclean.docker.{self.module}", "_ansible_check_mode": False, "_ansible_remote_tmp": "/dev/shm",
                     "_ansible_tmpdir": None, **options}
        stdin = json.dumps({"ANSIBLE_MODULE_ARGS": arguments}).encode()
        command = self.host.command([self.host.python, f"{_FOLDER}/run.py", f"{_FOLDER}/module.zip", self.module, profile],
                                    env={"TMPDIR": "/dev/shm", "PYTHONDONTWRITEBYTECODE": "1"})
        return Started(self.module, command, stdin, watch)


def run_here(folder: Path, module: str, **options: Any) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """Run a module on this machine; what it said, and what it took (see ``_RUNNER``).

    :param folder: an empty one, for the module's files.
    """
    (folder / "module.zip").write_bytes(_packed())
    (folder / "run.py").write_text(_RUNNER)
    arguments = {"_ansible_module_name": f"fleetclean.docker.{module}", "_ansible_remote_tmp": str(folder), "_ansible_tmpdir": None, **options}
    command = [sys.executable, str(folder / "run.py"), str(folder / "module.zip"), module, ""]
    done = subprocess.run(command, input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}).encode(), capture_output=True, check=False, timeout=600)
    return json.loads(done.stdout), json.loads(done.stderr.decode().rpartition("\n")[2])


class Started:
    """A module that runs. ``process``: what leads into the host; the module's own process is its child."""

    def __init__(self, module: str, command: List[str], stdin: bytes, watch: bool) -> None:
        self._module = module
        self._began = time.perf_counter()
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._watcher = _Watcher(self.process.pid) if watch else None
        assert self.process.stdin
        # Whoever ends before it has read all is to be heard in end().
        with suppress(BrokenPipeError), self.process.stdin as stream:
            stream.write(stdin)
        self.process.stdin = None

    def end(self) -> Outcome:
        """Wait for its end; what it said, which may be that it failed."""
        with self.process:
            output, errors = self.process.communicate(timeout=600)
        seconds = time.perf_counter() - self._began
        together = self._watcher.stop() if self._watcher else 0
        said = errors.decode(errors="replace")
        try:
            result, took = json.loads(output), json.loads(said.rpartition("\n")[2])
        except ValueError:
            raise AssertionError(f"{self._module} ended with {self.process.returncode}: {output.decode(errors='replace')[-1000:]} {said[-3000:]}") from None
        return Outcome(result, seconds, took["cpu"], took["peak"], took["workers_peak"], together)


class _Watcher(threading.Thread):
    """Adds up the memory of a process and all below it, again and again."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._end = threading.Event()
        self._most = 0
        self.start()

    def run(self) -> None:
        while not self._end.wait(0.05):
            self._most = max(self._most, sum(_proportional(pid) for pid in _below(self._pid)))

    def stop(self) -> int:
        self._end.set()
        self.join()
        return self._most


def _below(pid: int) -> Iterator[int]:
    yield pid
    for child in children(pid):
        yield from _below(child)


def _proportional(pid: int) -> int:
    """Bytes of a process's memory, each page divided by the number of processes that have it."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


@lru_cache(maxsize=None)
def _packed() -> bytes:
    """What Ansible sends along: its own module_utils and the collection's."""
    there = Path(str(ansible.__file__)).parent
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for package in ("ansible", "ansible_collections", "ansible_collections/fleetclean", "ansible_collections/fleetclean/docker",
                        "ansible_collections/fleetclean/docker/plugins"):
            archive.writestr(f"{package}/__init__.py", "")
        for path in sorted((there / "module_utils").rglob("*.py")):
            archive.write(path, f"ansible/{path.relative_to(there)}")
        for folder in ("module_utils", "modules"):
            archive.writestr(f"ansible_collections/fleetclean/docker/plugins/{folder}/__init__.py", "")
            for path in sorted((REPOSITORY / "plugins" / folder).glob("*.py")):
                archive.write(path, f"ansible_collections/fleetclean/docker/plugins/{folder}/{path.name}")
    return buffer.getvalue()
