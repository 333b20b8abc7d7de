# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Deleted files that are open are found by what the kernel says of real files in real processes, whatever they are called."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
import time
import tracemalloc
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import measure, open_deleted
from ansible_collections.fleetclean.docker.plugins.module_utils.open_deleted import DeletedFile, DeletedFiles
from holder import Holder

from tests import attacker

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root has mounts of its own and sees the processes of others")
MB = 1 << 20
#: Maps a file and closes it: nothing but the memory has it then. (Python's own mmap keeps a descriptor.)
_MAP = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
def map_only(path):
    descriptor = os.open(path, os.O_RDONLY)
    place = libc.mmap(None, ctypes.c_size_t(1 << 20), 1, 1, descriptor, ctypes.c_long(0))
    assert place not in (None, ctypes.c_void_p(-1).value), ctypes.get_errno()
    os.close(descriptor)
"""
_MAPS = f"""{_MAP}
for path in sys.argv[1:]:
    map_only(path)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def hold() -> Iterator[t.Callable[..., Holder]]:
    running: list[Holder] = []

    def start(*paths: Path, **more: t.Any) -> Holder:
        running.append(Holder(*(f"append:{path}" for path in paths), **more))
        return running[-1]

    yield start
    for one in running:
        one.end()


@pytest.fixture
def script() -> Iterator[t.Callable[..., int]]:
    """Starts a process that says a word once it is ready, and ends with the test; its pid."""
    running: list[subprocess.Popen[str]] = []

    def start(source: str, *arguments: object, before: t.Sequence[str] = (), **options: t.Any) -> int:
        command = [*before, sys.executable, "-c", source, *map(str, arguments)]
        running.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options))
        stdout = running[-1].stdout
        assert stdout is not None and stdout.readline() == "ready\n"
        return running[-1].pid

    yield start
    for process in running:
        process.kill()
        process.communicate()


Hold = t.Callable[..., Holder]
Script = t.Callable[..., int]


def put(path: Path, size: int = MB) -> Path:
    path.write_bytes(os.urandom(4096) * (size // 4096))
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
    return path


def find(*places: Path, top: int = -1) -> DeletedFiles:
    return open_deleted.find({measure.device(str(place)) for place in places}, top=top)


def below(found: DeletedFiles, *places: Path) -> dict[str, DeletedFile]:
    """Of what was found, what this test has made: others delete files as well."""
    return {os.path.basename(entry.path): entry for entry in found.largest if entry.path.startswith(tuple(str(place) for place in places))}


def test_a_deleted_file_is_found_with_its_bytes_and_who_holds_it(tmp_path: Path, hold: Hold) -> None:
    gone, kept, empty = put(tmp_path / "gone"), put(tmp_path / "kept"), put(tmp_path / "empty", 0)
    holder = hold(gone, kept, empty)
    about = gone.stat()
    gone.unlink()
    empty.unlink()
    before = find(tmp_path)
    found = below(before, tmp_path)
    assert set(found) == {"gone"}
    entry = found["gone"]
    assert (entry.path, entry.bytes, entry.inode) == (str(gone), about.st_blocks * 512, (about.st_dev, about.st_ino))
    assert (entry.holder.pid, entry.holder.user, entry.is_mapped, entry.processes) == (holder.pid, os.geteuid(), False, 1)
    assert entry.holder.command == Path(f"/proc/{holder.pid}/comm").read_text().strip()
    assert before.bytes[entry.device] >= entry.bytes and before.counts[entry.device] >= 1
    holder.end()
    assert below(find(tmp_path), tmp_path) == {}


def test_a_file_that_another_took_the_place_of_is_deleted_and_one_with_another_name_is_not(tmp_path: Path, hold: Hold) -> None:
    replaced, linked = put(tmp_path / "replaced"), put(tmp_path / "linked")
    os.link(linked, tmp_path / "other name")
    called_so = put(tmp_path / "living (deleted)")
    twice = put(tmp_path / "dead (deleted)")
    hold(replaced, linked, called_so, twice)
    os.rename(put(tmp_path / "new"), replaced)
    linked.unlink()
    twice.unlink()
    assert set(below(find(tmp_path), tmp_path)) == {"replaced", "dead (deleted)"}


@root_only
def test_a_mapping_outlives_its_descriptor(tmp_path: Path, script: Script) -> None:
    gone, kept = put(tmp_path / "gone\nmapped"), put(tmp_path / "kept")
    pid = script(_MAPS, gone, kept)
    blocks = gone.stat().st_blocks * 512
    gone.unlink()
    found = below(find(tmp_path), tmp_path)
    assert set(found) == {"gone\nmapped"}
    entry = found["gone\nmapped"]
    assert (entry.bytes, entry.holder.pid, entry.is_mapped) == (blocks, pid, True)


def test_a_file_counts_once_however_many_have_it_and_however_often(tmp_path: Path, hold: Hold, script: Script) -> None:
    gone = put(tmp_path / "gone")
    first = hold(gone, gone, gone)
    others = [hold(gone), hold(gone, gone)]
    maps = os.geteuid() == 0
    if maps:
        script(_MAPS, gone)
    gone.unlink()
    found = find(tmp_path)
    (entry,) = below(found, tmp_path).values()
    assert (entry.processes, entry.bytes, entry.holder.pid) == (3 + maps, MB, min(first.pid, *(other.pid for other in others)))
    for other in (first, *others):
        other.end()
    after = find(tmp_path)
    assert set(below(after, tmp_path)) == ({"gone"} if maps else set())
    if maps:
        assert below(after, tmp_path)["gone"].is_mapped


@root_only
def test_files_of_other_filesystems_and_what_is_no_file_do_not_count(tmp_path: Path, script: Script) -> None:
    inside = f"mount -t tmpfs tmpfs {tmp_path}/memory && exec \"$@\""
    (tmp_path / "memory").mkdir()
    source = """
import mmap, os, socket, sys
top = sys.argv[1]
kept = [os.open(f"{top}/{name}", os.O_RDWR | os.O_CREAT) for name in ("here", "memory/file")]
for descriptor in kept:
    os.write(descriptor, b"x" * (1 << 20))
kept += [os.memfd_create("on disk"), mmap.mmap(-1, 1 << 20), os.pipe(), os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR)]
os.write(kept[-1], b"x" * (1 << 20))
kept.append(socket.socket(socket.AF_UNIX))
kept[-1].bind(f"{top}/socket")
os.mkfifo(f"{top}/pipe")
kept.append(os.open(f"{top}/pipe", os.O_RDWR))
os.mkdir(f"{top}/folder")
kept.append(os.open(f"{top}/folder", os.O_RDONLY))
os.rmdir(f"{top}/folder")
for name in ("here", "memory/file", "socket", "pipe"):
    os.unlink(f"{top}/{name}")
print("ready", flush=True)
sys.stdin.read()
"""
    pid = script(source, tmp_path, before=("unshare", "--mount", "sh", "-c", inside, "sh"))
    assert {name for name, entry in below(find(tmp_path), tmp_path).items() if entry.holder.pid == pid} == {"here"}
    assert below(open_deleted.find({"0:999999"}), tmp_path) == {}
    assert open_deleted.find(set()) == DeletedFiles()


OVERLAY = f"""{_MAP}
top = sys.argv[1]
os.chdir(top)
kept = dict()
for name in ("image", "copied", "written", "below"):
    kept[name] = os.open("merged/" + name, os.O_RDONLY if name == "image" else os.O_RDWR | os.O_CREAT)
for name in ("copied", "written", "below"):
    os.write(kept[name], b"x" * (1 << 20))
    os.fsync(kept[name])
with open("merged/mapped", "wb") as stream:
    stream.write(b"y" * (1 << 20))
map_only("merged/mapped")
for name in ("image", "copied", "written", "mapped"):
    os.unlink("merged/" + name)
os.unlink("upper/below")
os.chdir("merged")
os.chroot(".")
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def way(tmp_path: Path) -> t.Iterator[Path]:
    """A link on another filesystem that leads to the test's own folder."""
    link = Path("/dev/shm", f"fleetclean-{os.getpid()}-{tmp_path.name}")
    link.symlink_to(tmp_path)
    yield link
    link.unlink()


@pytest.mark.parametrize("upper", ["upper", "{top}/upper", "{way}/upper"], ids=["relative", "absolute", "by a link"])
@root_only
def test_what_a_container_deleted_is_on_the_filesystem_of_its_overlays_upper_folder(tmp_path: Path, script: Script, upper: str, way: Path) -> None:
    if measure.filesystem(str(tmp_path)).type == "overlay":
        pytest.skip("not here: an overlay's upper folder cannot be on an overlay")
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    put(tmp_path / "lower/image")
    put(tmp_path / "lower/copied")
    options = f"lowerdir=lower,upperdir={upper.format(top=tmp_path, way=way)},workdir=work"
    inside = f'cd {tmp_path} && mount -t overlay overlay -o {options} merged && exec "$@"'
    pid = script(OVERLAY, tmp_path, before=("unshare", "--mount", "sh", "-c", inside, "sh"))
    device = measure.device(str(tmp_path))
    found = {os.path.basename(entry.path): entry for entry in open_deleted.find({device}, [str(tmp_path)]).largest if entry.holder.pid == pid}
    # A file of the image is only hidden: its blocks stay. One that was copied up before is the container's. One that somebody
    # removed from the upper folder itself is not called deleted.
    assert set(found) == {"copied", "written", "mapped", "below"}
    assert {entry.bytes for entry in found.values()} <= {MB, 2 * MB}
    assert {entry.device for entry in found.values()} == {device}
    assert found["mapped"].is_mapped and not found["written"].is_mapped
    # On another filesystem than those that are asked for.
    assert not [entry for entry in open_deleted.find({measure.device("/dev/shm")}, [str(tmp_path)]).largest if entry.holder.pid == pid]


_ANOTHER_USER = """
import os, sys
kept = os.open(sys.argv[1], os.O_RDONLY)
os.setresuid(12345, 12345, 12345)
print("ready", flush=True)
sys.stdin.read()
"""


@root_only
def test_a_process_of_another_user_is_named_with_its_user(tmp_path: Path, script: Script) -> None:
    gone = put(tmp_path / "gone")
    pid = script(_ANOTHER_USER, gone)
    gone.unlink()
    entry = below(find(tmp_path), tmp_path)["gone"]
    assert (entry.holder.pid, entry.holder.user) == (pid, 12345)


@root_only
def test_without_the_right_to_look_processes_are_counted_and_nothing_is_said_of_them(tmp_path: Path, hold: Hold) -> None:
    gone = put(tmp_path / "gone")
    hold(gone)
    gone.unlink()
    device = measure.device(str(tmp_path))
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.setresuid(12345, 12345, 12345)
        found = open_deleted.find({device})
        os.write(write, f"{found.unread} {len(below(found, tmp_path))}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    unread, named = map(int, os.read(read, 100).split())
    os.close(read)
    os.close(write)
    assert unread > 0 and named == 0


def test_this_process_and_one_that_ends_meanwhile_do_no_harm(tmp_path: Path, hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    own, gone = put(tmp_path / "own"), put(tmp_path / "gone")
    with own.open("rb"):
        own.unlink()
        assert below(find(tmp_path), tmp_path) == {}
    holder = hold(gone)
    gone.unlink()
    for name in ("readlink", "stat", "scandir"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, _ending(holder, getattr(os, name)))
            assert below(find(tmp_path), tmp_path) == {}
        holder = hold(put(gone))
        gone.unlink()
    assert set(below(find(tmp_path), tmp_path)) == {"gone"}


def _ending(holder: Holder, real: t.Callable[..., t.Any]) -> t.Callable[..., t.Any]:
    """The same function, but the process ends right before it is looked at."""

    def late(path: t.Any, *more: t.Any, **named: t.Any) -> t.Any:
        if str(path).startswith(f"/proc/{holder.pid}/fd"):
            holder.end()
        return real(path, *more, **named)

    return late


def test_processes_that_come_and_go_are_no_traceback(tmp_path: Path) -> None:
    over = threading.Event()

    def churn() -> None:
        while not over.is_set():
            subprocess.run([sys.executable, "-S", "-c", "import tempfile; kept = [tempfile.TemporaryFile(dir='.') for _ in range(50)]"], cwd=tmp_path, check=True)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            find(tmp_path)
    finally:
        over.set()
        thread.join()


def test_the_path_that_is_too_long_to_be_told_is_no_obstacle(tmp_path: Path, script: Script) -> None:
    source = """
import os, sys
os.chdir(sys.argv[1])
for _number in range(25):
    os.mkdir("d" * 200)
    os.chdir("d" * 200)
kept = os.open("file", os.O_RDWR | os.O_CREAT)
os.write(kept, b"x" * (1 << 20))
os.unlink("file")
print("ready", flush=True)
sys.stdin.read()
"""
    pid = script(source, tmp_path)
    assert [(entry.path, entry.bytes) for entry in find(tmp_path).largest if entry.holder.pid == pid] == [("", MB)]


@pytest.mark.parametrize(
    ("groups", "unit", "container"),
    [
        ("0::/system.slice/gitlab-runner.service", "gitlab-runner.service", ""),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/build.service", "build.service", ""),
        ("0::/user.slice/user-1000.slice/session-3.scope", "session-3.scope", ""),
        ("12:pids:/\n4:memory:/system.slice/cron.service\n1:name=systemd:/system.slice/cron.service\n0::/system.slice/cron.service", "cron.service", ""),
        (f"0::/system.slice/docker-{'ab' * 32}.scope", "", "ab" * 32),
        (f"5:devices:/docker/{'cd' * 32}\n1:name=systemd:/docker/{'cd' * 32}", "", "cd" * 32),
        (f"0::/kubepods.slice/kubepods-pod7.slice/cri-containerd-{'ef' * 32}.scope", "", "ef" * 32),
        (f"0::/docker/{'ab' * 32}/docker/{'cd' * 32}", "", "cd" * 32),
        (f"0::/{'ab' * 40}/x.service (deleted)", "", ""),
        ("0::/", "", ""),
        ("", "", ""),
        ("nonsense\n\n:::", "", ""),
    ],
)
def test_the_unit_or_the_container_is_told_by_the_control_group(groups: str, unit: str, container: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_deleted, "_read", lambda path: groups if path.endswith("/cgroup") else "")
    holder = open_deleted._holder(1)
    assert (holder.unit, holder.container) == (unit, container)


def test_no_more_are_named_than_were_asked_for_and_the_largest_first(tmp_path: Path, hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [put(tmp_path / str(number), 4096 * number) for number in (5, 9, 1, 7, 3)]
    holder, real = hold(*paths), os.listdir
    # The machine's other processes have deleted files of their own, which come and go.
    monkeypatch.setattr(os, "listdir", lambda path=".": [str(holder.pid)] if path == "/proc" else real(path))
    for path in paths:
        path.unlink()
    everything = find(tmp_path)
    assert sorted(below(everything, tmp_path)) == ["1", "3", "5", "7", "9"]
    sizes = [entry.bytes for entry in everything.largest]
    assert sizes == sorted(sizes, reverse=True)
    for top in (0, 1, 3):
        found = find(tmp_path, top=top)
        assert [entry.bytes for entry in found.largest] == sizes[:top]
        assert found.bytes == everything.bytes and found.counts == everything.counts


_MANY = """
import os, sys
kept = []
for number in range(int(sys.argv[2])):
    path = f"{sys.argv[1]}/{number}"
    kept.append(os.open(path, os.O_RDWR | os.O_CREAT))
    os.write(kept[-1], b"x")
    if sys.argv[3] == "deleted":
        os.unlink(path)
print("ready", flush=True)
sys.stdin.read()
"""


def test_thousands_of_descriptors_take_a_moment_and_little_memory(tmp_path: Path, script: Script) -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    count = min(5_000, most - 100)

    def raise_limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    script(_MANY, tmp_path, count, "kept", preexec_fn=raise_limit)
    began = time.process_time()
    find(tmp_path, top=20)
    kept = time.process_time() - began
    script(_MANY, tmp_path, count, "deleted", preexec_fn=raise_limit)
    began = time.process_time()
    found = find(tmp_path, top=20)
    deleted = time.process_time() - began
    print(f"\n{count} descriptors: {kept:.3f} s kept, {deleted:.3f} s deleted")
    assert found.counts[measure.device(str(tmp_path))] >= count
    assert kept < 1 and deleted < 3
    tracemalloc.start()
    find(tmp_path, top=20)
    assert tracemalloc.get_traced_memory()[1] < 8_000_000
    tracemalloc.stop()


def test_nothing_is_asked_of_a_filesystem_that_may_never_answer(tmp_path: Path, hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    # A file of a network filesystem whose server is gone: whoever asks for its size waits for ever.
    gone = put(tmp_path / "gone")
    holder = hold(gone)
    gone.unlink()
    asked: list[str] = []
    for name in ("stat", "open", "lstat"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda path, *more, _real=real, **named: (asked.append(str(path)), _real(path, *more, **named))[1])
    find(Path("/dev/shm"))
    assert [path for path in asked if path.startswith(f"/proc/{holder.pid}/fd/")] == []
    find(tmp_path)
    assert asked.count(f"/proc/{holder.pid}/fd/{holder.descriptors[0]}") == 1


# -- users of the host ----------------------------------------------------------------------------


def test_an_overlay_of_a_users_is_where_he_really_has_it(tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    """He writes the path of his upper folder himself, and his files seemed to be on the engine's filesystem."""
    if not attacker.works():
        pytest.skip("not here: no user namespaces for users")
    (tmp_path / "upper").mkdir()
    monkeypatch.setattr(sys, "executable", os.path.realpath(sys.executable))  # he may not look into our folders
    top = f"/{tmp_path.parts[1]}"
    pid = script(attacker.FAKED_OVERLAY, top, tmp_path, before=attacker.IN_USER_NAMESPACE, cwd="/")
    assert f"upperdir={tmp_path}/upper" in Path(f"/proc/{pid}/mountinfo").read_text(), "the attack itself does not work"
    assert not [entry for entry in find(tmp_path).largest if entry.holder.pid == pid]
    # Nor is it lost where it is.
    device = next(line.split()[2] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines() if line.split()[4] == top and "tmpfs" in line)
    (entry,) = [entry for entry in open_deleted.find({device}).largest if entry.holder.pid == pid and entry.path.endswith("/gone")]
    assert entry.bytes == MB


def test_a_process_with_more_open_than_is_looked_at_is_said_not_to_be_read(tmp_path: Path, hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [put(tmp_path / str(number)) for number in range(40)]
    hold(*paths)
    other = put(tmp_path / "other")
    hold(other)
    for path in [*paths, other]:
        path.unlink()
    whole = find(tmp_path)
    monkeypatch.setattr(open_deleted, "_MOST_OPEN", 20)
    some = find(tmp_path)
    assert "other" not in below(some, tmp_path) or len(below(some, tmp_path)) < 41
    assert some.unread > whole.unread
    monkeypatch.undo()
    monkeypatch.setattr(open_deleted, "_MOST_DELETED", 10)
    some = find(tmp_path)
    assert len(some.largest) <= 10 and some.unread > whole.unread


def test_no_process_is_looked_into_once_the_time_is_over(tmp_path: Path, hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = put(tmp_path / "gone")
    hold(gone)
    gone.unlink()
    monkeypatch.setattr(open_deleted, "_PATIENCE", -1.0)
    found = find(tmp_path)
    assert found.largest == [] and found.unread >= 1


@pytest.mark.parametrize("became", ["a pipe", "a device", "another file"])
def test_what_a_descriptor_is_by_now_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, became: str) -> None:
    """Between the look and the opening: opening a device does something by itself."""
    was, now = put(tmp_path / "was"), tmp_path / "now"
    about = was.stat()
    if became == "a pipe":
        os.mkfifo(now)
    elif became == "a device":
        now = Path("/dev/ptmx")
    else:
        put(now)
    real, flags = os.open, []

    def noting_open(path: t.Any, wanted: int, *more: t.Any, **options: t.Any) -> int:
        flags.append(wanted)
        return real(path, wanted, *more, **options)

    monkeypatch.setattr(os, "open", noting_open)
    assert open_deleted._shared_bytes(str(now), (about.st_dev, about.st_ino)) == 0
    assert [flag & os.O_PATH for flag in flags] == [os.O_PATH]
