# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What cleanup_report_dir keeps on the controller: the fleet's JSON and its page, however the hosts are taken in turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest

from tests.fleet import Fleet, HostSpec, dirty
from tests.integration.support import Ansible, start

#: One engine under four names: what counts here is the order in which hosts end.
NAMES = [f"h{number}" for number in range(1, 5)]
ROLE = """
- name: In turn
  hosts: all
  gather_facts: false
  {how}
  tasks:
    - name: Report
      ansible.builtin.import_role:
        name: fleetclean.docker.cleanup
        tasks_from: report
"""


@pytest.fixture(scope="module")
def fleet(here: None) -> Iterator[Fleet]:
    with start([HostSpec("h", "ext4")]) as hosts:
        dirty(hosts["h"], "small", log_bytes=20_000_000, aged=True)
        yield hosts


@pytest.fixture
def ansible(fleet: Fleet, tmp_path: Path) -> Ansible:
    host = next(iter(json.loads(fleet.inventory.read_text()).values()))["hosts"]["h"]
    inventory = tmp_path / "inventory.json"
    # What no host's own name may be, an inventory may still have.
    hosts: Dict[str, object] = {name: host for name in NAMES}
    hosts["lost<b>&'"] = {**host, "ansible_host": "127.0.0.1", "ansible_port": 9}
    inventory.write_text(json.dumps({"docker_hosts": {"hosts": hosts}}))
    return Ansible(str(inventory))


def hosts_of(folder: Path) -> List[str]:
    """The hosts with an answer in both files; the two say the same."""
    records = json.loads((folder / "fleet.json").read_text())
    page = (folder / "fleet.html").read_text()
    asked = [record["host"] for record in records if record["engine"]]
    assert page.count('<details><summary class="row">') == len(asked)
    assert all(f"<bdi>{name}</bdi>" in page for name in asked)
    assert sorted(path.name for path in folder.iterdir()) == ["fleet.html", "fleet.json"]  # no half-written files
    return asked


@pytest.mark.parametrize("how", ["strategy: free", "serial: 2"])
def test_the_report_has_all_hosts_however_they_are_taken(ansible: Ansible, tmp_path: Path, how: str) -> None:
    play = tmp_path / "play.yml"
    play.write_text(ROLE.format(how=how))
    folder = tmp_path / "report"
    run = ansible.run(["ansible-playbook", str(play), "-i", ansible.inventory, "-e", json.dumps({"cleanup_report_dir": str(folder)})])
    assert run.code == 4 or run.code == 2, run.text  # one host is out of reach
    assert hosts_of(folder) == NAMES
    tables = [" ".join(table) for table in run.tables]
    assert len(tables) == 1 or how != "strategy: free", run.text
    assert all(f"{name} " in tables[-1] for name in NAMES) and "still running" not in tables[-1]
    page = (folder / "fleet.html").read_text()
    assert "<bdi>lost&lt;b&gt;&amp;&#x27;</bdi>" in page


@pytest.mark.parametrize("playbook", ["report", "clean"])
def test_check_mode_writes_the_report_as_well(ansible: Ansible, tmp_path: Path, playbook: str) -> None:
    folder = tmp_path / "report"
    run = ansible.play(playbook, "--check", "--diff", hosts="h1", cleanup_report_dir=str(folder), cleanup_profile="standard")
    assert run.code == 0, run.text
    assert hosts_of(folder) == ["h1"]
    assert not any(run.changed().values()) or playbook != "report"
    assert "<!doctype" not in run.text  # the page is no part of what --diff shows
    page = (folder / "fleet.html").read_text()
    assert ("Where the disk space" if playbook == "report" else "What would come free") in page


#: Orders to Ansible, and not an answer's.
ORDERS: Dict[str, Any] = {
    "add_host": {"host_name": "added"}, "add_group": "added", "_ansible_no_log": True, "ansible_stats": {"data": {"x": 1}}, "skipped": True,
    "warnings": ["\x1b[2Jwarned\nPLAY RECAP"], "invocation": {"module_args": {"x": "\x1b[2J"}}, "diff": {"prepared": "\x1b[2J", "before_header": "\x1b[2J"},
    "exception": "\x1b[2J", "deprecations": [{"msg": "\x1b[2J", "removed": True}],
}
ENGINE = {"name": "x\x1b[2J{{ 7 * 7 }}", "root_dir": "/var/lib/docker", "root_dir_proven": True}


def liar(folder: Path, name: str, answer: Dict[str, Any]) -> Dict[str, str]:
    """A host that has something else in the place of its Python, as whoever is root there can arrange; its variables for an inventory."""
    python = folder / f"{name}-python"
    (folder / f"{name}.json").write_text(json.dumps(answer))
    python.write_text(f"#!/bin/sh\ncat >/dev/null\ncat '{folder}/{name}.json'\nprintf '\\n\\033[2Jmore\\n'\n")
    python.chmod(0o755)
    return {"ansible_connection": "local", "ansible_python_interpreter": str(python)}


def test_hosts_that_answer_what_they_like_get_nothing_and_cost_only_themselves(fleet: Fleet, tmp_path: Path) -> None:
    honest = next(iter(json.loads(fleet.inventory.read_text()).values()))["hosts"]["h"]
    folder, owned = tmp_path / "report", tmp_path / "owned"
    facts = {"cleanup_report_dir": str(owned), "cleanup_full_confirmed": True, "ansible_connection": "local", "_cleanup_table": "x"}
    hosts = {
        # The first of a play's hosts is the one whose variables the report goes by.
        "a-facts": liar(tmp_path, "a-facts", {"changed": False, "engine": ENGINE, "removed": [], "logs": [], "ansible_facts": facts, **ORDERS}),
        "b-odd": liar(tmp_path, "b-odd", {"engine": {"name": "x"}, "removed": None, "logs": None, "failure": "disk_full", "ansible_facts": facts}),
        "c-types": liar(tmp_path, "c-types", {"engine": "x", "usage": [1], "removed": [{"bytes": "x"}], "logs": {"x": 1}}),
        "d-large": liar(tmp_path, "d-large", {"engine": ENGINE, "removed": [], "x": ["y" * 1000] * 30_000}),
        "e-deep": liar(tmp_path, "e-deep", {"engine": ENGINE}),
        "h1": honest,
    }
    (tmp_path / "e-deep.json").write_text('{"engine": ' + "[" * 100_000 + "]" * 100_000 + "}")
    inventory = tmp_path / "liars.json"
    inventory.write_text(json.dumps({"docker_hosts": {"hosts": hosts, "vars": {"cleanup_report_dir": str(folder), "cleanup_become": False}}}))
    run = Ansible(str(inventory), liars=True).play("clean", "--check", "--diff")
    assert run.code == 2, run.text
    assert hosts_of(folder) == ["a-facts", "h1"]
    assert not owned.exists()
    found = {record["host"]: record for record in json.loads((folder / "fleet.json").read_text())}
    assert sorted(found) == sorted(hosts)  # nobody added a host
    assert found["h1"]["status"] == "ok" and found["h1"]["clean"]["removed"]
    assert found["a-facts"]["engine"]["name"] == "x\ufffd[2J{{ 7 * 7 }}"
    for name, words in (
        ("b-odd", "unexpected answer (docker_disk_report.engine.root_dir: missing)"),
        ("c-types", "unexpected answer (engine: a text, where a mapping is documented)"),
        ("d-large", "unexpected answer (the whole: more than 19 MB)"),
        ("e-deep", "unexpected answer (the whole: lists or mappings without end)"),
    ):
        assert found[name]["status"] == "trouble" and found[name]["error"].startswith(words), found[name]["error"]
    assert "\x1b" not in run.text and "\nPLAY RECAP" not in run.text.partition("\nPLAY RECAP")[2]
    assert "docker_disk_report on a-facts: the answer has keys that the module does not document; they are dropped: removed, logs, ansible_facts" in " ".join(run.text.split())


def test_a_jobs_answer_comes_in_by_the_same_door(tmp_path: Path) -> None:
    answer = {"ansible_job_id": "j1.2", "results_file": "/x", "started": 1, "finished": 1, "changed": False, "engine": ENGINE, "ansible_facts": {"x": 1}, **ORDERS}
    inventory = tmp_path / "liars.json"
    inventory.write_text(json.dumps({"docker_hosts": {"hosts": {"job": liar(tmp_path, "job", answer)}}}))
    run = Ansible(str(inventory), liars=True).run(
        ["ansible", "-i", str(inventory), "all", "-m", "fleetclean.docker.docker_disk_report", "-B", "20", "-P", "1"], ANSIBLE_ASYNC_DIR=str(tmp_path)
    )
    (line,) = run.lines
    assert line["result"]["engine"]["root_dir"] == "/var/lib/docker"
    assert not {"ansible_facts", "add_host", "ansible_stats", "skipped", "invocation"} & set(line["result"])
    assert "\x1b" not in run.text
