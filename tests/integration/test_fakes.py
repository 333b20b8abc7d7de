# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docker_disk_report on FAKE engines (fakes.py): aufs, which no kernel at hand has, Docker 1.9, and balenaEngine.

What each tree has is added up by du; the module has to come to the same, byte for byte.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest

from tests.integration.fakes import FAKES, KB, FakeEngine, du
from tests.integration.support import Ansible

OLD_API = [name for name in FAKES if name.endswith("docker-1.9")]


class Fakes:
    """All FAKE engines at once, each a host of this machine, and what the module said of each."""

    def __init__(self, folder: Path) -> None:
        self.engines: Dict[str, FakeEngine] = {}
        hosts: Dict[str, Dict[str, str]] = {}
        for name, (make, root) in FAKES.items():
            engine = self.engines[name] = make(folder / f"{len(hosts)}.sock", folder / name / root)
            engine.start()
            hosts[name] = {"engine_socket": engine.address, "state": str(folder / name / "state")}
        inventory = folder / "inventory.json"
        local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        inventory.write_text(json.dumps({"fakes": {"hosts": hosts, "vars": local}}))
        self._ansible = Ansible(str(inventory))
        self._results: Dict[str, Dict[str, Dict[str, Any]]] = {}
        for kind, measure, check in (("exact", "exact", False), ("fast", "fast", False), ("check", "exact", True)):
            for engine in self.engines.values():
                engine.asked.clear()
            self._results[kind] = self._ansible.module(
                "docker_disk_report", {"docker_host": "{{ engine_socket }}", "state_dir": "{{ state }}", "measure": measure, "top": -1, "gentle": False}, check=check
            )

    def said(self, name: str, kind: str = "exact") -> Dict[str, Any]:
        result = self._results[kind][name]
        assert not result["failed"], result["msg"]
        return result

    def stop(self) -> None:
        for engine in self.engines.values():
            engine.stop()


@pytest.fixture(scope="module")
def fakes() -> Iterator[Fakes]:
    # A unix socket's path has to be short.
    folder = Path(tempfile.mkdtemp(prefix="fc-fakes-", dir="/var/tmp"))
    all_of_them = None
    try:
        all_of_them = Fakes(folder)
        yield all_of_them
    finally:
        if all_of_them:
            all_of_them.stop()
        shutil.rmtree(folder)


@pytest.fixture(params=list(FAKES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def items(result: Dict[str, Any], category: str) -> Dict[str, Dict[str, Any]]:
    return {item["name"]: item for item in result["largest"][category]}


def test_every_byte_of_a_fakes_data_root_has_an_owner(fakes: Fakes, name: str) -> None:
    result, root = fakes.said(name), fakes.engines[name].tree.root
    assert result["engine"]["root_dir"] == str(root) and result["engine"]["root_dir_proven"], result["engine"]
    assert result["totals"]["disk_bytes"] == du(root)
    assert result["totals"]["attributed_bytes"] + result["totals"]["unattributed_bytes"] == du(root)
    assert [place["path"] for place in result["roots"]] == [str(root)]
    assert result["unread"]["count"] == 0 and not result.get("warnings")


def test_each_category_of_a_fake_has_what_was_laid_out_for_it(fakes: Fakes, name: str) -> None:
    found = {category: figures["disk_bytes"] for category, figures in fakes.said(name)["usage"].items()}
    expected = {category: 0 for category in found}
    expected.update(fakes.engines[name].tree.expected())
    assert found == expected


def test_what_nobody_owns_on_a_fake_is_named_with_its_reason(fakes: Fakes, name: str) -> None:
    found = {item["path"]: item["reason"] for item in fakes.said(name)["largest"]["leftovers"]}
    expected = fakes.engines[name].tree.leftovers
    assert set(found) == set(expected)
    assert [path for path, reason in found.items() if expected[path] not in reason] == []


def test_an_administrators_file_in_a_fakes_data_root_is_nobodys_that_is_known(fakes: Fakes, name: str) -> None:
    root = fakes.engines[name].tree.root
    assert [item["name"] for item in fakes.said(name)["largest"]["unattributed"] if item["disk_bytes"]] == [f"{root}/backup-before-upgrade.tar"]


@pytest.mark.parametrize("kind", ["exact", "fast"])
def test_a_fakes_images_are_as_large_as_its_layer_store_says(fakes: Fakes, name: str, kind: str) -> None:
    engine, result = fakes.engines[name], fakes.said(name, kind)
    # Of Docker 1.9 these are the figures in graph/<id>/layersize.
    assert result["usage"]["images"]["logical_bytes"] == sum(engine.layer_bytes.values())
    web = next(item for item in result["largest"]["images"] if "app/web:1" in item["tags"])
    assert web["logical_bytes"] == 420 * KB, "all its layers, as a person counts"
    assert web["active"] and web["used_by"] == ["web"]
    assert web["layers"] == 2
    assert sorted(item["dangling"] for item in result["largest"]["images"]).count(True) == 1


@pytest.mark.parametrize("kind", ["exact", "fast"])
def test_a_fakes_containers_and_logs_have_their_figures(fakes: Fakes, name: str, kind: str) -> None:
    result, engine = fakes.said(name, kind), fakes.engines[name]
    containers = items(result, "containers")
    assert {each: containers[each]["logical_bytes"] for each in containers} == {"web": 30 * KB, "done": 10 * KB}
    assert (containers["web"]["state"], containers["done"]["state"]) == ("running", "exited")
    assert result["usage"]["logs"]["logical_bytes"] == (engine.log_bytes or None)
    assert result["usage"]["logs"]["disk_bytes"] == engine.tree.expected().get("logs", 0)


def test_a_fakes_volumes_are_known_and_who_uses_them(fakes: Fakes, name: str) -> None:
    volumes = items(fakes.said(name), "volumes")
    assert {each: volumes[each]["used_by"] for each in volumes if len(each) < 64} == {"data": ["web"], "unused": []}
    assert [volumes[each]["used_by"] for each in volumes if volumes[each]["anonymous"]] == [["web"]]
    assert volumes["data"]["disk_bytes"] == du(fakes.engines[name].tree.root / "volumes/data")


def test_fast_on_a_fake_measures_what_nobody_has_a_figure_for(fakes: Fakes, name: str) -> None:
    exact, fast = fakes.said(name), fakes.said(name, "fast")
    for category in ("logs", "container_metadata", "tmp", "leftovers"):
        assert fast["usage"][category]["disk_bytes"] == exact["usage"][category]["disk_bytes"], category
    assert fast["totals"]["disk_bytes"] is None
    images = fast["usage"]["images"]["disk_bytes"]
    if fast["measured"]["remembered_layers"]:
        assert images == exact["usage"]["images"]["disk_bytes"], "as the run before measured it"
    elif fast["paths"]["layers"][0].endswith("devicemapper/devicemapper"):
        assert images >= du(fast["paths"]["layers"][0] + "/data"), "one file has them all"
    else:
        assert images is None
    # The same could be had by both: the engine's figures stand for those that were not measured.
    assert fast["totals"]["reclaimable_bytes"] > fast["usage"]["leftovers"]["reclaimable_bytes"] > 0


@pytest.mark.parametrize("name", OLD_API)
def test_an_engine_without_system_df_is_not_asked_for_it(fakes: Fakes, name: str) -> None:
    assert "/system/df" not in fakes.engines[name].asked and "/containers/json" in fakes.engines[name].asked
    assert fakes.said(name)["engine"]["api_version"] == "1.21"


def test_check_mode_gives_the_same_answer_on_a_fake(fakes: Fakes, name: str) -> None:
    first, second = fakes.said(name), fakes.said(name, "check")
    for key in ("engine", "paths", "usage", "totals", "roots", "unread"):
        assert first[key] == second[key], key
    assert not second["changed"]

    def told(result: Dict[str, Any]) -> Dict[str, List[Dict[str, Any]]]:
        return {category: [{**item, "age": None, "last_used": None} for item in found] for category, found in result["largest"].items()}

    assert told(first) == told(second)


def test_a_devicemapper_pool_counts_once_and_by_its_blocks(fakes: Fakes) -> None:
    result = fakes.said("fake-devicemapper-docker-1.9")
    pool = fakes.engines["fake-devicemapper-docker-1.9"].tree.root / "devicemapper/devicemapper"
    assert du(pool / "data") < 10**6 < 100 << 30 == (pool / "data").stat().st_size
    usage = result["usage"]["images"]
    assert du(pool / "data") < usage["disk_bytes"] < 2 * 10**6
    # "Data Space Used" is what the thin pool says: the same bytes, seen from inside.
    assert result["engine"]["driver_status"]["Data Space Used"] == "3.369 GB"
    assert result["paths"]["layers"][0] == str(pool)


@pytest.mark.parametrize(("name", "version", "logging"), [("fake-aufs-balena-os", "19.03.18", "journald"), ("fake-overlay2-balena-engine", "v17.12.0", "json-file")])
def test_a_balena_engine_is_known_by_its_own_answer(fakes: Fakes, name: str, version: str, logging: str) -> None:
    engine = fakes.said(name)["engine"]
    assert (engine["version"], engine["logging_driver"], engine["swarm"]) == (version, logging, "inactive")
    assert engine["image_store"] == "graphdriver" and not engine["rootless"]
