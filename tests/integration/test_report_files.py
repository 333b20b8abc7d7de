# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What cleanup_report_dir keeps on the controller: the fleet's JSON and its page, however the hosts are taken in turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Dict, Iterator, List

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
