# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which links are followed, and which mounts are the engine's: on trees and mount tables made for the test."""

from __future__ import annotations

import os
import typing as t
from pathlib import Path

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import measure, places, trust
from ansible_collections.fleetclean.docker.plugins.module_utils import storage as storages
from ansible_collections.fleetclean.docker.plugins.module_utils.engine import EngineError
from ansible_collections.fleetclean.docker.plugins.module_utils.measure import Mount
from ansible_collections.fleetclean.docker.plugins.module_utils.storage import Storage

ONE, TWO, THREE = "1" * 64, "2" * 64, "3" * 64


class FakeEngine:
    """An engine with two containers, two volumes and one image."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def containers(self) -> list[dict[str, t.Any]]:
        self.asked.append("containers")
        return [{"Id": ONE}, {"Id": TWO}]

    def volumes(self) -> list[dict[str, t.Any]]:
        self.asked.append("volumes")
        return [{"Name": "a", "Driver": "local"}, {"Name": "b", "Driver": "local"}, {"Name": "far", "Driver": "nfs"}]

    def images(self) -> list[dict[str, t.Any]]:
        self.asked.append("images")
        return [{"Id": f"sha256:{THREE}"}]


class Tree:
    """A data root at ``docker``, and another folder at ``srv``, both of root's."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.srv = tmp_path / "docker", tmp_path / "srv"
        self.root.mkdir(mode=0o711)
        self.srv.mkdir(mode=0o755)
        self.engine = FakeEngine()
        self.opened: list[list[str]] = []
        monkeypatch.setattr(places, "open_files", lambda wanted, _users: ([path for path in opened if wanted(path)] for opened in self.opened))

    def link(self, name: str, *inside: str) -> Path:
        """Move a folder of the data root away, and leave a link."""
        target = self.srv / name
        target.mkdir(mode=0o755)
        for path in inside:
            (target / path).mkdir(parents=True)
        (self.root / name).symlink_to(target)
        return target

    def locate(self, driver: str = "overlay2", store: str = "graphdriver", user: int | None = None) -> tuple[dict[str, str], list[str]]:
        found, refused = places.locate(Storage(str(self.root), driver, store, {}), self.engine, user)
        return {os.path.basename(link): os.path.relpath(target, self.srv) for link, target in found.moved.items()}, refused


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    # Whoever runs the tests is the data root's owner; what lies above belongs to whomever.
    trusted = trust.resolve
    above = [str(parent) for parent in (tmp_path, *tmp_path.parents)]
    lstat = os.lstat

    def fake_lstat(path: t.Any, **more: t.Any) -> os.stat_result:
        found = lstat(path, **more)
        if str(path) in above:
            return os.stat_result((found.st_mode & ~0o022, *tuple(found)[1:4], 0, *tuple(found)[5:]))
        return found

    def fake_trusted(path: str, *users: t.Collection[int]) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(places.os, "lstat", fake_lstat)
            return trusted(path, *users)

    monkeypatch.setattr(trust, "resolve", fake_trusted)
    monkeypatch.setattr(trust, "pwd", None)
    return Tree(tmp_path, monkeypatch)


def test_without_a_link_nobody_is_asked(tree: Tree) -> None:
    (tree.root / "containers").mkdir()
    assert tree.locate() == ({}, [])
    assert tree.engine.asked == []


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("containers", (ONE, TWO)),
        ("volumes", ("a", "b")),
        ("image", (f"overlay2/imagedb/content/sha256/{THREE}",)),
    ],
)
def test_a_link_to_what_the_engine_has_is_followed(tree: Tree, name: str, inside: tuple[str, ...]) -> None:
    target = tree.link(name, *inside)
    assert tree.locate() == ({name: name}, [])
    located, _refused = places.locate(Storage(str(tree.root), "overlay2", "graphdriver", {}), tree.engine)
    assert located.at(name) == str(target)
    assert located.roots == [str(tree.root), str(target)]
    assert {str(target), str(tree.root / name)} <= set(located.engines_own())


def test_a_link_to_the_layers_that_the_layer_store_names_is_followed(tree: Tree) -> None:
    for chain, folder in ((ONE, "x1"), (TWO, "x2")):
        record = tree.root / "image/overlay2/layerdb/sha256" / chain
        record.mkdir(parents=True)
        (record / "cache-id").write_text(folder)
    tree.link("overlay2", "x1", "x2", "l")
    assert tree.locate() == ({"overlay2": "overlay2"}, [])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give something away")
def test_a_link_of_a_user_to_another_engines_containers_is_not_followed(tree: Tree) -> None:
    """He runs an engine without root, which says that the containers of root's are its own: their ids are for all to see."""
    target = tree.link("containers", ONE, TWO)
    for path in (tree.root, tree.root / "containers"):
        os.chown(path, 12345, 12345, follow_symlinks=False)
    for user in (12345, None):
        moved, (line,) = tree.locate(user=user)
        assert moved == {} and line.endswith(f"{target} belongs to user 0")
    os.chown(target, 12345, 12345)
    assert tree.locate(user=12345) == ({"containers": "containers"}, [])
    # Root's engine has what is root's, whoever owns the data root.
    os.chown(target, 0, 0)
    assert tree.locate(user=0) == ({"containers": "containers"}, [])


@pytest.mark.parametrize(("name", "inside"), [("containers", (ONE[:63] + "0", THREE)), ("volumes", ("other",)), ("volumes", ("far", "x"))])
def test_a_link_to_what_another_engine_has_is_not_followed_and_that_is_said(tree: Tree, name: str, inside: tuple[str, ...]) -> None:
    target = tree.link(name, *inside)
    moved, (line,) = tree.locate()
    assert moved == {}
    assert line == (
        f"{tree.root}/{name} leads elsewhere by a link; what is there is not counted: 2 of 2 objects of this engine are not in {target}"
    )


def test_half_of_the_objects_are_no_proof(tree: Tree) -> None:
    tree.link("containers", ONE)
    assert tree.locate()[0] == {}


@pytest.mark.parametrize(
    ("opened", "followed"),
    [
        ([["{root}/volumes/metadata.db", "{srv}/buildkit/cache.db"]], True),
        ([["{root}/volumes/metadata.db"], ["{srv}/buildkit/cache.db"]], False),  # two processes
        ([["{root}/containers/x/x-json.log", "{srv}/buildkit/x.log"]], False),  # a log shipper
        ([["{srv}/buildkit/cache.db", "/elsewhere/volumes/metadata.db"]], False),  # another engine
        ([], False),
    ],
)
def test_what_has_no_objects_is_known_by_the_databases_that_one_process_has_open(tree: Tree, opened: list[list[str]], followed: bool) -> None:
    tree.link("buildkit", "cache")
    tree.opened = [[path.format(root=tree.root, srv=tree.srv) for path in paths] for paths in opened]
    moved, refused = tree.locate()
    assert (moved == {"buildkit": "buildkit"}) == followed
    assert [line.rpartition(": ")[2] for line in refused] == ([] if followed else [f"nothing shows that {tree.srv}/buildkit is this engine's"])


def test_an_empty_folder_behind_a_link_holds_nothing_and_is_not_spoken_of(tree: Tree) -> None:
    tree.link("tmp")
    assert tree.locate() == ({}, [])


def test_a_link_below_containerds_root_is_followed_too(tree: Tree) -> None:
    base = tree.root / "containerd/daemon"
    (base / "io.containerd.snapshotter.v1.overlayfs").mkdir(parents=True)
    content = tree.srv / "content"
    (content / "blobs/sha256" / THREE).mkdir(parents=True)
    (base / "io.containerd.content.v1.content").symlink_to(content)
    located, refused = places.locate(Storage(str(tree.root), "overlayfs", "containerd", {}), tree.engine)
    assert refused == []
    assert located.content == str(content)
    assert located.containerd == str(base)
    assert located.roots == [str(tree.root), str(content)]


CONTENT, SNAPSHOTTER = "io.containerd.content.v1.content", "io.containerd.snapshotter.v1.overlayfs"


@pytest.mark.parametrize("link", ["docker/containerd", "docker/containerd/daemon", "var/lib/containerd"])
@pytest.mark.parametrize("evidence", ["images", "process", "none", "of another user"])
def test_containerds_folder_may_be_a_link_itself(tree: Tree, monkeypatch: pytest.MonkeyPatch, link: str, evidence: str) -> None:
    monkeypatch.setattr(storages, "_CONTAINERD", ("{root}/containerd/daemon", f"{tree.root.parent}/var/lib/containerd"))
    storages._is_open.cache_clear()
    base = tree.srv / ("ctd/daemon" if link.endswith("docker/containerd") else "ctd")
    for path in (f"{SNAPSHOTTER}/snapshots/1", "io.containerd.metadata.v1.bolt", f"{CONTENT}/blobs/sha256/{THREE if evidence != 'none' else ONE}"):
        (base / path).mkdir(parents=True)
    where = tree.root.parent / link
    where.parent.mkdir(parents=True, exist_ok=True)
    where.symlink_to(tree.srv / "ctd")
    if evidence == "of another user":
        if os.geteuid():
            pytest.skip("not here: only root gives files away")
        os.chown(where, 12345, 12345, follow_symlinks=False)
    if evidence == "process":
        (base / CONTENT / "blobs/sha256" / THREE).rmdir()
        opened = open(base / "io.containerd.metadata.v1.bolt/meta.db", "w")
    located, refused = places.locate(Storage(str(tree.root), "overlayfs", "containerd", {}), tree.engine)
    if evidence in ("images", "process"):
        assert (refused, located.roots) == ([], [str(tree.root), str(tree.srv / "ctd")])
        assert os.path.realpath(str(located.containerd)) == located.containerd == str(base)
        assert located.content == f"{base}/{CONTENT}"
        assert located.other_stores() == [], "what is in use is nobody's leftover"
        assert places.beyond(located) == []
    else:
        # Then nothing is said of what is there, and none of it is on a filesystem that is known.
        assert len(refused) == 1 and str(where) in refused[0]
        assert located.roots == [str(tree.root)]
        assert all(places.is_below(path, places.beyond(located)) for path in located.layer_folders())
        (disk,) = places.disks(located)
        assert not {"images", "containers", "build_cache"} & set(disk.holds)
    if evidence == "process":
        opened.close()
    storages._is_open.cache_clear()


def test_a_containerd_that_is_told_by_its_real_path_may_be_behind_a_link(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tree.link("containerd", f"daemon/{SNAPSHOTTER}/snapshots/1", f"daemon/{CONTENT}/blobs/sha256/{THREE}") / "daemon"
    monkeypatch.setattr(storages, "_containerd_at", lambda _address, _users: str(base))
    located, refused = places.locate(Storage(str(tree.root), "overlayfs", "containerd", {}, containerd_address="/run/x.sock"), tree.engine)
    assert (refused, located.roots) == ([], [str(tree.root), str(base.parent)])
    assert (located.containerd, located.other_stores()) == (str(base), [])


def test_a_link_to_a_folder_with_containerds_in_it_is_not_followed(tree: Tree) -> None:
    (tree.root / f"containerd/daemon/{SNAPSHOTTER}").mkdir(parents=True)
    for name in ("a", "b"):
        (tree.root / "containerd/volumes" / name).mkdir(parents=True)
    (tree.root / "volumes").symlink_to("containerd/volumes")
    moved, (line,) = tree.locate("overlayfs", "containerd")
    assert moved == {} and "have each other's files" in line


def test_a_link_of_somebody_elses_is_not_followed(tree: Tree) -> None:
    if os.geteuid():
        pytest.skip("not here: only root gives files away")
    tree.link("containers", ONE, TWO)
    os.chown(tree.root / "containers", 12345, 12345, follow_symlinks=False)
    moved, (line,) = tree.locate()
    assert moved == {} and line.endswith(f"{tree.root}/containers belongs to user 12345")


@pytest.mark.parametrize(("name", "followed"), [("12345.12345", True), ("54321.12345", False), ("docker", False)])
def test_with_user_namespaces_the_target_may_belong_to_their_root(tree: Tree, name: str, followed: bool) -> None:
    if os.geteuid():
        pytest.skip("not here: only root gives files away")
    target = tree.link("containers", ONE, TWO)
    tree.root = tree.root.rename(tree.root.parent / name)
    os.chown(target, 12345, 12345)
    assert bool(tree.locate()[0]) == followed


@pytest.mark.parametrize(("mode", "followed"), [(0o755, True), (0o775, False), (0o757, False), (0o1777, True)])
@pytest.mark.parametrize("where", ["docker", "srv"])
def test_where_others_may_write_no_link_is_followed(tree: Tree, mode: int, followed: bool, where: str) -> None:
    tree.link("containers", ONE, TWO)
    (tree.root.parent / where).chmod(mode)
    assert bool(tree.locate()[0]) == followed


@pytest.mark.parametrize("target", [".", "..", "volumes", "containers"])
def test_a_link_to_a_place_of_the_engines_own_is_not_followed(tree: Tree, target: str) -> None:
    (tree.root / "volumes/a").mkdir(parents=True)
    (tree.root / "volumes/b").mkdir()
    (tree.root / "containers").symlink_to(tree.root / target)
    tree.opened = [[f"{tree.root}/volumes/metadata.db", f"{tree.root}/buildkit/cache.db"]]
    moved, refused = tree.locate()
    assert moved == {} and len(refused) == 1


def test_a_link_that_leads_nowhere_is_said(tree: Tree) -> None:
    (tree.root / "tmp").symlink_to("/nowhere/at/all")
    (tree.root / "swarm").symlink_to("swarm")
    (tree.root / "plugins").symlink_to(__file__)
    moved, refused = tree.locate()
    assert moved == {} and len(refused) == 3


def test_a_link_by_way_of_another_is_followed_if_both_are_roots(tree: Tree) -> None:
    target = tree.link("real", ONE, TWO)
    (tree.root / "real").unlink()
    (tree.srv / "way").symlink_to(target)
    (tree.root / "containers").symlink_to("../srv/way")
    assert tree.locate() == ({"containers": "real"}, [])


def test_an_engine_that_cannot_tell_its_objects_leaves_a_link_alone(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.link("containers", ONE, TWO)

    def fake_refusal(_self: FakeEngine) -> list[dict[str, t.Any]]:
        raise EngineError("GET /containers/json", 500, "damaged")

    monkeypatch.setattr(FakeEngine, "containers", fake_refusal)
    moved, (line,) = tree.locate()
    assert moved == {} and "damaged" in line


# -- mounts ----------------------------------------------------------------------------------------


@pytest.fixture
def mounted(monkeypatch: pytest.MonkeyPatch) -> t.Callable[..., None]:
    """Put filesystems of these types on folders; each has its own device, unless it is one of ``alike``."""

    def put(root: str, types: t.Mapping[str, str], alike: t.Mapping[str, str] | None = None, own: t.Collection[str] = ()) -> None:
        monkeypatch.setattr(measure, "mounts_below", lambda _roots: [Mount(f"{root}/{path}", kind, path in own) for path, kind in types.items()])
        devices = {f"{root}/{path}": (alike or {}).get(path, path) for path in types}
        monkeypatch.setattr(measure, "device", lambda path: devices.get(path, "main"))
        monkeypatch.setattr(measure, "within", lambda path: f"/{os.path.basename(path)}" if path in devices else path)

    return put


@pytest.mark.parametrize(
    ("path", "kind", "engines"),
    [
        ("volumes", "xfs", True),
        ("overlay2", "ext4", True),
        ("containers", "tmpfs", True),
        ("buildkit", "btrfs", True),
        ("image", "ext4", True),
        ("image/overlay2/layerdb", "ext4", True),
        ("containerd", "ext4", True),
        ("containerd/daemon", "zfs", True),
        ("tmp", "ext4", True),
        ("volumes/data", "xfs", False),
        ("volumes/data/_data", "xfs", False),
        ("volumes/data/_data/sub", "ext4", False),
        ("volumes", "nfs4", False),
        ("volumes", "cifs", False),
        ("volumes", "fuse.sshfs", False),
        ("overlay2/x1/merged", "overlay", False),
        ("overlay2/x1", "ext4", False),
        (f"containers/{ONE}/mounts/shm", "tmpfs", False),
        ("backup", "ext4", False),
        ("network/files", "ext4", False),
    ],
)
def test_what_is_mounted_on_a_folder_of_one_sort_of_objects_is_the_engines(
    tmp_path: Path, mounted: t.Callable[..., None], path: str, kind: str, engines: bool
) -> None:
    (tmp_path / path).mkdir(parents=True)
    mounted(str(tmp_path), {path: kind})
    found = places.find(Storage(str(tmp_path), "overlay2", "graphdriver", {}))
    assert found == {str(tmp_path): "main", **({f"{tmp_path}/{path}": path} if engines else {})}


@pytest.mark.parametrize(("kind", "known"), [("nfs4", False), ("fuse.sshfs", False), ("xfs", True)])
def test_what_another_machine_has_is_on_no_filesystem_of_this_one(tmp_path: Path, mounted: t.Callable[..., None], kind: str, known: bool) -> None:
    for path in ("volumes", "overlay2/x1/merged"):
        (tmp_path / path).mkdir(parents=True)
    mounted(str(tmp_path), {"volumes": kind, "overlay2/x1/merged": "overlay"})
    storage = Storage(str(tmp_path), "overlay2", "graphdriver", {})
    assert places.beyond(storage) == ([] if known else [f"{tmp_path}/volumes"])
    assert any("volumes" in disk.holds for disk in places.disks(storage)) == known


@pytest.mark.parametrize("name", ["image", "buildkit", "network", "plugins", "swarm"])
def test_a_disk_with_the_engines_own_records_says_so(tmp_path: Path, mounted: t.Callable[..., None], name: str) -> None:
    (tmp_path / name).mkdir()
    mounted(str(tmp_path), {name: "ext4"})
    assert [disk.holds for disk in places.disks(Storage(str(tmp_path), "overlay2", "graphdriver", {}))] == [("engine_metadata",)] * 2


def test_a_folder_mounted_over_itself_is_no_place_of_its_own(tmp_path: Path, mounted: t.Callable[..., None]) -> None:
    mounted(str(tmp_path), {"overlay2": "ext4"}, own=["overlay2"])
    assert list(places.find(Storage(str(tmp_path), "overlay2", "graphdriver", {}))) == [str(tmp_path)]


@pytest.mark.parametrize(("inner", "counts"), [("/docker/real", False), ("/docker", False), ("/docker-volumes", True), ("/srv/volumes", True)])
def test_a_folder_of_the_data_roots_own_that_is_mounted_again_counts_once(
    tmp_path: Path, mounted: t.Callable[..., None], monkeypatch: pytest.MonkeyPatch, inner: str, counts: bool
) -> None:
    mounted(str(tmp_path), {"volumes": "ext4"}, alike={"volumes": "main"})
    monkeypatch.setattr(measure, "within", lambda path: inner if path.endswith("/volumes") else "/docker")
    assert (f"{tmp_path}/volumes" in places.find(Storage(str(tmp_path), "overlay2", "graphdriver", {}))) == counts


def test_a_filesystem_is_there_once_wherever_it_is_mounted_and_says_what_it_holds(tmp_path: Path, mounted: t.Callable[..., None]) -> None:
    for name in ("volumes", "overlay2", "containers", "tmp"):
        (tmp_path / name).mkdir()
    mounted(str(tmp_path), {"volumes": "xfs", "overlay2": "btrfs", "containers": "xfs"}, alike={"containers": "volumes"})
    found = places.disks(Storage(str(tmp_path), "overlay2", "graphdriver", {}))
    assert [(disk.device, [os.path.basename(place) for place in disk.places], disk.holds) for disk in found] == [
        ("main", [tmp_path.name], ("engine_metadata", "tmp")),
        ("volumes", ["volumes", "containers"], ("volumes", "logs", "container_metadata")),
        ("overlay2", ["overlay2"], ("images", "containers", "build_cache")),
    ]
    assert places.disk_of(f"{tmp_path}/containers/{ONE}/x", found).device == "volumes"
    assert places.disk_of(f"{tmp_path}/image/x", found).device == "main"
    assert places.disk_of("/somewhere/else", found).device == "main"
