# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Numbered lines: containers that print them, all who read them, and what is wrong with what they have read.

Who reads: the file itself, `docker logs` with its options, `docker logs -f`, and a log shipper that keeps an offset of its own. A line is
``L<run> <number> xxx... <number>.``: a run is one life of the container's process, and half a line, or two halves, is none.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple
from urllib.parse import urlencode

from tests.fleet import Host
from tests.integration import bare
from tests.integration.bare import Bare
from tests.integration.things import until

#: Of a line: which life of the process printed it, and its number in that life, from 1.
Line = Tuple[int, int]
#: Where writers and tests leave word for each other: a folder of the host, and the same in the containers.
_OUTSIDE, _INSIDE = "/run/lines", "/w"
_SAID = re.compile(rb"L(\d+) (\d+) (x+) (\d+)\.\n")
_STORED = re.compile(rb'\{"log":"L(\d+) (\d+) (x+) (\d+)\.\\n","stream":"stdout","time":"([^"]+)"\}')
_FILLER = b'{"log":"","fleetclean":"filler'
# Read with a time-out sleeps without a new process; what it reads from is a pipe that nobody writes.
_WRITER = """
trap 'exit 0' TERM
[ -e /pipe ] || /bin/busybox mkfifo /pipe
exec 3<>/pipe
run=0; [ ! -e /run-number ] || read run </run-number
run=$((run+1)); echo $run >/run-number
n=0 granted=
while :; do
    if [ -e {inside}/{name}.quiet ]; then
        wish=; read wish <{inside}/{name}.quiet
        [ "$wish" = "$granted" ] || {{ echo $wish $run $n >{inside}/{name}.new; /bin/busybox mv {inside}/{name}.new {inside}/{name}.last; granted=$wish; }}
        read -t 0.05 x <&3
        continue
    fi
    printf "L$run %s {pad} %s.\\n" {numbers}
    n=$((n+{burst}))
    [ $n -lt {first} ] || read -t {pause} x <&3
done
"""


@dataclass(frozen=True)
class Pace:
    """How a container prints: ``burst`` lines with ``pad`` letters each, then ``pause`` seconds; ``first`` lines at once in the beginning."""

    pad: int
    burst: int
    pause: float
    first: int

    @property
    def longest(self) -> int:
        """Bytes that one stored line has at most."""
        return self.pad + 140

    def script(self, name: str) -> str:
        """What the shell of the container of this name runs."""
        # Printed at once, so that the pipe is given pieces of lines as well as whole ones.
        numbers = " ".join(f"$((n+{number}))" for number in range(1, self.burst + 1) for _half in range(2))
        return _WRITER.format(inside=_INSIDE, name=name, numbers=numbers, pad="x" * self.pad, burst=self.burst, pause=self.pause, first=self.first)


#: All the time, some 2 lines in a millisecond and 1 MB in a second; and a line in every 10 ms or so.
FAST = Pace(pad=400, burst=10, pause=0.005, first=3000)
SLOW = Pace(pad=2500, burst=1, pause=0.01, first=500)


class Writer:
    """A container that prints numbered lines until it is told to be quiet."""

    def __init__(self, host: Host, name: str, image: str, pace: Pace, log: Optional[Mapping[str, Any]] = None) -> None:
        self.host, self.name, self.pace = host, name, pace
        folder = host.path(_OUTSIDE)
        folder.mkdir(exist_ok=True)
        self._quiet, self._wishes = folder / f"{name}.quiet", 0
        body = {"Image": image, "Cmd": ["/bin/sh", "-c", pace.script(name)],
                "HostConfig": {"NetworkMode": "none", "Binds": [f"{_OUTSIDE}:{_INSIDE}"], **({"LogConfig": log} if log else {})}}
        self.ident = str(host.must("POST", f"/containers/create?name={name}", body)["Id"])
        host.must("POST", f"/containers/{self.ident}/start")

    @property
    def path(self) -> Path:
        """Its log of the driver json-file, as this machine sees it."""
        return self.host.path(f"{self.host.data_root}/containers/{self.ident}") / f"{self.ident}-json.log"

    def hush(self) -> None:
        """Let it print nothing more, soon."""
        if self._quiet.exists():
            return
        self._wishes += 1
        new = self._quiet.with_suffix(".wish")
        new.write_text(f"{self._wishes}\n")
        new.rename(self._quiet)

    def last(self) -> Line:
        """The last line that it printed, as soon as it is quiet."""
        said = self._quiet.with_suffix(".last")
        until(lambda: said.exists() and said.read_text().startswith(f"{self._wishes} "))
        _wish, run, number = said.read_text().split()
        return int(run), int(number)

    def go_on(self) -> None:
        """Let it print again."""
        self._quiet.unlink(missing_ok=True)


# -- who cuts ----------------------------------------------------------------------------------

# A module's start takes most of its time. So it is made once, up to the point where Ansible's arguments are read, and each run is a fork of it.
_CUTTER = r"""
import os, runpy, sys

sys.path.insert(0, sys.argv[1])
from ansible.module_utils import basic
from ansible_collections.fleetclean.docker.plugins.module_utils import session, truncating

for line in sys.stdin:
    if os.fork() == 0:
        basic._ANSIBLE_ARGS, basic._ANSIBLE_PROFILE = line.encode(), "legacy"
        runpy.run_module("ansible_collections.fleetclean.docker.plugins.modules.docker_log_truncate", run_name="__main__", alter_sys=True)
    os.wait()
    print("done", flush=True)
"""


class Cutter:
    """docker_log_truncate on a host, again and again without starting anew; else as :class:`Bare` runs it."""

    def __init__(self, host: Host) -> None:
        Bare(host, "docker_log_truncate")
        self._process = host.popen([host.python, "-c", _CUTTER, f"{bare._FOLDER}/module.zip"], {"TMPDIR": "/dev/shm", "PYTHONDONTWRITEBYTECODE": "1"},
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def run(self, **options: Any) -> Dict[str, Any]:
        """The result of a run with these options."""
        self._send({"ANSIBLE_MODULE_ARGS": {
            "_ansible_module_name": "fleetclean.docker.docker_log_truncate", "_ansible_check_mode": False, "_ansible_remote_tmp": "/dev/shm",
            "_ansible_tmpdir": None, **options}})
        assert self._process.stdout
        said = "".join(iter(self._process.stdout.readline, "done\n"))
        assert self._process.poll() is None, said
        result: Dict[str, Any] = json.loads(said)
        assert not result.get("failed"), {key: value for key, value in result.items() if key != "invocation"}
        return result

    def _send(self, content: Any) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(content) + "\n")
        self._process.stdin.flush()

    def stop(self) -> None:
        """End it."""
        self._process.communicate()


# -- readers -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """A json-file log read raw: its lines with their times, the bytes from the first one on, and what is neither line nor filler nor blank."""

    lines: List[Line]
    times: List[str]
    begin: int
    text_bytes: int
    torn: List[bytes]


def stored(path: Path, begin: int = 0) -> Stored:
    """The whole lines of a log file from ``begin`` on, where a line or a filler has to start; one that is being written is left out."""
    lines: List[Line] = []
    times: List[str] = []
    torn: List[bytes] = []
    content = path.read_bytes()
    first = len(content)
    position = begin
    while True:
        end = content.find(b"\n", position)
        if end < 0:
            break
        raw = content[position:end]
        found = _of_stored(raw)
        if found:
            if not lines:
                first = end - len(raw.lstrip(b" "))
            lines.append(found[0])
            times.append(found[1])
        elif not _is_filler(raw):
            torn.append(raw[:200])
        position = end + 1
    return Stored(lines, times, first, position - first if lines else 0, torn)


def _of_stored(raw: bytes) -> Optional[Tuple[Line, str]]:
    match = _STORED.fullmatch(raw.lstrip(b" "))
    return ((int(match[1]), int(match[2])), match[5].decode()) if match and match[2] == match[4] else None


def _is_filler(raw: bytes) -> bool:
    """Whether a line of the file is nothing but spaces, or a filler record."""
    text = raw.strip(b" ")
    if not text:
        return True
    if not text.startswith(_FILLER):
        return False
    record = json.loads(text)
    return record["log"] == "" and "stream" not in record


def said(writer: Writer, patience: float = 60, **query: Any) -> Tuple[List[Line], List[bytes]]:
    """What `docker logs` prints (``query``: the API's, such as tail=10): its lines, and what is none; nothing after ``patience`` seconds."""
    asked = urlencode({"stdout": 1, **query})
    try:
        status, answer = writer.host.api("GET", f"/containers/{writer.ident}/logs?{asked}", timeout=patience)
    except socket.timeout:
        return [], []
    assert status == 200, answer
    return _Parts().lines_of(answer)


class _Parts:
    """Takes the engine's multiplexed stream apart: 8 bytes (stream, three zeros, length), then as many bytes of text; one record each."""

    def __init__(self) -> None:
        self._rest = b""

    def lines_of(self, more: bytes) -> Tuple[List[Line], List[bytes]]:
        """The lines that are complete with ``more``, and what is none."""
        lines: List[Line] = []
        torn: List[bytes] = []
        for text in self._texts(more):
            match = _SAID.fullmatch(text)
            if match and match[2] == match[4]:
                lines.append((int(match[1]), int(match[2])))
            else:
                torn.append(text[:200])
        return lines, torn

    def _texts(self, more: bytes) -> Iterator[bytes]:
        content = self._rest + more
        position = 0
        while position + 8 <= len(content):
            length = int.from_bytes(content[position + 4:position + 8], "big")
            if position + 8 + length > len(content):
                break
            yield content[position + 8:position + 8 + length]
            position += 8 + length
        self._rest = content[position:]


class _Reader(threading.Thread):
    """Reads lines until ``stop``. ``lines`` as they came, and what was none of them, ``torn``."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.lines: List[Line] = []
        self.torn: List[bytes] = []
        self._end = threading.Event()

    def has(self, line: Line) -> bool:
        """Whether that line is the last that came."""
        return self.lines[-1:] == [line]

    def stop(self) -> None:
        """Read no more."""
        raise NotImplementedError


class Follower(_Reader):
    """`docker logs -f`."""

    def __init__(self, writer: Writer) -> None:
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(writer.host.socket))
        self._connection = http.client.HTTPConnection("docker")
        self._connection.sock = self._socket
        self._connection.request("GET", f"/containers/{writer.ident}/logs?stdout=1&follow=1")
        self.start()

    def run(self) -> None:
        parts = _Parts()
        with suppress(OSError, http.client.HTTPException, ValueError):
            response = self._connection.getresponse()
            while not self._end.is_set():
                more = response.read1(1 << 16)
                if not more:
                    return
                lines, torn = parts.lines_of(more)
                self.lines += lines
                self.torn += torn

    def stop(self) -> None:
        """Hang up."""
        self._end.set()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self.join()
        self._connection.close()


class Shipper(_Reader):
    """A log shipper as filebeat is one: reads whole lines from its offset, and takes a file that is shorter for one written anew.

    https://www.elastic.co/guide/en/beats/filebeat/current/file-log-rotation.html ("file truncated: begin reading file from offset 0")
    ``restarts``: how often that was.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.restarts = 0
        self._file = os.open(path, os.O_RDONLY)
        self.start()

    def run(self) -> None:
        offset = 0
        while not self._end.wait(0.02):
            if os.fstat(self._file).st_size < offset:
                self.restarts += 1
                offset = 0
            while True:
                piece = os.pread(self._file, 1 << 20, offset)
                whole = piece.rfind(b"\n") + 1
                if not whole:
                    break
                offset += whole
                for raw in piece[:whole - 1].split(b"\n"):
                    found = _of_stored(raw)
                    if found:
                        self.lines.append(found[0])
                    elif not _is_filler(raw):
                        self.torn.append(raw[:200])

    def stop(self) -> None:
        """Close the file."""
        self._end.set()
        self.join()
        os.close(self._file)


# -- judgement ---------------------------------------------------------------------------------


def faults(lines: Sequence[Line], ends: Sequence[Line] = (), cuts: Sequence[Line] = (), again: bool = False, behind: bool = False) -> List[str]:
    """What is wrong with lines that should follow each other without gap or repetition.

    :param ends: the last lines of the lives before the last one: the first of a new life follows them.
    :param cuts: the first lines that cuts had kept.
    :param again: after a cut, reading may begin anew with what it kept.
    :param behind: who reads may be slower than the writer, and find what comes next cut away: then the first line that was kept comes next.
    """
    finished, kept = set(ends), set(cuts)
    found = []
    for before, line in zip(lines, lines[1:]):
        follows = line == (before[0], before[1] + 1) or (before in finished and line == (before[0] + 1, 1))
        if follows or (again and line <= before and line in kept) or (behind and line > before and line in kept):
            continue
        word = "is doubled" if line == before else "comes again after" if line < before else "is the next after"
        found.append(f"{line} {word} {before}")
    return found


def seconds_of(time: str) -> str:
    """A record's time as the API's ``since`` takes it: seconds of 1970 and nanoseconds."""
    whole, _point, fraction = time.rstrip("Z").partition(".")
    return f"{int(datetime.strptime(whole, '%Y-%m-%dT%H:%M:%S').replace(tzinfo=timezone.utc).timestamp())}.{fraction.ljust(9, '0')}"


def missing(lines: Sequence[Line], wanted: Sequence[Line]) -> List[Line]:
    """Those of ``wanted`` that are not among ``lines``."""
    there = set(lines)
    return [line for line in wanted if line not in there]


def by_name(result: Mapping[str, Any]) -> Dict[str, Mapping[str, Any]]:
    """A module's entries of cut logs, by container's name."""
    return {str(entry["name"]).lstrip("/"): entry for entry in result["logs"] if entry["method"] not in ("rotated", "deleted")}
