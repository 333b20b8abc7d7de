# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is documented is what is there: options, return values, the role's variables, the collection's own files."""

from __future__ import annotations

import ast
import importlib
import re
import typing as t

import pytest
import yaml
from ansible_collections.fleetclean.docker.plugins.doc_fragments.options import ModuleDocFragment
from ansible_collections.fleetclean.docker.plugins.module_utils import options, policy
from conftest import ROOT
from jinja2 import Environment

MODULES = {
    "docker_disk_report": options.report_spec,
    "docker_clean": options.clean_spec,
    "docker_log_truncate": options.truncate_spec,
}


def module(name: str) -> t.Any:
    return importlib.import_module(f"ansible_collections.fleetclean.docker.plugins.modules.{name}")


def documentation(name: str) -> dict[str, t.Any]:
    """The module's documentation with its fragments, as ansible-doc puts it together."""
    found = yaml.safe_load(module(name).DOCUMENTATION)
    for fragment in found["extends_documentation_fragment"]:
        part = fragment.split(".")[3].upper() if fragment.count(".") == 3 else "DOCUMENTATION"
        more = yaml.safe_load(getattr(ModuleDocFragment, part))
        found["options"] = {**more.get("options", {}), **found.get("options", {})}
    return found


def spec_of(name: str) -> dict[str, t.Any]:
    spec = {**options.shared_spec(), **MODULES[name]()}
    return {option: about for option, about in spec.items() if not option.startswith("_")}


def differences(documented: dict[str, t.Any], spec: dict[str, t.Any], where: str = "") -> t.Iterator[str]:
    for option in sorted(set(documented) | set(spec)):
        name = f"{where}{option}"
        if option not in spec or option not in documented:
            yield f"{name}: is only in the {'documentation' if option in documented else 'argument spec'}"
            continue
        said, real = documented[option], spec[option]
        for key in ("type", "default", "choices", "aliases", "elements", "required"):
            if said.get(key) != real.get(key) and (said.get(key) or real.get(key)) is not None:
                if not (said.get(key) in (None, False) and real.get(key) in (None, False)):
                    yield f"{name}.{key}: {said.get(key)!r} is documented, {real.get(key)!r} is real"
        if not said.get("description"):
            yield f"{name}: has no description"
        yield from differences(said.get("suboptions") or {}, real.get("options") or {}, f"{name}.")


# -- modules ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODULES)
def test_the_documented_options_are_the_real_ones(name: str) -> None:
    assert list(differences(documentation(name)["options"], spec_of(name))) == []


def test_a_difference_would_be_seen() -> None:
    documented = {"a": {"type": "str", "description": "x", "default": "1"}, "b": {"type": "str"}}
    real = {"a": {"type": "int", "default": 1}, "c": {"type": "str"}}
    assert len(list(differences(documented, real))) == 4


def test_a_users_defaults_are_those_of_the_policy() -> None:
    spec = options.clean_spec()
    for section, wish in (
        ("containers", policy.ContainerWish()),
        ("images", policy.ImageWish()),
        ("volumes", policy.VolumeWish()),
        ("networks", policy.NetworkWish()),
        ("build_cache", policy.CacheWish()),
    ):
        for option, about in spec[section]["options"].items():
            default = about.get("default")
            assert getattr(wish, option) == (tuple(default) if isinstance(default, list) else default), (
                section,
                option,
            )


@pytest.mark.parametrize("name", MODULES)
def test_documentation_examples_and_return_values_are_valid_yaml_of_this_module(name: str) -> None:
    found = documentation(name)
    assert found["module"] == name
    assert found["short_description"]
    assert found["version_added"]
    examples = yaml.safe_load(module(name).EXAMPLES)
    assert examples
    for task in examples:
        given = task[f"fleetclean.docker.{name}"] or {}
        assert set(given) <= set(spec_of(name)), task["name"]
        for option, value in given.items():
            if spec_of(name)[option].get("type") == "dict":
                assert set(value) <= set(spec_of(name)[option]["options"]), task["name"]


#: The files with a module's work, beside its documentation.
WORK = {"docker_disk_report": ("reporting", "report_parts"), "docker_clean": ("cleaning",), "docker_log_truncate": ("truncating",)}


def returned_keys(name: str) -> set[str]:
    """Every key that the module's code puts into its result, found in its syntax tree."""
    source = "\n".join((ROOT / f"plugins/module_utils/{work}.py").read_text().replace("from __future__ import annotations", "") for work in WORK[name])
    keys: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id == "result" and isinstance(node.slice, ast.Constant):
                keys.add(str(node.slice.value))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "update":
            if isinstance(node.func.value, ast.Name) and node.func.value.id == "result":
                keys |= {str(keyword.arg) for keyword in node.keywords}
    return keys


#: What Ansible itself documents for every module.
COMMON = {"changed", "diff", "msg", "warnings", "failed"}


@pytest.mark.parametrize("name", MODULES)
def test_every_key_that_is_returned_is_documented_and_the_other_way_round(name: str) -> None:
    documented = set(yaml.safe_load(module(name).RETURN))
    assert returned_keys(name) - COMMON - {"failure"} == documented - {"failure"}
    assert "failure" in documented


@pytest.mark.parametrize("name", MODULES)
def test_every_return_value_says_when_what_and_how_it_looks(name: str) -> None:
    for key, about in yaml.safe_load(module(name).RETURN).items():
        assert about.get("description"), key
        assert about.get("returned"), key
        assert about.get("type"), key
        assert "sample" in about, key


def named_keys(returned: object) -> t.Iterator[str]:
    """Every key of a mapping that a module returns: the documented ones, and those by name that its samples have."""
    if isinstance(returned, dict):
        for key, value in returned.items():
            yield str(key)
            yield from named_keys(value)
    elif isinstance(returned, list):
        for value in returned:
            yield from named_keys(value)


def documented_keys(about: dict[str, t.Any]) -> t.Iterator[str]:
    for key, inner in about.items():
        yield key
        yield from named_keys(inner.get("sample"))
        yield from documented_keys(inner.get("contains") or {})


@pytest.mark.parametrize("name", MODULES)
def test_every_return_value_can_be_read_with_a_dot_in_a_template(name: str) -> None:
    """Jinja asks a mapping for its methods first: ``result.items`` would be one."""
    keys = set(documented_keys(yaml.safe_load(module(name).RETURN)))
    assert len(keys) > 10
    environment = Environment(autoescape=True)
    assert [key for key in sorted(keys) if environment.getattr({key: "the value"}, key) != "the value"] == []


def test_a_key_that_a_template_cannot_read_would_be_seen() -> None:
    returned = {"largest": {"sample": {"logs": [{"pop": 1}]}, "contains": {"keys": {"contains": {"copy": {}}}}}}
    assert {"pop", "keys", "copy"} <= set(documented_keys(returned))
    assert Environment(autoescape=True).getattr({"pop": "the value"}, "pop") != "the value"


def test_every_kind_of_failure_is_documented() -> None:
    said = yaml.safe_load(module("docker_disk_report").RETURN)["failure"]["description"]
    said += yaml.safe_load(module("docker_log_truncate").RETURN)["failure"]["description"]
    codes = set()
    for path in [*(ROOT / "plugins/module_utils").glob("*.py"), *(ROOT / "plugins/modules").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "FleetcleanError" and len(node.args) > 1:
                if isinstance(node.args[1], ast.Constant):
                    codes.add(node.args[1].value)
    assert len(codes) > 6
    assert {code for code in codes if f"V({code})" not in said} == set()


def test_a_cut_and_a_removal_return_what_is_documented_for_their_entries() -> None:
    from ansible_collections.fleetclean.docker.plugins.module_utils import cleaning, log_cuts
    from ansible_collections.fleetclean.docker.plugins.modules import docker_clean

    entry = cleaning._entry(policy.Step("image", "i", "a:1", 5, "why"))
    assert set(entry) == set(yaml.safe_load(docker_clean.RETURN)["removed"]["contains"])
    documented = set(yaml.safe_load(module("docker_log_truncate").RETURN)["logs"]["contains"])
    inner = {"failed", "disk_full"}
    assert set(log_cuts.Cut._fields) - inner == documented


# -- the role --------------------------------------------------------------------------------------

SPECS = yaml.safe_load((ROOT / "roles/cleanup/meta/argument_specs.yml").read_text())["argument_specs"]
VARIABLES = SPECS["main"]["options"]
DEFAULTS = yaml.safe_load((ROOT / "roles/cleanup/defaults/main.yml").read_text())
PROFILES = yaml.safe_load((ROOT / "roles/cleanup/vars/main.yml").read_text())["_cleanup_profiles"]


def test_every_default_of_the_role_is_a_documented_variable() -> None:
    assert set(DEFAULTS) - set(VARIABLES) == set()
    assert all(
        name.startswith("cleanup_") and about.get("description") and about.get("type")
        for name, about in VARIABLES.items()
    )


def test_the_roles_documented_defaults_are_the_real_ones() -> None:
    for name, about in VARIABLES.items():
        real = DEFAULTS.get(name)
        if isinstance(real, str) and real.startswith("{{"):
            assert "default" not in about, f"{name} takes its default from the profile"
        elif name in DEFAULTS:
            assert about.get("default") == real, name
        else:
            # Those of the playbooks, and those whose default is the module's own.
            assert "default" not in about or name in ("cleanup_become",), name


def test_every_entry_point_of_the_role_is_specified() -> None:
    assert set(SPECS) == {"main", "report", "truncate_logs"}
    for entry in SPECS:
        assert (ROOT / f"roles/cleanup/tasks/{entry}.yml").is_file()
        assert SPECS[entry]["options"] == VARIABLES


def test_every_profile_has_a_value_for_every_wish_that_comes_from_it() -> None:
    taken = set(re.findall(r"_cleanup_chosen\.(\w+)", (ROOT / "roles/cleanup/defaults/main.yml").read_text()))
    assert taken
    for name, profile in PROFILES.items():
        assert set(profile) == taken, name
    assert set(PROFILES) == set(VARIABLES["cleanup_profile"]["choices"])


def test_the_profiles_wishes_can_be_read() -> None:
    for name, profile in PROFILES.items():
        given: dict[str, t.Any] = {}
        for section in ("containers", "images", "volumes", "networks", "build_cache"):
            values = {key[len(section) + 1 :]: value for key, value in profile.items() if key.startswith(f"{section}_")}
            defaults = {
                option: about.get("default") for option, about in options.clean_spec()[section]["options"].items()
            }
            given[section] = {**defaults, **values}
            assert set(values) <= set(defaults), (name, section)
        wishes, _marks = options.read_clean(
            {**given, "keep_labels": [], "orchestrated": profile["orchestrated"], "parallel": 4}
        )
        assert wishes.images is not None
        running = {"running", "paused", "restarting"} & set(profile["containers_states"])
        assert bool(running) == (name == "full")


def clean_options() -> dict[str, t.Any]:
    """docker_clean's, but what the role fills in by itself."""
    return {option: about for option, about in options.clean_spec().items() if option != "assume_reclaimed"}


def test_every_option_of_the_modules_has_a_variable_of_the_role() -> None:
    wanted = {f"cleanup_{option}" for option in options.shared_spec() if not option.startswith("_")}
    for option, about in clean_options().items():
        wanted.add(f"cleanup_{option}")
        wanted |= {f"cleanup_{option}_{inner}" for inner in about.get("options", {})}
    wanted |= {f"cleanup_logs_{option}" for option in options.truncate_spec() if option != "keep_labels"}
    assert wanted - set(VARIABLES) == set()


def test_choices_of_the_role_are_those_of_the_modules() -> None:
    for option, about in clean_options().items():
        for inner, real in about.get("options", {}).items():
            said = VARIABLES[f"cleanup_{option}_{inner}"]
            assert (said.get("choices"), said["type"], said.get("elements")) == (
                real.get("choices"),
                real["type"],
                real.get("elements"),
            ), inner


# -- the collection --------------------------------------------------------------------------------


def test_the_action_group_names_every_module_and_each_has_its_action_plugin() -> None:
    runtime = yaml.safe_load((ROOT / "meta/runtime.yml").read_text())
    there = {path.stem for path in (ROOT / "plugins/modules").glob("*.py")} - {"__init__"}
    assert set(runtime["action_groups"]["docker"]) == there == set(MODULES)
    # The role's preflight runs on the controller alone and has no module.
    controllers = {"cleanup_preflight", "cleanup_table", "cleanup_turn", "cleanup_verdict"}
    assert there | controllers == {path.stem for path in (ROOT / "plugins/action").glob("*.py")} - {"__init__"}
    assert runtime["requires_ansible"] == ">=2.17.0"


def test_galaxy_yml_describes_this_collection() -> None:
    galaxy = yaml.safe_load((ROOT / "galaxy.yml").read_text())
    assert (galaxy["namespace"], galaxy["name"]) == ("fleetclean", "docker")
    assert re.fullmatch(r"\d+\.\d+\.\d+", galaxy["version"])
    assert (ROOT / galaxy["license_file"]).is_file()
    for name in MODULES:
        assert documentation(name)["version_added"] <= galaxy["version"]


@pytest.mark.parametrize("name", ["clean", "report", "truncate_logs"])
def test_each_playbook_calls_the_role_on_the_docker_hosts(name: str) -> None:
    (play,) = yaml.safe_load((ROOT / f"playbooks/{name}.yml").read_text())
    assert "docker_hosts" in play["hosts"]
    assert "cleanup_hosts" in play["hosts"]
    assert play["gather_facts"] is False
    (task,) = play["tasks"]
    role = task["ansible.builtin.import_role"]
    assert role["name"] == "fleetclean.docker.cleanup"
    assert (ROOT / f"roles/cleanup/tasks/{role.get('tasks_from', 'main')}.yml").is_file()


def test_every_python_file_of_the_collection_has_its_licence() -> None:
    for path in [*(ROOT / "plugins").rglob("*.py"), *(ROOT / "tests/unit").rglob("*.py")]:
        head = path.read_text()[:400]
        assert "SPDX-License-Identifier: GPL-3.0-or-later" in head, path
        assert "from __future__ import annotations" in path.read_text() or path.name == "__init__.py", path


@pytest.mark.parametrize("document", ["tests/TRAPS.md", "docs/SECURITY.md"])
def test_every_test_that_a_document_names_is_there(document: str) -> None:
    text = (ROOT / document).read_text()
    path, found = "", 0
    for given, name in re.findall(r"`?(tests/[\w/]+\.py)?(?:::(test_\w+))?", text):
        path = given or path
        if given:
            assert (ROOT / given).is_file(), given
        if name:
            found += 1
            assert re.search(rf"^ *(def {name}\(|{name} = )", (ROOT / path).read_text(), re.MULTILINE), f"{path}::{name}"
    assert found > 50
