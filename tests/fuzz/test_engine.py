# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Engine answers over a socket to snapshot to plan: what an engine, a proxy or whoever sits there says wrongly is an unexpected answer.

Each input is all answers of one engine, changed in one place or a few; nothing but FleetcleanError comes of it, or a plan.
"""

from __future__ import annotations

import functools
import json
import re
import socketserver
import threading
import typing as t
from http import server
from urllib.parse import unquote, urlsplit

from ansible.module_utils.common.arg_spec import ModuleArgumentSpecValidator
from ansible_collections.fleetclean.docker.plugins.module_utils import engine as engines
from ansible_collections.fleetclean.docker.plugins.module_utils import options, path_uses, policy, snapshot
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import FleetcleanError
from model import Model

from tests.fuzz import places
from tests.fuzz.budget import fuzz
from tests.fuzz.dice import SeededDice
from tests.fuzz.mutations import mutated
from tests.fuzz.test_worlds import random_model


def recorded(number: int) -> dict[str, t.Any]:
    """All that an engine answers, by path."""
    found: Model = random_model(SeededDice(number))
    return {
        "/version": {**found.version, "MinAPIVersion": "1.24", "Os": "linux", "Arch": "amd64", "Components": [{"Name": "Engine", "Version": "1"}]},
        "/info": {**found.info, "SecurityOptions": ["name=seccomp"], "Containers": 1, "MemTotal": 1000},
        "/containers/json": found.containers(),
        "/images/json": found.images(),
        "/volumes": {"Volumes": found.volumes(), "Warnings": None},
        "/networks": found.networks(),
        "/services": found.services(),
        "/events": found.past_events(),
        "/system/df": {**found.disk_usage(), "LayersSize": 5, "Images": found.images(), "Containers": found.containers(), "Volumes": found.volumes()},
        **{f"/containers/{ident}/json": found.container(ident) for ident in found.boxes},
        **{f"/images/{ident}/json": found.image(ident) for ident in found.pictures},
        **{f"/volumes/{name}": found.volume(name) for name in found.data},
    }


#: Graph drivers and containerd's store, large and small ones.
RECORDED = [recorded(number) for number in (3, 5, 6, 8, 11, 12)]


class _Handler(server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    answers: t.ClassVar[dict[str, t.Any]] = {}

    def do_GET(self) -> None:
        path = re.sub(r"^/v1\.[0-9]+", "", unquote(urlsplit(self.path).path))
        if path in self.answers:
            status, answer = 200, self.answers[path]
        else:
            status, answer = 404, {"message": f"no such object: {path}"}
        # Events are JSON texts, one after the other.
        each = answer if path == "/events" and isinstance(answer, list) else [answer]
        content = "\n".join(map(json.dumps, each)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def address_string(self) -> str:
        return "fuzz"

    def log_message(self, *_words: t.Any) -> None:
        pass


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_about: t.Any) -> None:
        """Whoever asked has gone: no matter."""


@functools.lru_cache(maxsize=1)
def listening() -> str:
    path = str(places.in_memory() / "engine.sock")
    threading.Thread(target=_Server(path, _Handler).serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return path


PARAMS = ModuleArgumentSpecValidator(options.shared_spec()).validate({"timeout": 3}).validated_parameters
EVERYTHING = policy.Wishes(
    containers=policy.ContainerWish(volumes=True, older_than=3600),
    images=policy.ImageWish("all", older_than=3600, keep=("app",), keep_latest=1),
    volumes=policy.VolumeWish("unused", older_than=3600, drivers=("*",)),
    networks=policy.NetworkWish(older_than=3600),
    build_cache=policy.CacheWish("all", keep_storage=1),
)


def plan_of(answers: dict[str, t.Any]) -> policy.Plan | None:
    """As docker_clean in check mode: connect, look, decide. None for what the engine said wrongly, and where."""
    _Handler.answers = answers
    try:
        engine = engines.connect({**PARAMS, "docker_host": f"unix://{listening()}"})
        wanted = snapshot.Wanted(images=True, volumes=True, networks=True, build_cache=True, ages=True, parallel=1)
        looked = path_uses.complete(snapshot.take(engine, wanted, None), None, "/nowhere")
        return policy.decide(looked, EVERYTHING)
    except FleetcleanError as error:
        assert str(error)
        return None


@fuzz(250, answers=mutated(RECORDED))
def test_what_an_engine_says_wrongly_is_an_unexpected_answer(answers: t.Any) -> None:
    plan = plan_of(answers if isinstance(answers, dict) else {"/version": answers})
    if plan:
        for step in plan.steps:
            assert isinstance(step.id, str) and isinstance(step.name, str)
            assert step.bytes is None or isinstance(step.bytes, int)


def test_the_recorded_answers_give_plans() -> None:
    """Else the changes would show nothing."""
    plans = [plan_of(answers) for answers in RECORDED]
    assert all(plans)
    assert sum(len(plan.steps) for plan in plans if plan) > 10
