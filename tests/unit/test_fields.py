# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Types of the engine's answers: each field that is read, with each wrong type, is one error that names call, field and type."""

from __future__ import annotations

import ast
import json
import pickle
import re
import time
import typing as t
from pathlib import Path

import engine_answers
import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import fields, session, snapshot
from ansible_collections.fleetclean.docker.plugins.module_utils.engine import Engine, UnexpectedAnswer
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import FleetcleanError
from ansible_collections.fleetclean.docker.plugins.module_utils.storage import Proof, Storage, from_info
from engine_answers import CALLS, HUGE, INFINITE, Call
from hypothesis import HealthCheck, given, settings

MODULE_UTILS = Path(__file__).resolve().parents[2] / "plugins" / "module_utils"
LIMIT = 2**20


def parse(text: bytes | str, shape: fields.Shape, limit: int = LIMIT, piece: int = 7) -> t.Any:
    content = text if isinstance(text, bytes) else text.encode()
    return fields.parse((content[at: at + piece] for at in range(0, len(content), piece)), shape, limit)


def written(path: engine_answers.Path) -> str:
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in path]
    return "".join(parts).lstrip(".")


# -- every call, every field, every wrong type ----------------------------------------------------


@pytest.mark.parametrize("call", CALLS, ids=[call.name for call in CALLS])
def test_a_good_answer_is_read_as_a_whole(call: Call) -> None:
    engine = engine_answers.engine_of(engine_answers.good())
    found = call.ask(engine)
    answer = engine_answers.sample(call.shape)
    if call.name == "GET /volumes":
        answer = answer["Volumes"]
    if call.name in ("GET /volumes", "GET /volumes/a", "GET /system/df"):
        answer = json.loads(json.dumps(answer).replace('"ClusterVolume": {}', '"ClusterVolume": true'))
    if call.name == "POST /build/prune":
        assert found == {"a"}
    elif found is not None:
        assert found == answer


@pytest.mark.parametrize("call", CALLS, ids=[call.name for call in CALLS])
def test_each_wrong_type_names_call_field_and_type(call: Call) -> None:
    good = engine_answers.good()
    tried = 0
    for path, shape in engine_answers.places(call.shape):
        if call.name == "GET /events" and len(path) < 2:
            continue  # what is no object among events is passed over
        for value in engine_answers.wrong_values(shape):
            answers = {**good, call.ending: engine_answers.replaced(good[call.ending], path, value)}
            with pytest.raises(FleetcleanError) as caught:
                call.ask(engine_answers.engine_of(answers))
            said = str(caught.value)
            tried += 1
            if call.name == "GET /version" and not path:
                assert caught.value.code == "not_docker"
                continue
            # In a mapping the name is quoted.
            place = re.escape(written(path) or "the answer").replace(r"\.a", r'(\.a|\["a"\])')
            assert re.match(rf"{re.escape(call.name)}: unexpected answer: {place} is .+\.$", said), said
            assert said.isprintable()
            assert isinstance(caught.value, UnexpectedAnswer)
            assert caught.value.code == "engine"
            if value == [5]:
                assert said.endswith(f" is a list, not {shape.name}.")
    assert tried > 10


@pytest.mark.parametrize("call", CALLS, ids=[call.name for call in CALLS])
def test_each_field_may_be_null_or_missing_unless_it_names_the_object(call: Call) -> None:
    good = engine_answers.good()
    required = {"Id", "ID", "Name"}
    for path, _shape in engine_answers.places(call.shape):
        if not path or isinstance(path[-1], int) or path[-1] in required or path == ("ApiVersion",):
            continue
        answers = {**good, call.ending: engine_answers.replaced(good[call.ending], path, None)}
        if call.name == "GET /services":
            answers["/info"] = good["/info"]
        call.ask(engine_answers.engine_of(answers))


@pytest.mark.parametrize(
    ("call", "path"),
    [
        ("GET /containers/json", (0, "Id")),
        ("GET /images/json", (0, "Id")),
        ("GET /volumes", ("Volumes", 0, "Name")),
        ("GET /networks", (0, "Id")),
        ("GET /system/df", ("BuildCache", 0, "ID")),
        ("GET /system/df", ("ImageUsage", "Items", 0, "Id")),
    ],
)
@pytest.mark.parametrize("value", [None, ""])
def test_what_names_an_object_has_to_be_there(call: str, path: engine_answers.Path, value: str | None) -> None:
    found = next(entry for entry in CALLS if entry.name == call)
    good = engine_answers.good()
    answers = {**good, found.ending: engine_answers.replaced(good[found.ending], path, value)}
    with pytest.raises(UnexpectedAnswer) as caught:
        found.ask(engine_answers.engine_of(answers))
    assert str(caught.value) == f"{call}: unexpected answer: {written(path)} is missing."


def _declared(shape: fields.Shape, found: set[str]) -> set[str]:
    for path, _shape in engine_answers.places(shape):
        found.update(part for part in path if isinstance(part, str))
    return found


def test_every_field_that_is_read_is_declared() -> None:
    """A field that is read and not declared would never be there: the readers of raw answers, and how they name fields."""
    declared: set[str] = set()
    for call in CALLS:
        _declared(call.shape, declared)
    # Of the engine's own files, and names that snapshot.py gives to what it puts together.
    others = {"HasBeenManuallyStopped", "StoppedByHand", "CreatedAt"}
    read: dict[str, str] = {}
    for name in ("snapshot", "removal", "last_look", "pausing", "truncating", "places", "session", "engine", "attribution", "reporting", "report_parts", "cleaning"):
        for node in ast.walk(ast.parse((MODULE_UTILS / f"{name}.py").read_text())):
            key = None
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get" and node.args:
                key = node.args[0]
            elif isinstance(node, ast.Subscript):
                key = node.slice
            if isinstance(key, ast.Constant) and isinstance(key.value, str) and re.fullmatch(r"[A-Z][A-Za-z]+", key.value):
                read[key.value] = name
    assert len(read) > 40
    assert {key: name for key, name in read.items() if key not in declared | others} == {}


# -- what engines were seen to say, and other things -----------------------------------------------


def test_numbers_may_be_floats_and_times_texts() -> None:
    answer = parse('[{"Id":"a","Created":1.7092908e9,"SizeRw":1234.0,"SizeRootFs":-1},{"Id":"b","Created":"2024-03-01T12:00:00Z"}]', fields.CONTAINERS)
    assert answer == [{"Id": "a", "Created": 1709290800.0, "SizeRw": 1234, "SizeRootFs": -1}, {"Id": "b", "Created": "2024-03-01T12:00:00Z"}]
    assert type(answer[0]["SizeRw"]) is int


def test_other_fields_are_passed_over_whatever_they_are() -> None:
    text = '{"x":[[[]]],"Volumes":[{"Name":"v","x":{"y":1e400},"Status":{"a":[null]}}],"Warnings":5,"Name":7}'
    assert parse(text, fields.VOLUMES) == {"Volumes": [{"Name": "v"}]}


@pytest.mark.parametrize("piece", [1, 2, 3, 1000])
def test_an_answer_may_come_in_any_pieces(piece: int) -> None:
    text = ' { "Volumes" : [ {"Name":"новый 😀", "Labels":{"a":"\\u00e9"}} , {"Name":"b"} ] , "LayersSize" : 12345 } '
    shape = fields.Lists(Volumes=fields.List(fields.VOLUME), LayersSize=fields.NUMBER)
    assert parse(text, shape, piece=piece) == {"Volumes": [{"Name": "новый 😀", "Labels": {"a": "é"}}, {"Name": "b"}], "LayersSize": 12345}


@pytest.mark.parametrize("piece", [1, 5, 1000])
def test_of_two_fields_of_one_name_the_last_counts(piece: int) -> None:
    # As it does for the engine's own client.
    assert parse('[{"Id":"a","Id":"b"}]', fields.CONTAINERS, piece=piece) == [{"Id": "b"}]
    assert parse('{"Volumes":[{"Name":"a"}],"Volumes":[{"Name":"b"}]}', fields.VOLUMES, piece=piece) == {"Volumes": [{"Name": "b"}]}


@pytest.mark.parametrize(
    "text",
    ["", " ", "[", '[{"Id":"a"}', '[{"Id":"a"},', '[{"Id":"a"},]', '[{"Id":"a"} {"Id":"b"}]', "nul", "[NaN]", "[-Infinity]", '["\\x"]', "[]]", "[] 5", "\ufeff[]", "[,]"],
)
def test_what_is_not_json_is_said_to_be_none(text: str) -> None:
    with pytest.raises(fields.NotJson):
        parse(text, fields.CONTAINERS)


@pytest.mark.parametrize("text", ['{"Volumes":', '{"Volumes":[]', '{"Volumes" []}', "{5:[]}", '{"Volumes":[],"a"}', b'{"Volumes":"\xff"}', '{"Volumes":[] "a":5}'])
def test_the_same_for_objects(text: str | bytes) -> None:
    with pytest.raises(fields.NotJson):
        parse(text, fields.VOLUMES)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '[{"Id":"a","x":' + "[" * 50_000 + "]" * 50_000 + "}]"], ids=["lists", "objects", "inside"])
@pytest.mark.parametrize("shape", [fields.CONTAINERS, fields.VOLUMES, fields.INFO], ids=["list", "lists", "object"])
def test_deep_json_is_no_overflow(text: str, shape: fields.Shape) -> None:
    with pytest.raises((fields.Unexpected, fields.NotJson, fields.TooLarge)):
        parse(text, shape, 2**24, 65536)


def test_huge_numbers_cost_no_time() -> None:
    began = time.monotonic()
    text = '[{"Id":"a","Created":' + "1" * 30_000 + "}]"
    with pytest.raises(fields.Unexpected, match=r"\[0\]\.Created is a time out of range"):
        parse(text, fields.CONTAINERS, 2**24, 65536)
    with pytest.raises(fields.TooLarge):
        parse('[{"Id":"a","x":' + "1" * 1_000_000 + "}]", fields.CONTAINERS, 2**24, 65536)
    assert time.monotonic() - began < 2


def test_equal_texts_are_kept_once() -> None:
    found = parse('[{"Id":"a","Labels":{"some-label":"some value"}},{"Id":"b","Labels":{"some-label":"some value"}}]', fields.CONTAINERS)
    first, second = (entry["Labels"] for entry in found)
    assert next(iter(first)) is next(iter(second))
    assert first["some-label"] is second["some-label"]


def test_an_error_can_be_carried_to_another_process() -> None:
    error = UnexpectedAnswer("GET /info", "ID is a number, not a text")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.code, type(again)) == (str(error), "engine", UnexpectedAnswer)
    assert not (again.gone or again.conflict or again.ending or again.vanishing or again.disk_full)


def test_a_wrong_answer_on_one_container_or_image_is_no_answer_on_the_others() -> None:
    """Of lists the whole is refused; an odd inspection leaves its object as one whose age is not known."""
    answers = {**engine_answers.good(), "/containers/a/json": {"State": 5}, "/images/a/json": {"Metadata": []}}
    engine = engine_answers.engine_of(answers)
    found = snapshot.take(engine, snapshot.Wanted(images=True, ages=True), None)
    assert [(container.started, container.finished) for container in found.containers] == [(None, None)]
    assert [image.created for image in found.images] == [None]


def test_a_containers_own_records_of_another_type_are_not_believed() -> None:
    class Odd(Storage):
        def container_record(self, container_id: str) -> dict[str, t.Any] | None:
            return {"State": {"Running": [], "Paused": False, "Restarting": False, "FinishedAt": {}}, "StoppedByHand": True}

    engine = engine_answers.engine_of(engine_answers.good())
    found = snapshot.take(engine, snapshot.Wanted(ages=True), Odd("/nowhere", "overlay2", "graphdriver", {}))
    assert found.containers[0].finished == 1709290800


# -- anything at all -------------------------------------------------------------------------------


def read_all(engine: Engine) -> None:
    """All that the modules read before they act."""
    where = from_info(engine.info)
    facts = session.Site(engine, where, Proof(False, "")).facts()
    json.dumps(facts).encode()
    wanted = snapshot.Wanted(images=True, volumes=True, networks=True, build_cache=True, ages=True, sizes=True, parallel=1)
    found = snapshot.take(engine, wanted, None)
    repr(found).encode()
    where.candidates()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(engine_answers.mutated())
def test_any_answer_is_read_or_refused_with_a_reason(answers: dict[str, t.Any]) -> None:
    try:
        engine = engine_answers.engine_of(answers)
        read_all(engine)
    except FleetcleanError as error:
        assert str(error).isprintable()
        assert re.search(r"unexpected answer|is not a Docker engine|too old|is Podman", str(error)), str(error)


@settings(max_examples=150, deadline=None)
@given(engine_answers.json_values())
def test_any_json_is_read_or_refused(value: t.Any) -> None:
    for call in CALLS:
        try:
            parse(engine_answers.encoded(value), call.shape, piece=50)
        except (fields.Unexpected, fields.NotJson, fields.TooLarge) as error:
            str(error).encode()


def test_the_stand_ins_are_what_they_stand_for() -> None:
    assert engine_answers.encoded([INFINITE]) == b"[1e400]"
    assert len(engine_answers.encoded([HUGE])) == 10_002
