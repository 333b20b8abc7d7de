# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one door to the engine: connecting, asking and removing, with errors that say what to do.

Paths and answers are those of the Docker Engine API (https://docs.docker.com/reference/api/engine/),
versions 1.21 to today's. What an engine says is data of a stranger's: ``connection`` bounds its bytes
and its time, ``fields`` says which type each field has that anything here reads. What is not of that
type is an ``UnexpectedAnswer``; what is not read is not returned.
"""

from __future__ import annotations

import errno
import http.client
import json
import math
import os
import re
import socket
import stat
import time
import typing as t
from urllib.parse import quote, urlencode

from ansible_collections.fleetclean.docker.plugins.module_utils import fields
from ansible_collections.fleetclean.docker.plugins.module_utils.connection import (
    Broken,
    Connection,
    CutShort,
    Response,
    TooLong,
    TooSlow,
    parse_address,
    tls_context,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import (
    FleetcleanError,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.units import parse_size, parse_time, say_size

#: The engine's oldest API that this collection speaks: Docker 1.9.
OLDEST_API = "1.21"
#: A removal takes as long as it takes: giving up early makes the engine stop half-way and leaves a
#: half-removed layer behind (moby issues 21215 and 18869). An hour of silence is a dead connection.
REMOVAL_TIMEOUT = 3600
#: Where an engine's program is, if one is installed: tells "no Docker" from "Docker is down".
_DAEMONS = tuple(
    f"{folder}/{name}"
    for folder in ("/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/snap/bin", "/opt/bin")
    for name in ("dockerd", "dockerd-rootless.sh", "balenad", "balena-engine-daemon")
)


_Made = t.TypeVar("_Made")
_Answer = t.TypeVar("_Answer")
#: How an engine that is shutting down speaks of containerd and of itself (gRPC's words, and Go's).
_ENDING = (
    "client connection is closing", "transport is closing", "error reading from server", "context canceled", "containerd.sock",
    "shutting down", "server closed", "database not open",
)
#: Seconds beyond the latest that the engine's clock can show: an end that has passed when the question arrives leaves out the newest events.
_EVENTS_MARGIN_S = 0.05
#: So many events an engine holds in memory (moby, daemon/events/events.go, eventsLimit): 64 in 1.13 (moby 30502), 256 in 18.09 (moby
#: 38812). Where it changed between them is not known, so the smaller number is taken there.
_EVENTS_KEPT, _EVENTS_KEPT_ONCE, _EVENTS_KEPT_SINCE = 256, 64, (1, 39)
#: What an answer may be unless it is said otherwise: 10,000 containers take 20 MB.
MAX_ANSWER_SIZE = "64MB"
#: What an answer may be at least: the smallest that is of any use.
_MIN_ANSWER_BYTES = 2**20
#: Characters of the engine's own words that an error has.
_MAX_WORDS = 4000
_USUAL_SOCKETS = ("/var/run/docker.sock", "/run/docker.sock")
_USUAL_ROOT = "/var/lib/docker"


class EngineError(FleetcleanError):
    """The engine refused a call. ``status`` is HTTP's, ``answer`` the engine's own words, ``said`` the same for people: with containers' names.

    Nothing is decided by ``said``: a container may be called as an error of the engine begins.
    """

    def __init__(self, call: str, status: int, answer: str, said: str | None = None) -> None:
        self.said = answer if said is None else said
        super().__init__(f'{call}: the engine says "{self.said}" (HTTP {status}).', "engine")
        self.call = call
        self.status = status
        self.answer = answer

    def __reduce__(self) -> tuple[t.Any, ...]:
        return EngineError, (self.call, self.status, self.answer, self.said)

    @property
    def gone(self) -> bool:
        """The object is not there any more: whoever wanted it removed has it."""
        return self.status == 404

    @property
    def conflict(self) -> bool:
        """The object is in use, or somebody else is removing it at this moment."""
        return self.status == 409

    @property
    def ending(self) -> bool:
        """The engine is shutting down: until its last moment it answers, that what it relies on is gone already."""
        lower = self.answer.lower()
        return self.status >= 500 and any(sign in lower for sign in _ENDING)

    @property
    def broken(self) -> bool:
        """Asked for all, the engine fell over one object that it holds: asked for less, it may answer."""
        return (self.status >= 500 or self.gone) and not self.ending and "already running" not in self.answer

    @property
    def vanishing(self) -> bool:
        """The object is half gone: somebody else is removing it at this moment (graph drivers: image/store.go, layer/layer_store.go)."""
        return self.status >= 500 and any(sign in self.answer for sign in ("unrecognized image ID", "layer does not exist"))

    @property
    def changing(self) -> bool:
        """Somebody else changed the image's names while the engine looked for it, and nothing was done (moby, daemon/containerd/image.go).

        Whoever wants to remove it has to look again: the name may be another image's now.
        """
        return self.status >= 500 and "data changed during operation" in self.answer

    @property
    def disk_full(self) -> bool:
        return "no space left on device" in self.answer.lower()


class UnexpectedAnswer(EngineError):
    """An answer that is no answer to its call, or too large; ``problem`` names the field and its type, or what to do."""

    def __init__(self, call: str, problem: str) -> None:
        super().__init__(call, 200, problem)
        self.args = (f"{call}: unexpected answer: {problem}.",)

    def __reduce__(self) -> tuple[t.Any, ...]:
        return UnexpectedAnswer, (self.call, self.answer)


class Engine:
    """A connection to one engine. Make it with ``connect``."""

    def __init__(self, connection: Connection, host: str, timeout: float, api_version: str) -> None:
        """:param api_version: of the API that is spoken; auto: the engine's newest."""
        self._connection = connection
        self._timeout = timeout
        #: Names of the containers that were listed, by their ids.
        self._names: dict[str, str] = {}
        self.host = host
        self.api_version = "" if api_version == "auto" else api_version
        self.version: dict[str, t.Any] = self._ask("GET", "/version", fields.VERSION) or {}
        if not self.version.get("ApiVersion"):
            raise FleetcleanError(_not_an_engine(self.host, "GET /version has no ApiVersion"), "not_docker")
        if not self.api_version:
            self.api_version = str(self.version["ApiVersion"])
            if not self.speaks(OLDEST_API):
                raise FleetcleanError(
                    f"the engine at {host} is too old: it speaks API {self.api_version}; Docker 1.9 (API {OLDEST_API}) "
                    "and newer can be cleaned.",
                    "engine",
                )
        self._refuse_others()
        asked = time.monotonic()
        self.info: dict[str, t.Any] = self._object("/info", fields.INFO)
        # Counted from before it was asked, the engine's clock is at most this far ahead of the monotonic one.
        self._clock_offset = (parse_time(self.info.get("SystemTime")) or time.time()) - asked

    @property
    def is_local_socket(self) -> bool:
        """The engine is asked through a socket of this machine (which says nothing of its disk yet)."""
        return self.host.startswith("unix://")

    @property
    def listener(self) -> int | None:
        """The user whose process listens at the engine's socket; None over TCP."""
        return self._connection.listener

    def with_names(self, text: str) -> str:
        """The text with the containers that were listed called by their names; the engine's own words have ids of 64 digits."""
        if self._names:
            from ansible_collections.fleetclean.docker.plugins.module_utils import names

            # Another thread may list containers meanwhile.
            text = names.with_names(text, self._names.copy())
        return _clean(text)

    def speaks(self, api_version: str) -> bool:
        """Whether the negotiated API is ``api_version`` or newer."""
        return _numbers(self.api_version) >= _numbers(api_version)

    # -- asking ------------------------------------------------------------------------------

    def containers(self, size: bool = False) -> list[dict[str, t.Any]]:
        """All containers in every state; with ``size`` their SizeRw (bytes), which the engine has to walk for."""
        return self.containers_as(lambda raw: raw, size)

    def containers_as(self, make: t.Callable[[dict[str, t.Any]], _Made], size: bool = False) -> list[_Made]:
        """The same, each entry as what ``make`` makes of it; the entry itself is dropped at once, since there may be thousands."""
        def named(raw: dict[str, t.Any]) -> _Made:
            # A container that is linked to has names like /other/alias besides its own.
            own = next((name for name in map(str, raw.get("Names") or ()) if name.lstrip("/") and "/" not in name.lstrip("/")), "")
            if own:
                self._names[str(raw["Id"])] = own.lstrip("/")
            return make(raw)

        listed = self._list("/containers/json", fields.Each(fields.CONTAINER, named), {"all": 1, "size": int(size)}, patient=size)
        return t.cast(t.List[_Made], listed)

    def container(self, ident: str) -> dict[str, t.Any]:
        return self._object("/containers/{0}/json", fields.CONTAINER_DETAILS, path=(ident,))

    def images(self) -> list[dict[str, t.Any]]:
        """All images, intermediate ones too."""
        return self.images_as(lambda raw: raw)

    def images_as(self, make: t.Callable[[dict[str, t.Any]], _Made]) -> list[_Made]:
        """The same, each entry as what ``make`` makes of it."""
        return t.cast(t.List[_Made], self._again(lambda: self._list("/images/json", fields.Each(fields.IMAGE, make), {"all": 1})))

    def image(self, ident: str) -> dict[str, t.Any]:
        return self._again(lambda: self._object("/images/{0}/json", fields.IMAGE_DETAILS, path=(ident,)), "content digest")

    def volumes(self) -> list[dict[str, t.Any]]:
        return self._object("/volumes", fields.VOLUMES, empty=True).get("Volumes") or []

    def volume(self, name: str) -> dict[str, t.Any]:
        return self._object("/volumes/{0}", fields.VOLUME, path=(name,))

    def networks(self) -> list[dict[str, t.Any]]:
        return self._list("/networks", fields.NETWORKS)

    def services(self) -> list[dict[str, t.Any]]:
        """Swarm's services, which a manager alone can tell; none elsewhere."""
        if not (self.info.get("Swarm") or {}).get("ControlAvailable"):
            return []
        return self._list("/services", fields.SERVICES)

    @property
    def events_kept(self) -> int:
        """How many events the engine holds in memory; each further one takes the place of the oldest."""
        return _EVENTS_KEPT if _numbers(str(self.version.get("ApiVersion") or "")) >= _EVENTS_KEPT_SINCE else _EVENTS_KEPT_ONCE

    def past_events(self) -> list[dict[str, t.Any]]:
        """The events that the engine still holds in memory, up to those of this moment; oldest first.

        The answer ends at the moment that is given as its end, by the engine's clock: what happened later is left out, and for a later
        one the engine waits. So it is given the latest that its clock can show by now.
        """
        until = self._clock_offset + time.monotonic() + _EVENTS_MARGIN_S
        # Before API 1.22 it takes whole seconds only.
        end = f"{until:.9f}" if self.speaks("1.22") else str(math.ceil(until))
        # One object after the other, on old engines without a line's end between them.
        return self._content(lambda pieces, limit: list(fields.parse_each(pieces, fields.EVENT, limit)), "GET", "/events", {"since": 1, "until": end})

    def wait(self, seconds: float) -> bool:
        """Wait for an engine that went away to answer again; return whether it does."""
        end = time.monotonic() + seconds
        while not self._answers():
            if time.monotonic() > end:
                return False
            time.sleep(0.5)
        return True

    def _answers(self) -> bool:
        try:
            self._ask("GET", "/version", fields.VERSION)
            return True
        except FleetcleanError:
            return False

    def disk_usage(self, *kinds: str) -> dict[str, t.Any]:
        """The engine's own figures, ``{}`` where its API has none (before 1.25).

        :param kinds: container, image, volume, build-cache. From API 1.42 the engine computes
            only what is asked for; before, everything, which takes long on big hosts (moby 31951).
        """
        if not self.speaks("1.25"):
            return {}
        params: dict[str, t.Any] = {"type": list(kinds)} if self.speaks("1.42") else {}
        if self.speaks("1.52"):
            params["verbose"] = 1  # without it, sums alone
        end = time.monotonic() + REMOVAL_TIMEOUT
        while True:
            try:
                found = self._again(lambda: self._object("/system/df", fields.DISK_USAGE, params, patient=True, empty=True))
                return _with_old_names(found)
            except EngineError as error:
                # Engines compute one at a time, for whoever asked first.
                if "already running" not in error.answer or time.monotonic() > end:
                    raise
            time.sleep(0.5)

    # -- containers' logs --------------------------------------------------------------------

    def pause(self, ident: str) -> None:
        self._do("POST", "/containers/{0}/pause", path=(ident,), timeout=self._timeout)

    def unpause(self, ident: str) -> None:
        self._do("POST", "/containers/{0}/unpause", path=(ident,), timeout=self._timeout)

    def restart_container(self, ident: str) -> None:
        """Stop a container, within the time that it was given for that, and start it again."""
        self._do("POST", "/containers/{0}/restart", path=(ident,))

    def shows_last_line(self, ident: str, seconds: float) -> bool:
        """Whether `docker logs --tail 1` shows anything within ``seconds``. What is shown is not looked at.

        Asked for a log that became shorter under it, an engine of 23 or newer searches without end, until we hang up.
        """
        params = {"stdout": 1, "stderr": 1, "tail": 1}
        try:
            start = self._content(_start, "GET", "/containers/{0}/logs", params, path=(ident,), timeout=seconds)
            # A frame of the third stream has the engine's complaint (api/types/container: Attach, stream format).
            return bool(start) and start != b"\3\0\0\0"
        except UnexpectedAnswer:
            return False
        except EngineError:
            raise
        except FleetcleanError:
            return False

    # -- removing ----------------------------------------------------------------------------

    def remove_container(self, ident: str, force: bool = False) -> None:
        """Remove one container; ``force`` kills it first. Its volumes stay: they are objects of their own."""
        self._do("DELETE", "/containers/{0}", {"force": int(force), "v": 0}, path=(ident,))

    def remove_image(self, reference: str, force: bool = False) -> None:
        """Remove a tag, a digest, or an image by id. Untagged parents stay: the plan names them itself."""
        self._do("DELETE", "/images/{0}", {"force": int(force), "noprune": 1}, path=(reference,))

    def remove_volume(self, name: str) -> None:
        self._do("DELETE", "/volumes/{0}", path=(name,))

    def remove_network(self, ident: str) -> None:
        self._do("DELETE", "/networks/{0}", path=(ident,))

    def remove_cache_records(self, idents: t.Collection[str], unused_for: int = 0) -> frozenset[str]:
        """Remove records of the build cache in one call; return the ids of those that went.

        The engine has no call for single records, but its prune takes an id, as an expression that it matches: so it
        is one of all ids, anchored. BuildKit takes children before their parents, and passes over what is in use.

        :param unused_for: seconds; BuildKit passes over what was used since, as it finds it at that moment.
        """
        filters: dict[str, list[str]] = {"id": [f"^({'|'.join(re.escape(ident) for ident in idents)})$"]}
        if unused_for:
            filters["unused-for"] = [f"{unused_for}s"]
        answer = self._ask("POST", "/build/prune", fields.PRUNED, {"all": "true", "filters": json.dumps(filters)}) or {}
        return frozenset(str(ident) for ident in answer.get("CachesDeleted") or ()).intersection(idents)

    @staticmethod
    def _again(ask: t.Callable[[], _Answer], sign: str = "") -> _Answer:
        """Ask about images, once more where another image was in the way: containerd's store says "not found" if any goes while it looks.

        :param sign: how its answer tells that it was another image, where the one that was asked for can be gone as well.
        """
        for _attempt in range(20):
            try:
                return ask()
            except EngineError as error:
                if not error.changing and not (error.gone and sign in error.answer):
                    raise
            time.sleep(0.1)
        return ask()

    # -- the wire ----------------------------------------------------------------------------

    def _object(
        self,
        url: str,
        shape: fields.Shape,
        params: dict[str, t.Any] | None = None,
        path: tuple[str, ...] = (),
        patient: bool = False,
        empty: bool = False,
    ) -> dict[str, t.Any]:
        answer = self._ask("GET", url, shape, params, path, patient)
        if answer is None and not empty:
            raise UnexpectedAnswer(f"GET {_clean(url.format(*path))}", "the answer is null, not an object")
        return answer or {}  # Go's empty map

    def _list(self, url: str, shape: fields.Shape, params: dict[str, t.Any] | None = None, patient: bool = False) -> list[dict[str, t.Any]]:
        return self._ask("GET", url, shape, params, patient=patient) or []  # Go's empty list is null

    def _ask(self, method: str, url: str, shape: fields.Shape, *more: t.Any, **named: t.Any) -> t.Any:
        """Return what an answer says, None if it is null; further arguments as for ``_content``."""
        return self._content(lambda pieces, limit: fields.parse(pieces, shape, limit), method, url, *more, **named)

    def _do(self, method: str, url: str, *more: t.Any, **named: t.Any) -> None:
        """The same where the answer is that it was done; what else it says is not looked at."""
        self._content(_start, method, url, *more, **named)

    def _content(
        self,
        read: t.Callable[[t.Iterator[bytes], int], _Answer],
        method: str,
        url: str,
        params: dict[str, t.Any] | None = None,
        path: tuple[str, ...] = (),
        patient: bool = False,
        timeout: float | None = None,
    ) -> _Answer:
        """Ask, and return what ``read`` makes of the answer's content and of the bytes that it may have.

        :param patient: the engine has to walk for it.
        :param timeout: seconds, the connection's own if not given.
        """
        call = self.with_names(f"{method} {url.format(*path)}")
        target = url.format(*(_quoted(part, url) for part in path))
        if self.api_version:
            target = f"/v{self.api_version}{target}"
        if params:
            target += f"?{urlencode(params, doseq=True)}"
        patience = timeout or self._timeout
        # Figures that the engine has to walk for take minutes on big hosts (moby 31951), as removals do.
        if timeout is None and (patient or method != "GET"):
            patience = max(patience, REMOVAL_TIMEOUT)
        response = self._read(call, lambda: self._connection.request(method, target, patience, timeout))
        try:
            if 200 <= response.status < 300:
                return self._read(call, lambda: read(response.pieces(), self._connection.limit))
            raise self._refusal(call, response)
        finally:
            response.close()

    def _refusal(self, call: str, response: Response) -> FleetcleanError:
        """The error that an answer is."""
        content = response.error_text()
        # No redirects: the engine sends one for a path that it had to clean, and it would be another object's.
        if 300 <= response.status < 400:
            return EngineError(call, response.status, f"moved to {_clean(response.location)[:_MAX_WORDS]}")
        message = _message(content)
        if message is None and not self.api_version and call == "GET /version":
            text = f"HTTP {response.status} {_clean(content.decode('utf-8', 'replace'))}"
            if response.status < 500:
                return FleetcleanError(_not_an_engine(self.host, text), "not_docker")
            return FleetcleanError(f"engine does not answer: {_where(self.host)}: {text[:200]}. Look at the engine's own log.", "engine_down")
        if message is None:
            message = content.decode("utf-8", "replace").strip() or http.client.responses.get(response.status, "nothing")
        message = message[:_MAX_WORDS]
        return EngineError(call, response.status, _clean(message), self.with_names(message))

    def _read(self, call: str, read: t.Callable[[], _Answer]) -> _Answer:
        """Do what reads from the connection, and call its trouble by name: the one place where answers are refused."""
        try:
            return read()
        except fields.Unexpected as error:
            if call == "GET /version" and not error.path:
                raise FleetcleanError(_not_an_engine(self.host, f"{call} {error}"), "not_docker") from None
            raise UnexpectedAnswer(call, str(error)) from None
        except fields.NotJson as error:
            raise FleetcleanError(_not_an_engine(self.host, f"{call} did not answer in JSON ({error})"), "not_docker") from None
        except (TooLong, fields.TooLarge) as error:
            part = error.part if isinstance(error, fields.TooLarge) else 0
            size = f"a part of it is larger than {say_size(part)}" if part else f"it is larger than {say_size(self._connection.limit)}"
            raise UnexpectedAnswer(call, f"{size}; if that is right for this host, raise `max_answer_size`") from None
        except TooSlow:
            raise _too_slow(self.host, call) from None
        except (OSError, Broken, http.client.HTTPException, ValueError) as error:
            raise _unreachable(self.host, error) from None

    def _refuse_others(self) -> None:
        names = [str(part.get("Name")) for part in self.version.get("Components") or []]
        if any("podman" in name.lower() for name in names):
            raise FleetcleanError(
                f"{self.host} is Podman, not Docker: its API means other things and its disk is laid out "
                "otherwise; nothing was touched. Use `podman system prune` there.",
                "not_docker",
            )


def swarm_state(info: t.Mapping[str, t.Any]) -> str:
    """What an engine is in a swarm, by its answer to ``GET /info``: inactive if it is in none."""
    return str((info.get("Swarm") or {}).get("LocalNodeState") or "inactive")


def is_rootless(info: t.Mapping[str, t.Any]) -> bool:
    """Whether an engine runs without root, by its answer to ``GET /info``."""
    return any("rootless" in str(option) for option in info.get("SecurityOptions") or [])


def connect(params: dict[str, t.Any]) -> Engine:
    """Return a connection to the engine that the module's shared options name.

    :param params: docker_host, api_version, timeout (seconds), tls, validate_certs, tls_hostname,
        ca_path, client_cert, client_key, max_answer_size.
    :raises FleetcleanError: with a code that tells what is wrong (no_engine, engine_down, denied, ...).
    """
    try:
        return _connect(params)
    except FleetcleanError as error:
        # What an option and a variable of the environment have in common, nobody can tell apart, nor has to.
        if str(params["docker_host"]) != os.environ.get("DOCKER_HOST"):
            raise
        error.args = (_of_environment(str(error)),)
        raise


def _of_environment(message: str) -> str:
    """The same where the address came from the environment of the module."""
    if message.startswith("docker_host: "):
        return f"DOCKER_HOST in the host's environment: {message[len('docker_host: '):]}"
    return f"{message} The address is that of DOCKER_HOST in the host's environment; docker_host wins over it."


def _connect(params: dict[str, t.Any]) -> Engine:
    host = str(params["docker_host"])
    if not host.startswith(("unix://", "tcp://", "http://", "https://", "ssh://")):
        raise FleetcleanError(
            f'docker_host: "{host}" is not an engine\'s address; use unix:///var/run/docker.sock, tcp://HOST:PORT or '
            "ssh://USER@HOST, or let Ansible connect to that host.",
            "bad_input",
        )
    version = str(params["api_version"])
    if not re.fullmatch(r"auto|[0-9]{1,4}\.[0-9]{1,4}", version):
        raise FleetcleanError(
            f'api_version: "{version}" is not a version of the engine\'s API; use auto, or one such as 1.41.', "bad_input"
        )
    if params["timeout"] < 1:
        raise FleetcleanError(f"timeout: {params['timeout']} is out of range; use 1 second or more.", "bad_input")
    if version != "auto" and _numbers(version) < _numbers(OLDEST_API):
        raise FleetcleanError(
            f"api_version: {version} is too old: {OLDEST_API} (Docker 1.9) is the oldest that is spoken; use auto.", "bad_input"
        )
    limit = parse_size(params.get("max_answer_size", MAX_ANSWER_SIZE), "max_answer_size")
    if limit < _MIN_ANSWER_BYTES:
        raise FleetcleanError(f"max_answer_size: {params['max_answer_size']} is out of range; use 1MB or more.", "bad_input")
    both = (params.get("client_cert"), params.get("client_key"))
    if any(both) and not all(both) and (params.get("tls") or params.get("validate_certs")):
        raise FleetcleanError("client_cert and client_key belong together; give both or none.", "bad_input")
    asked_tls = bool(params.get("tls") or params.get("validate_certs"))
    address = parse_address(host, asked_tls)
    if address.path:
        _look_at_socket(host)
    # Who names https:// and says nothing of certificates wants them to be right. ``validate_certs`` wins over ``tls``.
    validate = bool(params.get("validate_certs")) or not asked_tls
    context = tls_context(validate, *_certificates(params, validate)) if address.tls else None
    connection = Connection(address, params["timeout"], limit, context, params.get("tls_hostname"))
    return Engine(connection, host, params["timeout"], version)


#: The files in the folder that DOCKER_CERT_PATH names.
_CERTIFICATES = {"ca_path": "ca.pem", "client_cert": "cert.pem", "client_key": "key.pem"}


def _certificates(params: dict[str, t.Any], validate: bool) -> list[str | None]:
    """The authorities, the client's certificate and its key: what the options name, else the files in DOCKER_CERT_PATH.

    As community.docker reads them: an option that is empty has none, the authorities are needed only to check the server.
    """
    folder = os.environ.get("DOCKER_CERT_PATH")
    found: list[str | None] = []
    for option, name in _CERTIFICATES.items():
        path = params.get(option)
        if path is None and folder and (validate or option != "ca_path"):
            path = os.path.join(folder, name)
            if not os.path.isfile(path):
                raise FleetcleanError(f"DOCKER_CERT_PATH: {path}: no such file; put it there, or give {option} (empty for none).", "bad_input")
        found.append(path)
    return found


def _look_at_socket(host: str) -> None:
    """Tell apart why there is no socket, and what it is that is there."""
    path = host[len("unix://"):] or "/"
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        sockets = _unanswered().socket_words() if path in _USUAL_SOCKETS else ""
        # A socket that somebody named, or data that lies there: then something is missing, and not Docker itself. A user's socket says nothing.
        if path not in _USUAL_SOCKETS or os.path.isdir(_USUAL_ROOT) or any(os.path.exists(daemon) for daemon in _DAEMONS):
            next_step = f"Start the engine (systemctl start docker), or name its socket in docker_host. {sockets}".rstrip()
            raise _down(host, "no such file", next_step, may_be_full=True) from None
        raise FleetcleanError(
            f"no Docker here: {path}: no such file, no dockerd, and no /var/lib/docker. If the engine listens "
            f"elsewhere, name it in docker_host. {sockets}".rstrip(),
            "no_engine",
        ) from None
    except OSError as error:
        raise FleetcleanError(f"docker_host: {path}: {error.strerror}. {_become(error)}".strip(), "denied") from None
    except ValueError as error:
        raise FleetcleanError(f"docker_host: {path!r}: {error}; name the engine's socket.", "bad_input") from None
    if not stat.S_ISSOCK(mode):
        raise FleetcleanError(f"docker_host: {path} is not a socket; name the engine's socket.", "bad_input")


def _where(host: str) -> str:
    return host[len("unix://"):] if host.startswith("unix://") else host


def _unanswered() -> t.Any:
    """What is worth knowing where no engine answers; few need it."""
    from ansible_collections.fleetclean.docker.plugins.module_utils import unanswered

    return unanswered


def _down(host: str, problem: str, next_step: str, may_be_full: bool = False) -> FleetcleanError:
    """The error for an engine that does not answer; ``may_be_full``: nobody listens there, which may be for want of room."""
    path = _where(host)
    room = _unanswered().room_words(path, path in _USUAL_SOCKETS) if may_be_full and host.startswith("unix://") else ""
    return FleetcleanError(" ".join(filter(None, (f"engine does not answer: {path}: {problem}.", room, next_step))), "engine_down")


def _too_slow(host: str, call: str) -> FleetcleanError:
    return _down(host, f"{call} took longer than the timeout", "Raise `timeout` (seconds), or look at the engine's own log.")


def _unreachable(host: str, error: Exception) -> FleetcleanError:
    """Say what was in the way of an answer, in the system's own words."""
    where = _where(host)
    if isinstance(error, PermissionError):
        return FleetcleanError(f"{where}: {error.strerror}. {_become(error)}", "denied")
    if isinstance(error, (ConnectionRefusedError, FileNotFoundError)):
        word = (error.strerror or os.strerror(error.errno or errno.ECONNREFUSED)).lower()
        return _down(host, word, "Start the engine (systemctl start docker).", may_be_full=True)
    text = _clean(str(error)) or type(error).__name__
    # An SSLError is an OSError, and that of a wrong certificate a ValueError as well.
    if type(error).__module__ == "ssl":
        return FleetcleanError(f"{where}: {text}. Check tls, validate_certs, ca_path and tls_hostname.", "denied")
    if isinstance(error, socket.timeout):
        return _too_slow(host, "connecting")
    if isinstance(error, (OSError, CutShort, http.client.IncompleteRead)):
        next_step = getattr(error, "next_step", "Look at the engine's own log.")
        return _down(host, text[:_MAX_WORDS], next_step)
    return FleetcleanError(_not_an_engine(where, text), "not_docker")


def _message(content: bytes) -> str | None:
    """The words of an error as engines give it, None if it is none."""
    try:
        found = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    message = found.get("message") if isinstance(found, dict) else None
    return message if isinstance(message, str) and message else None


def _start(pieces: t.Iterator[bytes], _limit: int) -> bytes:
    """Read all, and return its first four bytes."""
    found = b""
    for piece in pieces:
        found = found or piece[:4]
    return found


def _quoted(name: str, url: str) -> str:
    """A name as one segment of a path: names are the engine's users' to choose, and hostile.

    Image references have slashes of their own, which the engine's router takes as they are.
    """
    if any(part in (".", "..") for part in name.split("/")):
        raise FleetcleanError(f"{url.format(name)!r}: a name like this cannot be asked for; nothing was done with it.")
    return quote(name, safe="/:@" if url.startswith("/images/") else "")


def _not_an_engine(host: str, detail: str) -> str:
    return f"what answers at {host} is not a Docker engine ({_clean(detail)[:200]}); name the engine's address in docker_host."


def _become(error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return "Use become: true, or a user of the engine's group."
    return ""


def _clean(text: str) -> str:
    """One line, without control characters: what servers answer is not to be trusted with a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _with_old_names(usage: dict[str, t.Any]) -> dict[str, t.Any]:
    """Give an answer of API 1.52 and newer (ImageUsage, ...) the names it had before (Images, ...)."""
    usage = dict(usage)
    for new, old in (
        ("ImageUsage", "Images"),
        ("ContainerUsage", "Containers"),
        ("VolumeUsage", "Volumes"),
        ("BuildCacheUsage", "BuildCache"),
    ):
        part = usage.get(new)
        if isinstance(part, dict) and not usage.get(old):
            usage[old] = part.get("Items") or []
            if new == "ImageUsage" and "TotalSize" in part:
                usage.setdefault("LayersSize", part["TotalSize"])
    return usage
