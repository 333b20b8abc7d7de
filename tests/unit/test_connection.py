# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bounds of the engine's answers: a server that means harm costs so many bytes, so many seconds, and one clear error."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import shutil
import socket
import ssl
import sys
import tempfile
import threading
import time
import tracemalloc
import typing as t
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import apart, connection, options, snapshot
from ansible_collections.fleetclean.docker.plugins.module_utils import engine as engines
from ansible_collections.fleetclean.docker.plugins.module_utils.engine import Engine, UnexpectedAnswer
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import FleetcleanError

from tests.certificates import Certificates

VERSION = {"Version": "26.1.5", "ApiVersion": "1.45", "MinAPIVersion": "1.24"}
INFO = {"ID": "ABCD", "Name": "build1", "ServerVersion": "26.1.5", "Driver": "overlay2"}
LIMIT = 2**20

#: What is sent in answer to a request's method and path, piece by piece.
Script = t.Callable[[str, str], t.Iterable[bytes]]


def http(body: object = b"", status: str = "200 OK", *headers: str) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + content


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(content), content)


class Server:
    """Answers each request by a script; connections are kept until the client ends them, or the script gives None."""

    def __init__(self, script: Script, listener: socket.socket, context: ssl.SSLContext | None = None) -> None:
        self.requests: list[tuple[int, str, str, str]] = []
        self.sent = 0
        self._script = script
        self._listener = listener
        self._context = context
        self._numbers = itertools.count()
        listener.listen(16)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                peer = self._listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._serve, args=(peer, next(self._numbers)), daemon=True).start()

    def _serve(self, peer: socket.socket, number: int) -> None:
        try:
            if self._context:
                peer = self._context.wrap_socket(peer, server_side=True)
            with peer, peer.makefile("rb") as stream:
                while True:
                    method, path = stream.readline().decode().split(" ")[:2]
                    head = ""
                    for line in iter(stream.readline, b"\r\n"):
                        if not line:
                            return
                        head += line.decode()
                    self.requests.append((number, method, path, head))
                    for piece in self._answer(method, path):
                        if piece is None:
                            return
                        peer.sendall(piece)
                        self.sent += len(piece)
        except (OSError, ValueError):
            pass

    def _answer(self, method: str, path: str) -> t.Iterable[bytes | None]:
        if path.endswith("/version"):
            return [http(VERSION)]
        if path.endswith("/info"):
            return [http(INFO)]
        return self._script(method, path)

    def stop(self) -> None:
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._listener.close()


class Place:
    """A folder with a socket, and servers that listen there."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="fc-")
        self.servers: list[Server] = []

    def serve(self, script: Script) -> Server:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{self.folder}/d.sock")
        self.servers.append(Server(script, listener))
        return self.servers[-1]

    def serve_tcp(self, context: ssl.SSLContext | None = None) -> str:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.servers.append(Server(lambda method, path: [http([])], listener, context))
        return f"127.0.0.1:{listener.getsockname()[1]}"

    def connect(self, host: str = "", **params: t.Any) -> Engine:
        host = host or f"unix://{self.folder}/d.sock"
        return engines.connect({"docker_host": host, "api_version": "auto", "timeout": 5, "max_answer_size": "1MB", **params})

    def close(self) -> None:
        for server in self.servers:
            server.stop()
        shutil.rmtree(self.folder)


@pytest.fixture
def place() -> Iterator[Place]:
    found = Place()
    yield found
    found.close()


# -- bytes -----------------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
WITHOUT_END = {
    "list": (HEAD + b"\r\n[", b'{"Id":"a"},' * 1000),
    "large list": (HEAD + b"\r\n[", (b'{"Id":"a","Labels":{"a":"' + b"x" * 5000 + b'"}},') * 10),
    "empty objects": (HEAD + b"\r\n[", b'{"Id":"a","Mounts":[' + b"{}," * 5000 + b"{}]},"),
    "chunked": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(b"["), chunk(b'{"Id":"a"},' * 1000)),
    "length": (HEAD + b"Content-Length: 99999999999\r\n\r\n[", b'{"Id":"a"},' * 1000),
    "text": (HEAD + b'\r\n[{"Id":"', b"a" * 65536),
    "number": (HEAD + b'\r\n[{"Created":', b"1" * 65536),
    "unknown field": (HEAD + b'\r\n[{"Id":"a","x":[', b"[]," * 20000),
    "deep": (HEAD + b"\r\n", b"[" * 65536),
    "white space": (HEAD + b"\r\n", b" " * 65536),
    "headers": (HEAD, b"X-Header: " + b"x" * 60000 + b"\r\n"),
    "one header": (HEAD + b"X-Header: ", b"x" * 65536),
    "continue": (b"", b"HTTP/1.1 100 Continue\r\nX: y\r\n\r\n" * 1000),
    "status": (b"HTTP/1.1 ", b"2" * 65536),
    "chunk's size": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"0" * 65536),
    "trailers": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(b"[]") + b"0\r\n", b"X: y\r\n" * 10000),
    "error": (b"HTTP/1.1 500 Oh no\r\n\r\n", b"oh no " * 10000),
}


@pytest.mark.parametrize("kind", sorted(WITHOUT_END))
def test_an_answer_without_end_is_bounded_in_bytes_and_memory(place: Place, kind: str) -> None:
    start, more = WITHOUT_END[kind]
    server = place.serve(lambda method, path: itertools.chain([start], itertools.repeat(more)))
    engine = place.connect()
    tracemalloc.start()
    began = time.monotonic()
    try:
        with pytest.raises(FleetcleanError) as caught:
            engine.containers()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.monotonic() - began < 5
    assert peak < 8 * LIMIT
    assert server.sent < 4 * LIMIT
    assert "GET /containers/json" in str(caught.value) or caught.value.code == "not_docker"
    if kind in ("list", "large list", "empty objects", "chunked", "length", "text", "unknown field", "white space"):
        what = "a part of it is larger than 32.0 KB" if kind in ("text", "unknown field") else "it is larger than 1.0 MB"
        assert str(caught.value) == f"GET /containers/json: unexpected answer: {what}; if that is right for this host, raise `max_answer_size`."


def test_events_without_end_are_bounded_and_lost(place: Place) -> None:
    event = b'{"Type":"container","Action":"start","time":1,"Actor":{"ID":"a","Attributes":{"image":"app:1","x":"' + b"y" * 5000 + b'"}}}\n'
    server = place.serve(lambda method, path: itertools.chain([HEAD + b"\r\n"], itertools.repeat(event)))
    engine = place.connect()
    assert snapshot.past_uses(engine) == snapshot.PastUses({}, {}, lost=True)
    assert server.sent < 4 * LIMIT


def test_a_log_without_end_is_bounded_and_shows_nothing(place: Place) -> None:
    server = place.serve(lambda method, path: itertools.chain([HEAD + b"\r\n"], itertools.repeat(b"\1\0\0\0\0\0\0\2x\n" * 1000)))
    assert place.connect().shows_last_line("c", 2) is False
    assert server.sent < 4 * LIMIT


def test_an_honest_large_answer_is_read_with_little_memory(place: Place) -> None:
    # As an engine lists containers, with all the fields that nobody reads.
    entry = {
        "Id": "0" * 64, "Names": ["/web"], "Image": "app:1", "ImageID": "sha256:" + "1" * 64, "Command": "x" * 200, "Created": 1709290800,
        "Ports": [{"PrivatePort": port, "Type": "tcp"} for port in range(10)], "Labels": {"com.docker.compose.project": "shop", "a" * 20: "b" * 100},
        "State": "exited", "Status": "Exited (0) 3 hours ago", "HostConfig": {"NetworkMode": "front"},
        "NetworkSettings": {"Networks": {"front": {"NetworkID": "f" * 64, "Gateway": "x" * 300}}},
        "Mounts": [{"Type": "volume", "Name": "data", "Source": "/var/lib/docker/volumes/data/_data", "Destination": "/data", "Mode": "z"}],
    }
    content = json.dumps([{**entry, "Id": f"{number:064x}", "Names": [f"/web-{number}"]} for number in range(3000)]).encode()
    place.serve(lambda method, path: [http(content)])
    engine = place.connect(max_answer_size="64MB")
    tracemalloc.start()
    try:
        found = engine.containers()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found) == 3000
    assert len(content) > 4_500_000
    assert peak < 13_000_000


def test_a_larger_answer_is_taken_if_it_is_said_to_be_right(place: Place) -> None:
    content = [{"Id": f"{number:064x}", "Labels": {"a": "x" * 1000}} for number in range(3000)]
    place.serve(lambda method, path: [http(content)])
    with pytest.raises(UnexpectedAnswer):
        place.connect().containers()
    assert len(place.connect(max_answer_size="10MB").containers()) == 3000


def test_an_entry_that_is_too_large_is_said_to_be_one(place: Place) -> None:
    """Whoever looks at the answer himself finds it smaller than the limit."""
    content = [{"Id": "a", "Labels": {"a": "x" * 100_000}}]
    place.serve(lambda method, path: [http(content)])
    with pytest.raises(UnexpectedAnswer, match=r"a part of it is larger than 32.0 KB; if that is right for this host, raise `max_answer_size`"):
        place.connect().containers()
    assert len(place.connect(max_answer_size="64MB").containers()) == 1


@pytest.mark.parametrize(("size", "problem"), [("huge", "is not a size"), ("100KB", "is out of range; use 1MB or more"), ("0", "out of range")])
def test_a_size_that_is_none_is_refused(place: Place, size: str, problem: str) -> None:
    with pytest.raises(FleetcleanError) as caught:
        place.connect(max_answer_size=size)
    assert str(caught.value).startswith("max_answer_size: ")
    assert problem in str(caught.value)
    assert caught.value.code == "bad_input"


def test_the_usual_size_is_the_one_of_the_option() -> None:
    assert options.shared_spec()["max_answer_size"]["default"] == engines.MAX_ANSWER_SIZE


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "GZIP"])
def test_a_compressed_answer_is_refused(place: Place, encoding: str) -> None:
    bomb = gzip.compress(b"[" + b" " * 50_000_000 + b"]")
    server = place.serve(lambda method, path: [http(bomb, "200 OK", f"Content-Encoding: {encoding}")])
    engine = place.connect()
    with pytest.raises(FleetcleanError) as caught:
        engine.containers()
    assert caught.value.code == "not_docker"
    assert f"Content-Encoding '{encoding}', which was not asked for" in str(caught.value)
    assert not any("accept-encoding" in head.lower() for *_rest, head in server.requests)


# -- time ------------------------------------------------------------------------------------------


def drip(content: bytes) -> Iterator[bytes]:
    for number in range(len(content)):
        yield content[number: number + 1]
        time.sleep(0.05)


@pytest.mark.parametrize(
    "content",
    [
        b"HTTP/1.1 200 OK" + b" " * 1000,
        b"HTTP/1.1 200 OK\r\n" + b"X-Header: y\r\n" * 100,
        b"HTTP/1.1 200 OK\r\n\r\n[" + b'{"Id":"a"},' * 100,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b" ") * 1000,
        b"HTTP/1.1 500 Oh no\r\n\r\n" + b"oh no " * 1000,
    ],
    ids=["status", "headers", "content", "chunks", "error"],
)
@pytest.mark.parametrize("ask", ["containers", "remove"])
def test_a_byte_at_a_time_comes_to_an_end(place: Place, monkeypatch: pytest.MonkeyPatch, content: bytes, ask: str) -> None:
    monkeypatch.setattr(connection, "_WHOLE", 0.3)
    place.serve(lambda method, path: drip(content))
    engine = place.connect(timeout=1)
    began = time.monotonic()
    with pytest.raises(FleetcleanError) as caught:
        engine.remove_volume("v") if ask == "remove" else engine.containers()
    assert time.monotonic() - began < 3
    if b"500" not in content:
        assert "took longer than the timeout. Raise `timeout` (seconds)" in str(caught.value)
        assert caught.value.code == "engine_down"


def test_an_answer_that_stops_in_the_middle_is_given_up(place: Place) -> None:
    def half(_method: str, _path: str) -> Iterator[bytes]:
        yield HEAD + b"Content-Length: 100\r\n\r\n["
        time.sleep(5)

    place.serve(half)
    engine = place.connect(timeout=1)
    began = time.monotonic()
    with pytest.raises(FleetcleanError) as caught:
        engine.containers()
    assert time.monotonic() - began < 3
    assert "GET /containers/json took longer than the timeout" in str(caught.value)


def test_a_removal_is_waited_for_longer_than_the_timeout(place: Place) -> None:
    def slow(_method: str, _path: str) -> Iterator[bytes]:
        time.sleep(1.5)
        yield http(b"", "204 No Content")

    place.serve(slow)
    place.connect(timeout=1).remove_volume("v")


@pytest.mark.parametrize("what", ["pause", "unpause"])
def test_a_pause_is_not(place: Place, what: str) -> None:
    """It takes no time; meanwhile the container would stand still, and its log be locked, for as long as a removal may take."""

    def slow(_method: str, _path: str) -> Iterator[bytes]:
        time.sleep(5)
        yield http(b"", "204 No Content")

    place.serve(slow)
    engine = place.connect(timeout=1)
    began = time.monotonic()
    with pytest.raises(FleetcleanError, match=f"POST /containers/a/{what} took longer than the timeout"):
        getattr(engine, what)("a")
    assert time.monotonic() - began < 3


def test_a_full_queue_of_connections_is_waited_for(place: Place) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{place.folder}/d.sock")
    listener.listen(0)
    waiting = []
    try:
        while True:
            waiting.append(socket.socket(socket.AF_UNIX))
            waiting[-1].setblocking(False)
            waiting[-1].connect(f"{place.folder}/d.sock")
    except BlockingIOError:
        pass

    def accept() -> None:
        time.sleep(0.3)
        place.servers.append(Server(lambda method, path: [http([])], listener))

    threading.Thread(target=accept, daemon=True).start()
    try:
        assert place.connect().containers() == []
    finally:
        for client in waiting:
            client.close()


# -- framing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"Content-Length: -1\r\n\r\n[]",
        HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n[] ",
        HEAD + b"Content-Length: many\r\n\r\n[]",
        HEAD + b"Content-Length: 10\r\n\r\n[]",
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nhello\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\n[]\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n9\r\n[]",
        HEAD,
        b"HTTP/1.1 200",
        b"HTTP/1.1 999999 OK\r\n\r\n",
        b"HTTP/3 200 OK\r\n\r\n[]",
        HEAD + b"Content-Length: 0\r\n\r\n",
        HEAD + b"\r\n",
        HEAD + b"Content-Length: 5\r\n\r\n[] []",
        HEAD + b"Content-Length: 3\r\n\r\n[\xff]",
        HEAD + b"Content-Length: 5\r\n\r\n[NaN]",
        HEAD + b"Content-Length: 2\r\n\r\n[,",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n[]",
    ],
)
def test_odd_framing_is_one_clear_error(place: Place, answer: bytes) -> None:
    place.serve(lambda method, path: [answer, t.cast(bytes, None)])
    engine = place.connect()
    with pytest.raises(FleetcleanError) as caught:
        engine.containers()
    assert caught.value.code in ("engine_down", "not_docker", "engine")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n", "Internal Server Error"),
        (b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 9\r\n\r\nno \xff luck", "no \ufffd luck"),
        (http({"message": ["x"]}, "500 Oh no"), '{"message": ["x"]}'),
        (http(b"[" * 10_000, "409 Conflict"), "[" * 4000),
        (http({"message": "x" * 1_000_000}, "404 Not Found"), '{"message": "xxxx'),
        (HEAD.replace(b"200", b"500") + b"Content-Length: 10\r\n\r\nhalf", "half"),
    ],
    ids=["empty", "binary", "list", "deep", "large", "cut short"],
)
def test_an_error_is_an_error_whatever_it_says(place: Place, answer: bytes, words: str) -> None:
    place.serve(lambda method, path: [answer, t.cast(bytes, None)])
    with pytest.raises(engines.EngineError) as caught:
        place.connect().remove_volume("v")
    assert words in caught.value.answer
    assert caught.value.status == int(answer.split()[1])
    assert len(str(caught.value)) < 5000


def test_a_version_of_the_api_that_is_too_old_is_refused(place: Place) -> None:
    place.serve(lambda method, path: [])
    with pytest.raises(FleetcleanError, match="api_version: 1.20 is too old: 1.21") as caught:
        place.connect(api_version="1.20")
    assert caught.value.code == "bad_input"


@pytest.mark.parametrize("status", ["301 Moved", "307 Temporary Redirect"])
def test_redirects_are_not_followed(place: Place, status: str) -> None:
    server = place.serve(lambda method, path: [http(b"", status, "Location: /v1.45/containers/other")])
    with pytest.raises(engines.EngineError, match="moved to /v1.45/containers/other"):
        place.connect().remove_container("c")
    assert [method for _number, method, *_rest in server.requests].count("DELETE") == 1


# -- kept connections ------------------------------------------------------------------------------


def test_an_engine_that_hung_up_between_calls_is_called_again(place: Place) -> None:
    server = place.serve(lambda method, path: [http([] if method == "GET" else b""), t.cast(bytes, None)])
    engine = place.connect()
    for _number in range(3):
        engine.containers()
        time.sleep(0.05)
        engine.remove_volume("v")
        time.sleep(0.05)
    assert len({number for number, *_rest in server.requests}) == 6
    assert [method for _number, method, path, _head in server.requests if "/volumes/v" in path] == ["DELETE"] * 3


def test_a_call_that_may_have_been_carried_out_is_not_repeated(place: Place) -> None:
    """What hangs up after it has got a request may have done it: a GET is asked again, once, and nothing else."""
    server = place.serve(lambda method, path: [http([])] if "containers" in path else [t.cast(bytes, None)])
    engine = place.connect()
    for ask, times in (lambda: engine.volume("v"), 2), (lambda: engine.remove_volume("v"), 1):
        engine.containers()
        before = len(server.requests)
        with pytest.raises(FleetcleanError) as caught:
            ask()
        assert caught.value.code == "engine_down"
        assert len(server.requests) - before == times


def test_what_comes_unasked_is_not_the_next_answer(place: Place) -> None:
    """A second answer in the place of the next one would name other objects than were asked for."""
    forged = http([{"Id": "forged"}])

    def script(_method: str, path: str) -> Iterator[bytes]:
        yield http([]) if "containers" in path else http({"Volumes": []})
        time.sleep(0.05)
        yield forged

    place.serve(script)
    engine = place.connect()
    engine.volumes()
    time.sleep(0.1)
    assert engine.containers() == []


@pytest.mark.parametrize("status", ["200 OK", "500 Oh no"])
def test_what_is_left_of_a_refused_answer_is_not_the_next_answer(place: Place, status: str) -> None:
    forged = http([{"Id": "forged"}])
    start = b'[{"Id":5},' + b" " * 200_000

    def script(_method: str, path: str) -> Iterator[bytes]:
        if "images" not in path:
            yield http([])
            return
        length = len(start) + len(forged)
        yield f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n".encode() + start
        time.sleep(0.1)
        yield forged

    place.serve(script)
    engine = place.connect()
    with pytest.raises(engines.EngineError) as caught:
        engine.images()
    assert engine.containers() == []
    assert (caught.value.status, caught.value.gone) == (int(status[:3]), False)


def test_a_fork_has_a_connection_of_its_own(place: Place) -> None:
    place.serve(lambda method, path: [http([{"Id": path.rpartition("=")[2]}])])
    engine = place.connect()
    engine.containers()
    assert apart.do(lambda: engine.containers(size=True)) == [{"Id": "1"}]
    assert engine.containers() == [{"Id": "0"}]


def test_threads_have_connections_of_their_own(place: Place) -> None:
    server = place.serve(lambda method, path: [http([])])
    engine = place.connect()
    threads = [threading.Thread(target=lambda: [engine.containers() for _number in range(5)]) for _number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({number for number, *_rest in server.requests}) == 5


def test_nothing_of_the_environment_matters(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("NETRC", "/nowhere")
    address = place.serve_tcp()
    assert place.connect(f"tcp://{address}").containers() == []
    assert "authorization" not in place.servers[0].requests[0][3].lower()


def test_a_path_in_the_address_stands_before_each_call(place: Place) -> None:
    address = place.serve_tcp()
    place.connect(f"http://{address}/engine/").containers()
    assert [path for _number, _method, path, _head in place.servers[0].requests][:2] == ["/engine/version", "/engine/v1.45/info"]


@pytest.mark.parametrize("host", ["tcp://build1", "tcp://:2375", "tcp://user:secret@build1:2375", "tcp://build1:99999", "tcp://build1:2375?x=y", "https://[::1"])
def test_what_is_no_address_is_refused_without_a_secret(host: str) -> None:
    with pytest.raises(FleetcleanError) as caught:
        engines.connect({"docker_host": host, "api_version": "auto", "timeout": 5})
    assert caught.value.code == "bad_input"
    assert "secret@" not in str(caught.value)


@pytest.mark.parametrize("host", ["unix://a\0b", "unix:///" + "x" * 200])
def test_a_socket_that_cannot_be_is_refused(host: str) -> None:
    with pytest.raises(FleetcleanError) as caught:
        engines.connect({"docker_host": host, "api_version": "auto", "timeout": 5})
    assert caught.value.code in ("bad_input", "engine_down")
    assert str(caught.value).isprintable()


# -- TLS -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


#: The server's certificate, whether it wants the client's, the scheme, the options, and whether that is right.
TLS: tuple[tuple[str, bool, str, dict[str, t.Any], bool], ...] = (
    ("server", False, "tcp", {"validate_certs": True, "ca_path": "ca.pem"}, True),
    ("server", False, "https", {"validate_certs": True, "ca_path": "ca.pem"}, True),
    ("server", False, "http", {"validate_certs": True, "ca_path": "ca.pem"}, True),
    ("server", False, "tcp", {"tls": True}, True),
    ("server", False, "tcp", {"tls": True, "validate_certs": True, "ca_path": "other-ca.pem"}, False),
    ("server", False, "https", {}, False),
    ("server", False, "tcp", {"validate_certs": True}, False),
    ("elsewhere", False, "tcp", {"validate_certs": True, "ca_path": "ca.pem"}, False),
    ("elsewhere", False, "tcp", {"validate_certs": True, "ca_path": "ca.pem", "tls_hostname": "elsewhere.example"}, True),
    ("server", False, "tcp", {"validate_certs": True, "ca_path": "ca.pem", "tls_hostname": "elsewhere.example"}, False),
    ("elsewhere", False, "tcp", {"tls": True}, True),
    ("expired", False, "tcp", {"validate_certs": True, "ca_path": "ca.pem"}, False),
    ("expired", False, "tcp", {"tls": True}, True),
    ("nameless", False, "tcp", {"validate_certs": True, "ca_path": "ca.pem"}, False),
    ("server", True, "tcp", {"validate_certs": True, "ca_path": "ca.pem"}, False),
    ("server", True, "tcp", {"validate_certs": True, "ca_path": "ca.pem", "client_cert": "client.pem", "client_key": "client.key"}, True),
    ("server", True, "tcp", {"validate_certs": True, "ca_path": "ca.pem", "client_cert": "stranger.pem", "client_key": "stranger.key"}, False),
    ("server", True, "tcp", {"validate_certs": True, "ca_path": "ca.pem", "client_cert": "expired.pem", "client_key": "expired.key"}, False),
    ("server", True, "tcp", {"tls": True, "client_cert": "client.pem", "client_key": "client.key"}, True),
)


@pytest.mark.parametrize("number", range(len(TLS)))
def test_tls_is_as_it_was_asked_for(place: Place, certificates: Certificates, number: int) -> None:
    name, asks_for_clients, scheme, given, right = TLS[number]
    params = {key: certificates.path(value) if key in ("ca_path", "client_cert", "client_key") else value for key, value in given.items()}
    address = place.serve_tcp(certificates.server(name, asks_for_clients))
    if right:
        assert place.connect(f"{scheme}://{address}", **params).containers() == []
        return
    with pytest.raises(FleetcleanError) as caught:
        place.connect(f"{scheme}://{address}", **params)
    assert (caught.value.code, place.servers[0].requests) == ("denied", [])
    assert "Check tls, validate_certs, ca_path and tls_hostname." in str(caught.value)


#: Files in the folder that DOCKER_CERT_PATH names and whose they are, the options, and whether the server lets us in, or the start of the error.
CERT_PATH: tuple[tuple[dict[str, str], dict[str, t.Any], bool | str], ...] = (
    ({"ca.pem": "ca.pem", "cert.pem": "client.pem", "key.pem": "client.key"}, {"validate_certs": True}, True),
    ({"ca.pem": "ca.pem", "cert.pem": "client.pem", "key.pem": "client.key"}, {"tls": True}, True),
    ({"ca.pem": "ca.pem", "cert.pem": "client.pem", "key.pem": "client.key"}, {"scheme": "https"}, True),
    ({"cert.pem": "client.pem", "key.pem": "client.key"}, {"tls": True}, True),
    ({"ca.pem": "other-ca.pem", "cert.pem": "client.pem", "key.pem": "client.key"}, {"tls": True}, True),
    ({"ca.pem": "other-ca.pem", "cert.pem": "client.pem", "key.pem": "client.key"}, {"validate_certs": True}, False),
    ({"ca.pem": "other-ca.pem", "cert.pem": "client.pem", "key.pem": "client.key"}, {"validate_certs": True, "ca_path": "ca.pem"}, True),
    ({"ca.pem": "ca.pem", "cert.pem": "stranger.pem", "key.pem": "stranger.key"}, {"validate_certs": True}, False),
    ({"ca.pem": "ca.pem", "cert.pem": "stranger.pem", "key.pem": "stranger.key"}, {"validate_certs": True, "client_cert": "client.pem", "client_key": "client.key"}, True),
    ({"ca.pem": "ca.pem"}, {"validate_certs": True, "client_cert": "", "client_key": ""}, False),
    ({"cert.pem": "client.pem", "key.pem": "client.key"}, {"validate_certs": True}, "DOCKER_CERT_PATH: {folder}/ca.pem: no such file; put it there, or give ca_path"),
    ({"ca.pem": "ca.pem", "cert.pem": "client.pem"}, {"tls": True}, "DOCKER_CERT_PATH: {folder}/key.pem: no such file; put it there, or give client_key"),
    ({"ca.pem": "ca.pem", "key.pem": "client.key"}, {"tls": True, "client_cert": "client.pem"}, "client_cert and client_key belong together"),
)


@pytest.mark.parametrize("number", range(len(CERT_PATH)))
def test_docker_cert_path_is_read_as_community_docker_reads_it(
    place: Place, certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """An option goes before it, authorities count where the server is checked, the client's certificate wherever TLS is used."""
    files, given, outcome = CERT_PATH[number]
    for name, content in files.items():
        (tmp_path / name).write_bytes(Path(certificates.path(content)).read_bytes())
    monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path))
    params = {key: certificates.path(value) if value and isinstance(value, str) else value for key, value in given.items() if key != "scheme"}
    address = place.serve_tcp(certificates.server("server", True))
    if outcome is True:
        assert place.connect(f"{given.get('scheme', 'tcp')}://{address}", **params).containers() == []
        return
    with pytest.raises(FleetcleanError) as caught:
        place.connect(f"tcp://{address}", **params)
    assert str(caught.value).startswith(outcome.format(folder=tmp_path) if outcome else f"tcp://{address}: "), str(caught.value)
    assert caught.value.code == ("bad_input" if outcome else "denied")


def test_without_tls_nobody_looks_for_certificates(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CERT_PATH", "/nonexistent")
    assert place.connect(f"tcp://{place.serve_tcp()}").containers() == []


def test_a_server_without_tls_is_told_apart(place: Place) -> None:
    address = place.serve_tcp()
    with pytest.raises(FleetcleanError) as caught:
        place.connect(f"tcp://{address}", tls=True, timeout=2)
    assert caught.value.code in ("denied", "engine_down")


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("ca_path", "nothing.pem", "ca_path: {path}: no such file"),
        ("client_cert", "nothing.pem", "client_cert: {path}: no such file"),
        ("ca_path", "client.key", "ca_path, client_cert, client_key: "),
        ("client_key", "client.locked", "the key without a passphrase"),
        ("client_key", "server.key", "ca_path, client_cert, client_key: "),
    ],
)
def test_files_that_cannot_be_used_are_named(place: Place, certificates: Certificates, option: str, value: str, problem: str) -> None:
    params = {"ca_path": "ca.pem", "client_cert": "client.pem", "client_key": "client.key", option: value}
    address = place.serve_tcp()
    with pytest.raises(FleetcleanError) as caught:
        place.connect(f"tcp://{address}", validate_certs=True, **{key: certificates.path(name) for key, name in params.items()})
    assert caught.value.code == "bad_input"
    assert problem.format(path=certificates.path(value)) in str(caught.value)


def test_the_door_needs_no_sdk(python: str) -> None:
    """Nor anything else that is not in the standard library, nor TLS's own modules of it."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); "
        "from ansible_collections.fleetclean.docker.plugins.module_utils import connection, fields; "
        "print(sorted({name.split('.')[0] for name in sys.modules}.intersection({'docker', 'requests', 'urllib3'})))"
    )
    root = Path(__file__).resolve().parents[2] / "playbooks" / "collections"
    import subprocess

    done = subprocess.run([python, "-S", "-c", code, str(root)], capture_output=True, text=True, check=False, env={"PATH": os.environ["PATH"]})
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
    assert sys.version_info >= (3, 8)


# -- who listens -----------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")
def test_who_listens_is_what_the_kernel_says_and_may_not_become_somebody_else(place: Place) -> None:
    server = place.serve(lambda method, path: [http([])])
    engine = place.connect()
    assert engine.listener == 0
    server.stop()
    os.unlink(f"{place.folder}/d.sock")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{place.folder}/d.sock")
    os.seteuid(12345)
    try:
        place.servers.append(Server(lambda method, path: [http([])], listener))
    finally:
        os.seteuid(0)
    # Another thread has a connection of its own.
    with ThreadPoolExecutor(1) as pool, pytest.raises(FleetcleanError, match="user 12345 listens there now, and user 0 did before"):
        pool.submit(engine.containers).result()
    assert place.connect().listener == 12345


def test_who_listens_is_not_known_over_tcp(place: Place) -> None:
    assert place.connect(f"tcp://{place.serve_tcp()}").listener is None
