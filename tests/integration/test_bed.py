"""The test bed itself: hosts are what they say they are, and nothing of them is left, however their owner ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
if str(REPOSITORY) not in sys.path:
    sys.path.insert(0, str(REPOSITORY))

from tests.fleet import CommandFailed, Dirt, Fleet, FleetError, HostSpec, dirty, keeper, roots  # noqa: E402
from tests.integration.support import CONTAINERD  # noqa: E402

_reason = keeper.missing([HostSpec("any")])
pytestmark = pytest.mark.skipif(_reason is not None, reason=str(_reason))

CLI = [sys.executable, "-m", "tests.fleet"]
# What a whole fleet's owner looks like: it says where the fleet is, then waits to be ended.
OWNER = """
import sys, time
sys.path.insert(0, {repository!r})
from tests.fleet import Fleet, HostSpec
with Fleet([HostSpec("web1"), HostSpec("db1", "xfs", ssh=False)]) as fleet:
    print(fleet.directory, flush=True)
    time.sleep(600)
"""
WAITED = 15


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


class Traces:
    """What a running fleet can be found by later: only its own, since other fleets may come and go meanwhile."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        state = keeper.read_state(directory) or {"token": "fleetclean-none", "hosts": []}
        self.token = state["token"]
        self.devices = [record["device"] for record in state["hosts"] if record["device"]]

    def left(self) -> list[str]:
        found = [str(self.directory)] if self.directory.exists() else []
        found += [device for device in self.devices if Path("/sys/class/net", device).exists()]
        found += [str(path) for pattern in ("*", "*/*") for path in Path("/sys/fs/cgroup").glob(pattern) if path.name == self.token]
        found += [str(path) for path in Path("/sys/block").glob("loop*/loop/backing_file") if self._named(path)]
        for process in Path("/proc").glob("[0-9]*"):
            if process.name != str(os.getpid()) and any(self._named(process / name) for name in ("cmdline", "environ", "mountinfo", "cgroup")):
                found.append(f"process {process.name}: {_read(process / 'cmdline').decode(errors='replace')}")
        return found

    def _named(self, path: Path) -> bool:
        content = _read(path)
        return f"{self.directory}/".encode() in content or f"FLEET_DIR={self.directory}\0".encode() in content or self.token.encode() in content

    def assert_gone(self) -> None:
        deadline = time.monotonic() + WAITED
        while left := self.left():
            assert time.monotonic() < deadline, f"left after {WAITED} s: {left}"
            time.sleep(0.1)


@pytest.fixture
def owner() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process of its own group that owns a fleet with an open ssh connection; and the fleet's folder."""
    process = subprocess.Popen([sys.executable, "-c", OWNER.format(repository=str(REPOSITORY))], stdout=subprocess.PIPE, text=True,
                               start_new_session=True)
    assert process.stdout is not None
    directory = Path(process.stdout.readline().strip())
    assert directory.is_dir()
    yield process, directory
    process.kill()
    process.wait()
    process.stdout.close()
    # Also when a test failed: its fleet must not disturb the next ones.
    subprocess.run([*CLI, "down", "--dir", str(directory)], cwd=REPOSITORY, check=True)


def leave_connection_open(directory: Path) -> None:
    """Log in so that ssh's ControlPersist leaves a process behind, as Ansible does."""
    fleet = Fleet.attach(directory)
    done = subprocess.run([*fleet.ssh("web1"), "-o", "ControlMaster=auto", "-o", "ControlPersist=60s", "hostname"],
                          capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "web1", done.stderr
    assert list((directory / "s").iterdir())


def test_a_whole_host_has_an_engine_and_ssh() -> None:
    with Fleet([HostSpec("web1")]) as fleet:
        host = fleet["web1"]
        traces = Traces(fleet.directory)
        assert len(traces.left()) > 5
        assert host.exec(["hostname"]).stdout.strip() == "web1"
        assert host.exec(["cat"], input="a word").stdout == "a word"
        assert host.docker("info", "--format", "{{.Driver}} {{.DockerRootDir}}").stdout.split() == ["overlay2", host.data_root]
        assert host.api("GET", "/_ping") == (200, b"OK")
        for user, expected in (("root", "0"), ("ops", "0")):
            sudo = "sudo -n " if user == "ops" else ""
            done = subprocess.run([*fleet.ssh("web1", user), sudo + "id -u"], capture_output=True, text=True, timeout=30)
            assert done.stdout.strip() == expected, done.stderr
        fleet.add_to_inventory("nowhere", "198.51.100.1")
        hosts = json.loads(fleet.inventory.read_text())["docker_hosts"]["hosts"]
        assert hosts["web1"]["ansible_host"] == host.address and set(hosts) == {"web1", "nowhere"}
    traces.assert_gone()


def test_a_command_that_fails_says_so() -> None:
    with Fleet([HostSpec("web1", ssh=False, engine=False)]) as fleet:
        host = fleet["web1"]
        with pytest.raises(CommandFailed, match="web1: ls /nowhere ended with 2"):
            host.exec(["ls", "/nowhere"])
        assert host.exec(["false"], check=False).returncode == 1
        with pytest.raises(subprocess.TimeoutExpired):
            host.exec(["sleep", "61616"], timeout=0.5)
        assert "61616" not in host.exec(["ps", "ax"]).stdout
        assert host.engine_process() is None


def test_nothing_of_the_machine_leaks_in_or_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://198.51.100.1:2375")
    machine = {path: path.exists() for path in map(Path, ("/etc/docker/daemon.json", "/var/lib/docker", "/etc/sudoers.d/ops", "/run/docker.sock"))}
    with Fleet([HostSpec("web1")]) as fleet:
        host = fleet["web1"]
        assert "DOCKER" not in host.exec(["env"]).stdout
        assert "DOCKER" not in host.path(f"/proc/{host.engine_process()}/environ").read_text()
        assert host.exec(["ls", "-A", "/root", "/home", "/tmp"]).stdout.split() == ["/home:", "ops", "/root:", "/tmp:"]
        assert "ssh_host_rsa_key" not in host.exec(["ls", "/etc/ssh"]).stdout
    assert {path: path.exists() for path in machine} == machine


def test_the_engine_can_be_stopped_killed_and_started() -> None:
    with Fleet([HostSpec("web1", ssh=False, daemon_json={"live-restore": True})]) as fleet:
        host = fleet["web1"]
        host.stop_engine()
        assert host.engine_process() is None and host.alive
        with pytest.raises(OSError):
            host.api("GET", "/_ping")
        host.start_engine()
        assert host.must("GET", "/info")["LiveRestoreEnabled"]
        host.kill_engine()
        host.start_engine()
        host.restart_engine()
        assert "API listen" in host.engine_log()


def test_two_fleets_at_once_do_not_clash(tmp_path: Path) -> None:
    with Fleet([HostSpec("web1"), HostSpec("web2")]) as first, Fleet([HostSpec("web1")], tmp_path / "f") as second:
        addresses = [host.address for host in (*first, *second)]
        assert len(set(addresses)) == 3
        for fleet in (first, second):
            assert subprocess.run([*fleet.ssh("web1"), "hostname"], capture_output=True, text=True).stdout == "web1\n"
        with pytest.raises(FleetError, match="runs in .* already"):
            Fleet([HostSpec("web1", ssh=False)], tmp_path / "f").up()
        traces = [Traces(fleet.directory) for fleet in (first, second)]
    for trace in traces:
        trace.assert_gone()


DRIVERS = {
    f"{filesystem or 'tmpfs'}-{driver}": HostSpec(f"{filesystem or 'tmpfs'}-{driver}", filesystem, driver, ssh=False)
    for filesystem, driver in (("ext4", "overlay2"), ("xfs", "overlay2"), ("btrfs", "overlay2"), ("btrfs", "btrfs"), ("ext4", "vfs"), ("ext4", "overlay"),
                               ("ext4", "fuse-overlayfs"), (None, "overlay2"))
}


@pytest.fixture(scope="module")
def drivers() -> Iterator[Fleet]:
    """A host of each kind that can be had here, all at once."""
    with Fleet([spec for spec in DRIVERS.values() if not keeper.missing([spec])]) as fleet:
        yield fleet


@pytest.mark.parametrize("name", DRIVERS)
def test_each_filesystem_and_driver_starts(drivers: Fleet, name: str) -> None:
    spec = DRIVERS[name]
    if keeper.missing([spec]):
        pytest.skip(str(keeper.missing([spec])))
    assert drivers[name].must("GET", "/info")["Driver"] == spec.driver
    mounted = drivers[name].exec(["stat", "-f", "-c", "%T", "/var/lib/docker"]).stdout.strip()
    assert mounted == {"ext4": "ext2/ext3", None: "tmpfs"}.get(spec.filesystem, spec.filesystem)


SUITES = {"bullseye": "20.10", "trixie": "26.1", "forky": "28."}


@pytest.fixture(scope="module")
def suites() -> Iterator[Fleet]:
    """For each root that is made a plain host, and one with containerd's store where the engine has it."""
    specs = []
    for suite in SUITES:
        if roots.made(suite):
            specs.append(HostSpec(f"{suite}-plain", root=suite))
            if suite != "bullseye":
                specs.append(HostSpec(f"{suite}-store", root=suite, data_root="/data/docker", ssh=False, daemon_json=CONTAINERD))
    with Fleet(specs) as fleet:
        yield fleet


@pytest.mark.parametrize("suite", SUITES)
def test_another_debian_brings_another_engine(request: pytest.FixtureRequest, suite: str) -> None:
    if not roots.made(suite):
        pytest.skip(f"not made: python3 -m tests.fleet roots {suite}")
    suites: Fleet = request.getfixturevalue("suites")
    hosts = [host for host in suites if host.spec.root == suite]
    assert len(hosts) == (1 if suite == "bullseye" else 2)
    for host in hosts:
        assert host.must("GET", "/version")["Version"].startswith(SUITES[suite])
        assert host.must("GET", "/info")["DockerRootDir"] == host.data_root
        assert host.exec([host.python, "-c", "print(1)"]).stdout == "1\n"
    if suite != "bullseye":
        assert ["driver-type", "io.containerd.snapshotter.v1"] in suites[f"{suite}-store"].must("GET", "/info")["DriverStatus"]
    done = subprocess.run([*suites.ssh(f"{suite}-plain", "ops"), "sudo -n id -u"], capture_output=True, text=True)
    assert done.stdout == "0\n", done.stderr


FULL = {
    f"{filesystem}-{driver}": HostSpec(f"{filesystem}-{driver}", filesystem, driver, data_size="500M", root_size="64M")
    for filesystem, driver in (("ext4", "overlay2"), ("xfs", "overlay2"), ("btrfs", "btrfs"))
}


@pytest.fixture(scope="module")
def small() -> Iterator[Fleet]:
    with Fleet(FULL.values()) as fleet:
        yield fleet


@pytest.mark.parametrize("name", FULL)
def test_a_full_host_is_full_and_its_engine_answers(small: Fleet, name: str) -> None:
    host = small[name]
    for folder in ("/", host.data_root):
        host.fill(folder)
    # xfs keeps a few blocks for its own trees: too few for a new file.
    assert host.free_bytes(host.data_root) <= (65536 if host.spec.filesystem == "xfs" else 0)
    assert host.free_bytes("/") == host.free_bytes("/tmp") == 0
    for folder in ("/root", "/tmp", host.data_root):
        assert host.exec(["sh", "-c", f"head -c 10000 /dev/zero >{folder}/new"], check=False).returncode != 0
    assert host.docker("info", "--format", "{{.Driver}}").stdout.strip() == host.spec.driver
    assert subprocess.run([*small.ssh(name), "echo in"], capture_output=True, text=True).stdout == "in\n"


def test_a_host_can_be_filled_up_to_some_bytes() -> None:
    with Fleet([HostSpec("h1", data_size="500M", ssh=False)]) as fleet:
        host = fleet["h1"]
        filler = host.fill(host.data_root, leave=50_000_000)
        assert abs(host.free_bytes(host.data_root) - 50_000_000) < 1_000_000
        host.exec(["rm", filler])
        assert host.free_bytes(host.data_root) > 300_000_000


def test_an_engine_that_does_not_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="no-such-option"):
        Fleet([HostSpec("h1", ssh=False, daemon_json={"no-such-option": 1})], tmp_path / "f").up()
    Traces(tmp_path / "f").assert_gone()


def test_ctrl_c_leaves_nothing(owner: tuple[subprocess.Popen[str], Path]) -> None:
    process, directory = owner
    traces = Traces(directory)
    leave_connection_open(directory)
    os.killpg(process.pid, signal.SIGINT)
    process.wait(WAITED)
    traces.assert_gone()


def test_sigkill_to_the_owner_leaves_nothing(owner: tuple[subprocess.Popen[str], Path]) -> None:
    process, directory = owner
    traces = Traces(directory)
    leave_connection_open(directory)
    process.kill()
    traces.assert_gone()


@pytest.mark.parametrize("who", ["keeper", "janitor"])
def test_sigkill_to_the_keeper_or_its_janitor_leaves_nothing(owner: tuple[subprocess.Popen[str], Path], who: str) -> None:
    _, directory = owner
    traces = Traces(directory)
    leave_connection_open(directory)
    dirty(Fleet.attach(directory)["web1"], "small")
    state = keeper.read_state(directory)
    assert state is not None
    os.kill(state[who][0], signal.SIGKILL)
    traces.assert_gone()


def test_down_cleans_up_after_a_fleet_whose_keepers_were_killed_both(owner: tuple[subprocess.Popen[str], Path]) -> None:
    process, directory = owner
    traces = Traces(directory)
    state = keeper.read_state(directory)
    assert state is not None
    process.kill()
    for who in ("janitor", "keeper"):
        try:
            os.kill(state[who][0], signal.SIGKILL)
        except ProcessLookupError:
            pass
    subprocess.run([*CLI, "down", "--dir", str(directory)], cwd=REPOSITORY, check=True)
    traces.assert_gone()


def test_the_command_line_goes_up_and_down(tmp_path: Path) -> None:
    folder = ["--dir", str(tmp_path / "f")]

    def run(*arguments: str) -> str:
        return subprocess.run([*CLI, *arguments], cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout

    assert run("up", *folder, "--bare", "--hosts", "web1:ext4:overlay2,db1:xfs").strip() == str(tmp_path / "f" / "inventory.yml")
    traces = Traces(tmp_path / "f")
    assert "db1" in run("status", *folder)
    assert "running web" in run("dirty", *folder, "--scale", "0.1", "--log-size", "1M", "web1")
    assert Dirt.load(Fleet.attach(tmp_path / "f")["web1"]).running == "web"
    run("down", *folder)
    traces.assert_gone()
    assert run("down", *folder) == ""
    assert "no fleet" in run("status", *folder)


def test_a_fleet_ends_with_the_process_that_it_was_given(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as wanted:
        subprocess.run([*CLI, "up", "--dir", str(tmp_path / "f"), "--bare", "--hosts", "h1", "--while", str(wanted.pid)], cwd=REPOSITORY, check=True)
        traces = Traces(tmp_path / "f")
        assert traces.directory.exists()
        wanted.kill()
    traces.assert_gone()


@pytest.mark.parametrize("arguments, message", [
    (["up", "--hosts", "web1:zfs"], "unknown filesystem 'zfs'"), (["up", "--hosts", "none.json"], "none.json: no such file"),
    (["up", "--hosts", "Web_1"], "use small letters"), (["up", "--while", "999999999"], "no process 999999999"),
    (["roots", "sarge"], "no such suite"), (["contained", "--", "no-such-command"], "command not found"), (["dirty"], "no fleet runs"),
])
def test_a_users_mistake_is_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = subprocess.run([*CLI, *arguments], cwd=REPOSITORY, capture_output=True, text=True, env={**os.environ, "FLEETCLEAN_DIR": str(tmp_path / "f")})
    assert done.returncode == 1
    assert message in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "f").exists()


def running(marker: str) -> list[str]:
    return [path.parent.name for path in Path("/proc").glob("[0-9]*/cmdline") if marker.encode() in _read(path).split(b"\0")]


def wait_until_gone(marker: str) -> None:
    deadline = time.monotonic() + WAITED
    while running(marker):
        assert time.monotonic() < deadline, f"{marker} still runs"
        time.sleep(0.05)


def wait_until_running(marker: str) -> None:
    deadline = time.monotonic() + WAITED
    while not running(marker):
        assert time.monotonic() < deadline, f"{marker} does not run"
        time.sleep(0.05)


@contextmanager
def contained(script: str) -> Iterator[subprocess.Popen[str]]:
    """A script in a namespace of its own; ended in any case, so that a test that fails does not wait for it."""
    command = [*CLI, "contained", "--", "sh", "-c", script]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_contained_passes_the_exit_code_on_and_leaves_no_daemon() -> None:
    with contained("setsid sleep 60601 & exit 7") as process:
        assert process.wait(WAITED) == 7
    wait_until_gone("60601")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_contained_passes_signals_on(signum: int) -> None:
    with contained("trap 'exit 3' INT TERM; echo ready; while :; do sleep 0.1; done") as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signum)
        assert process.wait(WAITED) == 3


def test_sigkill_to_contained_ends_its_daemons() -> None:
    with contained("setsid sleep 60602 & sleep 60603 & echo ready; wait") as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        wait_until_running("60602")
        process.kill()
        wait_until_gone("60602")
        wait_until_gone("60603")


def test_contained_ends_with_its_parent() -> None:
    parent = subprocess.Popen(["sh", "-c", f"cd {REPOSITORY}; {' '.join(CLI)} contained -- sh -c 'setsid sleep 60604 & wait'; true"])
    wait_until_running("60604")
    parent.kill()
    parent.wait()
    wait_until_gone("60604")


def test_dirt_is_what_it_says() -> None:
    with Fleet([HostSpec("web1", ssh=False)]) as fleet:
        host = fleet["web1"]
        dirt = dirty(host, "small", aged=True, leftovers=True)
        containers = {c["Names"][0][1:]: c for c in host.must("GET", "/containers/json?all=1")}
        states = {name: c["State"] for name, c in containers.items()}
        for name in (dirt.running, dirt.chatty, dirt.big_log):
            assert states[name] == "running"
        for name in (dirt.stopped_new, dirt.stopped_old, dirt.kept_container, dirt.with_anonymous_volume, dirt.with_named_volume):
            assert states[name] == "exited"
        assert states[dirt.never_started] == "created" and dirt.dead is not None and states[dirt.dead] == "dead"
        assert "4 weeks ago" in containers[dirt.stopped_old]["Status"]
        log = Path(host.must("GET", f"/containers/{dirt.big_log}/json")["LogPath"])
        assert host.path(log).stat().st_size > 1_900_000
        assert host.must("GET", f"/images/{dirt.dangling_image}/json")["RepoTags"] == []
        assert host.must("GET", f"/images/{dirt.parent_image}/json")["RepoTags"] == []
        assert set(host.must("GET", f"/images/{dirt.running_image}/json")["RepoTags"]) == set(dirt.running_tags)
        assert host.must("GET", f"/images/{dirt.kept_image}/json")["Config"]["Labels"] == {"fleetclean.keep": ""}
        in_use = {v["Name"]: v["UsageData"]["RefCount"] for v in host.must("GET", "/system/df")["Volumes"]}
        assert {name for name, count in in_use.items() if count} == {dirt.used_anonymous_volume, dirt.used_named_volume}
        assert {dirt.anonymous_volume, dirt.named_volume, dirt.kept_volume} <= set(in_use)
        assert host.must("GET", f"/networks/{dirt.used_network}")["Containers"]
        assert dirt.build_cache and host.must("GET", "/system/df")["BuildCache"]
        assert len(dirt.leftover_paths) == 3 and all(host.path(path).exists() for path in dirt.leftover_paths)
        assert host.path(f"{host.data_root}/overlay2/{dirt.leftover_layers[0]}").is_dir()
        assert Dirt.load(host) == dirt
        # A host gets dirty again after it was cleaned, or before.
        assert dirty(host, "small").running == dirt.running
