# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role says of a fleet: one record a host, and the lines that people read at the end.

All of it runs on the controller, on results that modules returned. The words are those of
module_utils/words.py, so that a plan, a diff and the fleet's table say the same thing alike.
"""

from __future__ import annotations

import difflib
import re
import typing as t

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.fleetclean.docker.plugins.module_utils import options, patterns
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import FleetcleanError
from ansible_collections.fleetclean.docker.plugins.module_utils.units import say_duration, say_size
from ansible_collections.fleetclean.docker.plugins.module_utils.words import COLUMNS, printable, wrapped

Record = t.Dict[str, t.Any]

_KINDS = (
    ("containers", ("container",)),
    ("images", ("image", "tag")),
    ("volumes", ("volume",)),
    ("cache", ("build_cache",)),
    ("logs", ("log",)),
)
_CATEGORIES = (
    ("images", "images"),
    ("containers", "containers"),
    ("volumes", "volumes"),
    ("cache", "build_cache"),
    ("logs", "logs"),
    ("leftovers", "leftovers"),
)
#: How an item of each category is called in "largest: ...".
_ITEM_WORDS = {
    "images": "image",
    "containers": "container",
    "volumes": "volume",
    "logs": "log of",
    "build_cache": "cache",
    "leftovers": "leftover",
}
#: From here on, or from a hundredth of the filesystem on, deleted files that are held open are worth a line.
_MANY_DELETED_BYTES = 100 * 1024**2
#: The widest column of names: with it a line has a hundred columns.
_LONGEST = 15
_OURS = tuple(f"cleanup_{section}_" for section in (*options.SECTIONS, "logs", "keep", "free", "only_below"))
_ID = re.compile(r"[0-9a-f]{64}")
#: Logs of one host whose figures are handed on; a host with more is decided as if it had none.
_MOST_LOGS = 20_000
_PREFIX = re.compile(r"^docker_(disk_report|clean|log_truncate): ")


# -- the wishes, before anything is touched ------------------------------------------------------


def cleanup_problem(
    clean: dict[str, t.Any],
    logs: dict[str, t.Any] | None,
    given: t.Sequence[str],
    known: t.Collection[str],
    profile: str,
    confirmed: bool,
) -> str:
    """Return what is wrong with the role's variables, in one sentence or two; empty if nothing is.

    :param clean: the wishes as docker_clean takes them, None for a section that is off.
    :param logs: those of docker_log_truncate, None if logs are off.
    :param given: names of all variables that begin with ``cleanup_``.
    :param known: names that mean something.
    """
    for name in sorted(set(given) - set(known)):
        # Other roles have variables of their own that begin alike; only what looks like one of ours is refused.
        near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.8)
        if near or name.startswith(_OURS):
            hint = f"; did you mean {near[0]}?" if near else "."
            return f"{name}: there is no such variable{hint}"
    if profile == "full" and not confirmed:
        return (
            "cleanup_profile: full removes all that can be had, running containers and named volumes too; "
            "set cleanup_full_confirmed: true if that is meant."
        )
    for section in options.SECTIONS:
        for name, value in (clean.get(section) or {}).items():
            if name.endswith("older_than") and value in (None, ""):
                return f"cleanup_{section}_{name}: has no value; give a duration such as 7d, or 0 for any age."
    clean = {name: value for name, value in clean.items() if value not in (None, "")}
    try:
        if asks_for_something(clean):
            options.read_clean(_validated(options.clean_spec(), clean))
        elif logs is None:
            return "nothing was asked for; turn on at least one of cleanup_logs, " + ", ".join(
                f"cleanup_{name}" for name in options.SECTIONS
            ) + "."
        if logs is not None:
            _read_logs(logs)
    except FleetcleanError as error:
        return re.sub(r"^([a-z_]+)(?:\.([a-z_]+))?(?=:)", _variable_name, str(error)).replace("cleanup_cleanup", "cleanup")
    return ""


def asks_for_something(clean: dict[str, t.Any]) -> bool:
    """Whether any section of docker_clean's wishes is on."""
    return any(clean.get(name) for name in options.SECTIONS)


def _validated(spec: dict[str, t.Any], values: dict[str, t.Any]) -> dict[str, t.Any]:
    given = patterns.split_lists({name: _plain(value) for name, value in values.items() if value is not None}, spec)
    result = ArgumentSpecValidator(spec).validate(given)
    if result.error_messages:
        raise FleetcleanError("; ".join(result.error_messages), "bad_input")
    return dict(result.validated_parameters)


def _plain(value: t.Any) -> t.Any:
    """The same in containers of Python's own.

    Those of Ansible look their content up when it is wanted. The validator copies what it is given, and a copy of one of these
    has all variables in it that it could need: most of a second of the controller's time for each host.
    """
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _read_logs(values: dict[str, t.Any]) -> None:
    """Read the wishes for logs as the module does; its options are the role's variables cleanup_logs_*."""
    try:
        options.read_truncate(_validated(options.truncate_spec(), values))
    except FleetcleanError as error:
        # Labels are one variable for all of the role; what Ansible itself refuses has no name in front.
        ours = re.match("(?!keep_labels)[a-z_]+: ", str(error))
        raise FleetcleanError(f"logs.{error}" if ours else str(error), error.code) from None


def _variable_name(match: re.Match[str]) -> str:
    return "cleanup_" + "_".join(part for part in match.groups() if part)


# -- one record a host ---------------------------------------------------------------------------


def host_record(hostvars: t.Mapping[str, t.Any]) -> Record:
    """Return what is known of a host after the role ran: plain values, ready for JSON.

    ``status`` is ok, trouble, no_docker, unreachable or not_asked; ``error`` the reason, in the engine's or SSH's own words.
    """
    engine = _result(hostvars, "_cleanup_engine")
    logs = _both(_result(hostvars, "_cleanup_logs"), _result(hostvars, "_cleanup_logs_again"))
    clean = _result(hostvars, "_cleanup_clean")
    if not _believable(engine, logs, clean):
        engine, logs, clean = {"msg": "the answers of this host are none of this collection's modules'"}, {}, {}
    record: Record = {
        "host": str(hostvars.get("inventory_hostname")),
        "status": "ok" if engine else "not_asked",
        "error": "" if engine else "was not asked: its variables were refused, or its turn is later",
        "engine": engine.get("engine"),
        "filesystem": next(iter(engine.get("filesystems") or []), None),
        **{name: engine.get(name) or {} for name in ("usage", "items", "totals", "reclaimable", "deleted_open", "measured", "unread")},
        **{name: engine.get(name) or [] for name in ("filesystems", "roots", "mounts", "warnings")},
        "logs": _without_noise(logs),
        "clean": _without_noise(clean),
    }
    for result, key in ((engine, "engine"), (logs, "logs"), (clean, "removed")):
        if not result or result.get("skipped"):
            continue
        if result.get("unreachable"):
            record.update(status="unreachable", error=_unreachable_words(result))
        elif result.get("failure") == "no_engine":
            record.update(status="no_docker", error=_words(result))
        elif result.get("failure") or key not in result:
            record.update(status="trouble", error=_words(result))
        else:
            continue
        break
    return record


def host_trouble(record: Record) -> str:
    """Why a host needs a look; empty if it does not. A host without Docker has nothing to clean."""
    return record["error"] if record["status"] in ("trouble", "unreachable") else ""


def logs_reclaimed(logs: object) -> list[Record]:
    """What docker_log_truncate would have reclaimed in check mode, as docker_clean takes it in ``assume_reclaimed``.

    A host may answer anything: only bounded numbers, and ids that are ids, are passed on.
    """
    entries = logs.get("logs") if isinstance(logs, t.Mapping) else None
    if not entries or not _counted(entries, "reclaimed_bytes") or len(entries) > _MOST_LOGS:
        return []
    found = []
    for entry in entries:
        ident, size = str(entry.get("container") or ""), entry.get("reclaimed_bytes")
        if isinstance(size, int) and size > 0:
            # A deleted file is no part of what its container has.
            known = entry.get("method") != "deleted" and _ID.fullmatch(ident)
            found.append({"container": ident if known else "", "bytes": int(size)})
    return found


def _result(hostvars: t.Mapping[str, t.Any], name: str) -> dict[str, t.Any]:
    value = hostvars.get(name)
    return dict(value) if isinstance(value, t.Mapping) else {}


def _believable(engine: dict[str, t.Any], logs: dict[str, t.Any], clean: dict[str, t.Any]) -> bool:
    """Whether the parts that are counted with have the shape that modules give them.

    A host that was taken over may answer anything, and must not take the whole fleet's report with it.
    """
    usage, items, totals = (engine.get(name) or {} for name in ("usage", "items", "totals"))
    unread, by_kind = engine.get("unread") or {}, clean.get("reclaimed_by_kind") or {}
    deleted, logs_gone = engine.get("deleted_open") or {}, _deleted_logs(engine)
    if not all(isinstance(part, t.Mapping) for part in (usage, items, totals, unread, deleted, by_kind, engine.get("engine") or {})):
        return False
    return (
        _counted(engine.get("filesystems") or [], "size", "used", "available", needed=True)
        and _counted([*usage.values()], "count", "active", "logical_bytes", "disk_bytes", "reclaimable_bytes")
        and all(_counted(listed, "size", "age") for listed in items.values())
        and _counted([totals], "disk_bytes", "unattributed_bytes", "reclaimable_bytes")
        and _counted([unread], "count")
        and _counted([deleted, logs_gone], "count", "bytes")
        and _counted(deleted.get("largest") or [], "bytes", "pid", "processes")
        and _counted(unread.get("examples") or [])
        and _counted([by_kind], *by_kind)
        and _counted([clean], "planned_bytes", "reclaimed_bytes", "free_after", "assumed_bytes")
        and _counted(clean.get("filesystems") or [], "size", "free_before", "free_after", needed=True)
        and _counted(clean.get("removed") or [], "bytes")
        and _named(clean.get("removed") or [], "kind")
        and _named(engine.get("filesystems") or [], "mount_point")
        and _named(clean.get("filesystems") or [], "mount_point")
        and _counted([logs], "reclaimed_bytes")
        and _counted(logs.get("logs") or [], "bytes_before", "bytes_after", "reclaimed_bytes")
    )


def _deleted_logs(answer: t.Mapping[str, t.Any]) -> t.Any:
    """The way to free logs that were deleted while the engine held them open; empty if there is none."""
    ways = answer.get("reclaimable")
    return ways.get("deleted_logs") or {} if isinstance(ways, t.Mapping) else {}


def _counted(entries: object, *names: str, needed: bool = False) -> bool:
    """Whether it is a list of mappings with numbers under these names; without ``needed`` they may be null or absent."""
    return isinstance(entries, (list, tuple)) and all(
        isinstance(entry, t.Mapping)
        and all(
            (isinstance(entry[name], int) and abs(entry[name]) < 2**60) if entry.get(name) is not None else not needed for name in names
        )
        for entry in entries
    )


def _named(entries: t.Iterable[t.Mapping[str, t.Any]], name: str) -> bool:
    """Whether each of these has a text under a name by which others find it, or null where it is left out."""
    return all(isinstance(entry.get(name), (str, type(None))) for entry in entries)


def _both(first: dict[str, t.Any], again: dict[str, t.Any]) -> dict[str, t.Any]:
    """The logs' result, where a second try was made once there was room: its word counts, their sums add up."""
    if "logs" not in again or "logs" not in first:
        return first
    return {
        **again,
        "changed": bool(first.get("changed") or again.get("changed")),
        "logs": [log for log in first["logs"] if log["method"] != "none"] + again["logs"],
        "reclaimed_bytes": first["reclaimed_bytes"] + again["reclaimed_bytes"],
        "restarted": [*(first.get("restarted") or []), *(again.get("restarted") or [])],
    }


def _without_noise(result: dict[str, t.Any]) -> dict[str, t.Any] | None:
    if not result or result.get("skipped"):
        return None
    return {key: value for key, value in result.items() if key not in ("diff", "invocation", "exception", "warnings")}


def _words(result: dict[str, t.Any]) -> str:
    message = result.get("msg") or result.get("module_stderr") or "the module ended without an answer"
    return printable(_PREFIX.sub("", " ".join(str(message).split())))


def _unreachable_words(result: dict[str, t.Any]) -> str:
    """SSH's own words, without Ansible's around them."""
    words = _words(result)
    for introduction in ("can be reached over ssh: ", "connect to the host via ssh: "):
        words = words.rpartition(introduction)[2]
    return f"unreachable: {words}"


# -- the tables ----------------------------------------------------------------------------------


def fleet_table(records: t.Sequence[Record], table: str, check: bool = False) -> list[str]:
    """Return the lines of the fleet's table.

    :param table: ``clean`` (free before and after, what came free) or ``report`` (what could be had).
    :param check: in check mode: what would come free.
    """
    width = max([len("fleet ")] + [min(len(record["host"]), _LONGEST) for record in records])
    if table == "report":
        return _report_lines(records, width)
    came = "would free" if check else "came free"
    titles = "".join(f"{title:>{max(7, len(title) + 1)}}" for title, _kinds in _KINDS)
    lines = [f"{'host':<{width}} {'free before':>15} {'after':>15} {came:>11} {titles}"]
    total, cleaned, idle, without, look, unasked = 0, 0, 0, 0, 0, 0
    for record in records:
        name = printable(record["host"], width)
        row = clean_figures(record, check)
        if row:
            total += row["freed"] or 0
            before, after = (_free(row[name], record["filesystem"]) for name in ("before", "after"))
            cells = "".join(
                f"{_gigabytes(row['kinds'].get(title)):>{max(7, len(title) + 1)}}" for title, _kinds in _KINDS
            )
            freed = say_size(row["freed"])
            lines.append(f"{name:<{width}} {before:>15} {after:>15} {freed:>11} {cells}".rstrip())
            for line in filesystem_lines(record):
                lines += wrapped(f"{'':<{width}} ", line).split("\n")
        if record["error"]:
            lines += wrapped(f"{name:<{width}} ", record["error"]).split("\n")
        if record["status"] == "no_docker":
            without += 1
        elif record["status"] == "not_asked":
            unasked += 1
        elif record["status"] != "ok":
            look += 1
        elif row and row["changed"]:
            cleaned += 1
        else:
            idle += 1
    parts = [f"{cleaned} {'to clean' if check else 'cleaned'}", f"{idle} had nothing to do"]
    parts += [f"{without} without Docker"] if without else []
    parts += [f"{unasked} not asked"] if unasked else []
    parts += [f"{look} need{'s' if look == 1 else ''} a look"]
    count = f"{len(records)} host{'' if len(records) == 1 else 's'}"
    came_free = f"{say_size(total)} {'would come' if check else 'came'} free"
    return lines + wrapped(f"{'fleet':<{width}} ", f"{count}: {', '.join(parts)}; {came_free}").split("\n")


def clean_figures(record: Record, check: bool) -> dict[str, t.Any] | None:
    """What a clean run did on one host; None if nothing is known of it.

    ``before`` and ``after`` are the bytes available, ``freed`` what came free (in check mode: would), each None where
    nobody saw it; ``kinds`` the same by the table's columns; ``changed`` whether anything was done.
    """
    filesystem, logs, clean = record["filesystem"], record["logs"] or {}, record["clean"] or {}
    if not record["engine"]:
        return None
    log_bytes = logs.get("reclaimed_bytes") or 0
    if check:
        by_kind: dict[str, int] = {}
        for entry in clean.get("removed") or []:
            kind = entry.get("kind") or ""
            by_kind[kind] = by_kind.get(kind, 0) + (entry.get("bytes") or 0)
        freed: int | None = (clean.get("planned_bytes") or 0) + log_bytes
    else:
        by_kind = dict(clean.get("reclaimed_by_kind") or {})
        freed = log_bytes
    by_kind["log"] = log_bytes
    before = filesystem["available"] if filesystem else None
    after = clean.get("free_after", before)
    if after is not None and before is not None:
        # In check mode docker_clean may have been told of the logs already.
        on_root = log_bytes if _has_logs(record) and not clean.get("assumed_bytes") else 0
        after = max(after, before) + on_root if check else after
        if not clean and not check:
            after = before + on_root
        if clean and not check:
            freed = max(0, after - before)  # what the filesystem says counts, not what was claimed
            freed += sum(max(0, entry["after"] - entry["before"]) for entry in further_filesystems(record) if entry["after"] is not None)
    elif clean and not check:
        freed = None  # another machine's disk: nobody saw what came free there
    return {
        "before": before,
        "after": after,
        "freed": freed,
        "kinds": {title: sum(by_kind.get(kind, 0) for kind in kinds) for title, kinds in _KINDS},
        "changed": bool(logs.get("changed") or clean.get("changed")),
    }


def _has_logs(record: Record) -> bool:
    """Whether logs lie on the data root's filesystem."""
    return not any("logs" in _held(filesystem) for filesystem in record["filesystems"][1:])


def _held(filesystem: t.Mapping[str, t.Any]) -> list[str]:
    holds = filesystem.get("holds")
    return [str(category) for category in holds] if isinstance(holds, (list, tuple)) else []


def further_filesystems(record: Record) -> list[dict[str, t.Any]]:
    """What else than the data root's filesystem holds what a host's engine owns: size, bytes available ``before`` and ``after`` (None: not known)."""
    after = {entry.get("mount_point"): entry["free_after"] for entry in (record["clean"] or {}).get("filesystems") or []}
    return [
        {
            "mount_point": printable(filesystem.get("mount_point"), 60),
            "size": filesystem["size"],
            "used": filesystem["used"],
            "before": filesystem["available"],
            "after": after.get(filesystem.get("mount_point")),
            "holds": [printable(category.replace("_", " "), 30) for category in _held(filesystem)[:9]],
        }
        for filesystem in record["filesystems"][1:]
    ]


def filesystem_lines(record: Record) -> list[str]:
    """The same in words, a line for each."""
    found = []
    for entry in further_filesystems(record)[:9]:
        parts = [f"{entry['mount_point']} {say_size(entry['size'])}"]
        if entry["after"] is not None:
            parts.append(f"free {_free(entry['before'], entry)} before, {_free(entry['after'], entry)} after".replace("  ", " "))
        elif entry["size"]:
            parts.append(f"{100 * entry['used'] // entry['size']} % used")
        if entry["holds"]:
            parts.append(f"holds {', '.join(entry['holds'])}")
        found.append(", ".join(parts))
    return found


def _report_lines(records: t.Sequence[Record], width: int) -> list[str]:
    asked = [record for record in records if record["engine"]]
    heads = ["size", "used", "could be had", *(title for title, _category in _CATEGORIES)]
    rows = [_report_cells(record) for record in asked]
    widths = [1 + max(len(cell) for cell in column) for column in zip(heads, *rows)]
    # The names get what the figures leave: first the data root is cut, then the host.
    room = COLUMNS - sum(widths) - 1
    roots = [str(record["engine"]["root_dir"]) for record in asked]
    root_width = max([len("data root")] + [min(len(root), _LONGEST) for root in roots])
    root_width = max(len("data root"), min(root_width, room - width))
    width = min(width, room - root_width)
    lines = [f"{'host':<{width}} {'data root':<{root_width}}{_aligned(heads, widths)}"]
    more = []
    cells = iter(rows)
    for record in records:
        name = printable(record["host"], width)
        if not record["engine"]:
            lines += wrapped(f"{name:<{width}} {'-':<{root_width}} ", record["error"]).split("\n")
            continue
        root = printable(record["engine"]["root_dir"], root_width)
        lines.append(f"{name:<{width}} {root:<{root_width}}{_aligned(next(cells), widths)}"[:COLUMNS])
        if record["error"]:
            lines += wrapped(f"{name:<{width}} ", record["error"]).split("\n")
        for line in filesystem_lines(record):
            more += wrapped(f"{name}: ", line).split("\n")
        items = largest_items(record, 3)
        if items:
            words = " · ".join(_item_line(category, item) for category, item in items)
            more += wrapped(f"{name}, largest: ", words).split("\n")
        for note in notes(record):
            more += wrapped(f"{name}: ", note).split("\n")
    guessed = any("~" in text for text in (*(cell for row in rows for cell in row), *more))
    lines.append("Columns are GB on disk." + (" ~ is the engine's own figure, not measured." if guessed else ""))
    return lines + more


def _aligned(cells: t.Sequence[str], widths: t.Sequence[int]) -> str:
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths))


def _report_cells(record: Record) -> list[str]:
    """Size and use of a host's filesystem, what could be had, and its categories in GB."""
    filesystem = record["filesystem"]
    cells = [say_size(filesystem["size"]) if filesystem else "-"]
    cells.append(f"{100 * filesystem['used'] // filesystem['size']} %" if filesystem and filesystem["size"] else "-")
    cells.append(say_size(could_be_had(record)))
    for _title, category in _CATEGORIES:
        size, measured = category_bytes(record, category)
        cells.append(_gigabytes(size) if measured or not size else f"~{_gigabytes(size)}")
    return cells


def category_bytes(record: Record, category: str) -> tuple[int | None, bool]:
    """The bytes of a category on a host, and whether they were measured on its disk; if not, they are the engine's."""
    usage = record["usage"].get(category)
    if not usage:
        return None, False
    disk = usage.get("disk_bytes")
    return (disk, True) if disk is not None else (usage.get("logical_bytes"), False)


def could_be_had(record: Record) -> int | None:
    """The bytes that could come free on a host; None if that is not known."""
    total = record["totals"].get("reclaimable_bytes")
    if total is not None or not record["usage"]:
        return total
    return sum(usage.get("reclaimable_bytes") or 0 for usage in record["usage"].values())


def largest_items(record: Record, count: int) -> list[tuple[str, dict[str, t.Any]]]:
    """The largest items of all categories of a host, each with its category."""
    found = [(category, item) for category, items in record["items"].items() for item in items if item.get("size")]
    return sorted(found, key=lambda entry: (-entry[1]["size"], entry[0], str(entry[1].get("name"))))[:count]


def item_words(category: str, item: dict[str, t.Any]) -> str:
    """What is worth knowing of an item besides its size: who uses it, its state, its age; often nothing."""
    words = []
    users = [str(user) for user in item.get("used_by") or []]
    if category in ("images", "volumes"):
        if users:
            more = f" and {len(users) - 2} more" if len(users) > 2 else ""
            words.append(f"used by {', '.join(printable(user, 40) for user in users[:2])}{more}")
        elif item.get("last_used") is not None:
            words.append(f"unused for {say_duration(item['last_used'])}")
        else:
            words.append("unused")
    if item.get("state") and item["state"] != "running":
        words.append(printable(item["state"], 20))
    if item.get("reason"):
        words.append(printable(item["reason"], 80))
    if category in ("images", "containers") and item.get("age") and (users or item.get("last_used") is None):
        words.append(f"made {say_duration(item['age'])} ago")
    return ", ".join(words)


def notes(record: Record) -> list[str]:
    """Where a host's figures are not the whole truth, one sentence each."""
    found = []
    totals, unread = record["totals"], record["unread"]
    nobodys, disk = totals.get("unattributed_bytes"), totals.get("disk_bytes")
    if nobodys and disk and nobodys * 100 > disk:
        found.append(f"{say_size(nobodys)} ({100 * nobodys // disk} %) below the data root is nobody's that is known here")
    deleted = _deleted_words(record)
    if deleted:
        found.append(deleted)
    if unread.get("count"):
        first = next(iter(unread.get("examples") or []), None)
        example = f", such as {printable(first.get('path'), 100)}: {printable(first.get('error'), 100)}" if first else ""
        count = unread["count"]
        found.append(f"{count} file{'' if count == 1 else 's'} could not be read and {'is' if count == 1 else 'are'} missing here{example}")
    return found


def _deleted_words(record: Record) -> str:
    """Deleted files that are held open, if they are worth a line: ``144.0 MB are deleted files that pid 4711 (gitlab-runner) holds open``."""
    deleted, filesystem = record["deleted_open"], record["filesystem"] or {}
    size = deleted.get("bytes") or 0
    if size < min(_MANY_DELETED_BYTES, (filesystem.get("size") or 0) // 100 or _MANY_DELETED_BYTES):
        return ""
    by_pid: dict[int, int] = {}
    for entry in deleted.get("largest") or []:
        by_pid[entry.get("pid") or 0] = by_pid.get(entry.get("pid") or 0, 0) + (entry.get("bytes") or 0)
    if not by_pid:
        return f"{say_size(size)} are deleted files that processes hold open"
    pid = max(by_pid, key=lambda number: by_pid[number])
    entry = next(entry for entry in deleted["largest"] if (entry.get("pid") or 0) == pid)
    place = f" in container {printable(entry['container'], 40)}" if entry.get("container") else ""
    who = f"pid {pid} ({printable(entry.get('command') or '?', 40)}{place})"
    alone = by_pid[pid] == size and (entry.get("processes") or 1) == 1
    words = f"{who} holds open" if alone else f"processes hold open, {say_size(by_pid[pid])} of it {who}"
    logs = _deleted_logs(record).get("bytes")
    return f"{say_size(size)} are deleted files that {words}" + (f"; docker_log_truncate frees {say_size(logs)} of it" if logs else "")


def kind_words(category: str) -> str:
    """How an item of a category is called before its name: ``image``, ``log of``."""
    return _ITEM_WORDS.get(category, category.replace("_", " "))


def _item_line(category: str, item: dict[str, t.Any]) -> str:
    name = printable(str(item["name"]).partition(", ")[0], 40)
    words = item_words(category, item)
    size = say_size(item["size"]) if item.get("disk_bytes") is not None else f"~{say_size(item['size'])}"
    return f"{kind_words(category)} {name} {size}" + (f" ({words})" if words else "")


def _free(available: int | None, filesystem: dict[str, t.Any] | None) -> str:
    if available is None or not filesystem or not filesystem["size"]:
        return "-"
    return f"{say_size(available)} {100 * available // filesystem['size']:>3} %"


def _gigabytes(size: int | None) -> str:
    if not size:
        return "-"
    amount = size / 1024**3
    if amount >= 1000:
        return f"{amount:.0f}"
    return f"{amount:.1f}" if amount >= 0.095 else f"{max(amount, 0.01):.2f}"
