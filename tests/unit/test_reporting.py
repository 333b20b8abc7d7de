# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole report of an engine that is a fake, on a data root with real files: against du, and against what removing gives back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import typing as t
from pathlib import Path

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import attribution, history, measure, places, reporting, session, snapshot
from ansible_collections.fleetclean.docker.plugins.module_utils.engine import EngineError
from ansible_collections.fleetclean.docker.plugins.module_utils.snapshot import chain_ids
from ansible_collections.fleetclean.docker.plugins.module_utils.storage import Proof, Storage
from dataroots import GraphRoot
from holder import Holder
from worlds import hexadecimal, sha

EVERYTHING = ("filesystem", "images", "containers", "volumes", "build_cache", "logs", "leftovers")
DIFFS = {name: sha(f"diff {name}") for name in ("base", "top", "other", "nobodys")}
BASE = DIFFS["base"]
TOP, OTHER = (chain_ids([BASE, DIFFS[name]])[1] for name in ("top", "other"))
NOBODYS = DIFFS["nobodys"]
WEB, JOB = hexadecimal("container web"), hexadecimal("container job")
ANONYMOUS, LOST, CACHED = hexadecimal("an anonymous volume"), hexadecimal("a lost layer"), "k" * 25
LONG_AGO = 1_600_000_000


class FakeEngine:
    """Two images on one base, a container that runs and one that does not, volumes, a record of the build cache."""

    def __init__(self, api: tuple[int, ...] = (1, 45)) -> None:
        self.api = api
        self.api_version = ".".join(map(str, api))
        self.info: dict[str, t.Any] = {"ID": "ENGINE:ID", "Name": "host", "SystemTime": "2024-03-01T12:00:00Z"}
        self.version = {"Version": "26.0.0"}
        self.usage: dict[str, t.Any] = {
            "LayersSize": 900_000,
            "Images": [{"Id": sha(name), "SharedSize": 100_000} for name in ("one", "two")],
            "Containers": [{"Id": WEB, "SizeRw": 7000, "SizeRootFs": 500_000}, {"Id": JOB, "SizeRootFs": 500_000}],
            "BuildCache": [{"ID": "r1", "Type": "regular", "Size": 40_000, "InUse": False, "Shared": False, "CreatedAt": "2024-02-01T00:00:00Z"}],
            "Volumes": [{"Name": "data", "UsageData": {"Size": 60_000}}, {"Name": "nfs", "UsageData": {"Size": -1}}],
        }
        self.kinds: list[tuple[str, ...]] = []

    def speaks(self, version: str) -> bool:
        return self.api >= tuple(int(part) for part in version.split("."))

    events_kept = 256

    def past_events(self) -> list[dict[str, t.Any]]:
        return []

    def services(self) -> list[dict[str, t.Any]]:
        return []

    def containers_as(self, make: t.Callable[[dict[str, t.Any]], t.Any], size: bool = False) -> list[t.Any]:
        return [make(raw) for raw in self.containers(size)]

    def containers(self, size: bool = False) -> list[dict[str, t.Any]]:
        mounts = [{"Type": "volume", "Name": "data"}]
        return [
            {"Id": WEB, "Names": ["/web"], "Image": "app:1", "ImageID": sha("one"), "State": "running", "Created": 1709000000, "Mounts": mounts},
            {"Id": JOB, "Names": ["/job"], "Image": "app:1", "ImageID": sha("one"), "State": "exited", "Created": 1709000000, "Mounts": []},
        ]

    def container(self, ident: str) -> dict[str, t.Any]:
        status = {WEB: "running", JOB: "exited"}[ident]
        moments = {"StartedAt": "2024-02-27T02:13:21Z", "FinishedAt": "2024-02-28T00:00:00Z" if status == "exited" else "0001-01-01T00:00:00Z"}
        return {"Created": "2024-02-27T02:13:20Z", "State": {"Status": status, **moments}}

    def images_as(self, make: t.Callable[[dict[str, t.Any]], t.Any]) -> list[t.Any]:
        return [make(raw) for raw in self.images()]

    def images(self) -> list[dict[str, t.Any]]:
        return [
            {"Id": sha("one"), "RepoTags": ["app:1"], "RepoDigests": [], "Created": 1709000000, "Size": 400_000},
            {"Id": sha("two"), "RepoTags": ["app:\x1b[31m2"], "RepoDigests": [], "Created": 1709000000, "Size": 300_000},
        ]

    def image(self, ident: str) -> dict[str, t.Any]:
        raise EngineError("GET /images/x/json", 404, "No such image")

    def volumes(self) -> list[dict[str, t.Any]]:
        return [
            {"Name": "data", "Driver": "local"}, {"Name": "old", "Driver": "local"}, {"Name": ANONYMOUS, "Driver": "local"},
            {"Name": "nfs", "Driver": "netapp"},
        ]

    def events(self, *_arguments: t.Any, **_named: t.Any) -> list[dict[str, t.Any]]:
        return []

    def networks(self) -> list[dict[str, t.Any]]:
        return []

    def disk_usage(self, *kinds: str) -> dict[str, t.Any]:
        self.kinds.append(kinds)
        names = {"image": ("Images", "LayersSize"), "container": ("Containers",), "volume": ("Volumes",), "build-cache": ("BuildCache",)}
        return {name: self.usage[name] for kind in kinds for name in names[kind]}


def put(path: Path | str, size: int) -> None:
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(b"x" * size)


class Host:
    """The fake engine's data root, and the module's run on it."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        root.mkdir()
        self.root = root
        self.graph = GraphRoot(root)
        self.engine = FakeEngine()
        self.storage: Storage | None = self.graph.storage
        self._fill()
        monkeypatch.setattr(session, "open_site", self._site)

    def _fill(self) -> None:
        graph, root = self.graph, self.root
        base, top, other = graph.layer(BASE, size=200_000), graph.layer(TOP, BASE, 200_000), graph.layer(OTHER, BASE, 100_000)
        put(f"{base}/diff/bin/sh", 200_000)
        os.link(f"{base}/diff/bin/sh", f"{base}/diff/bin/again")
        put(f"{top}/diff/app", 190_000)
        put(f"{other}/diff/app", 90_000)
        for name, layers in (("one", ("base", "top")), ("two", ("base", "other"))):
            record = {"rootfs": {"type": "layers", "diff_ids": [DIFFS[layer] for layer in layers]}}
            put(root / "image/overlay2/imagedb/content/sha256" / hexadecimal(name), 0)
            (root / "image/overlay2/imagedb/content/sha256" / hexadecimal(name)).write_text(json.dumps(record))
        for container, size in ((WEB, 30_000), (JOB, 70_000)):
            mine, _init = graph.mount(container, TOP)
            put(f"{mine}/diff/written", size)
            put(root / "containers" / container / "config.v2.json", 3000)
            put(root / "containers" / container / f"{container}-json.log", size * 2)
            put(root / "containers" / container / f"{container}-json.log.1", 10_000)
        for name, size in (("data", 60_000), ("old", 50_000), (ANONYMOUS, 20_000)):
            put(root / "volumes" / name / "_data/file", size)
        put(root / "volumes/metadata.db", 32_000)
        put(graph.folder(CACHED) + "/diff/built", 40_000)
        graph.buildkit({CACHED.encode(): {b"parent": TOP.encode()}}, {"r1": {"cache.snapshot": CACHED}})
        # Nobody's: a folder, a layer that the engine knows, another driver's data, a download, and a file of we know not whom.
        put(graph.folder(LOST) + "/diff/file", 25_000)
        put(graph.layer(NOBODYS, size=35_000) + "/diff/file", 35_000)
        put(root / "vfs/dir" / hexadecimal("vfs") / "file", 15_000)
        put(root / "tmp/GetImageBlob1", 5000)
        put(root / "somebody's backup", 45_000)
        put(root / "network/files/local-kv.db", 8000)
        self.age()

    def age(self) -> None:
        """All of it is old: nothing is only being made."""
        for top, _folders, _files in os.walk(self.root):
            os.utime(top, (LONG_AGO, LONG_AGO))

    def _site(self, _params: t.Any) -> session.Site:
        storage = self.storage or Storage("/var/lib/docker", "overlay2", "graphdriver", {})
        return session.Site(t.cast(t.Any, self.engine), storage, Proof(self.storage is not None, "nothing proves it"))

    def report(self, **params: t.Any) -> dict[str, t.Any]:
        given = {"include": EVERYTHING, "measure": "exact", "top": -1, "gentle": False, "state_dir": "", **params}
        result: dict[str, t.Any] = {"changed": False}
        reporting.report(t.cast(t.Any, type("Module", (), {"params": given, "check_mode": False})), result)
        json.dumps(result)  # as Ansible does
        return result

    def layer(self, chain: str) -> str:
        return f"{self.root}/overlay2/{hexadecimal(f'folder of {chain}')}"

    def writable(self, container: str) -> list[str]:
        mine = f"{self.root}/overlay2/{hexadecimal(f'writable layer of {container}')}"
        return [mine, f"{mine}-init"]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path / "docker", monkeypatch)


def du(*paths: Path | str) -> int:
    answer = subprocess.run(["du", "-cxsB1", "--", *map(str, paths)], capture_output=True, text=True, check=True)
    return int(answer.stdout.splitlines()[-1].split("\t")[0])


def strings(value: t.Any) -> t.Iterator[str]:
    """All texts in a result."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from (*strings(key), *strings(inner))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from strings(inner)
    elif isinstance(value, str):
        yield value


def item(result: dict[str, t.Any], category: str, name: str) -> dict[str, t.Any]:
    (found,) = (each for each in result["largest"][category] if name in (each["name"], each["id"]))
    return found


# -- exact ---------------------------------------------------------------------------------------------------


def test_every_byte_below_the_data_root_is_in_one_category_and_in_one_only(host: Host) -> None:
    result = host.report()
    totals = result["totals"]
    assert totals["disk_bytes"] == du(host.root) == sum(use["disk_bytes"] for use in result["usage"].values())
    assert totals["attributed_bytes"] + totals["unattributed_bytes"] == totals["disk_bytes"]
    assert result["roots"] == [{"path": str(host.root), "disk_bytes": totals["disk_bytes"], "subvolume_bytes": 0}]
    assert (result["unread"]["count"], result["mounts"], result["warnings"]) == (0, [], [])
    assert result["measured"]["mode"] == "exact"
    assert result["measured"]["walked_bytes"] == totals["disk_bytes"]


def test_each_category_has_what_is_its_own(host: Host) -> None:
    usage = host.report()["usage"]
    root = host.root
    records = [f"{root}/image/overlay2/layerdb/sha256/{NOBODYS[7:]}"]
    logs = [f"{root}/containers/{who}/{who}-json.log{more}" for who in (WEB, JOB) for more in ("", ".1")]
    expected = {
        "images": du(*(host.layer(chain) for chain in (BASE, TOP, OTHER))) + os.lstat(root / "overlay2").st_blocks * 512,
        "containers": du(*host.writable(WEB), *host.writable(JOB)),
        "volumes": du(*(root / "volumes" / name for name in ("data", "old", ANONYMOUS))),
        "build_cache": du(root / "overlay2" / CACHED),
        "logs": du(*logs),
        "container_metadata": du(root / "containers" / WEB, root / "containers" / JOB) - du(*logs),
        "tmp": du(root / "tmp"),
        "leftovers": du(root / "overlay2" / LOST, host.layer(NOBODYS), root / "vfs", *records),
        "unattributed": du(root / "somebody's backup"),
    }
    expected["engine_metadata"] = du(root) - sum(expected.values())
    assert {name: use["disk_bytes"] for name, use in usage.items()} == expected


def logs_of(root: Path, container: str) -> list[Path]:
    return [root / "containers" / container / f"{container}-json.log{more}" for more in ("", ".1")]


def test_what_is_reclaimable_is_what_removing_gives_back(host: Host) -> None:
    result = host.report()
    ways = {name: way["bytes"] for name, way in result["reclaimable"].items()}
    root, image_db = host.root, host.root / "image/overlay2"

    def removed(*paths: Path | str) -> int:
        before = du(root)
        for path in paths:
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
        return before - du(root)

    volumes = removed(root / "volumes/old", root / "volumes" / ANONYMOUS)
    assert ways["unused_volumes"] == volumes
    cache = removed(root / "overlay2" / CACHED)
    assert ways["unused_build_cache"] == cache
    images = removed(host.layer(OTHER), image_db / "layerdb/sha256" / OTHER[7:], image_db / "imagedb/content/sha256" / hexadecimal("two"))
    assert ways["unused_images"] == images == item(result, "images", "app:?[31m2")["reclaimable_bytes"]
    job_logs = du(*logs_of(root, JOB))
    containers = removed(root / "containers" / JOB, *host.writable(JOB), image_db / "layerdb/mounts" / JOB)
    assert ways["stopped_containers"] == containers == item(result, "containers", "job")["reclaimable_bytes"]
    assert ways["everything_unused"] == volumes + cache + images + containers
    # A log is cut, and rotated ones are removed.
    web_log = removed(*logs_of(root, WEB))
    assert ways["logs"] == web_log + job_logs
    assert item(result, "logs", "web")["reclaimable_bytes"] == web_log
    leftovers = removed(root / "overlay2" / LOST, host.layer(NOBODYS), root / "vfs", image_db / "layerdb/sha256" / NOBODYS[7:])
    assert ways["leftovers"] == leftovers
    # A log that goes with its container is counted once.
    assert result["totals"]["reclaimable_bytes"] == volumes + cache + images + containers + web_log + leftovers


def test_lengths_are_counted_once(host: Host) -> None:
    lengths = {
        os.lstat(path).st_ino: os.lstat(path).st_size
        for top, _folders, files in os.walk(host.root)
        for path in (f"{top}/{name}" for name in files)
    }
    assert sum(use["apparent_bytes"] for use in host.report()["usage"].values()) == sum(lengths.values())


def test_anonymous_volumes_and_dangling_images_are_ways_of_their_own(host: Host) -> None:
    ways = host.report()["reclaimable"]
    assert ways["anonymous_volumes"]["bytes"] == du(host.root / "volumes" / ANONYMOUS)
    assert (ways["dangling_images"]["bytes"], ways["dangling_images"]["count"]) == (0, 0)
    counts = {name: ways[name]["count"] for name in ("anonymous_volumes", "unused_volumes", "unused_images", "stopped_containers", "everything_unused")}
    # A volume of another driver has its data elsewhere: nothing could be had here.
    assert counts == {"anonymous_volumes": 1, "unused_volumes": 2, "unused_images": 1, "stopped_containers": 1, "everything_unused": 5}


def test_items_have_what_they_hold_and_what_goes_with_them_alone(host: Host) -> None:
    result = host.report()
    one = item(result, "images", "app:1")
    assert (one["active"], sorted(one["used_by"]), one["reclaimable_bytes"]) == (True, ["job", "web"], 0)
    assert one["disk_bytes"] >= du(host.layer(BASE), host.layer(TOP))
    web = item(result, "containers", "web")
    assert (web["active"], web["reclaimable_bytes"], web["logical_bytes"]) == (True, 0, 7000)
    assert web["disk_bytes"] == du(*host.writable(WEB))
    data = item(result, "volumes", "data")
    assert data["disk_bytes"] == du(host.root / "volumes/data")
    assert (data["logical_bytes"], data["used_by"], data["reclaimable_bytes"]) == (60_000, ["web"], 0)
    assert item(result, "volumes", "old")["reclaimable_bytes"] == du(host.root / "volumes/old")
    log = item(result, "logs", "web")
    assert (log["files"], log["logical_bytes"]) == (2, 70_000)
    assert log["reclaimable_bytes"] == log["disk_bytes"] == du(*logs_of(host.root, WEB))
    assert item(result, "build_cache", "r1")["disk_bytes"] == du(host.root / "overlay2" / CACHED)
    kinds = {left["path"]: left["kind"] for left in result["largest"]["leftovers"]}
    assert kinds == {
        f"{host.root}/overlay2/{LOST}": "layer",
        host.layer(NOBODYS): "registered layer",
        f"{host.root}/image/overlay2/layerdb/sha256/{NOBODYS[7:]}": "registered layer",
        f"{host.root}/vfs": "other storage driver",
    }
    assert [each["name"] for each in result["largest"]["unattributed"]] == [f"{host.root}/somebody's backup"]
    assert [each["name"] for each in result["largest"]["tmp"] if "GetImageBlob1" in each["name"]]


def test_an_image_takes_the_steps_of_its_build_along_that_are_nobody_elses(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the classic builder leaves them: each step is an image of its own, and goes with its last child."""
    alone = item(host.report(), "images", sha("two"))["reclaimable_bytes"]
    assert alone > 90_000
    record = {"rootfs": {"type": "layers", "diff_ids": [DIFFS["base"], DIFFS["other"]]}}
    (host.root / "image/overlay2/imagedb/content/sha256" / hexadecimal("step")).write_text(json.dumps(record))
    one, two = host.engine.images()
    step = {"Id": sha("step"), "RepoTags": ["<none>:<none>"], "RepoDigests": [], "Created": 1709000000, "Size": 300_000}
    listed = [one, {**two, "ParentId": sha("step")}, step]
    monkeypatch.setattr(host.engine, "images", lambda: listed)
    assert abs(item(host.report(), "images", sha("two"))["reclaimable_bytes"] - alone) < 8192
    # Unless somebody else wants such a step: by a name, or as his own.
    for other in ({**step, "RepoTags": ["step:1"]}, step):
        listed[2:] = [other] if other["RepoTags"] == ["step:1"] else [other, {**step, "Id": sha("sister"), "ParentId": sha("step")}]
        assert item(host.report(), "images", sha("two"))["reclaimable_bytes"] < 8192
    # Nor are parents in a circle a hang.
    listed[2:] = [{**step, "ParentId": sha("two")}]
    host.report()


def test_of_a_volume_that_another_driver_keeps_nobody_here_knows_a_size(host: Host) -> None:
    nfs = item(host.report(), "volumes", "nfs")
    assert (nfs["size"], nfs["logical_bytes"], nfs["disk_bytes"], nfs["shared_bytes"], nfs["path"]) == (0, None, None, None, None)


def test_a_hard_link_between_what_two_own_is_counted_once(host: Host) -> None:
    # A backup of a volume with the tools of the host, for instance.
    os.link(host.root / "volumes/data/_data/file", host.root / "volumes/old/_data/again")
    os.link(host.root / "volumes/data/_data/file", host.root / "linked backup")
    result = host.report()
    assert result["totals"]["disk_bytes"] == du(host.root) == sum(use["disk_bytes"] for use in result["usage"].values())


def test_a_file_with_links_in_two_volumes_comes_free_with_both(host: Host) -> None:
    before = host.report()
    put(host.root / "volumes/old/_data/one", 300_000)
    os.link(host.root / "volumes/old/_data/one", host.root / "volumes" / ANONYMOUS / "_data/two")
    os.link(host.root / "volumes/old/_data/one", host.root / "volumes" / ANONYMOUS / "_data/three")
    after = host.report()

    def grown(*path: str) -> int:
        figures: list[t.Any] = []
        for result in (before, after):
            for key in path:
                result = result[key]
            figures.append(result)
        return figures[1] - figures[0]

    blocks = du(host.root / "volumes/old/_data/one")
    for name in ("old", ANONYMOUS):
        assert 0 <= item(after, "volumes", name)["reclaimable_bytes"] - item(before, "volumes", name)["reclaimable_bytes"] < 8192
    assert blocks <= grown("reclaimable", "unused_volumes", "bytes") < blocks + 8192
    assert blocks <= grown("usage", "volumes", "disk_bytes") < blocks + 8192
    assert 0 <= grown("reclaimable", "anonymous_volumes", "bytes") < 8192
    # A third link, in what nobody removes: nothing comes free.
    os.link(host.root / "volumes/old/_data/one", host.root / "linked backup")
    after = host.report()
    assert 0 <= grown("reclaimable", "unused_volumes", "bytes") < 8192


def test_names_are_printable(host: Host) -> None:
    put(host.root / os.fsdecode(b"bad \xff\n\x1b[31m name"), 100)
    put(host.root / "tmp" / os.fsdecode(b"\xff\x1b[2J"), 100)
    assert [text for text in strings(host.report()) if not text.isprintable()] == []


@pytest.mark.parametrize("top", [0, 1, 2, -1])
def test_no_more_items_are_named_than_were_asked_for_and_the_largest_first(host: Host, top: int) -> None:
    result = host.report(top=top)
    whole = host.report()
    for category, items in result["largest"].items():
        sizes = [each["size"] for each in items]
        assert sizes == sorted(sizes, reverse=True)
        assert items == (whole["largest"][category] if top < 0 else whole["largest"][category][:top])
        assert result["usage"][category] == whole["usage"][category]


@pytest.mark.parametrize(
    ("include", "categories"),
    [
        (["images"], {"images"}),
        (["containers"], {"containers", "container_metadata"}),
        (["logs", "volumes"], {"logs", "volumes"}),
        (["leftovers"], {"leftovers", "tmp", "engine_metadata", "unattributed"}),
        (["filesystem"], set()),
        ([], set()),
    ],
)
def test_what_was_not_asked_for_is_not_told(host: Host, include: list[str], categories: set[str]) -> None:
    result = host.report(include=include)
    assert set(result["usage"]) == set(result["largest"]) == categories
    assert bool(result["filesystems"]) == ("filesystem" in include)
    assert bool(host.engine.kinds) == bool(categories)
    # Sums are those of everything, whatever is told of it.
    assert result["totals"]["disk_bytes"] == (du(host.root) if categories else None)


# -- what cannot be told ----------------------------------------------------------------------------------------


def test_with_torn_records_nothing_is_a_leftover_and_nothing_is_lost(host: Host) -> None:
    (host.root / "buildkit/snapshots.db").write_bytes(b"torn" * 5000)
    result = host.report()
    assert result["totals"]["disk_bytes"] == du(host.root)
    assert {left["kind"] for left in result["largest"]["leftovers"]} == {"other storage driver"}
    assert result["totals"]["unattributed_bytes"] >= du(host.root / "overlay2" / LOST, host.layer(NOBODYS), host.root / "somebody's backup")
    assert any("snapshots.db" in warning for warning in result["warnings"])


def test_what_is_young_is_no_leftover(host: Host) -> None:
    for path in (host.root / "overlay2" / LOST, Path(host.layer(NOBODYS))):
        os.utime(path)
    result = host.report()
    assert not [left for left in result["largest"]["leftovers"] if left["path"] in (f"{host.root}/overlay2/{LOST}", host.layer(NOBODYS))]
    assert result["totals"]["disk_bytes"] == du(host.root) == sum(use["disk_bytes"] for use in result["usage"].values())


def test_what_no_image_names_is_one_item_and_no_image(host: Host) -> None:
    os.utime(Path(host.layer(NOBODYS)))
    result = host.report()
    unnamed = item(result, "images", "layers that no image names")
    assert unnamed["disk_bytes"] >= du(host.layer(NOBODYS)) and unnamed["active"]
    assert result["usage"]["images"]["count"] == len(result["largest"]["images"]) - 1


def test_what_is_half_made_has_a_way_to_be_had_back(host: Host) -> None:
    way = host.report()["reclaimable"]["tmp"]
    assert (way["bytes"], way["count"]) == (du(host.root / "tmp"), 1)


def test_what_came_after_the_engine_was_asked_is_no_leftover(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    # A container that is made, an image that is pulled, between our question and our look.
    real = snapshot.take
    late, lately = hexadecimal("a late container"), sha("a late layer")

    def fake_take(*arguments: t.Any) -> snapshot.Snapshot:
        looked = real(*arguments)
        mine, _init = host.graph.mount(late, TOP)
        put(f"{mine}/diff/file", 9000)
        put(host.graph.layer(lately) + "/diff/file", 9000)
        host.age()
        return looked

    monkeypatch.setattr(snapshot, "take", fake_take)
    result = host.report()
    assert len(result["largest"]["leftovers"]) == 4
    assert result["totals"]["disk_bytes"] == du(host.root)


def test_a_folder_that_leads_elsewhere_is_said_to_and_not_followed(host: Host, tmp_path: Path) -> None:
    shutil.move(str(host.root / "volumes"), tmp_path / "volumes")
    (host.root / "volumes").symlink_to(tmp_path / "volumes")
    result = host.report()
    assert result["totals"]["disk_bytes"] == du(host.root)
    assert any(f"{host.root}/volumes leads elsewhere by a link" in warning for warning in result["warnings"])
    assert result["usage"]["volumes"]["disk_bytes"] is None


def test_a_data_root_that_is_a_link_is_walked_where_it_leads(host: Host, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(host.root)
    host.storage = Storage(str(tmp_path / "link"), "overlay2", "graphdriver", {})
    result = host.report()
    assert result["totals"]["disk_bytes"] == du(host.root)
    assert result["warnings"] == []


def test_what_the_engine_cannot_list_on_a_full_disk_is_left_out_and_said(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    real = host.engine.disk_usage

    def fake_usage(*kinds: str) -> dict[str, t.Any]:
        if "build-cache" in kinds:
            raise EngineError("GET /system/df", 500, "write metadata_v2.db: no space left on device")
        return real(*kinds)

    monkeypatch.setattr(host.engine, "disk_usage", fake_usage)
    result = host.report()
    assert "build_cache" not in result["usage"]
    assert any("build_cache could not be listed" in warning for warning in result["warnings"])
    assert result["totals"]["disk_bytes"] == du(host.root)


def test_what_is_from_the_future_has_the_age_nought(host: Host) -> None:
    """The engine's clock went backwards: no age and no time since a use is below nothing."""
    host.engine.info["SystemTime"] = "2023-01-01T00:00:00Z"
    host.engine.usage["BuildCache"][0]["LastUsedAt"] = "2024-02-02T00:00:00Z"
    result = host.report()
    ages = [entry[key] for entries in result["largest"].values() for entry in entries for key in ("age", "last_used") if entry.get(key) is not None]
    assert min(ages) == 0 and ages.count(0) > 3


# -- remembered ---------------------------------------------------------------------------------------------------


def test_the_second_time_layers_that_never_change_are_not_walked_and_sums_are_the_same(host: Host, tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    first = host.report(state_dir=state)
    second = host.report(state_dir=state)
    assert (first["measured"]["remembered_layers"], second["measured"]["remembered_layers"]) == (0, 3)
    assert second["measured"]["walked_bytes"] + second["measured"]["remembered_bytes"] == first["measured"]["walked_bytes"]
    for what in ("totals", "usage", "largest", "reclaimable", "roots"):
        assert second[what] == first[what]


def test_a_layer_that_was_made_anew_is_walked_again(host: Host, tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    host.report(state_dir=state)
    shutil.rmtree(host.layer(OTHER))
    put(f"{host.layer(OTHER)}/diff/app", 400_000)
    result = host.report(state_dir=state)
    assert result["measured"]["remembered_layers"] == 2
    assert result["totals"]["disk_bytes"] == du(host.root)


def test_what_was_remembered_wrongly_by_somebody_else_is_not_believed(host: Host, tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    host.report(state_dir=state)
    known = history.measured(state, "ENGINE:ID")
    history.note_measured(state, "ANOTHER:ID", {name: figures._replace(disk=figures.disk * 9) for name, figures in known.items()})
    history.note_measured(state, "ENGINE:ID", {name: figures._replace(identity="1 2.3.4", disk=1) for name, figures in known.items()})
    result = host.report(state_dir=state)
    assert result["measured"]["remembered_layers"] == 0
    assert result["totals"]["disk_bytes"] == du(host.root)


def test_a_layer_with_a_link_to_elsewhere_is_not_remembered(host: Host, tmp_path: Path) -> None:
    os.link(f"{host.layer(TOP)}/diff/app", host.root / "linked backup")
    state = str(tmp_path / "state")
    host.report(state_dir=state)
    result = host.report(state_dir=state)
    assert result["measured"]["remembered_layers"] == 2
    assert result["totals"]["disk_bytes"] == du(host.root)


# -- fast ---------------------------------------------------------------------------------------------------------


def test_fast_measures_what_nobody_has_a_figure_for_and_takes_the_engines_for_the_rest(host: Host) -> None:
    exact, fast = host.report(), host.report(measure="fast")
    usage = fast["usage"]
    for category in ("images", "containers", "volumes", "build_cache"):
        assert (usage[category]["disk_bytes"], usage[category]["shared_bytes"], usage[category]["apparent_bytes"]) == (None, None, None)
    for category in ("logs", "container_metadata", "engine_metadata", "tmp", "leftovers"):
        assert usage[category]["disk_bytes"] == exact["usage"][category]["disk_bytes"]
    assert "unattributed" not in usage
    assert [fast["totals"][name] for name in ("disk_bytes", "attributed_bytes", "unattributed_bytes", "shared_bytes")] == [None] * 4
    assert fast["roots"] == []
    assert fast["measured"]["mode"] == "fast"
    assert fast["measured"]["walked_bytes"] < exact["measured"]["walked_bytes"] // 2
    assert usage["images"]["logical_bytes"] == exact["usage"]["images"]["logical_bytes"] == 500_000
    assert (usage["containers"]["logical_bytes"], usage["volumes"]["logical_bytes"], usage["build_cache"]["logical_bytes"]) == (7000, 60_000, 40_000)


@pytest.mark.parametrize("how", ["exact", "fast"])
@pytest.mark.parametrize("here", [True, False])
def test_a_report_asks_for_the_engines_own_figure_of_its_images(host: Host, monkeypatch: pytest.MonkeyPatch, how: str, here: bool) -> None:
    """On containerd's store nothing else tells it."""
    asked: list[snapshot.Wanted] = []
    take = snapshot.take

    def noting_take(engine: t.Any, wanted: snapshot.Wanted, storage: Storage | None) -> snapshot.Snapshot:
        asked.append(wanted)
        return take(engine, wanted, storage)

    monkeypatch.setattr(snapshot, "take", noting_take)
    if not here:
        host.storage = None
    host.report(measure=how)
    assert [(wanted.sizes, wanted.image_sizes, wanted.layers) for wanted in asked] == [(True, True, True)]


def test_fast_frees_by_the_engines_figures(host: Host) -> None:
    ways = {name: way["bytes"] for name, way in host.report(measure="fast")["reclaimable"].items()}
    # The layer that "two" alone has; a few records beside it are measured.
    assert 100_000 <= ways["unused_images"] < 150_000
    assert ways["unused_build_cache"] == 40_000
    # What the engine has no figure for frees nothing that anybody could promise.
    assert ways["unused_volumes"] == 0


# -- deleted, and still open ----------------------------------------------------------------------------------------


@pytest.fixture
def held(host: Host) -> t.Iterator[t.Callable[..., int]]:
    """Starts a process that has files of the data root open, and deletes them; its pid."""
    running: list[Holder] = []

    def start(*names: str, size: int = 3_000_000) -> int:
        for name in names:
            put(host.root / name, size)
        running.append(Holder(*(f"append:{host.root / name}" for name in names), root=host.root))
        for name in names:
            (host.root / name).unlink()
        host.age()
        return running[-1].pid

    yield start
    for process in running:
        process.end()


def deleted_in(result: dict[str, t.Any], host: Host) -> list[dict[str, t.Any]]:
    """Of all deleted files on this filesystem, those of the test."""
    return [entry for entry in result["deleted_open"]["largest"] if entry["path"].startswith(str(host.root))]


@pytest.mark.parametrize("params", [{}, {"measure": "fast"}, {"include": ["filesystem"]}, {"include": ["volumes"]}])
def test_deleted_files_that_are_open_are_in_every_report(host: Host, held: t.Callable[..., int], params: dict[str, t.Any]) -> None:
    pid = held("volumes/data/_data/gone \x1b[31m")
    result = host.report(**params)
    (entry,) = deleted_in(result, host)
    assert (entry["path"], entry["pid"], entry["user_id"]) == (f"{host.root}/volumes/data/_data/gone ?[31m", pid, os.geteuid())
    assert (entry["how"], entry["processes"], entry["container"], entry["means"]) == ("descriptor", 1, None, None)
    assert entry["mount_point"] == measure.filesystem(str(host.root)).mount_point
    assert 3_000_000 <= entry["bytes"] <= result["deleted_open"]["bytes"]
    assert result["deleted_open"]["count"] == len(result["deleted_open"]["largest"])
    assert host.report(include=[])["deleted_open"] == {}


def test_what_is_used_is_in_files_in_deleted_ones_or_said_to_be_in_neither(host: Host, held: t.Callable[..., int]) -> None:
    held("gone")
    result = host.report()
    (row,) = result["filesystems"]
    assert row["attributed_bytes"] == result["totals"]["disk_bytes"]
    assert row["deleted_open_bytes"] == result["deleted_open"]["bytes"]
    assert row["attributed_bytes"] + row["deleted_open_bytes"] + row["unaccounted_bytes"] == row["used"]
    # What was not measured cannot be told apart.
    for params in ({"measure": "fast"}, {"include": ["filesystem"]}):
        (row,) = host.report(**params)["filesystems"]
        assert (row["attributed_bytes"], row["unaccounted_bytes"]) == (None, None)
        assert row["deleted_open_bytes"] >= 3_000_000


def test_blocks_that_files_share_make_no_figure_less_than_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    real = measure.filesystem
    monkeypatch.setattr(measure, "filesystem", lambda path: real(path)._replace(used=100_000))
    (row,) = host.report()["filesystems"]
    assert row["unaccounted_bytes"] is None and row["attributed_bytes"] > 100_000


@pytest.mark.parametrize(
    "status", [{"Parent Dataset": "tank/docker", "Space Used By Parent": "1"}, {"Pool Name": "thin", "Data Space Used": "2GB"}]
)
def test_layers_on_devices_of_their_own_are_not_taken_from_what_the_filesystem_has(host: Host, status: dict[str, str]) -> None:
    host.storage = Storage(str(host.root), "overlay2", "graphdriver", status)
    (row,) = host.report()["filesystems"]
    assert (row["attributed_bytes"], row["unaccounted_bytes"]) == (None, None)


def test_what_lies_on_another_filesystem_is_not_taken_from_the_data_roots(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    volumes = f"{host.root}/volumes"
    monkeypatch.setattr(places, "find", lambda storage: {storage.root: measure.device(storage.root), volumes: "0:4711"})
    result = host.report()
    row = result["filesystems"][0]
    assert row["attributed_bytes"] == result["totals"]["disk_bytes"] - du(host.root / "volumes")


def test_a_deleted_log_that_the_engine_writes_can_be_had_back_and_others_cannot(host: Host, held: t.Callable[..., int]) -> None:
    before = host.report()
    log = f"containers/{WEB}/container-cached.log"
    held(log, "volumes/data/_data/gone")
    result = host.report()
    means = {os.path.basename(entry["path"]): entry["means"] for entry in deleted_in(result, host)}
    assert means == {"container-cached.log": "docker_log_truncate: deleted: true", "gone": None}
    freed = next(entry["bytes"] for entry in deleted_in(result, host) if entry["means"])
    assert result["reclaimable"]["deleted_logs"] == {"bytes": freed, "count": 1, "means": "docker_log_truncate: deleted: true"}
    assert before["reclaimable"]["deleted_logs"]["bytes"] == 0
    assert result["totals"]["reclaimable_bytes"] - before["totals"]["reclaimable_bytes"] == freed
    # In usage there are files that have a name.
    assert result["totals"]["disk_bytes"] == du(host.root)


def test_a_deleted_log_behind_a_link_can_be_had_back_as_well(host: Host, held: t.Callable[..., int], tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    (host.root / "containers").rename(moved)
    (host.root / "containers").symlink_to(moved)
    host.storage = host.graph.storage._replace(moved={f"{host.root}/containers": str(moved)})
    held(f"containers/{WEB}/container-cached.log")
    result = host.report()
    (entry,) = [entry for entry in result["deleted_open"]["largest"] if entry["path"].startswith(str(moved))]
    assert entry["means"] == "docker_log_truncate: deleted: true"
    assert (result["reclaimable"]["deleted_logs"]["count"], result["reclaimable"]["deleted_logs"]["bytes"]) == (1, entry["bytes"])


def test_what_lies_behind_a_link_that_is_not_followed_frees_nothing_on_the_data_roots_filesystem(host: Host, tmp_path: Path) -> None:
    (host.root / "overlay2").rename(tmp_path / "moved")
    (host.root / "overlay2").symlink_to(tmp_path / "moved")
    result = host.report()
    assert result["totals"]["disk_bytes"] == du(host.root)
    assert "images" not in result["filesystems"][0]["holds"] and "volumes" in result["filesystems"][0]["holds"]
    how = attribution.How(True, False, "", "")
    survey = attribution.survey(t.cast(t.Any, host.engine), host.graph.storage, how)
    main = measure.device(str(host.root))
    freed = survey.ledger.turns()(f"image:{sha('two')}")
    # The engine's own figure is known, and where it comes free is not.
    assert freed[main].frees < 50_000 and freed["elsewhere"].frees >= 100_000
    assert set(survey.ledger.disks("volume:old")) == {main}


@pytest.mark.parametrize("top", [0, 1])
def test_no_more_deleted_files_are_named_than_were_asked_for(host: Host, held: t.Callable[..., int], top: int) -> None:
    held("one", "two", f"containers/{WEB}/{WEB}-json.log")
    result = host.report(top=top)
    assert len(result["deleted_open"]["largest"]) == top
    assert result["deleted_open"]["count"] >= 3 and result["reclaimable"]["deleted_logs"]["count"] == 1


# -- another machine's engine -----------------------------------------------------------------------------------


def test_of_an_engine_elsewhere_there_are_its_own_figures_and_no_others(host: Host) -> None:
    host.storage = None
    result = host.report()
    assert set(result["usage"]) == {"images", "containers", "volumes", "build_cache"}
    for use in result["usage"].values():
        assert (use["disk_bytes"], use["apparent_bytes"], use["shared_bytes"]) == (None, None, None)
    assert [result["totals"][name] for name in ("disk_bytes", "attributed_bytes", "unattributed_bytes", "shared_bytes")] == [None] * 4
    assert (result["paths"], result["filesystems"], result["roots"], result["mounts"]) == ({}, [], [], [])
    assert result["deleted_open"] == {} and "deleted_logs" not in result["reclaimable"]
    assert result["warnings"] == ["nothing proves it; figures are the engine's own."]
    assert result["measured"]["mode"] == "fast"
    assert result["measured"]["files"] == 0
    assert result["usage"]["images"]["logical_bytes"] == 900_000
    for items in result["largest"].values():
        for each in items:
            assert (each["disk_bytes"], each["shared_bytes"]) == (None, None)
            assert each["size"] == (each["logical_bytes"] or 0)


def test_of_an_engine_elsewhere_what_would_come_free_are_its_own_figures(host: Host) -> None:
    host.storage = None
    ways = {name: way["bytes"] for name, way in host.report()["reclaimable"].items()}
    assert ways["unused_images"] == 300_000 - 100_000
    assert ways["stopped_containers"] == 0
    assert ways["unused_build_cache"] == 40_000
    assert (ways["logs"], ways["leftovers"]) == (0, 0)
    assert ways["everything_unused"] == 240_000


def test_of_an_engine_elsewhere_the_steps_of_a_build_count_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.storage = None
    one, two = host.engine.images()
    steps = [
        {"Id": sha(name), "RepoTags": ["<none>:<none>"], "RepoDigests": [], "Created": 1709000000, "Size": size, "ParentId": parent}
        for name, size, parent in (("step1", 500_000, ""), ("step2", 700_000, sha("step1")))
    ]
    built = {**steps[0], "Id": sha("built"), "RepoTags": ["built:1"], "Size": 720_000, "ParentId": sha("step2")}
    monkeypatch.setattr(host.engine, "images", lambda: [one, two, *steps, built])
    result = host.report()
    assert item(result, "images", "built:1")["reclaimable_bytes"] == 720_000
    assert result["reclaimable"]["unused_images"]["bytes"] == 200_000 + 720_000


def test_an_engine_elsewhere_never_has_this_machines_disk_read(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.storage = None
    touched: list[str] = []
    for name in ("open", "scandir", "listdir", "lstat"):
        real = getattr(os, name)

        def fake(path: t.Any = ".", *more: t.Any, _real: t.Any = real, **named: t.Any) -> t.Any:
            touched.append(str(path))
            return _real(path, *more, **named)

        monkeypatch.setattr(os, name, fake)
    host.report()
    monkeypatch.undo()
    assert not [path for path in touched if path.startswith(("/var/lib/docker", "/var/lib/containerd", str(host.root)))]
