# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Only regular files and directories are opened, whatever a name leads to by the time it is opened."""

from __future__ import annotations

import ast
import errno
import fcntl
import os
import signal
import socket
import threading
import typing as t
from contextlib import contextmanager
from pathlib import Path

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import safe_open
from ansible_collections.fleetclean.docker.plugins.module_utils.storage import Storage, prove


def make(path: Path, kind: str) -> None:
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
    elif kind == "device":
        os.mknod(path, 0o020600, os.makedev(1, 3))
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/etc/passwd")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> t.Iterator[list[int]]:
    """The types of all that is opened for more than a look, as ``st_mode`` has them."""
    found: list[int] = []
    real = os.open

    def fake_open(path: t.Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        descriptor = real(path, flags, mode, dir_fd=dir_fd)
        if not flags & os.O_PATH:
            found.append(os.fstat(descriptor).st_mode & 0o170000)
        return descriptor

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fake_open)
        yield found


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "directory", "link"])
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
def test_what_is_no_regular_file_is_refused_unopened(tmp_path: Path, opened: list[int], kind: str, flags: int) -> None:
    make(tmp_path / "it", kind)
    with pytest.raises(safe_open.NotRegular) as refused:
        safe_open.open_regular(str(tmp_path / "it"), flags)
    assert refused.value.errno == {"link": errno.ELOOP, "socket": errno.ENXIO}.get(kind, errno.EINVAL)
    assert refused.value.filename == str(tmp_path / "it")
    assert not opened


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "link"])
def test_what_is_no_directory_is_refused_unopened(tmp_path: Path, opened: list[int], kind: str) -> None:
    make(tmp_path / "it", kind)
    with pytest.raises(OSError) as refused:
        safe_open.open_directory(str(tmp_path / "it"))
    assert refused.value.errno == errno.ENOTDIR
    assert not opened


def test_a_file_is_opened_by_its_name_and_relative_to_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    folder = safe_open.open_directory(str(tmp_path))
    try:
        assert safe_open.read_regular("file", 100, dir_fd=folder) == safe_open.read_regular(str(tmp_path / "file"), 7) == b"content"
        descriptor = safe_open.open_regular("file", os.O_RDWR, dir_fd=folder)
        os.pwrite(descriptor, b"C", 0)
        os.close(descriptor)
        assert os.listdir(folder) == ["file"]
    finally:
        os.close(folder)
    assert (tmp_path / "file").read_bytes() == b"Content"


def test_nothing_is_created_and_what_is_gone_is_said_to_be_gone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        safe_open.open_regular(str(tmp_path / "nothing"), os.O_RDWR)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_too_long_is_refused_and_its_head_can_be_read(tmp_path: Path) -> None:
    with open(tmp_path / "long", "wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(OSError) as refused:
        safe_open.read_regular(str(tmp_path / "long"), 1000)
    assert refused.value.errno == errno.EFBIG
    assert safe_open.read_head(str(tmp_path / "long"), 1000) == bytes(1000)


def test_what_is_swapped_after_the_look_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[int]) -> None:
    (tmp_path / "it").write_bytes(b"file")
    real = os.fstat

    def swap(descriptor: int) -> os.stat_result:
        found = real(descriptor)
        if not (tmp_path / "old").exists():
            os.rename(tmp_path / "it", tmp_path / "old")
            os.mkfifo(tmp_path / "it")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", swap)
        assert safe_open.read_regular(str(tmp_path / "it"), 100) == b"file"
    assert opened == [0o100000]


def test_a_name_that_changes_all_the_time_leads_to_a_file_or_is_refused(tmp_path: Path, opened: list[int]) -> None:
    (tmp_path / "file").write_bytes(b"file")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/etc/passwd")
    end = threading.Event()

    def flip() -> None:
        while not end.is_set():
            for name in ("file", "fifo", "link"):
                if name == "link":
                    os.symlink("/etc/passwd", tmp_path / "next")
                else:
                    os.link(tmp_path / name, tmp_path / "next")
                os.rename(tmp_path / "next", tmp_path / "it")

    flipping = threading.Thread(target=flip)
    flipping.start()
    came = {"file": 0, "refused": 0}
    try:
        for _ in range(20_000):
            if all(came.values()) and sum(came.values()) > 200:
                break
            try:
                assert safe_open.read_regular(str(tmp_path / "it"), 100) == b"file"
                came["file"] += 1
            except safe_open.NotRegular:
                came["refused"] += 1
            except FileNotFoundError:
                pass
    finally:
        end.set()
        flipping.join()
    assert set(opened) == {0o100000}
    assert all(came.values())


def test_a_lease_of_somebody_else_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"file")
    with open(tmp_path / "file", "rb") as held:
        fcntl.fcntl(held, fcntl.F_SETSIG, 0)
        fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        before = signal.signal(signal.SIGIO, signal.SIG_IGN)
        try:
            with pytest.raises(BlockingIOError):
                safe_open.open_regular(str(tmp_path / "file"), os.O_RDWR)
        finally:
            fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            signal.signal(signal.SIGIO, before)


def test_without_proc_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"file")
    real = os.open

    def no_proc(path: t.Any, *args: t.Any, **options: t.Any) -> int:
        if str(path).startswith("/proc/"):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        return real(path, *args, **options)

    monkeypatch.setattr(os, "open", no_proc)
    with pytest.raises(OSError, match="/proc is not mounted") as refused:
        safe_open.open_regular(str(tmp_path / "file"))
    assert refused.value.filename == str(tmp_path / "file") and not isinstance(refused.value, FileNotFoundError)


def test_a_processs_file_is_opened_if_it_is_a_regular_one(tmp_path: Path, opened: list[int]) -> None:
    (tmp_path / "file").write_bytes(b"file")
    os.mkfifo(tmp_path / "fifo")
    held = [os.open(tmp_path / name, os.O_RDWR | os.O_NONBLOCK) for name in ("file", "fifo")]
    inodes = [(os.fstat(descriptor).st_dev, os.fstat(descriptor).st_ino) for descriptor in held]
    opened.clear()
    try:
        descriptor = safe_open.open_regular_of_process(f"/proc/{os.getpid()}/fd/{held[0]}", inodes[0])
        assert os.read(descriptor, 10) == b"file"
        os.close(descriptor)
        with pytest.raises(safe_open.NotRegular):
            safe_open.open_regular_of_process(f"/proc/{os.getpid()}/fd/{held[1]}", inodes[1])
        with pytest.raises(OSError, match="another file"):
            safe_open.open_regular_of_process(f"/proc/{os.getpid()}/fd/{held[0]}", (inodes[0][0], inodes[0][1] + 1))
    finally:
        for descriptor in held:
            os.close(descriptor)
    assert opened == [0o100000]


def test_a_device_is_opened_if_it_is_the_one_that_is_meant(tmp_path: Path, opened: list[int]) -> None:
    make(tmp_path / "device", "device")
    (tmp_path / "file").write_bytes(b"file")
    for name in ("device", "file"):
        with pytest.raises(OSError) as refused:
            safe_open.open_block_device(str(tmp_path / name), os.makedev(1, 3))
        assert refused.value.errno == errno.ENODEV
    assert not opened


# -- who opens what lies below a data root ------------------------------------------------------------------

#: Those who look below the data root. They open nothing by themselves but what the kernel makes up.
_LOOKERS = (
    "attribution", "bolt", "descent", "extents", "image_records", "layers", "leftovers", "logs", "measure", "places", "snapshot",
    "storage", "walk",
)


@pytest.mark.parametrize("name", _LOOKERS)
def test_whoever_looks_below_the_data_root_opens_through_this_door(name: str) -> None:
    source = (Path(safe_open.__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    others = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("open", "os.open", "io.open"):
            first = ast.unparse(node.args[0]).lstrip("f'\"")
            # The walk opens a directory as open_directory does, without the cost of a call.
            if not first.startswith(("/proc/", "/sys/")) and not any("DIRECTORY" in ast.unparse(argument) for argument in node.args):
                others.append(first)
    assert not others


@contextmanager
def within(seconds: int) -> t.Iterator[None]:
    def stop(_number: int, _frame: object) -> t.NoReturn:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


IDENT = "a" * 64
RECORDS: dict[str, t.Callable[[Storage], object]] = {
    f"containers/{IDENT}/config.v2.json": lambda storage: storage.container_record(IDENT),
    f"image/overlay2/imagedb/content/sha256/{IDENT}": lambda storage: storage.image_layers(IDENT),
    f"image/overlay2/imagedb/metadata/sha256/{IDENT}/lastUpdated": lambda storage: (storage.image_tagged(IDENT) or "").strip("\0"),
    f"image/overlay2/layerdb/sha256/{IDENT}/size": lambda storage: storage.layer_sizes() or None,
    "engine-id": lambda storage: None if not prove(storage, {"ID": "x"}, "unix:///", [], []).proven else "proven",
}


@pytest.mark.parametrize("kind", ["fifo", "device", "endless"])
@pytest.mark.parametrize("path", RECORDS)
def test_a_record_that_is_something_else_holds_nobody_up(tmp_path: Path, opened: list[int], path: str, kind: str) -> None:
    place = tmp_path / path
    place.parent.mkdir(parents=True, exist_ok=True)
    if kind == "endless":
        with open(place, "wb") as stream:
            stream.truncate(1 << 40)
    else:
        make(place, kind)
    opened.clear()
    with within(5):
        assert not RECORDS[path](Storage(str(tmp_path), "overlay2", "graphdriver", {}))
    assert set(opened) <= {0o100000, 0o040000}


@pytest.mark.parametrize("content", ["[" * 100_000, '{"rootfs": ' + "[" * 100_000, '{"rootfs": {"diff_ids": 1}}', "{}", "\0"])
def test_an_images_record_may_be_anything(tmp_path: Path, content: str) -> None:
    storage = Storage(str(tmp_path), "overlay2", "graphdriver", {})
    place = tmp_path / f"image/overlay2/imagedb/content/sha256/{IDENT}"
    place.parent.mkdir(parents=True)
    place.write_text(content)
    assert not storage.image_layers(IDENT)
