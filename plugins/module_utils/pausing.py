# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A container that stands still for a moment, so that nothing is written to its log."""

from __future__ import annotations

import os
import socket
import time
import typing as t
from contextlib import contextmanager, suppress

from ansible_collections.fleetclean.docker.plugins.module_utils import apart
from ansible_collections.fleetclean.docker.plugins.module_utils.engine import (
    Engine,
    EngineError,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import (
    FleetcleanError,
)

#: So often, a second apart, a container is told to go on whose cutter was killed, and so many seconds in all: the engine may be busy.
_ATTEMPTS, _LONGEST = 30, 600.0
#: What was in the container's pipes is written in much less (seconds); and the longest wait for that.
_QUIET, _PATIENCE = 0.15, 3.0


class NotPaused(Exception):
    """The container cannot stand still; the message is the engine's."""


@contextmanager
def paused(connect: t.Callable[[], Engine], ident: str, descriptor: int) -> t.Iterator[None]:
    """Pause a container, wait until nothing comes into its log any more, and let it go on at the end.

    One that is paused already stays so; one that does not run writes nothing. Should this process be killed meanwhile,
    another lets the container go on.

    :param connect: makes a new connection to the engine, here or in that other process.
    :raises NotPaused: the engine cannot, or the log goes on growing.
    """
    engine = connect()
    if _may_be_paused(engine, ident):
        with _guarded(connect, ident) as settled:
            # An answer that does not come, or is none, does not say that nothing was done.
            ours = True
            try:
                ours = _pause(engine, ident)
                _wait_for_quiet(descriptor)
                yield
            finally:
                if ours:
                    _unpause(engine, ident)
                settled()
    else:
        _wait_for_quiet(descriptor)
        yield


def _may_be_paused(engine: Engine, ident: str) -> bool:
    try:
        state = engine.container(ident).get("State") or {}
    except EngineError as error:
        if error.gone:
            return False
        raise NotPaused(str(error)) from None
    return bool(state.get("Running")) and not state.get("Paused")


@contextmanager
def _guarded(connect: t.Callable[[], Engine], ident: str) -> t.Iterator[t.Callable[[], object]]:
    """A process of its own that lets the container go on, should this one end without calling what is yielded."""
    ours, its = socket.socketpair()
    guard = os.fork()
    if not guard:
        try:
            _guard(its.fileno(), connect, ident)
        finally:
            os._exit(0)
    its.close()
    try:
        if not ours.recv(1):
            raise NotPaused("the process that would let it go on has not come up")
        yield lambda: _end(ours)
    finally:
        ours.close()
        os.waitpid(guard, 0)


def _end(line: socket.socket) -> None:
    """Tell the other process that it is not needed; it may have been killed itself."""
    with suppress(OSError):
        line.send(b"done")


def _guard(line: int, connect: t.Callable[[], Engine], ident: str) -> None:
    apart.go_on_whatever_comes()
    # The log's lock, and who waits for an answer, must not wait for this process.
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor not in (0, 1, 2, line):
            with suppress(OSError):
                os.close(descriptor)
    os.write(line, b"x")
    if os.read(line, 4):
        return
    end = time.monotonic() + _LONGEST
    for _attempt in range(_ATTEMPTS):
        with suppress(FleetcleanError):
            _unpause(connect(), ident)
            return
        if time.monotonic() > end:
            return
        time.sleep(1)


def _pause(engine: Engine, ident: str) -> bool:
    try:
        engine.pause(ident)
        return True
    except EngineError as error:
        if error.gone or error.conflict or "already paused" in error.answer or "not running" in error.answer:
            return False
        raise NotPaused(str(error)) from None


def _unpause(engine: Engine, ident: str) -> None:
    try:
        engine.unpause(ident)
    except EngineError as error:
        # It ended, or somebody else let it go on.
        if not (error.gone or error.conflict or "not paused" in error.answer or "not running" in error.answer):
            raise


def _wait_for_quiet(descriptor: int) -> None:
    end = time.monotonic() + _PATIENCE
    size, since = os.fstat(descriptor).st_size, time.monotonic()
    while time.monotonic() - since < _QUIET:
        time.sleep(0.02)
        now = os.fstat(descriptor).st_size
        if now != size:
            size, since = now, time.monotonic()
        if time.monotonic() > end:
            raise NotPaused("the log goes on growing")
