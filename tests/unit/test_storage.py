# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each storage driver keeps where, on trees made for the test; and the proof whose data root it is.

overlay2, vfs and btrfs have a real engine in the integration tests. aufs, devicemapper and zfs can not be had
here: their trees are fakes, made after the engine's own daemon/graphdriver.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import typing as t
from contextlib import contextmanager
from pathlib import Path

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import storage
from ansible_collections.fleetclean.docker.plugins.module_utils.storage import Storage, prove

from tests import attacker

HERE = os.uname().nodename
SOCKET = "unix:///var/run/docker.sock"
ONE, TWO, THREE = "1" * 64, "2" * 64, "3" * 64


def make(root: Path, *folders: str) -> None:
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)


def engine_storage(root: Path, driver: str = "overlay2", image_store: str = "graphdriver") -> Storage:
    return Storage(str(root), driver, image_store, {})


# -- what the engine says ----------------------------------------------------------------------------


def test_a_storage_is_read_from_docker_info() -> None:
    info = {
        "Driver": "overlay2",
        "DockerRootDir": "/data/docker/",
        "DriverStatus": [["Backing Filesystem", "extfs"], ["Supports d_type", "true"]],
    }
    found = storage.from_info(info)
    assert (found.root, found.driver, found.image_store) == ("/data/docker", "overlay2", "graphdriver")
    assert found.driver_status == {"Backing Filesystem": "extfs", "Supports d_type": "true"}


def test_containerds_image_store_is_known_by_its_snapshotter() -> None:
    info = {"Driver": "overlayfs", "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]}
    assert storage.from_info(info).image_store == "containerd"


@pytest.mark.parametrize(
    "info", [{}, {"DriverStatus": None, "DockerRootDir": ""}, {"DriverStatus": [["alone"], "text", 5]}]
)
def test_an_answer_without_figures_is_no_traceback(info: dict[str, t.Any]) -> None:
    found = storage.from_info(info)
    assert (found.root, found.driver, found.driver_status) == ("/var/lib/docker", "", {})


# -- the table -----------------------------------------------------------------------------------------

TREES = [
    ("overlay2", ("overlay2",)),
    ("overlay", ("overlay",)),
    ("vfs", ("vfs/dir",)),
    ("btrfs", ("btrfs/subvolumes",)),
    ("fuse-overlayfs", ("fuse-overlayfs",)),
    ("aufs", ("aufs/diff", "aufs/layers", "aufs/mnt")),
    ("devicemapper", ("devicemapper/devicemapper", "devicemapper/metadata", "devicemapper/mnt")),
    ("zfs", ("zfs/graph",)),
]
IDS = [driver if driver not in ("aufs", "devicemapper", "zfs") else f"fake-{driver}" for driver, _parts in TREES]


@pytest.mark.parametrize(("driver", "parts"), TREES, ids=IDS)
def test_a_drivers_layers_are_found_where_it_keeps_them(tmp_path: Path, driver: str, parts: tuple[str, ...]) -> None:
    make(tmp_path, *parts, f"image/{driver}", "containers", "volumes", "network", "tmp")
    paths = engine_storage(tmp_path, driver).paths()
    assert paths["layers"] == [f"{tmp_path}/{part}" for part in parts]
    assert paths["image_metadata"] == [f"{tmp_path}/image/{driver}"]
    assert paths["containers"] == paths["logs"] == [f"{tmp_path}/containers"]
    assert paths["volumes"] == [f"{tmp_path}/volumes"]
    assert paths["build_cache"] == paths["plugins"] == paths["swarm"] == []


def test_every_driver_of_the_table_has_its_tree_here() -> None:
    assert {driver for driver, _parts in TREES} == set(storage._DRIVERS)


@pytest.mark.parametrize(("driver", "parts"), TREES, ids=IDS)
def test_layers_of_a_driver_that_was_in_use_before_are_found_as_others(
    tmp_path: Path, driver: str, parts: tuple[str, ...]
) -> None:
    # Trap 17.
    make(tmp_path, *(f"{part}/something" for part in parts), "overlay2/x", "vfs/dir/x")
    mine = "vfs" if driver == "overlay2" else "overlay2"
    others = engine_storage(tmp_path, mine).others()
    assert f"{tmp_path}/{parts[0]}" in others
    assert not set(engine_storage(tmp_path, mine).layer_folders()) & set(others)


def test_empty_folders_and_links_are_no_other_drivers_data(tmp_path: Path) -> None:
    make(tmp_path, "overlay2/x", "aufs/diff", "elsewhere/x")
    (tmp_path / "vfs").mkdir()
    (tmp_path / "vfs/dir").symlink_to(tmp_path / "elsewhere")
    assert engine_storage(tmp_path).others() == []


def test_docker_1_9_kept_its_records_in_graph(tmp_path: Path) -> None:
    make(tmp_path, "aufs/diff", "graph")
    (tmp_path / "repositories-aufs").write_text("{}")
    paths = engine_storage(tmp_path, "aufs").paths()
    assert paths["image_metadata"] == [f"{tmp_path}/graph", f"{tmp_path}/repositories-aufs"]


def test_a_driver_that_nobody_knows_has_a_folder_of_its_name(tmp_path: Path) -> None:
    make(tmp_path, "newfs")
    assert engine_storage(tmp_path, "newfs").paths()["layers"] == [f"{tmp_path}/newfs"]


def test_containerds_snapshotter_has_its_folder_below_the_data_root(tmp_path: Path) -> None:
    base = "containerd/daemon"
    snapshots = f"{base}/io.containerd.snapshotter.v1.overlayfs"
    content = f"{base}/io.containerd.content.v1.content"
    make(tmp_path, snapshots, content, "overlay2")
    paths = engine_storage(tmp_path, "overlayfs", "containerd").paths()
    assert paths["layers"] == [f"{tmp_path}/{snapshots}"]
    assert paths["image_metadata"] == [f"{tmp_path}/{content}"]


def test_paths_are_those_that_exist(tmp_path: Path) -> None:
    assert not any(engine_storage(tmp_path).paths().values())


def test_tags_and_half_made_images_of_docker_1_9_are_the_engines_and_another_drivers_tags_are_not(tmp_path: Path) -> None:
    make(tmp_path, "aufs/diff", "graph/_tmp")
    for driver in ("aufs", "devicemapper"):
        (tmp_path / f"repositories-{driver}").write_text("{}")
    found = engine_storage(tmp_path, "aufs")
    assert f"{tmp_path}/repositories-aufs" in found.engines_own()
    assert f"{tmp_path}/graph/_tmp" in found.temporary()
    assert found.others() == [f"{tmp_path}/repositories-devicemapper"]


# -- containerd's places and names ---------------------------------------------------------------------

SNAPSHOTTER = "io.containerd.snapshotter.v1.overlayfs"


def info_of(root: str, **more: t.Any) -> dict[str, t.Any]:
    return {"DockerRootDir": root, "Driver": "overlayfs", "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]], **more}


@pytest.mark.parametrize(
    ("info", "namespace"),
    [
        (info_of("/var/lib/docker"), "moby"),
        (info_of("/var/lib/docker", Containerd={"Address": "/run/x.sock", "Namespaces": {"Containers": "mine"}}), "mine"),
        (info_of("/var/lib/docker", Containerd=None), "moby"),
        (info_of("/var/lib/docker/100000.100000", SecurityOptions=["name=seccomp,profile=builtin", "name=userns"]), "moby-100000.100000"),
        (info_of("/var/lib/docker/100000.100000"), "moby"),
        (info_of("/var/lib/docker", SecurityOptions=["name=userns"]), "moby"),
    ],
    ids=["usual", "told", "not told", "user namespaces", "a folder of such a name", "no such folder"],
)
def test_what_an_engine_calls_itself_at_its_containerd(info: dict[str, t.Any], namespace: str) -> None:
    assert storage.from_info(info).namespace == namespace


def test_a_containerd_is_found_by_its_socket_wherever_its_data_is(tmp_path: Path) -> None:
    root, elsewhere, own = tmp_path / "root", tmp_path / "elsewhere", tmp_path / "root/containerd/daemon"
    make(tmp_path, f"elsewhere/{SNAPSHOTTER}", "elsewhere/io.containerd.metadata.v1.bolt", f"root/containerd/daemon/{SNAPSHOTTER}/snapshots/1",
         "root/containerd/daemon/io.containerd.content.v1.content")
    with tempfile.TemporaryDirectory(prefix="fc-") as short, socket.socket(socket.AF_UNIX) as fake:
        address = f"{short}/containerd.sock"
        found = storage.from_info(info_of(str(root), Containerd={"Address": address}))
        assert found.containerd == str(own), "nobody listens there, so it may be at any known place"
        storage._containerd_at.cache_clear()
        fake.bind(address)
        fake.listen()
        with open(elsewhere / "io.containerd.metadata.v1.bolt/meta.db", "w"):
            assert found.containerd == str(elsewhere)
            assert found.roots == [str(root), str(elsewhere)]
            assert found.paths()["layers"] == [f"{elsewhere}/{SNAPSHOTTER}"]
            # What lies at the known place is of an engine that had its own once.
            assert found.other_stores() == [f"{own}/io.containerd.content.v1.content", f"{own}/{SNAPSHOTTER}"]
        storage._containerd_at.cache_clear()


#: A containerd, as far as one is known by its socket and its database.
CONTAINERD = r"""
import os, socket, sys
address, database = sys.argv[1:]
here = socket.socket(socket.AF_UNIX)
here.bind(address)
here.listen()
kept = open(database, "w")
print("ready", flush=True)
sys.stdin.read()
"""
BECOME = "import os\nos.setresgid(12345, 12345, 12345)\nos.setresuid(12345, 12345, 12345)\n"
#: Another user's process, with a socket whose name looks like a line of /proc/net/unix: that of a containerd, for another socket of its own.
SPOOF = BECOME + r"""
import os, socket, sys
address, database = sys.argv[1:]
mine, named = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
inode = os.fstat(mine.fileno()).st_ino
named.bind(f"\0x\n0: 0 0 00010000 0 0 {inode} {address}")
named.listen()
kept = open(database, "w")
print("ready", flush=True)
sys.stdin.read()
"""
#: Root in a mount namespace of its own, as in a container with the host's network: there it has any path it likes.
ELSEWHERE = r"""
import os, subprocess, sys
database = sys.argv[2]
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", os.path.dirname(sys.argv[1])], check=True)
os.makedirs(os.path.dirname(database))
""" + CONTAINERD
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")


@contextmanager
def containerd(script: str, address: str, database: Path, *prefix: str) -> t.Iterator[None]:
    """A process that would be taken for a containerd."""
    command = [*prefix, sys.executable, "-c", script, address, str(database)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout and process.stdout.readline() == "ready\n"
            storage._containerd_at.cache_clear()
            storage._is_open.cache_clear()
            yield
        finally:
            process.kill()
            storage._containerd_at.cache_clear()
            storage._is_open.cache_clear()


@pytest.fixture()
def run() -> t.Iterator[Path]:
    """A folder of root's with databases at ``own`` and ``theirs``, which everybody may write."""
    with tempfile.TemporaryDirectory(prefix="fc-") as folder:
        os.chmod(folder, 0o755)
        for name in ("own", "theirs"):
            database = Path(folder, name, "io.containerd.metadata.v1.bolt/meta.db")
            database.parent.mkdir(parents=True)
            database.touch()
            database.chmod(0o666)
        yield Path(folder)


DATABASE = "io.containerd.metadata.v1.bolt/meta.db"


@as_root
def test_nobody_else_names_himself_the_containerd(run: Path) -> None:
    address = f"{run}/c.sock"
    with containerd(SPOOF, address, run / "theirs" / DATABASE), containerd(CONTAINERD, address, run / "own" / DATABASE):
        assert storage._containerd_at(address, frozenset({0})) == f"{run}/own"


@as_root
def test_a_containers_root_names_no_containerd(run: Path) -> None:
    """Its socket has the very path in its own mount namespace, and is in this network namespace's table."""
    address = f"{run}/c.sock"
    with containerd(ELSEWHERE, address, run / "theirs" / DATABASE, "unshare", "--mount"):
        assert f" {address}\n" in Path("/proc/net/unix").read_text()
        assert storage._containerd_at(address, frozenset({0})) is None
        with containerd(CONTAINERD, address, run / "own" / DATABASE):
            assert storage._containerd_at(address, frozenset({0})) == f"{run}/own"


@as_root
def test_a_users_socket_is_no_containerds_wherever_the_engine_says_it_is(run: Path) -> None:
    home = run / "home"
    home.mkdir()
    os.chown(home, 12345, 12345)
    address = f"{home}/c.sock"
    with containerd(BECOME + CONTAINERD, address, run / "theirs" / DATABASE):
        for users, taken in (({0}, None), ({0, 12345}, f"{run}/theirs")):
            assert storage._containerd_at(address, frozenset(users)) == taken
            assert storage._containerd_at(f"unix://{address}", frozenset(users)) == taken
        (run / "link.sock").symlink_to(address)
        assert storage._containerd_at(f"{run}/link.sock", frozenset({0})) is None
    # A process of root's, but at a place where the user could have put another one.
    os.unlink(address)
    with containerd(CONTAINERD, address, run / "own" / DATABASE):
        assert storage._containerd_at(address, frozenset({0})) is None
    # A socket of the user's in a folder of root's that anybody may write.
    run.chmod(0o1777)
    address = f"{run}/c.sock"
    with containerd(BECOME + CONTAINERD, address, run / "theirs" / DATABASE):
        assert storage._containerd_at(address, frozenset({0})) is None
    # What the engine says may be anything.
    for odd in ("", "c.sock", "@abstract", "npipe:////./pipe/x", "/dev/null", f"{run}/own", "/\0", "/" + "x" * 5000, "tcp://1.2.3.4:5"):
        assert storage._containerd_at(odd, frozenset({0})) is None


@as_root
def test_a_containerd_that_takes_no_connection_is_not_waited_for(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_ANSWERS_WITHIN", 0.1)
    address, waiting = f"{run}/c.sock", []
    with containerd(CONTAINERD.replace("listen()", "listen(0)"), address, run / "own" / DATABASE):
        for _ in range(2):
            waiting.append(socket.socket(socket.AF_UNIX))
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(address)
        assert storage._containerd_at(address, frozenset({0})) is None
    for connection in waiting:
        connection.close()


@as_root
def test_another_users_open_file_says_nothing_of_the_engine(run: Path) -> None:
    own = run / "own" / DATABASE
    hold = "import sys\nkept = open(sys.argv[2], 'r+')\nprint('ready', flush=True)\nsys.stdin.read()"
    with containerd(BECOME + hold, "-", own):
        assert not storage._is_open(str(own), frozenset({0}))
        assert storage._is_open(str(own), frozenset({0, 12345}))
    # A container's root has a file of that name.
    with containerd(ELSEWHERE.partition("import os, socket")[0] + hold.replace("'r+'", "'w'"), f"{run}/x", own, "unshare", "--mount"):
        assert not storage._is_open(str(own), frozenset({0}))
    with containerd(hold, "-", own):
        assert storage._is_open(str(own), frozenset({0}))


def test_whose_processes_may_be_the_engines(tmp_path: Path) -> None:
    assert engine_storage(tmp_path).users == {0, os.geteuid()}
    assert engine_storage(tmp_path / "not there").users == {0}
    remapped = tmp_path / "231072.231072"
    remapped.mkdir()
    if os.geteuid() == 0:
        os.chown(remapped, 231072, 231072)
    assert engine_storage(remapped).users == {0}, "a container's root is none of them"


def test_a_users_file_with_the_path_of_a_database_is_no_containerd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not attacker.works():
        pytest.skip("not here: no user namespaces for users")
    monkeypatch.setattr(storage, "_CONTAINERD", ("{root}/containerd/daemon", f"{tmp_path}/system"))
    places = [tmp_path / "root/containerd/daemon", tmp_path / "system"]
    for place in places:
        make(place, SNAPSHOTTER, "io.containerd.metadata.v1.bolt")
        (place / "io.containerd.metadata.v1.bolt/meta.db").touch()
    database = f"{places[1]}/io.containerd.metadata.v1.bolt/meta.db"
    attack = attacker.Attacker(f"+{database}")
    try:
        assert dict(attack.sizes()).keys() == {database}, "the attack itself does not work"
        storage._is_open.cache_clear()
        found = engine_storage(tmp_path / "root", "overlayfs", "containerd")
        assert not found.runs_containerd(str(places[1]))
        assert found.containerd == str(places[0])
    finally:
        attack.end()
        storage._is_open.cache_clear()


def test_of_two_containerds_the_one_that_runs_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_CONTAINERD", ("{root}/containerd/daemon", f"{tmp_path}/system"))
    places = [tmp_path / "root/containerd/daemon", tmp_path / "system"]
    for place in places:
        make(place, SNAPSHOTTER, "io.containerd.metadata.v1.bolt")
    found = engine_storage(tmp_path / "root", "overlayfs", "containerd")
    for place in places:
        storage._is_open.cache_clear()
        with open(place / "io.containerd.metadata.v1.bolt/meta.db", "w"):
            assert found.containerd == str(place)
    storage._is_open.cache_clear()
    assert found.containerd == str(places[0]), "with none of them seen to run, its own"


def test_a_graph_drivers_engine_has_nothing_of_another_store_without_layers(tmp_path: Path) -> None:
    daemon = "containerd/daemon"
    make(tmp_path, f"{daemon}/{SNAPSHOTTER}/snapshots", f"{daemon}/io.containerd.content.v1.content/blobs/sha256/x", "overlay2/x")
    assert engine_storage(tmp_path).other_stores() == []
    make(tmp_path, f"{daemon}/{SNAPSHOTTER}/snapshots/1")
    assert engine_storage(tmp_path).other_stores() == [f"{tmp_path}/{daemon}/io.containerd.content.v1.content", f"{tmp_path}/{daemon}/{SNAPSHOTTER}"]
    assert engine_storage(tmp_path, "overlayfs", "containerd").other_stores() == []


# -- records of images and layers ------------------------------------------------------------------------


def test_an_images_record_is_asked_for_by_a_real_id_only() -> None:
    found = engine_storage(Path("/var/lib/docker"))
    path = f"/var/lib/docker/image/overlay2/imagedb/content/sha256/{ONE}"
    assert found.image_record(f"sha256:{ONE}") == found.image_record(ONE) == path
    for ident in ("", "sha256:", "../../etc/passwd", f"{ONE}/..", ONE[:12], "A" * 64, f"{ONE}\n"):
        assert found.image_record(ident) is None
    assert engine_storage(Path("/x"), "overlayfs", "containerd").image_record(ONE) is None


def test_sizes_of_layers_are_those_of_the_layer_store_and_a_broken_record_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "image/overlay2/layerdb/sha256"
    for name, size in ((ONE, "4711"), (TWO, ""), (THREE, "not a number")):
        (folder / name).mkdir(parents=True)
        (folder / name / "size").write_text(size)
    (folder / "4444").mkdir()
    assert engine_storage(tmp_path).layer_sizes() == {f"sha256:{ONE}": 4711, f"sha256:{TWO}": 0}
    assert engine_storage(tmp_path / "nowhere").layer_sizes() == {}


# -- whose data root -----------------------------------------------------------------------------------


def ask(
    root: Path,
    ident: str = "ABCD:EFGH",
    address: str = SOCKET,
    containers: t.Sequence[str] = (),
    volumes: t.Sequence[str] = (),
    key_file: str = "/nonexistent/key.json",
    name: str = HERE,
) -> storage.Proof:
    return prove(engine_storage(root), {"ID": ident, "Name": name}, address, containers, volumes, key_file)


def test_the_engines_own_id_file_proves_it(tmp_path: Path) -> None:
    (tmp_path / "engine-id").write_text("ABCD:EFGH\n")
    proof = ask(tmp_path)
    assert proof.proven
    assert proof.words == f"{tmp_path}/engine-id"


@pytest.mark.parametrize("written", ["OTHER:ID", "", "ABCD", "ABCD:EFGH:IJKL"])
def test_another_engines_id_file_refuses_whatever_else_is_there(tmp_path: Path, written: str) -> None:
    # Trap 30: two engines on a host.
    (tmp_path / "engine-id").write_text(written)
    make(tmp_path, f"containers/{ONE}")
    proof = ask(tmp_path, containers=[ONE])
    assert not proof.proven
    assert proof.words == (
        f"the data root {tmp_path} here is not the one of the engine at {SOCKET}: {tmp_path}/engine-id is another engine's"
    )


def test_an_engine_without_an_id_proves_nothing_by_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "engine-id").write_text("")
    assert not ask(tmp_path, ident="").proven


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give something away")
@pytest.mark.parametrize(("owner", "listener", "proven"), [(0, 1000, False), (1000, 1001, False), (1000, 1000, True), (1000, 0, True), (0, 0, True), (0, None, True)])
def test_a_user_who_answers_as_another_engine_proves_nothing(tmp_path: Path, owner: int, listener: int | None, proven: bool) -> None:
    """The ids of all containers stand in /proc, in the command lines of their shims."""
    (tmp_path / "engine-id").write_text("ABCD")
    make(tmp_path, f"containers/{ONE}")
    os.chown(tmp_path, owner, owner)
    for with_id in (True, False):
        if not with_id:
            (tmp_path / "engine-id").unlink()
        proof = prove(engine_storage(tmp_path), {"ID": "ABCD"}, SOCKET, [ONE], [], listener=listener)
        assert proof.proven is proven
        if not proven:
            assert proof.words.endswith(f"it belongs to user {owner}, and user {listener} listens there")


def test_before_engine_23_the_folders_of_its_containers_prove_it(tmp_path: Path) -> None:
    make(tmp_path, f"containers/{ONE}", f"containers/{TWO}", "containers/another")
    proof = ask(tmp_path, containers=[ONE, TWO, THREE])
    assert proof.proven
    assert proof.words == f"containers in {tmp_path}/containers"


@pytest.mark.parametrize("there", [(), (ONE,)])
def test_an_engine_most_of_whose_containers_are_not_here_is_another_one(tmp_path: Path, there: tuple[str, ...]) -> None:
    make(tmp_path, "containers", *(f"containers/{ident}" for ident in there))
    proof = ask(tmp_path, containers=[ONE, TWO])
    assert not proof.proven
    assert proof.words == (
        f"the data root {tmp_path} here is not the one of the engine at {SOCKET}: "
        f"{2 - len(there)} of its 2 containers are not in {tmp_path}/containers"
    )


def test_what_is_no_id_is_no_proof_and_no_path(tmp_path: Path) -> None:
    make(tmp_path, "containers", "volumes/data")
    assert not ask(tmp_path, containers=["..", "../../tmp", "."], volumes=["data", ".."]).proven


def test_anonymous_volumes_prove_it_and_named_ones_do_not(tmp_path: Path) -> None:
    make(tmp_path, f"volumes/{ONE}", "volumes/data")
    proof = ask(tmp_path, volumes=[ONE, "data"])
    assert proof.proven
    assert proof.words == f"anonymous volumes in {tmp_path}/volumes"
    assert not ask(tmp_path, volumes=["data"]).proven
    assert not ask(tmp_path, volumes=[TWO]).proven


def test_the_key_of_an_old_engine_proves_it_on_this_machines_socket_alone(tmp_path: Path) -> None:
    key = tmp_path / "key.json"
    key.write_text(json.dumps({"kid": "ABCD:EFGH"}))
    assert ask(tmp_path, key_file=str(key)).proven
    assert not ask(tmp_path, ident="OTHER", key_file=str(key)).proven
    assert not ask(tmp_path, address="tcp://127.0.0.1:2375", key_file=str(key)).proven


@pytest.mark.parametrize("name", ["docker", "balena-engine"])
def test_the_key_of_an_engine_without_root_is_among_its_users_own(tmp_path: Path, name: str) -> None:
    root, config = tmp_path / ".local/share" / name, tmp_path / ".config" / name
    make(tmp_path, str(root), str(config))
    assert not ask(root).proven
    (config / "key.json").write_text(json.dumps({"kid": "ABCD:EFGH"}))
    assert ask(root).words == f"{config}/key.json"
    assert not ask(root, ident="OTHER").proven


@pytest.mark.parametrize("content", ["", "[]", "null", "{}", "not json", '{"kid": null}'])
def test_a_broken_key_proves_nothing(tmp_path: Path, content: str) -> None:
    key = tmp_path / "key.json"
    key.write_text(content)
    proof = ask(tmp_path, key_file=str(key))
    assert not proof.proven
    assert "nothing shows that the data root" in proof.words


def test_an_empty_engine_of_an_empty_root_is_not_proven(tmp_path: Path) -> None:
    proof = ask(tmp_path, ident="")
    assert not proof.proven
    assert proof.words == (
        f"nothing shows that the data root {tmp_path} here is the one of the engine at {SOCKET} "
        "(no engine-id, no container, no anonymous volume)"
    )


def test_a_clone_of_a_machine_has_the_same_id_so_over_tcp_the_name_counts(tmp_path: Path) -> None:
    (tmp_path / "engine-id").write_text("ABCD:EFGH")
    address = "tcp://10.0.0.5:2376"
    assert ask(tmp_path, address=address).proven
    proof = ask(tmp_path, address=address, name="other-host")
    assert not proof.proven
    assert proof.words == (
        f"the data root {tmp_path} here is not the one of the engine at {address}: "
        f"that one runs on 'other-host', this is {HERE!r}"
    )


def test_a_data_root_that_is_a_link_is_proven_like_any_other(tmp_path: Path) -> None:
    make(tmp_path, "data")
    (tmp_path / "data/engine-id").write_text("ABCD:EFGH")
    (tmp_path / "docker").symlink_to(tmp_path / "data")
    assert ask(tmp_path / "docker").proven
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert not ask(tmp_path / "dangling").proven


@pytest.mark.parametrize("root", ["/nonexistent/docker", "relative", ""])
def test_a_data_root_that_is_not_here_is_another_machines(root: str) -> None:
    proof = prove(Storage(root, "overlay2", "graphdriver", {}), {"ID": "x"}, SOCKET, [ONE], [])
    assert not proof.proven
    assert proof.words.endswith("there is no such folder")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user who may not")
def test_a_data_root_that_may_not_be_read_asks_for_become() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        root = Path(folder) / "docker"
        root.mkdir(mode=0o710)
        # access(2) asks for the real user.
        before = os.getresuid()
        os.setresuid(65534, 65534, 0)
        try:
            proof = ask(root)
        finally:
            os.setresuid(*before)
    assert not proof.proven
    assert proof.words == f"the data root {root} cannot be read; use become: true"


# -- where layers lie ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("driver", "parts"), TREES, ids=IDS)
def test_a_layer_lies_below_each_of_its_drivers_folders_and_nowhere_else(driver: str, parts: tuple[str, ...]) -> None:
    found = engine_storage(Path("/data"), driver)
    paths = found.layer_paths(ONE)
    assert {os.path.dirname(path) for path in paths} == set(found.layer_folders())
    assert {os.path.basename(path) for path in paths} == {ONE}
    # What is one store of all layers is no folder of layers.
    assert set(found.layer_folders()).isdisjoint(found.pools)
    assert {*found.layer_folders(), *found.pools} == {f"/data/{part}" for part in parts}


@pytest.mark.parametrize("ident", [ONE, f"{ONE}-init", f"{ONE}-removing", "a" * 25, "17"])
def test_what_drivers_call_layers_is_a_layer(ident: str) -> None:
    assert engine_storage(Path("/data")).layer_paths(ident) == [f"/data/overlay2/{ident}"]
    assert not engine_storage(Path("/data")).is_drivers_own(ident)


@pytest.mark.parametrize("ident", ["", ".", "..", "../etc", "a/b", "a" * 65, "A" * 64, f"{ONE}-other", f"{ONE}\n", "a b", "é"])
def test_what_is_no_layers_name_is_no_path(ident: str) -> None:
    assert engine_storage(Path("/data")).layer_paths(ident) == []
    assert engine_storage(Path("/data")).is_drivers_own(ident)


def test_the_drivers_own_is_told_apart_from_layers() -> None:
    assert engine_storage(Path("/data")).is_drivers_own("l")
    assert engine_storage(Path("/data"), "devicemapper").is_drivers_own("base")
    assert not engine_storage(Path("/data"), "vfs").is_drivers_own("l")


def test_a_snapshotters_layers_are_called_by_numbers(tmp_path: Path) -> None:
    found = engine_storage(tmp_path, "overlayfs", "containerd")
    assert (found.containerd, found.snapshotter, found.layer_paths("17"), found.layer_folders()) == (None, None, [], [])
    make(tmp_path, "containerd/daemon/io.containerd.snapshotter.v1.overlayfs/snapshots")
    base = f"{tmp_path}/containerd/daemon"
    assert found.containerd == base
    assert found.layer_paths("17") == [f"{base}/io.containerd.snapshotter.v1.overlayfs/snapshots/17"]
    btrfs = engine_storage(tmp_path, "btrfs", "containerd")
    make(tmp_path, "containerd/daemon/io.containerd.snapshotter.v1.btrfs/snapshots")
    assert [os.path.basename(os.path.dirname(path)) for path in btrfs.layer_paths("17")] == ["active", "snapshots", "view"]


def test_how_layers_share_is_their_drivers_way() -> None:
    root = Path("/data")
    ways = {driver: engine_storage(root, driver).sharing for driver, _parts in TREES}
    assert ways == {
        "overlay2": "", "overlay": storage.LINKS, "vfs": storage.COPIES, "btrfs": storage.SNAPSHOTS, "fuse-overlayfs": "",
        "aufs": "", "devicemapper": "", "zfs": "",
    }
    assert engine_storage(root, "native", "containerd").sharing == storage.COPIES
    assert engine_storage(root, "newfs").sharing == engine_storage(root, "newfs", "containerd").sharing == ""


def test_a_data_root_is_named_without_links_and_a_containerd_elsewhere_is_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "data", "containerd/io.containerd.snapshotter.v1.overlayfs")
    (tmp_path / "docker").symlink_to("data")
    monkeypatch.setattr(storage, "_CONTAINERD", ("{root}/containerd/daemon", f"{tmp_path}/containerd"))
    assert engine_storage(tmp_path / "docker").roots == [f"{tmp_path}/data"]
    assert engine_storage(tmp_path / "docker", "overlayfs", "containerd").roots == [f"{tmp_path}/data", f"{tmp_path}/containerd"]
    # One below the data root is no second root.
    make(tmp_path, "data/containerd/daemon/io.containerd.snapshotter.v1.overlayfs")
    assert engine_storage(tmp_path / "docker", "overlayfs", "containerd").roots == [f"{tmp_path}/data"]


def test_the_records_of_docker_1_9_count_only_where_there_are_no_newer_ones(tmp_path: Path) -> None:
    found = engine_storage(tmp_path, "aufs")
    assert found.old_records is None
    make(tmp_path, "graph")
    assert found.old_records == f"{tmp_path}/graph"
    make(tmp_path, "image/aufs/layerdb")
    assert found.old_records is None


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", "7", "not json", '{"rootfs": null}', '{"rootfs": []}', '{"rootfs": 5}'])
def test_a_broken_record_of_an_image_tells_no_layers(tmp_path: Path, content: str) -> None:
    path = tmp_path / f"image/overlay2/imagedb/content/sha256/{ONE}"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert engine_storage(tmp_path).image_layers(f"sha256:{ONE}") is None


def test_an_images_record_tells_its_layers_lowest_first(tmp_path: Path) -> None:
    folder = tmp_path / "image/overlay2/imagedb/content/sha256"
    folder.mkdir(parents=True)
    (folder / ONE).write_text(json.dumps({"rootfs": {"type": "layers", "diff_ids": ["sha256:a", "sha256:b"]}}))
    (folder / TWO).write_text(json.dumps({"rootfs": {"type": "layers"}}))
    found = engine_storage(tmp_path)
    assert found.image_layers(f"sha256:{ONE}") == ("sha256:a", "sha256:b")
    assert found.image_layers(f"sha256:{TWO}") == ()
    assert found.image_layers(f"sha256:{THREE}") is None
    assert found.image_layers("../../etc/passwd") is None


# -- outside plain folders ---------------------------------------------------------------------------------

#: GET /info, as engine 20.10 gave it on a ZFS pool and on thin pools; what a layer is called is cut short.
ZFS = {
    "Zpool": "tank", "Zpool Health": "ONLINE", "Parent Dataset": "tank/docker", "Space Used By Parent": "46597632",
    "Space Available": "3840398336", "Parent Quota": "no", "Compression": "off",
}
LOOP_FILES = {
    "Pool Name": "docker-254:16-24577-pool", "Pool Blocksize": "65.54kB", "Data file": "/dev/loop0", "Metadata file": "/dev/loop1",
    "Data loop file": "/var/lib/docker/devicemapper/devicemapper/data",
    "Metadata loop file": "/var/lib/docker/devicemapper/devicemapper/metadata",
    "Data Space Used": "277.1MB", "Data Space Total": "4.295GB", "Data Space Available": "4.018GB",
}
BLOCK_DEVICE = {**{key: value for key, value in LOOP_FILES.items() if "loop file" not in key}, "Pool Name": "vg-thinpool"}
#: `zfs list -H -p`: name, usedbydataset, usedbysnapshots, usedbyrefreservation.
DATASETS = f"""\
tank/docker\t12958208\t0\t0
tank/docker/{ONE}\t17408\t0\t0
tank/docker/{ONE}-init\t17408\t16384\t0
tank/docker/{TWO}\t12083200\t0\t0
tank/docker/{THREE}\t-\t0\t0
"""


def with_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """Put a fake ``zfs`` where the system's tools are; it writes down what it is asked."""
    tool = tmp_path / "sbin/zfs"
    tool.parent.mkdir()
    asked = tmp_path / "asked"
    tool.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" >{asked}\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setattr(storage, "_TOOL_PLACES", str(tool.parent))
    return asked


def pool_of(driver: str, status: dict[str, str]) -> storage.Pool:
    return storage.pool(Storage("/var/lib/docker", driver, "graphdriver", status))


def test_zfs_tells_each_layers_own_bytes_and_those_of_its_snapshots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = with_tool(tmp_path, monkeypatch, f"cat <<'END'\n{DATASETS}END")
    found = pool_of("zfs", ZFS)
    assert found == storage.Pool({ONE: 17408, f"{ONE}-init": 33792, TWO: 12083200}, True)
    arguments = asked.read_text().splitlines()
    assert arguments[0] == "list"
    assert arguments[-1] == "tank/docker"
    assert {"-H", "-p", "-r"} <= set(arguments)


@pytest.mark.parametrize("script", ["echo 'cannot open: no such pool' >&2; exit 1", "exit 127", "kill -9 $$"])
def test_where_zfs_cannot_be_asked_the_engines_sum_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    with_tool(tmp_path, monkeypatch, script)
    assert pool_of("zfs", ZFS) == storage.Pool({"all": 46597632}, with_root=True)


def test_without_the_tool_the_engines_sum_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_TOOL_PLACES", str(tmp_path))
    assert pool_of("zfs", ZFS) == storage.Pool({"all": 46597632}, with_root=True)
    assert pool_of("zfs", {"Parent Dataset": "tank/docker"}) == storage.Pool()
    for told in ("a lot", "\N{SUPERSCRIPT TWO}", "9" * 5000):
        assert pool_of("zfs", {**ZFS, "Space Used By Parent": told}) == storage.Pool()


def test_an_engine_without_any_layer_on_zfs_has_none_and_not_the_data_roots_own_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_tool(tmp_path, monkeypatch, "printf 'tank/docker\\t44032\\t0\\t0\\n'")
    assert pool_of("zfs", {**ZFS, "Space Used By Parent": "44032"}) == storage.Pool({}, True)


def test_a_pool_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_tool(tmp_path, monkeypatch, "exec sleep 60")
    monkeypatch.setattr(storage, "_PATIENCE", 0.2)
    begun = time.monotonic()
    assert pool_of("zfs", ZFS) == storage.Pool({"all": 46597632}, with_root=True)
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("parent", ["-o", "--help", "tank;reboot", "tank\n-x", "", "$(id)", "/tank"])
def test_a_dataset_of_a_hostile_name_is_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parent: str) -> None:
    asked = with_tool(tmp_path, monkeypatch, f"cat <<'END'\n{DATASETS}END")
    pool_of("zfs", {"Parent Dataset": parent})
    assert not asked.exists()


def test_a_thin_pool_on_block_devices_is_the_engines_sum() -> None:
    assert pool_of("devicemapper", BLOCK_DEVICE) == storage.Pool({"all": 277_100_000}, False)


def test_a_thin_pool_in_files_is_walked_and_not_counted_again() -> None:
    assert pool_of("devicemapper", LOOP_FILES) == storage.Pool()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("277.1MB", 277_100_000), ("65.54kB", 65_540), ("4.295GB", 4_295_000_000), ("1.5TB", 1_500_000_000_000), ("0B", 0),
        ("512B", 512), ("2 GB", 2_000_000_000), ("", None), ("many", None), ("1.2.3MB", None), (".MB", None), ("12", None), ("-5MB", None),
        ("9" * 400 + "GB", None), ("1." + "9" * 5000 + "GB", None),
    ],
)
def test_the_engines_sizes_are_decimal(text: str, size: int | None) -> None:
    assert storage._human(text) == size
    assert pool_of("devicemapper", {**BLOCK_DEVICE, "Data Space Used": text}) == (storage.Pool({"all": size}) if size else storage.Pool())


@pytest.mark.parametrize("driver", ["overlay2", "vfs", "btrfs", "aufs", "overlayfs"])
def test_drivers_that_keep_all_in_folders_have_nothing_outside(driver: str) -> None:
    status = {"Backing Filesystem": "extfs", "Supports d_type": "true"}
    assert pool_of(driver, status) == storage.Pool()
