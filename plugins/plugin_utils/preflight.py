# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From the variables of the role cleanup to the options of its modules: read once for each host, validated, and checked against each other.

Invariants

* What is the same for all hosts (the role's argument specs, the modules' options) is read when this file is imported. Ansible does that
  before it forks a worker for each task and host.
* Nothing is asked of a host, and nothing that Ansible has not validated by the role's argument specs becomes an option.
* An error names the variable, the problem and what the variable takes.

As templates in the role the same took a fifth of a second of CPU for each host: a worker starts without a single compiled template.
"""

from __future__ import annotations

import os
import re
import typing as t

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.yaml import yaml_load
from ansible_collections.fleetclean.docker.plugins.module_utils import lists, options
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import FleetcleanError
from ansible_collections.fleetclean.docker.plugins.plugin_utils.fleet import asks_for_something, cleanup_problem

_ROLE = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "roles", "cleanup")


def _read(*path: str) -> dict[str, t.Any]:
    with open(os.path.join(_ROLE, *path), encoding="utf-8") as stream:
        return t.cast("dict[str, t.Any]", yaml_load(stream))


#: All variables of the role, as its argument specs have them.
VARIABLES: dict[str, dict[str, t.Any]] = _read("meta", "argument_specs.yml")["argument_specs"]["main"]["options"]
#: What those have that nobody set.
_DEFAULTS = _read("defaults", "main.yml")
_VALIDATOR = ArgumentSpecValidator(VARIABLES)
_CONNECTION = {name: f"cleanup_{name}" for name in options.shared_spec() if f"cleanup_{name}" in VARIABLES}
_CLEAN = {name: about.get("options") for name, about in options.clean_spec().items() if name != "assume_reclaimed"}
_LOGS = {name: "cleanup_keep_labels" if name == "keep_labels" else f"cleanup_logs_{name}" for name in options.truncate_spec()}
#: How defaults/main.yml refers to a value of the profile.
_OF_PROFILE = re.compile(r"\{\{ _cleanup_chosen\.([a-z_]+) \}\}")

_NOTHING = object()

Template = t.Callable[[t.Any], t.Any]


def check(variables: t.Mapping[str, t.Any], template: Template, is_report: bool) -> dict[str, dict[str, t.Any]]:
    """Return the options of docker_disk_report (``report``), docker_log_truncate (``logs``) and docker_clean (``clean``).

    The last two are empty where there is nothing to do. Raises :class:`FleetcleanError` for variables that cannot be meant.

    :param variables: all of the host's variables, as Ansible gives them to an action plugin.
    :param template: Ansible's templating, with these variables.
    :param is_report: whether this run reports only; it changes nothing, so nothing has to be confirmed.
    """
    values = _values(variables, template)
    result = _VALIDATOR.validate(lists.split_lists(values, VARIABLES))
    if result.error_messages:
        raise FleetcleanError("; ".join(result.error_messages), "bad_input")
    validated = result.validated_parameters
    clean = _clean_options(values, validated)
    logs = _named(values, _LOGS) if validated["cleanup_logs"] else None
    problem = cleanup_problem(
        clean, logs,
        given=[name for name in variables if name.startswith("cleanup_")], known=VARIABLES,
        profile=validated["cleanup_profile"], confirmed=is_report or validated["cleanup_full_confirmed"],
    )
    if problem:
        raise FleetcleanError(problem, "bad_input")
    connection = _named(values, _CONNECTION)
    return {
        "report": {**connection, **_report_options(values, is_report)},
        "logs": {**connection, **logs} if logs is not None else {},
        "clean": {**connection, **clean} if asks_for_something(clean) else {},
    }


def _values(variables: t.Mapping[str, t.Any], template: Template) -> dict[str, t.Any]:
    """The values of the role's variables that have one, in containers of Python's own."""
    given = {name: variables[name] for name in VARIABLES if name in variables}
    # Templated once: what is confirmed and what is done have to be of one profile.
    chosen = _templated({"cleanup_profile": given.pop("cleanup_profile", _DEFAULTS["cleanup_profile"])}, template)
    profiles = variables["_cleanup_profiles"]
    name = chosen.get("cleanup_profile")
    profile = profiles[name] if isinstance(name, str) and name in profiles else profiles[_DEFAULTS["cleanup_profile"]]
    # Most have the profile's value, which needs no template.
    of_profile = {name: value for name, value in given.items() if isinstance(value, str) and _OF_PROFILE.fullmatch(value)}
    templated = {**chosen, **_templated({name: value for name, value in given.items() if name not in of_profile}, template)}
    # Up to 2.18 what is left out has a mark of its own; since 2.19 templating leaves it out.
    omitted = variables.get("omit", _NOTHING)
    values = {name: _plain(value) for name, value in templated.items() if value != omitted}
    # What is left out has the role's default: the module's may be another one, such as any age.
    defaults = {name: _plain(_of_profile(value, profile)) for name, value in {**_DEFAULTS, **of_profile}.items()}
    for name, value in values.items():
        if value is None and name in defaults:
            raise FleetcleanError(f"{name}: has no value; give one, such as {_said(defaults[name])}, or leave the variable out.", "bad_input")
    return {**defaults, **values}


def _of_profile(value: t.Any, profile: t.Mapping[str, t.Any]) -> t.Any:
    match = _OF_PROFILE.fullmatch(value) if isinstance(value, str) else None
    return profile[match[1]] if match else value


def _said(value: t.Any) -> str:
    """A value as it is written in YAML."""
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _templated(values: dict[str, t.Any], template: Template) -> dict[str, t.Any]:
    try:
        return dict(template(values))
    # Some versions of Ansible let everything through that a template can raise.
    except Exception:  # pylint: disable=broad-except
        for name, value in values.items():
            try:
                template({name: value})
            except Exception as error:  # pylint: disable=broad-except
                raise FleetcleanError(f"{name}: {error}", "bad_input") from error
        raise


def _plain(value: t.Any) -> t.Any:
    """The same without Ansible's marks and its containers, that template what they hold when it is wanted."""
    if isinstance(value, dict):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


def _named(values: t.Mapping[str, t.Any], variables: t.Mapping[str, str]) -> dict[str, t.Any]:
    """Options by their names; without a value they have the module's default."""
    return {name: values[variable] for name, variable in variables.items() if values.get(variable) is not None}


def _clean_options(values: t.Mapping[str, t.Any], validated: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    found: dict[str, t.Any] = {}
    for option, inner in _CLEAN.items():
        variable = f"cleanup_{option}"
        if not inner:
            if values.get(variable) is not None:
                found[option] = values[variable]
        elif validated[variable]:
            found[option] = {name: values[f"{variable}_{name}"] for name in inner if f"{variable}_{name}" in values}
    return found


def _report_options(values: t.Mapping[str, t.Any], is_report: bool) -> dict[str, t.Any]:
    if not is_report:
        return {"include": ["filesystem"], "measure": "fast", **_named(values, {"top": "cleanup_report_top"})}
    return {"include": list(options.INCLUDES), **_named(values, {"measure": "cleanup_report_measure", "top": "cleanup_report_top"})}
