# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Explain options that Ansible refuses with fewer words, or with none: it ends in a traceback for ``images: true``. Pure.

community.docker's docker_prune has a boolean for each kind of object, and options of its own beside them; many come from there.
"""

from __future__ import annotations

import typing as t

from ansible_collections.fleetclean.docker.plugins.module_utils.errors import FleetcleanError
from ansible_collections.fleetclean.docker.plugins.module_utils.words import printable

#: What a section may look like.
_EXAMPLES = {
    "containers": "{older_than: 7d}",
    "images": "{scope: unused, older_than: 7d}",
    "volumes": "{scope: anonymous, older_than: 7d}",
    "networks": "{older_than: 7d}",
    "build_cache": "{older_than: 7d}",
}
#: docker_prune's options that this collection calls otherwise.
_OF_DOCKER_PRUNE = {
    **{f"{kind}_filters": f"older_than, only, only_labels and keep of {kind}" for kind in ("containers", "images", "volumes", "networks")},
    "builder_cache": "build_cache, a mapping such as {older_than: 7d}",
    "builder_cache_all": "build_cache: {scope: all}",
    "builder_cache_filters": "older_than of build_cache",
    "builder_cache_keep_storage": "keep_storage of build_cache",
}
_NAMELESS = ("only", "only_labels", "keep")
_YES, _NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def check(params: t.Mapping[str, t.Any], spec: t.Mapping[str, t.Any]) -> None:
    """Look at options as they were given.

    :param spec: the module's argument spec.
    :raises FleetcleanError: naming the option and what to write.
    """
    for name, value in params.items():
        if name in spec and spec[name].get("type") == "dict" and "options" in spec[name]:
            _check_section(name, value)
        elif name in _OF_DOCKER_PRUNE and name not in spec and "build_cache" in spec:
            raise FleetcleanError(f"{name}: is an option of community.docker.docker_prune. Here it is {_OF_DOCKER_PRUNE[name]}.", "bad_input")


def _check_section(section: str, value: object) -> None:
    if isinstance(value, dict):
        nameless = next((option for option in _NAMELESS if option in value), "") if section == "build_cache" else ""
        if nameless:
            raise FleetcleanError(
                f"build_cache.{nameless}: records of the build cache have no names and no labels. "
                "Leave the section out where only some things may go.",
                "bad_input",
            )
        return
    text = str(value).strip().lower()
    if value is None or (isinstance(value, str) and ("=" in text or text.startswith("{"))):
        return  # nothing, or a mapping that is written as a text
    if text in _NO:
        raise FleetcleanError(f"{section}: {text} is no mapping of options. Leave the section out; what is not given is not touched.", "bad_input")
    problem = f"{text} does not say which of them" if text in _YES else f"{_called(value)} is no mapping of options"
    example = _EXAMPLES.get(section, "")
    such = f", or options such as {section}: {example}" if example else ""
    raise FleetcleanError(f"{section}: {problem}. Write {section}: {{}} for the defaults{such}.", "bad_input")


def _called(value: object) -> str:
    return "a list" if isinstance(value, (list, tuple)) else f'"{printable(value, 60)}"'
