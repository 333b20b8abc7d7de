# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role's modules answer, made up: fleets of any size for the tests of the fleet's table and page. Deterministic."""

from __future__ import annotations

import random
from typing import Any, Dict, List, Optional

GB = 1024**3
CATEGORIES = ("images", "containers", "volumes", "build_cache", "logs", "container_metadata", "engine_metadata", "tmp", "leftovers", "unattributed")

#: What somebody may call a container to do harm: markup, quotes, template and script ends, a cursor's moves, a change of direction.
HOSTILE = (
    "<script>window.owned=1</script>",
    "\"><img src=x onerror='window.owned=1'>",
    "'; window.owned=1; //",
    "</style></script><!--<svg onload=window.owned=1>",
    "--><script>window.owned=1</script>",
    "&lt;b&gt;&amp;\u2028\u2029{{ 7 * 7 }}{% raw %}",
    "evil\u202etxt.exe\u2066\x1b[2J\x00\r\n\ud800",
    "javascript:window.owned=1",
    "\u0635\u0648\u0631\u0629 \u05d0\u05d1\u05d2",
    "x" * 5000,
)


def engine_result(seed: int = 0, exact: bool = True, names: Optional[List[str]] = None, size: int = 0, used: int = 0) -> Dict[str, Any]:
    """An answer of docker_disk_report as report.yml asks for it."""
    draw = random.Random(seed)
    names = names or ["ci/build:417", "postgres:16", "m2-cache", "registry.example.com/team/app:2024.11.23-rc1", "web", "ci-runner-7"]
    size = size or draw.choice([50, 100, 200, 500, 2000]) * GB
    used = used or size * draw.choice([20, 41, 60, 72, 93, 100]) // 100
    shares = [draw.random() ** 2 * weight for weight in (5, 1, 6, 2, 2, 0.02, 0.02, 0.1, 0.6, 0.05)]
    usage: Dict[str, Any] = {}
    items: Dict[str, Any] = {}
    for category, share in zip(CATEGORIES, shares):
        disk = int(used * 0.8 * share / sum(shares))
        measured = exact or category in ("logs", "volumes")
        if category == "unattributed" and not exact:
            continue
        count = draw.randint(1, 60)
        usage[category] = {
            "count": count, "active": draw.randint(0, count), "logical_bytes": disk * 9 // 10, "disk_bytes": disk if measured else None,
            "shared_bytes": 0, "reclaimable_bytes": disk // 2 if category in ("images", "volumes", "build_cache", "logs", "leftovers") else 0,
        }
        items[category] = [
            {
                "id": f"{category}{number}", "name": draw.choice(names), "size": disk // (number + 2), "logical_bytes": disk // (number + 2),
                "disk_bytes": disk // (number + 2) if measured else None, "age": draw.randint(1000, 9_000_000),
                "active": False, "used_by": draw.choice([[], [draw.choice(names)]]),
            }
            for number in range(3)
        ]
    had = sum(entry["reclaimable_bytes"] for entry in usage.values())
    disk = sum(entry["disk_bytes"] or 0 for entry in usage.values())
    return {
        "changed": False,
        "engine": {"name": "engine", "version": "26.1.5", "storage_driver": "overlay2", "root_dir": "/var/lib/docker", "root_dir_proven": True},
        "filesystems": [{"mount_point": "/", "type": "ext4", "size": size, "used": used, "free": size - used, "available": size - used}],
        "usage": usage,
        "largest": items,
        "reclaimable": {
            "unused_images": {"bytes": usage["images"]["reclaimable_bytes"], "count": 7, "means": "docker_clean, images: {scope: unused}"},
            "logs": {"bytes": usage["logs"]["reclaimable_bytes"], "count": 3, "means": "docker_log_truncate"},
            "everything_unused": {"bytes": had, "count": 99, "means": "docker_clean, all sections"},
        },
        "totals": {
            "disk_bytes": disk if exact else None, "attributed_bytes": disk if exact else None, "shared_bytes": 0,
            "unattributed_bytes": usage["unattributed"]["disk_bytes"] if exact else None, "reclaimable_bytes": had,
        },
        "measured": {"mode": "exact" if exact else "fast", "seconds": 3.2, "files": 12000},
        "roots": [{"path": "/var/lib/docker", "disk_bytes": disk}],
        "mounts": [],
        "unread": {"count": 0, "vanished": 0, "examples": []},
        "warnings": [],
    }


def log_result(freed: int = 8 * GB) -> Dict[str, Any]:
    """An answer of docker_log_truncate."""
    log = {
        "container": "5f2a", "name": "ci-runner", "driver": "json-file", "path": "/var/lib/docker/containers/5f2a/5f2a-json.log",
        "bytes_before": freed + 10_485_760, "bytes_after": 10_485_760, "reclaimed_bytes": freed, "method": "collapse", "readers": "ok", "words": "",
    }
    return {"changed": True, "logs": [log], "reclaimed_bytes": freed}


def clean_result(before: int, name: str = "ci/build:417") -> Dict[str, Any]:
    """An answer of docker_clean that freed 13 GB: an image of 12 and a container of 1."""
    return {
        "changed": True,
        "removed": [
            {"kind": "image", "id": "sha256:5f", "name": name, "bytes": 12 * GB, "reason": "unused for 34 days (last container)"},
            {"kind": "container", "id": "c1", "name": "test-4711", "bytes": GB, "reason": "exited 12 days ago"},
        ],
        "failures": [],
        "kept": [{"kind": "image", "reason": "used by a container", "count": 12, "bytes": 9 * GB}],
        "policy": ["images: unused for 7 days, keep the newest 2 of each repository", "always: keep what is labelled fleetclean.keep"],
        "planned_bytes": 13 * GB,
        "reclaimed_bytes": 13 * GB,
        "reclaimed_by_kind": {"image": 12 * GB, "container": GB},
        "free_before": before,
        "free_after": before + 13 * GB,
        "filesystem_bytes": 50 * GB,
        "target_met": None,
    }


def failed(failure: str, msg: str) -> Dict[str, Any]:
    return {"failed": True, "failure": failure, "msg": f"docker_disk_report: {msg}", "changed": False}


DOWN = failed("engine_down", "engine does not answer: /var/run/docker.sock: connection refused. Start the engine (systemctl start docker).")
NO_DOCKER = failed("no_engine", "no Docker here: /var/run/docker.sock: no such file, and no dockerd is installed.")
NO_ROUTE = {
    "unreachable": True, "changed": False,
    "msg": 'Data could not be sent to remote host "web12". Make sure this host can be reached over ssh: '
           "ssh: connect to host web12 port 22: No route to host\r\n",
}


def hostvars(name: str, **results: Any) -> Dict[str, Any]:
    """A host's variables after the role ran."""
    return {"inventory_hostname": name, **{f"_cleanup_{key}": value for key, value in results.items()}}


def report_fleet(exact: bool = True) -> List[Dict[str, Any]]:
    """Eight hosts with figures, and one each that is down, out of reach and without Docker."""
    names = ["build1", "build2", "db3", "db4.eu-west.example.com", "web1", "web2", "ci-runner-17", "cache-0"]
    return [
        *(hostvars(name, engine=engine_result(number, exact)) for number, name in enumerate(names)),
        hostvars("web9", engine=DOWN), hostvars("web12", engine=NO_ROUTE), hostvars("mail", engine=NO_DOCKER),
    ]


def clean_fleet() -> List[Dict[str, Any]]:
    """A host that was cleaned, one where nothing was to do, one that failed half-way and one that is down."""
    engine = {**engine_result(1, size=50 * GB, used=50 * GB), "usage": {}, "largest": {}, "totals": {}, "reclaimable": {}}
    idle = {**clean_result(0), "changed": False, "removed": [], "planned_bytes": 0, "reclaimed_bytes": 0, "reclaimed_by_kind": {}, "free_after": 0}
    failures = [{"kind": "image", "id": "i", "name": "ci/build:9", "bytes": GB, "reason": "unused", "error": 'the engine says "conflict"'}]
    bad = {**clean_result(8 * GB), "failures": failures, **failed("engine", "1 object could not be removed, all else was done.")}
    return [
        hostvars("build1", engine=engine, logs=log_result(), clean=clean_result(8 * GB)),
        hostvars("db3", engine=engine, logs={"changed": False, "logs": [], "reclaimed_bytes": 0}, clean=idle),
        hostvars("web1", engine=engine, logs=log_result(), clean=bad),
        hostvars("web9", engine=DOWN),
    ]


def hostile_fleet() -> List[Dict[str, Any]]:
    """Every text that a host or an inventory can bring is hostile."""
    found = []
    for number, evil in enumerate(HOSTILE):
        engine = engine_result(number, names=[evil], size=50 * GB, used=45 * GB)
        engine["engine"].update(root_dir=evil, version=evil, storage_driver=evil)
        engine["filesystems"][0]["type"] = evil
        engine["usage"][evil] = dict(engine["usage"]["images"])
        engine["largest"][evil] = engine["largest"]["images"]
        engine["largest"]["containers"][0]["state"] = evil
        engine["largest"]["leftovers"][0]["reason"] = evil
        engine["reclaimable"][evil] = {"bytes": 5 * GB, "count": 1, "means": evil}
        holder = {"path": evil, "bytes": 4 * GB, "pid": 4711, "command": evil, "unit": evil, "container": evil, "processes": 1}
        engine["deleted_open"] = {"count": 1, "bytes": 4 * GB, "unread": 0, "largest": [holder]}
        engine.update(roots=[{"path": evil, "disk_bytes": 1}], mounts=[{"path": evil, "type": evil}], warnings=[evil])
        engine["unread"] = {"count": 2, "vanished": 0, "examples": [{"path": evil, "error": evil}]}
        logs = log_result(GB)
        logs["logs"][0].update(name=evil, words=evil)
        clean = clean_result(GB, evil)
        clean["policy"] = [*clean["policy"], evil]
        clean["removed"].append({"kind": evil, "id": evil, "name": evil, "bytes": 1, "reason": evil})
        clean["failures"].append({"kind": evil, "id": evil, "name": evil, "bytes": 1, "error": evil})
        clean["kept"].append({"kind": evil, "reason": evil, "count": 1, "bytes": 1})
        found.append(hostvars(f"{number}{evil}", engine=engine, logs=logs, clean=clean))
        found.append(hostvars(f"down {evil}", engine=failed("engine", evil)))
    return found


def big_fleet(count: int) -> List[Dict[str, Any]]:
    """So many hosts with figures."""
    return [hostvars(f"host-{number:04}.example.com", engine=engine_result(number)) for number in range(count)]
