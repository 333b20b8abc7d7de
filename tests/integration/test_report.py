# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docker_disk_report on real engines: every byte has an owner, and what it says could be had is what comes free."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import shutil
import sqlite3
import stat
import subprocess
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pytest

from tests.fleet import Fleet, Host, HostSpec, dirty
from tests.fleet.dirty import load_image
from tests.integration.bare import Bare
from tests.integration.support import CONTAINERD, Ansible, on_all, start
from tests.integration.test_errors import relay, serving

HOSTS = (
    HostSpec("overlay2-ext4", "ext4"),
    HostSpec("overlay2-xfs", "xfs"),
    HostSpec("overlay2-btrfs", "btrfs"),
    HostSpec("overlay-ext4", "ext4", "overlay"),
    HostSpec("vfs-ext4", "ext4", "vfs"),
    HostSpec("vfs-xfs", "xfs", "vfs"),
    HostSpec("btrfs-btrfs", "btrfs", "btrfs"),
    HostSpec("fuse-ext4", "ext4", "fuse-overlayfs"),
    HostSpec("e26-ext4", "ext4", root="trixie"),
    HostSpec("e26-containerd", "ext4", root="trixie", daemon_json=CONTAINERD),
    HostSpec("e28-xfs", "xfs", root="forky"),
    HostSpec("e28-containerd", "ext4", root="forky", daemon_json=CONTAINERD),
)
EXACT: Dict[str, Any] = {"measure": "exact", "top": -1}
#: What a report has to agree with once it is done (statvfs): a share of what was said.
PRECISION = {"ext4": 0.01, "xfs": 0.01, "btrfs": 0.10}


@pytest.fixture(scope="module")
def fleet(here: None) -> Iterator[Fleet]:
    with start(list(HOSTS)) as hosts:
        on_all(hosts, lambda host: dirty(host, "small", scale=0.4, aged=True, leftovers=True))
        # What writes its log would be in the way of figures that have to be the same twice.
        on_all(hosts, lambda host: [host.must("POST", f"/containers/{name}/stop?t=0") for name in ("chatty", "noisy")])
        yield hosts


@pytest.fixture(scope="module")
def reports(ansible: Ansible) -> Dict[str, Dict[str, Any]]:
    """The first exact report of each host, with nothing remembered."""
    found = ansible.module("docker_disk_report", {**EXACT, "state_dir": ""})
    assert not [name for name, report in found.items() if report["failed"]], found
    return found


def run(host: Host, module: str = "docker_disk_report", check: bool = False, **options: Any) -> Dict[str, Any]:
    """A module's result on one host, without the controller, whose part in it the other tests of this file see to."""
    return Bare(host, module).run(_ansible_check_mode=check, **options).result


def du(host: Host, *options: str) -> int:
    return int(host.exec(["du", "-sB1", *options, host.data_root]).stdout.split()[0])


def free(host: Host) -> int:
    """Bytes free once the filesystem has given back all that it will."""
    descriptor = os.open(host.path(host.data_root), os.O_RDONLY)
    try:
        last, same = -1, 0
        for _attempt in range(120):
            if host.spec.filesystem == "btrfs":
                fcntl.ioctl(descriptor, 0x9408)  # BTRFS_IOC_SYNC wakes the cleaner
            ctypes.CDLL(None).syncfs(descriptor)
            figures = os.fstatvfs(descriptor)
            same = same + 1 if figures.f_bfree == last else 0
            if same == 3:
                break
            last = figures.f_bfree
            time.sleep(0.3)
        return last * figures.f_frsize
    finally:
        os.close(descriptor)


def tree(host: Host, folder: str) -> Dict[str, Tuple[Any, ...]]:
    """Every file below a folder: kind, size, times, and content."""
    found: Dict[str, Tuple[Any, ...]] = {}
    top = str(host.path(folder))
    for place, folders, files in os.walk(top):
        for name in folders + files:
            path = os.path.join(place, name)
            try:
                status = os.lstat(path)
                content = hashlib.sha256(Path(path).read_bytes()).hexdigest() if stat.S_ISREG(status.st_mode) else ""
            except OSError:
                continue
            found[path[len(top):]] = (status.st_mode, status.st_size, status.st_mtime_ns, content)
    return found


# -- the equation ------------------------------------------------------------------------------------


def test_every_byte_has_an_owner_on_every_driver(fleet: Fleet, reports: Dict[str, Dict[str, Any]]) -> None:
    print(f"\n{'host':<16} {'attributed':>12} {'unattributed':>12} {'du -sx':>12} {'subvolumes':>12} {'shared':>12}")
    for host in fleet:
        report = reports[host.name]
        totals, subvolumes = report["totals"], sum(root["subvolume_bytes"] for root in report["roots"])
        said = du(host, "-x")
        print(
            f"{host.name:<16} {totals['attributed_bytes']:>12,} {totals['unattributed_bytes']:>12,} {said:>12,} "
            f"{subvolumes:>12,} {totals['shared_bytes']:>12,}"
        )
        both = totals["attributed_bytes"] + totals["unattributed_bytes"]
        assert both == totals["disk_bytes"] == sum(root["disk_bytes"] for root in report["roots"])
        assert abs(both - subvolumes - said) <= said * 0.005, host.name
        assert totals["unattributed_bytes"] <= both * 0.01, (host.name, report["largest"]["unattributed"])
        assert sum(usage["disk_bytes"] for usage in report["usage"].values()) == both, "categories do not overlap"
        assert report["unread"]["count"] == 0
        # du without -x looks into subvolumes, too, and counts what they share each time.
        assert bool(subvolumes) == (host.spec.driver == "btrfs")
        if subvolumes:
            assert abs(both - du(host)) <= both * 0.005
            assert 0 < totals["shared_bytes"] < both


def test_what_lies_where_is_in_its_category(fleet: Fleet, reports: Dict[str, Dict[str, Any]]) -> None:
    for host in fleet:
        report = reports[host.name]
        usage, items = report["usage"], report["largest"]
        names = {kind: {item["name"]: item for item in items[kind]} for kind in ("containers", "volumes", "logs")}
        assert names["logs"]["noisy"]["size"] >= 2_000_000
        assert names["containers"]["stopped-old"]["disk_bytes"] >= 1_900_000, "what it wrote into its layer"
        large = {name for name, item in names["volumes"].items() if item["disk_bytes"] > 1_000_000}
        assert {"db-data", "old-data", "kept-data"} <= large
        assert names["volumes"]["db-data"]["used_by"] == ["db"] and not names["volumes"]["db-data"]["dangling"]
        assert names["volumes"]["old-data"]["dangling"]
        if host.name != "e26-containerd":  # which forgets an image that lost its name
            assert any(item["dangling"] for item in items["images"])
        assert {"app/web:1.2", "app/web:latest"} <= {tag for item in items["images"] for tag in item["tags"]}
        for kind in ("images", "containers", "volumes", "logs", "container_metadata", "engine_metadata"):
            assert usage[kind]["disk_bytes"] > 0, (host.name, kind)
        if report["engine"]["image_store"] == "graphdriver":
            # Half a load, a layer of no image, and a folder that nobody names.
            assert usage["tmp"]["disk_bytes"] > 1_000_000 and usage["leftovers"]["disk_bytes"] > 1_000_000, host.name
            assert {item["kind"] for item in items["leftovers"]} >= {"registered layer", "half-made layer record"}
            # The engine adds the lengths of files; blocks are more.
            assert usage["images"]["logical_bytes"] < usage["images"]["disk_bytes"]


def test_fast_says_the_same_as_the_engine(fleet: Fleet, ansible: Ansible, reports: Dict[str, Dict[str, Any]]) -> None:
    fast = ansible.module("docker_disk_report", {"top": -1, "state_dir": ""})
    for host in fleet:
        report, exact = fast[host.name], reports[host.name]
        assert report["measured"]["mode"] == "fast"
        for kind in ("logs", "tmp", "leftovers"):
            assert abs(report["usage"][kind]["disk_bytes"] - exact["usage"][kind]["disk_bytes"]) <= 65536, (host.name, kind)
        usage = host.must("GET", "/system/df")
        sizes = {volume["Name"]: volume["UsageData"]["Size"] for volume in usage["Volumes"]}
        assert {item["name"]: item["logical_bytes"] for item in report["largest"]["volumes"]} == sizes
        # What the walk found is what the engine's own walk finds.
        assert {item["name"]: item["logical_bytes"] for item in exact["largest"]["volumes"]} == sizes
        written = {entry["Id"]: entry.get("SizeRw", 0) for entry in usage["Containers"]}
        assert {item["id"]: item["logical_bytes"] for item in report["largest"]["containers"]} == written
        if report["engine"]["image_store"] == "graphdriver":
            assert report["usage"]["images"]["logical_bytes"] == usage["LayersSize"]
            assert report["usage"]["images"]["disk_bytes"] is None, "nobody measured it"
        assert report["totals"]["disk_bytes"] is None


# -- it changes nothing --------------------------------------------------------------------------------


def plain(report: Dict[str, Any]) -> Dict[str, Any]:
    """A report without what a clock says."""
    found = {key: value for key, value in report.items() if key in ("usage", "reclaimable", "totals", "roots", "mounts", "unread")}
    found["largest"] = {
        kind: [{key: value for key, value in item.items() if key not in ("age", "last_used")} for item in items]
        for kind, items in report["largest"].items()
    }
    return found


def test_it_says_the_same_in_check_mode_and_changes_nothing(fleet: Fleet, ansible: Ansible) -> None:
    hosts = [fleet["overlay2-ext4"], fleet["e28-containerd"]]
    places = (hosts[0].data_root, "/etc", "/root", "/var/tmp", "/home")
    both = ":".join(host.name for host in hosts)
    # The first question after a start makes BuildKit note the sizes of its records.
    ansible.module("docker_disk_report", {"include": ["build_cache"]}, hosts=both)
    before = on_all(hosts, lambda host: {place: tree(host, place) for place in places})
    first = ansible.module("docker_disk_report", EXACT, hosts=both)
    second = ansible.module("docker_disk_report", EXACT, hosts=both, check=True)
    for host in hosts:
        name = host.name
        assert plain(first[name]) == plain(second[name])
        assert not first[name]["changed"] and not second[name]["changed"]
        for place in places:
            assert tree(host, place) == before[name][place], f"{name}: {place}"
        assert sorted(tree(host, "/var/lib/fleetclean")) == ["/history.sqlite"]


def measured(host: Host) -> List[Tuple[Any, ...]]:
    """What is noted of layers. When something was used is noted anew by each run."""
    # SQLite follows links to where a file really is, which for another host's is nowhere.
    with tempfile.NamedTemporaryFile() as copy:
        copy.write(host.path("/var/lib/fleetclean/history.sqlite").read_bytes())
        copy.flush()
        with closing(sqlite3.connect(copy.name)) as connection:
            return sorted(connection.execute("SELECT * FROM measured"))


def test_a_second_run_walks_only_what_can_change(fleet: Fleet, ansible: Ansible) -> None:
    hosts = [fleet[name] for name in ("overlay2-ext4", "overlay2-xfs", "e28-containerd")]
    names = ":".join(host.name for host in hosts)
    ansible.module("docker_disk_report", EXACT, hosts=names)
    noted = on_all(hosts, measured)
    for host in hosts:
        host.exec(["sync"])  # until it is written, ext4 and xfs have other blocks for what an engine noted a moment ago
    seconds = ansible.module("docker_disk_report", EXACT, hosts=names)
    thirds = ansible.module("docker_disk_report", {**EXACT, "state_dir": ""}, hosts=names)
    for host in hosts:
        name, second, third = host.name, seconds[host.name], thirds[host.name]
        assert second["measured"]["remembered_layers"] > 5
        # Of containerd's store half is packed layers: single files, which cost nothing to look at.
        share = 0.4 if name == "e28-containerd" else 0.9
        assert second["measured"]["remembered_bytes"] > second["usage"]["images"]["disk_bytes"] * share
        assert plain(second) == plain(third)
        assert noted[name] and measured(host) == noted[name], "nothing new, so nothing written"


def test_a_folder_that_was_made_anew_is_not_taken_for_the_old_one(fleet: Fleet) -> None:
    host = fleet["overlay2-ext4"]
    run(host, **EXACT)
    image = load_image(host, "anew:1", {"srv/data": b"x" * 3_000_000})
    chain = host.must("GET", f"/images/{image}/json")["GraphDriver"]["Data"]["UpperDir"]
    before = run(host, **EXACT)
    # Not the engine's doing: the same name, another folder.
    folder = host.path(chain)
    os.rename(folder, f"{folder}.old")
    folder.mkdir()
    (folder / "data").write_bytes(b"y" * 9_000_000)
    after = run(host, **EXACT)
    sizes = [next(item["disk_bytes"] for item in report["largest"]["images"] if "anew:1" in item["tags"]) for report in (before, after)]
    assert sizes[1] - sizes[0] >= 8_900_000
    shutil.rmtree(folder)
    os.rename(f"{folder}.old", folder)
    host.must("DELETE", "/images/anew:1")


HISTORIES = ("missing", "torn", "garbage", "locked", "read-only", "of another engine", "a flipped figure", "a folder")


@pytest.fixture(scope="module")
def known(fleet: Fleet, reports: Dict[str, Dict[str, Any]]) -> Tuple[Dict[str, Any], bytes]:
    """Of the host of the next test: what is said of it with nothing remembered, and a history of it."""
    host = fleet["overlay2-ext4"]
    none = plain(run(host, **{**EXACT, "state_dir": ""}))
    run(host, **EXACT)
    path = host.path("/var/lib/fleetclean/history.sqlite")
    good = path.read_bytes()
    path.unlink()
    return none, good


@pytest.mark.parametrize("how", HISTORIES)
def test_any_history_gives_the_same_figures_as_none(fleet: Fleet, known: Tuple[Dict[str, Any], bytes], how: str) -> None:
    host = fleet["overlay2-ext4"]
    none, good = known
    path = host.path("/var/lib/fleetclean/history.sqlite")
    path.write_bytes(good)
    holder = None
    try:
        if how == "missing":
            path.unlink()
        elif how == "torn":
            path.write_bytes(good[: len(good) // 2 + 100])
        elif how == "garbage":
            path.write_bytes(b"\x00\xff" * 5000)
        elif how == "locked":
            lock = "import sqlite3, time; c = sqlite3.connect('/var/lib/fleetclean/history.sqlite', isolation_level=None); "
            lock += "c.execute('BEGIN EXCLUSIVE'); print('locked', flush=True); time.sleep(600)"
            holder = host.popen([host.python, "-c", lock], stdout=subprocess.PIPE)
            assert holder.stdout and holder.stdout.readline() == "locked\n"
        elif how == "read-only":
            host.exec(["mount", "-t", "tmpfs", "-o", "ro,mode=0700", "tmpfs", "/var/lib/fleetclean"])
        elif how in ("of another engine", "a flipped figure"):
            what = "engine = 'AAAA:BBBB'" if how == "of another engine" else "disk = disk + 4096000"
            change = f"import sqlite3; c = sqlite3.connect('/var/lib/fleetclean/history.sqlite'); c.execute(\"UPDATE measured SET {what}\")"
            host.exec([host.python, "-c", f"{change}; c.commit()"])
        else:
            path.unlink()
            path.mkdir()
        assert plain(run(host, **EXACT)) == none
    finally:
        if holder:
            holder.kill()
            holder.communicate()
        if how == "read-only":
            host.exec(["umount", "/var/lib/fleetclean"])
        if path.is_dir():
            path.rmdir()
        path.unlink(missing_ok=True)


# -- sparse, shared, elsewhere -------------------------------------------------------------------------


def volume(host: Host, name: str) -> Path:
    host.must("POST", "/volumes/create", {"Name": name})
    return host.path(f"{host.data_root}/volumes/{name}/_data")


def item_of(report: Dict[str, Any], kind: str, name: str) -> Dict[str, Any]:
    return next(item for item in report["largest"][kind] if item["name"] == name)


def test_sparse_hard_linked_and_reflinked_files(fleet: Fleet, ansible: Ansible) -> None:
    hosts = ("overlay2-ext4", "overlay2-xfs", "overlay2-btrfs")
    for name in hosts:
        host = fleet[name]
        data = volume(host, "odd")
        with open(data / "sparse", "wb") as sparse:
            sparse.truncate(1 << 30)
            sparse.write(os.urandom(1 << 20))
        (data / "one").write_bytes(os.urandom(2 << 20))
        os.link(data / "one", data / "two")
        other = volume(host, "reflinked")
        (other / "original").write_bytes(os.urandom(4 << 20))
        if name != "overlay2-ext4":
            inside = f"{host.data_root}/volumes"
            host.exec(["cp", "--reflink=always", f"{inside}/reflinked/_data/original", f"{inside}/odd/_data/copy"])
        host.exec(["sync", "--file-system", host.data_root])
    reports = ansible.module("docker_disk_report", {**EXACT, "state_dir": ""}, hosts=":".join(hosts))
    for name in hosts:
        host, report = fleet[name], reports[name]
        odd, other_item = item_of(report, "volumes", "odd"), item_of(report, "volumes", "reflinked")
        shared = 0 if name == "overlay2-ext4" else 4 << 20
        assert abs(odd["disk_bytes"] - (3 << 20) - shared) < 200_000, "a hole takes nothing, a second name takes nothing"
        assert odd["logical_bytes"] >= 1 << 30
        assert (odd["shared_bytes"], other_item["shared_bytes"]) == (shared, shared)
        assert abs(odd["reclaimable_bytes"] - (3 << 20)) < 200_000, "reflinked blocks are not had back"
        assert abs(report["totals"]["disk_bytes"] - du(host, "-x")) <= 65536
        for gone in ("odd", "reflinked"):
            host.must("DELETE", f"/volumes/{gone}")


def test_other_filesystems_below_are_named_and_not_entered(fleet: Fleet, ansible: Ansible) -> None:
    host = fleet["overlay2-ext4"]
    volume(host, "mounted")
    place = f"{host.data_root}/volumes/mounted/_data"
    host.exec(["mount", "-t", "tmpfs", "tmpfs", place])
    try:
        (host.path(place) / "file").write_bytes(b"x" * 5_000_000)
        report = ansible.module("docker_disk_report", {**EXACT, "state_dir": ""}, hosts=host.name)[host.name]
    finally:
        host.exec(["umount", place])
        host.must("DELETE", "/volumes/mounted")
    assert {"path": place, "type": "tmpfs"} in report["mounts"]
    assert item_of(report, "volumes", "mounted")["disk_bytes"] < 100_000
    assert any(mount["type"] == "overlay" and mount["path"].endswith("/merged") for mount in report["mounts"])


# -- deleted, and still open -----------------------------------------------------------------------------

#: A process of the host that holds one deleted file by a descriptor, and has another in memory alone.
HOLDER = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
for name, mapped in (("held", False), ("mapped", True)):
    path = f"{sys.argv[1]}/{name}"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(descriptor, os.urandom(1 << 20) * (8 if mapped else 20))
    os.fsync(descriptor)
    if mapped:
        libc.mmap(None, ctypes.c_size_t(4096), 1, 1, descriptor, ctypes.c_long(0))
        os.close(descriptor)
    os.unlink(path)
print("ready", flush=True)
sys.stdin.read()
"""
#: A container that holds a file of its own layer, one of its image (whose blocks stay with the image), and writes a log.
INSIDE = "echo line; dd if=/dev/zero of=/own bs=1M count=12 2>/dev/null; exec 3</own 4</srv/data; rm /own /srv/data; echo ready; exec /bin/sleep 100000"


def test_deleted_files_that_are_open_are_what_comes_free_with_their_processes(fleet: Fleet) -> None:
    """Trap 42, by the filesystem: of the host's processes and of a container's, on drivers that differ in where a container's files are."""

    def story(host: Host) -> None:
        load_image(host, "holder:1", {"srv/data": os.urandom(5 << 20)})
        volume(host, "deleted")
        place = f"{host.data_root}/volumes/deleted/_data"
        host.exec(["sync", "--file-system", host.data_root])
        clean = run(host, **EXACT)
        body = {"Image": "holder:1", "Cmd": ["/bin/sh", "-c", INSIDE], "HostConfig": {"NetworkMode": "none", "LogConfig": {"Type": "json-file"}}}
        ident = host.must("POST", "/containers/create?name=holder", body)["Id"]
        host.must("POST", f"/containers/{ident}/start")
        log = host.path(f"{host.data_root}/containers/{ident}/{ident}-json.log")
        end = time.monotonic() + 30
        while not log.exists() or "ready" not in log.read_text():
            assert time.monotonic() < end, "the container never had its files"
            time.sleep(0.05)
        log.unlink()
        process = host.popen([host.python, "-c", HOLDER, place], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout and process.stdout.readline() == "ready\n"
        host.exec(["sync", "--file-system", host.data_root])
        report = run(host, **EXACT)
        found = {os.path.basename(entry["path"]): entry for entry in report["deleted_open"]["largest"]}
        assert set(found) == {"held", "mapped", "own", f"{ident}-json.log"}, report["deleted_open"]
        # xfs holds more in store behind the end of a file that grows.
        sizes = [(found[name]["bytes"] >> 20, least) for name, least in (("held", 20), ("own", 12), ("mapped", 8))]
        assert all(said >= least and (said == least or host.spec.filesystem == "xfs") for said, least in sizes), sizes
        assert [found[name]["how"] for name in ("held", "own", "mapped")] == ["descriptor", "descriptor", "mapped"]
        assert found["held"]["pid"] == found["mapped"]["pid"] != found["own"]["pid"]
        assert found["held"]["path"] == f"{place}/held" and found["held"]["command"] == found["mapped"]["command"] != ""
        assert (found["own"]["path"], found["own"]["command"]) == ("/own", "sleep")
        assert (found["own"]["container"], found["own"]["container_id"]) == ("holder", ident)
        assert {entry["means"] for name, entry in found.items() if "log" not in name} == {None}
        assert found[f"{ident}-json.log"]["means"] == "docker_log_truncate: deleted: true"
        assert {entry["mount_point"] for entry in found.values()} == {host.data_root}
        deleted = report["deleted_open"]["bytes"]
        assert deleted == sum(entry["bytes"] for entry in found.values())
        # Of what is used nothing is left but the filesystem's own, with and without deleted files.
        rows = [each["filesystems"][0] for each in (clean, report)]
        for row in rows:
            assert row["attributed_bytes"] + row["deleted_open_bytes"] + row["unaccounted_bytes"] == row["used"]
        assert rows[0]["deleted_open_bytes"] == 0 and rows[1]["deleted_open_bytes"] == deleted
        assert abs(rows[1]["unaccounted_bytes"] - rows[0]["unaccounted_bytes"]) <= 1 << 20
        # What docker_log_truncate frees, and nothing else.
        freed = run(host, "docker_log_truncate", containers=["holder"])["reclaimed_bytes"]
        assert freed == found[f"{ident}-json.log"]["bytes"] == report["reclaimable"]["deleted_logs"]["bytes"]
        before = free(host)
        process.kill()
        process.communicate()
        host.must("POST", f"/containers/{ident}/kill")
        host.must("POST", f"/containers/{ident}/wait")
        came = free(host) - before
        assert abs(came - (deleted - freed)) <= 262144, (host.name, came, deleted)
        assert run(host, include=["filesystem"])["deleted_open"] == {"count": 0, "bytes": 0, "unread": 0, "largest": []}
        host.must("DELETE", f"/containers/{ident}?force=1")
        host.must("DELETE", "/volumes/deleted")
        host.must("DELETE", "/images/holder:1")

    names = ("overlay2-xfs", "btrfs-btrfs", "e28-containerd")
    on_all([fleet[name] for name in names], story)


# -- live, full and far ----------------------------------------------------------------------------------


def test_while_others_write_remove_and_load(fleet: Fleet) -> None:
    """Files vanish, containers write, images come and go: no failure, and what could not be read is counted."""
    host = fleet["e28-xfs"]
    data = volume(host, "busy")
    over = threading.Event()

    def churn(number: int) -> None:
        turn = 0
        while not over.is_set():
            turn += 1
            folder = data / f"{number}-{turn % 7}"
            host.exec(["sh", "-c", f"mkdir -p {host.data_root}/volumes/busy/_data/{folder.name}/a/b; cd {host.data_root}/volumes/busy/_data/{folder.name}; "
                       "for i in 1 2 3 4 5 6 7 8 9; do echo x >a/b/$i; echo y >a/$i; done; rm -rf a"], check=False)

    def images() -> None:
        turn = 0
        while not over.is_set():
            turn += 1
            load_image(host, f"coming:{turn}", {f"f{number}": os.urandom(3000) for number in range(200)})
            host.api("DELETE", f"/images/coming:{turn}?force=1")
            host.api("DELETE", "/containers/passing?force=1&v=1")
            host.api("POST", "/containers/create?name=passing", {"Image": "fleet/base:1", "Volumes": {"/data": {}}})

    there = {item["id"] for item in run(host, measure="exact", top=-1)["largest"]["leftovers"]}
    threads = [threading.Thread(target=churn, args=(number,)) for number in range(2)] + [threading.Thread(target=images)]
    host.must("POST", "/containers/chatty/start")
    for thread in threads:
        thread.start()
    try:
        for _turn in range(6):
            for measure in ("exact", "fast"):
                report = run(host, measure=measure, top=-1)
                assert report["unread"]["count"] == len(report["unread"]["examples"]) == 0
                if measure == "exact":
                    assert report["totals"]["unattributed_bytes"] <= report["totals"]["disk_bytes"] * 0.01
                    new = [item for item in report["largest"]["leftovers"] if item["id"] not in there]
                    assert not new, f"what is being made, or removed, is nobody's leftover: {new}"
    finally:
        over.set()
        for thread in threads:
            thread.join()
        host.api("POST", "/containers/chatty/stop?t=0")
        host.api("DELETE", "/containers/passing?force=1&v=1")
        host.must("DELETE", "/volumes/busy")


def test_on_a_host_with_0_bytes_free(fleet: Fleet, ansible: Ansible) -> None:
    names = ("overlay2-ext4", "e26-containerd", "e26-ext4")
    for name in names:
        fleet[name].fill(fleet[name].data_root)
        fleet[name].fill("/")
    try:
        reports = ansible.module("docker_disk_report", EXACT, hosts=":".join(names))
        fast = ansible.module("docker_disk_report", {}, hosts=":".join(names))
        for name in names:
            host, report = fleet[name], reports[name]
            assert not report["failed"] and not fast[name]["failed"], (report, fast[name])
            assert report["filesystems"][0]["available"] == 0
            totals = report["totals"]
            assert abs(totals["disk_bytes"] - du(host, "-x")) <= totals["disk_bytes"] * 0.005
            # Who filled the disk is named.
            filler = item_of(report, "unattributed", f"{host.data_root}/.filler")
            assert filler["disk_bytes"] > 100_000_000
            assert totals["unattributed_bytes"] - filler["disk_bytes"] < totals["disk_bytes"] * 0.01
            assert report["usage"]["images"]["disk_bytes"] > 0
    finally:
        for name in names:
            fleet[name].path(f"{fleet[name].data_root}/.filler").unlink()
            fleet[name].path("/.filler").unlink()


OF_OLD = ("overlay2-ext4", "overlay-ext4", "btrfs-btrfs")


@pytest.fixture(scope="module")
def by_api(fleet: Fleet, ansible: Ansible) -> Tuple[Dict[str, Dict[str, Any]], ...]:
    """Reports by the newest API and the oldest, and a fast one by the oldest: of each host of the next test."""
    wanted = ({"measure": "exact"}, {"measure": "exact", "api_version": "1.21"}, {"api_version": "1.21"})
    return tuple(ansible.module("docker_disk_report", {"top": -1, "state_dir": "", **options}, hosts=":".join(OF_OLD)) for options in wanted)


@pytest.mark.parametrize("name", OF_OLD)
def test_engines_without_system_df_get_a_full_report(by_api: Tuple[Dict[str, Dict[str, Any]], ...], name: str) -> None:
    """API 1.21 is that of Docker 1.9."""
    new, old, fast = (reports[name] for reports in by_api)
    assert not old["failed"], old
    for kind in ("images", "containers", "volumes", "logs", "container_metadata", "leftovers"):
        if kind != "images":
            assert old["usage"][kind]["disk_bytes"] == new["usage"][kind]["disk_bytes"], kind
        assert old["usage"][kind]["count"] == new["usage"][kind]["count"], kind
    # Its API knows no build cache; the layers are BuildKit's all the same.
    assert old["totals"]["disk_bytes"] == new["totals"]["disk_bytes"]
    assert fast["usage"]["images"]["logical_bytes"] == new["usage"]["images"]["logical_bytes"]
    assert item_of(fast, "containers", "stopped-old")["logical_bytes"] == item_of(new, "containers", "stopped-old")["logical_bytes"]


def test_another_machines_engine_gets_the_engines_figures_alone(fleet: Fleet, ansible: Ansible) -> None:
    """The socket of another host's engine: here is a /var/lib/docker, too, and it is somebody else's."""
    with serving(fleet["overlay2-ext4"], lambda connection: relay(connection, fleet["e26-ext4"])) as address:
        report = ansible.module("docker_disk_report", {**EXACT, "docker_host": address}, hosts="overlay2-ext4")["overlay2-ext4"]
    assert not report["failed"], report
    assert report["engine"]["name"] == "e26-ext4"
    assert set(report["usage"]) == {"images", "containers", "volumes", "build_cache"}
    for kind, usage in report["usage"].items():
        assert usage["disk_bytes"] is None and usage["logical_bytes"] is not None, kind
        assert all(item["disk_bytes"] is None for item in report["largest"][kind])
    assert report["usage"]["images"]["logical_bytes"] == fleet["e26-ext4"].must("GET", "/system/df")["LayersSize"]
    assert report["usage"]["volumes"]["reclaimable_bytes"] > 0
    assert (report["roots"], report["filesystems"], report["paths"], report["mounts"]) == ([], [], {}, [])
    assert report["totals"]["disk_bytes"] is None
    assert any("is not the one of the engine at" in warning for warning in report["warnings"])


# -- what could be had ---------------------------------------------------------------------------------

WAYS: Tuple[Tuple[str, Dict[str, Any]], ...] = (
    ("unused_volumes", {"volumes": {"scope": "unused"}}),
    ("dangling_images", {"images": {"scope": "dangling"}}),
    (
        "everything_unused",
        {"containers": {}, "images": {"scope": "unused"}, "volumes": {"scope": "unused"}, "build_cache": {"scope": "unused"}},
    ),
)


def grow(host: Host) -> None:
    """Many small files and a few large ones, so that rounding and metadata show."""
    many = {f"srv/{number // 100}/{number}": bytes([number % 251]) * (number % 6000) for number in range(6000)}
    load_image(host, "grown:1", many)
    small = {f"lib/{number}": b"x" * 700 for number in range(3000)}
    for _turn in range(2):  # the first one loses its name
        load_image(host, "grown:2", {**small, "lib/large": os.urandom(50_000_000)})
    data = volume(host, "grown")
    (data / "large").write_bytes(os.urandom(50_000_000))
    for number in range(2000):
        (data / str(number)).write_bytes(b"y" * (number % 5000))
    # A file takes its last block only when it is written out, and two runs have to see the same.
    host.exec(["sync", "--file-system", host.data_root])


def test_what_could_be_had_is_what_comes_free(fleet: Fleet) -> None:
    """By the filesystem, on every driver. Last in this file's order: it takes away what the others look at."""

    def story(host: Host) -> List[Tuple[bool, str]]:
        rows = []
        grow(host)
        for way, wishes in WAYS:
            said = run(host, measure="exact", top=0)["reclaimable"][way]["bytes"]
            foretold = run(host, "docker_clean", check=True, **wishes)
            before = free(host)
            cleaned = run(host, "docker_clean", **wishes)
            came = free(host) - before
            assert foretold["planned_bytes"] == said == sum(step["bytes"] for step in foretold["removed"]), f"{host.name}, {way}"
            planned, removed = ([(step["kind"], step["id"], step["name"]) for step in each["removed"]] for each in (foretold, cleaned))
            assert planned == removed, f"{host.name}, {way}: what check mode said is what was done, in the same order"
            # A plan as small as these is measured in a plain run, too, where layers share nothing; the same to the byte.
            shares = (host.spec.driver or "overlay2") in ("btrfs", "vfs", "overlay")
            figures = [[step["bytes"] for step in each["removed"]] for each in (foretold, cleaned)]
            assert figures[1] == (figures[0] if not shares else [None] * len(figures[0])), f"{host.name}, {way}"
            assert cleaned["planned_bytes"] == (None if shares and figures[0] else said), f"{host.name}, {way}"
            # The engine's own databases and logs grow and shrink by some blocks meanwhile.
            right = abs(said - came) <= max(came, said) * PRECISION[host.spec.filesystem or ""] + 131072
            rows.append((right, f"{host.name:<16} {way:<18} {said:>12,} {came:>12,} {said / max(came, 1):.4f}"))
        return rows

    rows = [row for found in on_all(fleet, story).values() for row in found]
    print(f"\n{'host':<16} {'way':<18} {'said':>12} {'came free':>12} ratio\n" + "\n".join(row for _right, row in rows))
    assert not [row for right, row in rows if not right]
