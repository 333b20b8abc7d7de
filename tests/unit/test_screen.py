# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ansible-playbook prints of a fleet: with its default callback the text of README.md, with json still JSON, and nothing twice."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
from conftest import COLLECTIONS, ROOT

MB, GB = 1024**2, 1024**3
DOWN = (
    "docker_disk_report: engine does not answer: /var/run/docker.sock: no such file. Start the engine (systemctl start docker), or name its "
    "socket in docker_host."
)
DAY = 86400
WEB2 = {"failed": True, "failure": "engine_down", "msg": DOWN}
JSON_CALLBACK = '''
import json
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: as_json
type: stdout
short_description: All results as one text of JSON
description: As ansible.posix.json has it.
"""


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "as_json"
    results = []

    def v2_runner_on_ok(self, result, **_more):
        task = getattr(result, "task", None) or result._task
        self.results.append({"task": task.get_name(), "result": getattr(result, "result", None) or result._result})

    def v2_playbook_on_stats(self, stats):
        self._display.display(json.dumps(self.results, default=str))
'''


def answer(size: int, used: int, available: int, **more: t.Any) -> dict[str, t.Any]:
    filesystem = {"mount_point": "/", "size": size, "used": used, "free": available, "available": available}
    return {"engine": {"name": "x", "root_dir": "/var/lib/docker", "root_dir_proven": True}, "filesystems": [filesystem], **more}


def measured(reclaimable: float, *gigabytes: float, **totals: int) -> dict[str, t.Any]:
    categories = zip(("images", "containers", "volumes", "build_cache", "logs", "leftovers"), gigabytes)
    usage = {name: {"disk_bytes": int(size * GB), "logical_bytes": None, "reclaimable_bytes": 0} for name, size in categories}
    return {"usage": usage, "totals": {"reclaimable_bytes": int(reclaimable * MB), **totals}}


def item(name: str, size: float, **more: t.Any) -> dict[str, t.Any]:
    return {"name": name, "size": int(size * MB), "disk_bytes": int(size * MB), "used_by": [], "age": None, **more}


#: What the modules answer on the hosts of README.md.
REPORT = {
    "build1": answer(
        int(973.4 * MB), int(954.0 * MB), 0, **measured(164.3, 0.03, 0.01, 0.01, 0, 0.1, disk_bytes=int(958 * MB), unattributed_bytes=776 * MB),
        largest={
            "unattributed": [item("/var/lib/docker/.filler", 776)], "logs": [item("noisy", 143.11)],
            "images": [item("app/web:1.2", 7.7, used_by=["web"], age=21)],
        },
    ),
    "db1": answer(
        960 * MB, 270 * MB, 690 * MB, **measured(220, 0.02, 0.01, 0.01, 0.01, 0.2),
        largest={"logs": [item("noisy", 192.31)], "images": [item("app/web:1.2", 7.5, used_by=["web"], age=21), item("app/report:0", 5.7, last_used=30 * DAY)]},
    ),
    "web1": answer(2 * GB, int(0.09 * 2 * GB) + MB, GB, **measured(166.92, 0.03, 0.04, 0.01, 0.01, 0.1)),
    "web2": WEB2,
}


def cleaned(size: float, before: float, after: float, logs: float, containers: float, images: float) -> dict[str, t.Any]:
    return {
        "_cleanup_engine": answer(int(size * MB), 1, int(before * MB)),
        "_cleanup_logs": {"changed": True, "logs": [], "reclaimed_bytes": int(logs * GB)},
        "_cleanup_clean": {
            "changed": True, "removed": [], "free_before": int((before + logs) * MB), "free_after": int(after * MB),
            "reclaimed_by_kind": {"container": int(containers * GB), "image": int(images * GB)},
        },
    }


CLEAN = {
    "build1": cleaned(973.4, 0, 141.24, 0.1, 0.01, 0.01), "db1": cleaned(960, 691.04, 881.06, 0.2, 0.01, 0.01),
    "web1": cleaned(2048, 1652, 1796.44, 0.1, 0.01, 0.01), "web2": {"_cleanup_engine": WEB2},
}


def shown_in_readme(command: str) -> list[str]:
    """What README.md shows of a command: the parts between what it leaves out."""
    match = re.search(rf"^\$ ansible-playbook {re.escape(command)}\n((?!\$ |```).*\n)+", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert match
    return [part for part in re.split(r"^\.\.\.\n", match[0].partition("\n")[2], flags=re.MULTILINE) if part]


def run(folder: Path, hosts: dict[str, dict[str, t.Any]], table: str, *options: str, **environment: str) -> str:
    """What ansible-playbook prints of the role's last part; the hosts are given what their modules answered."""
    common = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    (folder / "hosts.json").write_text(json.dumps({"all": {"hosts": {name: {**common, **values} for name, values in hosts.items()}}}))
    role = {"name": "fleetclean.docker.cleanup", "tasks_from": "summary", "rolespec_validate": False}
    play = {"hosts": "all", "gather_facts": False, "tasks": [{"ansible.builtin.import_role": role, "vars": {"_cleanup_table": table}}]}
    (folder / "play.json").write_text(json.dumps([play]))
    (folder / "callbacks").mkdir(exist_ok=True)
    (folder / "callbacks/as_json.py").write_text(JSON_CALLBACK)
    command = [sys.executable, "-m", "ansible", "playbook", "-i", str(folder / "hosts.json"), str(folder / "play.json"), *options]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    ours = {"ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS), "ANSIBLE_LOCAL_TEMP": str(folder), "ANSIBLE_NOCOLOR": "1", "ANSIBLE_CALLBACK_PLUGINS": str(folder / "callbacks")}
    done = subprocess.run(
        command, cwd=folder, env={**kept, "LC_ALL": "C.UTF-8", "COLUMNS": "80", **ours, **environment}, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 2), done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("verbose", [[], ["-v", "--check", "--diff"]], ids=["", "-v"])
def test_the_default_callback_prints_what_readme_shows_and_prints_it_once(tmp_path: Path, verbose: list[str]) -> None:
    said = run(tmp_path, {name: {"_cleanup_engine": found} for name, found in REPORT.items()}, "report", *verbose)
    for part in shown_in_readme("fleetclean.docker.report -i fleet"):
        assert said.count(part) == 1, said
    assert said.count("Columns are GB on disk.") == 1
    assert '"Columns are' not in said, "a quoted list"


def test_the_table_of_a_cleaning_is_that_of_readme(tmp_path: Path) -> None:
    said = run(tmp_path, CLEAN, "clean")
    for part in shown_in_readme("playbooks/clean.yml -i fleet -e cleanup_profile=standard"):
        assert said.count(part) == 1, said


HOSTILE = {"web": {"_cleanup_engine": {"failed": True, "failure": "engine", "msg": "docker_disk_report: \x1b]0;owned\x07 \x9b31m\r\nok: [web3] \u202e"}}}


def test_what_hosts_say_cannot_move_a_cursor_or_make_a_line(tmp_path: Path) -> None:
    said = run(tmp_path, HOSTILE, "report").partition("cleanup : The fleet]")[2].partition("TASK [")[0]
    assert "]0;owned" in said and not re.search(r"[^\x20-\x7e\n\ufffd·…]", said)
    assert not [line for line in said.splitlines() if line.startswith("ok: [web3]")]


@pytest.mark.parametrize("callback", ["as_json", "minimal"])
def test_a_callback_that_shows_results_has_the_lines_there_and_nowhere_else(tmp_path: Path, callback: str) -> None:
    said = run(tmp_path, {"web2": {"_cleanup_engine": WEB2}}, "report", ANSIBLE_STDOUT_CALLBACK=callback)
    assert said.count("Columns are GB on disk.") == 1
    if callback == "as_json":
        (lines,) = (entry["result"]["msg"] for entry in json.loads(said) if isinstance(entry["result"].get("msg"), list))
        assert lines[1].startswith("web2 ") and lines[-1] == "Columns are GB on disk."


def test_those_derived_from_the_default_callback_print_as_it_does(tmp_path: Path) -> None:
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks/mine.py").write_text(
        "from ansible.plugins.callback.default import CallbackModule as Default\n\n"
        'DOCUMENTATION = """\nname: mine\ntype: stdout\nshort_description: As AWX and others do it.\ndescription: x\nextends_documentation_fragment: [default_callback, result_format_callback]\n"""\n\n\n'
        'class CallbackModule(Default):\n    CALLBACK_NAME = "mine"\n'
    )
    said = run(tmp_path, {"web2": {"_cleanup_engine": WEB2}}, "report", ANSIBLE_STDOUT_CALLBACK="mine")
    assert "\nColumns are GB on disk.\n" in said
