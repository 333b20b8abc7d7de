# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What users may say and what it comes to: everything is read, and refused, before anything is touched."""

from __future__ import annotations

import typing as t

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.fleetclean.docker.plugins.module_utils import lists, misuse, options, policy
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import FleetcleanError
from ansible_collections.fleetclean.docker.plugins.module_utils.units import Share

MIB = 1024**2
GIB = 1024**3


def validated(spec: dict[str, t.Any], **given: t.Any) -> dict[str, t.Any]:
    """What a module gets as its parameters."""
    spec = {**options.shared_spec(), **spec}
    result = ArgumentSpecValidator(spec).validate(lists.split_lists(given, spec))
    assert not result.error_messages, result.error_messages
    return result.validated_parameters


def clean(**given: t.Any) -> tuple[policy.Wishes, options.Watermarks]:
    return options.read_clean(validated(options.clean_spec(), **given))


def truncate(**given: t.Any) -> options.LogWish:
    return options.read_truncate(validated(options.truncate_spec(), **given))


def test_a_section_that_is_not_given_is_not_touched() -> None:
    wishes, marks = clean(networks={})
    assert wishes.networks == policy.NetworkWish()
    assert (wishes.containers, wishes.images, wishes.volumes, wishes.build_cache) == (None, None, None, None)
    assert not marks.any
    assert not marks.target


def test_empty_sections_take_the_documented_defaults() -> None:
    wishes, _marks = clean(containers={}, images={}, volumes={}, networks={}, build_cache={})
    assert wishes.containers == policy.ContainerWish(states=("created", "exited", "dead"), volumes=False)
    assert wishes.images == policy.ImageWish(scope="dangling", keep_latest=0, keep_local=False)
    assert wishes.volumes == policy.VolumeWish(scope="anonymous")
    assert wishes.build_cache == policy.CacheWish(scope="unused", keep_storage=None)
    assert wishes.keep_labels == ("fleetclean.keep",)
    assert wishes.orchestrated == "keep"
    assert not wishes.cheapest_first


def test_none_given_is_an_error_that_names_the_sections() -> None:
    with pytest.raises(FleetcleanError) as caught:
        clean()
    assert str(caught.value) == (
        "nothing was asked for; give at least one of containers, images, volumes, networks, build_cache, leftovers. "
        "A section that is not given is not touched."
    )
    assert caught.value.code == "bad_input"


def test_every_wish_arrives_in_the_policys_own_types() -> None:
    wishes, marks = clean(
        containers={"states": ["running"], "older_than": "7d", "keep": ["ci-*"], "volumes": True},
        images={
            "scope": "unused",
            "older_than": "2w",
            "dangling_older_than": "1h",
            "keep": ["app:*"],
            "keep_latest": 2,
            "keep_local": True,
        },
        volumes={"scope": "unused", "older_than": "90m", "keep": ["db"]},
        networks={"older_than": "0", "keep": ["front"]},
        build_cache={"scope": "all", "older_than": "24h", "keep_storage": "10GiB"},
        keep_labels=["tier=data*"],
        orchestrated="clean",
        only_below="15%",
        only_below_inodes="10%",
        free_target="20GB",
        free_target_inodes="100000",
    )
    assert wishes == policy.Wishes(
        containers=policy.ContainerWish(("running",), 604800, ("ci-*",), True),
        images=policy.ImageWish("unused", 1209600, 3600, ("app:*",), 2, True),
        volumes=policy.VolumeWish("unused", 5400, ("db",)),
        networks=policy.NetworkWish(0, ("front",)),
        build_cache=policy.CacheWish("all", 86400, 10 * GIB),
        keep_labels=("tier=data*",),
        orchestrated="clean",
        cheapest_first=True,
    )
    assert marks == options.Watermarks(Share(15), 20 * GIB, Share(10), 100000)
    assert marks.any
    assert marks.target


def test_a_watermark_to_begin_at_is_no_target_to_stop_at() -> None:
    wishes, marks = clean(images={}, only_below="15%")
    assert marks.any
    assert not marks.target
    assert not wishes.cheapest_first


@pytest.mark.parametrize("target", [{"free_target": "30%"}, {"free_target_inodes": "5%"}])
def test_a_target_asks_for_the_cheapest_loss_first(target: dict[str, str]) -> None:
    wishes, marks = clean(images={}, **target)
    assert marks.target
    assert wishes.cheapest_first


@pytest.mark.parametrize(
    ("given", "start"),
    [
        ({"images": {"older_than": "3 fortnights"}}, 'images.older_than: "3 fortnights" is not a duration'),
        ({"images": {"dangling_older_than": "soon"}}, 'images.dangling_older_than: "soon" is not a duration'),
        ({"containers": {"older_than": "7"}}, 'containers.older_than: "7" is not a duration'),
        ({"volumes": {"older_than": ""}}, 'volumes.older_than: "" is not a duration'),
        ({"networks": {"older_than": "1y"}}, 'networks.older_than: "1y" is not a duration'),
        ({"build_cache": {"older_than": "-1d"}}, 'build_cache.older_than: "-1d" is not a duration'),
        ({"build_cache": {"keep_storage": "20%"}}, 'build_cache.keep_storage: "20%" is not a size'),
        ({"images": {"keep_latest": -1}}, "images.keep_latest: -1 is less than nothing; use 0 or more."),
        ({"images": {}, "only_below": "little"}, 'only_below: "little" is neither a size nor a share'),
        ({"images": {}, "free_target": "110%"}, 'free_target: "110%" is neither a size nor a share'),
        ({"images": {}, "only_below_inodes": "5GB"}, 'only_below_inodes: "5GB" is not a number of inodes'),
        ({"images": {}, "free_target_inodes": "x"}, 'free_target_inodes: "x" is not a number of inodes'),
        ({"images": {}, "parallel": 0}, "parallel: 0 is out of range; use 1 to 32."),
        ({"images": {}, "parallel": 33}, "parallel: 33 is out of range; use 1 to 32."),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_option(given: dict[str, t.Any], start: str) -> None:
    with pytest.raises(FleetcleanError) as caught:
        clean(**given)
    assert str(caught.value).startswith(start)
    assert caught.value.code == "bad_input"


def test_lists_that_are_texts_as_surveys_give_them_arrive_as_what_is_meant() -> None:
    wishes, _marks = clean(
        containers={"states": "created, exited", "keep": "web-*,\ndb\n"},
        images={"keep": "postgres:16, app/*,"},
        volumes={"keep": "a\r\n\r\nb\r\n", "drivers": " local, local/nfs "},
        networks={"keep": " front "},
        keep_labels="team = a, fleetclean.keep",
    )
    assert wishes == policy.Wishes(
        containers=policy.ContainerWish(states=("created", "exited"), keep=("web-*", "db")),
        images=policy.ImageWish(keep=("postgres:16", "app/*")),
        volumes=policy.VolumeWish(keep=("a", "b"), drivers=("local", "local/nfs")),
        networks=policy.NetworkWish(keep=("front",)),
        keep_labels=("team=a", "fleetclean.keep"),
    )
    logs = truncate(containers="web-1\nweb-2", keep_labels="")
    assert (logs.containers, logs.keep_labels) == (("web-1", "web-2"), ())
    assert validated(options.report_spec(), include="logs, images\n")["include"] == ["logs", "images"]


@pytest.mark.parametrize(
    ("given", "start"),
    [
        ({"containers": {"keep": "web, redis:.*"}}, 'containers.keep: "redis:.*" cannot match any container. Use names or IDs'),
        ({"images": {"keep": ["postgres 16"]}}, 'images.keep: "postgres 16" cannot match any image. Use repository:tag'),
        ({"images": {"keep": "a,,b"}}, "images.keep: an entry is empty. Use repository:tag"),
        ({"volumes": {"keep": ["^db"]}}, 'volumes.keep: "^db" cannot match any volume of the driver local. Use names'),
        ({"volumes": {"drivers": "local|nfs"}}, 'volumes.drivers: "local|nfs" cannot match any volume driver. Use names'),
        ({"networks": {"keep": ["front", " "]}}, "networks.keep: an entry is empty. Use names or IDs of networks"),
        ({"images": {}, "keep_labels": ["fleetclean.keep", "my team=a"]}, 'keep_labels: "my team=a" cannot match any label. Use key or key=value'),
        ({"containers": {"states": ["exited", ""]}}, "containers.states: an entry is empty. Use created, exited, dead"),
    ],
)
def test_an_entry_that_can_protect_nothing_is_refused_by_the_name_of_its_option(given: dict[str, t.Any], start: str) -> None:
    with pytest.raises(FleetcleanError) as caught:
        clean(**given)
    assert str(caught.value).startswith(start)
    assert caught.value.code == "bad_input"


def test_the_drivers_say_which_names_of_volumes_there_are() -> None:
    wishes, _marks = clean(volumes={"drivers": ["local", "elsewhere"], "keep": ["a b"]})
    assert wishes.volumes == policy.VolumeWish(keep=("a b",), drivers=("local", "elsewhere"))


@pytest.mark.parametrize("parallel", [1, 32])
def test_the_bounds_of_parallel_are_allowed(parallel: int) -> None:
    assert clean(images={}, parallel=parallel)[0].images is not None


def test_leftovers_are_refused_with_what_to_do_instead() -> None:
    with pytest.raises(FleetcleanError) as caught:
        clean(leftovers={}, images={})
    assert caught.value.code == "not_yet"
    assert str(caught.value) == "leftovers: not there yet in this release; leave the section out."


def test_an_age_written_as_nothing_is_none_and_a_section_written_as_nothing_is_not_given() -> None:
    wishes, _marks = clean(images={"older_than": None}, containers=None, build_cache={"keep_storage": None})
    assert wishes.images == policy.ImageWish()
    assert wishes.build_cache == policy.CacheWish()
    assert wishes.containers is None


@pytest.mark.parametrize(
    "given", [{"keep_labels": None}, {"images": {"keep": None}}, {"images": {"keep_latest": None}}]
)
def test_what_protects_objects_cannot_be_written_as_nothing(given: dict[str, t.Any]) -> None:
    spec = {**options.shared_spec(), **options.clean_spec()}
    assert ArgumentSpecValidator(spec).validate({"images": {}, **given}).error_messages


@pytest.mark.parametrize(
    "given",
    [
        {"images": {"scope": "everything"}},
        {"containers": {"states": ["sleeping"]}},
        {"volumes": {"scope": "all"}},
        {"build_cache": {"scope": "dangling"}},
        {"images": {"older": "7d"}},
        {"images": {}, "orchestrated": "maybe"},
        {"pictures": {}},
    ],
    ids=lambda given: str(given),
)
def test_what_is_no_choice_and_no_option_is_refused(given: dict[str, t.Any]) -> None:
    spec = {**options.shared_spec(), **options.clean_spec()}
    assert ArgumentSpecValidator(spec).validate(given).error_messages


def test_logs_are_cut_by_default_from_one_mebibyte_on_to_that() -> None:
    assert truncate() == options.LogWish(("*",), ("fleetclean.keep",), MIB, MIB, True)


def test_only_logs_larger_than_asked_are_cut_and_never_one_that_is_smaller_than_what_stays() -> None:
    assert truncate(larger_than="100MB", keep="10MB").larger_than == 100 * MIB
    assert truncate(larger_than="1MB", keep="10MB").larger_than == 10 * MIB
    assert truncate(larger_than="0", keep="0") == options.LogWish(("*",), ("fleetclean.keep",), 0, 0, True)


@pytest.mark.parametrize(
    ("given", "start"),
    [
        ({"keep": "all"}, 'keep: "all" is not a size'),
        ({"keep": "20%"}, 'keep: "20%" is not a size'),
        ({"larger_than": "huge"}, 'larger_than: "huge" is not a size'),
        ({"containers": "web db"}, 'containers: "web db" cannot match any container. Use names or IDs'),
        ({"keep_labels": "a,,b"}, "keep_labels: an entry is empty. Use key or key=value"),
    ],
)
def test_a_wrong_value_for_logs_is_refused(given: dict[str, str], start: str) -> None:
    with pytest.raises(FleetcleanError) as caught:
        truncate(**given)
    assert str(caught.value).startswith(start)
    assert caught.value.code == "bad_input"


def test_what_becomes_of_rotated_logs_and_what_may_be_started_again_is_kept_unless_said_otherwise() -> None:
    assert (truncate().rotated, truncate().restart) == ("keep", "never")
    told = truncate(rotated="remove", restart="engine")
    assert (told.rotated, told.restart) == ("remove", "engine")


@pytest.mark.parametrize(
    ("variable", "option", "value", "read"),
    [
        *(("DOCKER_TLS_VERIFY", "validate_certs", value, True) for value in ("1", "yes", "on", "true", "True", "y", "t")),
        *(("DOCKER_TLS_VERIFY", "validate_certs", value, False) for value in ("0", "no", "off", "false", "n", "f", "")),
        ("DOCKER_TLS", "tls", "1", True),
        ("DOCKER_TLS", "tls", "0", False),
        ("DOCKER_HOST", "docker_host", "", "unix:///var/run/docker.sock"),
        ("DOCKER_API_VERSION", "api_version", "1.41", "1.41"),
        ("DOCKER_API_VERSION", "api_version", "", "auto"),
        ("DOCKER_TIMEOUT", "timeout", "7", 7),
        ("DOCKER_TIMEOUT", "timeout", "", 60),
        ("DOCKER_TLS_HOSTNAME", "tls_hostname", "build1", "build1"),
        ("DOCKER_TLS_HOSTNAME", "tls_hostname", "", None),
        ("DOCKER_CERT_PATH", "ca_path", "/certificates", None),
    ],
)
def test_the_environment_is_read_as_community_docker_reads_it(monkeypatch: pytest.MonkeyPatch, variable: str, option: str, value: str, read: object) -> None:
    """Ansible says what is true; Docker's own client takes 0 for true. What is empty is not set, as with Docker."""
    monkeypatch.setenv(variable, value)
    assert validated(options.report_spec())[option] == read
    if isinstance(read, bool):
        assert validated(options.report_spec(), **{option: not read})[option] is not read, "what the task says goes first"


def test_a_variable_that_is_neither_true_nor_false_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "always")
    found = ArgumentSpecValidator({**options.shared_spec(), **options.report_spec()}).validate({})
    assert "argument 'validate_certs'" in found.error_messages[0] and "always" in found.error_messages[0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"images": True}, "images: true does not say which of them. Write images: {} for the defaults, or options such as images: {scope: unused, older_than: 7d}."),
        ({"containers": "yes"}, "containers: yes does not say which of them. Write containers: {} for the defaults, or options such as containers: {older_than: 7d}."),
        ({"volumes": False}, "volumes: false is no mapping of options. Leave the section out; what is not given is not touched."),
        ({"networks": ["a", "b"]}, "networks: a list is no mapping of options. Write networks: {} for the defaults"),
        ({"build_cache": 7}, 'build_cache: "7" is no mapping of options. Write build_cache: {}'),
        ({"leftovers": "all"}, 'leftovers: "all" is no mapping of options. Write leftovers: {} for the defaults.'),
        ({"images_filters": {"dangling": False}}, "images_filters: is an option of community.docker.docker_prune. Here it is older_than, only, "),
        ({"builder_cache": True}, "builder_cache: is an option of community.docker.docker_prune. Here it is build_cache, a mapping"),
        ({"build_cache": {"only": []}}, "build_cache.only: records of the build cache have no names and no labels. Leave the section out"),
    ],
)
def test_what_was_written_for_docker_prune_is_told_what_to_write(given: dict[str, t.Any], words: str) -> None:
    with pytest.raises(FleetcleanError) as caught:
        misuse.check(given, options.clean_spec())
    assert str(caught.value).startswith(words)
    assert caught.value.code == "bad_input"


@pytest.mark.parametrize("given", [{"images": {}}, {"images": None}, {"images": "scope=unused"}, {"images": '{"scope": "unused"}'}, {"state_dir": "yes"}, {"builder": 1}])
def test_what_can_be_meant_is_left_to_ansible(given: dict[str, t.Any]) -> None:
    misuse.check(given, options.clean_spec())


def test_no_option_of_other_modules_is_taken_for_docker_prunes() -> None:
    misuse.check({"containers": ["*"], "builder_cache": True}, options.truncate_spec())


@pytest.mark.parametrize("spec", [options.clean_spec, options.report_spec, options.truncate_spec])
def test_no_option_is_private(spec: t.Callable[[], dict[str, t.Any]]) -> None:
    """Ansible names them all to somebody who misspelt one."""
    assert [name for name in {**options.shared_spec(), **spec()} if name.startswith("_")] == []


def test_the_shared_options_are_those_of_community_docker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:2375")
    monkeypatch.setenv("DOCKER_TLS_HOSTNAME", "build1")
    params = validated(options.report_spec())
    assert params["docker_host"] == "tcp://127.0.0.1:2375"
    assert params["tls_hostname"] == "build1"
    assert validated(options.report_spec(), docker_url="unix:///run/d.sock")["docker_host"] == "unix:///run/d.sock"
    monkeypatch.delenv("DOCKER_HOST")
    assert validated(options.report_spec())["docker_host"] == "unix:///var/run/docker.sock"
