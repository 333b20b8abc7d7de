# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers of an engine with every field that is read, wrong ones of each kind, and an engine that gives them without a wire."""

from __future__ import annotations

import copy
import json
import re
import typing as t

from ansible_collections.fleetclean.docker.plugins.module_utils import fields
from ansible_collections.fleetclean.docker.plugins.module_utils.engine import Engine
from hypothesis import strategies as st

#: Stands for a number of so many digits that Python refuses, or takes minutes, to read it.
HUGE = "@huge@"
#: Stands for one that is infinite as a float.
INFINITE = "@infinite@"

Path = t.Tuple[t.Union[str, int], ...]


class Call(t.NamedTuple):
    """A call: as errors name it, how its path ends, the shape of its answer, and who asks."""

    name: str
    ending: str
    shape: fields.Shape
    ask: t.Callable[[Engine], t.Any]


CALLS = (
    Call("GET /version", "/version", fields.VERSION, lambda engine: None),
    Call("GET /info", "/info", fields.INFO, lambda engine: None),
    Call("GET /containers/json", "/containers/json", fields.CONTAINERS, lambda engine: engine.containers()),
    Call("GET /containers/a/json", "/containers/a/json", fields.CONTAINER_DETAILS, lambda engine: engine.container("a")),
    Call("GET /images/json", "/images/json", fields.IMAGES, lambda engine: engine.images()),
    Call("GET /images/a/json", "/images/a/json", fields.IMAGE_DETAILS, lambda engine: engine.image("a")),
    Call("GET /volumes", "/volumes", fields.VOLUMES, lambda engine: engine.volumes()),
    Call("GET /volumes/a", "/volumes/a", fields.VOLUME, lambda engine: engine.volume("a")),
    Call("GET /networks", "/networks", fields.NETWORKS, lambda engine: engine.networks()),
    Call("GET /services", "/services", fields.SERVICES, lambda engine: engine.services()),
    Call("GET /system/df", "/system/df", fields.DISK_USAGE, lambda engine: engine.disk_usage("image")),
    Call("GET /events", "/events", fields.List(fields.EVENT), lambda engine: engine.past_events()),
    Call("POST /build/prune", "/build/prune", fields.PRUNED, lambda engine: engine.remove_cache_records(["a"])),
)


def sample(shape: fields.Shape) -> t.Any:
    """A value with every field that a shape has."""
    if isinstance(shape, fields.Fields):
        return {name: sample(inner) for name, inner in shape.fields.items()}
    if isinstance(shape, fields.List):
        return [sample(shape.entry)]
    if isinstance(shape, fields.Map):
        return {"a": sample(shape.value)}
    if shape is fields.PRESENCE:
        return {}
    if shape is fields.API_VERSION:
        return "1.45"
    if shape is fields.MOMENT:
        return 1709290800
    return {"a number": 5, "true or false": True}.get(shape.name, "a")


def good() -> dict[str, t.Any]:
    """An answer for each call, by its path's ending."""
    return {call.ending: sample(call.shape) for call in CALLS}


def places(shape: fields.Shape, path: Path = ()) -> t.Iterator[tuple[Path, fields.Shape]]:
    """Where in a sample of a shape which shape is."""
    yield path, shape
    if isinstance(shape, fields.Fields):
        for name, inner in shape.fields.items():
            yield from places(inner, (*path, name))
    elif isinstance(shape, fields.List):
        yield from places(shape.entry, (*path, 0))
    elif isinstance(shape, fields.Map):
        yield from places(shape.value, (*path, "a"))


def wrong_values(shape: fields.Shape) -> list[t.Any]:
    """Values that a shape does not take."""
    every: list[t.Any] = [5, True, "x", [5], {"x": 5}, INFINITE, HUGE]
    right: tuple[type, ...] = {
        "a list": (list,), "an object": (dict,), "a number": (int,), "true or false": (bool,), "a time": (int, str)
    }.get(shape.name, (str,))
    values = [value for value in every if type(value) not in right or value in (INFINITE, HUGE)]
    if shape in (fields.PATH, fields.IDENT, fields.WORD):
        values += ["a\0b"]
    if shape in (fields.IDENT, fields.WORD):
        values += ["../../etc", "/etc", ".", "..", "a/b", "a\n"]
    if shape is fields.API_VERSION:
        values += ["1", "latest", "1.45/../..", "1.4\n"]
    if isinstance(shape, fields._Text):
        values += ["\ud800"]
    return values


def replaced(answer: t.Any, path: Path, value: t.Any) -> t.Any:
    """A copy of an answer with another value at a place."""
    if not path:
        return value
    found = copy.deepcopy(answer)
    inner = found
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = value
    return found


def encoded(answer: t.Any) -> bytes:
    text = json.dumps(answer)
    return text.replace(json.dumps(HUGE), "1" * 10_000).replace(json.dumps(INFINITE), "1e400").encode()


class _Response:
    status = 200
    location = ""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def pieces(self) -> t.Iterator[bytes]:
        # In small pieces, so that values are in two of them.
        for start in range(0, len(self._content), 1000):
            yield self._content[start: start + 1000]

    def close(self) -> None:
        pass


class NoWire:
    """What ``Engine`` takes for a connection: gives each call its answer, by the ending of its path."""

    limit = 2**20

    def __init__(self, answers: dict[str, t.Any]) -> None:
        self.answers = answers

    def request(self, _method: str, target: str, _patience: float, _timeout: float | None = None) -> _Response:
        path = re.sub(r"^/v[0-9.]+", "", target.partition("?")[0])
        # One object of a kind is as good as another.
        ending = path if path in self.answers else re.sub(r"^/([a-z]+)/.*?(/json|)$", r"/\1/a\2", path)
        answer = self.answers[ending]
        if ending == "/events" and isinstance(answer, list):
            return _Response(b"\n".join(map(encoded, answer)))
        return _Response(answer if isinstance(answer, bytes) else encoded(answer))


def engine_of(answers: dict[str, t.Any]) -> Engine:
    return Engine(t.cast(t.Any, NoWire(answers)), "unix:///run/d.sock", 5, "auto")


# -- for hypothesis --------------------------------------------------------------------------------


def json_values() -> st.SearchStrategy[t.Any]:
    """Anything that JSON can say, and what it cannot say well."""
    leaves = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=True), st.text(st.characters(), max_size=20),
        st.sampled_from([HUGE, INFINITE, "../../etc", "a\0b", "\ud800", "0001-01-01T00:00:00Z", "9999-12-31T23:59:60.9+99:99", "-1", "1.45"]),
    )
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=8)


@st.composite
def mutated(draw: st.DrawFn, most: int = 4) -> dict[str, t.Any]:
    """Answers of which some places are anything, for all calls at once."""
    answers = good()
    for _number in range(draw(st.integers(1, most))):
        call = draw(st.sampled_from(CALLS))
        place = draw(st.sampled_from([path for path, _shape in places(call.shape)]))
        try:
            if draw(st.booleans()) and place and isinstance(place[-1], str):
                found = copy.deepcopy(answers[call.ending])
                inner = found
                for part in place[:-1]:
                    inner = inner[part]
                del inner[place[-1]]
                answers[call.ending] = found
            else:
                answers[call.ending] = replaced(answers[call.ending], place, draw(json_values()))
        except (KeyError, IndexError, TypeError):
            continue  # an earlier one took the place away
    return answers
