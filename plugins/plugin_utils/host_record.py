# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One typed record for each host, made once of what its modules answered; the table, the page and fleet.json take nothing else.

Invariants

* answers.py has read every answer: documented keys, documented types, bounded. The types here say besides what a report cannot do
  without: a field that may not be None is there. An answer without it is as unexpected as one of another type.
* A host whose answers are not those of this collection's modules has no figures, needs attention, and says what was wrong and where.
  It costs no other host anything.
* A record is made of plain values and can be written as JSON; all that is known of one host takes at most answers.MAX_BYTES there.

The field names and types are those of the modules' RETURN; tests/unit/test_answers.py compares them.
"""

from __future__ import annotations

import re
import typing as t
from functools import lru_cache

from ansible.release import __version__ as _ANSIBLE_VERSION
from ansible_collections.fleetclean.docker.plugins.module_utils import options
from ansible_collections.fleetclean.docker.plugins.plugin_utils import answers, last_words
from ansible_collections.fleetclean.docker.plugins.plugin_utils.answers import UnexpectedAnswer

_CONTAINER_ID = re.compile(r"[0-9a-f]{64}")
#: Logs of one host whose figures are handed on; a host with more is decided as if it had none.
_MAX_LOGS = 20_000
_PREFIX = re.compile(r"^docker_(disk_report|clean|log_truncate): ")
#: Since then a text is a template only where somebody says so; before, everywhere where nobody says that it is none.
_TEXTS_ARE_TEXTS = tuple(int(number) for number in _ANSIBLE_VERSION.split(".")[:2]) >= (2, 19)

Names = t.List[str]


class Engine(t.TypedDict):
    name: t.Optional[str]
    version: t.Optional[str]
    api_version: t.Optional[str]
    storage_driver: t.Optional[str]
    image_store: t.Optional[str]
    driver_status: t.Dict[str, str]
    logging_driver: t.Optional[str]
    root_dir: str
    root_dir_proven: t.Optional[bool]
    root_dir_proof: t.Optional[str]
    rootless: t.Optional[bool]
    live_restore: t.Optional[bool]
    swarm: t.Optional[str]
    containers: t.Optional[int]
    containers_running: t.Optional[int]
    containers_paused: t.Optional[int]
    containers_stopped: t.Optional[int]
    images: t.Optional[int]
    operating_system: t.Optional[str]
    kernel_version: t.Optional[str]
    architecture: t.Optional[str]
    cpus: t.Optional[int]
    memory_bytes: t.Optional[int]
    cgroup_driver: t.Optional[str]
    security_options: Names


class Filesystem(t.TypedDict):
    mount_point: str
    type: t.Optional[str]
    size: int
    used: int
    free: t.Optional[int]
    available: int
    inodes: t.Optional[int]
    inodes_available: t.Optional[int]
    headroom: t.Optional[int]
    read_only: t.Optional[bool]
    holds: Names
    attributed_bytes: t.Optional[int]
    deleted_open_bytes: t.Optional[int]
    unaccounted_bytes: t.Optional[int]


class DeletedFile(t.TypedDict):
    path: t.Optional[str]
    bytes: t.Optional[int]
    pid: t.Optional[int]
    command: t.Optional[str]
    user_id: t.Optional[int]
    unit: t.Optional[str]
    container: t.Optional[str]
    container_id: t.Optional[str]
    mount_point: t.Optional[str]
    how: t.Optional[str]
    processes: t.Optional[int]
    means: t.Optional[str]


class DeletedOpen(t.TypedDict):
    count: t.Optional[int]
    bytes: t.Optional[int]
    unread: t.Optional[int]
    largest: t.List[DeletedFile]


class Usage(t.TypedDict):
    count: t.Optional[int]
    active: t.Optional[int]
    logical_bytes: t.Optional[int]
    disk_bytes: t.Optional[int]
    apparent_bytes: t.Optional[int]
    shared_bytes: t.Optional[int]
    reclaimable_bytes: t.Optional[int]


class ItemOfItsCategory(t.TypedDict, total=False):
    """What items of some categories alone have."""

    tags: t.Optional[Names]
    digests: t.Optional[Names]
    dangling: t.Optional[bool]
    layers: t.Optional[int]
    last_used: t.Optional[int]
    evidence: t.Optional[str]
    state: t.Optional[str]
    image: t.Optional[str]
    virtual_bytes: t.Optional[int]
    driver: t.Optional[str]
    anonymous: t.Optional[bool]
    path: t.Optional[str]
    type: t.Optional[str]
    in_use: t.Optional[bool]
    shared: t.Optional[bool]
    files: t.Optional[int]
    kind: t.Optional[str]
    reason: t.Optional[str]


class Item(ItemOfItsCategory):
    id: t.Optional[str]
    name: str
    size: int
    logical_bytes: t.Optional[int]
    disk_bytes: t.Optional[int]
    shared_bytes: t.Optional[int]
    reclaimable_bytes: t.Optional[int]
    age: t.Optional[int]
    active: t.Optional[bool]
    used_by: Names


class Way(t.TypedDict):
    bytes: t.Optional[int]
    count: t.Optional[int]
    means: t.Optional[str]


class Totals(t.TypedDict):
    disk_bytes: t.Optional[int]
    attributed_bytes: t.Optional[int]
    unattributed_bytes: t.Optional[int]
    shared_bytes: t.Optional[int]
    reclaimable_bytes: t.Optional[int]


class Root(t.TypedDict):
    path: t.Optional[str]
    disk_bytes: t.Optional[int]
    subvolume_bytes: t.Optional[int]


class Mount(t.TypedDict):
    path: t.Optional[str]
    type: t.Optional[str]


class UnreadExample(t.TypedDict):
    path: t.Optional[str]
    error: t.Optional[str]


class Unread(t.TypedDict):
    count: t.Optional[int]
    vanished: t.Optional[int]
    examples: t.List[UnreadExample]


class Measured(t.TypedDict):
    mode: t.Optional[str]
    seconds: t.Optional[float]
    processes: t.Optional[int]
    files: t.Optional[int]
    walked_bytes: t.Optional[int]
    remembered_layers: t.Optional[int]
    remembered_bytes: t.Optional[int]


class Report(t.TypedDict):
    """An answer of docker_disk_report."""

    engine: t.Optional[Engine]
    filesystems: t.List[Filesystem]
    deleted_open: DeletedOpen
    usage: t.Dict[str, Usage]
    largest: t.Dict[str, t.List[Item]]
    reclaimable: t.Dict[str, Way]
    totals: Totals
    roots: t.List[Root]
    mounts: t.List[Mount]
    unread: Unread
    measured: Measured


class Log(t.TypedDict):
    container: t.Optional[str]
    name: t.Optional[str]
    driver: t.Optional[str]
    path: t.Optional[str]
    bytes_before: t.Optional[int]
    bytes_after: t.Optional[int]
    reclaimed_bytes: t.Optional[int]
    method: t.Optional[str]
    readers: t.Optional[str]
    slow_seconds: t.Optional[float]
    repeats: t.Optional[bool]
    unbounded: t.Optional[bool]
    words: t.Optional[str]


class Outcome(t.TypedDict):
    """What every module says of its end."""

    changed: t.Optional[bool]
    failed: t.Optional[bool]
    failure: t.Optional[str]
    msg: t.Optional[str]


class Logs(Outcome):
    """An answer of docker_log_truncate."""

    logs: t.List[Log]
    reclaimed_bytes: t.Optional[int]
    restarted: Names
    live_restore_file: t.Optional[str]


class Removed(t.TypedDict):
    kind: str
    id: t.Optional[str]
    name: str
    bytes: t.Optional[int]
    logical_bytes: t.Optional[int]
    reason: t.Optional[str]


class NotRemoved(Removed):
    error: t.Optional[str]


class Kept(t.TypedDict):
    kind: str
    reason: t.Optional[str]
    count: t.Optional[int]
    bytes: t.Optional[int]


class CleanedFilesystem(t.TypedDict):
    mount_point: str
    size: int
    free_before: int
    free_after: int
    planned_bytes: t.Optional[int]
    reclaimed_bytes: t.Optional[int]


class Clean(Outcome):
    """An answer of docker_clean."""

    policy: Names
    removed: t.List[Removed]
    failures: t.List[NotRemoved]
    kept: t.List[Kept]
    planned_bytes: t.Optional[int]
    planned_logical_bytes: t.Optional[int]
    reclaimed_bytes: t.Optional[int]
    reclaimed_by_kind: t.Dict[str, int]
    free_before: t.Optional[int]
    free_after: t.Optional[int]
    filesystem_bytes: t.Optional[int]
    filesystems: t.List[CleanedFilesystem]
    assumed_bytes: t.Optional[int]
    target_met: t.Optional[bool]


class HostRecord(Report):
    """What is known of a host after the role ran.

    ``status`` is ok, trouble, no_docker, unreachable, refused (its variables) or not_asked; ``error`` the reason, in the engine's or SSH's own
    words.
    """

    host: str
    status: str
    error: str
    filesystem: t.Optional[Filesystem]
    warnings: Names
    logs: t.Optional[Logs]
    clean: t.Optional[Clean]


# -- from hosts' variables to records --------------------------------------------------------------


class _Result(t.NamedTuple):
    """What the role registered of one task: the module's answer as it was read, and what Ansible says of the task."""

    values: t.Mapping[str, t.Any] = {}
    is_there: bool = False
    is_unreachable: bool = False
    words: str = ""
    warnings: t.Sequence[str] = ()


def host_record(hostvars: t.Mapping[str, t.Any]) -> HostRecord:
    """Return what is known of a host, by the variables that the role registered."""
    budget = answers.Budget()
    try:
        engine = _result(hostvars, "_cleanup_engine", "docker_disk_report", budget)
        logs = _result(hostvars, "_cleanup_logs", "docker_log_truncate", budget)
        again = _result(hostvars, "_cleanup_logs_again", "docker_log_truncate", budget)
        clean = _result(hostvars, "_cleanup_clean", "docker_clean", budget)
        if _told(logs, "logs") and _told(again, "logs"):
            filled_logs: Logs | None = _both(_filled_logs(logs), _filled_logs(again))
            logs = again
        else:
            filled_logs = _filled_logs(logs) if logs.is_there else None
        report = t.cast(Report, _answer(Report, "docker_disk_report", engine.values))
        filled_clean = t.cast(Clean, _answer(Clean, "docker_clean", clean.values)) if clean.is_there else None
    except UnexpectedAnswer as error:
        engine, logs, clean, filled_logs, filled_clean = _Result(is_there=True, words=str(error)), _Result(), _Result(), None, None
        report = t.cast(Report, _answer(Report, "docker_disk_report", {}))
    status, words = _refused(hostvars) or _status(engine, logs, clean)
    return _marked({
        **report,
        "host": answers.one_line(hostvars.get("inventory_hostname"), 1000),
        "status": status,
        "error": words,
        "filesystem": next(iter(report["filesystems"]), None),
        "warnings": list(engine.warnings),
        "logs": filled_logs,
        "clean": filled_clean,
    })


def host_trouble(record: HostRecord) -> str:
    """Why a host needs a look; empty if it does not. A host without Docker has nothing to clean."""
    return record["error"] if record["status"] in ("trouble", "unreachable", "refused") else ""


def logs_reclaimed(registered: object) -> list[dict[str, t.Any]]:
    """What docker_log_truncate would have reclaimed in check mode, as docker_clean takes it in ``assume_reclaimed``.

    Only numbers, and ids that are ids, are passed on.
    """
    try:
        logs = _filled_logs(_result({"_cleanup_logs": registered}, "_cleanup_logs", "docker_log_truncate", answers.Budget()))["logs"]
    except UnexpectedAnswer:
        return []
    found = []
    for log in logs if len(logs) <= _MAX_LOGS else ():
        container_id, size = log["container"] or "", log["reclaimed_bytes"] or 0
        if 0 < size < options.MOST_BYTES:
            # A deleted file is no part of what its container has.
            is_its_own = log["method"] != "deleted" and _CONTAINER_ID.fullmatch(container_id)
            found.append({"container": container_id if is_its_own else "", "bytes": size})
    return found


def _result(hostvars: t.Mapping[str, t.Any], variable: str, module: str, budget: answers.Budget) -> _Result:
    raw = hostvars.get(variable)
    if not isinstance(raw, t.Mapping) or not raw:
        return _Result()
    if raw.get("skipped") is True:
        # By the role's own condition: anywhere.py admits no such key from a host.
        return _Result()
    try:
        values = answers.read(module, raw, budget).values
    except UnexpectedAnswer as error:
        error.where.insert(0, module)
        raise
    words = _PREFIX.sub("", " ".join(answers.one_line(values.get("msg") or "the module ended without an answer").split()))
    # anywhere.py has that line in the message already, and admits no such key from a host; the text itself is the host's.
    last = "" if values.get("failure") == "no_answer" else last_words.last_line(raw.get("module_stderr"), raw.get("module_stdout"))
    words = f"{words}: {last}" if last else words
    return _Result(values, True, raw.get("unreachable") is True, words, answers.warning_texts(raw.get("warnings")))


def _told(result: _Result, key: str) -> bool:
    return result.values.get(key) is not None


def _status(engine: _Result, logs: _Result, clean: _Result) -> tuple[str, str]:
    """How a host is, and why: by the first of its tasks that did not end well."""
    for result, key in ((engine, "engine"), (logs, "logs"), (clean, "removed")):
        if not result.is_there:
            continue
        if result.is_unreachable:
            return "unreachable", _unreachable_words(result.words)
        if result.values.get("failure") == "no_engine":
            return "no_docker", result.words
        if result.values.get("failure") or not _told(result, key):
            return "trouble", result.words
    return ("ok", "") if engine.is_there else ("not_asked", "was not asked: its turn has not come")


def _refused(hostvars: t.Mapping[str, t.Any]) -> tuple[str, str] | None:
    """The same of a host that was not asked since its variables cannot be meant."""
    preflight = hostvars.get("_cleanup_preflight")
    found: t.Mapping[str, t.Any] = preflight if isinstance(preflight, t.Mapping) else {}
    words = found.get("refused") or (found.get("msg") if found.get("failed") is True else None)
    return ("refused", f"was not asked: its variables were refused: {answers.one_line(words, 1000)}") if words else None


def _unreachable_words(words: str) -> str:
    """SSH's own words, without Ansible's around them."""
    for introduction in ("can be reached over ssh: ", "connect to the host via ssh: "):
        words = words.rpartition(introduction)[2]
    return f"unreachable: {words}"


def _filled_logs(result: _Result) -> Logs:
    return t.cast(Logs, _answer(Logs, "docker_log_truncate", result.values))


def _both(first: Logs, again: Logs) -> Logs:
    """The logs' answer, where a second try was made once there was room: its word counts, their sums add up."""
    return {
        **again,
        "changed": bool(first["changed"] or again["changed"]),
        "logs": [log for log in first["logs"] if log["method"] != "none"] + again["logs"],
        "reclaimed_bytes": (first["reclaimed_bytes"] or 0) + (again["reclaimed_bytes"] or 0),
        "restarted": [*first["restarted"], *again["restarted"]],
        "live_restore_file": first["live_restore_file"] or again["live_restore_file"],
    }


def _marked(record: HostRecord) -> HostRecord:
    """The same, marked as no template where an ansible-core wants that."""
    if _TEXTS_ARE_TEXTS:
        return record
    from ansible.utils.unsafe_proxy import wrap_var  # deprecated where it is not needed

    return t.cast(HostRecord, wrap_var(record))


# -- from answers to types -------------------------------------------------------------------------


class _Field(t.NamedTuple):
    """How a value becomes one of its type: ``kind`` is value, list, dict or record, of what ``inner`` says."""

    kind: str
    may_be_none: bool
    inner: t.Any = None


def _answer(record: type, module: str, values: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Fill a record with what was read; what nobody told is None, an empty list or an empty mapping.

    :raises UnexpectedAnswer: a field that may not be None is not there.
    """
    try:
        return _record(record, values)
    except UnexpectedAnswer as error:
        error.where.insert(0, module)
        raise


@lru_cache(maxsize=None)
def fields(record: type) -> tuple[t.Mapping[str, _Field], t.Collection[str]]:
    """Return the fields of a record, and the names of those that are left out where they were not told."""
    return {name: _field(hint) for name, hint in t.get_type_hints(record).items()}, getattr(record, "__optional_keys__", ())


def _field(hint: t.Any) -> _Field:
    arguments = t.get_args(hint)
    if type(None) in arguments:
        return _field(arguments[0])._replace(may_be_none=True)
    if t.get_origin(hint) is list:
        return _Field("list", False, _field(arguments[0]))
    if t.get_origin(hint) is dict:
        return _Field("dict", False, _field(arguments[1]))
    return _Field("record" if t.is_typeddict(hint) else "value", False, hint)


def _record(record: type, values: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    found: dict[str, t.Any] = {}
    known, left_out = fields(record)
    for name, field in known.items():
        value = values.get(name)
        if value is None and name in left_out:
            continue
        try:
            found[name] = _value(field, value)
        except UnexpectedAnswer as error:
            error.where.insert(0, name)
            raise
    return found


def _value(field: _Field, value: t.Any) -> t.Any:
    if value is None and field.may_be_none:
        return None
    if field.kind == "value":
        if value is None:
            raise UnexpectedAnswer("missing")
        return value
    if field.kind == "record":
        return _record(field.inner, value or {})
    if field.inner.kind == "value":
        return value if value is not None else [] if field.kind == "list" else {}
    found: list[tuple[t.Any, t.Any]] = []
    name: str | int = ""
    try:
        for name, entry in enumerate(value or ()) if field.kind == "list" else (value or {}).items():
            found.append((name, _value(field.inner, entry)))
    except UnexpectedAnswer as error:
        error.where.insert(0, name)
        raise
    return [entry for _name, entry in found] if field.kind == "list" else dict(found)
