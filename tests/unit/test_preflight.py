# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role's variables become the options of its modules; what it costs the controller is seen by what is templated."""

from __future__ import annotations

import typing as t

import pytest
import yaml
from ansible.errors import AnsibleError
from ansible_collections.fleetclean.docker.plugins.action import cleanup_preflight
from ansible_collections.fleetclean.docker.plugins.module_utils import options
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import FleetcleanError
from ansible_collections.fleetclean.docker.plugins.plugin_utils import preflight
from conftest import ROOT

ROLE = ROOT / "roles/cleanup"
DEFAULTS = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
PROFILES = yaml.safe_load((ROLE / "vars/main.yml").read_text())["_cleanup_profiles"]
OMITTED = "__omit_place_holder__1"


class Templates:
    """Ansible's templating, as far as a dictionary says what texts become. ``seen``: what had to be templated."""

    def __init__(self, **known: t.Any) -> None:
        self.known = known
        self.seen: list[t.Any] = []

    def __call__(self, values: dict[str, t.Any]) -> dict[str, t.Any]:
        # As ansible-core does it since 2.19.
        return {name: self._one(value) for name, value in values.items() if value != "{{ omit }}"}

    def _one(self, value: t.Any) -> t.Any:
        if not isinstance(value, str) or not value.startswith("{{"):
            return value
        self.seen.append(value)
        name = value.strip("{} ")
        if name not in self.known:
            raise AnsibleError(f"{name!r} is undefined")
        return self.known[name]


def check(templates: Templates | None = None, is_report: bool = False, **variables: t.Any) -> dict[str, dict[str, t.Any]]:
    every = {**DEFAULTS, "_cleanup_profiles": PROFILES, "omit": OMITTED, "inventory_hostname": "web1", **variables}
    return preflight.check(every, templates or Templates(), is_report)


def refusal(is_report: bool = False, **variables: t.Any) -> str:
    with pytest.raises(FleetcleanError) as caught:
        check(is_report=is_report, **variables)
    return str(caught.value)


@pytest.mark.parametrize("profile", PROFILES)
def test_the_defaults_are_the_profiles_and_nothing_is_templated(profile: str) -> None:
    templates = Templates()
    found = check(templates, cleanup_profile=profile, cleanup_full_confirmed=True)
    assert templates.seen == []
    wanted = PROFILES[profile]
    assert found["clean"]["images"] == {
        "scope": wanted["images_scope"], "older_than": wanted["images_older_than"], "dangling_older_than": wanted["images_dangling_older_than"],
        "keep": [], "keep_latest": 0, "keep_local": wanted["images_keep_local"],
    }
    assert ("volumes" in found["clean"]) == wanted["volumes"]
    assert found["clean"]["orchestrated"] == wanted["orchestrated"]
    assert found["logs"] == {
        "containers": ["*"], "keep_labels": ["fleetclean.keep"], "larger_than": wanted["logs_larger_than"], "keep": wanted["logs_keep"],
        "rotated": wanted["logs_rotated"], "deleted": True, "stale_readers": wanted["logs_stale_readers"], "restart": "never", "live_restore": "keep",
    }
    assert found["report"] == {"include": ["filesystem"], "measure": "fast", "top": 3}


def test_every_value_is_an_option_of_its_module() -> None:
    every = {f"cleanup_{name}": "1" for name in ("docker_host", "api_version", "timeout", "tls", "validate_certs", "tls_hostname", "ca_path", "client_cert", "client_key", "state_dir")}
    found = check(**every, cleanup_free_target="20%", cleanup_build_cache_keep_storage="1GB", cleanup_volumes=True)
    known = set(options.shared_spec())
    assert set(found["report"]) <= known | set(options.report_spec())
    assert set(found["logs"]) <= known | set(options.truncate_spec())
    assert set(found["clean"]) <= known | set(options.clean_spec())
    for section in options.SECTIONS:
        assert set(found["clean"].get(section, {})) <= set(options.clean_spec()[section]["options"])
    assert found["clean"]["free_target"] == "20%" and found["clean"]["build_cache"]["keep_storage"] == "1GB"
    for module in found.values():
        assert {name: module[name] for name in ("docker_host", "timeout", "ca_path")} == {"docker_host": "1", "timeout": "1", "ca_path": "1"}


def test_a_users_own_values_are_templated_and_win() -> None:
    templates = Templates(site_age="3d", site_keep=["app", "db"])
    found = check(templates, cleanup_images_older_than="{{ site_age }}", cleanup_images_keep="{{ site_keep }}", cleanup_networks="no", cleanup_containers_states="created, exited")
    assert sorted(templates.seen) == ["{{ site_age }}", "{{ site_keep }}"]
    assert found["clean"]["images"]["older_than"] == "3d" and found["clean"]["images"]["keep"] == ["app", "db"]
    assert "networks" not in found["clean"]
    assert found["clean"]["containers"]["states"] == "created, exited"  # the module reads the texts of surveys


def test_the_profile_may_be_a_template() -> None:
    assert check(Templates(stage="standard"), cleanup_profile="{{ stage }}")["clean"]["images"]["older_than"] == "1d"


@pytest.mark.parametrize("value", [None, OMITTED])
def test_what_has_no_default_here_may_be_left_out(value: t.Any) -> None:
    found = check(cleanup_timeout=value, cleanup_docker_host=value)
    assert not {"timeout", "docker_host"} & {option for module in found.values() for option in module}


@pytest.mark.parametrize("profile", PROFILES)
def test_what_is_left_out_has_the_roles_default_and_never_the_modules(profile: str) -> None:
    """The module's is any age, and containers that are not ours."""
    chosen = {"cleanup_profile": profile, "cleanup_full_confirmed": True}
    wanted = check(**chosen)
    for name in DEFAULTS:
        if name not in chosen:
            assert check(**chosen, **{name: OMITTED}) == wanted, name
            assert check(Templates(), **chosen, **{name: "{{ omit }}"}) == wanted, f"{name}, since 2.19"


@pytest.mark.parametrize("name", sorted(DEFAULTS))
@pytest.mark.parametrize("omit", [{}, {"omit": OMITTED}], ids=["since 2.19", "before"])
def test_an_empty_line_is_no_value_for_what_has_a_default(name: str, omit: dict[str, str]) -> None:
    with pytest.raises(FleetcleanError, match=f"^{name}: has no value; give one, such as "):
        preflight.check({**DEFAULTS, "_cleanup_profiles": PROFILES, **omit, name: None}, Templates(), False)


def test_a_profile_that_changes_is_one_of_them() -> None:
    """Else one's wishes went with the other's confirmation."""
    names = iter(("careful", "full"))

    class Random(Templates):
        def _one(self, value: t.Any) -> t.Any:
            return next(names) if value == "{{ random }}" else super()._one(value)

    assert check(Random(), cleanup_profile="{{ random }}") == check(cleanup_profile="careful")


def test_whatever_a_template_raises_names_its_variable() -> None:
    class Divides(Templates):
        def _one(self, value: t.Any) -> t.Any:
            return 1 / 0 if value == "{{ 1 / 0 }}" else super()._one(value)

    with pytest.raises(FleetcleanError, match="^cleanup_timeout: division by zero"):
        check(Divides(), cleanup_timeout="{{ 1 / 0 }}")


@pytest.mark.parametrize(
    ("name", "takes"),
    [("images_keep", "repository:tag, "), ("volumes_drivers", "names of volume drivers"), ("keep_labels", "key or key=value"), ("logs_containers", "names or IDs of containers")],
)
def test_a_list_that_is_refused_says_what_it_takes(name: str, takes: str) -> None:
    words = refusal(**{f"cleanup_{name}": ["a", ""]})
    assert words.startswith(f"cleanup_{name}: an entry is empty. Use {takes}")


def test_a_selection_is_passed_on_as_it_is_and_left_out_where_nobody_has_one() -> None:
    images = check(cleanup_images_only="app/*, b", cleanup_images_only_labels=[])["clean"]["images"]
    assert (images["only"], images["only_labels"]) == ("app/*, b", []), "an empty one is one: it selects nothing"
    assert not {"only", "only_labels"}.intersection(check()["clean"]["images"])


def test_an_empty_state_dir_is_a_value() -> None:
    assert check(cleanup_state_dir="")["clean"]["state_dir"] == ""


def test_what_is_off_has_no_options() -> None:
    assert check(cleanup_logs="false")["logs"] == {}
    off = {f"cleanup_{section}": False for section in ("containers", "images", "volumes", "networks", "build_cache")}
    found = check(**off, cleanup_docker_host="tcp://engine:2375")
    assert found["clean"] == {} and found["logs"] and found["report"]


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"cleanup_profile": "thorough"}, "value of cleanup_profile must be one of: careful, standard, full, got: thorough"),
        ({"cleanup_images": "perhaps"}, "cleanup_images"),
        ({"cleanup_timeout": "{{ nope }}"}, "cleanup_timeout: 'nope' is undefined"),
        ({"cleanup_profile": "{{ nope }}"}, "cleanup_profile: 'nope' is undefined"),
        ({"cleanup_image_keep": ["app"]}, "cleanup_image_keep: there is no such variable; did you mean cleanup_images_keep?"),
        ({"cleanup_images_older_than": "3 fortnights"}, 'cleanup_images_older_than: "3 fortnights" is not a duration'),
        ({"cleanup_images_older_than": None}, "cleanup_images_older_than: has no value"),
        ({"cleanup_images_only": None}, "cleanup_images_only: has no value; leave it out if all are meant. Use repository:tag, "),
        ({"cleanup_volumes": True, "cleanup_volumes_only": ["db:1"]}, 'cleanup_volumes_only: "db:1" cannot match any volume of the driver local'),
        ({"cleanup_networks_only_labels": ["a b"]}, 'cleanup_networks_only_labels: "a b" cannot match any label'),
        ({"cleanup_image_only": ["app"]}, "cleanup_image_only: there is no such variable; did you mean cleanup_images_only?"),
        ({"cleanup_logs_keep": "some"}, 'cleanup_logs_keep: "some" is not a size'),
        ({"cleanup_leftovers": True}, "cleanup_leftovers: not there yet"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_its_name(variables: dict[str, t.Any], words: str) -> None:
    assert words in refusal(**variables)
    assert words in refusal(is_report=True, **variables)


def test_the_full_profile_has_to_be_confirmed_where_it_changes_something() -> None:
    assert "set cleanup_full_confirmed: true" in refusal(cleanup_profile="full")
    assert check(is_report=True, cleanup_profile="full")["report"]["measure"] == "exact"
    assert check(cleanup_profile="full", cleanup_full_confirmed="yes")["clean"]["volumes"]["scope"] == "unused"


def test_the_report_looks_at_everything() -> None:
    report = check(is_report=True, cleanup_report_measure="fast", cleanup_report_top=7)["report"]
    assert report == {"include": [*options.INCLUDES], "measure": "fast", "top": 7}


def test_what_comes_out_is_plain() -> None:
    class Marked(str):
        """As Ansible marks texts."""

    found = check(cleanup_images_keep=(Marked("app"),), cleanup_docker_host=Marked("tcp://a:1"))
    assert type(found["clean"]["images"]["keep"][0]) is str and type(found["report"]["docker_host"]) is str


# -- what a run costs ------------------------------------------------------------------------------


def tasks_of(name: str) -> t.Iterator[dict[str, t.Any]]:
    for task in yaml.safe_load((ROLE / f"tasks/{name}.yml").read_text()):
        if "ansible.builtin.import_tasks" in task:
            yield from tasks_of(task["ansible.builtin.import_tasks"].removesuffix(".yml"))
        else:
            yield task


@pytest.mark.parametrize("entry", ["main", "report", "truncate_logs"])
def test_a_run_asks_a_host_four_times_at_most_and_makes_no_detours(entry: str) -> None:
    found = list(tasks_of(entry))
    for_each_host = [task for task in found if not task.get("run_once")]
    asking = [task for task in for_each_host if any(key.startswith("fleetclean.docker.docker_") for key in task)]
    assert len(asking) <= 4
    # Besides: the preflight, and the verdict.
    assert len(for_each_host) - len(asking) == 2
    for task in asking:
        # A play's defaults for all our modules are not meant for the role, which has variables: another engine would be cleaned.
        assert task["module_defaults"]["group/fleetclean.docker.docker"] == {}
        # A worker that meets a filter or a test loads all that Ansible has.
        assert not any("|" in condition or " is " in condition for condition in task.get("when", [])[:1]), task["name"]


@pytest.mark.parametrize("name", ["clean", "report", "truncate_logs"])
def test_the_playbooks_have_the_variables_validated_once(name: str) -> None:
    play, = yaml.safe_load((ROOT / f"playbooks/{name}.yml").read_text())
    assert play["tasks"][0]["ansible.builtin.import_role"]["rolespec_validate"] is False


def test_what_all_hosts_share_is_read_before_workers_are_forked() -> None:
    # Ansible imports an action plugin in its own process, and a filter in each worker that uses one.
    assert set(preflight.VARIABLES) == set(yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"])
    assert {"page", "preflight"} <= set(vars(cleanup_preflight))
