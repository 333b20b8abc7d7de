# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What docker_log_truncate says and does on real engines and filesystems: which logs, how much, what stays, what is left alone.

Containers here say numbered lines when a test tells them to. What happens under containers that never stop talking is in test_logs_live.py.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple

import pytest

from tests import attacker
from tests.fleet import Fleet, Host, HostSpec
from tests.fleet.system import Process, children
from tests.integration.bare import Bare, Started
from tests.integration.support import start
from tests.integration.things import _listen_inside, base, clear, container, until

MODULE = "docker_log_truncate"
KIB, MIB = 1 << 10, 1 << 20
BLOCK = 4096
#: Up to this much more than was asked for may stay: one grain of filler.
GRAIN = 64 * KIB
PAD = 1000
SAID = re.compile(rb"(\d{8}) x{%d}" % PAD)
#: What json-file makes of a line: {"log":"…\n","stream":"stdout","time":"2024-03-01T12:00:00.123456789Z"}. Zeros at the end of a time are left out.
STORED = PAD + 9 + 80
# An open pipe has its writers wait for nobody; awk is told in which numbers to count.
_SPEAKER = f"""
exec 3<>/tell/pipe
while read first last <&3; do
    /bin/busybox awk -v i=$first -v n=$last 'BEGIN {{p="x"; while (length(p) < {PAD}) p=p p; p=substr(p, 1, {PAD}); for (; i<=n; i++) printf "%08d %s\\n", i, p}}'
done
"""

everywhere = pytest.mark.parametrize("host", ["ext4", "xfs", "btrfs"], indirect=True)
on_ext4 = pytest.mark.parametrize("host", ["ext4"], indirect=True)


@pytest.fixture(scope="module")
def fleet(here: None) -> Iterator[Fleet]:
    """Engines 20.10, 26.1 (with live-restore) and 28.5, each on a filesystem of its own: each shortens logs in another way."""
    with start(
        [
            HostSpec("ext4", root="bullseye", ssh=False),
            HostSpec("xfs", filesystem="xfs", root="trixie", ssh=False, daemon_json={"live-restore": True}),
            HostSpec("btrfs", filesystem="btrfs", root="forky", ssh=False),
        ]
    ) as hosts:
        yield hosts


@pytest.fixture
def host(fleet: Fleet, request: pytest.FixtureRequest) -> Iterator[Host]:
    """The host of that filesystem, emptied afterwards."""
    found = fleet[request.param]
    base(found)
    yield found
    clear(found)


# -- containers, and what is read of them --------------------------------------------------------


class Speaker:
    """A container that says numbered lines when it is told to, and is idle otherwise."""

    def __init__(self, host: Host, name: str, driver: str = "json-file", labels: Optional[Mapping[str, str]] = None, **options: str) -> None:
        self.host, self.name, self.driver = host, name, driver
        self.said = 0
        folder = host.path("/run/tell") / name
        folder.mkdir(parents=True, exist_ok=True)
        self._pipe = folder / "pipe"
        self._pipe.unlink(missing_ok=True)
        os.mkfifo(self._pipe)
        self.ident = container(
            host, name, "base/app:1", ["/bin/sh", "-c", _SPEAKER], run="on", labels=labels, Binds=[f"/run/tell/{name}:/tell"], Init=True,
            LogConfig={"Type": driver, "Config": {key.replace("_", "-"): value for key, value in options.items()}},
        )

    @property
    def path(self) -> Path:
        """The log file that is written now, as this machine sees it."""
        folder = self.host.path(f"{self.host.data_root}/containers/{self.ident}")
        return folder / {"json-file": f"{self.ident}-json.log", "local": "local-logs/container.log"}.get(self.driver, "container-cached.log")

    def rotated(self) -> List[str]:
        """The engine's rotated files."""
        return sorted(file.name for file in self.path.parent.iterdir() if re.fullmatch(re.escape(self.path.name) + r"\.\d+(\.gz)?", file.name))

    def tell(self, count: int) -> None:
        """Have it say that many lines, and do not wait."""
        with open(self._pipe, "w", encoding="ascii") as pipe:
            pipe.write(f"{self.said + 1} {self.said + count}\n")
        self.said += count

    def wait(self) -> None:
        """Until its last line is in the log."""
        last = b"%08d xxx" % self.said
        until(lambda: last in end_of(self.path, 4 * STORED), 60)

    def say(self, count: int) -> Speaker:
        """Have it say that many lines."""
        self.tell(count)
        self.wait()
        return self

    def go_on(self) -> None:
        """Start it again."""
        self.host.must("POST", f"/containers/{self.ident}/start")

    def stop(self) -> Speaker:
        """End it."""
        self.host.must("POST", f"/containers/{self.ident}/stop")
        return self

    def heard(self, timeout: float = 60, **query: Any) -> List[int]:
        """The numbers that `docker logs` shows, of whole lines; anything else is a failure."""
        status, answer = self.host.api("GET", f"/containers/{self.ident}/logs?stdout=1&stderr=1" + "".join(f"&{key}={value}" for key, value in query.items()), timeout=timeout)
        assert status == 200, answer
        lines = b"".join(frames(answer)).splitlines()
        odd = [line[:200] for line in lines if not SAID.fullmatch(line)]
        assert not odd, f"{self.name}: not whole lines: {odd[:5]}"
        return [int(line[:8]) for line in lines]

    def newest(self) -> List[int]:
        """The same, where the oldest lines may be missing and no others."""
        found = self.heard()
        assert found == list(range(self.said - len(found) + 1, self.said + 1)), f"{self.name}: not the newest without a gap: {spans(found)} of {self.said}"
        return found

    def reads_well(self, entry: Mapping[str, Any]) -> None:
        """What `docker logs --tail` has to show after a cut that says so."""
        if entry["readers"] != "stale":
            assert self.heard(tail=5) == list(range(self.said - 4, self.said + 1)), self.name


def frames(answer: bytes) -> Iterator[bytes]:
    """What the engine's multiplexed stream carries: 8 bytes (stream, three zeros, length), then as many bytes of text."""
    position = 0
    while position < len(answer):
        length = int.from_bytes(answer[position + 4:position + 8], "big")
        yield answer[position + 8:position + 8 + length]
        position += 8 + length


def spans(numbers: List[int]) -> List[Tuple[int, int]]:
    """The runs of numbers that follow each other: first and last."""
    found: List[Tuple[int, int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def end_of(path: Path, size: int) -> bytes:
    """The last bytes of a file; nothing of one that is not there, as for a moment in a rotation."""
    try:
        with open(path, "rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - size))
            return stream.read()
    except FileNotFoundError:
        return b""


def cut(host: Host, check: bool = False, **options: Any) -> Dict[str, Any]:
    """Run the module."""
    return Bare(host, MODULE).run(_ansible_check_mode=check, **options).result


def entries(result: Mapping[str, Any], *methods: str) -> Dict[str, Dict[str, Any]]:
    """What a result says of logs that were cut (or of those methods), by container."""
    return {entry["name"]: entry for entry in result["logs"] if (entry["method"] in methods if methods else entry["method"] not in ("none", "rotated", "deleted"))}


def state(path: Path) -> Tuple[Any, ...]:
    """What a file that nobody touched keeps."""
    found = path.lstat()
    return (found.st_ino, found.st_mode, found.st_size, found.st_blocks, found.st_mtime_ns, found.st_ctime_ns)


def free(host: Host) -> int:
    """Bytes that are free on the data root once the filesystem has done what it was asked for: btrfs and xfs give space back later."""
    last, same = -1, 0
    end = time.monotonic() + 60
    while same < 3 and time.monotonic() < end:
        host.exec(["sync", "--file-system", host.data_root])
        now = host.free_bytes(host.data_root)
        same = same + 1 if now == last else 0
        last = now
        time.sleep(0.1)
    return last


def engine_pid(host: Host) -> int:
    """The engine's process in the host, also after it was started again by somebody else."""
    return int(host.path("/run/docker.pid").read_text())


def held(host: Host) -> Dict[str, int]:
    """The logs that the engine has open for writing, as it names them, and their flags."""
    found = {}
    process = host.path(f"/proc/{engine_pid(host)}")
    for entry in (process / "fd").iterdir():
        with suppress(OSError):
            target = os.readlink(entry)
            flags = int(re.findall(r"flags:\s*(\d+)", (process / "fdinfo" / entry.name).read_text())[0], 8)
            if "/containers/" in target and ".log" in target and flags & os.O_ACCMODE != os.O_RDONLY:
                found[target] = flags
    return found


def complaints(host: Host, since: int) -> List[str]:
    """What the engine has said of logs that went wrong, in its own log behind ``since``."""
    lines = host.engine_log()[since:].splitlines()
    return [line for line in lines if re.search(r"level=(error|warn)", line) and re.search(r"\blog|rotat|compress", line, re.IGNORECASE)]


# -- said and done -------------------------------------------------------------------------------


@everywhere
def test_what_check_mode_foretells_comes_free_and_a_second_run_finds_nothing(host: Host) -> None:
    idle, stopped = Speaker(host, "idle").say(60_000), Speaker(host, "stopped").say(60_000).stop()
    before, files = free(host), [state(speaker.path) for speaker in (idle, stopped)]

    told = cut(host, check=True)
    assert (free(host), [state(speaker.path) for speaker in (idle, stopped)]) == (before, files), "check mode changes nothing"
    done = cut(host)
    freed = free(host) - before

    methods = {"ext4": ("collapse", "collapse"), "xfs": ("clone", "collapse"), "btrfs": ("clone", "rewrite")}[host.name]
    assert tuple(entries(done)[name]["method"] for name in ("idle", "stopped")) == methods
    assert told["changed"] and done["changed"]
    assert told["logs"] == done["logs"]
    assert abs(told["reclaimed_bytes"] - freed) <= 2 * BLOCK, f"foretold {told['reclaimed_bytes']}, came free {freed}"
    assert sum(entry["reclaimed_bytes"] for entry in done["logs"]) == done["reclaimed_bytes"] == told["reclaimed_bytes"]
    for speaker in (idle, stopped):
        entry = entries(done)[speaker.name]
        assert entry["bytes_before"] == files[(idle, stopped).index(speaker)][2]
        assert MIB - STORED <= entry["bytes_after"] <= MIB + GRAIN
        kept = speaker.newest()
        assert MIB - 2 * STORED <= len(kept) * STORED and len(kept) * (STORED - 10) <= MIB + GRAIN
        speaker.reads_well(entry)
    assert entries(done)["stopped"]["readers"] == "ok"

    files = [state(speaker.path) for speaker in (idle, stopped)]
    again = cut(host)
    assert (again["changed"], again["reclaimed_bytes"], entries(again)) == (False, 0, {})
    assert [state(speaker.path) for speaker in (idle, stopped)] == files
    idle.say(500)
    assert idle.newest()[0] <= 60_000


@everywhere
@pytest.mark.parametrize("runs", [True, False], ids=["idle", "stopped"])
def test_a_cut_is_the_first_thing_that_helps_when_not_a_byte_is_free(host: Host, runs: bool) -> None:
    speaker = Speaker(host, "big").say(30_000)
    if not runs:
        speaker.stop()
    free(host)
    filler = host.fill(host.data_root)
    try:
        assert host.exec(["dd", "if=/dev/zero", f"of={host.data_root}/more", "bs=1M", "count=1"], check=False).returncode != 0, "the disk is not full"
        host.path(f"{host.data_root}/more").unlink(missing_ok=True)
        before = host.free_bytes(host.data_root)
        told = cut(host, check=True)
        done = cut(host)
        assert list(entries(done)) == ["big"]
        assert entries(told) == entries(done)
        assert free(host) - before > 25 * MIB
        speaker.newest()
        host.exec(["dd", "if=/dev/zero", f"of={host.data_root}/more", "bs=1M", "count=20"])
        if runs:
            speaker.say(500)
        assert len(speaker.newest()) > 900
        speaker.reads_well(entries(done)["big"])
    finally:
        host.path(filler).unlink()
        host.path(f"{host.data_root}/more").unlink(missing_ok=True)


# -- other formats -------------------------------------------------------------------------------


@contextmanager
def log_server(host: Host) -> Iterator[None]:
    """Something that takes what the driver gelf sends, and forgets it: a driver that cannot send does not write its copy either."""
    server = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('127.0.0.1', 12201)); print(flush=True)\nwhile True: s.recv(65536)"
    process = host.popen([host.python, "-c", server], stdout=-1)
    try:
        assert process.stdout and process.stdout.readline()
        yield
    finally:
        process.kill()
        process.communicate()


#: With another mode the engine's copy drops lines that come too fast for it.
GELF = {"gelf_address": "udp://127.0.0.1:12201", "gelf_compression_type": "none", "mode": "blocking"}


@everywhere
def test_local_logs_and_the_engines_own_copies_are_cut_at_records_and_their_rotated_files_stay(host: Host) -> None:
    with log_server(host):
        local = [Speaker(host, name, "local", max_size="5m") for name in ("local", "local-stopped")]
        speakers = local + [Speaker(host, name, "gelf", **GELF) for name in ("copy", "copy-stopped")]
        for speaker in speakers:
            speaker.tell(8_000)
        for speaker in speakers:
            speaker.wait()
            if speaker.name.endswith("-stopped"):
                speaker.stop()
        until(lambda: [file for speaker in local for file in speaker.rotated()] == 2 * ["container.log.1.gz"], 60)
        rotated = [state(speaker.path.with_name("container.log.1.gz")) for speaker in local]
        before = free(host)

        told = cut(host, check=True, keep="500KiB")
        done = cut(host, keep="500KiB")

        assert set(entries(done)) == {speaker.name for speaker in speakers}
        assert abs(free(host) - before - told["reclaimed_bytes"]) <= len(speakers) * BLOCK
        assert told["reclaimed_bytes"] == done["reclaimed_bytes"] > 0
        assert [state(speaker.path.with_name("container.log.1.gz")) for speaker in local] == rotated
        for speaker in speakers:
            entry = entries(done)[speaker.name]
            assert entry["path"].endswith(speaker.path.name)
            assert entry["driver"] == speaker.driver
            if not speaker.name.endswith("-stopped"):
                speaker.say(400)
            # What was rotated is still there, then there is the gap that was asked for, then the newest.
            found = spans(speaker.heard())
            assert len(found) == (2 if speaker in local else 1), (speaker.name, found)
            assert speaker not in local or found[0][0] == 1
            assert found[-1][1] == speaker.said
            assert 8_000 - GRAIN // PAD - 512 <= found[-1][0] <= 8_001 - 480
            speaker.reads_well(entry)


@everywhere
def test_rotated_files_go_while_the_engine_rotates_and_it_goes_on_rotating(host: Host) -> None:
    limits = {"max_size": "1m", "max_file": "30"}
    speakers = [
        Speaker(host, "json", **limits),
        Speaker(host, "packed", compress="true", **limits),
        Speaker(host, "local", "local", compress="false", **limits),
    ]
    for speaker in speakers:
        speaker.say(5_000)
    assert all(len(speaker.rotated()) >= 4 for speaker in speakers)
    dated = [Path(f"{speaker.path}{ending}") for speaker in speakers for ending in ("-20180912", "-20180913.xz", ".bak")]
    for path in dated:
        path.write_bytes(os.urandom(MIB))
    log = len(host.engine_log())

    running = Bare(host, MODULE).start(rotated="remove", keep="256KiB")
    while running.process.poll() is None:
        for speaker in speakers:
            speaker.tell(200)
        time.sleep(0.05)
    done = running.end().result
    assert not done.get("failed"), done
    for speaker in speakers:
        speaker.wait()

    removed = entries(done, "rotated")
    assert set(removed) == {speaker.name for speaker in speakers}
    assert all(entry["reclaimed_bytes"] > 2 * MIB for entry in removed.values())
    assert [path for path in dated if path.exists()] == dated[2::3]
    for speaker in speakers:
        assert speaker.newest()[0] > 4_000
        # And on: more than the engine rotates in.
        speaker.say(3_000)
        assert speaker.newest()[0] > 4_000
        until(lambda speaker=speaker: len(speaker.rotated()) >= 2)
        assert len(end_of(speaker.path, 1 << 30)) <= MIB + 100 * STORED
    logs = held(host)
    assert len(logs) == len(speakers)
    assert not [path for path in logs if path.endswith("(deleted)")]
    assert complaints(host, log) == []


@everywhere
def test_a_log_that_the_engine_has_rotated_itself_gets_no_hole_and_loses_nothing(host: Host) -> None:
    speaker = Speaker(host, "rotates", max_size="4m", max_file="2").say(6_000)
    assert len(speaker.rotated()) == 1
    assert [flags & os.O_APPEND for flags in held(host).values()] == [0], "the engine appends: this test has no point here"
    before = free(host)
    done = cut(host, keep="100KiB")
    assert free(host) - before > 3 * MIB // 2
    kept = spans(speaker.heard())[-1]
    assert kept[1] == 6_000 and kept[1] - kept[0] >= 90
    speaker.say(1_000)
    assert b"\0" not in speaker.path.read_bytes()
    assert spans(speaker.heard())[-1] == (kept[0], 7_000)
    assert spans(speaker.heard())[0][0] == 1
    speaker.reads_well(entries(done)["rotates"])


# -- deleted, renamed ----------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["ext4", "btrfs"], indirect=True)
def test_a_deleted_logs_space_comes_back_at_once_and_a_restart_of_its_container_gives_it_a_log_again(host: Host) -> None:
    speaker = Speaker(host, "victim").say(30_000)
    free(host)
    size = speaker.path.stat().st_blocks * 512
    speaker.path.unlink()
    before = free(host)
    told = cut(host, check=True)
    assert free(host) == before
    done = cut(host)
    assert abs(free(host) - before - size) <= BLOCK
    for result in (told, done):
        entry = entries(result, "deleted")["victim"]
        assert (entry["bytes_after"], entry["readers"]) == (0, "stale")
        assert abs(entry["reclaimed_bytes"] - size) <= BLOCK
    assert (done["changed"], done["restarted"]) == (True, [])

    speaker.tell(100)
    told = cut(host, check=True, restart="containers")
    began = host.must("GET", "/containers/victim/json")["State"]["StartedAt"]
    done = cut(host, restart="containers")
    assert told["restarted"] == done["restarted"] == ["victim"]
    assert host.must("GET", "/containers/victim/json")["State"]["StartedAt"] != began
    assert {entry["readers"] for entry in done["logs"]} == {"ok"}
    speaker.say(100)
    assert speaker.heard() == list(range(30_101, 30_201))
    assert [path.endswith("(deleted)") for path in held(host)] == [False]


@pytest.mark.parametrize("host", ["xfs"], indirect=True)
def test_with_live_restore_the_engine_alone_starts_again_and_all_is_read_and_written_well(host: Host) -> None:
    deleted, renamed, emptied, well = victims = [Speaker(host, name).say(2_000) for name in ("deleted", "renamed", "emptied", "well")]
    deleted.path.unlink()
    renamed.path.rename(f"{renamed.path}.old")
    os.truncate(emptied.path, 0)
    emptied.say(10)
    with pytest.raises((AssertionError, OSError)):  # it may not answer at all
        assert emptied.heard(tail=5, timeout=5) == [2_006, 2_007, 2_008, 2_009, 2_010]
    processes = [host.must("GET", f"/containers/{speaker.ident}/json")["State"]["Pid"] for speaker in victims]
    was = engine_pid(host)
    try:
        done = cut(host, restart="engine", keep="10MiB")
    finally:
        # The fleet goes by this to stop an engine.
        host.path("/run/fleet/engine.pid").write_text(f"{engine_pid(host)}\n")
    assert (done["changed"], done["restarted"]) == (True, ["engine"])
    assert engine_pid(host) != was
    assert {entry["name"]: entry["readers"] for entry in done["logs"]} == {"deleted": "ok", "renamed": "ok", "emptied": "ok"}
    assert [host.must("GET", f"/containers/{speaker.ident}/json")["State"]["Pid"] for speaker in victims] == processes
    for speaker in victims:
        speaker.say(100)
        assert speaker.heard(tail=100) == list(range(speaker.said - 99, speaker.said + 1)), speaker.name
    assert len(well.heard()) == 2_100
    again = cut(host, restart="engine", keep="10MiB")
    assert (again["changed"], again["restarted"]) == (False, [])


@pytest.mark.parametrize("host", ["btrfs"], indirect=True)
def test_without_live_restore_the_engine_is_not_restarted_and_nothing_is_touched(host: Host) -> None:
    speaker = Speaker(host, "big").say(5_000)
    gone = Speaker(host, "gone").say(5_000)
    gone.path.unlink()
    before, was = (state(speaker.path), free(host)), engine_pid(host)
    result = Bare(host, MODULE).fails(restart="engine", keep="100KiB")
    assert result["failure"] == "bad_input"
    assert "live-restore" in result["msg"]
    assert not result["changed"] and not result.get("logs")
    assert ((state(speaker.path), free(host)), engine_pid(host)) == (before, was)


@contextmanager
def without_live_restore(host: Host) -> Iterator[Path]:
    """The engine's configuration without a word of live-restore, of a mode that nothing else gives it; afterwards it is as it was."""
    path = host.path("/etc/docker/daemon.json")
    was, mode = path.read_text(), path.stat().st_mode
    plain = "".join(line for line in was.splitlines(True) if "live-restore" not in line).replace(",\n}", "\n}")
    if plain != was:
        host.stop_engine()
        path.write_text(plain)
        host.start_engine()
    path.chmod(0o640)
    try:
        yield path
    finally:
        clear(host)
        host.stop_engine()
        path.write_text(was)
        path.chmod(mode)
        host.start_engine()


def lives(host: Host, speakers: List[Speaker]) -> List[Any]:
    """Which process a container is, since when, and how often it was restarted."""
    found = [host.must("GET", f"/containers/{speaker.ident}/json") for speaker in speakers]
    return [(about["State"]["Pid"], about["State"]["StartedAt"], about["RestartCount"]) for about in found]


@everywhere
def test_live_restore_is_turned_on_and_stays_on_and_no_container_stops(host: Host) -> None:
    """On engines 20.10, 26.1 and 28.5, while one of them talks."""
    with without_live_restore(host) as path:
        victims = [Speaker(host, name).say(2_000) for name in ("deleted", "well")]
        talks = Speaker(host, "talks")
        victims[0].path.unlink()
        before, about, was = path.read_text(), path.stat(), lives(host, [*victims, talks])
        options = {"restart": "engine", "live_restore": "enable", "keep": "100MiB"}

        pid = engine_pid(host)
        told = cut(host, check=True, **options)
        assert (path.read_text(), path.stat().st_mtime_ns, engine_pid(host)) == (before, about.st_mtime_ns, pid), "check mode changes nothing"
        assert not host.must("GET", "/info")["LiveRestoreEnabled"]
        talks.tell(15_000)
        try:
            done = cut(host, **options)
        finally:
            # The fleet goes by this to stop an engine.
            host.path("/run/fleet/engine.pid").write_text(f"{engine_pid(host)}\n")

        for result in (told, done):
            assert (result["changed"], result["restarted"], result["live_restore_file"]) == (True, ["engine"], "/etc/docker/daemon.json")
        assert engine_pid(host) != pid
        assert host.must("GET", "/info")["LiveRestoreEnabled"]
        assert path.read_text() == before.replace("{", '{\n  "live-restore": true,', 1), "all else is as it was"
        assert (path.stat().st_mode, path.stat().st_uid, path.stat().st_gid) == (about.st_mode, about.st_uid, about.st_gid)
        assert [entry.name for entry in path.parent.iterdir() if "fleetclean" in entry.name] == []
        assert lives(host, [*victims, talks]) == was, "a container was stopped"
        talks.wait()
        assert talks.heard() == list(range(1, 15_001)), "a line was lost"
        for speaker in victims:
            speaker.say(100)
            assert speaker.heard(tail=100) == list(range(speaker.said - 99, speaker.said + 1)), speaker.name
        again = cut(host, **options)
        assert (again["changed"], again["restarted"], again["live_restore_file"]) == (False, [], "")


@pytest.mark.parametrize("host", ["btrfs"], indirect=True)
def test_live_restore_is_refused_where_somebody_decided_otherwise_and_nothing_is_touched(host: Host) -> None:
    """A swarm, and daemon.json itself."""
    path = host.path("/etc/docker/daemon.json")
    was = path.read_text()
    gone = Speaker(host, "gone").say(2_000)
    gone.path.unlink()
    pid = engine_pid(host)

    def refused(words: str) -> None:
        content = path.read_text()
        for check in (True, False):
            result = Bare(host, MODULE).fails(restart="engine", live_restore="enable", _ansible_check_mode=check)
            assert words in result["msg"], result["msg"]
            assert not result["changed"] and not result.get("logs") and not result.get("live_restore_file")
        assert (path.read_text(), engine_pid(host)) == (content, pid)

    try:
        path.write_text(was.replace("{", '{\n  "live-restore": false,', 1))
        refused('/etc/docker/daemon.json says "live-restore": false, which somebody decided')
        path.write_text(was)
        host.must("POST", "/swarm/init", {"ListenAddr": "127.0.0.1:2377", "AdvertiseAddr": "127.0.0.1"})
        refused("this host is a swarm node (active), and a swarm refuses live-restore")
        host.must("POST", "/swarm/leave?force=1")
    finally:
        path.write_text(was)
        host.api("POST", "/swarm/leave?force=1")


@on_ext4
def test_a_renamed_log_is_told_of_and_a_restart_of_its_container_cures_it(host: Host) -> None:
    speaker = Speaker(host, "moved").say(2_000)
    other = speaker.path.with_name(f"{speaker.path.name}.old")
    speaker.path.rename(other)
    before = other.stat()
    done = cut(host, keep="100KiB")
    assert not done["changed"]
    (entry,) = done["logs"]
    assert (entry["name"], entry["method"], entry["readers"]) == ("moved", "none", "stale")
    assert other.name in entry["words"] and "renamed" in entry["words"]
    assert other.stat().st_mtime_ns == before.st_mtime_ns
    done = cut(host, keep="100KiB", restart="containers")
    assert (done["changed"], done["restarted"]) == (True, ["moved"])
    assert {entry["readers"] for entry in done["logs"]} == {"ok"}
    speaker.say(50)
    assert speaker.heard() == list(range(2_001, 2_051))
    assert not cut(host, keep="100KiB", restart="containers")["changed"]


# -- users of the host ---------------------------------------------------------------------------


@everywhere
def test_a_user_who_fakes_the_engines_paths_has_no_container_restarted_and_no_file_opened(host: Host) -> None:
    """With a user namespace and a mount that he has detached, files of his own have the paths of logs that the engine deleted, or has open elsewhere."""
    if not attacker.works():
        pytest.skip("not here: no user namespaces for users")
    victim, gone = Speaker(host, "victim").say(100), Speaker(host, "gone").say(100)
    folder = f"{host.data_root}/containers/{victim.ident}"
    deleted, renamed = f"{folder}/{victim.ident}-json.log", f"{folder}/{victim.ident}-json.log.old"
    attack = attacker.Attacker(
        f"-{deleted}", f"+{renamed}", f"-{host.data_root}/containers/{'0' * 64}/container-cached.log", f"+{host.data_root}/volumes/metadata.db",
        before=host.command([]), python=host.python,
    )
    try:
        before, flags = attack.sizes(), held(host)
        assert {f"{deleted} (deleted)", renamed} <= set(dict(before)), "the attack itself does not work"
        began = host.must("GET", "/containers/victim/json")["State"]["StartedAt"]
        for check, restart in ((True, "containers"), (False, "never"), (False, "containers")):
            done = cut(host, check=check, restart=restart)
            assert (done["changed"], done["restarted"], done["logs"]) == (False, [], [])
        report = Bare(host, "docker_disk_report").run(include=["logs"]).result
        assert report["reclaimable"]["deleted_logs"]["count"] == 0
        assert host.must("GET", "/containers/victim/json")["State"]["StartedAt"] == began
        assert (attack.sizes(), held(host)) == (before, flags)
        # What really is the engine's is found beside his.
        gone.path.unlink()
        done = cut(host, restart="containers")
        assert (set(entries(done, "deleted")), done["restarted"]) == ({"gone"}, ["gone"])
        assert attack.sizes() == before
    finally:
        attack.end()


# -- which logs ----------------------------------------------------------------------------------


@on_ext4
def test_which_logs(host: Host) -> None:
    speakers = {
        name: Speaker(host, name, labels=labels)
        for name, labels in {"web-1": {"tier": "front"}, "web-2": {}, "db": {"fleetclean.keep": ""}, "job": {"tier": "back"}, "small": {}}.items()
    }
    for name, speaker in speakers.items():
        speaker.say(200 if name == "small" else 2_000)
    speakers["job"].stop()
    container(host, "never-ran", "base/app:1")
    all_large = {"web-1", "web-2", "job"}
    for options, expected in (
        ({}, all_large),
        ({"keep": "0"}, all_large | {"small"}),
        ({"larger_than": "50KB", "keep": "150KB"}, all_large | {"small"}),
        ({"containers": ["web-*"]}, {"web-1", "web-2"}),
        ({"containers": ["job", "/web-2"]}, {"job", "web-2"}),
        ({"containers": [speakers["web-1"].ident, speakers["job"].ident[:12]]}, {"web-1", "job"}),
        ({"containers": ["db", "nobody"]}, set()),
        ({"keep_labels": ["tier=b*"]}, {"web-1", "web-2", "db"}),
        ({"keep_labels": []}, all_large | {"db"}),
    ):
        assert set(entries(cut(host, check=True, **{"keep": "300KB", **options}))) == expected, options

    files = {name: state(speaker.path) for name, speaker in speakers.items()}
    done = cut(host, containers=["web-*", "job"], keep="300KB", keep_labels=["tier=front"])
    assert set(entries(done)) == {"web-2", "job"}
    assert {name for name, speaker in speakers.items() if state(speaker.path) != files[name]} == {"web-2", "job"}
    for name in ("web-2", "job"):
        assert 300_000 - 2 * STORED <= len(speakers[name].newest()) * STORED <= 300_000 + GRAIN
    done = cut(host, containers=["job", "web-1"], keep="0")
    assert {name: entry["bytes_after"] for name, entry in entries(done).items()}["job"] == 0
    assert speakers["job"].heard() == []
    assert len(speakers["web-1"].say(10).newest()) >= 10


@on_ext4
def test_drivers_that_keep_no_file_here_are_named(host: Host) -> None:
    with log_server(host):
        container(host, "mute", "base/app:1", run="on", LogConfig={"Type": "none", "Config": {}})
        container(host, "sent", "base/app:1", run="on", LogConfig={"Type": "gelf", "Config": {"gelf-address": "udp://127.0.0.1:12201", "cache-disabled": "true"}})
        for check in (True, False):
            result = cut(host, check=check, keep="0")
            assert not result["changed"]
            found = entries(result, "none")
            assert {name: entry["driver"] for name, entry in found.items()} == {"mute": "none", "sent": "gelf"}
            for entry in found.values():
                assert f"the driver {entry['driver']} keeps no log file here" in entry["words"]


@on_ext4
def test_whether_a_log_will_grow_again_without_end_is_said(host: Host) -> None:
    for speaker in (Speaker(host, "endless"), Speaker(host, "bounded", max_size="100m"), Speaker(host, "local", "local")):
        speaker.say(1_000)
    for check in (True, False):
        found = entries(cut(host, check=check, keep="100KiB"))
        assert {name: entry["unbounded"] for name, entry in found.items()} == {"endless": True, "bounded": False, "local": False}


@on_ext4
def test_a_data_root_behind_a_link(host: Host) -> None:
    configuration, link = host.path("/etc/docker/daemon.json"), host.path("/srv") / "docker"
    was = configuration.read_text()
    host.stop_engine()
    link.symlink_to(host.data_root)
    configuration.write_text(was.replace(host.data_root, "/srv/docker"))
    host.start_engine()
    try:
        running, stopped = Speaker(host, "running").say(2_000), Speaker(host, "stopped").say(2_000).stop()
        gone = Speaker(host, "gone").say(2_000)
        gone.path.unlink()
        done = cut(host, keep="100KiB")
        assert set(entries(done)) == {"running", "stopped"}
        assert set(entries(done, "deleted")) == {"gone"}
        for speaker in (running.say(10), stopped):
            assert 80 < len(speaker.newest()) < 250
        clear(host)
    finally:
        host.stop_engine()
        configuration.write_text(was)
        link.unlink()
        host.start_engine()


@on_ext4
def test_a_log_that_is_something_else_is_an_error_of_its_own_and_all_others_are_cut(host: Host) -> None:
    speakers = {name: Speaker(host, name).say(2_000).stop() for name in ("linked", "named-twice", "folder", "plain")}
    elsewhere, second = host.path("/srv") / "precious", host.path(host.data_root) / "second-name"
    speakers["linked"].path.rename(speakers["linked"].path.with_suffix(".away"))
    elsewhere.write_bytes(speakers["plain"].path.read_bytes())
    speakers["linked"].path.symlink_to("/srv/precious")
    os.link(speakers["named-twice"].path, second)
    speakers["folder"].path.unlink()
    speakers["folder"].path.mkdir()
    (speakers["folder"].path / "file").write_bytes(b"x" * 2_000_000)
    odd = ("linked", "named-twice", "folder")
    before = [state(path) for path in (elsewhere, *(speakers[name].path for name in odd))]
    try:
        for check in (True, False):
            result = Bare(host, MODULE).fails(keep="100KiB", _ansible_check_mode=check)
            assert result["failure"] == "disk"
            assert result["msg"].startswith("docker_log_truncate: 3 logs could not be cut, all others were")
            assert set(entries(result)) == {"plain"}
            refused = entries(result, "none")
            assert set(refused) == set(odd)
            for name in odd:
                assert speakers[name].path.name in refused[name]["words"]
                assert refused[name]["reclaimed_bytes"] == 0
            assert result["changed"] and result["reclaimed_bytes"] > 1_900_000
        assert [state(path) for path in (elsewhere, *(speakers[name].path for name in odd))] == before
        assert len(speakers["plain"].newest()) < 250
    finally:
        for path in (elsewhere, second):
            path.unlink()


def test_another_machines_engine_over_tcp_is_refused_and_neithers_logs_are_touched(fleet: Fleet) -> None:
    """Both have /var/lib/docker, and even a container of the same name."""
    speakers = []
    try:
        for name in ("ext4", "btrfs"):
            base(fleet[name])
            speakers.append(Speaker(fleet[name], "same").say(3_000))
        before = [state(speaker.path) for speaker in speakers]
        with relay(fleet["ext4"], fleet["btrfs"]) as address:
            for check in (True, False):
                result = Bare(fleet["ext4"], MODULE).fails(docker_host=address, keep="0", rotated="remove", _ansible_check_mode=check)
                assert result["failure"] == "foreign_root"
                assert "nothing was touched" in result["msg"]
                assert not result["changed"]
        assert [state(speaker.path) for speaker in speakers] == before
    finally:
        for speaker in speakers:
            clear(speaker.host)


@contextmanager
def relay(host: Host, other: Host) -> Iterator[str]:
    """An address on ``host``'s loopback where ``other``'s engine answers."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        server = pool.submit(_listen_inside, host).result()

    def pass_on(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while True:
                data = source.recv(1 << 16)
                if not data:
                    break
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def serve() -> None:
        with suppress(OSError):
            while True:
                client = server.accept()[0]
                engine = socket.socket(socket.AF_UNIX)
                engine.connect(str(other.socket))
                for pair in ((client, engine), (engine, client)):
                    threading.Thread(target=pass_on, args=pair, daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield "tcp://{}:{}".format(*server.getsockname()[:2])
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()


# -- damaged logs --------------------------------------------------------------------------------


@everywhere
def test_what_a_full_disk_and_a_careless_truncate_left_can_be_cut_past(host: Host) -> None:
    # The beginning of a record, as a write leaves it that found no space, and the next record behind it. Engines know how much they wrote, so
    # it has to be there when they open the file.
    torn = [Speaker(host, name).say(1_000).stop() for name in ("torn", "torn-stopped")]
    for speaker in torn:
        with open(speaker.path, "ab") as log:
            log.write(b'{"log":"00001001 xxxxxxxx')
        speaker.go_on()
        speaker.say(1_000)
    # Somebody else's truncate, under an engine that does not append: NULs up to where it was.
    hollow = [Speaker(host, name, max_size="2m", max_file="2").say(3_000) for name in ("hollow", "hollow-stopped", "hollow-whole")]
    for speaker in hollow:
        assert len(speaker.rotated()) == 1
        os.truncate(speaker.path, 0)
        speaker.say(600)
        assert end_of(speaker.path, 1 << 30)[:4096] == b"\0" * 4096, "no NULs: this test has no point here"
    torn[1].stop()
    hollow[1].stop()
    # As after a kill on xfs, whose kernel had moved the lines and not yet cut the file.
    long = Speaker(host, "long-stopped").say(1_000).stop()
    os.truncate(long.path, long.path.stat().st_size + 2 * MIB)

    done = cut(host, containers=["torn*", "hollow", "hollow-stopped", "long*"], keep="200KiB")
    # Nothing of what is written is too much, but it cannot be read.
    done["logs"] += cut(host, containers=["hollow-whole"], keep="3MiB")["logs"]
    assert set(entries(done)) == {speaker.name for speaker in (*torn, *hollow, long)}
    for speaker in (*torn, long):
        assert 170 < len(speaker.newest()) < 320
    for speaker in hollow:
        assert b"\0" not in speaker.path.read_bytes()
        first, last = spans(speaker.heard())[-1]
        assert last == 3_600
        assert first == 3_001 if speaker.name == "hollow-whole" else 3_280 < first < 3_430
    assert b"\0" not in long.path.read_bytes()
    for speaker in (*torn, *hollow, long):
        speaker.reads_well(entries(done)[speaker.name])
        if not speaker.name.endswith("-stopped"):
            first, last = spans(speaker.heard())[-1]
            assert spans(speaker.say(10).heard())[-1] == (first, last + 10)


# -- killed, twice at once -----------------------------------------------------------------------


def writing(started: Started, log: Path) -> List[Process]:
    """The processes of a run that have this log open for writing."""
    found = log.stat()
    module = children(started.process.pid)
    return [
        process for process in (Process.of(pid) for parent in module for pid in (parent, *children(parent)))
        if process and any((about.st_dev, about.st_ino) == (found.st_dev, found.st_ino) for about in written_by(process.pid))
    ]


def written_by(pid: int) -> Iterator[os.stat_result]:
    """The files that a process has open for writing."""
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                flags = int(re.findall(r"flags:\s*(\d+)", Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text())[0], 8)
                if flags & os.O_ACCMODE != os.O_RDONLY:
                    yield entry.stat()


@everywhere
@pytest.mark.parametrize("runs", [True, False], ids=["idle", "stopped"])
def test_a_run_that_is_killed_while_it_cuts_loses_no_line_and_the_next_one_finishes_it(host: Host, runs: bool) -> None:
    speakers = [Speaker(host, name).say(20_000) for name in ("module", "all")]
    keep = 5 * MIB // STORED - 2
    for speaker in speakers:
        if not runs:
            speaker.stop()
        started = Bare(host, MODULE).start(containers=[speaker.name], keep="5MiB")
        workers: List[Process] = []
        while started.process.poll() is None and not workers:
            time.sleep(0.001)
            workers = writing(started, speaker.path)
        module = [process for process in map(Process.of, children(started.process.pid)) if process]
        for process in module + (workers if speaker.name == "all" else []):
            process.kill(signal.SIGKILL)
        with started.process:
            started.process.communicate(timeout=60)
        # What does not end with the module goes on to its own end.
        until(lambda workers=workers: not any(process.alive() for process in workers), 60)
        if speaker.name == "module":
            assert len(speaker.newest()) >= keep
        else:
            # Lines that were being moved may be there twice, and xfs may have left NULs behind the last one.
            there = {int(number) for number in re.findall(rb'"log":"(\d{8}) x{%d}\\n"' % PAD, speaker.path.read_bytes())}
            assert not set(range(20_001 - keep, 20_001)) - there
    done = cut(host, keep="5MiB")
    for speaker in speakers:
        assert keep <= len(speaker.newest()) <= keep + GRAIN // STORED + 50
        if speaker.name in entries(done):
            speaker.reads_well(entries(done)[speaker.name])
        if runs:
            assert len(speaker.say(10).newest()) >= keep


@everywhere
def test_a_container_that_stands_still_for_a_cut_goes_on_though_the_run_is_killed(host: Host) -> None:
    speaker = Speaker(host, "rotates", max_size="100m")
    bare = Bare(host, MODULE)

    def paused() -> bool:
        return bool(host.must("GET", f"/containers/{speaker.ident}/json")["State"]["Paused"])

    def killed() -> bool:
        started = bare.start(keep="5MiB")
        until(lambda: paused() or started.process.poll() is not None)
        module = [process for process in map(Process.of, children(started.process.pid)) if process]
        for process in [*writing(started, speaker.path), *module]:
            process.kill(signal.SIGKILL)
        with started.process:
            started.process.communicate(timeout=60)
        return started.process.returncode not in (0, 1)

    # It stands still for the third part of a second, so a run may be done before it is killed.
    assert any(speaker.say(20_000) and killed() for _attempt in range(5))
    until(lambda: not paused(), 20)
    last = speaker.say(10).said
    there = {int(number) for number in re.findall(rb'"log":"(\d{8}) x{%d}\\n"' % PAD, speaker.path.read_bytes())}
    assert not set(range(last - 5 * MIB // STORED, last + 1)) - there


@everywhere
def test_two_runs_at_once_both_end_well(host: Host) -> None:
    idle, stopped = Speaker(host, "idle").say(15_000), Speaker(host, "stopped").say(15_000).stop()
    before = free(host)
    bare = Bare(host, MODULE)
    results = [started.end().result for started in [bare.start(), bare.start()]]
    assert not [result for result in results if result.get("failed")], results
    assert any(result["changed"] for result in results)
    freed = free(host) - before
    assert abs(sum(result["reclaimed_bytes"] for result in results) - freed) <= 2 * BLOCK
    for speaker in (idle.say(10), stopped):
        assert 900 < len(speaker.newest()) < 1_200
