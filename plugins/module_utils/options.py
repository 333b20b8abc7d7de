# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What users may say: the modules' argument specs, and the reading of it into wishes.

Everything is read before anything is touched, and the role reads it with the same functions on the
controller, before the first host is asked. The documentation fragment ``options`` documents the shared part.
"""

from __future__ import annotations

import os
import typing as t

from ansible.module_utils.basic import env_fallback
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import (
    FleetcleanError,
    not_yet,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.units import (
    Amount,
    parse_amount,
    parse_count,
    parse_duration,
    parse_size,
)

if t.TYPE_CHECKING:
    from ansible_collections.fleetclean.docker.plugins.module_utils import plan

SECTIONS = ("containers", "images", "volumes", "networks", "build_cache", "leftovers")
STATES = ("created", "exited", "dead", "running", "paused", "restarting")
#: An exabyte on one host is no figure.
MOST_BYTES = 2**60
INCLUDES = ("filesystem", "images", "containers", "volumes", "build_cache", "logs", "leftovers")


def set_in_environment(*names: str) -> str:
    """Return the first of these variables that has a value; an empty one has none, as Docker reads them.

    What counts as true is Ansible's to say (``1``, ``yes``, ``on``, ...), as for community.docker.
    """
    return t.cast(str, env_fallback(*(name for name in names if os.environ.get(name))))


def shared_spec() -> dict[str, t.Any]:
    """The options that all three modules have. Names and meaning are those of community.docker."""
    return {
        "docker_host": {
            "type": "str",
            "default": "unix:///var/run/docker.sock",
            "fallback": (set_in_environment, ["DOCKER_HOST"]),
            "aliases": ["docker_url"],
        },
        "api_version": {
            "type": "str",
            "default": "auto",
            "fallback": (set_in_environment, ["DOCKER_API_VERSION"]),
            "aliases": ["docker_api_version"],
        },
        "timeout": {"type": "int", "default": 60, "fallback": (set_in_environment, ["DOCKER_TIMEOUT"])},
        "max_answer_size": {"type": "str", "default": "64MB"},
        "tls": {"type": "bool", "default": False, "fallback": (set_in_environment, ["DOCKER_TLS"])},
        "validate_certs": {
            "type": "bool",
            "default": False,
            "fallback": (set_in_environment, ["DOCKER_TLS_VERIFY"]),
            "aliases": ["tls_verify"],
        },
        "tls_hostname": {"type": "str", "fallback": (set_in_environment, ["DOCKER_TLS_HOSTNAME"])},
        "ca_path": {"type": "path", "aliases": ["ca_cert", "tls_ca_cert", "cacert_path"]},
        "client_cert": {"type": "path", "aliases": ["tls_client_cert", "cert_path"]},
        "client_key": {"type": "path", "aliases": ["tls_client_key", "key_path"]},
        "sdk": {
            "type": "str",
            "choices": ["auto", "host", "carried"],
            "removed_in_version": "2.0.0",
            "removed_from_collection": "fleetclean.docker",
        },
        "state_dir": {"type": "path", "default": "/var/lib/fleetclean"},
    }


def report_spec() -> dict[str, t.Any]:
    return {
        "include": {
            "type": "list",
            "elements": "str",
            "choices": list(INCLUDES),
            "default": list(INCLUDES),
        },
        "measure": {"type": "str", "choices": ["fast", "exact"], "default": "fast"},
        "top": {"type": "int", "default": 20},
        "gentle": {"type": "bool", "default": True},
    }


def clean_spec() -> dict[str, t.Any]:
    age = {"type": "str"}
    keep = {"type": "list", "elements": "str", "default": []}
    # Without a default: an empty list selects nothing, and is not the same as none.
    only = {"type": "list", "elements": "str"}
    selected = {"only": only, "only_labels": only}
    return {
        "containers": _section(
            states={
                "type": "list",
                "elements": "str",
                "choices": list(STATES),
                "default": ["created", "exited", "dead"],
            },
            **selected,
            older_than=age,
            keep=keep,
            volumes={"type": "bool", "default": False},
            compose={"type": "bool", "default": False},
        ),
        "images": _section(
            scope={"type": "str", "choices": ["dangling", "unused", "all"], "default": "dangling"},
            **selected,
            older_than=age,
            dangling_older_than=age,
            keep=keep,
            keep_latest={"type": "int", "default": 0},
            keep_local={"type": "bool", "default": False},
        ),
        "volumes": _section(
            scope={"type": "str", "choices": ["anonymous", "unused"], "default": "anonymous"},
            **selected,
            older_than=age,
            keep=keep,
            drivers={"type": "list", "elements": "str", "default": ["local"]},
        ),
        "networks": _section(**selected, older_than=age, keep=keep),
        "build_cache": _section(
            scope={"type": "str", "choices": ["unused", "all"], "default": "unused"},
            older_than=age,
            keep_storage={"type": "str"},
        ),
        "leftovers": _section(older_than={"type": "str", "default": "24h"}, offline={"type": "bool", "default": False}),
        "keep_labels": {"type": "list", "elements": "str", "default": ["fleetclean.keep"]},
        "only_below": {"type": "str"},
        "free_target": {"type": "str"},
        "only_below_inodes": {"type": "str"},
        "free_target_inodes": {"type": "str"},
        "orchestrated": {"type": "str", "choices": ["keep", "clean"], "default": "keep"},
        "assume_reclaimed": {
            "type": "list",
            "elements": "dict",
            "default": [],
            "options": {"container": {"type": "str", "default": ""}, "bytes": {"type": "int", "required": True}},
        },
        "parallel": {"type": "int", "default": 4},
    }


def truncate_spec() -> dict[str, t.Any]:
    return {
        "containers": {"type": "list", "elements": "str", "default": ["*"]},
        "keep_labels": {"type": "list", "elements": "str", "default": ["fleetclean.keep"]},
        "larger_than": {"type": "str"},
        "keep": {"type": "str", "default": "1MiB"},
        "rotated": {"type": "str", "choices": ["keep", "remove"], "default": "keep"},
        "deleted": {"type": "bool", "default": True},
        "stale_readers": {"type": "str", "choices": ["avoid", "when_full", "allow"], "default": "when_full"},
        "restart": {"type": "str", "choices": ["never", "engine", "containers"], "default": "never"},
        "live_restore": {"type": "str", "choices": ["keep", "enable"], "default": "keep"},
    }


def _section(**options: dict[str, t.Any]) -> dict[str, t.Any]:
    return {"type": "dict", "options": dict(options)}


class Watermarks(t.NamedTuple):
    """When to start and when to stop, by what is free on the engine's filesystems."""

    only_below: Amount | None
    free_target: Amount | None
    only_below_inodes: Amount | None
    free_target_inodes: Amount | None

    @property
    def any(self) -> bool:
        return any(mark is not None for mark in self)

    @property
    def target(self) -> bool:
        return self.free_target is not None or self.free_target_inodes is not None


class LogWish(t.NamedTuple):
    """Which logs to shorten, and to how much (bytes)."""

    containers: tuple[str, ...]
    keep_labels: tuple[str, ...]
    larger_than: int
    keep: int
    deleted: bool
    rotated: str = "keep"
    restart: str = "never"
    stale_readers: str = "when_full"
    live_restore: str = "keep"


def read_clean(params: dict[str, t.Any]) -> tuple[plan.Wishes, Watermarks]:
    """Read docker_clean's options.

    :raises FleetcleanError: naming the option and what it takes; nothing was touched then.
    """
    asked = [name for name in SECTIONS if params.get(name) is not None]
    if not asked:
        raise FleetcleanError(
            f"nothing was asked for; give at least one of {', '.join(SECTIONS)}. A section that is not given "
            "is not touched.",
            "bad_input",
        )
    if "leftovers" in asked:
        raise not_yet("leftovers", "leave the section out")
    from ansible_collections.fleetclean.docker.plugins.module_utils import patterns, plan

    if not 1 <= params["parallel"] <= 32:
        raise FleetcleanError(f"parallel: {params['parallel']} is out of range; use 1 to 32.", "bad_input")
    sections: dict[str, t.Any] = {}
    for name, kind in (
        ("containers", plan.ContainerWish),
        ("images", plan.ImageWish),
        ("volumes", plan.VolumeWish),
        ("networks", plan.NetworkWish),
        ("build_cache", plan.CacheWish),
    ):
        if params.get(name) is not None:
            sections[name] = kind(**_values(name, params[name]))
    wishes = plan.Wishes(
        keep_labels=patterns.read_list("keep_labels", params["keep_labels"] or ()),
        orchestrated=params["orchestrated"],
        cheapest_first=any(params.get(name) not in (None, "") for name in ("free_target", "free_target_inodes")),
        **sections,
    )
    marks = Watermarks(
        only_below=_maybe(parse_amount, params, "only_below"),
        free_target=_maybe(parse_amount, params, "free_target"),
        only_below_inodes=_maybe(parse_count, params, "only_below_inodes"),
        free_target_inodes=_maybe(parse_count, params, "free_target_inodes"),
    )
    return wishes, marks


def read_assumed(params: dict[str, t.Any]) -> dict[str, int]:
    """Read what earlier tasks of a run in check mode would have reclaimed: bytes by container id, "" for what is no container's log any more.

    :raises FleetcleanError: a figure that no disk has.
    """
    found: dict[str, int] = {}
    for entry in params.get("assume_reclaimed") or ():
        size = entry["bytes"]
        if not 0 <= size < MOST_BYTES:
            raise FleetcleanError(f"assume_reclaimed.bytes: {size} is out of range; use 0 to {MOST_BYTES - 1}.", "bad_input")
        found[entry["container"]] = found.get(entry["container"], 0) + size
    return found


def read_truncate(params: dict[str, t.Any]) -> LogWish:
    """Read docker_log_truncate's options; raises FleetcleanError naming the option."""
    from ansible_collections.fleetclean.docker.plugins.module_utils import patterns

    keep = parse_size(params["keep"], "keep")
    larger_than = params.get("larger_than")
    return LogWish(
        containers=patterns.read_list("containers", params["containers"] or ()),
        keep_labels=patterns.read_list("keep_labels", params["keep_labels"] or ()),
        larger_than=max(keep, parse_size(larger_than, "larger_than") if larger_than is not None else 0),
        keep=keep,
        deleted=params["deleted"],
        rotated=params["rotated"],
        restart=params["restart"],
        stale_readers=params["stale_readers"],
        live_restore=params["live_restore"],
    )


def _values(section: str, given: dict[str, t.Any]) -> dict[str, t.Any]:
    """A section's values in the policy's types: seconds, bytes, tuples."""
    from ansible_collections.fleetclean.docker.plugins.module_utils import patterns

    values: dict[str, t.Any] = {}
    for name, value in given.items():
        option = f"{section}.{name}"
        if name.endswith("older_than"):
            values[name] = None if value is None else parse_duration(value, option)
        elif name == "keep_storage":
            values[name] = None if value in (None, "") else parse_size(value, option)
        elif name == "keep_latest":
            if value < 0:
                raise FleetcleanError(f"{option}: {value} is less than nothing; use 0 or more.", "bad_input")
            values[name] = value
        elif isinstance(value, list):
            drivers = given.get("drivers") if option in ("volumes.keep", "volumes.only") else None
            values[name] = patterns.read_list(option, value, drivers)
        else:
            values[name] = value
    return values


def _maybe(read: t.Callable[[object, str], Amount], params: dict[str, t.Any], name: str) -> Amount | None:
    # A play's empty variable arrives as an empty text: no watermark.
    return None if params.get(name) in (None, "") else read(params[name], name)
