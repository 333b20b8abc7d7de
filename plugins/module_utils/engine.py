# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one door to the engine: connecting, asking and removing, with errors that say what to do.

Everything goes through the low-level client of the Docker SDK for Python. Paths and answers are
those of the Docker Engine API (https://docs.docker.com/reference/api/engine/), versions 1.21 to
today's. Answers are returned as they come; reading them is the snapshot's business.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import ssl
import stat
import time
import typing as t
from urllib.parse import quote

from ansible_collections.fleetclean.docker.plugins.module_utils.errors import (
    FleetcleanError,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.units import parse_time

#: The engine's oldest API that this collection speaks: Docker 1.9.
OLDEST_API = "1.21"
#: A removal takes as long as it takes: giving up early makes the engine stop half-way and leaves a
#: half-removed layer behind (moby issues 21215 and 18869). An hour of silence is a dead connection.
REMOVAL_TIMEOUT = 3600
#: Where an engine's program is, if one is installed: tells "no Docker" from "Docker is down".
_DAEMONS = tuple(
    f"{folder}/{name}"
    for folder in ("/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/snap/bin", "/opt/bin")
    for name in ("dockerd", "balenad", "balena-engine-daemon")
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
_USUAL_SOCKETS = ("/var/run/docker.sock", "/run/docker.sock")
_USUAL_ROOT = "/var/lib/docker"


class EngineError(FleetcleanError):
    """The engine refused a call. ``status`` is HTTP's, ``answer`` the engine's own words."""

    def __init__(self, call: str, status: int, answer: str) -> None:
        super().__init__(f'{call}: the engine says "{answer}" (HTTP {status}).', "engine")
        self.call = call
        self.status = status
        self.answer = answer

    def __reduce__(self) -> tuple[t.Any, ...]:
        return EngineError, (self.call, self.status, self.answer)

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
    def vanishing(self) -> bool:
        """The object is half gone: somebody else is removing it at this moment (graph drivers: image/store.go, layer/layer_store.go)."""
        return self.status >= 500 and any(sign in self.answer for sign in ("unrecognized image ID", "layer does not exist"))

    @property
    def disk_full(self) -> bool:
        return "no space left on device" in self.answer.lower()


class Engine:
    """A connection to one engine. Make it with ``connect``."""

    def __init__(self, client: t.Any, host: str, timeout: float) -> None:
        self._client = client
        self._timeout = timeout
        self.host = host
        self.version: dict[str, t.Any] = self._ask("GET", "/version")
        self._refuse_others()
        asked = time.monotonic()
        self.info: dict[str, t.Any] = self._object("/info")
        # Counted from before it was asked, the engine's clock is at most this far ahead of the monotonic one.
        self._clock_offset = (parse_time(self.info.get("SystemTime")) or time.time()) - asked

    @property
    def api_version(self) -> str:
        return str(self._client.api_version)

    @property
    def is_local_socket(self) -> bool:
        """The engine is asked through a socket of this machine (which says nothing of its disk yet)."""
        return self.host.startswith("unix://")

    def speaks(self, api_version: str) -> bool:
        """Whether the negotiated API is ``api_version`` or newer."""
        return _numbers(self.api_version) >= _numbers(api_version)

    # -- asking ------------------------------------------------------------------------------

    def containers(self, size: bool = False) -> list[dict[str, t.Any]]:
        """All containers in every state; with ``size`` their SizeRw (bytes), which the engine has to walk for."""
        return self.containers_as(lambda raw: raw, size)

    def containers_as(self, make: t.Callable[[dict[str, t.Any]], _Made], size: bool = False) -> list[_Made]:
        """The same, each entry as what ``make`` makes of it; the entry itself is dropped at once, since there may be thousands."""
        listed = self._list("/containers/json", {"all": 1, "size": int(size)}, patient=size)
        listed.reverse()
        return [make(listed.pop()) for _ in range(len(listed))]

    def container(self, ident: str) -> dict[str, t.Any]:
        return self._object("/containers/{0}/json", path=(ident,))

    def images(self) -> list[dict[str, t.Any]]:
        """All images, intermediate ones too."""
        return self._again(lambda: self._list("/images/json", {"all": 1}))

    def image(self, ident: str) -> dict[str, t.Any]:
        return self._again(lambda: self._object("/images/{0}/json", path=(ident,)), "content digest")

    def volumes(self) -> list[dict[str, t.Any]]:
        return self._object("/volumes", empty=True).get("Volumes") or []

    def volume(self, name: str) -> dict[str, t.Any]:
        return self._object("/volumes/{0}", path=(name,))

    def networks(self) -> list[dict[str, t.Any]]:
        return self._list("/networks")

    def services(self) -> list[dict[str, t.Any]]:
        """Swarm's services, which a manager alone can tell; none elsewhere."""
        if not (self.info.get("Swarm") or {}).get("ControlAvailable"):
            return []
        return self._list("/services")

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
        call, answer = self._answer("GET", "/events", {"since": 1, "until": end})
        found, decoder, at = [], json.JSONDecoder(), 0
        text = answer.content.decode("utf-8", "replace").strip()
        while at < len(text):  # one object after the other, on old engines without a line's end between them
            try:
                event, at = decoder.raw_decode(text, at)
            except ValueError as error:
                raise self._no_json(call, error) from None
            found.append(event)
            while at < len(text) and text[at].isspace():
                at += 1
        return [event for event in found if isinstance(event, dict)]

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
            self._ask("GET", "/version")
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
                found = self._again(lambda: self._object("/system/df", params, patient=True, empty=True))
                return _with_old_names(found)
            except EngineError as error:
                # Engines compute one at a time, for whoever asked first.
                if "already running" not in error.answer or time.monotonic() > end:
                    raise
            time.sleep(0.5)

    # -- containers' logs --------------------------------------------------------------------

    def pause(self, ident: str) -> None:
        self._ask("POST", "/containers/{0}/pause", path=(ident,))

    def unpause(self, ident: str) -> None:
        self._ask("POST", "/containers/{0}/unpause", path=(ident,))

    def restart_container(self, ident: str) -> None:
        """Stop a container, within the time that it was given for that, and start it again."""
        self._ask("POST", "/containers/{0}/restart", path=(ident,))

    def shows_last_line(self, ident: str, seconds: float) -> bool:
        """Whether `docker logs --tail 1` shows anything within ``seconds``. What is shown is not looked at.

        Asked for a log that became shorter under it, an engine of 23 or newer searches without end, until we hang up.
        """
        params = {"stdout": 1, "stderr": 1, "tail": 1}
        try:
            shown = self._answer("GET", "/containers/{0}/logs", params, path=(ident,), timeout=seconds)[1].content
            # A frame of the third stream has the engine's complaint (api/types/container: Attach, stream format).
            return bool(shown) and not shown.startswith(b"\3\0\0\0")
        except EngineError:
            raise
        except FleetcleanError:
            return False

    # -- removing ----------------------------------------------------------------------------

    def remove_container(self, ident: str, force: bool = False) -> None:
        """Remove one container; ``force`` kills it first. Its volumes stay: they are objects of their own."""
        self._ask("DELETE", "/containers/{0}", {"force": int(force), "v": 0}, path=(ident,))

    def remove_image(self, reference: str, force: bool = False) -> None:
        """Remove a tag, a digest, or an image by id. Untagged parents stay: the plan names them itself."""
        self._ask("DELETE", "/images/{0}", {"force": int(force), "noprune": 1}, path=(reference,))

    def remove_volume(self, name: str) -> None:
        self._ask("DELETE", "/volumes/{0}", path=(name,))

    def remove_network(self, ident: str) -> None:
        self._ask("DELETE", "/networks/{0}", path=(ident,))

    def remove_cache_records(self, idents: t.Collection[str], unused_for: int = 0) -> frozenset[str]:
        """Remove records of the build cache in one call; return the ids of those that went.

        The engine has no call for single records, but its prune takes an id, as an expression that it matches: so it
        is one of all ids, anchored. BuildKit takes children before their parents, and passes over what is in use.

        :param unused_for: seconds; BuildKit passes over what was used since, as it finds it at that moment.
        """
        filters: dict[str, list[str]] = {"id": [f"^({'|'.join(re.escape(ident) for ident in idents)})$"]}
        if unused_for:
            filters["unused-for"] = [f"{unused_for}s"]
        answer = self._ask("POST", "/build/prune", {"all": "true", "filters": json.dumps(filters)})
        if not isinstance(answer, dict):
            raise self._odd("/build/prune")
        return frozenset(str(ident) for ident in answer.get("CachesDeleted") or ()).intersection(idents)

    @staticmethod
    def _again(ask: t.Callable[[], _Answer], sign: str = "") -> _Answer:
        """Ask for what cannot be gone, such as a list. containerd's store says "not found" if any image goes while it looks.

        :param sign: how its answer tells that it was another image, where there is one that can be gone.
        """
        for _attempt in range(20):
            try:
                return ask()
            except EngineError as error:
                if not error.gone or sign not in error.answer:
                    raise
            time.sleep(0.1)
        return ask()

    # -- the wire ----------------------------------------------------------------------------

    def _object(
        self,
        url: str,
        params: dict[str, t.Any] | None = None,
        path: tuple[str, ...] = (),
        patient: bool = False,
        empty: bool = False,
    ) -> dict[str, t.Any]:
        answer = self._ask("GET", url, params, path, patient)
        if answer is None and empty:
            return {}  # Go's empty map
        if not isinstance(answer, dict):
            raise self._odd(url)
        return answer

    def _list(self, url: str, params: dict[str, t.Any] | None = None, patient: bool = False) -> list[dict[str, t.Any]]:
        answer = self._ask("GET", url, params, patient=patient)
        if answer is None:
            return []  # Go's empty list
        if not isinstance(answer, list) or not all(isinstance(entry, dict) for entry in answer):
            raise self._odd(url)
        return answer

    def _odd(self, url: str) -> FleetcleanError:
        return FleetcleanError(_not_an_engine(self.host, f"GET {url} answers something else than an engine does"), "not_docker")

    def _no_json(self, call: str, error: ValueError) -> FleetcleanError:
        return FleetcleanError(_not_an_engine(self.host, f"{call} did not answer in JSON ({error})"), "not_docker")

    def _ask(self, method: str, url: str, *more: t.Any, **named: t.Any) -> t.Any:
        """What an answer says, None if nothing; arguments as for ``_answer``."""
        call, response = self._answer(method, url, *more, **named)
        if response.status_code == 204 or not response.content:
            return None
        try:
            return response.json()
        except ValueError as error:
            raise self._no_json(call, error) from None

    def _answer(
        self,
        method: str,
        url: str,
        params: dict[str, t.Any] | None = None,
        path: tuple[str, ...] = (),
        patient: bool = False,
        timeout: float | None = None,
    ) -> tuple[str, t.Any]:
        """Return what was asked, as errors name it, and the response; ``timeout`` in seconds, the connection's own if not given."""
        from docker import errors
        from requests import exceptions

        client = self._client
        where = client._url(url.format(*(_quoted(part, url) for part in path)))
        call = f"{method} {url.format(*path)}"
        # Figures that the engine has to walk for take minutes on big hosts (moby 31951), as removals do.
        if timeout is None:
            timeout = max(self._timeout, REMOVAL_TIMEOUT) if patient or method != "GET" else self._timeout
        try:
            # No redirects: the engine sends one for a path that it had to clean, and it would be another object's.
            response = client.request(
                method, where, params=params or {}, timeout=timeout, allow_redirects=False
            )
            client._raise_for_status(response)
        except errors.APIError as error:
            status = error.response.status_code if error.response is not None else 0
            raise EngineError(call, status, _clean(error.explanation or str(error))) from None
        except exceptions.RequestException as error:
            raise _unreachable(self.host, error, call) from None
        if 300 <= response.status_code < 400:
            raise EngineError(call, response.status_code, f"moved to {_clean(response.headers.get('Location', ''))}")
        return call, response

    def _refuse_others(self) -> None:
        names = [
            str(part.get("Name")) for part in self.version.get("Components") or [] if isinstance(part, dict)
        ] if isinstance(self.version, dict) else []
        if any("podman" in name.lower() for name in names):
            raise FleetcleanError(
                f"{self.host} is Podman, not Docker: its API means other things and its disk is laid out "
                "otherwise; nothing was touched. Use `podman system prune` there.",
                "not_docker",
            )
        if not isinstance(self.version, dict) or "ApiVersion" not in self.version:
            raise FleetcleanError(_not_an_engine(self.host, "GET /version has no ApiVersion"), "not_docker")


def connect(params: dict[str, t.Any]) -> Engine:
    """Return a connection to the engine that the module's shared options name.

    :param params: docker_host, api_version, timeout (seconds), tls, validate_certs, tls_hostname,
        ca_path, client_cert, client_key.
    :raises FleetcleanError: with a code that tells what is wrong (no_engine, engine_down, denied, ...).
    """
    import docker.api.client as low_level
    from docker import errors
    from requests import exceptions

    host = str(params["docker_host"])
    if not host.startswith(("unix://", "tcp://", "http://", "https://")):
        raise FleetcleanError(
            f'docker_host: "{host}" is not an engine\'s address; use unix:///var/run/docker.sock or '
            "tcp://HOST:PORT, or let Ansible connect to that host.",
            "bad_input",
        )
    version = str(params["api_version"])
    if not re.fullmatch(r"auto|\d+\.\d+", version):
        raise FleetcleanError(
            f'api_version: "{version}" is not a version of the engine\'s API; use auto, or one such as 1.41.', "bad_input"
        )
    if params["timeout"] < 1:
        raise FleetcleanError(f"timeout: {params['timeout']} is out of range; use 1 second or more.", "bad_input")
    # Releases 7.1 and newer refuse what is older than API 1.24; they speak it all the same.
    if hasattr(low_level, "MINIMUM_DOCKER_API_VERSION"):
        low_level.MINIMUM_DOCKER_API_VERSION = OLDEST_API
    if host.startswith("unix://"):
        _look_at_socket(host)
    try:
        client = low_level.APIClient(
            base_url=host,
            # Given a version, the client asks nothing yet: the server is asked once TLS is as it has to be.
            version=OLDEST_API if version == "auto" else version,
            timeout=params["timeout"],
            tls=_tls(params) or False,
            # One connection for each thread of a parallel removal, and none thrown away.
            max_pool_size=32,
        )
        # The environment's bundle of authorities would stand before ca_path.
        client.trust_env = False
        _expect_hostname(client, params)
        if host.startswith("unix://"):
            _share_connections(client)
        if version == "auto":
            client._version = client._retrieve_server_version()
            if _numbers(str(client._version)) < _numbers(OLDEST_API):
                raise FleetcleanError(
                    f"the engine at {host} is too old: it speaks API {client._version}; Docker 1.9 (API {OLDEST_API}) "
                    "and newer can be cleaned.",
                    "engine",
                )
        return Engine(client, host, params["timeout"])
    except errors.InvalidVersion as error:
        raise FleetcleanError(f"api_version: {_clean(str(error))}", "bad_input") from None
    except (errors.DockerException, exceptions.RequestException) as error:
        raise _unreachable(host, error, "GET /version") from None
    except (ValueError, TypeError, AttributeError) as error:
        # What speaks HTTP and is no engine: the SDK trips over it in many ways.
        raise FleetcleanError(_not_an_engine(host, str(error)), "not_docker") from None


def _tls(params: dict[str, t.Any]) -> t.Any:
    """The SDK's TLS settings, None for a plain connection. ``validate_certs`` wins over ``tls``."""
    if not params.get("tls") and not params.get("validate_certs"):
        return None
    from docker import errors, tls

    both = (params.get("client_cert"), params.get("client_key"))
    if any(both) and not all(both):
        raise FleetcleanError("client_cert and client_key belong together; give both or none.", "bad_input")
    try:
        return tls.TLSConfig(
            client_cert=both if all(both) else None,
            ca_cert=params.get("ca_path") or None,
            verify=bool(params.get("validate_certs")),
        )
    except errors.TLSParameterError as error:
        raise FleetcleanError(f"ca_path, client_cert, client_key: {_clean(str(error))}", "bad_input") from None


def _expect_hostname(client: t.Any, params: dict[str, t.Any]) -> None:
    """Make the server's certificate be checked for ``tls_hostname`` instead of the address."""
    hostname = params.get("tls_hostname")
    if not hostname or not params.get("validate_certs"):
        return
    from requests.adapters import HTTPAdapter

    class NamedAdapter(HTTPAdapter):
        """requests' own adapter, expecting one given name."""

        def init_poolmanager(self, *args: t.Any, **kwargs: t.Any) -> None:
            super().init_poolmanager(*args, assert_hostname=hostname, **kwargs)

    client.mount("https://", NamedAdapter())


def _share_connections(client: t.Any) -> None:
    """Let all calls share connections. The SDK's adapter for sockets has a pool, and so a connection, for each address."""
    adapter = client.get_adapter(client.base_url)
    pool = adapter.get_connection(client.base_url)

    def get_connection(_url: str, _proxies: object = None) -> t.Any:
        return pool

    adapter.get_connection = get_connection


def _look_at_socket(host: str) -> None:
    """Tell apart what the SDK folds into one "connection aborted"."""
    path = host[len("unix://"):] or "/"
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        # A socket that somebody named, or data that lies there: then something is missing, and not Docker itself.
        if path not in _USUAL_SOCKETS or os.path.isdir(_USUAL_ROOT) or any(os.path.exists(daemon) for daemon in _DAEMONS):
            raise FleetcleanError(
                f"engine does not answer: {path}: no such file. Start the engine (systemctl start docker), "
                "or name its socket in docker_host.",
                "engine_down",
            ) from None
        raise FleetcleanError(
            f"no Docker here: {path}: no such file, no dockerd, and no /var/lib/docker. If the engine listens "
            "elsewhere, name it in docker_host.",
            "no_engine",
        ) from None
    except OSError as error:
        raise FleetcleanError(f"docker_host: {path}: {error.strerror}. {_become(error)}".strip(), "denied") from None
    if not stat.S_ISSOCK(mode):
        raise FleetcleanError(f"docker_host: {path} is not a socket; name the engine's socket.", "bad_input")


def _unreachable(host: str, error: BaseException, call: str) -> FleetcleanError:
    """Find the system's own word in the chain of exceptions that requests and urllib3 wrap it in."""
    where = host[len("unix://"):] if host.startswith("unix://") else host
    root = _root_cause(error)
    if isinstance(root, PermissionError):
        return FleetcleanError(f"{where}: {root.strerror}. {_become(root)}", "denied")
    if isinstance(root, (ConnectionRefusedError, FileNotFoundError)):
        word = (root.strerror or os.strerror(root.errno or errno.ECONNREFUSED)).lower()
        return FleetcleanError(
            f"engine does not answer: {where}: {word}. Start the engine (systemctl start docker).", "engine_down"
        )
    text = _clean(str(error))
    if isinstance(root, ssl.SSLError):
        return FleetcleanError(f"{where}: {text}. Check tls, validate_certs, ca_path and tls_hostname.", "denied")
    if isinstance(root, (LookupError, TypeError, AttributeError, ValueError)) or " Client Error" in text:
        # What speaks HTTP and is no engine: the SDK trips over it in many ways, and wraps them all alike.
        return FleetcleanError(_not_an_engine(where, text), "not_docker")
    lower = f"{type(root).__name__} {text}".lower()
    if "timeout" in lower or "timed out" in lower:
        return FleetcleanError(
            f"engine does not answer: {where}: {call} took longer than the timeout. Raise `timeout` (seconds), "
            "or look at the engine's own log.",
            "engine_down",
        )
    if "ssl" in lower or "certificate" in lower:
        return FleetcleanError(f"{where}: {text}. Check tls, validate_certs, ca_path and tls_hostname.", "denied")
    if any(sign in lower for sign in ("badstatusline", "bad status", "json", "expecting value", "invalid response", "badheader", "protocolerror", "http/0.9")):
        return FleetcleanError(_not_an_engine(where, text), "not_docker")
    return FleetcleanError(f"engine does not answer: {where}: {text}. Look at the engine's own log.", "engine_down")


def _quoted(name: str, url: str) -> str:
    """A name as one segment of a path: names are the engine's users' to choose, and hostile.

    Image references have slashes of their own, which the engine's router takes as they are.
    """
    if any(part in (".", "..") for part in name.split("/")):
        raise FleetcleanError(f"{url.format(name)!r}: a name like this cannot be asked for; nothing was done with it.")
    return quote(name, safe="/:@" if url.startswith("/images/") else "")


def _root_cause(error: BaseException) -> BaseException:
    seen: set[int] = set()
    current: BaseException = error
    while id(current) not in seen:
        seen.add(id(current))
        inner = [part for part in current.args if isinstance(part, BaseException)]
        for part in list(inner):
            inner += [item for item in part.args if isinstance(item, BaseException)]
        following = next(iter(inner), None) or current.__cause__ or current.__context__
        reason = getattr(current, "reason", None)
        if following is None and isinstance(reason, BaseException):
            following = reason
        if following is None or id(following) in seen:
            break
        current = following
    return current


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
