# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""HTTP to an engine, by the standard library: unix sockets, TCP, TLS and what ``ssh_transport`` opens, with bounds on bytes and time.

- One kept connection for each thread. A request that could have been carried out is never repeated.
- No answer is larger than ``Limits.size`` bytes, headers and framing included; its head not than 256 KiB.
- An answer begins within the call's patience, no pause in it is longer than the timeout, and it ends
  within ``_WHOLE`` timeouts of its beginning.
- Nothing of the environment matters: no proxies, no authorities, no credentials. No redirects.
- Compressed answers are refused: none was asked for, and a small one may become as large as it likes.
"""

from __future__ import annotations

import http.client
import io
import os
import re
import select
import socket
import struct
import threading
import time
import typing as t
from urllib.parse import quote, urlsplit

from ansible_collections.fleetclean.docker.plugins.module_utils.errors import (
    FleetcleanError,
)

if t.TYPE_CHECKING:
    import ssl

#: So many timeouts an answer may take once it has begun: an engine makes an answer before it sends it.
_WHOLE = 5
_MAX_HEAD_BYTES = 256 * 1024
#: The engine's own words on what went wrong; more of them is of no use.
_MAX_ERROR_BYTES = 64 * 1024
_PIECE_BYTES = 64 * 1024
#: Process, user and group (socket(7), struct ucred).
_CREDENTIALS = struct.Struct("3i")
#: Seconds between two tries where the engine's queue of connections is full.
_QUEUE_PAUSE_S = 0.01


class TooSlow(Exception):
    """An answer took longer than it may: ``seconds``, altogether or for its beginning."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"{seconds:g} seconds")
        self.seconds = seconds


class TooLong(Exception):
    """An answer has more bytes than it may have."""


class Broken(Exception):
    """An answer is no HTTP that an engine speaks."""


class CutShort(Broken):
    """The connection ended in the middle of an answer."""


class Address(t.NamedTuple):
    """Where an engine listens: ``path`` of a socket, ``ssh`` (USER@HOST:PORT), or ``host`` and ``port``; ``prefix`` stands before each path."""

    path: str = ""
    ssh: str = ""
    host: str = ""
    port: int = 0
    tls: bool = False
    prefix: str = ""


def parse_address(docker_host: str, tls: bool) -> Address:
    """Read ``docker_host``; ``tls`` says whether TLS was asked for.

    :raises FleetcleanError: it is no address.
    """
    if docker_host.startswith("unix://"):
        return Address(path=docker_host[len("unix://"):] or "/")
    if docker_host.startswith("ssh://"):
        target = docker_host[len("ssh://"):].rstrip("/")
        # Nothing that a shell or ssh would take for more than a name.
        if not re.fullmatch(r"([A-Za-z0-9_][\w.-]*@)?[A-Za-z0-9_][\w.-]*(:[0-9]{1,5})?", target, re.ASCII):
            raise FleetcleanError(
                f"docker_host: {docker_host.rpartition('@')[2]!r} is not ssh://USER@HOST:PORT; give all else in OpenSSH's configuration on the "
                "managed host.",
                "bad_input",
            )
        return Address(ssh=target)
    try:
        parts = urlsplit(docker_host)
        port = parts.port
    except ValueError:
        port = None
    if port is None or not parts.hostname or parts.username or parts.password or parts.query or parts.fragment:
        raise FleetcleanError(f"docker_host: {docker_host.rpartition('@')[2]!r} is not tcp://HOST:PORT; name host and port, and nothing secret.", "bad_input")
    prefix = quote(parts.path.rstrip("/"), safe="/%")
    return Address(host=parts.hostname, port=port, tls=tls or parts.scheme == "https", prefix=prefix)


def tls_context(validate: bool, ca_path: str | None, client_cert: str | None, client_key: str | None) -> ssl.SSLContext:
    """Return what TLS has to be. Without ``ca_path`` the host's own authorities count; it is looked at only where the server is checked.

    :raises FleetcleanError: a file cannot be used; which one is named.
    """
    import ssl  # takes a while to import, and few need it

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # A name that stands nowhere but in the subject is none (RFC 6125).
    context.hostname_checks_common_name = False
    context.check_hostname = validate
    context.verify_mode = ssl.CERT_REQUIRED if validate else ssl.CERT_NONE
    ca_path = ca_path if validate else None
    for option, path in (("ca_path", ca_path), ("client_cert", client_cert), ("client_key", client_key)):
        if path and not os.path.exists(path):
            raise FleetcleanError(f"{option}: {path}: no such file; name one on the managed host.", "bad_input")
    try:
        if ca_path:
            context.load_verify_locations(**{"capath" if os.path.isdir(ca_path) else "cafile": ca_path})
        elif validate:
            context.load_default_certs()
        if client_cert and client_key:
            # An encrypted key would ask at the terminal.
            context.load_cert_chain(client_cert, client_key, password=lambda: "")
    except (OSError, ValueError) as error:
        raise FleetcleanError(
            f"ca_path, client_cert, client_key: {error}. Give PEM files, the key without a passphrase.", "bad_input"
        ) from None
    return context


class _Guarded(io.RawIOBase):
    """A socket's bytes, counted and timed."""

    def __init__(self, connection: socket.socket, timeout: float, patience: float) -> None:
        self._socket = connection
        self._timeout = timeout
        self._patience = patience
        self._end: float | None = None
        #: Bytes that may still come.
        self.left = _MAX_HEAD_BYTES
        self.ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: t.Any) -> int:
        if self.left <= 0:
            raise TooLong
        whole = self._timeout * _WHOLE
        if self._end is None:
            wait = self._patience
        else:
            wait = min(self._timeout, self._end - time.monotonic())
            if wait <= 0:
                raise TooSlow(whole)
        self._socket.settimeout(wait)
        try:
            count = self._socket.recv_into(buffer)
        except socket.timeout:
            raise TooSlow(self._patience if self._end is None else min(whole, self._timeout)) from None
        if self._end is None:
            self._end = time.monotonic() + whole
        self.left -= count
        self.ended = not count
        return count


class _Ear:
    """What ``HTTPResponse`` takes for a socket."""

    def __init__(self, raw: _Guarded) -> None:
        self._raw = raw

    def makefile(self, _mode: str) -> t.Any:
        return io.BufferedReader(self._raw)


class Response:
    """An answer whose content is still to be read, once; to be closed then, read or not."""

    def __init__(self, response: http.client.HTTPResponse, raw: _Guarded, limit: int, keep: t.Callable[[], None], drop: t.Callable[[], None]) -> None:
        """:param keep: takes back the connection once all was read; ``drop`` ends it."""
        self.status = response.status
        self.location = str(response.headers.get("Location", ""))
        self._response = response
        self._keep = keep
        self._drop = drop
        raw.left += limit - _MAX_HEAD_BYTES

    def pieces(self) -> t.Iterator[bytes]:
        """Yield the content.

        :raises TooLong, TooSlow, Broken, OSError, http.client.HTTPException: it does not come as it has to.
        """
        while True:
            piece = self._response.read(_PIECE_BYTES)
            if not piece:
                break
            yield piece
        if self._response.length:
            raise CutShort("the connection ended in the middle of an answer")
        if not self._response.will_close:
            self._keep()
            self._drop = _nothing

    def close(self) -> None:
        self._response.close()
        self._drop()

    def error_text(self) -> bytes:
        """The beginning of the content, which says what went wrong."""
        found = b""
        try:
            for piece in self.pieces():
                found += piece
                if len(found) >= _MAX_ERROR_BYTES:
                    break
        except (OSError, TooSlow, TooLong, Broken, http.client.HTTPException):
            pass  # the status alone tells enough
        return found[:_MAX_ERROR_BYTES]


def _nothing() -> None:
    pass


class Connection:
    """Connections to one engine, one for each thread."""

    def __init__(self, address: Address, timeout: float, limit: int, context: ssl.SSLContext | None, tls_hostname: str | None) -> None:
        self._address = address
        self._timeout = timeout
        self._context = context
        self._tls_hostname = tls_hostname or address.host
        self._local = threading.local()
        #: Bytes that an answer may have.
        self.limit = limit
        #: The user whose process listens at the socket, as the kernel tells it; None over TCP, and before the first connection.
        self.listener: int | None = None

    def request(self, method: str, target: str, patience: float, timeout: float | None = None) -> Response:
        """Send a request and return the beginning of its answer.

        :param target: path and query, quoted.
        :param patience: seconds until the answer begins.
        :param timeout: seconds between its parts, the connection's own if not given.
        :raises OSError, TooSlow, TooLong, Broken, http.client.HTTPException: there is none.
        """
        kept = self._kept()
        if kept is not None:
            try:
                return self._exchange(kept, method, target, patience, timeout)
            except (ConnectionError, http.client.RemoteDisconnected):
                # The engine has hung up since the last call. What only asks may be asked again.
                if method != "GET":
                    raise
        return self._exchange(self._open(), method, target, patience, timeout)

    def _exchange(self, connection: socket.socket, method: str, target: str, patience: float, timeout: float | None) -> Response:
        raw = _Guarded(connection, timeout or self._timeout, patience)
        response = http.client.HTTPResponse(t.cast(socket.socket, _Ear(raw)), method=method)

        def keep() -> None:
            self._local.socket, self._local.process = connection, os.getpid()

        try:
            connection.settimeout(self._timeout)
            connection.sendall(self._head(method, target))
            response.begin()
            if raw.ended:  # it takes the end for that of the headers
                raise CutShort("the connection ended in the middle of an answer's head")
            _refuse_odd_framing(response)
            return Response(response, raw, self.limit, keep, connection.close)
        except BaseException:
            response.close()
            connection.close()
            raise

    def _head(self, method: str, target: str) -> bytes:
        address = self._address
        name = f"[{address.host}]" if ":" in address.host else address.host
        host = f"{name}:{address.port}" if name else "localhost"
        lines = [f"{method} {address.prefix}{target} HTTP/1.1", f"Host: {host}", "User-Agent: fleetclean"]
        if method == "POST":
            lines.append("Content-Length: 0")
        return "\r\n".join([*lines, "", ""]).encode("ascii")

    # -- sockets ----------------------------------------------------------------------------------

    def _kept(self) -> socket.socket | None:
        """Take this thread's connection, if it is still good: the last answer was read to its end, and since then nothing came."""
        connection: socket.socket | None = getattr(self._local, "socket", None)
        if connection is None:
            return None
        self._local.socket = None
        # A fork's other side has the same connection, and would get half of the answers.
        if self._local.process == os.getpid():
            poll = select.poll()
            poll.register(connection, select.POLLIN)
            if not poll.poll(0):
                return connection
        connection.close()
        return None

    def _open(self) -> socket.socket:
        if self._address.ssh:
            from ansible_collections.fleetclean.docker.plugins.module_utils.ssh_transport import SshStream  # few need it

            return t.cast(socket.socket, SshStream(self._address.ssh))
        return self._connect_unix() if self._address.path else self._connect_tcp()

    def _connect_unix(self) -> socket.socket:
        end = time.monotonic() + self._timeout
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(self._timeout)
            try:
                connection.connect(self._address.path)
                self._note_listener(connection)
                return connection
            except BlockingIOError:
                # Its queue is full, and the system does not wait in our place.
                connection.close()
                if time.monotonic() > end:
                    raise TooSlow(self._timeout) from None
            except BaseException:
                connection.close()
                raise
            time.sleep(_QUEUE_PAUSE_S)

    def _note_listener(self, connection: socket.socket) -> None:
        """Note whose process it is, which may not become another user's: what was found out of one would be believed of the other."""
        _pid, user, _group = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if self.listener is None:
            self.listener = user
        elif user != self.listener:
            raise Broken(f"user {user} listens there now, and user {self.listener} did before")

    def _connect_tcp(self) -> socket.socket:
        connection = socket.create_connection((self._address.host, self._address.port), self._timeout)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if self._context:
                return self._context.wrap_socket(connection, server_hostname=self._tls_hostname)
            return connection
        except BaseException:
            connection.close()
            raise


def _refuse_odd_framing(response: http.client.HTTPResponse) -> None:
    """Refuse what would be read otherwise than it was meant."""
    headers = response.headers
    if headers.get("Content-Encoding", "identity").strip().lower() not in ("identity", ""):
        raise Broken(f"its answer has the Content-Encoding {headers['Content-Encoding'][:40]!r}, which was not asked for")
    framing = headers.get("Transfer-Encoding")
    if framing is not None and framing.strip().lower() != "chunked":
        raise Broken(f"its answer has the Transfer-Encoding {framing[:40]!r}")
    lengths = {length.strip() for length in headers.get_all("Content-Length", [])}
    if len(lengths) > 1 or any(not (length.isascii() and length.isdigit()) for length in lengths):
        raise Broken("its answer has a Content-Length that is none")
