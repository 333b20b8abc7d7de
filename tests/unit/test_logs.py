# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shortening logs in place, on real files of the filesystems that this machine has; and whose files are refused.

What cannot be had here (an engine) is a fake that says so: a process that calls itself dockerd.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import typing as t
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import logs
from ansible_collections.fleetclean.docker.plugins.module_utils.logs import Cut, LogRefused, Writer

IDENT = hashlib.sha256(b"a container").hexdigest()
KIB = 1024
NOBODY = Writer(writes=False)
ENGINE = Writer(writes=True)
ROTATED = Writer(writes=True, appends=False)


def can_collapse(folder: Path) -> bool:
    with tempfile.TemporaryFile(dir=folder) as probe:
        os.ftruncate(probe.fileno(), 8 * os.fstatvfs(probe.fileno()).f_bsize)
        try:
            logs._fallocate(probe.fileno(), logs._COLLAPSE_RANGE, 0, os.fstatvfs(probe.fileno()).f_bsize)
        except OSError:
            return False
    return True


def can_clone(folder: Path) -> bool:
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(b"x" * (128 * KIB))
        probe.flush()
        try:
            fcntl.ioctl(probe.fileno(), logs._CLONE_RANGE, struct.pack("qQQQ", probe.fileno(), 0, 64 * KIB, 64 * KIB))
        except OSError:
            return False
    return True


@pytest.fixture(params=["here", "tmpfs"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder on the tests' own filesystem, and one on a tmpfs, which can do nothing special."""
    if request.param == "here":
        yield tmp_path
        return
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("not here: no tmpfs at /dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="fleetclean-test-", dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


@lru_cache(maxsize=None)
def line(number: int, width: int = 100) -> bytes:
    """One record of the json-file driver, ``width`` bytes with its newline."""
    record = {"log": "", "stream": "stdout", "time": f"2024-03-01T12:00:00.{number:09d}Z"}
    record["log"] = f"{number:06d} ".ljust(width - len(json.dumps(record)) - 3, "x") + "\n"
    text = json.dumps(record).encode() + b"\n"
    assert len(text) == width
    return text


@lru_cache(maxsize=32)
def lines(count: int, width: int = 100) -> bytes:
    return b"".join(line(number, width) for number in range(count))


def numbers(content: bytes) -> list[int]:
    """What `docker logs` shows of a log: every line has to be a whole record (the engine's jsonfilelog)."""
    found = []
    for text in content.split(b"\n"):
        if text.strip(b" "):
            record = json.loads(text)
            if record["log"]:
                found.append(int(record["log"].split()[0]))
    return found


class Log:
    """A container's log below a data root."""

    def __init__(self, root: Path, content: bytes, ident: str = IDENT) -> None:
        self.root = root
        self.ident = ident
        self.folder = root / "containers" / ident
        self.folder.mkdir(parents=True)
        self.path = self.folder / f"{ident}-json.log"
        self.path.write_bytes(content)

    def cut(self, keep: int, writer: Writer = NOBODY, major: int = 28, dry_run: bool = False) -> Cut:
        with logs.open_log(str(self.root), self.ident, write=not dry_run) as descriptor:
            size = logs.content_bytes(descriptor)
            found = Cut(self.ident, "web", "json-file", str(self.path), size, size, 0)
            return logs.cut(descriptor, found, keep, writer, major, dry_run)

    @property
    def content(self) -> bytes:
        return self.path.read_bytes()

    def state(self) -> tuple[t.Any, ...]:
        found = self.path.stat()
        return (found.st_ino, found.st_size, found.st_blocks, found.st_mtime_ns, found.st_ctime_ns, self.content)


def block_of(path: Path) -> int:
    return os.statvfs(path).f_bsize


# -- cutting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [100, 3000, 16 * KIB])
@pytest.mark.parametrize("keep", [1, 1000, 50 * KIB, 333_333])
def test_a_log_that_nobody_writes_keeps_its_newest_whole_lines(place: Path, keep: int, width: int) -> None:
    count = 400_000 // width
    log = Log(place, lines(count, width))
    done = log.cut(keep)
    left = numbers(log.content)
    assert done.method == ("collapse" if can_collapse(place) else "rewrite")
    assert left == list(range(count - len(left), count))
    assert keep - width < len(left) * width <= keep + block_of(place)
    assert done.bytes_after == log.path.stat().st_size
    assert done.bytes_before == count * width
    assert done.reclaimed_bytes == done.bytes_before - done.bytes_after
    assert done.readers == "ok"
    assert done.changed
    assert not done.failed


def test_the_space_is_really_given_back(place: Path) -> None:
    log = Log(place, lines(20_000))
    before = log.path.stat().st_blocks * 512
    done = log.cut(10_000)
    assert before - log.path.stat().st_blocks * 512 >= done.reclaimed_bytes - 2 * block_of(place)
    assert done.reclaimed_bytes > 1_900_000


@pytest.mark.parametrize("keep", [0, 1, 999, 1000, 1001, 123_456])
@pytest.mark.parametrize("writer", [NOBODY, ENGINE], ids=["nobody", "engine"])
@pytest.mark.parametrize("width", [100, 5000, 20_000])
def test_a_second_cut_changes_nothing(place: Path, keep: int, writer: Writer, width: int) -> None:
    log = Log(place, lines(300_000 // width, width))
    log.cut(keep, writer)
    after = log.state()
    again = log.cut(keep, writer)
    assert not again.changed
    assert again.reclaimed_bytes == 0
    assert log.state() == after


@pytest.mark.parametrize("keep", [0, 1, 1000, 123_456])
@pytest.mark.parametrize("writer", [NOBODY, ENGINE, ROTATED], ids=["nobody", "engine", "rotated"])
def test_check_mode_touches_nothing_and_foretells_the_same_bytes(place: Path, keep: int, writer: Writer) -> None:
    log = Log(place, lines(5000))
    before = log.state()
    told = log.cut(keep, writer, dry_run=True)
    assert log.state() == before
    assert sorted(entry.name for entry in log.folder.iterdir()) == [log.path.name]
    assert log.cut(keep, writer) == told


def test_a_log_that_is_small_enough_is_not_touched(place: Path) -> None:
    log = Log(place, lines(100))
    before = log.state()
    for keep in (10_000, 10_001, 10**12):
        assert not log.cut(keep).changed
    assert log.state() == before


def test_keep_0_empties_a_log_that_nobody_writes(place: Path) -> None:
    log = Log(place, lines(5000))
    done = log.cut(0)
    assert (done.method, done.bytes_after, done.reclaimed_bytes) == ("truncate", 0, 500_000)
    assert log.content == b""


def test_an_empty_log_is_left_alone(place: Path) -> None:
    log = Log(place, b"")
    assert not log.cut(0).changed
    assert not log.cut(1000).changed


@pytest.mark.parametrize("writer", [NOBODY, ENGINE], ids=["nobody", "engine"])
def test_one_endless_line_is_never_torn(place: Path, writer: Writer) -> None:
    log = Log(place, b'{"log":"' + b"x" * 300_000)
    before = log.content
    assert not log.cut(1000, writer).changed
    assert log.content == before


def test_a_last_line_without_its_newline_stays_whole(place: Path) -> None:
    # It is being written, or its writer was killed.
    unfinished = b'{"log":"half a rec'
    log = Log(place, lines(3000) + unfinished)
    done = log.cut(1000)
    assert done.changed
    assert log.content.endswith(line(2999) + unfinished)
    assert numbers(log.content[: -len(unfinished)])[-1] == 2999


def test_an_unfinished_line_longer_than_what_is_kept_stays_whole(place: Path) -> None:
    unfinished = b'{"log":"' + b"y" * 50_000
    log = Log(place, lines(3000) + unfinished)
    done = log.cut(1000)
    assert done.changed
    assert log.content.endswith(unfinished)
    assert len(log.content) <= len(unfinished) + block_of(place)
    assert set(log.content[: -len(unfinished)]) <= {ord(" ")}


def test_a_torn_record_in_the_middle_is_no_obstacle(place: Path) -> None:
    # Trap 21: a short write on a full disk, and the next record right behind it.
    torn = b'{"log":"short wri'
    log = Log(place, lines(2000) + torn + lines(2000))
    done = log.cut(100_000)
    assert done.changed
    assert numbers(log.content) == list(range(2000 - len(numbers(log.content)), 2000))
    whole = Log(place / "second", lines(2000) + torn + lines(1000))
    whole.cut(150_000)
    assert torn + line(0) in whole.content


def test_nul_bytes_of_an_older_accident_are_cut_like_any_other(place: Path) -> None:
    log = Log(place, lines(1000) + b"\0" * 100_000 + b"\n" + lines(1000))
    log.cut(50_000)
    assert b"\0" not in log.content
    assert numbers(log.content)[-1] == 999


def test_a_line_that_ends_exactly_where_the_wish_begins_is_the_cut(place: Path) -> None:
    if can_collapse(place):
        pytest.skip("not here: whole blocks are taken out here; the spaces in front say where the cut is")
    log = Log(place, lines(3000))
    log.cut(1000)
    assert log.content == b"".join(line(number) for number in range(2990, 3000))


def test_what_is_left_of_a_cut_line_becomes_spaces_and_nothing_else(place: Path) -> None:
    if not can_collapse(place):
        pytest.skip("not here: this filesystem takes no blocks out")
    log = Log(place, lines(3000))
    log.cut(1000)
    text = log.content.lstrip(b" ")
    assert text == b"".join(line(number) for number in range(2990, 3000))
    assert len(log.content) - len(text) < block_of(place)


# -- cutting what an engine writes ---------------------------------------------------------------


@pytest.mark.parametrize(("major", "readers"), [(20, "ok"), (22, "ok"), (23, "stale"), (28, "stale")])
def test_a_log_that_an_engine_appends_to_loses_blocks_in_place(tmp_path: Path, major: int, readers: str) -> None:
    if not can_collapse(tmp_path):
        pytest.skip("not here: this filesystem takes no blocks out")
    if major >= 23 and can_clone(tmp_path):
        pytest.skip("not here: blocks are shared here, which is better")
    log = Log(tmp_path, lines(5000))
    with log.path.open("ab") as engine:
        done = log.cut(1000, ENGINE, major)
        engine.write(line(5000))
        engine.flush()
    assert done.method == "collapse"
    assert done.readers == readers
    assert numbers(log.content) == list(range(4990, 5001))
    assert b"\0" not in log.content


def test_a_log_that_is_written_while_it_is_cut_loses_no_new_line(tmp_path: Path) -> None:
    if not can_collapse(tmp_path) and not can_clone(tmp_path):
        pytest.skip("not here: this filesystem can neither take blocks out nor share them")
    log = Log(tmp_path, lines(20_000))
    script = "import sys\nout = open(sys.argv[1], 'ab', buffering=0)\nprint('go', flush=True)\n" + (
        "record = sys.argv[2]\nfor n in range(20000, 40000):\n    out.write((record % n).encode() + b'\\n')\n"
    )
    record = line(0).decode().rstrip("\n").replace("000000 ", "%06d ", 1)
    with subprocess.Popen([sys.executable, "-c", script, str(log.path), record], stdout=subprocess.PIPE) as fake_engine:
        assert fake_engine.stdout is not None
        fake_engine.stdout.readline()
        while fake_engine.poll() is None:
            log.cut(20_000, ENGINE, 20)
        assert fake_engine.returncode == 0
    left = numbers(log.content)
    assert left == list(range(left[0], 40_000))


def test_an_engine_that_does_not_append_would_leave_a_hole_so_blocks_stay_in(tmp_path: Path) -> None:
    # Trap 19: after its own rotation it writes at an offset of its own.
    if can_clone(tmp_path):
        pytest.skip("not here: blocks can be shared here, which keeps the file's length")
    log = Log(tmp_path, lines(5000))
    before = log.state()
    done = log.cut(1000, ROTATED)
    assert not done.changed
    assert done.words == (
        "a container that runs writes it, and the engine does not append to it (after a rotation of its own): "
        "there is no way yet that loses no line"
    )
    assert log.state() == before


@pytest.mark.parametrize("major", [20, 28])
def test_where_no_way_is_safe_a_written_log_stays_as_it_is_to_the_byte(place: Path, major: int) -> None:
    if can_collapse(place) or can_clone(place):
        pytest.skip("not here: this filesystem has a way")
    log = Log(place, lines(5000))
    before = log.state()
    done = log.cut(1050, ENGINE, major)
    assert not done.changed
    assert done.reclaimed_bytes == 0
    assert done.words == (
        "a container that runs writes it, and its filesystem can neither take blocks out nor share them: "
        "there is no way yet that loses no line"
    )
    assert log.state() == before


def test_keep_0_of_a_written_log_keeps_what_is_not_finished_and_less_than_a_block(tmp_path: Path) -> None:
    if not can_collapse(tmp_path):
        pytest.skip("not here: this filesystem takes no blocks out")
    log = Log(tmp_path, lines(5000) + b'{"log":"half')
    done = log.cut(0, ENGINE, 20)
    assert done.method == "collapse"
    assert log.content.endswith(b'{"log":"half')
    assert len(log.content) <= block_of(tmp_path)


@pytest.mark.parametrize("writer", [ENGINE, ROTATED], ids=["appends", "rotated"])
def test_shared_filler_keeps_the_length_and_is_no_line_to_a_reader(tmp_path: Path, writer: Writer) -> None:
    if not can_clone(tmp_path):
        pytest.skip("not here: this filesystem does not share blocks (FICLONERANGE)")
    count = 4 * logs.FILLER_BYTES // 100
    log = Log(tmp_path, lines(count))
    size = log.path.stat().st_size
    done = log.cut(1000, writer)
    assert done.method == "clone"
    assert log.path.stat().st_size == size
    left = numbers(log.content)
    assert left == list(range(count - len(left), count))
    assert done.bytes_after == size - done.reclaimed_bytes
    with logs.open_log(str(tmp_path), IDENT, write=False) as descriptor:
        assert logs.content_bytes(descriptor) == done.bytes_after
    assert not log.cut(1000, writer).changed


def test_filler_of_earlier_cuts_does_not_count_as_log(place: Path) -> None:
    filler = logs._FILLER_HEAD.ljust(logs.FILLER_BYTES - 1) + b"\n"
    log = Log(place, filler * 3 + lines(100))
    with logs.open_log(str(place), IDENT, write=False) as descriptor:
        assert logs.content_bytes(descriptor) == 10_000
    assert not log.cut(10_000).changed
    assert numbers(log.content) == list(range(100))
    assert log.cut(1000).changed
    assert numbers(log.content)[-1] == 99
    assert len(log.content) <= 1000 + block_of(place)


def test_a_filesystem_that_refuses_half_way_is_an_error_and_the_log_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake_refusal(*_arguments: t.Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    log = Log(tmp_path, lines(5000))
    before = log.content
    monkeypatch.setattr(logs, "_can_collapse", fake_refusal)
    with pytest.raises(OSError, match="Input/output error"):
        log.cut(1000)
    assert log.content == before


# -- whose files are opened ------------------------------------------------------------------------


def refusal(root: Path, ident: str = IDENT) -> str:
    with pytest.raises(LogRefused) as caught:
        with logs.open_log(str(root), ident, write=True):
            pass
    return str(caught.value)


def test_the_engines_own_plain_file_is_opened(tmp_path: Path) -> None:
    log = Log(tmp_path, b"x\n")
    for write in (True, False):
        with logs.open_log(str(tmp_path), IDENT, write=write) as descriptor:
            assert os.path.samestat(os.fstat(descriptor), log.path.stat())


def test_a_data_root_that_is_itself_a_link_is_followed(tmp_path: Path) -> None:
    # /var/lib/docker -> /data/docker is common, and the root was proven.
    Log(tmp_path / "data", b"x\n")
    (tmp_path / "docker").symlink_to(tmp_path / "data")
    with logs.open_log(str(tmp_path / "docker"), IDENT, write=True) as descriptor:
        assert os.pread(descriptor, 10, 0) == b"x\n"


@pytest.mark.parametrize(
    "ident",
    [
        "",
        "..",
        "../../etc",
        IDENT[:12],
        IDENT.upper(),
        IDENT + "0",
        f"{IDENT}/..",
        f"{IDENT}\n",
        "g" * 64,
        "/" + IDENT[1:],
    ],
    ids=repr,
)
def test_what_is_no_id_never_becomes_part_of_a_path(tmp_path: Path, ident: str) -> None:
    assert refusal(tmp_path, ident) == f"{ident!r} is not a container's id"


def test_a_link_instead_of_the_log_is_refused_and_what_it_names_stays(tmp_path: Path) -> None:
    log = Log(tmp_path, b"")
    log.path.unlink()
    (tmp_path / "shadow").write_bytes(b"secret")
    log.path.symlink_to(tmp_path / "shadow")
    assert refusal(tmp_path) == f"{log.path} is reached through a link; it stays as it is"
    assert (tmp_path / "shadow").read_bytes() == b"secret"


def test_a_link_instead_of_the_containers_folder_is_refused(tmp_path: Path) -> None:
    log = Log(tmp_path, b"x\n")
    log.folder.rename(tmp_path / "elsewhere")
    log.folder.symlink_to(tmp_path / "elsewhere")
    assert "is reached through a link" in refusal(tmp_path)


def test_a_link_instead_of_the_folder_of_all_containers_is_refused(tmp_path: Path) -> None:
    Log(tmp_path, b"x\n")
    (tmp_path / "containers").rename(tmp_path / "elsewhere")
    (tmp_path / "containers").symlink_to(tmp_path / "elsewhere")
    assert "is reached through a link" in refusal(tmp_path)


def test_a_log_with_a_second_name_is_refused(tmp_path: Path) -> None:
    log = Log(tmp_path, b"x\n")
    os.link(log.path, tmp_path / "other")
    assert refusal(tmp_path) == f"{log.path} has another name elsewhere (a hard link); it stays as it is"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_log_of_another_user_is_refused(tmp_path: Path) -> None:
    log = Log(tmp_path, b"x\n")
    os.chown(log.path, 12345, 12345)
    assert refusal(tmp_path) == f"{log.path} belongs to user 12345, not to the engine; it stays as it is"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_rootless_engines_log_belongs_to_the_owner_of_its_folder(tmp_path: Path) -> None:
    log = Log(tmp_path, b"x\n")
    os.chown(log.path, 12345, 12345)
    os.chown(log.folder, 12345, 12345)
    with logs.open_log(str(tmp_path), IDENT, write=True) as descriptor:
        assert os.pread(descriptor, 10, 0) == b"x\n"


def test_a_pipe_instead_of_a_log_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    log = Log(tmp_path, b"")
    log.path.unlink()
    os.mkfifo(log.path)
    assert refusal(tmp_path) == f"{log.path} is not a regular file; it stays as it is"


def test_a_socket_or_a_folder_instead_of_a_log_is_not_opened_for_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(tmp_path, b"")
    log.path.unlink()
    log.path.mkdir()
    with pytest.raises((OSError, LogRefused)):
        with logs.open_log(str(tmp_path), IDENT, write=True):
            pass
    log.path.rmdir()
    monkeypatch.chdir(log.folder)
    with socket.socket(socket.AF_UNIX) as fake:
        fake.bind(log.path.name)
        with pytest.raises((OSError, LogRefused)):
            with logs.open_log(str(tmp_path), IDENT, write=True):
                pass


def test_a_log_that_is_not_there_is_the_systems_own_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        with logs.open_log(str(tmp_path), IDENT, write=False):
            pass


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    log = Log(tmp_path, lines(5000))
    before = sorted(os.listdir("/proc/self/fd"))
    log.cut(1000, dry_run=True)
    log.cut(1000)
    os.link(log.path, tmp_path / "other")
    refusal(tmp_path)
    assert sorted(os.listdir("/proc/self/fd")) == before


# -- which files are logs --------------------------------------------------------------------------


def log_names(folder: Path) -> list[str]:
    """What ``files`` names, relative to the container's folder."""
    return sorted(os.path.relpath(path, folder) for path in logs.files(str(folder), IDENT))


def test_a_containers_logs_are_all_of_them_rotated_ones_too(tmp_path: Path) -> None:
    log = Log(tmp_path, b"x" * 5000)
    (log.folder / f"{log.path.name}.1").write_bytes(b"x" * 7000)
    (log.folder / f"{log.path.name}.2.gz").write_bytes(b"x" * 100)
    (log.folder / "config.v2.json").write_bytes(b"x" * 9000)
    (log.folder / "checkpoints").mkdir()
    name = log.path.name
    assert log_names(log.folder) == [name, f"{name}.1", f"{name}.2.gz"]


def test_logs_of_the_local_driver_and_the_engines_own_cache_of_them_count_as_well(tmp_path: Path) -> None:
    folder = tmp_path / IDENT
    (folder / "local-logs").mkdir(parents=True)
    for name in ("local-logs/container.log", "local-logs/container.log.1.gz", "container-cached.log", "container-cached.log.1"):
        (folder / name).write_bytes(b"x")
    for name in ("container.log", "local-logs/other", "local-logs/my-container.log"):
        (folder / name).write_bytes(b"x")
    assert log_names(folder) == [
        "container-cached.log", "container-cached.log.1", "local-logs/container.log", "local-logs/container.log.1.gz",
    ]


def test_a_container_without_a_log_on_disk_has_no_log_files(tmp_path: Path) -> None:
    (tmp_path / "config.v2.json").write_bytes(b"x")
    (tmp_path / f"{'b' * 64}-json.log").write_bytes(b"of another one")
    assert log_names(tmp_path) == []
    assert log_names(tmp_path / "nowhere") == []


def test_links_among_the_logs_are_named_and_not_followed(tmp_path: Path) -> None:
    # Whoever counts them counts the link itself, as it stands in the folder.
    log = Log(tmp_path, b"x" * 10)
    (tmp_path / "big").write_bytes(b"x" * 100_000)
    (log.folder / f"{log.path.name}.1").symlink_to(tmp_path / "big")
    assert log_names(log.folder) == [log.path.name, f"{log.path.name}.1"]


# -- what engines hold open ------------------------------------------------------------------------

#: A process that calls itself dockerd and opens what it is told, then waits for its input to end.
FAKE_ENGINE = """
import os, sys
open("/proc/self/comm", "w").write("dockerd")
for argument in sys.argv[1:]:
    mode, path = argument.split(":", 1)
    flags = {"append": os.O_WRONLY | os.O_APPEND, "offset": os.O_WRONLY, "read": os.O_RDONLY}[mode]
    os.open(path, flags)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def fake_engine() -> Iterator[t.Callable[..., int]]:
    running: list[subprocess.Popen[bytes]] = []

    def start(*opened: str) -> int:
        process = subprocess.Popen(
            [sys.executable, "-c", FAKE_ENGINE, *opened], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process.pid

    yield start
    for process in running:
        process.communicate()


def test_how_an_engine_writes_a_log_is_seen_from_its_open_file(
    tmp_path: Path, fake_engine: t.Callable[..., int]
) -> None:
    appended = Log(tmp_path, lines(10))
    rotated = Log(tmp_path, lines(10), ident=hashlib.sha256(b"rotated").hexdigest())
    pid = fake_engine(f"append:{appended.path}", f"offset:{rotated.path}", f"read:{appended.path}")
    found = {log.path: log for log in logs.open_logs(str(tmp_path))}
    assert len(found) == len(logs.open_logs(str(tmp_path))) == 2
    assert found[str(appended.path)].appends
    assert not found[str(rotated.path)].appends
    assert {(log.pid, log.deleted) for log in found.values()} == {(pid, False)}


def test_logs_of_another_data_root_and_other_files_are_not_this_engines(
    tmp_path: Path, fake_engine: t.Callable[..., int]
) -> None:
    other = Log(tmp_path / "other", lines(10))
    (other.folder / "config.v2.json").write_text("{}")
    (tmp_path / "root").mkdir()
    fake_engine(f"append:{other.path}", f"append:{other.folder / 'config.v2.json'}")
    assert logs.open_logs(str(tmp_path / "root")) == []
    assert [log.path for log in logs.open_logs(str(tmp_path / "other"))] == [str(other.path)]


def test_the_space_of_a_deleted_log_that_is_still_open_is_given_back(
    tmp_path: Path, fake_engine: t.Callable[..., int]
) -> None:
    log = Log(tmp_path, lines(5000))
    blocks = log.path.stat().st_blocks * 512
    fake_engine(f"append:{log.path}")
    log.path.unlink()
    (held,) = logs.open_logs(str(tmp_path))
    assert held.deleted
    assert held.path == str(log.path)
    assert held.bytes == blocks
    assert logs.give_back_deleted(held) == blocks
    (held,) = logs.open_logs(str(tmp_path))
    assert held.bytes == 0


def test_a_descriptor_that_names_a_living_file_meanwhile_is_left_alone(
    tmp_path: Path, fake_engine: t.Callable[..., int]
) -> None:
    log = Log(tmp_path, lines(5000))
    fake_engine(f"append:{log.path}")
    (held,) = logs.open_logs(str(tmp_path))
    assert logs.give_back_deleted(replace(held, deleted=True)) == 0
    assert len(log.content) == 500_000
