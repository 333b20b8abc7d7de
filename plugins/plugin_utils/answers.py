# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The door for what hosts answer: an answer has the keys and types that its module documents, within bounds, or it is refused.

Invariants

* The schema is the module's own RETURN and no second list. ``contains`` are the keys of a mapping or of a list's entries; a mapping
  that has ``elements`` is one by name (``usage``: by category), each value as ``elements`` and ``contains`` say.
* What is not documented is dropped and named. What is documented and has another type, or is too large, refuses the whole answer with
  the place and the reason (`UnexpectedAnswer`): half of an answer that somebody made up is worth nothing.
* What comes out are plain Python values: finite numbers below 2**128, and texts of at most 4,096 characters, each of which can be seen
  (no control character, no change of direction, no lone surrogate). Null stands for what nobody knows.
* The time and memory it takes are bounded by `MAX_BYTES`, whatever comes in.

Two callers: the action plugin (anywhere.py) for what comes from a host, and host_record.py for what the role kept of it.
"""

from __future__ import annotations

import ast
import os
import typing as t
from functools import lru_cache
from json.encoder import encode_basestring_ascii

from ansible.module_utils.common.yaml import yaml_load

#: Of one answer as it comes from a host, and of all that is known of one host as JSON with an indent of one. Twenty thousand logs that
#: were cut, and as many objects that were removed, are less.
MAX_BYTES = 19 * 1024**2
#: As long as a path can be.
MAX_TEXT = 4096
#: A plan of so many lines and columns, or what a module wrote instead of an answer.
MAX_LINES_TEXT = 4 * 1024**2
MAX_MODULE_OUTPUT = 10_000
MAX_WARNINGS = 20
#: Entries of a list of warnings that are looked at; there can be millions.
_MAX_LOOKED = 1000
#: Lengths of files, added up. Where a file may be sparse, whoever may write one decides on its length: up to 2**63, as often as there are
#: inodes. So no honest answer is beyond.
_MAX_NUMBER = 2**128
_MAX_DROPPED = 10
#: What an entry takes in that JSON, besides its key, its text and its indent (it may be null); and what a number takes besides,
#: with a digit more for every three bits beyond 60.
_AROUND, _NUMBER = 10, 8

#: Keys that honest modules send along and nobody here needs.
_UNUSED = frozenset(("invocation", "_ansible_parsed", "_ansible_trusted_utf8"))
#: How names begin by which Ansible makes something else of a whole mapping: __ansible_type, __ansible_vault, __ansible_unsafe.
_ANSIBLES = "__ansible_"
#: What Ansible's wrapper of jobs sends along with the answer of one that has ended.
_UNUSED_OF_JOBS = frozenset(("cmd", "data", "stdout", "stdout_lines", "stderr", "stderr_lines", "outdata", "erased", "_ansible_suppress_tmpdir_delete"))


class Shape(t.NamedTuple):
    """How a value looks: ``elements`` of a list or of a mapping by name, ``contains`` of a mapping with documented keys."""

    type: str
    elements: Shape | None = None
    contains: t.Mapping[str, Shape] | None = None


#: What every module of Ansible may return.
_COMMON = {"changed": Shape("bool"), "failed": Shape("bool"), "msg": Shape("str")}
#: What Ansible's wrapper of jobs returns.
_JOB = {"ansible_job_id": Shape("str"), "results_file": Shape("str"), **dict.fromkeys(("failed", "started", "finished"), Shape("flag"))}
_CALLED = {bool: "a boolean", int: "a whole number", float: "a number", str: "a text", list: "a list", tuple: "a list", type(None): "null"}
_WANTED = {"bool": "a boolean", "flag": "a boolean", "int": "a whole number", "float": "a number", "str": "a text", "list": "a list", "dict": "a mapping"}


class UnexpectedAnswer(ValueError):
    """An answer that is none of the module's. ``where``: keys and numbers of entries, from the outside in."""

    def __init__(self, what: str, *where: str | int) -> None:
        super().__init__(what)
        self.what = what
        self.where = list(where)

    def __str__(self) -> str:
        path = ""
        for step in self.where:
            path += f"[{step}]" if isinstance(step, int) else f"{'.' if path else ''}{one_line(step, 60)}"
        return f"unexpected answer ({path or 'the whole'}: {self.what})"


class Answer(t.NamedTuple):
    """What of an answer is the module's, and which other keys were in it."""

    values: dict[str, t.Any]
    dropped: tuple[str, ...]


# -- the schema ------------------------------------------------------------------------------------


@lru_cache(maxsize=None)
def shapes(module: str) -> t.Mapping[str, Shape]:
    """Return the keys that a module documents in its RETURN, and how their values look.

    Read once for each process: the action plugin does it when it is loaded, before Ansible forks a worker for each task and host.
    """
    path = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "modules", f"{module}.py")
    with open(path, encoding="utf-8") as stream:
        tree = ast.parse(stream.read())
    texts = [
        node.value.value for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and getattr(node.targets[0], "id", "") == "RETURN"
    ]
    return {key: _shape(about) for key, about in yaml_load(texts[0]).items()}


def _shape(about: t.Mapping[str, t.Any]) -> Shape:
    kind, elements = about["type"], about.get("elements")
    contains = {key: _shape(inner) for key, inner in about["contains"].items()} if about.get("contains") else None
    if elements is None:
        return Shape(kind, None, contains)
    if elements == "list":
        return Shape(kind, Shape("list", Shape("dict", None, contains) if contains else Shape("str")))
    return Shape(kind, Shape(elements, None, contains))


# -- texts -----------------------------------------------------------------------------------------


def one_line(value: object, longest: int = MAX_TEXT) -> str:
    """Return a text of at most so many characters, cut in its middle, each of which can be seen."""
    text = "".join((value,)) if isinstance(value, str) else str(value)
    if len(text) > longest:
        head = (longest - 1) // 2
        text = f"{text[:head]}…{text[len(text) - (longest - head - 1):]}"
    return text if text.isprintable() else "".join(map(_visible, text))


def lines(value: object, longest: int) -> str:
    """The same for a text of several lines."""
    text = "".join((value,)) if isinstance(value, str) else str(value)
    if len(text) > longest:
        text = f"{text[: longest // 2]}\n…\n{text[len(text) - longest // 2:]}"
    return "\n".join(line if line.isprintable() else "".join(map(_visible, line)) for line in text.split("\n"))


def _visible(char: str) -> str:
    return char if char.isprintable() else " " if char.isspace() else "\ufffd"


# -- reading ---------------------------------------------------------------------------------------


class Budget:
    """How much more may come in: counted as what it takes in JSON with an indent of one."""

    def __init__(self, size: int = MAX_BYTES) -> None:
        self._size = self._left = size

    def spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise UnexpectedAnswer(f"more than {self._size // 1024**2} MB")


def read(module: str, raw: t.Mapping[t.Any, t.Any], budget: Budget | None = None) -> Answer:
    """Return what of an answer is documented by the module, or common to all modules.

    :raises UnexpectedAnswer: it has another type than is documented, or is too large.
    """
    reader = _Reader({**shapes(module), **_COMMON}, budget or Budget())
    values = reader.mapping(reader.known, raw, 1)
    return Answer(values, tuple(reader.dropped))


class _Reader:
    """Reads one answer."""

    def __init__(self, known: t.Mapping[str, Shape], budget: Budget) -> None:
        self.known = known
        self.dropped: list[str] = []
        self._budget = budget

    def value(self, shape: Shape, value: t.Any, depth: int) -> t.Any:
        kind = shape.type
        if kind == "dict" and isinstance(value, t.Mapping):
            return self._by_name(shape.elements, value, depth) if shape.elements else self.mapping(shape.contains or {}, value, depth)
        if kind == "list" and isinstance(value, (list, tuple)):
            return self._list(shape.elements or Shape("str"), value, depth)
        if kind == "str" and isinstance(value, str):
            text = one_line(value)
            self._budget.spend(len(encode_basestring_ascii(text)))
            return text
        if kind in ("bool", "flag") and isinstance(value, bool):
            return bool(value)
        if kind == "flag" and isinstance(value, int) and value in (0, 1):
            return bool(value)
        if kind in ("int", "float") and not isinstance(value, bool) and isinstance(value, int if kind == "int" else (int, float)):
            if not abs(value) < _MAX_NUMBER:  # false for what is no number, too
                raise UnexpectedAnswer("a number out of bounds")
            self._budget.spend(_NUMBER + (max(0, value.bit_length() - 60) // 3 if isinstance(value, int) else 0))
            return int(value) if isinstance(value, int) else float(value)
        called = next((name for kind, name in _CALLED.items() if isinstance(value, kind)), "a mapping" if isinstance(value, t.Mapping) else "something else")
        raise UnexpectedAnswer(f"{called}, where {_WANTED[kind]} is documented")

    def mapping(self, contains: t.Mapping[str, Shape], raw: t.Mapping[t.Any, t.Any], depth: int) -> dict[str, t.Any]:
        """The documented keys of a mapping."""
        found: dict[str, t.Any] = {}
        key: t.Any = ""
        # Also for those that are not there: a record has them all.
        self._budget.spend(sum(map(len, contains)) + len(contains) * (_AROUND + depth))
        try:
            for key, value in raw.items():
                shape = contains.get(key) if isinstance(key, str) else None
                if shape is None:
                    self._drop(key)
                    continue
                found["".join((key,))] = None if value is None else self.value(shape, value, depth + 1)
        except UnexpectedAnswer as error:
            error.where.insert(0, key if isinstance(key, int) else one_line(key, 60))
            raise
        return found

    def _by_name(self, elements: Shape, raw: t.Mapping[t.Any, t.Any], depth: int) -> dict[str, t.Any]:
        found: dict[str, t.Any] = {}
        name: t.Any = ""
        try:
            for name, value in raw.items():
                if not isinstance(name, str):
                    raise UnexpectedAnswer("a name that is no text")
                if name.startswith(_ANSIBLES):
                    self._drop(name)
                    continue
                text = one_line(name, 200)
                self._budget.spend(_AROUND + depth + len(encode_basestring_ascii(text)))
                found[text] = self.value(elements, value, depth + 1)
        except UnexpectedAnswer as error:
            error.where.insert(0, one_line(name, 60))
            raise
        return found

    def _drop(self, key: t.Any) -> None:
        self._budget.spend(_AROUND)
        if len(self.dropped) <= _MAX_DROPPED and key not in _UNUSED:
            self.dropped.append(one_line(key, 40))

    def _list(self, elements: Shape, raw: t.Sequence[t.Any], depth: int) -> list[t.Any]:
        found: list[t.Any] = []
        try:
            for value in raw:
                self._budget.spend(_AROUND + depth)
                found.append(self.value(elements, value, depth + 1))
        except UnexpectedAnswer as error:
            error.where.insert(0, len(found))
            raise
        return found


# -- what the action plugin passes on --------------------------------------------------------------


def admit(module: str, raw: t.Mapping[str, t.Any], job: bool = False, most_bytes: int = MAX_BYTES) -> Answer:
    """Return what of a host's answer goes on into the play: what is documented, and what Ansible itself needs of it, made harmless.

    :param job: the task runs as a job (``async``), so Ansible's wrapper has its own keys in the answer.
    :param most_bytes: what the answer may take, where less was asked for than a module can say.
    :raises UnexpectedAnswer: as `read` does.
    """
    about = dict(raw)
    more = {key: about.pop(key, None) for key in ("diff", "warnings", "deprecations", "exception")}
    reader = _Reader({**shapes(module), **_COMMON, **(_JOB if job else {})}, Budget(most_bytes))
    values = reader.mapping(reader.known, about, 1)
    dropped = [key for key in reader.dropped if not (job and key in _UNUSED_OF_JOBS)]
    prepared = more["diff"].get("prepared") if isinstance(more["diff"], t.Mapping) else None
    if isinstance(prepared, str):
        values["diff"] = {"prepared": lines(prepared, MAX_LINES_TEXT)}
    elif more["diff"]:
        dropped.append("diff")
    told = [*warning_texts(more["warnings"]), *(f"deprecated: {text}" for text in warning_texts(more["deprecations"]))]
    if told:
        lists = [listed for listed in (more["warnings"], more["deprecations"]) if isinstance(listed, (list, tuple))]
        left_out = len(told[MAX_WARNINGS:]) + sum(len(listed[_MAX_LOOKED:]) for listed in lists)
        values["warnings"] = told[:MAX_WARNINGS]
        values["warnings"] += [f"{left_out} more warnings of this host are left out"] if left_out else []
    traceback = _traceback(more["exception"])
    if traceback and values.get("failed"):
        values["exception"] = traceback
    return Answer(values, tuple(dropped))


def no_answer(text: str) -> str:
    """Return what a host wrote instead of an answer, cut and made visible; nothing in it can be read as an answer any more."""
    return "\n".join(f"| {line}" if line.lstrip().startswith("{") else line for line in lines(text, MAX_MODULE_OUTPUT).splitlines())


def dropped_words(dropped: t.Sequence[str]) -> str:
    """What a warning says of keys that were dropped."""
    names = ", ".join(dropped[:_MAX_DROPPED])
    return f"the answer has keys that the module does not document; they are dropped: {names}{' and more' if len(dropped) > _MAX_DROPPED else ''}"


def warning_texts(raw: t.Any) -> list[str]:
    """Texts of warnings or deprecations: of Ansible's own types since 2.19, of mappings, or as they are."""
    found = []
    for entry in raw[:_MAX_LOOKED] if isinstance(raw, (list, tuple)) else ():
        text = entry if isinstance(entry, str) else _part(entry, "msg") or _part(_part(entry, "event"), "msg")
        if isinstance(text, str) and text:
            found.append(one_line(text, 1000))
    return found


def _traceback(raw: t.Any) -> str:
    """A traceback as text; since 2.19 it is a part of a type of Ansible's own."""
    text = raw if isinstance(raw, str) else _part(_part(raw, "event"), "formatted_traceback")
    return lines(text, MAX_MODULE_OUTPUT) if isinstance(text, str) else ""


def _part(value: t.Any, name: str) -> t.Any:
    return value.get(name) if isinstance(value, t.Mapping) else getattr(value, name, None)
