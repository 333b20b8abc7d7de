# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which files are a container's logs, whose are refused, and who may change one: all by name and open file, without an engine."""

from __future__ import annotations

import gzip
import hashlib
import os
import socket
import threading
import time
from pathlib import Path

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import logs
from ansible_collections.fleetclean.docker.plugins.module_utils.logs import CACHE, JSON_FILE, KINDS, LOCAL, Kind, LogRefused

IDENT = hashlib.sha256(b"a container").hexdigest()
every_kind = pytest.mark.parametrize("kind", KINDS, ids=["json-file", "local", "cache"])


class Log:
    """A container's log below a data root."""

    def __init__(self, root: Path, content: bytes = b"x\n", kind: Kind = JSON_FILE) -> None:
        self.root = root
        self.path = Path(kind.path(str(root / "containers"), IDENT))
        self.folder = self.path.parent
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(content)

    def rotate(self) -> None:
        """As engines do: another name for the old file, and a new one in its place."""
        self.path.rename(f"{self.path}.1")
        self.path.write_bytes(b"new\n")


# -- whose files are opened ------------------------------------------------------------------------


def refusal(root: Path, ident: str = IDENT, kind: Kind = JSON_FILE) -> str:
    said = set()
    for write in (True, False):
        with pytest.raises(LogRefused) as caught:
            with logs.open_log(str(root / "containers"), ident, write, kind):
                pass
        said.add(str(caught.value))
    assert len(said) == 1
    return said.pop()


def test_names_are_the_engines() -> None:
    assert JSON_FILE.path("/root/containers", IDENT) == f"/root/containers/{IDENT}/{IDENT}-json.log"
    assert LOCAL.path("/root/containers", IDENT) == f"/root/containers/{IDENT}/local-logs/container.log"
    assert CACHE.path("/root/containers", IDENT) == f"/root/containers/{IDENT}/container-cached.log"
    assert [kind.driver for kind in KINDS] == ["json-file", "local", None]


@every_kind
def test_the_engines_own_plain_file_is_opened(tmp_path: Path, kind: Kind) -> None:
    log = Log(tmp_path, kind=kind)
    with logs.open_log(str(tmp_path / "containers"), IDENT, True, kind) as descriptor:
        assert os.path.samestat(os.fstat(descriptor), log.path.stat())
        assert os.pwrite(descriptor, b"y", 0) == 1
    with logs.open_log(str(tmp_path / "containers"), IDENT, False, kind) as descriptor:
        assert os.pread(descriptor, 10, 0) == b"y\n"
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(descriptor, b"z", 0)


@pytest.mark.parametrize("link", ["docker", "above"])
def test_a_link_that_is_put_in_the_place_of_the_data_root_leads_nowhere(tmp_path: Path, link: str) -> None:
    """The user of an engine without root owns the way there, once its real path was proven."""
    Log(tmp_path / "data/docker", b"x\n")
    (tmp_path / link).symlink_to(tmp_path / ("data/docker" if link == "docker" else "data"))
    root = tmp_path / ("docker" if link == "docker" else "above/docker")
    assert "is reached through a link" in refusal(root)
    # /var/lib/docker -> /data/docker is common: who asks has its real path.
    with logs.open_log(os.path.realpath(root / "containers"), IDENT, write=True) as descriptor:
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


@every_kind
def test_a_link_instead_of_the_log_is_refused_and_what_it_names_stays(tmp_path: Path, kind: Kind) -> None:
    log = Log(tmp_path, b"", kind)
    log.path.unlink()
    (tmp_path / "shadow").write_bytes(b"secret")
    log.path.symlink_to(tmp_path / "shadow")
    assert refusal(tmp_path, kind=kind) == f"{log.path} is reached through a link; it stays as it is"
    assert (tmp_path / "shadow").read_bytes() == b"secret"


def test_a_link_instead_of_the_containers_folder_is_refused(tmp_path: Path) -> None:
    log = Log(tmp_path, b"x\n")
    log.folder.rename(tmp_path / "elsewhere")
    log.folder.symlink_to(tmp_path / "elsewhere")
    assert "is reached through a link" in refusal(tmp_path)


def test_a_link_instead_of_the_local_drivers_folder_is_refused(tmp_path: Path) -> None:
    log = Log(tmp_path, kind=LOCAL)
    log.folder.rename(tmp_path / "elsewhere")
    log.folder.symlink_to(tmp_path / "elsewhere")
    assert refusal(tmp_path, kind=LOCAL) == f"{log.path} is reached through a link; it stays as it is"


def test_a_file_instead_of_a_folder_is_refused(tmp_path: Path) -> None:
    log = Log(tmp_path)
    (log.folder / "local-logs").write_bytes(b"")
    assert "is reached through a link" in refusal(tmp_path, kind=LOCAL)


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
    with logs.open_log(str(tmp_path / "containers"), IDENT, write=True) as descriptor:
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
        with logs.open_log(str(tmp_path / "containers"), IDENT, write=True):
            pass
    log.path.rmdir()
    monkeypatch.chdir(log.folder)
    with socket.socket(socket.AF_UNIX) as fake:
        fake.bind(log.path.name)
        with pytest.raises((OSError, LogRefused)):
            with logs.open_log(str(tmp_path / "containers"), IDENT, write=True):
                pass


def test_a_log_that_is_not_there_is_the_systems_own_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        with logs.open_log(str(tmp_path / "containers"), IDENT, write=False):
            pass


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    log = Log(tmp_path)
    before = sorted(os.listdir("/proc/self/fd"))
    with logs.open_log(str(tmp_path / "containers"), IDENT, write=False):
        pass
    with logs.claim(str(tmp_path / "containers"), IDENT, JSON_FILE):
        pass
    log.rotate()
    assert logs.rotated(str(tmp_path / "containers"), IDENT, JSON_FILE)
    logs.remove_rotated(str(tmp_path / "containers"), IDENT, JSON_FILE, ())
    with pytest.raises(ZeroDivisionError):
        with logs.claim(str(tmp_path / "containers"), IDENT, JSON_FILE):
            raise ZeroDivisionError
    os.link(log.path, tmp_path / "other")
    refusal(tmp_path)
    assert sorted(os.listdir("/proc/self/fd")) == before


# -- who may change one ----------------------------------------------------------------------------


@every_kind
def test_who_comes_second_waits_until_the_first_is_done(tmp_path: Path, kind: Kind) -> None:
    Log(tmp_path, kind=kind)
    order: list[str] = []

    def second() -> None:
        with logs.claim(str(tmp_path / "containers"), IDENT, kind):
            order.append("second")

    with logs.claim(str(tmp_path / "containers"), IDENT, kind):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.1)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_other_containers_logs_are_not_waited_for(tmp_path: Path) -> None:
    Log(tmp_path)
    Log(tmp_path, kind=CACHE)
    with logs.claim(str(tmp_path / "containers"), IDENT, JSON_FILE), logs.claim(str(tmp_path / "containers"), IDENT, CACHE):
        pass


def test_a_log_that_was_rotated_while_we_waited_is_opened_anew(tmp_path: Path) -> None:
    log = Log(tmp_path)
    found: list[bytes] = []

    def second() -> None:
        with logs.claim(str(tmp_path / "containers"), IDENT, JSON_FILE) as descriptor:
            found.append(os.pread(descriptor, 10, 0))

    with logs.claim(str(tmp_path / "containers"), IDENT, JSON_FILE):
        thread = threading.Thread(target=second)
        thread.start()
        end = time.monotonic() + 20
        while f":{log.path.stat().st_ino} " not in "".join(line for line in open("/proc/locks") if "->" in line) and time.monotonic() < end:
            time.sleep(0.01)
        log.rotate()
    thread.join()
    assert found == [b"new\n"]


def test_a_log_that_is_gone_or_no_plain_file_cannot_be_claimed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        with logs.claim(str(tmp_path / "containers"), IDENT, JSON_FILE):
            pass
    log = Log(tmp_path)
    os.link(log.path, tmp_path / "other")
    with pytest.raises(LogRefused, match="a hard link"):
        with logs.claim(str(tmp_path / "containers"), IDENT, JSON_FILE):
            pass


@every_kind
def test_a_rotation_is_seen_from_the_open_file(tmp_path: Path, kind: Kind) -> None:
    log = Log(tmp_path, kind=kind)
    with logs.claim(str(tmp_path / "containers"), IDENT, kind) as descriptor:
        assert logs.is_current(str(tmp_path / "containers"), IDENT, kind, descriptor)
        log.rotate()
        assert not logs.is_current(str(tmp_path / "containers"), IDENT, kind, descriptor)
        log.path.unlink()
        assert not logs.is_current(str(tmp_path / "containers"), IDENT, kind, descriptor)
        log.path.symlink_to(f"{log.path}.1")
        assert not logs.is_current(str(tmp_path / "containers"), IDENT, kind, descriptor)


# -- rotated files ---------------------------------------------------------------------------------


def test_the_kinds_of_log_that_a_container_has_are_told_by_name(tmp_path: Path) -> None:
    assert logs.kinds(str(tmp_path / "containers"), IDENT) == []
    for number, kind in enumerate(KINDS):
        Log(tmp_path, kind=kind)
        assert logs.kinds(str(tmp_path / "containers"), IDENT) == list(KINDS[:number + 1])
    Path(CACHE.path(str(tmp_path / "containers"), IDENT)).unlink()
    # What it is comes later: a link that leads nowhere is refused, not passed over.
    Path(CACHE.path(str(tmp_path / "containers"), IDENT)).symlink_to("/nowhere/at/all")
    assert logs.kinds(str(tmp_path / "containers"), IDENT) == list(KINDS)
    for nobody in ("", "..", IDENT[:12], "../" * 20):
        assert logs.kinds(str(tmp_path / "containers"), nobody) == []


@every_kind
def test_between_the_old_logs_new_name_and_the_new_log_the_container_still_has_a_log(tmp_path: Path, kind: Kind) -> None:
    log = Log(tmp_path, kind=kind)
    for look in (lambda: logs.kinds(str(tmp_path / "containers"), IDENT) == [kind], lambda: not refused(tmp_path, kind)):
        log.path.rename(f"{log.path}.1")
        timer = threading.Timer(0.1, log.path.write_bytes, (b"new\n",))
        timer.start()
        assert look()
        timer.join()


def refused(root: Path, kind: Kind) -> bool:
    """Whether the log cannot be opened."""
    try:
        with logs.open_log(str(root / "containers"), IDENT, False, kind):
            return False
    except OSError:
        return True


def test_a_deleted_log_with_rotated_files_is_not_waited_for_for_long(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.path.rename(f"{log.path}.1")
    assert logs.kinds(str(tmp_path / "containers"), IDENT) == []
    assert refused(tmp_path, JSON_FILE)


def test_rotated_files_that_get_their_next_name_meanwhile_hide_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(tmp_path)
    for number in range(1, 4):
        Path(f"{log.path}.{number}").write_bytes(b"x")
    real = os.stat

    def stat(path: object, **more: object) -> os.stat_result:
        if path == f"{log.path.name}.1":
            Path(f"{log.path}.1").unlink(missing_ok=True)
        return real(path, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", stat)
    assert [name for name, _about in logs.rotated(str(tmp_path / "containers"), IDENT, JSON_FILE)] == [f"{log.path.name}.2", f"{log.path.name}.3"]


@every_kind
def test_rotated_files_are_told_from_everything_else_in_the_folder(tmp_path: Path, kind: Kind) -> None:
    log = Log(tmp_path, kind=kind)
    for ending in (".1", ".2", ".10", ".3.gz"):
        Path(f"{log.path}{ending}").write_bytes(b"x" * 5000)
    others = (".1.bak", ".gz", ".tmp", "1", ".1.gz.tmp", "-old", ".a", ". 1", ".1\n", "-2018", "-20180912.sql", "-20180912x", "20180912", "-1.gz")
    for other in others:
        Path(f"{log.path}{other}").write_bytes(b"x")
    (log.folder / "other.1").write_bytes(b"x")
    Path(f"{log.path}.4").symlink_to(tmp_path / "outside")
    Path(f"{log.path}.5").mkdir()
    os.mkfifo(f"{log.path}.6")
    names = [name for name, _about in logs.rotated(str(tmp_path / "containers"), IDENT, kind)]
    assert names == [f"{log.path.name}{ending}" for ending in (".1", ".10", ".2", ".3.gz")]


@every_kind
def test_what_logrotate_makes_of_a_log_goes_with_the_engines_own_and_the_report_counts_both(tmp_path: Path, kind: Kind) -> None:
    """Its names by number or by date, packed by whatever it was told to (mantl 500, kubernetes 68587)."""
    log = Log(tmp_path, kind=kind)
    endings = [
        "-20180912", "-20180912.gz", "-2018-09-12.bz2", ".2018-09-12", "-2018091215", "-20180912-1536710400.xz", "-20180912T153000.zst", ".1", ".7.xz",
    ]
    for ending in endings:
        Path(f"{log.path}{ending}").write_bytes(b"x" * 5000)
    Path(f"{log.path}.bak").write_bytes(b"x" * 5000)
    there = sorted(log.path.name + ending for ending in endings)
    assert [name for name, _about in logs.rotated(str(tmp_path / "containers"), IDENT, kind)] == there
    assert sorted(os.path.basename(path) for path in logs.files(str(tmp_path / "containers" / IDENT), IDENT)) == [log.path.name, *there]
    logs.remove_rotated(str(tmp_path / "containers"), IDENT, kind, ())
    assert sorted(path.name for path in log.path.parent.iterdir()) == [log.path.name, f"{log.path.name}.bak"]


def test_no_name_takes_long_to_be_told_from_a_rotated_ones(tmp_path: Path) -> None:
    log = Log(tmp_path)
    for ending in ("." + "2018" * 20 + ".bak", "-20180912" + "-1" * 40 + "x", "-20180912" + "1" * 90 + ".gz.gz"):
        Path(f"{log.path}{ending}").touch()
    began = time.process_time()
    assert logs.rotated(str(tmp_path / "containers"), IDENT, JSON_FILE) == []
    assert time.process_time() - began < 1


@every_kind
def test_rotated_files_are_removed_and_nothing_else(tmp_path: Path, kind: Kind) -> None:
    log = Log(tmp_path, kind=kind)
    Path(f"{log.path}.1").write_bytes(b"x" * 50_000)
    Path(f"{log.path}.2.gz").write_bytes(gzip.compress(os.urandom(20_000)))
    (tmp_path / "outside").write_bytes(b"y")
    Path(f"{log.path}.3").symlink_to(tmp_path / "outside")
    Path(f"{log.path}.tmp").write_bytes(b"x")
    for ending in (".1", ".2.gz"):
        with open(f"{log.path}{ending}", "rb") as stream:
            os.fsync(stream.fileno())
    blocks = sum(about.st_blocks * 512 for _name, about in logs.rotated(str(tmp_path / "containers"), IDENT, kind))
    assert blocks >= 70_000
    assert logs.remove_rotated(str(tmp_path / "containers"), IDENT, kind, ()) == blocks
    assert sorted(path.name for path in log.folder.iterdir()) == sorted(log.path.name + ending for ending in ("", ".3", ".tmp"))
    assert (tmp_path / "outside").read_bytes() == b"y"
    assert logs.remove_rotated(str(tmp_path / "containers"), IDENT, kind, ()) == 0


def test_a_rotated_file_that_is_still_written_stays(tmp_path: Path) -> None:
    # Engines before 18.09 rename before they open the new one; somebody's logrotate may rename under the engine.
    log = Log(tmp_path)
    for number in (1, 2):
        Path(f"{log.path}.{number}").write_bytes(b"x" * 9000)
    held = Path(f"{log.path}.1").stat()
    logs.remove_rotated(str(tmp_path / "containers"), IDENT, JSON_FILE, {(held.st_dev, held.st_ino)})
    assert [name for name, _about in logs.rotated(str(tmp_path / "containers"), IDENT, JSON_FILE)] == [f"{log.path.name}.1"]


def test_a_rotated_file_with_a_second_name_goes_and_frees_nothing(tmp_path: Path) -> None:
    log = Log(tmp_path)
    Path(f"{log.path}.1").write_bytes(b"x" * 50_000)
    os.link(f"{log.path}.1", tmp_path / "backup")
    assert logs.remove_rotated(str(tmp_path / "containers"), IDENT, JSON_FILE, ()) == 0
    assert (tmp_path / "backup").read_bytes() == b"x" * 50_000
    assert not logs.rotated(str(tmp_path / "containers"), IDENT, JSON_FILE)


def test_rotated_files_behind_a_link_stay(tmp_path: Path) -> None:
    log = Log(tmp_path, kind=LOCAL)
    Path(f"{log.path}.1").write_bytes(b"x")
    log.folder.rename(tmp_path / "elsewhere")
    log.folder.symlink_to(tmp_path / "elsewhere")
    for act in (lambda: logs.rotated(str(tmp_path / "containers"), IDENT, LOCAL), lambda: logs.remove_rotated(str(tmp_path / "containers"), IDENT, LOCAL, ())):
        with pytest.raises(LogRefused, match="reached through a link"):
            act()
    assert (tmp_path / "elsewhere/container.log.1").exists()


def test_a_container_that_is_gone_has_no_rotated_files(tmp_path: Path) -> None:
    assert logs.rotated(str(tmp_path / "containers"), IDENT, JSON_FILE) == []
    assert logs.remove_rotated(str(tmp_path / "containers"), IDENT, LOCAL, ()) == 0


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
