# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The door to the engine: what each kind of trouble is called, and what becomes of names and answers.

The servers here are fakes on a unix socket, each answering what one kind of server was seen to answer.
"""

from __future__ import annotations

import json
import os
import pickle
import posixpath
import shutil
import socket
import socketserver
import tempfile
import threading
import time
import typing as t
from collections.abc import Iterator
from http import server as http_server
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import engine as engines
from ansible_collections.fleetclean.docker.plugins.module_utils import unanswered
from ansible_collections.fleetclean.docker.plugins.module_utils.engine import Engine, EngineError
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import FleetcleanError

VERSION = {"Version": "26.1.5", "ApiVersion": "1.45", "MinAPIVersion": "1.24", "Components": [{"Name": "Engine"}]}
INFO = {"ID": "ABCD", "Name": "build1", "ServerVersion": "26.1.5", "Driver": "overlay2"}
#: Podman 4.3, as its own API answers (abridged).
PODMAN = {
    "Platform": {"Name": "linux/amd64/debian-12"},
    "Components": [{"Name": "Podman Engine", "Version": "4.3.1"}, {"Name": "Conmon", "Version": "2.1.6"}],
    "Version": "4.3.1",
    "ApiVersion": "1.41",
    "MinAPIVersion": "1.24",
}

Answer = t.Union[bytes, None]


def http(body: object, status: str = "200 OK", kind: str = "application/json") -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    return head.encode() + content


class FakeServer:
    """Listens on a unix socket and answers each request with what ``answer(method, path)`` returns; None: never."""

    def __init__(self, path: str, answer: t.Callable[[str, str], Answer]) -> None:
        self.requests: list[tuple[str, str]] = []
        self._answer = answer
        self._over = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(8)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        held = []
        while not self._over.is_set():
            try:
                connection, _peer = self._listener.accept()
            except OSError:
                break
            connection.settimeout(2)
            try:
                head = b""
                while b"\r\n\r\n" not in head:
                    piece = connection.recv(65536)
                    if not piece:
                        break
                    head += piece
                if not head:
                    connection.close()
                    continue
                method, path = head.split(b" ", 2)[:2]
                self.requests.append((method.decode(), path.decode()))
                answer = self._answer(method.decode(), path.decode())
                if answer is None:
                    held.append(connection)
                    continue
                connection.sendall(answer)
                connection.close()
            except OSError:
                connection.close()
        for connection in held:
            connection.close()

    def stop(self) -> None:
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()


class Site:
    """A short path for a socket, and the fake that listens there."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="fc-")
        self.path = f"{self.folder}/d.sock"
        self.server: FakeServer | None = None

    def serve(self, answer: t.Callable[[str, str], Answer]) -> FakeServer:
        self.server = FakeServer(self.path, answer)
        return self.server

    def connect(self, **params: t.Any) -> Engine:
        return engines.connect({"docker_host": f"unix://{self.path}", "api_version": "auto", "timeout": 5, **params})

    def trouble(self, **params: t.Any) -> FleetcleanError:
        with pytest.raises(FleetcleanError) as caught:
            self.connect(**params)
        assert "Traceback" not in str(caught.value)
        assert "\n" not in str(caught.value)
        return caught.value

    def close(self) -> None:
        if self.server:
            self.server.stop()
        shutil.rmtree(self.folder)


@pytest.fixture
def site() -> Iterator[Site]:
    place = Site()
    yield place
    place.close()


def engine_that(
    extra: t.Callable[[str, str], Answer] | None = None, version: object = None, info: object = None
) -> t.Callable[[str, str], Answer]:
    """A fake engine: /version and /info as an engine gives them, the rest by ``extra``."""

    def answer(method: str, path: str) -> Answer:
        if urlsplit(path).path.endswith("/version"):
            return http(version or VERSION)
        if urlsplit(path).path.endswith("/info"):
            return http(info or INFO)
        return extra(method, path) if extra else http({"message": "page not found"}, "404 Not Found")

    return answer


# -- containers by their names -------------------------------------------------------------------


def test_errors_call_containers_by_their_names(site: Site) -> None:
    web, unknown, volume = "ab" * 32, "cd" * 32, "ef" * 32

    def answer(method: str, path: str) -> Answer:
        if "/containers/json" in path:
            return http([{"Id": web, "Names": ["/proxy/upstream", "/web"]}, {"Id": unknown, "Names": []}])
        said = f"remove {volume}: volume is in use - [{web}, {unknown}]; container {web[:12]} uses /data/{web}/x and sha256:{web}"
        return http({"message": said}, "409 Conflict")

    site.serve(engine_that(answer))
    engine = site.connect()
    engine.containers()
    with pytest.raises(EngineError) as caught:
        engine.remove_container(web)
    assert str(caught.value) == (
        f'DELETE /containers/web: the engine says "remove {volume}: volume is in use - [web, {unknown}]; container web uses /data/{web}/x and sha256:{web}" '
        "(HTTP 409)."
    )
    with pytest.raises(EngineError, match="^POST /containers/web/pause: "):
        engine.pause(web)


@pytest.mark.parametrize("name", ["containerd.sock", "server.closed-no.space", "data.changed"])
def test_nothing_is_decided_by_what_a_container_is_called(site: Site, name: str) -> None:
    ident = "ab" * 32

    def answer(method: str, path: str) -> Answer:
        if "/containers/json" in path:
            return http([{"Id": ident, "Names": [f"/{name}"]}])
        return http({"message": f"cannot remove {ident}"}, "500 Internal Server Error")

    site.serve(engine_that(answer))
    engine = site.connect()
    engine.containers()
    with pytest.raises(EngineError) as caught:
        engine.remove_container(ident)
    error = caught.value
    assert error.said == f"cannot remove {name}" and f'"{error.said}"' in str(error)
    assert error.answer == f"cannot remove {ident}"
    assert not (error.ending or error.changing or error.disk_full)
    assert pickle.loads(pickle.dumps(error)).said == error.said


# -- nobody there --------------------------------------------------------------------------------


def test_without_a_socket_and_without_a_daemon_there_is_no_docker(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_DAEMONS", ())
    assert site.trouble().code == "engine_down", "somebody named this socket"
    monkeypatch.setattr(engines, "_USUAL_SOCKETS", (str(site.path),))
    monkeypatch.setattr(engines, "_USUAL_ROOT", site.folder)
    assert site.trouble().code == "engine_down", "an engine's data lies there"
    monkeypatch.setattr(engines, "_USUAL_ROOT", f"{site.folder}/nothing")
    error = site.trouble()
    assert error.code == "no_engine"
    assert str(error) == (
        f"no Docker here: {site.path}: no such file, no dockerd, and no /var/lib/docker. If the engine listens elsewhere, "
        "name it in docker_host."
    )


def test_a_users_socket_does_not_make_a_host_without_docker_one_whose_engine_is_down(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "1000").mkdir()
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("1000/docker.sock")
    monkeypatch.setattr(unanswered, "_ROOTLESS", f"{tmp_path}/[0-9]*/docker.sock")
    monkeypatch.setattr(engines, "_USUAL_SOCKETS", (str(site.path),))
    monkeypatch.setattr(engines, "_USUAL_ROOT", f"{site.folder}/nothing")
    monkeypatch.setattr(engines, "_DAEMONS", (f"{site.folder}/dockerd-rootless.sh",))
    named = f"unix://{tmp_path}/1000/docker.sock is a socket of user {os.geteuid()}; if the engine that you mean listens there, name it in docker_host and"
    error = site.trouble()
    assert error.code == "no_engine"
    assert f"If the engine listens elsewhere, name it in docker_host. {named}" in str(error)
    Path(f"{site.folder}/dockerd-rootless.sh").touch()
    error = site.trouble()
    assert error.code == "engine_down" and f"or name its socket in docker_host. {named}" in str(error)


def test_where_programs_of_engines_without_root_are_installed_is_looked_at() -> None:
    assert {"/usr/bin/dockerd", "/usr/bin/dockerd-rootless.sh"} <= set(engines._DAEMONS)


def test_without_a_socket_but_with_a_daemon_the_engine_is_down(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_daemon = Path(site.folder) / "dockerd"
    fake_daemon.touch()
    monkeypatch.setattr(engines, "_DAEMONS", (str(fake_daemon),))
    error = site.trouble()
    assert error.code == "engine_down"
    assert str(error).startswith(f"engine does not answer: {site.path}: no such file. Start the engine")


def test_a_file_that_is_no_socket_is_a_wrong_address(site: Site) -> None:
    Path(site.path).write_text("hello")
    error = site.trouble()
    assert error.code == "bad_input"
    assert str(error) == f"docker_host: {site.path} is not a socket; name the engine's socket."


def test_a_socket_that_nobody_listens_on_refuses(site: Site) -> None:
    with socket.socket(socket.AF_UNIX) as fake:
        fake.bind(site.path)
    error = site.trouble()
    assert error.code == "engine_down"
    assert str(error) == (
        f"engine does not answer: {site.path}: connection refused. Start the engine (systemctl start docker)."
    )


def test_an_address_of_the_environment_is_called_so(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    named = f"unix://{site.path}"
    assert "DOCKER_HOST" not in str(site.trouble())
    monkeypatch.setenv("DOCKER_HOST", named)
    assert str(site.trouble()).endswith("or name its socket in docker_host. The address is that of DOCKER_HOST in the host's environment; docker_host wins over it.")
    Path(site.path).write_text("hello")
    assert str(site.trouble()) == f"DOCKER_HOST in the host's environment: {site.path} is not a socket; name the engine's socket."
    monkeypatch.setenv("DOCKER_HOST", "")
    with pytest.raises(FleetcleanError, match="^DOCKER_HOST in the host's environment: \"\" is not an engine's address"):
        engines.connect({"docker_host": "", "api_version": "auto", "timeout": 5})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user who may not")
@pytest.mark.parametrize("closed", ["folder", "socket"])
def test_a_user_who_may_not_use_the_socket_is_told_to_become_one_who_may(site: Site, closed: str) -> None:
    site.serve(engine_that())
    os.chmod(site.folder, 0o700 if closed == "folder" else 0o755)
    os.chmod(site.path, 0o600)
    os.seteuid(65534)
    try:
        error = site.trouble()
    finally:
        os.seteuid(0)
    assert error.code == "denied"
    assert "ermission denied. Use become: true, or a user of the engine's group." in str(error)
    assert site.path in str(error)


def test_nobody_at_a_tcp_address_is_an_engine_that_does_not_answer() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(FleetcleanError) as caught:
        engines.connect({"docker_host": f"tcp://127.0.0.1:{port}", "api_version": "auto", "timeout": 5})
    assert caught.value.code == "engine_down"
    assert str(caught.value).startswith(f"engine does not answer: tcp://127.0.0.1:{port}: connection refused.")


@pytest.mark.parametrize(
    "host", ["", "/var/run/docker.sock", "npipe:////./pipe/docker", "build1:2375", "file:///etc/passwd"]
)
def test_what_is_no_engines_address_is_refused(host: str) -> None:
    with pytest.raises(FleetcleanError) as caught:
        engines.connect({"docker_host": host, "api_version": "auto", "timeout": 5})
    assert caught.value.code == "bad_input"
    assert f'docker_host: "{host}" is not an engine\'s address; use unix:///var/run/docker.sock' in str(caught.value)


def test_half_of_a_clients_certificate_is_refused(site: Site) -> None:
    site.serve(engine_that())
    error = site.trouble(tls=True, client_cert="/x/cert.pem")
    assert error.code == "bad_input"
    assert str(error) == "client_cert and client_key belong together; give both or none."


# -- somebody else there -------------------------------------------------------------------------


def test_a_server_that_never_answers_is_given_up_after_the_timeout(site: Site) -> None:
    site.serve(lambda method, path: None)
    error = site.trouble(timeout=1)
    assert error.code == "engine_down"
    assert str(error) == (
        f"engine does not answer: {site.path}: GET /version took longer than the timeout. Raise `timeout` (seconds), "
        "or look at the engine's own log."
    )


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
        b"220 mail ESMTP\r\n",
        b"\x00\x01\x02\xff\xfe",
        b"\x1b[2J\x1b]0;owned\x07\r\n\r\n",
        http(b"<html>It works!</html>", kind="text/html"),
        http(b"<html>no</html>", "404 Not Found", "text/html"),
        http(b""),
        http([]),
        http("hello"),
        http(None),
        http({"hello": "world"}),
        http({"version": {"number": "8.1.0"}, "tagline": "You Know, for Search"}),
    ],
    ids=["ssh", "smtp", "binary", "escapes", "html", "html-404", "empty", "list", "string", "null", "json", "elastic"],
)
def test_what_is_no_engine_is_said_to_be_none(site: Site, answer: bytes) -> None:
    site.serve(lambda method, path: answer)
    error = site.trouble()
    assert error.code == "not_docker"
    assert "is not a Docker engine" in str(error)
    assert "name the engine's address in docker_host" in str(error)
    assert site.path in str(error)
    assert str(error).isprintable()


def test_a_server_that_hangs_up_is_trouble_with_a_name(site: Site) -> None:
    site.serve(lambda method, path: b"")
    error = site.trouble()
    assert error.code in ("engine_down", "not_docker")
    assert site.path in str(error)


def test_podman_is_recognised_and_refused(site: Site) -> None:
    # Trap 31.
    server = site.serve(engine_that(version=PODMAN))
    error = site.trouble()
    assert error.code == "not_docker"
    assert str(error).startswith(f"unix://{site.path} is Podman, not Docker")
    assert "nothing was touched. Use `podman system prune` there." in str(error)
    assert not any("/info" in path for _method, path in server.requests)


# -- versions --------------------------------------------------------------------------------------


def test_the_newest_api_that_the_engine_has_is_spoken(site: Site) -> None:
    server = site.serve(engine_that())
    engine = site.connect()
    assert engine.api_version == "1.45"
    assert engine.info == INFO
    assert engine.is_local_socket
    assert ("GET", "/v1.45/info") in server.requests


def test_an_engine_of_api_1_21_is_spoken_to(site: Site) -> None:
    # Docker 1.9: no Components, no MinAPIVersion.
    server = site.serve(engine_that(version={"Version": "1.9.1", "ApiVersion": "1.21", "Os": "linux"}))
    engine = site.connect()
    assert engine.api_version == "1.21"
    assert ("GET", "/v1.21/info") in server.requests
    assert engine.disk_usage("volume", "build-cache") == {}
    assert not any("/system/df" in path for _method, path in server.requests)


def test_an_older_engine_than_that_is_refused_with_its_version(site: Site) -> None:
    site.serve(engine_that(version={"Version": "1.8.3", "ApiVersion": "1.20"}))
    error = site.trouble()
    assert "1.21" in str(error)
    assert "1.20" in str(error) or "too old" in str(error)
    assert error.code == "engine"


def test_an_engine_that_wants_a_newer_api_says_so_itself(site: Site) -> None:
    # Trap 27: Engine 29 refuses a version that was asked for and that it no longer speaks.
    words = "client version 1.30 is too old. Minimum supported API version is 1.44, please upgrade your client"
    site.serve(lambda method, path: http({"message": words}, "400 Bad Request"))
    assert words in str(site.trouble(api_version="1.30"))


@pytest.mark.parametrize("version", ["latest", "one"])
def test_an_api_version_that_is_none_is_refused(site: Site, version: str) -> None:
    site.serve(engine_that())
    assert site.trouble(api_version=version).code == "bad_input"


@pytest.mark.parametrize(
    ("spoken", "asked", "yes"),
    [
        ("1.45", "1.21", True),
        ("1.45", "1.45", True),
        ("1.9", "1.21", False),
        ("1.41", "1.42", False),
        ("2.0", "1.99", True),
    ],
)
def test_versions_are_compared_as_numbers(site: Site, spoken: str, asked: str, yes: bool) -> None:
    site.serve(engine_that())
    engine = site.connect()
    engine.api_version = spoken
    assert engine.speaks(asked) is yes


# -- answers and errors ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "gone", "conflict", "full"),
    [
        ("404 Not Found", True, False, False),
        ("409 Conflict", False, True, False),
        ("500 Internal Server Error", False, False, True),
    ],
)
def test_an_engines_refusal_keeps_its_own_words_and_its_kind(
    site: Site, status: str, gone: bool, conflict: bool, full: bool
) -> None:
    words = (
        "write /var/lib/docker/image/overlay2/.tmp-repositories.json: no space left on device" if full else "it is so"
    )
    site.serve(engine_that(lambda method, path: http({"message": words}, status)))
    with pytest.raises(EngineError) as caught:
        site.connect().remove_image("app:1")
    error = caught.value
    assert (error.gone, error.conflict, error.disk_full) == (gone, conflict, full)
    assert str(error) == f'DELETE /images/app:1: the engine says "{words}" (HTTP {status[:3]}).'
    assert error.code == "engine"


def test_an_engines_words_cannot_move_a_terminals_cursor(site: Site) -> None:
    site.serve(engine_that(lambda method, path: http({"message": "bad \x1b[2J\r\nname"}, "500 Internal Server Error")))
    with pytest.raises(EngineError) as caught:
        site.connect().volume("v")
    assert str(caught.value).isprintable()


def test_html_in_the_middle_of_the_work_is_no_traceback(site: Site) -> None:
    site.serve(engine_that(lambda method, path: http(b"<html>proxy error</html>", kind="text/html")))
    with pytest.raises(FleetcleanError) as caught:
        site.connect().containers()
    assert caught.value.code == "not_docker"


def test_an_engine_that_dies_in_the_middle_is_down(site: Site) -> None:
    server = site.serve(engine_that())
    engine = site.connect()
    server.stop()
    os.unlink(site.path)
    site.server = None
    with pytest.raises(FleetcleanError) as caught:
        engine.images()
    assert caught.value.code == "engine_down"


@pytest.mark.parametrize("ask", ["containers", "images", "volumes", "networks"])
def test_null_instead_of_a_list_is_an_empty_list(site: Site, ask: str) -> None:
    site.serve(engine_that(lambda method, path: http(None)))
    assert getattr(site.connect(), ask)() == []


def test_null_instead_of_the_engines_own_figures_is_no_figures(site: Site) -> None:
    site.serve(engine_that(lambda method, path: http(None)))
    assert site.connect().disk_usage("build-cache") == {}


def test_volumes_without_any_are_null_in_the_answer(site: Site) -> None:
    site.serve(engine_that(lambda method, path: http({"Volumes": None, "Warnings": None})))
    assert site.connect().volumes() == []


def test_a_removal_says_what_it_means_and_never_prunes(site: Site) -> None:
    server = site.serve(engine_that(lambda method, path: b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"))
    engine = site.connect()
    engine.remove_container("c1")
    engine.remove_container("c2", force=True)
    engine.remove_image("app:1")
    engine.remove_volume("v")
    engine.remove_network("n")
    assert [entry for entry in server.requests if entry[0] == "DELETE"] == [
        ("DELETE", "/v1.45/containers/c1?force=0&v=0"),
        ("DELETE", "/v1.45/containers/c2?force=1&v=0"),
        ("DELETE", "/v1.45/images/app:1?force=0&noprune=1"),
        ("DELETE", "/v1.45/volumes/v"),
        ("DELETE", "/v1.45/networks/n"),
    ]
    assert not any("prune" in urlsplit(path).path for _method, path in server.requests)


def test_records_of_the_build_cache_are_named_exactly(site: Site) -> None:
    server = site.serve(engine_that(lambda method, path: http({"CachesDeleted": ["abc123"], "SpaceReclaimed": 42})))
    engine = site.connect()
    assert engine.remove_cache_records(["abc123"]) == {"abc123"}
    assert engine.remove_cache_records(["other"]) == frozenset()
    assert engine.remove_cache_records(["other", "abc123"], unused_for=3600) == {"abc123"}
    asked = [unquote(path).replace("+", "").replace(" ", "") for _method, path in server.requests[-3:]]
    assert '{"id":["^(abc123)$"]}' in asked[0]
    assert '{"id":["^(other|abc123)$"],"unused-for":["3600s"]}' in asked[2]


def test_an_id_of_the_build_cache_is_no_expression(site: Site) -> None:
    server = site.serve(engine_that(lambda method, path: http({"CachesDeleted": ["a", "b"], "SpaceReclaimed": 42})))
    assert site.connect().remove_cache_records(["a.*"]) == frozenset()
    assert r"^(a\\.\\*)$" in unquote(server.requests[-1][1])


def test_past_events_are_read_one_by_one_and_have_an_end(site: Site) -> None:
    text = b'{"Type":"container","time":1}\n{"status":"pull","time":2}{"Type":"volume"}\n 7'
    server = site.serve(engine_that(lambda method, path: http(text)))
    assert site.connect().past_events() == [{"Type": "container", "time": 1}, {"status": "pull", "time": 2}, {"Type": "volume"}]
    assert server.requests[-1][1].startswith("/v1.45/events?since=1&until=")


@pytest.mark.parametrize(("api", "decimals"), [("1.45", True), ("1.22", True), ("1.21", False)])
def test_events_are_asked_for_up_to_this_moment_of_the_engines_clock(site: Site, api: str, decimals: bool) -> None:
    """However long ago it told its clock, and however long it took for that: an end before now would leave out the newest events."""
    told, slow = 1_700_000_000.5, 0.2

    def answer(_method: str, path: str) -> bytes:
        if path.endswith("/info"):
            time.sleep(slow)
            return http({**INFO, "SystemTime": "2023-11-14T22:13:20.5Z"})
        return http(VERSION) if path.endswith("/version") else http(b"")

    server = site.serve(answer)
    engine = site.connect(api_version=api)
    asked = time.monotonic()
    time.sleep(0.3)
    engine.past_events()
    elapsed = time.monotonic() - asked
    until = parse_qs(urlsplit(server.requests[-1][1]).query)["until"][0]
    # It had told its clock before it answered, and at the earliest when it was asked.
    assert told + 0.3 < float(until) < told + slow + elapsed + 0.2 + (not decimals)
    assert ("." in until) == decimals


def test_services_are_asked_of_managers_alone(site: Site) -> None:
    server = site.serve(engine_that(lambda method, path: http([{"ID": "s"}])))
    engine = site.connect()
    assert engine.services() == []
    engine.info["Swarm"] = {"ControlAvailable": True}
    assert engine.services() == [{"ID": "s"}]
    assert server.requests[-1][1] == "/v1.45/services"


@pytest.mark.parametrize(
    ("api", "query"),
    [("1.41", ""), ("1.42", "type=volume"), ("1.52", "type=volume&verbose=1")],
)
def test_disk_usage_is_asked_for_no_more_than_is_needed(site: Site, api: str, query: str) -> None:
    # Trap 26: it takes minutes to hours on big hosts.
    server = site.serve(engine_that(lambda method, path: http({"Volumes": []}), version={**VERSION, "ApiVersion": api}))
    site.connect().disk_usage("volume")
    assert urlsplit(server.requests[-1][1]).query == query


def test_disk_usage_of_api_1_52_has_the_names_it_had_before(site: Site) -> None:
    answer = {
        "ImageUsage": {"TotalSize": 5, "Items": [{"Id": "sha256:a"}]},
        "ContainerUsage": {"Items": [{"Id": "c"}]},
        "VolumeUsage": {"Items": [{"Name": "v"}]},
        "BuildCacheUsage": {"Items": [{"ID": "r"}]},
    }
    site.serve(engine_that(lambda method, path: http(answer), version={**VERSION, "ApiVersion": "1.52"}))
    usage = site.connect().disk_usage("image", "container", "volume", "build-cache")
    assert usage["Images"] == [{"Id": "sha256:a"}]
    assert usage["Containers"] == [{"Id": "c"}]
    assert usage["Volumes"] == [{"Name": "v"}]
    assert usage["BuildCache"] == [{"ID": "r"}]
    assert usage["LayersSize"] == 5


# -- hostile names ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["a b", "a?force=1", "a#b", "a%2fb", "a\r\nX-Injected: 1", "новый", "a&b=c", "*", '"; rm -rf /', "{0}", "{}"],
)
def test_a_hostile_name_stays_one_name_in_the_path(site: Site, name: str) -> None:
    server = site.serve(engine_that(lambda method, path: http({"Name": "x"})))
    site.connect().volume(name)
    method, path = server.requests[-1]
    parts = urlsplit(path)
    assert method == "GET"
    assert parts.query == parts.fragment == ""
    assert unquote(parts.path) == f"/v1.45/volumes/{name}"


@pytest.mark.parametrize("name", ["../containers/web", "x/../../containers/web", "..", "./../../containers/web"])
def test_a_name_with_dots_and_slashes_never_reaches_another_object(site: Site, name: str) -> None:
    server = site.serve(engine_that(lambda method, path: http({"message": "no such volume"}, "404 Not Found")))
    engine = site.connect()
    before = len(server.requests)
    try:
        engine.remove_volume(name)
    except FleetcleanError:
        pass
    # The engine's router resolves dots, and a client that makes redirects its own follows it there.
    reached = [posixpath.normpath(urlsplit(path).path) for _method, path in server.requests[before:]]
    assert [path for path in reached if not path.startswith("/v1.45/volumes/")] == []


@pytest.mark.parametrize("call", ["images", "image"])
def test_an_image_whose_names_somebody_changes_at_this_moment_is_asked_for_once_more(site: Site, call: str) -> None:
    """containerd's store gives up after three looks of its own; it has done nothing then."""
    words = {"message": "consistency error: data changed during operation, retry"}
    answers = [http(words, "500 Internal Server Error"), http(words, "500 Internal Server Error"), http([] if call == "images" else {"Id": "x"})]
    server = site.serve(engine_that(lambda method, path: answers.pop(0)))
    engine = site.connect()
    before = len(server.requests)
    getattr(engine, call)(*(() if call == "images" else ("sha256:" + "a" * 64,)))
    assert len(server.requests) == before + 3


def test_an_image_is_not_removed_again_by_a_name_that_may_be_another_ones_now(site: Site) -> None:
    words = {"message": "consistency error: data changed during operation, retry"}
    server = site.serve(engine_that(lambda method, path: http(words, "500 Internal Server Error")))
    engine = site.connect()
    before = len(server.requests)
    with pytest.raises(EngineError) as caught:
        engine.remove_image("app:1")
    assert caught.value.changing and len(server.requests) == before + 1


def test_an_images_repository_keeps_its_slashes_and_its_port(site: Site) -> None:
    server = site.serve(engine_that(lambda method, path: http({"Id": "x"})))
    engine = site.connect()
    engine.image("host:5000/team/app:1.2")
    engine.image("app@sha256:" + "a" * 64)
    assert unquote(server.requests[-2][1]) == "/v1.45/images/host:5000/team/app:1.2/json"
    assert unquote(server.requests[-1][1]) == f"/v1.45/images/app@sha256:{'a' * 64}/json"


def test_calls_one_after_the_other_share_a_connection(site: Site) -> None:
    """A new one for each call would cost more than the call."""
    accepted = []

    class Handler(http_server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            accepted.append(1)
            super().setup()

        def do_GET(self) -> None:
            body = json.dumps(VERSION if self.path.endswith("/version") else {"Id": "x"}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def address_string(self) -> str:
            return "test"

        def log_message(self, format: str, *args: t.Any) -> None:
            pass

    server = socketserver.ThreadingUnixStreamServer(site.path, Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        engine = site.connect()
        for number in range(10):
            engine.container(f"c{number}")
    finally:
        server.shutdown()
        server.server_close()
    assert len(accepted) <= 2, "one before the API is known, and one for all that comes then"
