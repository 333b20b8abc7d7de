# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role says of a fleet, and which of its variables it refuses."""

from __future__ import annotations

import copy
import json
import typing as t

import pytest
import yaml
from ansible_collections.fleetclean.docker.plugins.filter.fleet import FilterModule
from ansible_collections.fleetclean.docker.plugins.plugin_utils import fleet
from conftest import ROOT

GB = 1024**3
KNOWN = yaml.safe_load((ROOT / "roles/cleanup/meta/argument_specs.yml").read_text())["argument_specs"]["main"][
    "options"
]
NOTHING = {name: None for name in ("containers", "images", "volumes", "networks", "build_cache", "leftovers")}
CLEAN: dict[str, t.Any] = {
    **NOTHING,
    "networks": {"older_than": "7d", "keep": []},
    "keep_labels": ["fleetclean.keep"],
    "orchestrated": "keep",
    "parallel": 4,
    "only_below": None,
    "free_target": "",
}
LOGS: dict[str, t.Any] = {
    "containers": ["*"],
    "keep_labels": [],
    "larger_than": "100MB",
    "keep": "10MB",
    "rotated": "keep",
    "deleted": True,
    "restart": "never",
}


def problem(
    clean: dict[str, t.Any] | None = None,
    logs: dict[str, t.Any] | None = LOGS,
    given: t.Sequence[str] = (),
    profile: str = "careful",
    confirmed: bool = False,
) -> str:
    return fleet.cleanup_problem(CLEAN if clean is None else clean, logs, given, KNOWN, profile, confirmed)


# -- the wishes ------------------------------------------------------------------------------------


def test_sensible_wishes_are_no_problem() -> None:
    assert problem() == ""
    assert problem(given=["cleanup_profile", "cleanup_images_keep"]) == ""
    assert problem(logs=None) == ""
    assert problem(clean=NOTHING) == ""


class Late(t.Dict[str, t.Any]):
    """As Ansible's containers are: a copy has all variables in it that its content could need."""

    def __deepcopy__(self, memo: dict[int, t.Any]) -> t.NoReturn:
        raise AssertionError("it was copied")


def test_the_wishes_are_not_copied_with_all_that_they_are_made_from() -> None:
    clean = Late({name: Late(value) if isinstance(value, dict) else value for name, value in CLEAN.items()})
    assert any(isinstance(value, Late) for value in clean.values())
    assert problem(clean=clean, logs=Late(LOGS)) == ""
    wrong = Late({**clean, "networks": Late({"older_than": "3 fortnights"})})
    assert problem(clean=wrong).startswith("cleanup_networks_older_than: ")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("cleanup_image_keep", "cleanup_images_keep"),
        ("cleanup_images_kep", "cleanup_images_keep"),
        ("cleanup_keep_label", "cleanup_keep_labels"),
        ("cleanup_container_older_than", "cleanup_containers_older_than"),
    ],
)
def test_a_misspelt_variable_is_refused_with_what_was_meant(name: str, meant: str) -> None:
    # What it was meant to protect would go.
    assert problem(given=["cleanup_profile", name]) == f"{name}: there is no such variable; did you mean {meant}?"


def test_a_variable_like_none_of_ours_is_somebody_elses() -> None:
    assert problem(given=["cleanup_zzzzzzzzzzzzzz", "cleanup_tmp_days"]) == ""
    assert problem(given=["cleanup_images_zzzzzzzz"]) == "cleanup_images_zzzzzzzz: there is no such variable."


@pytest.mark.parametrize("value", [None, ""])
def test_an_age_without_a_value_is_not_any_age(value: object) -> None:
    wishes = {"containers": {"states": ["exited"], "older_than": value, "keep": [], "volumes": False}}
    assert problem(clean=wishes) == "cleanup_containers_older_than: has no value; give a duration such as 7d, or 0 for any age."


def test_the_full_profile_needs_to_be_confirmed() -> None:
    words = problem(profile="full")
    assert words.startswith(
        "cleanup_profile: full removes all that can be had, running containers and named volumes too;"
    )
    assert words.endswith("set cleanup_full_confirmed: true if that is meant.")
    assert problem(profile="full", confirmed=True) == ""


def test_nothing_asked_for_at_all_is_refused() -> None:
    assert problem(clean=NOTHING, logs=None).startswith(
        "nothing was asked for; turn on at least one of cleanup_logs, cleanup_containers,"
    )


@pytest.mark.parametrize(
    ("clean", "start"),
    [
        ({"images": {"older_than": "3 fortnights"}}, 'cleanup_images_older_than: "3 fortnights" is not a duration'),
        ({"images": {"keep_latest": -1}}, "cleanup_images_keep_latest: -1 is less than nothing"),
        ({"build_cache": {"keep_storage": "some"}}, 'cleanup_build_cache_keep_storage: "some" is not a size'),
        ({"only_below": "little"}, 'cleanup_only_below: "little" is neither a size nor a share'),
        ({"free_target_inodes": "5GB"}, 'cleanup_free_target_inodes: "5GB" is not a number of inodes'),
        ({"parallel": 99}, "cleanup_parallel: 99 is out of range"),
        ({"images": {"keep": "postgres:16, redis:.*"}}, 'cleanup_images_keep: "redis:.*" cannot match any image. Use repository:tag'),
        ({"images": {"keep": ["app", ""]}}, "cleanup_images_keep: an entry is empty."),
        ({"containers": {"keep": [{"web": 1}]}}, "cleanup_containers_keep: an entry is a mapping and not a text."),
        ({"volumes": {"drivers": "local|nfs"}}, 'cleanup_volumes_drivers: "local|nfs" cannot match any volume driver.'),
        ({"keep_labels": "team a"}, 'cleanup_keep_labels: "team a" cannot match any label. Use key or key=value'),
    ],
)
def test_a_wrong_wish_is_refused_by_the_name_of_its_variable(clean: dict[str, t.Any], start: str) -> None:
    assert problem({**CLEAN, **clean}).startswith(start)


@pytest.mark.parametrize(
    ("logs", "start"),
    [
        ({"keep": "all"}, 'cleanup_logs_keep: "all" is not a size'),
        ({"larger_than": "20%"}, 'cleanup_logs_larger_than: "20%" is not a size'),
        ({"containers": "web, ^db"}, 'cleanup_logs_containers: "^db" cannot match any container.'),
        ({"containers": ["web", ""]}, "cleanup_logs_containers: an entry is empty."),
        ({"keep_labels": "team a"}, 'cleanup_keep_labels: "team a" cannot match any label.'),
        ({"rotated": "perhaps"}, "value of rotated must be one of: keep, remove"),
    ],
)
def test_a_wrong_wish_for_logs_is_refused_by_the_name_of_its_variable(logs: dict[str, t.Any], start: str) -> None:
    assert problem(logs={**LOGS, **logs}).startswith(start)


@pytest.mark.parametrize(
    "clean", [{"images": {"scope": "everything"}}, {"containers": {"states": ["asleep"]}}, {"orchestrated": "maybe"}]
)
def test_what_is_no_choice_is_refused(clean: dict[str, t.Any]) -> None:
    words = problem({**CLEAN, **clean})
    assert "must be one" in words
    assert "\n" not in words


def test_the_texts_of_surveys_are_no_problem() -> None:
    clean = {"images": {"keep": "postgres:16, app/*\n"}, "containers": {"states": "created, exited", "keep": ""}, "keep_labels": "team=a, fleetclean.keep"}
    assert problem({**CLEAN, **clean}, {**LOGS, "containers": "web-*\ndb\n", "keep_labels": "team=a, fleetclean.keep"}) == ""


def test_leftovers_are_refused_before_anything_is_touched() -> None:
    assert "cleanup_leftovers: not there yet" in problem({**CLEAN, "leftovers": {"older_than": "24h", "offline": False}})


def test_what_clean_is_asked_for_is_known() -> None:
    assert fleet.asks_for_something(CLEAN)
    assert not fleet.asks_for_something(NOTHING)
    assert not fleet.asks_for_something({"keep_labels": ["x"], "parallel": 4})


def test_the_filters_are_there_by_name() -> None:
    filters = FilterModule().filters()
    assert {"cleanup_problem", "fleet_page", "fleet_table", "host_record", "host_trouble", "asks_for_something"} <= set(filters)
    assert all(callable(function) for function in filters.values())


# -- one record a host -----------------------------------------------------------------------------

ENGINE = {
    "changed": False,
    "engine": {"name": "build1", "root_dir": "/var/lib/docker", "root_dir_proven": True},
    "filesystems": [{"mount_point": "/", "size": 50 * GB, "used": 50 * GB, "free": 0, "available": 0}],
    "usage": {
        "images": {"count": 2, "active": 1, "logical_bytes": 18 * GB, "disk_bytes": None, "reclaimable_bytes": 12 * GB},
        "containers": {"count": 1, "active": 1, "logical_bytes": 2 * GB, "disk_bytes": None, "reclaimable_bytes": None},
        "logs": {"count": 1, "active": 1, "logical_bytes": 9 * GB, "disk_bytes": 8 * GB, "reclaimable_bytes": 8 * GB},
    },
    "largest": {
        "images": [
            {
                "id": "sha256:5f",
                "name": "ci/build:417, ci/build:latest",
                "size": 2 * GB,
                "age": 34 * 86400,
                "used_by": [],
            }
        ],
        "logs": [{"id": "c", "name": "ci-runner", "size": 8 * GB, "age": 100, "used_by": ["ci-runner"]}],
        "volumes": [],
    },
}
LOG_RESULT = {"changed": True, "logs": [], "reclaimed_bytes": 8 * GB, "diff": {"prepared": "x"}, "invocation": {}}
CLEAN_RESULT = {
    "changed": True,
    "removed": [
        {"kind": "image", "id": "i", "name": "a:1", "bytes": 12 * GB, "reason": "unused"},
        {"kind": "tag", "id": "i", "name": "b:1", "bytes": None, "reason": "x"},
    ],
    "failures": [],
    "kept": [],
    "planned_bytes": 12 * GB,
    "reclaimed_bytes": 13 * GB,
    "reclaimed_by_kind": {"image": 12 * GB, "container": GB},
    "free_before": 8 * GB,
    "free_after": 21 * GB,
    "filesystem_bytes": 50 * GB,
    "target_met": None,
}


def hostvars(name: str = "build1", **results: t.Any) -> dict[str, t.Any]:
    return {"inventory_hostname": name, **{f"_cleanup_{key}": value for key, value in results.items()}}


def record(name: str = "build1", **results: t.Any) -> dict[str, t.Any]:
    return fleet.host_record(hostvars(name, **copy.deepcopy(results)))


def failed(failure: str, msg: str, module: str = "docker_disk_report") -> dict[str, t.Any]:
    return {"failed": True, "failure": failure, "msg": f"{module}: {msg}", "changed": False}


DOWN = failed(
    "engine_down",
    "engine does not answer: /var/run/docker.sock: connection refused. Start the engine (systemctl start docker).",
)
NO_ROUTE = {
    "unreachable": True,
    "msg": 'Data could not be sent to remote host "web12". Make sure this host can be reached over ssh: '
    'ssh: connect to host web12 port 22: No route to host\r\n',
    "changed": False,
}


def test_a_host_where_all_went_well_is_ok_and_the_record_can_be_written_as_json() -> None:
    found = record(engine=ENGINE, logs=LOG_RESULT, clean=CLEAN_RESULT)
    assert (found["host"], found["status"], found["error"]) == ("build1", "ok", "")
    assert fleet.host_trouble(found) == ""
    assert "invocation" not in found["logs"]
    assert "diff" not in found["logs"]
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("engine", "status", "start"),
    [
        (DOWN, "trouble", "engine does not answer: /var/run/docker.sock: connection refused"),
        (
            failed("denied", "/var/run/docker.sock: permission denied."),
            "trouble",
            "/var/run/docker.sock: permission denied.",
        ),
        (failed("no_engine", "no Docker here: /var/run/docker.sock: no such file"), "no_docker", "no Docker here"),
        (NO_ROUTE, "unreachable", "unreachable: ssh: connect to host web12 port 22: No route to host"),
        ({"failed": True, "msg": "MODULE FAILURE"}, "trouble", "MODULE FAILURE"),
        ({"failed": True}, "trouble", "the module ended without an answer"),
        (
            {"failed": True, "msg": "MODULE FAILURE\nSee stdout/stderr for the exact error", "module_stdout": "", "module_stderr": "Traceback\n  x\nOSError: y\n"},
            "trouble", "MODULE FAILURE See stdout/stderr for the exact error: OSError: y",
        ),
        ({"failed": True, "module_stdout": "x\r\n\x1b[2J\r\n", "module_stderr": "Shared connection to web1 closed.\r\n"}, "trouble", "the module ended without an answer: \ufffd[2J"),
    ],
    ids=["down", "denied", "no-docker", "unreachable", "crash", "silent", "traceback", "terminal"],
)
def test_trouble_unreachable_and_no_docker_are_told_apart_in_their_own_words(
    engine: dict[str, t.Any], status: str, start: str
) -> None:
    found = record(engine=engine)
    assert found["status"] == status
    assert found["error"].startswith(start)
    assert fleet.host_trouble(found) == ("" if status == "no_docker" else found["error"])


def test_what_failed_in_the_middle_is_the_hosts_trouble_and_what_was_done_is_kept() -> None:
    bad = {**CLEAN_RESULT, **failed("engine", "1 object could not be removed, all else was done.", "docker_clean")}
    found = record(engine=ENGINE, logs=LOG_RESULT, clean=bad)
    assert found["status"] == "trouble"
    assert found["error"] == "1 object could not be removed, all else was done."
    assert found["clean"]["reclaimed_bytes"] == 13 * GB


def test_a_step_that_was_skipped_is_no_trouble() -> None:
    found = record(engine=ENGINE, logs={"skipped": True, "changed": False}, clean={"skipped": True})
    assert (found["status"], found["logs"], found["clean"]) == ("ok", None, None)


def test_errors_cannot_move_a_cursor_or_make_a_second_line() -> None:
    found = record(engine=failed("engine", 'the engine says "\x1b[2J\r\nowned"'))
    assert found["error"].isprintable()


# -- the tables ------------------------------------------------------------------------------------


def fleet_of() -> list[dict[str, t.Any]]:
    roomy = copy.deepcopy(ENGINE)
    roomy["filesystems"][0].update(used=80 * GB, available=118 * GB, free=118 * GB, size=200 * GB)
    idle = {
        **CLEAN_RESULT,
        "changed": False,
        "removed": [],
        "planned_bytes": 0,
        "reclaimed_bytes": 0,
        "reclaimed_by_kind": {},
        "free_before": 118 * GB,
        "free_after": 118 * GB,
    }
    return [
        record("build1", engine=ENGINE, logs=LOG_RESULT, clean=CLEAN_RESULT),
        record("db3", engine=roomy, clean=idle),
        record("web9", engine=DOWN),
        record("web12", engine=NO_ROUTE),
        record(
            "mail",
            engine=failed(
                "no_engine", "no Docker here: /var/run/docker.sock: no such file, and no dockerd is installed."
            ),
        ),
    ]


def logs_record(engine: dict[str, t.Any], *logs: tuple[str, str, int], **more: t.Any) -> dict[str, t.Any]:
    """A host whose logs have these names, readers and sizes."""
    entries = [{"name": name, "readers": readers, "bytes_before": size, "method": "none"} for name, readers, size in logs]
    return record(engine={**ENGINE, "engine": {**ENGINE["engine"], **engine}}, logs={**LOG_RESULT, "logs": entries, **more}, clean=CLEAN_RESULT)


BY_CONTAINERS = "cleanup_logs_restart: containers"


@pytest.mark.parametrize(
    ("engine", "cure"),
    [
        ({"live_restore": True}, f"cleanup_logs_restart: engine (live-restore is on, no container stops) or {BY_CONTAINERS}"),
        ({"live_restore": False, "swarm": "inactive"}, f"cleanup_logs_restart: engine with cleanup_logs_live_restore: enable (no container stops) or {BY_CONTAINERS}"),
        ({"live_restore": False, "swarm": "active"}, BY_CONTAINERS),
    ],
)
def test_the_table_says_whose_readers_are_stale_and_which_logs_stay_for_that_and_what_cures_it(engine: dict[str, t.Any], cure: str) -> None:
    stale = [(f"web-{number}", "stale", GB) for number in range(5)] + [("web-0", "stale", GB)]
    hosts = [logs_record(engine, *stale, ("db", "spared", 3 * GB), ("mail\x1b[2J", "spared", 2 * GB), ("fine", "ok", GB)), record("other", engine=ENGINE, logs=LOG_RESULT)]
    lines = fleet.fleet_table(hosts, "clean")
    assert all(len(line) <= 100 and line.isprintable() for line in lines)
    text = " ".join(" ".join(lines).split())
    assert f"docker logs --tail and -f are stale for web-0, web-1, web-2 and 2 more; cured by {cure} 5.0 GB of logs stay" in text
    assert (
        f"5.0 GB of logs stay, since docker logs --tail and -f would be stale: db, mail�[2J; ways out: {cure}; new containers with max-size; "
        "cleanup_logs_stale_readers: allow"
    ) in text
    assert text.count("stale") == 3, "the other host has no such line"
    # Below the figures of the host, and above the next one's.
    assert [line.split()[0] for line in lines].index("other") > next(number for number, line in enumerate(lines) if "cured by" in line)
    assert "would be stale for web-0" in " ".join(" ".join(fleet.fleet_table(hosts, "clean", check=True)).split())


def test_the_table_says_where_live_restore_was_turned_on() -> None:
    host = logs_record({"live_restore": False}, ("web", "ok", GB), live_restore_file="/etc/docker/daemon.json")
    assert "live-restore is on now, in /etc/docker/daemon.json" in " ".join(fleet.fleet_table([host], "clean"))
    assert "live-restore would be turned on in /etc/docker/daemon.json" in " ".join(fleet.fleet_table([host], "clean", check=True))


def test_in_check_mode_the_engines_figures_count_where_nothing_was_measured() -> None:
    """As with another machine's engine, whose disk is not looked at."""
    measured = record("a", engine=ENGINE, clean=CLEAN_RESULT)
    removed = [{**entry, "bytes": None, "logical_bytes": entry["bytes"]} for entry in CLEAN_RESULT["removed"]]
    said = record("a", engine=ENGINE, clean={**CLEAN_RESULT, "removed": removed, "planned_bytes": None, "planned_logical_bytes": CLEAN_RESULT["planned_bytes"]})
    assert fleet.clean_figures(said, True) == fleet.clean_figures(measured, True)
    assert fleet.fleet_table([said], "clean", True) == fleet.fleet_table([measured], "clean", True)


def test_the_table_of_a_cleaning_says_what_came_free_where() -> None:
    lines = fleet.fleet_table(fleet_of(), "clean")
    assert lines[0].split() == [
        "host",
        "free",
        "before",
        "after",
        "came",
        "free",
        "containers",
        "images",
        "volumes",
        "cache",
        "logs",
    ]
    assert lines[1].split() == [
        "build1",
        "0",
        "B",
        "0",
        "%",
        "21.0",
        "GB",
        "42",
        "%",
        "21.0",
        "GB",
        "1.0",
        "12.0",
        "-",
        "-",
        "8.0",
    ]
    assert lines[2].split() == [
        "db3",
        "118.0",
        "GB",
        "59",
        "%",
        "118.0",
        "GB",
        "59",
        "%",
        "0",
        "B",
        "-",
        "-",
        "-",
        "-",
        "-",
    ]
    assert lines[-1].split(maxsplit=1) == [
        "fleet",
        "5 hosts: 1 cleaned, 1 had nothing to do, 1 without Docker, 2 need a look; 21.0 GB came free",
    ]
    assert any("web9" in line and "connection refused" in line for line in lines)
    assert any("web12" in line and "No route to host" in line for line in lines)


def test_in_check_mode_the_table_says_what_would_come() -> None:
    told = {**CLEAN_RESULT, "reclaimed_bytes": 0, "reclaimed_by_kind": {}, "free_before": 0, "free_after": 12 * GB}
    lines = fleet.fleet_table([record(engine=ENGINE, logs=LOG_RESULT, clean=told)], "clean", check=True)
    assert "would free" in lines[0]
    assert lines[1].split() == [
        "build1",
        "0",
        "B",
        "0",
        "%",
        "20.0",
        "GB",
        "40",
        "%",
        "20.0",
        "GB",
        "-",
        "12.0",
        "-",
        "-",
        "8.0",
    ]
    assert (
        lines[-1].split(maxsplit=1)[1]
        == "1 host: 1 to clean, 0 had nothing to do, 0 need a look; 20.0 GB would come free"
    )


def test_a_host_whose_disk_is_elsewhere_shows_no_figures_of_it() -> None:
    engine = {**ENGINE, "filesystems": []}
    clean = {**CLEAN_RESULT, "reclaimed_bytes": None, "reclaimed_by_kind": {}, "free_before": None, "free_after": None}
    lines = fleet.fleet_table([record(engine=engine, clean=clean)], "clean")
    assert lines[1].split() == ["build1", "-", "-", "-", "-", "-", "-", "-", "-"]


REPORT: dict[str, t.Any] = {
    **ENGINE,
    "usage": {
        "images": {"count": 2, "active": 1, "logical_bytes": 16 * GB, "disk_bytes": 18 * GB, "reclaimable_bytes": 12 * GB},
        "containers": {"count": 1, "active": 1, "logical_bytes": GB, "disk_bytes": 2 * GB, "reclaimable_bytes": 0},
        "logs": {"count": 1, "active": 1, "logical_bytes": None, "disk_bytes": 8 * GB, "reclaimable_bytes": 8 * GB},
        "leftovers": {"count": 3, "active": 0, "logical_bytes": None, "disk_bytes": GB, "reclaimable_bytes": GB},
    },
    "largest": {
        "images": [
            {"name": "ci/build:417, ci/build:latest", "size": 2 * GB, "disk_bytes": 2 * GB, "age": 90 * 86400, "last_used": 34 * 86400, "used_by": []},
            {"name": "app:1", "size": GB, "disk_bytes": GB, "age": None, "used_by": ["web", "db", "job"]},
        ],
        "logs": [{"name": "ci-runner", "size": 8 * GB, "disk_bytes": 8 * GB, "age": 100, "used_by": ["ci-runner"]}],
    },
    "totals": {"disk_bytes": 29 * GB, "attributed_bytes": 29 * GB, "unattributed_bytes": 0, "reclaimable_bytes": 20 * GB},
    "unread": {"count": 0, "vanished": 0, "examples": []},
}


def report_of(**changes: t.Any) -> list[str]:
    return fleet.fleet_table([record("build1", engine={**REPORT, **changes})], "report")


def test_the_table_of_a_report_says_what_could_be_had_and_the_largest_items() -> None:
    lines = fleet.fleet_table([record("build1", engine=REPORT), record("web9", engine=DOWN)], "report")
    assert lines[0].split() == "host data root size used could be had images containers volumes cache logs leftovers".split()
    # 20 GB, not the 21 that the categories add up to: nothing is counted twice.
    assert lines[1].split() == "build1 /var/lib/docker 50.0 GB 100 % 20.0 GB 18.0 2.0 - - 8.0 1.0".split()
    assert lines[2].startswith("web9 ") and "connection refused" in lines[2]
    assert "Columns are GB on disk." in lines
    assert " ".join(" ".join(lines[-2:]).split()) == (
        "build1, largest: log of ci-runner 8.0 GB · image ci/build:417 2.0 GB (unused for 34 days) · image app:1 1.0 GB (used by web, db and 1 more)"
    )


def test_what_was_not_measured_is_marked_and_the_footer_says_what_the_mark_means() -> None:
    lines = report_of(usage=ENGINE["usage"], largest=ENGINE["largest"])
    assert lines[1].split()[-6:] == ["~18.0", "~2.0", "-", "-", "8.0", "-"]
    assert "Columns are GB on disk. ~ is the engine's own figure, not measured." in lines
    assert any("image ci/build:417 ~2.0 GB" in line for line in lines)
    assert "~" not in " ".join(report_of())


@pytest.mark.parametrize(("nobodys", "said"), [(GB // 5, False), (3 * GB, True)])
def test_more_than_a_hundredth_that_is_nobodys_has_a_line(nobodys: int, said: bool) -> None:
    lines = report_of(totals={**REPORT["totals"], "unattributed_bytes": nobodys})
    assert any(line.startswith("build1: 3.0 GB (10 %) below the data root is nobody's") for line in lines) is said


def deleted(*files: tuple[int, int, int], more: int = 0, container: str | None = None) -> dict[str, t.Any]:
    """Deleted files that are open: the pid and the bytes of each, and how many processes have it."""
    largest = [{"bytes": size, "pid": pid, "command": "gitlab-runner", "container": container, "processes": count} for pid, size, count in files]
    return {"count": len(files) + bool(more), "bytes": sum(size for _pid, size, _count in files) + more, "unread": 0, "largest": largest}


MB = 1024**2


@pytest.mark.parametrize(
    ("found", "ways", "said"),
    [
        (deleted((4711, 144 * MB, 1)), {}, "144.0 MB are deleted files that pid 4711 (gitlab-runner) holds open"),
        (deleted((4711, 100 * MB, 1), (4711, 44 * MB, 1)), {}, "144.0 MB are deleted files that pid 4711 (gitlab-runner) holds open"),
        (
            deleted((4711, 144 * MB, 1), container="ci"), {},
            "144.0 MB are deleted files that pid 4711 (gitlab-runner in container ci) holds open",
        ),
        (
            deleted((3, 144 * MB, 1), (4711, 100 * MB, 1), (4711, 100 * MB, 1)), {},
            "344.0 MB are deleted files that processes hold open, 200.0 MB of it pid 4711 (gitlab-runner)",
        ),
        # One that several have does not come free with the first.
        (deleted((3, 144 * MB, 2)), {}, "144.0 MB are deleted files that processes hold open, 144.0 MB of it pid 3 (gitlab-runner)"),
        (deleted(more=144 * MB), {}, "144.0 MB are deleted files that processes hold open"),
        (
            deleted((7, 144 * MB, 1)), {"deleted_logs": {"bytes": 44 * MB, "count": 1, "means": "x"}},
            "144.0 MB are deleted files that pid 7 (gitlab-runner) holds open; docker_log_truncate frees 44.0 MB of it",
        ),
        (deleted((4711, 99 * MB, 1)), {}, ""),
        ({}, {}, ""),
    ],
)
def test_deleted_files_that_are_open_have_a_line_if_they_are_worth_it(found: dict[str, t.Any], ways: dict[str, t.Any], said: str) -> None:
    words = " ".join(" ".join(report_of(deleted_open=found, reclaimable=ways)).split())
    assert words.partition("build1: ")[2] == said
    assert bool(said) == ("deleted files" in words)


def test_a_hundredth_of_a_small_filesystem_is_worth_a_line() -> None:
    small = [{"mount_point": "/", "size": 3 * GB, "used": GB, "free": 0, "available": 0}]
    assert any("40.0 MB are deleted files" in line for line in report_of(filesystems=small, deleted_open=deleted((7, 40 * MB, 1))))


def test_files_that_could_not_be_read_have_a_line() -> None:
    unread = {"count": 2, "vanished": 0, "examples": [{"path": "/var/lib/docker/x", "error": "Input/output error"}]}
    lines = report_of(unread=unread)
    assert "build1: 2 files could not be read and are missing here, such as /var/lib/docker/x: Input/output" in " ".join(lines)
    assert any(line.startswith("build1: 1 file could not be read and is missing here") for line in report_of(unread={"count": 1}))


def test_the_data_root_gives_way_to_the_figures() -> None:
    huge = {name: {**usage, "disk_bytes": 9_999 * GB} for name, usage in REPORT["usage"].items()}
    lines = fleet.fleet_table([record("a-long-host-name", engine={**REPORT, "usage": huge})], "report")
    assert len(lines[1]) <= 100
    assert lines[1].split()[-6:] == ["9999", "9999", "-", "-", "9999", "9999"]


@pytest.mark.parametrize("table", ["clean", "report"])
def test_an_empty_fleet_has_a_table(table: str) -> None:
    assert fleet.fleet_table([], table)


@pytest.mark.parametrize("table", ["clean", "report"])
@pytest.mark.parametrize("check", [False, True])
def test_no_line_has_more_than_a_hundred_columns(table: str, check: bool) -> None:
    long = copy.deepcopy(ENGINE)
    long["engine"]["root_dir"] = "/srv/" + "very-long/" * 20
    long["unread"] = {"count": 5, "examples": [{"path": "/srv/" + "very-long/" * 20, "error": "w" * 200}]}
    for items in long["largest"].values():
        for item in items:
            item["name"] = "registry.example.com/" + "x" * 200
    records = [
        *fleet_of(),
        record("a-host-with-a-very-long-name.example.com", engine=long, logs=LOG_RESULT, clean=CLEAN_RESULT),
        record(
            "another-host-with-a-very-long-name.example.com", engine=failed("engine", "w" * 50 + " " + "word " * 60)
        ),
    ]
    too_long = [line for line in fleet.fleet_table(records, table, check) if len(line) > 100]
    assert too_long == []


@pytest.mark.parametrize("table", ["clean", "report"])
def test_names_cannot_move_a_cursor(table: str) -> None:
    evil = copy.deepcopy(ENGINE)
    evil["engine"]["root_dir"] = "/var/\x1b[2J"
    evil["largest"]["logs"][0]["name"] = "web\x1b]0;owned\x07\r"
    for line in fleet.fleet_table([record("h\x1b[1most\n", engine=evil, clean=CLEAN_RESULT)], table):
        assert line.isprintable(), repr(line)


# -- several filesystems ----------------------------------------------------------------------------------


def spread() -> dict[str, t.Any]:
    """A host whose images lie on a full filesystem of their own."""
    engine = copy.deepcopy(ENGINE)
    engine["filesystems"] = [
        {"mount_point": "/", "size": 50 * GB, "used": 10 * GB, "available": 40 * GB, "holds": ["logs", "engine_metadata"]},
        {"mount_point": "/var/lib/containerd", "size": 20 * GB, "used": 19 * GB, "available": GB, "holds": ["images", "build_cache"]},
    ]
    return engine


def spread_clean(**more: t.Any) -> dict[str, t.Any]:
    return {
        **CLEAN_RESULT, "free_before": 40 * GB, "free_after": 41 * GB,
        "filesystems": [
            {"mount_point": "/", "size": 50 * GB, "free_before": 40 * GB, "free_after": 41 * GB},
            {"mount_point": "/var/lib/containerd", "size": 20 * GB, "free_before": GB, "free_after": 13 * GB},
        ],
        **more,
    }


def test_each_further_filesystem_has_a_line_of_its_own() -> None:
    lines = fleet.fleet_table([record("web3", engine=spread())], "report")
    assert "web3: /var/lib/containerd 20.0 GB, 95 % used, holds images, build cache" in lines
    found = record("web3", engine=spread(), clean=spread_clean())
    lines = fleet.fleet_table([found], "clean")
    assert "/var/lib/containerd 20.0 GB, free 1.0 GB 5 % before, 13.0 GB 65 % after, holds images, build cache" in " ".join(" ".join(lines).split())
    assert fleet.clean_figures(found, check=False).freed == 13 * GB  # type: ignore[union-attr]
    assert all(len(line) <= 100 for line in lines)


@pytest.mark.parametrize("value", [["/"], {"a": 1}, 5])
def test_a_name_that_is_none_spoils_no_other_hosts_lines(value: t.Any) -> None:
    engine, clean = spread(), spread_clean()
    engine["filesystems"][1]["mount_point"] = value
    other, removed = copy.deepcopy(clean), {**clean, "removed": [{"kind": value, "name": "x", "bytes": 1}]}
    other["filesystems"][1]["mount_point"] = value
    liars = [record("liar", engine=engine, clean=clean), record("liar", engine=spread(), clean=other), record("liar", engine=spread(), clean=removed)]
    for liar in liars:
        assert liar["error"].startswith("unexpected answer (") and "where a text is documented" in liar["error"]
        for check in (True, False):
            assert [line for line in fleet.fleet_table([liar, record("web3", engine=spread(), clean=clean)], "clean", check) if line.startswith("web3")]


@pytest.mark.parametrize(
    ("assumed", "elsewhere", "after"), [(None, False, 49), (8 * GB, False, 41), (None, True, 41), (8 * GB, True, 41)]
)
def test_in_check_mode_the_logs_bytes_are_added_once_and_where_logs_lie(assumed: int | None, elsewhere: bool, after: int) -> None:
    engine = spread()
    if elsewhere:
        engine["filesystems"][1]["holds"].append("logs")
    clean = spread_clean(**({"assumed_bytes": assumed} if assumed else {}))
    found = fleet.clean_figures(record(engine=engine, logs=LOG_RESULT, clean=clean), check=True)
    assert found and (found.before, found.after, found.freed) == (40 * GB, after * GB, 20 * GB)


def test_what_a_host_says_of_its_filesystems_is_looked_at_first() -> None:
    wrong: dict[str, t.Any]
    for wrong, where in (
        ({"filesystems": [{"mount_point": "/", "size": 1}]}, "docker_clean.filesystems[0].free_before: missing"),
        ({"filesystems": 7}, "docker_clean.filesystems: a whole number, where a list is documented"),
        ({"assumed_bytes": "many"}, "docker_clean.assumed_bytes: a text, where a whole number is documented"),
    ):
        assert record(engine=spread(), clean={**spread_clean(), **wrong})["error"] == f"unexpected answer ({where})"
    engine = spread()
    engine["filesystems"][1].update(mount_point="/a\x1b[2J\nb", holds={"not": "a list"})
    lines = fleet.fleet_table([record(engine=engine)], "report")
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize(
    ("logs", "handed_on"),
    [
        ({"logs": [{"container": "a" * 64, "reclaimed_bytes": 5, "method": "collapse"}]}, [{"container": "a" * 64, "bytes": 5}]),
        ({"logs": [{"container": "a" * 64, "reclaimed_bytes": 5, "method": "deleted"}]}, [{"container": "", "bytes": 5}]),
        ({"logs": [{"container": "{{ evil }}", "reclaimed_bytes": 5}]}, [{"container": "", "bytes": 5}]),
        ({"logs": [{"container": "a" * 64, "reclaimed_bytes": 0}, {"container": "a" * 64, "reclaimed_bytes": -5}]}, []),
        ({"logs": [{"reclaimed_bytes": "5"}]}, []),
        ({"logs": [{"reclaimed_bytes": 2**60}]}, []),
        ({"logs": [{"reclaimed_bytes": 5.5}]}, []),
        ({"logs": [{"reclaimed_bytes": 1}] * 20_001}, []),
        ({"logs": "{{ evil }}"}, []),
        ({"skipped": True}, []),
        ({}, []),
        ("text", []),
    ],
)
def test_of_what_a_host_says_of_its_logs_numbers_alone_are_handed_on(logs: t.Any, handed_on: list[dict[str, t.Any]]) -> None:
    assert fleet.logs_reclaimed(logs) == handed_on
