# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet's report as one HTML page: from the records of host_record.py to text, nothing read and nothing written.

The page needs no network and, for reading, no script. First the fleet's figures, then the hosts that could not be asked with
their reason, then one bar a host by category, which opens to its largest items.

Everything that comes from a host is somebody else's: names, labels, tags, paths, errors, and after a break-in the figures
too. So text reaches the page through `_text` alone, numbers through `_number`; there are no data in the script, and the
Content-Security-Policy lets a browser run just that script, apply just that style, and load nothing at all.
"""

from __future__ import annotations

import base64
import hashlib
import html
import typing as t
from dataclasses import dataclass, field

from ansible_collections.fleetclean.docker.plugins.module_utils.units import say_duration, say_size
from ansible_collections.fleetclean.docker.plugins.plugin_utils import fleet, page_look
from ansible_collections.fleetclean.docker.plugins.plugin_utils.host_record import HostRecord, Usage

#: The order of segments in every bar and in the legend; what is unknown here counts as other.
_CATEGORIES = (
    "images", "containers", "volumes", "build_cache", "logs", "container_metadata", "engine_metadata", "tmp", "leftovers", "unattributed",
)
#: Kinds of objects in docker_clean's result, and the colour they have.
_KINDS = {"containers": "containers", "images": "images", "volumes": "volumes", "cache": "build_cache", "logs": "logs"}
_KIND_OF = {
    "container": "containers", "image": "images", "tag": "images", "volume": "volumes", "network": "network", "build_cache": "build_cache",
    "log": "logs", "leftover": "leftovers",
}
_WORDS = {
    "build_cache": "cache", "container_metadata": "container metadata", "engine_metadata": "engine metadata",
    "unattributed": "unattributed", "other": "everything else", "free": "free",
}
#: Types of filesystems that an engine mounts below its data root.
_ENGINES_MOUNTS = ("overlay", "aufs", "fuse.fuse-overlayfs", "tmpfs", "nsfs", "mqueue", "proc", "sysfs")
#: How many items a host shows at most, and how many all of them together (but at least a few each): what bounds the page's size.
_MOST_ITEMS, _MOST_ITEMS_OF_ALL, _FEW = 12, 4000, 4
#: Reasons that are shown at once; the others have to be opened.
_MOST_REASONS = 12


@dataclass(frozen=True)
class _Part:
    """A segment of a bar."""

    category: str
    size: int
    measured: bool = True

    @property
    def words(self) -> str:
        return f"{_words(self.category)} {_size(self.size, self.measured)}"


@dataclass
class _Host:
    """A host, or all of them, as the page shows it; sizes in bytes, None where nobody knows."""

    name: str
    size: int | None
    used: int | None
    #: What could be had; after a clean run, what came free.
    gain: int | None
    parts: list[_Part] = field(default_factory=list)

    @property
    def percent(self) -> int | None:
        return 100 * self.used // self.size if self.used is not None and self.size else None

    def part(self, category: str) -> int:
        return sum(part.size for part in self.parts if part.category == category)


def fleet_page(records: t.Sequence[HostRecord], table: str, check: bool = False, made: str = "") -> str:
    """Return the page, a whole HTML document.

    :param table: ``report`` (where the space has gone) or ``clean`` (what came free), as for fleet.fleet_table.
    :param check: in check mode: what would come free.
    :param made: when the run was, in words for people.
    """
    view = _Report() if table == "report" else _Clean(check)
    hosts = [(view.host(record), record) for record in records if record["engine"]]
    hosts.sort(key=lambda entry: (-(entry[0].gain or 0), entry[0].name))
    body = [
        f'<header><h1>{view.title}</h1><p class="soft">{_count(len(records), "host")}{" · " + _text(made) if made else ""}</p></header>',
        _fleet(view, records, [host for host, _record in hosts]),
        _reasons(records),
        _hosts(view, hosts),
        f"<footer>{''.join(f'<p>{line}</p>' for line in view.footer([host for host, _record in hosts]))}</footer>",
    ]
    policy = (
        f"default-src 'none'; style-src '{_hash(page_look.STYLE)}'; script-src '{_hash(page_look.SCRIPT)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en" dir="ltr">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{view.title}</title>\n<style>{page_look.STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + f"\n</main>\n<script>{page_look.SCRIPT}</script>\n</body>\n</html>\n"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# -- what a report and a clean run each have to say ------------------------------------------------


class _Report:
    """Where the space has gone, and what could be had."""

    title = "Where the disk space of Docker hosts has gone"
    gain = "could be had"
    #: Whether bars show what was measured (else what came free), and whether something was done.
    measures, done = True, False
    #: Of what the bars' segments are made, which the legend offers for sorting.
    categories: t.Sequence[str] = (*_CATEGORIES, "other")

    def host(self, record: HostRecord) -> _Host:
        size, used = _filesystem(record)
        host = _Host(record["host"], size, used, _number(fleet.could_be_had(record)))
        sizes: dict[str, _Part] = {}
        for name in record["usage"]:
            known = name if name in _CATEGORIES else "other"
            amount, measured = fleet.category_bytes(record, name)
            before = sizes.get(known, _Part(known, 0))
            sizes[known] = _Part(known, before.size + (_number(amount) or 0), measured and before.measured)
        # What else lies on the same filesystem is no engine's, but it is part of how full the disk is.
        rest = (used or 0) - sum(part.size for part in sizes.values())
        if rest > 0:
            before = sizes.get("other", _Part("other", 0))
            sizes["other"] = _Part("other", before.size + rest, before.measured)
        host.parts = [sizes[name] for name in self.categories if name in sizes and sizes[name].size]
        return host

    def more(self, record: HostRecord, items: int) -> str:
        return _usage_table(record) + _ways(record, items) + _items(record, items)

    def footer(self, hosts: t.Sequence[_Host]) -> list[str]:
        lines = [
            "Sizes are on disk (blocks that are allocated), in powers of 1024. A bar is a host's disk: its categories, everything else on the "
            "same filesystem, and what is free. The green line below it is what could be had.",
            "What could be had is what nothing uses and logs; what of it goes is for a profile to decide.",
        ]
        if any(not part.measured for host in hosts for part in host.parts):
            lines.append("~ is the engine's own figure, not measured on the disk.")
        return lines


class _Clean:
    """What came free, or in check mode would."""

    categories: t.Sequence[str] = ("containers", "images", "volumes", "build_cache", "logs", "other")

    def __init__(self, check: bool) -> None:
        self.measures, self.done = False, not check
        self.title = "What would come free on Docker hosts" if check else "What came free on Docker hosts"
        self.gain = "would come free" if check else "came free"

    def host(self, record: HostRecord) -> _Host:
        figures = fleet.clean_figures(record, check=not self.done)
        size, used = _filesystem(record)
        freed, after = (_number(figures.freed), _number(figures.after)) if figures else (None, None)
        if size is not None and after is not None:
            several = len(record["filesystems"]) > 1
            used = max(0, (used or 0) - (freed or 0)) if several else max(0, size - after)
        host = _Host(record["host"], size, used, freed)
        kinds = {_KINDS[title]: _number(amount) or 0 for title, amount in figures.kinds.items()} if figures else {}
        host.parts = [_Part(name, kinds[name]) for name in self.categories if kinds.get(name)]
        return host

    def more(self, record: HostRecord, items: int) -> str:
        return _wished(record) + _removed(record, items, self.done) + _kept(record) + _failures(record, items)

    def footer(self, hosts: t.Sequence[_Host]) -> list[str]:
        return [
            f"A bar is a host's disk: what is still used, what {self.gain} by kind of object, and what was free before. "
            "Sizes are in powers of 1024; those of kinds are as measured after each step, and in check mode the plan's."
        ]


_View = t.Union[_Report, _Clean]


# -- the fleet -------------------------------------------------------------------------------------


#: Hosts that have no figures and need no look.
_ASIDE = (("no_docker", "without Docker"), ("running", "still running"), ("not_asked", "not asked"))


def _fleet(view: _View, records: t.Sequence[HostRecord], hosts: t.Sequence[_Host]) -> str:
    size = sum(host.size or 0 for host in hosts if host.used is not None)
    used = sum(host.used or 0 for host in hosts if host.size is not None)
    gain = sum(host.gain or 0 for host in hosts)
    look = [record for record in records if fleet.host_trouble(record)]
    others = [(status, words) for status, words in _ASIDE if _having(records, status)]
    aside = ", ".join(f"{_having(records, status)} {words}" for status, words in others)
    used_words = f"of {say_size(size)}, {100 * used // size} %" if size else "no disk was seen"
    bad = (("unreachable", "unreachable"), ("trouble", "in trouble"), ("refused", "with refused variables"))
    kinds = [(status, words) for status, words in bad if _having(look, status)]
    tiles = [
        ("", "used now" if view.done else "used", say_size(used) if size else "-", used_words),
        ("had", f'<i class="gain"></i>{view.gain}', say_size(gain) if hosts else "-", f"{100 * gain // size} % of the disks" if size else ""),
        (
            "bad" if look else "", "needs a look" if len(look) == 1 else "need a look", _count(len(look), "host"),
            ", ".join(f"{_having(look, status)} {words}" for status, words in kinds) or "none",
        ),
        ("", "asked", _count(len(hosts), "host"), aside or f"of {len(records)}"),
    ]
    figures = "".join(
        f'<div class="{name}"><dt>{title}</dt><dd>{figure}</dd><dd>{words}</dd></div>' for name, title, figure, words in tiles
    )
    sums = [
        _Part(name, sum(host.part(name) for host in hosts), all(part.measured for host in hosts for part in host.parts if part.category == name))
        for name in view.categories
    ]
    sums = [part for part in sums if part.size]
    whole = _Host("the fleet", size or None, used if size else None, gain, sums)
    legend = "".join(
        f'<li><button type="button" disabled data-sort="{2 + view.categories.index(part.category)}" data-says="{_words(part.category)}" aria-pressed="false">'
        f'<i class="{part.category}"></i>{_words(part.category)}<b>{_size(part.size, part.measured)}</b></button></li>'
        for part in sums
    )
    # What no button is for: it is no category.
    if size:
        legend += "" if view.measures else f'<li><span><i class="other"></i>still used<b>{say_size(used)}</b></span></li>'
        legend += f'<li><span><i class="free"></i>free<b>{say_size(size - used)}</b></span></li>'
    drawn = (
        f'<div class="card whole">{_bar(view, whole)}'
        f'<ul class="legend" aria-label="Sums over the fleet; a button sorts the hosts by its category">{legend}</ul></div>'
    )
    return f'<section aria-label="The fleet"><dl class="figures">{figures}</dl>{drawn if sums else ""}</section>'


def _having(records: t.Sequence[HostRecord], status: str) -> int:
    return sum(1 for record in records if record["status"] == status)


def _reasons(records: t.Sequence[HostRecord]) -> str:
    """Who could not be asked or has trouble, and why: the hosts that need a look first."""
    sections = []
    look = [record for record in records if fleet.host_trouble(record)]
    aside = [record for record in records if record["error"] and not fleet.host_trouble(record)]
    for name, title, found in (("bad", "Needs a look", look), ("aside", "Not part of it", aside)):
        if not found:
            continue
        lines = [
            f'<li><h3><bdi>{_text(record["host"], 120)}</bdi></h3><p>{_text(record["error"], 700)}</p></li>'
            for record in sorted(found, key=lambda record: (record["status"], str(record["host"])))
        ]
        shown, rest = lines[:_MOST_REASONS], lines[_MOST_REASONS:]
        more = f'<details><summary>{_count(len(rest), "more host")}</summary><ul class="reasons">{"".join(rest)}</ul></details>' if rest else ""
        sections.append(
            f'<section class="{name}"><div class="top"><h2>{title}: {_count(len(found), "host")}</h2></div>'
            f'<div class="card"><ul class="reasons">{"".join(shown)}</ul>{more}</div></section>'
        )
    return "\n".join(sections)


# -- the hosts -------------------------------------------------------------------------------------


def _hosts(view: _View, hosts: t.Sequence[tuple[_Host, HostRecord]]) -> str:
    if not hosts:
        return ""
    items = max(_FEW, min(_MOST_ITEMS, _MOST_ITEMS_OF_ALL // len(hosts)))
    heads = (
        '<div class="heads row"><span class="name"><button type="button" disabled data-sort="host" data-says="host" aria-pressed="false">host</button></span>'
        '<span class="disk">disk by category</span>'
        '<span class="figure used"><button type="button" disabled data-sort="1" data-says="used" aria-pressed="false">used</button></span>'
        f'<span class="figure had"><button type="button" disabled data-sort="0" data-says="{view.gain}" aria-pressed="true">{view.gain}</button></span></div>'
    )
    tools = (
        '<div class="tools"><label class="unseen" for="find">Find a host</label>'
        '<input id="find" type="search" placeholder="Find a host" autocomplete="off" spellcheck="false">'
        '<button type="button" id="all" aria-expanded="false">Open all</button></div>'
    )
    return (
        f'<section><div class="top"><h2>Hosts</h2>{tools}</div>{heads}<p class="unseen" id="said" role="status"></p>\n'
        f'<ol class="hosts card" id="hosts">\n{chr(10).join(_row(view, host, record, items) for host, record in hosts)}\n</ol></section>'
    )


def _row(view: _View, host: _Host, record: HostRecord, items: int) -> str:
    engine = record["engine"]
    values = [host.gain or 0, 1000 * (host.used or 0) // (host.size or 1), *(host.part(name) for name in view.categories)]
    largest = sorted(host.parts, key=lambda part: (part.category == "other", -part.size))[:4]
    parts = "".join(f'<span><i class="{part.category}"></i>{part.words}</span>' for part in largest) or "nothing"
    root = " · ".join(_text(word, 60) for word in ((engine["root_dir"], engine["storage_driver"]) if engine else ()) if word)
    full = "full" if host.percent is not None and host.percent >= 99 else "nearly full" if host.percent is not None and host.percent >= 90 else ""
    used = f"<b>{host.percent} %</b>{f'<small class=full>{full}</small>' if full else ''}" if host.percent is not None else "<b>-</b>"
    of = f"{say_size(host.used)} of {say_size(host.size)}" if host.size is not None else "disk not seen"
    share = f"{100 * (host.gain or 0) // host.size} % of the disk" if host.size and host.gain else ""
    trouble = '<small class="why">needs a look, see above</small>' if fleet.host_trouble(record) else ""
    return (
        f'<li data-v="{" ".join(str(value) for value in values)}"><details><summary class="row">'
        f'<div class="name"><h3><bdi>{_text(host.name, 120)}</bdi></h3><small><bdi>{root}</bdi></small>{trouble}</div>'
        f'<div class="disk">{_bar(view, host)}<small class="parts">{parts}</small></div>'
        f'<div class="figure used">{used}<small>{of}</small></div>'
        f'<div class="figure had"><b>{say_size(host.gain)}</b><small>{share}</small></div>'
        f'</summary><div class="more">{_facts(record)}{view.more(record, items)}{_notes(record, view)}</div></details></li>'
    )


def _bar(view: _View, host: _Host) -> str:
    """The disk as one bar. Widths are attributes of rectangles: the page's policy allows no style of their own."""
    total = sum(part.size for part in host.parts)
    parts = list(host.parts)
    if not view.measures:
        # What came free is what the filesystem says; the kinds share it by what each is said to have brought.
        gain = min(host.gain if host.gain is not None else total, (host.size or total))
        parts = [_Part(part.category, part.size * gain // total) for part in parts] if total else []
        total = sum(part.size for part in parts)
        if host.used:
            parts.insert(0, _Part("other", host.used))
            total += host.used
    whole = max(host.size or 0, total, 1)
    x, rects = 0, []
    for part in parts:
        width = 1000 * part.size // whole
        if width:
            rects.append(f'<rect class="{part.category}" x="{x}" width="{width}" height="{12 if view.measures else 16}"/>')
            x += width
    if view.measures and host.gain:
        rects.append(f'<rect class="line" y="13" width="{max(3, min(1000, 1000 * host.gain // whole))}" height="3"/>')
    words = ", ".join(part.words for part in host.parts)
    if host.size is not None and host.used is not None:
        words = f"{words}{'; ' if words else ''}{say_size(host.used)} of {say_size(host.size)} used"
    label = f"Disk of {_text(host.name, 120)}: {words}; {say_size(host.gain)} {view.gain}"
    return f'<svg class="bar" role="img" aria-label="{label}" viewBox="0 0 1000 16" preserveAspectRatio="none">{"".join(rects)}</svg>'


def _facts(record: HostRecord) -> str:
    engine, filesystem, measured = record["engine"], record["filesystem"], record["measured"]
    facts = []
    if engine and engine["version"]:
        facts.append(f"Docker {_text(engine['version'], 40)}")
    if engine and engine["storage_driver"]:
        on = f" on {_text(filesystem['type'], 20)}" if filesystem and filesystem["type"] else ""
        facts.append(f"{_text(engine['storage_driver'], 40)}{on}")
    facts += [_text(line, 200) for line in fleet.filesystem_lines(record)]
    roots = record["roots"]
    facts += [f"<bdi>{_text(root['path'], 120)}</bdi> {_size(_number(root['disk_bytes']))}" for root in roots[:4]]
    facts += [f"<bdi>{_text(engine['root_dir'], 120)}</bdi>"] if engine and not roots else []
    if measured["mode"] == "exact":
        seconds = measured["seconds"]
        took = f" in {say_duration(seconds)}" if seconds is not None and 1 <= seconds < 1e9 else ""
        facts.append(f"every byte measured{took}")
    return f'<p class="soft wide">{" · ".join(facts)}</p>'


def _usage_table(record: HostRecord) -> str:
    rows = []
    usages = record["usage"]
    for name in (*_CATEGORIES, *sorted(set(usages) - set(_CATEGORIES))[:5]):
        usage = usages.get(name)
        if not usage:
            continue
        amount, measured = fleet.category_bytes(record, name)
        shared = _number(usage["shared_bytes"])
        rows.append(
            f'<tr><th scope="row"><i class="{name if name in _CATEGORIES else "other"}"></i>{_words(name)}</th>'
            f"<td>{_in_use(usage)}</td>"
            f"<td>{_size(_number(amount), measured)}{f'<br><small>{say_size(shared)} shared</small>' if shared else ''}</td>"
            f"<td>{_size(_number(usage['reclaimable_bytes']))}</td></tr>"
        )
    if not rows:
        return ""
    heads = "".join(f'<th scope="col">{title}</th>' for title in ('<span class="unseen">category</span>', "in use", "on disk", "could be had"))
    return f'<div><h4>By category</h4><table><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _ways(record: HostRecord, count: int) -> str:
    sized = [(name, way, _number(way["bytes"]) or 0) for name, way in record["reclaimable"].items()]
    sized = sorted((entry for entry in sized if entry[2]), key=lambda entry: (-entry[2], entry[0]))
    # The sum of them all comes last.
    whole = [entry for entry in sized if entry[0] == "everything_unused"]
    lines = [
        f"<li><span>{_text(name.replace('_', ' '), 40)}{_objects(way['count'])}</span><b>{say_size(size)}</b>{_small(way['means'], 200)}</li>"
        for name, way, size in [entry for entry in sized if entry not in whole][:count] + whole
    ]
    return f'<div><h4>What could be had, and how</h4><ul class="sizes">{"".join(lines)}</ul></div>' if lines else ""


def _items(record: HostRecord, count: int) -> str:
    lines = [
        _line(
            category, fleet.kind_words(category), item["name"], _size(_number(item["size"]), item["disk_bytes"] is not None),
            fleet.item_words(category, item),
        )
        for category, item in fleet.largest_items(record, count)
    ]
    return f'<div class="wide"><h4>Largest</h4><ul class="sizes">{"".join(lines)}</ul></div>' if lines else ""


def _wished(record: HostRecord) -> str:
    lines = [f"<li>{_text(line)}</li>" for line in record["clean"]["policy"][:_MOST_ITEMS]] if record["clean"] else []
    return f'<div class="wide"><h4>What was wished</h4><ul>{"".join(lines)}</ul></div>' if lines else ""


def _removed(record: HostRecord, count: int, done: bool) -> str:
    entries = [
        (_number(entry["logical_bytes"] if entry["bytes"] is None else entry["bytes"]) or 0, entry["kind"], entry["name"], entry["reason"])
        for entry in (record["clean"]["removed"] if record["clean"] else ())
    ]
    for log in record["logs"]["logs"] if record["logs"] else ():
        if log["readers"] == "spared":
            continue
        cut = f"cut from {say_size(_number(log['bytes_before']))} to {say_size(_number(log['bytes_after']))}"
        words = log["words"] or cut
        if log["readers"] == "stale":
            words = f"{words if log['method'] == 'none' else cut}; docker logs --tail and -f are not right until the container is started again"
        entries.append((_number(log["reclaimed_bytes"]) or 0, "log", log["name"] or "", words))
    entries.sort(key=lambda entry: -entry[0])
    lines = [
        _line(_KIND_OF.get(kind, "other"), kind.replace("_", " "), name, say_size(size), reason) for size, kind, name, reason in entries[:count]
    ]
    rest = entries[count:]
    if rest:
        lines.append(f'<li><span class="soft">and {len(rest)} more</span><b>{say_size(sum(entry[0] for entry in rest))}</b></li>')
    title = "What went" if done else "What would go"
    return f'<div><h4>{title}</h4><ul class="sizes">{"".join(lines) or "<li>nothing</li>"}</ul></div>'


def _kept(record: HostRecord) -> str:
    kept = [(entry, _number(entry["bytes"])) for entry in (record["clean"]["kept"] if record["clean"] else ())]
    kept.sort(key=lambda entry: -(entry[1] or 0))
    lines = [
        f"<li><span>{_figure(entry['count'])} {_text(entry['kind'].replace('_', ' '), 20)}{'' if entry['count'] == 1 else 's'}</span>"
        f"<b>{say_size(size)}</b>{_small(entry['reason'], 160)}</li>"
        for entry, size in kept[:_MOST_ITEMS]
    ]
    return f'<div><h4>What stays, and why</h4><ul class="sizes">{"".join(lines)}</ul></div>' if lines else ""


def _failures(record: HostRecord, count: int) -> str:
    failures = record["clean"]["failures"] if record["clean"] else []
    lines = [
        _line(_KIND_OF.get(entry["kind"], "other"), entry["kind"].replace("_", " "), entry["name"], "", entry["error"])
        for entry in failures[:count]
    ]
    return f'<div class="wide"><h4>What could not be removed</h4><ul class="sizes">{"".join(lines)}</ul></div>' if lines else ""


def _notes(record: HostRecord, view: _View) -> str:
    found = [*fleet.reader_lines(record, check=not view.done), *fleet.notes(record)]
    # What an engine itself mounts there, for a container that runs, is nothing to be told.
    others = [mount for mount in record["mounts"] if mount["type"] not in _ENGINES_MOUNTS]
    if others:
        which = ", ".join(f"{_cut(mount['path'], 100)} ({_cut(mount['type'], 20)})" for mount in others[:3])
        found.append(f"{_count(len(others), 'other filesystem')} below the data root {'is' if len(others) == 1 else 'are'} not part of this: {which}")
    found += record["warnings"][:5]
    return f'<ul class="notes soft wide">{"".join(f"<li>{_text(note, 400)}</li>" for note in found)}</ul>' if found else ""


# -- words and figures -----------------------------------------------------------------------------


def _text(value: object, longest: int = 400) -> str:
    """Somebody else's text for the page: between tags and within quoted attributes alike.

    What has no shape of its own (control characters, those that turn the direction of writing, lone surrogates) becomes a
    visible sign. Braces are escaped too: a name such as {{ x }} is nothing for a template engine to read.
    """
    return html.escape(_cut(value, longest), quote=True).replace("{", "&#123;").replace("}", "&#125;")


def _cut(value: object, longest: int) -> str:
    """What can be seen of it, cut in its middle."""
    clean = "".join(char if char.isprintable() else "\ufffd" for char in str(value))
    if len(clean) > longest:
        head = (longest - 1) // 2
        clean = f"{clean[:head]}…{clean[len(clean) - (longest - head - 1):]}"
    return clean


def _number(value: int | float | None) -> int | None:
    """A size or a count, None if it is none."""
    return None if value is None or value < 0 else int(value)


def _filesystem(record: HostRecord) -> tuple[int | None, int | None]:
    """Bytes, and bytes used, of all filesystems that hold what the engine owns."""
    size = sum(_number(filesystem["size"]) or 0 for filesystem in record["filesystems"])
    used = sum(_number(filesystem["used"]) or 0 for filesystem in record["filesystems"])
    return (size, used) if size else (None, None)


def _words(category: str) -> str:
    return _WORDS.get(category) or _text(category.replace("_", " "), 40)


def _size(size: int | None, measured: bool = True) -> str:
    return say_size(size) if measured or not size else f"~{say_size(size)}"


def _figure(value: int | None) -> str:
    number = _number(value)
    return "-" if number is None else str(number)


def _in_use(usage: Usage) -> str:
    """``3 of 12``; ``12`` where nobody knows what is in use."""
    if _number(usage["count"]) is None or _number(usage["active"]) is None:
        return _figure(usage["count"])
    return f"{_figure(usage['active'])} of {_figure(usage['count'])}"


def _objects(count: int | None) -> str:
    number = _number(count)
    return f' <span class="soft">{_count(number, "object")}</span>' if number else ""


def _line(category: str, kind: str, name: str, figure: str, words: str | None) -> str:
    """One object of a list: its colour and kind, its name, its size, and what is to be said of it."""
    colour = category if category in (*_CATEGORIES, "network") else "other"
    short = name[7:19] if name.startswith("sha256:") else name
    return (
        f'<li><span><i class="{colour}"></i><span class="soft">{_text(kind, 40)}</span> <bdi>{_text(short, 160)}</bdi></span>'
        f"<b>{figure}</b>{_small(words, 400)}</li>"
    )


def _small(words: str | None, longest: int) -> str:
    return f"<small>{_text(words, longest)}</small>" if words else ""


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
