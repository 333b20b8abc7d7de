# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is nobody's, what is only being made, and whether a folder is still the one that it was."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import typing as t
from contextlib import contextmanager
from pathlib import Path

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import leftovers
from ansible_collections.fleetclean.docker.plugins.module_utils.leftovers import Entry, Leftover
from ansible_collections.fleetclean.docker.plugins.module_utils.storage import Storage, is_name

ONE, TWO, THREE = "1" * 64, "2" * 64, "3" * 64
#: Files are as old as the test makes them, by this machine's clock.
OLD = 1_600_000_000.0
NOW = OLD + 1_000_000


def make(path: Path, age: float = 1_000_000) -> Path:
    """A folder with something in it, last changed so many seconds before now."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "something").write_text("x")
    os.utime(path, (NOW - age, NOW - age))
    return path


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    found = Storage(str(tmp_path), "overlay2", "graphdriver", {})
    for folder in ("overlay2", "containers", "volumes", "image/overlay2/layerdb/sha256", "image/overlay2/layerdb/mounts"):
        (tmp_path / folder).mkdir(parents=True)
    return found


def found_in(
    storage: Storage, owned: t.Container[str] = (), registered: t.Mapping[str, str] | None = None, now: float = NOW
) -> tuple[dict[str, str], set[str]]:
    """Path below the data root -> kind of what is nobody's; and the paths of what is being made."""
    nobodys, making = leftovers.find(storage, leftovers.listing(storage), owned, registered or {}, now)
    return (
        {os.path.relpath(left.path, storage.root): left.kind for left in nobodys},
        {os.path.relpath(entry.path, storage.root) for entry in making},
    )


# -- what has to have an owner --------------------------------------------------------------------------------


def test_each_place_where_everything_is_somebodys_is_listed(storage: Storage, tmp_path: Path) -> None:
    kinds = {
        f"overlay2/{ONE}": "layer",
        f"overlay2/{ONE}-init": "layer",
        f"overlay2/{'k' * 25}": "layer",
        f"image/overlay2/layerdb/sha256/{TWO}": "layer record",
        f"image/overlay2/layerdb/mounts/{THREE}": "record of a writable layer",
        "image/overlay2/layerdb/tmp/write-set-123": "half-made layer record",
        f"containers/{ONE}": "container",
        "volumes/data": "volume",
    }
    for place in kinds:
        make(tmp_path / place)
    assert found_in(storage) == (kinds, set())
    reasons = {left.kind: left.reason for left in leftovers.find(storage, leftovers.listing(storage), (), {}, NOW)[0]}
    assert set(reasons) == set(kinds.values())
    assert all(reasons.values())


def test_what_is_the_engines_own_there_is_not_listed(storage: Storage, tmp_path: Path) -> None:
    for place in ("overlay2/l", "overlay2/backingFsBlockDev", f"image/overlay2/layerdb/sha256/{ONE}-removing", "containers/tmp", "volumes"):
        make(tmp_path / place)
    (tmp_path / "volumes/metadata.db").write_text("x")
    (tmp_path / "volumes/backingFsBlockDev").write_text("x")
    listed = [entry for entry in leftovers.listing(storage).entries if os.path.basename(entry.path) != "something"]
    assert listed == []


def test_content_of_containerds_image_store_is_listed(tmp_path: Path) -> None:
    base = tmp_path / "containerd/daemon"
    make(base / "io.containerd.snapshotter.v1.overlayfs/snapshots/17")
    make(base / "io.containerd.content.v1.content/blobs/sha256" / ONE)
    make(base / "io.containerd.content.v1.content/ingest" / ONE)
    make(tmp_path / "image/overlay2/layerdb/sha256" / TWO)
    storage = Storage(str(tmp_path), "overlayfs", "containerd", {})
    kinds, _making = found_in(storage)
    below = "containerd/daemon/io.containerd"
    assert kinds == {f"{below}.snapshotter.v1.overlayfs/snapshots/17": "layer", f"{below}.content.v1.content/blobs/sha256/{ONE}": "content"}


def test_what_has_an_owner_is_nobodys_leftover(storage: Storage, tmp_path: Path) -> None:
    mine, lost = make(tmp_path / "overlay2" / ONE), make(tmp_path / "overlay2" / TWO)
    assert found_in(storage, {str(mine)}) == ({f"overlay2/{lost.name}": "layer"}, set())
    assert found_in(storage, {str(mine), str(lost)}) == ({}, set())


def test_what_came_after_the_list_was_made_is_nobodys_leftover(storage: Storage, tmp_path: Path) -> None:
    listed = leftovers.listing(storage)
    make(tmp_path / "overlay2" / ONE)
    assert leftovers.find(storage, listed, (), {}, NOW) == ([], [])


def test_what_is_gone_since_the_list_was_made_is_nobodys_leftover(storage: Storage, tmp_path: Path) -> None:
    path = make(tmp_path / "overlay2" / ONE)
    listed = leftovers.listing(storage)
    shutil.rmtree(path)
    assert leftovers.find(storage, listed, (), {}, NOW) == ([], [])


def test_what_the_engine_knows_says_so(storage: Storage, tmp_path: Path) -> None:
    # It goes with a restart, not by hand (moby 29358).
    path = make(tmp_path / "overlay2" / ONE)
    nobodys, _making = leftovers.find(storage, leftovers.listing(storage), (), {str(path): "layer of no image"}, NOW)
    assert nobodys == [Leftover(str(path), "registered layer", "layer of no image", NOW - 1_000_000)]


@pytest.mark.parametrize("name", ["new\nline", "..hidden", "a b", "x" * 200, "UPPER", "é", "\udcff"])
def test_a_name_that_is_no_layers_is_not_taken_for_one(storage: Storage, tmp_path: Path, name: str) -> None:
    make(tmp_path / "overlay2" / name)
    make(tmp_path / "containers" / name)
    make(tmp_path / "image/overlay2/layerdb/sha256" / name)
    assert found_in(storage) == ({}, set())


def test_links_are_named_and_not_followed(storage: Storage, tmp_path: Path) -> None:
    make(tmp_path / "elsewhere" / "a")
    (tmp_path / "overlay2" / ONE).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "volumes" / "link").symlink_to(tmp_path / "elsewhere")
    os.utime(tmp_path / "overlay2" / ONE, (OLD, OLD), follow_symlinks=False)
    assert found_in(storage) == ({f"overlay2/{ONE}": "layer"}, set())


def test_a_data_root_without_anything_has_nothing_left_over(tmp_path: Path) -> None:
    for driver, store in (("overlay2", "graphdriver"), ("zfs", "graphdriver"), ("overlayfs", "containerd")):
        storage = Storage(str(tmp_path / "nowhere"), driver, store, {})
        assert leftovers.listing(storage) == leftovers.Listing()
        assert leftovers.others(storage) == []
        assert leftovers.find(storage, leftovers.Listing(), (), {}, NOW) == ([], [])


# -- what is being made ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("age", "young"), [(0, True), (2, True), (4, False), (-3600, True)])
def test_what_is_young_may_be_half_made(storage: Storage, tmp_path: Path, age: float, young: bool) -> None:
    # -3600: a clock that was put back.
    make(tmp_path / "overlay2" / ONE, age)
    expected: tuple[dict[str, str], set[str]] = ({}, {f"overlay2/{ONE}"}) if young else ({f"overlay2/{ONE}": "layer"}, set())
    assert found_in(storage) == expected


@contextmanager
def writer(*paths: Path) -> t.Iterator[None]:
    """A process that holds files open, as an engine does with what it unpacks."""
    code = "import sys\nopened = [open(path, 'a') for path in sys.argv[1:]]\nprint('ready', flush=True)\nsys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code, *map(str, paths)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdin
        process.stdout.readline()
        try:
            yield
        finally:
            process.stdin.close()
            process.wait()


@contextmanager
def pretender(kind: str, write_set: Path) -> t.Iterator[None]:
    """A process that has a file of that name open, which is another one, or that is not the engine's."""
    if os.geteuid() != 0:
        yield
        return
    file = write_set / "tar-split.json.gz"
    file.touch()
    code = {
        "mount": "import os, subprocess, sys\nfolder = os.path.dirname(sys.argv[1])\n"
        "subprocess.run(['mount', '-t', 'tmpfs', 'tmpfs', folder], check=True)\nkept = open(sys.argv[1], 'w')",
        "user": "import os, sys\nkept = open(sys.argv[1])\nos.setresuid(12345, 12345, 12345)",
    }[kind]
    command = [*(["unshare", "--mount"] if kind == "mount" else []), sys.executable, "-c"]
    code += "\nprint('ready', flush=True)\nsys.stdin.read()"
    with subprocess.Popen([*command, code, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdin
        assert process.stdout.readline() == b"ready\n"
        try:
            yield
        finally:
            process.stdin.close()
            process.wait()


def test_a_layer_that_is_being_unpacked_is_nobodys_leftover_however_long_it_takes(storage: Storage, tmp_path: Path) -> None:
    write_set = tmp_path / "image/overlay2/layerdb/tmp/write-set-1"
    write_set.mkdir(parents=True)
    since = os.stat(write_set).st_ctime
    before, begun = make(tmp_path / "overlay2" / ONE), make(tmp_path / "overlay2" / TWO)
    os.utime(before, (since - 60, since - 60))
    os.utime(begun, (since - 1, since - 1))
    an_hour_later = since + 3600
    with writer(write_set / "tar-split.json.gz"):
        kinds, making = found_in(storage, now=an_hour_later)
    assert kinds == {f"overlay2/{ONE}": "layer"}
    assert making == {f"overlay2/{TWO}", "image/overlay2/layerdb/tmp/write-set-1"}
    # Somebody else's files of the same names, in a mount namespace of his own: a container's, or a user's. And a user's own descriptor.
    with pretender("mount", write_set), pretender("user", write_set):
        assert found_in(storage, now=an_hour_later)[1] == set()
    # Once nobody holds it open, it is of a pull that did not come to its end.
    kinds, making = found_in(storage, now=an_hour_later)
    assert kinds == {
        f"overlay2/{ONE}": "layer", f"overlay2/{TWO}": "layer", "image/overlay2/layerdb/tmp/write-set-1": "half-made layer record",
    }
    assert making == set()


def test_the_oldest_of_several_that_are_unpacked_counts(storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "image/overlay2/layerdb/tmp"
    for name in ("write-set-1", "write-set-2"):
        (folder / name).mkdir(parents=True)
    made = make(tmp_path / "overlay2" / ONE)
    real = os.stat
    first = real(folder / "write-set-1").st_ctime

    class Later:
        def __init__(self, found: os.stat_result, by: float) -> None:
            self.st_ctime, self.st_mode = found.st_ctime + by, found.st_mode

    def fake_stat(path: t.Any, **more: t.Any) -> t.Any:
        found = real(path, **more)
        return Later(found, 500) if str(path).endswith("write-set-2") else found

    os.utime(made, (first + 100, first + 100))
    with writer(folder / "write-set-2/tar-split.json.gz", folder / "write-set-1/tar-split.json.gz"):
        monkeypatch.setattr(os, "stat", fake_stat)
        _kinds, making = found_in(storage, now=first + 3600)
        monkeypatch.undo()
    assert f"overlay2/{ONE}" in making


def test_a_layer_that_was_registered_while_its_image_is_still_pulled_is_nobodys_leftover(storage: Storage, tmp_path: Path) -> None:
    # A pull registers layer after layer and writes down the image at its end; what it loads is open below tmp.
    (tmp_path / "tmp").mkdir()
    blob = tmp_path / "tmp/GetImageBlob123"
    blob.write_text("x")
    since = os.stat(blob).st_ctime
    path = make(tmp_path / "overlay2" / ONE)
    os.utime(path, (since + 1, since + 1))
    registered = {str(path): "layer of no image"}
    with writer(blob):
        assert found_in(storage, registered=registered, now=since + 3600) == ({}, {f"overlay2/{ONE}"})
    assert found_in(storage, registered=registered, now=since + 3600) == ({f"overlay2/{ONE}": "registered layer"}, set())


def test_what_was_finished_while_the_records_were_read_is_nobodys_leftover(storage: Storage, tmp_path: Path) -> None:
    # In none of the records, and no file is open any more when the leftovers are told apart.
    write_set = tmp_path / "image/overlay2/layerdb/tmp/write-set-1"
    write_set.mkdir(parents=True)
    since = os.stat(write_set).st_ctime
    path = make(tmp_path / "overlay2" / ONE)
    os.utime(path, (since, since))
    with writer(write_set / "tar-split.json.gz"):
        listed = leftovers.listing(storage)
    shutil.rmtree(write_set)
    nobodys, making = leftovers.find(storage, listed, (), {}, since + 3600)
    assert (nobodys, [entry.path for entry in making]) == ([], [str(path)])
    assert leftovers.find(storage, leftovers.listing(storage), (), {}, since + 3600)[0]


# -- of what was in use before --------------------------------------------------------------------------------


def test_other_drivers_and_other_image_stores_are_left_over(storage: Storage, tmp_path: Path) -> None:
    # Trap 17.
    for place in ("aufs/diff/x", "vfs/dir/x", "devicemapper/devicemapper", "image/aufs", "overlay2/x"):
        make(tmp_path / place)
    found = {os.path.relpath(left.path, tmp_path): left.kind for left in leftovers.others(storage)}
    assert found == {
        "aufs": "other storage driver", "vfs": "other storage driver", "devicemapper": "other storage driver",
        "image/aufs": "other image store",
    }
    for left in leftovers.others(storage):
        assert left.changed > 0
        assert "not in use" in left.reason


def test_after_the_move_to_containerds_store_the_graph_drivers_data_is_left_over(tmp_path: Path) -> None:
    make(tmp_path / "containerd/daemon/io.containerd.snapshotter.v1.overlayfs/snapshots")
    make(tmp_path / "overlay2" / ONE)
    make(tmp_path / "image/overlay2")
    storage = Storage(str(tmp_path), "overlayfs", "containerd", {})
    assert {os.path.relpath(left.path, tmp_path) for left in leftovers.others(storage)} == {"overlay2", "image/overlay2"}


# -- names and identities -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc", "../x", "a\0b"])
def test_what_leads_elsewhere_is_no_name(name: str) -> None:
    assert not is_name(name)


@pytest.mark.parametrize("name", ["data", "...", "a b", "new\nline", "-rf", "a" * 64, ".hidden"])
def test_anything_else_is_a_name(name: str) -> None:
    assert is_name(name)


@pytest.mark.parametrize("inner", ["diff", "fs", ""], ids=["overlay2", "containerd", "vfs"])
def test_a_layer_keeps_its_identity_until_it_is_made_anew(tmp_path: Path, inner: str) -> None:
    layer = tmp_path / ONE
    (layer / inner).mkdir(parents=True)
    (layer / inner / "file").write_text("x")
    before = leftovers.identity(str(layer))
    assert before
    assert leftovers.identity(str(layer)) == before
    (layer / inner / "file").write_text("changed in its content alone, as nobody does")
    assert leftovers.identity(str(layer)) == before
    # A folder that holds the old one's place while it goes, so that no inode comes back.
    os.rename(layer, tmp_path / "old")
    (layer / inner).mkdir(parents=True)
    (layer / inner / "file").write_text("x")
    assert leftovers.identity(str(layer)) != before


def test_a_layer_made_anew_with_the_same_inodes_is_another_one(tmp_path: Path) -> None:
    layer = tmp_path / ONE
    identities = set()
    for _ in range(5):
        (layer / "diff").mkdir(parents=True)
        identities.add(leftovers.identity(str(layer)))
        shutil.rmtree(layer)
    assert len(identities) == 5


def test_a_layer_that_another_is_put_upon_is_still_the_same(tmp_path: Path) -> None:
    # overlay2 writes "committed" and links beside diff.
    layer = tmp_path / ONE
    (layer / "diff").mkdir(parents=True)
    before = leftovers.identity(str(layer))
    (layer / "committed").write_text("")
    (layer / "work").mkdir()
    assert leftovers.identity(str(layer)) == before


def test_a_layer_into_which_something_was_put_is_another_one(tmp_path: Path) -> None:
    layer = tmp_path / ONE
    (layer / "diff").mkdir(parents=True)
    before = leftovers.identity(str(layer))
    (layer / "diff/new").write_text("x")
    assert leftovers.identity(str(layer)) != before


def test_what_is_not_there_has_no_identity(tmp_path: Path) -> None:
    assert leftovers.identity(str(tmp_path / "nowhere")) == ""


def test_children_are_those_right_below(tmp_path: Path) -> None:
    make(tmp_path / "a/b")
    (tmp_path / "link").symlink_to("a")
    assert sorted(leftovers.children(str(tmp_path))) == [f"{tmp_path}/a", f"{tmp_path}/link"]
    assert leftovers.children(str(tmp_path / "nowhere")) == []
    assert leftovers.children(str(tmp_path / "a/b/something")) == []


def test_an_entry_says_when_it_changed_and_whether_it_is_a_folder(storage: Storage, tmp_path: Path) -> None:
    path = make(tmp_path / "overlay2" / ONE, 50)
    (tmp_path / "overlay2" / TWO).write_text("a file")
    by_path = {entry.path: entry for entry in leftovers.listing(storage).entries}
    assert by_path[str(path)] == Entry(str(path), "layer", NOW - 50, True)
    assert not by_path[f"{tmp_path}/overlay2/{TWO}"].folder
