# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role says of a fleet: what is wrong with its variables, and the lines that people read at the end.

All of it runs on the controller. The lines are made of host_record.py's records, and of nothing that has not gone through its door.
The words are those of module_utils/words.py, so that a plan, a diff and the fleet's table say the same thing alike.
"""

from __future__ import annotations

import difflib
import re
import typing as t

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.fleetclean.docker.plugins.module_utils import lists, options
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import FleetcleanError
from ansible_collections.fleetclean.docker.plugins.module_utils.stale_readers import cure
from ansible_collections.fleetclean.docker.plugins.module_utils.units import say_duration, say_size
from ansible_collections.fleetclean.docker.plugins.module_utils.words import COLUMNS, printable, wrapped
from ansible_collections.fleetclean.docker.plugins.plugin_utils.host_record import (
    DeletedFile,
    HostRecord,
    Item,
    host_record,
    host_trouble,
    logs_reclaimed,
)

__all__ = ["asks_for_something", "cleanup_problem", "fleet_table", "host_record", "host_trouble", "logs_reclaimed"]

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
#: The most that a column of sizes shows: 9999 TB.
_MAX_COLUMN_BYTES = 9999 * 1024**4
_OURS = tuple(f"cleanup_{section}_" for section in (*options.SECTIONS, "logs", "keep", "free", "only_below"))


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
    given = lists.split_lists({name: _plain(value) for name, value in values.items() if value is not None}, spec)
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


# -- the tables ----------------------------------------------------------------------------------


def fleet_table(records: t.Sequence[HostRecord], table: str, check: bool = False) -> list[str]:
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
    total, cleaned, idle, without, look, unasked, running = 0, 0, 0, 0, 0, 0, 0
    for record in records:
        name = printable(record["host"], width)
        row = clean_figures(record, check) if record["status"] != "running" else None
        if row:
            total += row.freed or 0
            size = record["filesystem"]["size"] if record["filesystem"] else 0
            before, after = _free(row.before, size), _free(row.after, size)
            cells = "".join(
                f"{_gigabytes(row.kinds.get(title)):>{max(7, len(title) + 1)}}" for title, _kinds in _KINDS
            )
            freed = _size(row.freed)
            lines.append(f"{name:<{width}} {before:>15} {after:>15} {freed:>11} {cells}".rstrip())
            for line in [*filesystem_lines(record), *reader_lines(record, check)]:
                lines += wrapped(f"{'':<{width}} ", line).split("\n")
        if record["error"]:
            lines += wrapped(f"{name:<{width}} ", record["error"]).split("\n")
        if record["status"] == "no_docker":
            without += 1
        elif record["status"] == "not_asked":
            unasked += 1
        elif record["status"] == "running":
            running += 1
        elif record["status"] != "ok":
            look += 1
        elif row and row.is_changed:
            cleaned += 1
        else:
            idle += 1
    parts = [f"{cleaned} {'to clean' if check else 'cleaned'}", f"{idle} had nothing to do"]
    parts += [f"{without} without Docker"] if without else []
    parts += [f"{unasked} not asked"] if unasked else []
    parts += [f"{running} still running"] if running else []
    parts += [f"{look} need{'s' if look == 1 else ''} a look"]
    count = f"{len(records)} host{'' if len(records) == 1 else 's'}"
    came_free = f"{say_size(total)} {'would come' if check else 'came'} free"
    return lines + wrapped(f"{'fleet':<{width}} ", f"{count}: {', '.join(parts)}; {came_free}").split("\n")


class CleanFigures(t.NamedTuple):
    """What a clean run did on one host, in bytes; None where nobody saw it.

    ``before`` and ``after`` are available, ``freed`` is what came free (in check mode: would), ``kinds`` the same by the table's
    columns; ``is_changed``: whether anything was done.
    """

    before: int | None
    after: int | None
    freed: int | None
    kinds: t.Mapping[str, int]
    is_changed: bool


def clean_figures(record: HostRecord, check: bool) -> CleanFigures | None:
    """What a clean run did on one host; None if nothing is known of it."""
    filesystem, logs, clean = record["filesystem"], record["logs"], record["clean"]
    if not record["engine"]:
        return None
    log_bytes = (logs["reclaimed_bytes"] or 0) if logs else 0
    by_kind: dict[str, int] = {}
    freed: int | None = log_bytes
    if check and clean:
        for entry in clean["removed"]:
            size = entry["logical_bytes"] if entry["bytes"] is None else entry["bytes"]
            by_kind[entry["kind"]] = by_kind.get(entry["kind"], 0) + (size or 0)
        planned = clean["planned_logical_bytes"] if clean["planned_bytes"] is None else clean["planned_bytes"]
        freed = (planned or 0) + log_bytes
    elif clean:
        by_kind = dict(clean["reclaimed_by_kind"])
    by_kind["log"] = log_bytes
    before = filesystem["available"] if filesystem else None
    after = clean["free_after"] if clean and clean["free_after"] is not None else before
    if after is not None and before is not None:
        # In check mode docker_clean may have been told of the logs already.
        on_root = log_bytes if _has_logs(record) and not (clean and clean["assumed_bytes"]) else 0
        after = max(after, before) + on_root if check else after
        if not clean and not check:
            after = before + on_root
        if clean and not check:
            freed = max(0, after - before)  # what the filesystem says counts, not what was claimed
            freed += sum(max(0, entry.after - entry.before) for entry in further_filesystems(record) if entry.after is not None)
    elif clean and not check:
        freed = None  # another machine's disk: nobody saw what came free there
    kinds = {title: sum(by_kind.get(kind, 0) for kind in kinds) for title, kinds in _KINDS}
    return CleanFigures(before, after, freed, kinds, bool(logs and logs["changed"]) or bool(clean and clean["changed"]))


def _has_logs(record: HostRecord) -> bool:
    """Whether logs lie on the data root's filesystem."""
    return not any("logs" in filesystem["holds"] for filesystem in record["filesystems"][1:])


class FurtherFilesystem(t.NamedTuple):
    """A filesystem besides the data root's; bytes available ``before`` and ``after`` (None: not known)."""

    mount_point: str
    size: int
    used: int
    before: int
    after: int | None
    holds: t.Sequence[str]


def further_filesystems(record: HostRecord) -> list[FurtherFilesystem]:
    """What else than the data root's filesystem holds what a host's engine owns."""
    after = {entry["mount_point"]: entry["free_after"] for entry in (record["clean"]["filesystems"] if record["clean"] else ())}
    return [
        FurtherFilesystem(
            printable(filesystem["mount_point"], 60), filesystem["size"], filesystem["used"], filesystem["available"],
            after.get(filesystem["mount_point"]), [printable(category.replace("_", " "), 30) for category in filesystem["holds"][:9]],
        )
        for filesystem in record["filesystems"][1:]
    ]


def filesystem_lines(record: HostRecord) -> list[str]:
    """The same in words, a line for each."""
    found = []
    for entry in further_filesystems(record)[:9]:
        parts = [f"{entry.mount_point} {say_size(entry.size)}"]
        if entry.after is not None:
            parts.append(f"free {_free(entry.before, entry.size)} before, {_free(entry.after, entry.size)} after".replace("  ", " "))
        elif entry.size:
            parts.append(f"{_percent(entry.used, entry.size)} % used")
        if entry.holds:
            parts.append(f"holds {', '.join(entry.holds)}")
        found.append(", ".join(parts))
    return found


def reader_lines(record: HostRecord, check: bool) -> list[str]:
    """Whose `docker logs` is stale on a host, which logs stay for that, and what cures it; a line for each, often none."""
    logs, engine = record["logs"], record["engine"]
    if not logs or not engine:
        return []
    found = []
    cured_by = cure(engine["live_restore"], (engine["swarm"] or "inactive") != "inactive", "cleanup_logs_")
    stale = sorted({log["name"] or "" for log in logs["logs"] if log["readers"] == "stale"})
    if stale:
        found.append(f"docker logs --tail and -f {'would be' if check else 'are'} stale for {_some_names(stale)}; cured by {cured_by}")
    spared = [log for log in logs["logs"] if log["readers"] == "spared"]
    if spared:
        size = say_size(sum(max(0, log["bytes_before"] or 0) for log in spared))
        found.append(
            f"{size} of logs stay, since docker logs --tail and -f would be stale: {_some_names(sorted({log['name'] or '' for log in spared}))}; ways out: "
            f"{cured_by}; new containers with max-size; cleanup_logs_stale_readers: allow"
        )
    if logs["live_restore_file"]:
        found.append(f"live-restore {'would be turned on in' if check else 'is on now, in'} {printable(logs['live_restore_file'], 60)}")
    return found


def _some_names(names: t.Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(printable(name, 40) for name in names[:3])}{more}"


def _report_lines(records: t.Sequence[HostRecord], width: int) -> list[str]:
    asked = [(record, record["engine"]["root_dir"]) for record in records if record["engine"]]
    heads = ["size", "used", "could be had", *(title for title, _category in _CATEGORIES)]
    rows = [_report_cells(record) for record, _root in asked]
    widths = [1 + max(len(cell) for cell in column) for column in zip(heads, *rows)]
    # The names get what the figures leave: first the data root is cut, then the host.
    room = COLUMNS - sum(widths) - 1
    root_width = max([len("data root")] + [min(len(root), _LONGEST) for _record, root in asked])
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


def _report_cells(record: HostRecord) -> list[str]:
    """Size and use of a host's filesystem, what could be had, and its categories in GB."""
    filesystem = record["filesystem"]
    cells = [_size(filesystem["size"]) if filesystem else "-"]
    cells.append(f"{_percent(filesystem['used'], filesystem['size'])} %" if filesystem and filesystem["size"] else "-")
    cells.append(_size(could_be_had(record)))
    for _title, category in _CATEGORIES:
        size, measured = category_bytes(record, category)
        cells.append(_gigabytes(size) if measured or not size else f"~{_gigabytes(size)}")
    return cells


def category_bytes(record: HostRecord, category: str) -> tuple[int | None, bool]:
    """The bytes of a category on a host, and whether they were measured on its disk; if not, they are the engine's."""
    usage = record["usage"].get(category)
    if not usage:
        return None, False
    disk = usage["disk_bytes"]
    return (disk, True) if disk is not None else (usage["logical_bytes"], False)


def could_be_had(record: HostRecord) -> int | None:
    """The bytes that could come free on a host; None if that is not known."""
    total = record["totals"]["reclaimable_bytes"]
    if total is not None or not record["usage"]:
        return total
    return sum(usage["reclaimable_bytes"] or 0 for usage in record["usage"].values())


def largest_items(record: HostRecord, count: int) -> list[tuple[str, Item]]:
    """The largest items of all categories of a host, each with its category."""
    found = [(category, item) for category, items in record["largest"].items() for item in items if item["size"]]
    return sorted(found, key=lambda entry: (-entry[1]["size"], entry[0], entry[1]["name"]))[:count]


def item_words(category: str, item: Item) -> str:
    """What is worth knowing of an item besides its size: who uses it, its state, its age; often nothing."""
    words = []
    users, last_used, age = item["used_by"], item.get("last_used"), item["age"]
    if category in ("images", "volumes"):
        if users:
            more = f" and {len(users) - 2} more" if len(users) > 2 else ""
            words.append(f"used by {', '.join(printable(user, 40) for user in users[:2])}{more}")
        elif last_used is not None:
            words.append(f"unused for {say_duration(last_used)}")
        else:
            words.append("unused")
    state, reason = item.get("state"), item.get("reason")
    if state and state != "running":
        words.append(printable(state, 20))
    if reason:
        words.append(printable(reason, 80))
    if category in ("images", "containers") and age and (users or last_used is None):
        words.append(f"made {say_duration(age)} ago")
    return ", ".join(words)


def notes(record: HostRecord) -> list[str]:
    """Where a host's figures are not the whole truth, one sentence each."""
    found = []
    unread = record["unread"]
    nobodys, disk = record["totals"]["unattributed_bytes"], record["totals"]["disk_bytes"]
    if nobodys and disk and nobodys * 100 > disk > 0:
        found.append(f"{say_size(nobodys)} ({_percent(nobodys, disk)} %) below the data root is nobody's that is known here")
    deleted = _deleted_words(record)
    if deleted:
        found.append(deleted)
    count = unread["count"]
    if count:
        first = next(iter(unread["examples"]), None)
        example = f", such as {printable(first['path'], 100)}: {printable(first['error'], 100)}" if first else ""
        found.append(f"{count} file{'' if count == 1 else 's'} could not be read and {'is' if count == 1 else 'are'} missing here{example}")
    return found


def _deleted_words(record: HostRecord) -> str:
    """Deleted files that are held open, if they are worth a line: ``144.0 MB are deleted files that pid 4711 (gitlab-runner) holds open``."""
    deleted, filesystem = record["deleted_open"], record["filesystem"]
    size = deleted["bytes"] or 0
    if size < min(_MANY_DELETED_BYTES, (filesystem["size"] if filesystem else 0) // 100 or _MANY_DELETED_BYTES):
        return ""
    by_pid: dict[int, list[DeletedFile]] = {}
    for entry in deleted["largest"]:
        by_pid.setdefault(entry["pid"] or 0, []).append(entry)
    if not by_pid:
        return f"{say_size(size)} are deleted files that processes hold open"
    sums = {pid: sum(entry["bytes"] or 0 for entry in entries) for pid, entries in by_pid.items()}
    pid = max(sums, key=lambda number: sums[number])
    entry = by_pid[pid][0]
    place = f" in container {printable(entry['container'], 40)}" if entry["container"] else ""
    who = f"pid {pid} ({printable(entry['command'] or '?', 40)}{place})"
    alone = sums[pid] == size and (entry["processes"] or 1) == 1
    words = f"{who} holds open" if alone else f"processes hold open, {say_size(sums[pid])} of it {who}"
    logs = record["reclaimable"]["deleted_logs"]["bytes"] if "deleted_logs" in record["reclaimable"] else None
    return f"{say_size(size)} are deleted files that {words}" + (f"; docker_log_truncate frees {say_size(logs)} of it" if logs else "")


def kind_words(category: str) -> str:
    """How an item of a category is called before its name: ``image``, ``log of``."""
    return _ITEM_WORDS.get(category, category.replace("_", " "))


def _item_line(category: str, item: Item) -> str:
    name = printable(item["name"].partition(", ")[0], 40)
    words = item_words(category, item)
    size = say_size(item["size"]) if item["disk_bytes"] is not None else f"~{say_size(item['size'])}"
    return f"{kind_words(category)} {name} {size}" + (f" ({words})" if words else "")


# What follows fits its column, whatever a host says: one that lies has its own line alone to spoil.


def _size(size: int | None) -> str:
    return say_size(size if size is None else max(0, min(size, _MAX_COLUMN_BYTES)))


def _percent(part: int, whole: int) -> int:
    return max(0, min(999, 100 * part // whole)) if whole > 0 else 0


def _free(available: int | None, size: int) -> str:
    if available is None or not size:
        return "-"
    return f"{_size(available)} {_percent(available, size):>3} %"


def _gigabytes(size: int | None) -> str:
    if not size:
        return "-"
    amount = min(size / 1024**3, 99_999)
    if amount >= 1000:
        return f"{amount:.0f}"
    return f"{amount:.1f}" if amount >= 0.095 else f"{max(amount, 0.01):.2f}"
