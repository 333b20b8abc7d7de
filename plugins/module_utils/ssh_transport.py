# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A byte stream to an engine behind ``docker_host: ssh://...``, opened by the Docker SDK that is installed on the host.

The SDK's ``SSHSocket`` (docker-py 4.4 and newer) starts the host's own ``ssh``, which runs ``docker system dial-stdio`` on the other side, as
Docker's clients do. Only starting it is the SDK's part. What goes through it is ``connection``'s, so its bounds on bytes and time hold.
Not the SDK's paramiko client: keys, known hosts and jumps are then those of OpenSSH, and a process can be waited for with a deadline.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import threading
import time
import typing as t

from ansible_collections.fleetclean.docker.plugins.module_utils.errors import (
    FleetcleanError,
)

#: Seconds for the exit status of a process whose output has ended.
_EXIT_TIMEOUT_S = 5.0
_MAX_STDERR_BYTES = 2048
#: Pieces of what it said that are read once it has ended.
_PIECES = 32
#: Descriptor 2 is the process's, not the thread's.
_STDERR_LOCK = threading.Lock()


class SshFailed(ConnectionError):
    """``ssh`` ended with an error; the text is its own."""

    next_step = "The user that the module runs as has to get there by ssh without being asked, and may use the engine there."


class SshStream:
    """The part of a socket's interface that ``connection`` uses, over the pipes of an ``ssh`` process."""

    def __init__(self, target: str) -> None:
        """Start ``ssh``.

        :param target: HOST, USER@HOST or USER@HOST:PORT, as ``connection.parse_address`` admits it.
        :raises FleetcleanError: what it needs is not installed on this host; the package is named.
        """
        self._process, self._stderr = _start(target)
        self._stdin, self._stdout = (t.cast("t.IO[bytes]", pipe).fileno() for pipe in (self._process.stdin, self._process.stdout))
        self._timeout = 0.0
        #: The end of what ``ssh`` said, and whether it may say more.
        self._told, self._speaks = b"", True
        os.set_blocking(self._stdin, False)
        os.set_blocking(self._stderr, False)
        self._owner = os.getpid()

    def fileno(self) -> int:
        return self._stdout

    def settimeout(self, seconds: float) -> None:
        self._timeout = seconds

    def sendall(self, content: bytes) -> None:
        end = time.monotonic() + self._timeout
        try:
            while content:
                self._wait(self._stdin, select.POLLOUT, end - time.monotonic())
                content = content[os.write(self._stdin, content):]
        except BrokenPipeError:
            self._refuse_failure()
            raise

    def recv_into(self, buffer: t.Any) -> int:
        self._wait(self._stdout, select.POLLIN, self._timeout)
        count = os.readv(self._stdout, [buffer])
        if not count:
            self._refuse_failure()
        return count

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                stream.close()
        if self._stderr >= 0:
            os.close(self._stderr)
            self._stderr = -1
        # A fork's other side still has it.
        if self._owner == os.getpid():
            self._process.kill()
            self._process.wait()

    def __del__(self) -> None:
        """Each thread has a stream of its own, and ends without closing it; an ``ssh`` that nobody waits for keeps its pipes open."""
        if hasattr(self, "_owner"):
            self.close()

    def _wait(self, descriptor: int, event: int, seconds: float) -> None:
        """Wait for a pipe, and read meanwhile what ``ssh`` says: it stands still while nobody does.

        :raises TimeoutError: within these seconds nothing came, or could go.
        """
        end = time.monotonic() + seconds
        poll = select.poll()
        poll.register(descriptor, event)
        if self._speaks:
            poll.register(self._stderr, select.POLLIN)
        while True:
            ready = [found for found, _events in poll.poll(max(0.0, end - time.monotonic()) * 1000)]
            if self._stderr in ready and self._listen() and not self._speaks:
                poll.unregister(self._stderr)
            if descriptor in ready:
                return
            if time.monotonic() >= end:
                raise socket.timeout("timed out")

    def _listen(self) -> bool:
        """Read what ``ssh`` says at this moment; return whether that was anything, or its end."""
        try:
            piece = os.read(self._stderr, 65536)
        except BlockingIOError:
            return False
        self._told = (self._told + piece)[-_MAX_STDERR_BYTES:]
        self._speaks = bool(piece)
        return True

    def _refuse_failure(self) -> None:
        """Tell an ``ssh`` that failed from an engine that hung up."""
        try:
            status = self._process.wait(_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return
        if status:
            # What a pipe can hold; a program that it started may go on writing into it.
            for _piece in range(_PIECES):
                if not self._speaks or not self._listen():
                    break
            text = self._told.decode("utf-8", "replace").strip().rstrip(".")
            raise SshFailed(text or f"ssh ended with status {status}")


def _start(target: str) -> tuple[subprocess.Popen[bytes], int]:
    """Return the process and what reads its stderr, which the SDK leaves where the module's own is."""
    try:
        from docker.transport.sshconn import SSHSocket  # installed on few hosts, and needed for few engines
    # A broken installation may raise anything at import.
    except Exception as error:  # pylint: disable=broad-except
        raise FleetcleanError(
            f"docker_host: ssh://{target} needs the Python packages docker (4.4 or newer) and paramiko on this host, for {sys.executable} "
            f"({type(error).__name__}: {error}). Install them there (Debian: python3-docker, python3-paramiko), or let Ansible connect to "
            "that machine itself.",
            "no_sdk",
        ) from None
    session = SSHSocket(target)
    read, write = os.pipe()
    with _STDERR_LOCK:
        own = os.dup(2)
        os.dup2(write, 2)
        try:
            session.connect()
        except OSError as error:
            os.close(read)
            raise FleetcleanError(
                f"docker_host: ssh://{target} needs the program ssh on this host ({error.strerror}). Install openssh-client there, or let "
                "Ansible connect to that machine itself.",
                "no_sdk",
            ) from None
        finally:
            os.dup2(own, 2)
            os.close(own)
            os.close(write)
    socket.socket.close(session)  # a socket that is never connected; its own close() would end the process
    return session.proc, read
