# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""live-restore is turned on in the file that the engine reads. The engine is a fake: a process that reads it again on SIGHUP."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import live_restore, processes, restarting
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import FleetcleanError

#: Writes down at each SIGHUP what the file says then, or that it cannot be read. Its first argument is the file, its second where it writes.
FAKE_ENGINE = """
import signal, sys
def reload(*_):
    try:
        content = open(sys.argv[1]).read()
    except OSError:
        content = ""
    with open(sys.argv[2], "a") as stream:
        stream.write(repr(content) + "\\n")
signal.signal(signal.SIGHUP, reload)
print("up", flush=True)
while True:
    signal.pause()
"""


class Fake:
    """An engine's process, and all there is of ``Engine`` here."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.path, self.reloads = folder / "etc", folder / "etc/daemon.json", folder / "reloads"
        self.folder.mkdir()
        self.info: dict[str, t.Any] = {"DockerRootDir": "/var/lib/docker", "Swarm": {"LocalNodeState": "inactive"}}
        #: Whether it takes what it reads.
        self.obeys = True
        self.process: subprocess.Popen[bytes] | None = None
        patch.setattr(restarting, "check", lambda _engine, found: found.processes[0])
        patch.setattr(live_restore, "_DEFAULT_PATH", str(self.path))
        patch.setattr(live_restore, "_RELOAD_TIMEOUT_S", 5.0)

    def start(self, *arguments: str) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", FAKE_ENGINE, str(self.path), str(self.reloads), *arguments], cwd=self.folder, stdout=subprocess.PIPE)
        assert self.process.stdout and self.process.stdout.readline()

    @property
    def found(self) -> processes.Engine:
        if not self.process:
            self.start()
        assert self.process
        process = processes.look(self.process.pid)
        assert process
        return processes.Engine((process,), os.geteuid())

    def check(self) -> live_restore.Change:
        return live_restore.check(t.cast(t.Any, self), self.found)

    def enable(self) -> None:
        live_restore.enable(t.cast(t.Any, self), self.found, lambda: t.cast(t.Any, self.asked()))

    def check_restart(self) -> None:
        live_restore.check_restart(t.cast(t.Any, self), self.found)

    def restart(self) -> None:
        live_restore.restart(t.cast(t.Any, self), self.found, lambda: t.cast(t.Any, self.asked()))

    def asked(self) -> t.Any:
        """The engine, asked anew."""
        read = self.read[-1] if self.read else ""
        return type("Engine", (), {"info": {"LiveRestoreEnabled": self.obeys and '"live-restore": true' in read}})

    @property
    def read(self) -> list[str]:
        """What it has read at each reload."""
        return self.reloads.read_text().splitlines() if self.reloads.exists() else []

    def refused(self) -> str:
        before = {path: (path.read_bytes(), path.stat().st_ino) for path in self.folder.rglob("*")}
        with pytest.raises(FleetcleanError) as caught:
            self.check()
        with pytest.raises(FleetcleanError):
            self.enable()
        assert {path: (path.read_bytes(), path.stat().st_ino) for path in self.folder.rglob("*")} == before
        assert self.read == []
        return str(caught.value)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    made = Fake(tmp_path, monkeypatch)
    yield made
    if made.process:
        made.process.kill()
        made.process.communicate()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('{\n    "data-root": "/var/lib/docker",\n    "labels": ["a=b"]\n}\n', '{\n    "live-restore": true,\n    "data-root": "/var/lib/docker",\n    "labels": ["a=b"]\n}\n'),
        ('{"debug":true}', '{"live-restore": true, "debug":true}'),
        ('{\r\n\t"debug": true }\r\n', '{\r\n\t"live-restore": true,\r\n\t"debug": true }\r\n'),
        ('\ufeff{ "x": {"live-restore": false} }', '\ufeff{ "live-restore": true, "x": {"live-restore": false} }'),
        ("{}", '{\n  "live-restore": true\n}'),
        (" { } \n\n", '{\n  "live-restore": true\n} \n\n'),
        ("", '{\n  "live-restore": true\n}\n'),
        ("\n", '{\n  "live-restore": true\n}\n'),
        ('{"big": 123456789012345678901234567890, "float": 1.10, "text": "\\u00e4ä"}', '{"live-restore": true, "big": 123456789012345678901234567890, "float": 1.10, "text": "\\u00e4ä"}'),
    ],
)
def test_all_else_in_the_file_stays_as_it_is(fake: Fake, before: str, after: str) -> None:
    fake.path.write_text(before, newline="")
    fake.path.chmod(0o640)
    fake.check()
    assert (fake.path.read_bytes().decode(), fake.read) == (before, []), "a look changes nothing"
    fake.enable()
    assert fake.path.read_bytes().decode() == after
    assert fake.path.stat().st_mode & 0o7777 == 0o640
    assert [entry.name for entry in fake.folder.iterdir()] == ["daemon.json"]
    assert len(fake.read) == 1


def test_the_owner_stays(fake: Fake) -> None:
    if os.geteuid():
        pytest.skip("not here: needs root")
    fake.path.write_text("{}")
    os.chown(fake.path, 0, 12345)
    fake.enable()
    assert fake.path.stat().st_gid == 12345


@pytest.mark.parametrize("with_folder", [True, False])
def test_a_file_that_is_not_there_is_made(fake: Fake, with_folder: bool) -> None:
    """An engine that was never configured has none, and reads one that is there once it is told to."""
    found = fake.found  # it stands in the folder
    if not with_folder:
        fake.folder.rmdir()
    assert live_restore.check(t.cast(t.Any, fake), found).before is None
    assert fake.folder.exists() == with_folder
    fake.enable()
    assert json.loads(fake.path.read_text()) == {"live-restore": True}
    assert fake.path.stat().st_mode & 0o7777 == 0o644


@pytest.mark.parametrize("arguments", [("--config-file", "{0}/other.json"), ("--config-file={0}/other.json",), ("--config-file", "other.json"),
                                       ("--config-file=/nowhere", "--config-file={0}/other.json", "--debug")])
def test_the_file_is_the_one_that_the_command_line_names(fake: Fake, arguments: tuple[str, ...]) -> None:
    fake.path.write_text('{"debug": true}')
    other = fake.folder / "other.json"
    other.write_text("{}")
    fake.start(*(argument.format(fake.folder) for argument in arguments))
    assert fake.check().path == str(other)
    assert live_restore.check(t.cast(t.Any, fake), fake.found).content == b'{\n  "live-restore": true\n}'


def test_a_file_that_says_so_already_is_only_read_again(fake: Fake) -> None:
    """As a run left it that was killed, or an admin who has not reloaded it yet."""
    fake.path.write_text('{"live-restore": true}')
    inode = fake.path.stat().st_ino
    fake.enable()
    assert (fake.path.stat().st_ino, len(fake.read)) == (inode, 1)


@pytest.mark.parametrize("there", [True, False])
def test_an_engine_that_does_not_take_it_gets_its_file_back(fake: Fake, monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.setattr(live_restore, "_RELOAD_TIMEOUT_S", 0.3)
    fake.obeys = False
    if there:
        fake.path.write_text('{"no-such-option": 1}')
        inode = fake.path.stat().st_ino
    with pytest.raises(FleetcleanError, match="the engine does not say that it is on after .*daemon.json was reloaded; its log says why. The file is as it was"):
        fake.enable()
    if there:
        assert (fake.path.read_text(), fake.path.stat().st_ino) == ('{"no-such-option": 1}', inode)
    assert [entry.name for entry in fake.folder.iterdir()] == ["daemon.json"] * there
    # What it may have read of the file is not true any more.
    end = 100
    while len(fake.read) < 2 and end:
        end -= 1
        subprocess.run(["sleep", "0.05"], check=True)
    assert len(fake.read) == 2


def test_what_a_killed_run_left_beside_the_file_is_no_obstacle(fake: Fake) -> None:
    fake.path.write_text("{}")
    (fake.folder / ".daemon.json.fleetclean-new").write_text("half")
    os.link(fake.path, fake.folder / ".daemon.json.fleetclean-old")
    fake.enable()
    assert [entry.name for entry in fake.folder.iterdir()] == ["daemon.json"]
    # And where there was no file before.
    os.link(fake.path, fake.folder / ".daemon.json.fleetclean-new")
    assert fake.check().content is None


def refused_since_somebody_writes(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody writes the file right behind the look at it, and it is not changed for that."""
    real = live_restore.check

    def check(*about: t.Any) -> live_restore.Change:
        found = real(*about)
        fake.path.write_text('{"debug": true}')
        return found

    monkeypatch.setattr(live_restore, "check", check)
    with pytest.raises(FleetcleanError, match="could not be changed: somebody changes it at this moment"):
        fake.enable()


def test_a_file_that_somebody_changes_meanwhile_stays_theirs(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.path.write_text("{}")
    refused_since_somebody_writes(fake, monkeypatch)
    assert (fake.path.read_text(), fake.read) == ('{"debug": true}', [])
    assert [entry.name for entry in fake.folder.iterdir()] == ["daemon.json"]


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("how", ["renamed into place", "written to", "removed"])
def test_what_somebody_else_puts_in_its_place_meanwhile_stays_theirs(fake: Fake, monkeypatch: pytest.MonkeyPatch, there: bool, how: str) -> None:
    """Puppet, or another Ansible, while the engine is asked whether it took ours."""
    monkeypatch.setattr(live_restore, "_RELOAD_TIMEOUT_S", 0.2)
    fake.obeys = False
    if there:
        fake.path.write_text('{"debug": true}')
    theirs = '{"log-level": "warn"}'

    def asked() -> t.Any:
        if how == "removed":
            fake.path.unlink(missing_ok=True)
        elif how == "written to":
            fake.path.write_text(theirs)
        else:
            (fake.folder / "new").write_text(theirs)
            (fake.folder / "new").rename(fake.path)
        return type("Engine", (), {"info": {}})

    monkeypatch.setattr(fake, "asked", asked)
    with pytest.raises(FleetcleanError, match="was changed by somebody else meanwhile, so it stays as he left it"):
        fake.enable()
    assert [(entry.name, entry.read_text()) for entry in fake.folder.iterdir()] == [("daemon.json", theirs)] * (how != "removed")


def test_a_file_that_somebody_makes_meanwhile_stays_theirs(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    refused_since_somebody_writes(fake, monkeypatch)
    assert (fake.path.read_text(), fake.path.stat().st_nlink, fake.read) == ('{"debug": true}', 1, [])
    assert [entry.name for entry in fake.folder.iterdir()] == ["daemon.json"]


def test_a_file_that_is_replaced_while_ours_is_written_stays_theirs(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.path.write_text("{}")
    real = live_restore._write

    def write(*about: t.Any) -> t.Any:
        found = real(*about)
        (fake.folder / "new").write_text('{"debug": true}')
        (fake.folder / "new").rename(fake.path)
        return found

    monkeypatch.setattr(live_restore, "_write", write)
    with pytest.raises(FleetcleanError, match="could not be changed: somebody changes it at this moment"):
        fake.enable()
    assert [(entry.name, entry.read_text()) for entry in fake.folder.iterdir()] == [("daemon.json", '{"debug": true}')]
    assert fake.read == []


def test_a_folder_that_somebody_locks_is_waited_for_and_not_for_ever(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_restore, "_LOCK_TIMEOUT_S", 0.2)
    fake.path.write_text("{}")
    holder = os.open(fake.folder, os.O_RDONLY)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(FleetcleanError, match="could not be changed: .*/etc is locked by somebody else"):
            fake.enable()
        assert (fake.path.read_text(), fake.read) == ("{}", [])
    finally:
        os.close(holder)
    fake.enable()


@pytest.mark.parametrize("state", ["active", "pending", "locked", "error"])
def test_a_swarm_node_is_refused(fake: Fake, state: str) -> None:
    fake.info["Swarm"] = {"LocalNodeState": state}
    assert f"live_restore: enable: this host is a swarm node ({state}), and a swarm refuses live-restore. Use restart: containers." == fake.refused()


def test_an_engine_without_root_is_refused(fake: Fake) -> None:
    fake.info["SecurityOptions"] = ["name=seccomp,profile=builtin", "name=rootless"]
    assert "runs without root" in fake.refused()


@pytest.mark.parametrize("flag", ["--live-restore", "--live-restore=false"])
def test_a_flag_of_the_command_line_decides(fake: Fake, flag: str) -> None:
    """The engine refuses an option that is given twice: "specified both as a flag and in the configuration file"."""
    fake.path.write_text("{}")
    fake.start("--debug", flag)
    assert "its command line has --live-restore" in fake.refused()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"live-restore": false}', 'says "live-restore": false, which somebody decided. Change it there'),
        ('{"live-restore": null}', 'says "live-restore": null'),
        ("{", "is no JSON"), ("[]", "is no JSON object"), ('{"a": 1} x', "is no JSON"),
        ('{"data-root": "/srv/docker"}', "restarted, it would have none of its containers"),
        ('{"graph": "/srv/docker"}', "restarted, it would have none of its containers"),
        ('{"data-root": "/var/lib"}', "restarted, it would have none of its containers"),
        # It was edited since the engine read it.
        ('{"live-restore": true, "data-root": "/srv/docker"}', "restarted, it would have none of its containers"),
        ("[" * 100_000, "nested too deeply"), ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
        ('{"live-restore":' + "[" * 900 + "]" * 900 + "}", "live-restore"),
        ('{"a": NaN}', "is no JSON"),
        ("x" * (1 << 20) + "xx", "larger than 1 MB"),
    ],
)
def test_a_file_that_says_otherwise_or_nothing_at_all_is_refused(fake: Fake, content: str, words: str) -> None:
    fake.path.write_text(content)
    assert words in fake.refused()


def test_the_data_root_of_user_namespaces_is_the_one_that_is_named(fake: Fake) -> None:
    fake.info["DockerRootDir"] = "/var/lib/docker/100000.100000"
    fake.path.write_text('{"data-root": "/var/lib/docker/", "userns-remap": "default"}')
    assert fake.check().content


CONTAINERD = [["driver-type", "io.containerd.snapshotter.v1"]]


@pytest.mark.parametrize(
    ("info", "content", "another"),
    [
        ({}, '{"userns-remap": "default"}', "userns-remap"),
        ({"DockerRootDir": "/var/lib/docker/100000.100000"}, "{}", "userns-remap"),
        ({"Driver": "overlay2"}, '{"storage-driver": "btrfs"}', "storage-driver"),
        ({"Driver": "overlay2"}, '{"storage-driver": "overlay2", "features": {"buildkit": true}}', ""),
        ({"Driver": "overlay2", "ServerVersion": "26.1.5"}, '{"features": {"containerd-snapshotter": true}}', "containerd-snapshotter"),
        ({"Driver": "overlayfs", "ServerVersion": "28.5.2", "DriverStatus": CONTAINERD}, "{}", "containerd-snapshotter"),
        ({"Driver": "overlayfs", "ServerVersion": "29.0.1", "DriverStatus": CONTAINERD}, "{}", ""),
        (
            {"Driver": "overlayfs", "ServerVersion": "28.5.2", "DriverStatus": CONTAINERD},
            '{"storage-driver": "overlay2", "features": {"containerd-snapshotter": true}}', "",
        ),
    ],
)
def test_an_engine_that_would_come_back_with_another_store_is_refused(fake: Fake, info: dict[str, t.Any], content: str, another: str) -> None:
    """It leaves containers of other drivers, stores and users alone (moby, daemon/daemon.go: restore)."""
    fake.info.update(info)
    fake.path.write_text(content)
    if another:
        assert f"gives the engine another {another} than it has: restarted, it would have none of its containers" in fake.refused()
    else:
        assert fake.check().content


@pytest.mark.parametrize(
    ("arguments", "content"),
    [
        (("--log-opt", "max-size=1m"), '{"log-opts": {}}'), (("--label=a",), '{"labels": []}'), (("-sbtrfs",), '{"storage-driver": "btrfs"}'),
        (("--insecure-registry", "r"), '{"insecure-registries": []}'), (("-Hfd://",), '{"hosts": []}'),
    ],
)
def test_a_list_has_another_name_on_the_command_line(fake: Fake, arguments: tuple[str, ...], content: str) -> None:
    fake.start(*arguments)
    fake.path.write_text(content)
    assert "both give" in fake.refused()


def test_a_file_that_others_could_change_or_that_is_elsewhere_is_refused(fake: Fake) -> None:
    fake.path.write_text("{}")
    fake.path.chmod(0o666)
    assert "others than root may write it" in fake.refused()
    fake.path.chmod(0o644)
    os.link(fake.path, fake.folder / "again")
    assert "it has another name elsewhere (a hard link)" in fake.refused()
    fake.path.unlink()
    fake.path.symlink_to("again")
    assert "it is a link or no plain file" in fake.refused()
    fake.path.unlink()
    fake.folder.chmod(0o777)
    assert "others may write to" in fake.refused()


# -- a restart of an engine that has live-restore ----------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"live-restore": true}', ""),
        ('{"live-restore": true, "data-root": "/var/lib/docker/", "runtimes": {}}', ""),
        ('{"live-restore": true, "data-root": "/srv/docker"}', "the engine's data root is /var/lib/docker: restarted, it would have none of its containers"),
        ('{"live-restore": true, "debug": true}', 'the engine\'s command line both give "debug", with which it does not start'),
        ('{"live-restore": true, "mtu": 1400}', 'the engine\'s command line both give "mtu", with which it does not start'),
        ('{"live-restore": true, "hosts": []}', 'the engine\'s command line both give "hosts", with which it does not start'),
        ('{"live-restore": true,}', "is no JSON"),
        ("[]", "is no JSON object"),
        ("[" * 100_000, "is nested too deeply"),
        ('{"live-restore": false}', "does not turn live-restore on (any more), which the engine has: restarted, it would stop its containers"),
        ("{}", "does not turn live-restore on (any more)"),
        ("", "does not turn live-restore on (any more)"),
        (None, "does not turn live-restore on (any more)"),
    ],
)
def test_an_engine_that_would_not_come_back_with_its_containers_is_not_restarted(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, content: str | None, words: str
) -> None:
    """Its file was edited since the engine read it, which turned live-restore on then."""
    restarts: list[str] = []
    monkeypatch.setattr(restarting, "restart_engine", lambda *_about: restarts.append("engine"))
    if content is not None:
        fake.path.write_text(content)
    fake.start("-D", "--mtu=1400", "-H", "fd://", "--add-runtime=a=b")
    if not words:
        fake.restart()
        assert restarts == ["engine"]
        return
    for do in (fake.check_restart, fake.restart):
        with pytest.raises(FleetcleanError) as caught:
            do()
        assert str(caught.value).startswith("restart: engine: ") and words in str(caught.value)
        assert caught.value.code == "bad_input"
    assert restarts == []


@pytest.mark.parametrize(
    ("arguments", "content", "words"),
    [
        (("--live-restore",), "{}", ""),
        (("--live-restore=true",), None, ""),
        (("--live-restore=false",), None, "does not turn live-restore on"),
        (("--live-restore",), '{"live-restore": true}', 'both give "live-restore"'),
        (("--live-restore", "--data-root", "/srv/docker"), None, "it would have none of its containers"),
        (("--live-restore", "-g/srv/docker"), None, "names no data root, which makes it /srv/docker"),
        (("--live-restore", "-g", "/var/lib/docker"), None, ""),
        (("--live-restore", "--config-file={0}/gone.json"), "{}", "gone.json cannot be read (No such file or directory)"),
    ],
)
def test_the_command_line_counts_as_well(fake: Fake, arguments: tuple[str, ...], content: str | None, words: str) -> None:
    if content is not None:
        fake.path.write_text(content)
    fake.start(*(argument.format(fake.folder) for argument in arguments))
    if not words:
        fake.check_restart()
        return
    with pytest.raises(FleetcleanError) as caught:
        fake.check_restart()
    assert words in str(caught.value)


def test_the_engine_is_restarted_whoever_may_write_the_file_and_wherever_a_link_leads(fake: Fake) -> None:
    """Nothing is written there, and he may change it afterwards as well."""
    real = fake.folder / "real.json"
    real.write_text('{"live-restore": true}')
    real.chmod(0o666)
    fake.path.symlink_to("real.json")
    fake.check_restart()
    real.unlink()
    os.mkfifo(real)
    with pytest.raises(FleetcleanError, match="daemon.json cannot be read .it is a FIFO, not a regular file"):
        fake.check_restart()


def test_an_engine_without_root_ends_with_its_containers(fake: Fake) -> None:
    fake.info["SecurityOptions"] = ["name=rootless"]
    with pytest.raises(FleetcleanError, match="restart: engine: this engine runs without root"):
        fake.check_restart()
