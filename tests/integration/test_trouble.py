# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docker_clean when things go wrong: a volume's driver is gone, no byte is free, nothing can be written, removals that fail or take long."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import struct
import time
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any, Dict, Iterator, Tuple

import pytest

from tests.fleet import Fleet, Host, HostSpec
from tests.fleet.dirty import load_image, tar
from tests.integration.disks import run
from tests.integration.support import CONTAINERD, start, state
from tests.integration.things import base, both_stores, by_itself, clear, container, kept, removed, until, volume_driver

EVERYTHING: Dict[str, Any] = {
    "containers": {"volumes": True},
    "images": {"scope": "unused"},
    "volumes": {"scope": "unused"},
    "networks": {},
    "state_dir": "",
}
#: linux/fs.h
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IMMUTABLE_FL, FS_TOPDIR_FL = 0x80086601, 0x40086602, 0x10, 0x20000
#: How a disk says that it cannot be read.
ERRORS = [os.strerror(number) for number in (errno.EIO, errno.EBADMSG, errno.EUCLEAN)]


@pytest.fixture(scope="module")
def fleet(here: None) -> Iterator[Fleet]:
    specs = [
        HostSpec("one", data_size="500M"),
        HostSpec("ctd", data_size="500M", root="forky", daemon_json=CONTAINERD),
        HostSpec("broken", root="trixie"),
        HostSpec("lost", root="trixie"),
        HostSpec("lost-asked", root="trixie"),
    ]
    with start(specs) as hosts:
        yield hosts


@pytest.fixture()
def host(request: pytest.FixtureRequest, fleet: Fleet) -> Iterator[Host]:
    """A host with an image to run, and nothing else before and after."""
    found = fleet[getattr(request, "param", "one")]
    base(found)
    yield found
    clear(found)


def clean(host: Host, check: bool = False, **wishes: Any) -> Dict[str, Any]:
    return by_itself(host, check=check, **{**EVERYTHING, **wishes})


def errors(result: Dict[str, Any]) -> Dict[str, str]:
    return {entry["name"]: entry["error"] for entry in result["failures"]}


# -- drivers -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lost(fleet: Fleet) -> Iterator[Tuple[Future[Dict[str, Any]], ...]]:
    """What comes of two hosts with a volume whose driver is gone: one is asked for its volume, one is not.

    The engine looks for the driver for 15 s each time, so both go on while other tests do: the first one of this file begins it.
    """

    def lose_and_clean(host: Host, *drivers: str) -> Dict[str, Any]:
        base(host)
        with volume_driver(host, "away", forget=False):
            host.must("POST", "/volumes/create", {"Name": "far", "Driver": "away"})
            container(host, "user", "base/app:1", ["/bin/true"], Binds=["far:/far"])
        host.must("POST", "/volumes/create", {"Name": "near"})
        return clean(host, volumes={"scope": "unused", "drivers": ["local", *drivers]})

    with ThreadPoolExecutor() as pool:
        yield pool.submit(lose_and_clean, fleet["lost-asked"], "away"), pool.submit(lose_and_clean, fleet["lost"])


@pytest.mark.usefixtures("lost")
def test_a_removal_takes_the_time_it_takes(host: Host) -> None:
    """`timeout` is for questions: an engine whose client hangs up stops half-way."""
    with volume_driver(host, "slow", slow=5):
        host.must("POST", "/volumes/create", {"Name": "slow", "Driver": "slow"})
        begun = time.monotonic()
        result = clean(host, timeout=2, volumes={"scope": "unused", "drivers": ["slow"]})
        assert time.monotonic() - begun > 5
        assert not result["failed"], result
        assert removed(result, "volume").keys() == {"slow"}
        assert state(host)["volumes"] == set()


# -- disks -------------------------------------------------------------------------------------


@both_stores
def test_without_a_free_byte_images_go_though_their_names_cannot_be_written_down(host: Host) -> None:
    """Graph drivers write `repositories.json` anew to untag an image. It fails, and the engine has forgotten the name all the same."""
    for number in range(3):
        load_image(host, f"app/full:{number}", {"data": os.urandom(200_000)})
    host.must("POST", "/images/app/full:1/tag?repo=app/full&tag=again")
    names = {*(f"app/full:{number}" for number in range(3)), "app/full:again", "base/app:1"}
    filler = host.fill(host.data_root)
    try:
        result = clean(host)
        free = host.free_bytes()
    finally:
        host.path(filler).unlink()
    assert not result["failed"], result
    assert state(host)["images"] == set()
    assert names >= set(removed(result, "image"))
    assert free > 500_000


@both_stores
def test_a_read_only_data_root_is_one_error_before_anything_is_touched(host: Host) -> None:
    made(host)
    before = state(host)
    root = host.data_root
    # Not on the mount that the engine's databases are open for writing on: the kernel refuses that.
    host.exec(["sh", "-ec", f"mount --bind {root} {root}; mount -o remount,bind,ro {root}"])
    try:
        refused(host, before)
    finally:
        host.exec(["umount", root])
    result = clean(host)
    assert not result["failed"], result
    assert state(host)["containers"] == {}


@pytest.mark.parametrize("host", ["broken"], indirect=True)
def test_a_filesystem_that_the_kernel_gave_up_is_as_good_as_read_only(host: Host) -> None:
    """ext4 with errors=remount-ro, as Debian mounts it. Such a filesystem wants to be mounted anew: others take its place."""
    made(host)
    before = state(host)
    device = os.stat(host.path(host.data_root)).st_dev
    trigger = Path(f"/sys/fs/ext4/loop{os.minor(device)}/trigger_fs_error")
    if os.major(device) != 7 or not trigger.exists():
        pytest.skip("not here: this kernel's ext4 has no way to make an error")
    host.exec(["mount", "-o", "remount,errors=remount-ro", host.data_root])
    trigger.write_text("test\n")
    refused(host, before)
    host.kill_engine()
    host.exec(["sh", "-c", f"umount -l {host.data_root}; mount -t tmpfs tmpfs {host.data_root}"])
    host.start_engine()


@pytest.mark.parametrize("host", ["broken"], indirect=True)
def test_a_disk_with_errors_is_reported_as_far_as_it_can_be_read_and_what_cannot_go_is_told(host: Host) -> None:
    """Two thirds of the volumes' disk have lost their content, which its checksums tell. This is the host's last test."""
    root, image = host.data_root, "/run/volumes.img"
    with open(host.path("/run") / "volumes.img", "wb") as stream:
        stream.truncate(400 << 20)
    run("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", host.path(image))  # a journal would be in the middle
    mount = f"mount -o loop {image} {root}/volumes"
    host.kill_engine()
    host.exec(["sh", "-ec", f"umount -l {root}; mount -t tmpfs tmpfs {root}; mkdir {root}/volumes; {mount}"])
    host.start_engine()
    base(host)
    lost = 0
    for number in range(4):
        host.must("POST", "/volumes/create", {"Name": f"v{number}"})
        folder = host.path(f"{root}/volumes/v{number}/_data")
        attribute(folder, FS_TOPDIR_FL)  # so that its folders are spread over all of the disk
        for name in range(200):
            (folder / f"d{name}").mkdir()
            (folder / f"d{name}" / "file").write_bytes(b"content")
            # The first 16 groups of blocks have 2,048 inodes each, and are the first third of the disk.
            lost += (folder / f"d{name}").stat().st_ino > 16 * 2048
    assert lost > 10
    load_image(host, "app/idle:1", {"a": b"idle"})
    container(host, "wanted", "base/app:1", ["/bin/sleep", "1000000"])
    host.kill_engine()
    until(lambda: host.exec(["umount", f"{root}/volumes"], check=False).returncode == 0, 20)
    for size in (128 << 20, 400 << 20):
        os.truncate(host.path(image), size)
    host.exec(["sh", "-ec", mount])
    host.start_engine()
    try:
        host.must("POST", "/containers/wanted/start")
        said = by_itself(host, "docker_disk_report", measure="exact", state_dir="")
        assert not said["failed"], said
        assert said["unread"]["count"] > 0 and any(entry["error"] in ERRORS for entry in said["unread"]["examples"]), said["unread"]
        assert said["usage"]["images"]["disk_bytes"] > 0, "the other disk is a good one"
        result = clean(host)
        assert result["failed"] == bool(result["failures"]), result
        assert "app/idle:1" in removed(result) and "wanted" not in removed(result), result
        there = {volume["Name"] for volume in host.must("GET", "/volumes")["Volumes"]}
        assert not there & set(removed(result, "volume")), "what could not go is not said to have gone"
        assert host.must("GET", "/containers/wanted/json")["State"]["Running"]
    finally:
        host.kill_engine()
        host.exec(["sh", "-c", f"umount -l {root}/volumes {root}; mount -t tmpfs tmpfs {root}"])
        host.start_engine()


def made(host: Host) -> None:
    load_image(host, "app/idle:1", {"a": b"idle"})
    host.must("POST", "/volumes/create", {"Name": "idle"})
    host.must("POST", "/networks/create", {"Name": "idle", "Driver": "bridge"})
    container(host, "idle", "base/app:1", ["/bin/true"])


def refused(host: Host, before: Dict[str, Any]) -> None:
    """One error, nothing touched; check mode still plans."""
    result = clean(host)
    assert result["failed"] and not result["changed"], result
    assert result["failure"] == "disk"
    assert "read-only" in result["msg"] and host.data_root in result["msg"]
    assert (result.get("removed") or [], result.get("failures") or []) == ([], [])
    assert state(host) == before
    check = clean(host, check=True)
    assert not check["failed"], check
    assert {"idle", "app/idle:1"} <= set(removed(check))


# -- depth -------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["ctd"], indirect=True)
def test_an_image_of_two_hundred_layers_is_measured_and_goes(host: Host) -> None:
    """containerd's store takes them; graph drivers refuse more than 125 ("max depth exceeded")."""
    layers = [tar({f"srv/{number}": os.urandom(3000)}) for number in range(200)]
    config = json.dumps({
        "architecture": "amd64", "os": "linux", "created": "2024-01-01T00:00:00Z", "config": {"Cmd": ["/x"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha256(layer).hexdigest()}" for layer in layers]},
    }).encode()
    files = {f"{number}.tar": layer for number, layer in enumerate(layers)}
    manifest = json.dumps([{"Config": "config.json", "RepoTags": ["app/deep:1"], "Layers": list(files)}]).encode()
    host.must("POST", "/images/load?quiet=1", tar({**files, "config.json": config, "manifest.json": manifest}))
    container(host, "deep", "app/deep:1", ["/x"])
    said = by_itself(host, "docker_disk_report", measure="exact", state_dir="")
    assert not said["failed"], said
    (item,) = (entry for entry in said["largest"]["images"] if entry["name"] == "app/deep:1")
    assert item["disk_bytes"] >= 200 * 4096
    assert (said["totals"]["unattributed_bytes"], said["largest"]["leftovers"]) == (0, [])
    free = host.free_bytes()
    result = clean(host)
    assert not result["failed"], result
    assert {"deep", "app/deep:1"} <= set(removed(result))
    assert host.free_bytes() - free >= item["disk_bytes"]


# -- containers --------------------------------------------------------------------------------


def attribute(path: Path, flag: int, on: bool = True) -> None:
    """Set a file's attribute as `chattr` does, which not every host has."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        (flags,) = struct.unpack("l", fcntl.ioctl(descriptor, FS_IOC_GETFLAGS, struct.pack("l", 0)))
        fcntl.ioctl(descriptor, FS_IOC_SETFLAGS, struct.pack("l", flags | flag if on else flags & ~flag))
    finally:
        os.close(descriptor)


@both_stores
def test_a_container_that_cannot_be_removed_is_told_and_goes_next_time_as_a_dead_one(host: Host) -> None:
    image = load_image(host, "app/stuck:1", {"a": b"stuck"})
    ident = container(host, "stuck", "app/stuck:1", ["/bin/true"], run="done")
    container(host, "other", "base/app:1", ["/bin/true"], run="done")
    file = host.path(f"{host.data_root}/containers/{ident}") / "immutable"
    file.touch()
    attribute(file, FS_IMMUTABLE_FL)
    try:
        result = clean(host)
        assert result["failed"]
        assert set(errors(result)) == {"stuck"}
        assert "operation not permitted" in errors(result)["stuck"]
        assert {"other", "base/app:1"} <= set(removed(result)), "one that fails does not stop the rest"
        assert image in state(host)["images"], "its container is still there"
        assert host.must("GET", f"/containers/{ident}/json")["State"]["Status"] == "dead"
    finally:
        attribute(file, FS_IMMUTABLE_FL, False)
    result = clean(host)
    assert not result["failed"], result
    assert removed(result, "container")["stuck"].startswith("dead")
    assert (state(host)["containers"], state(host)["images"]) == ({}, set())
    assert not file.parent.exists()
    until(lambda: not clean(host, check=True)["changed"], 1)


def test_a_container_whose_layer_cannot_be_removed_is_half_gone_and_goes_next_time(host: Host) -> None:
    """The engine's list calls it "removing" until the engine starts again (moby 22260, 27381), though nobody is removing it any more."""
    ident = container(host, "stuck", "base/app:1", ["/bin/sh", "-c", "echo x > /held"], run="done")
    file = host.path(host.must("GET", f"/containers/{ident}/json")["GraphDriver"]["Data"]["UpperDir"]) / "held"
    attribute(file, FS_IMMUTABLE_FL)
    try:
        wishes = {"images": None, "volumes": None, "networks": None}
        result = clean(host, **wishes)
        assert set(errors(result)) == {"stuck"}
        assert result["changed"], "it cannot be started any more"
        assert result["msg"].endswith("The next run tries again."), result["msg"]
        assert [entry["State"] for entry in host.must("GET", "/containers/json?all=1")] == ["removing"]
        again = clean(host, **wishes)
        assert set(errors(again)) == {"stuck"}, "and that is so"
    finally:
        attribute(file, FS_IMMUTABLE_FL, False)
    said = clean(host, check=True, **wishes)
    assert removed(said)["stuck"].startswith("dead")
    result = clean(host, **wishes)
    assert not result["failed"], result
    assert (set(removed(result)), state(host)["containers"]) == ({"stuck"}, {})


# -- what began at the start ---------------------------------------------------------------------


def test_a_volume_whose_driver_is_gone_is_an_answer_and_stops_nobody(lost: Tuple[Future[Dict[str, Any]], ...]) -> None:
    asked, spared = (each.result() for each in lost)
    for result in (asked, spared):
        assert {"user", "near", "base/app:1"} <= set(removed(result)), result
    assert asked["failed"]
    assert "could not be removed, all else was done" in asked["msg"]
    assert 'error while checking if volume "far" exists in driver "away"' in errors(asked)["far"]
    assert not spared["failed"], spared
    assert kept(spared, "volume") == {"of volume driver away": 1}
