# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A container that stands still for a moment, so that nothing is written to its log."""

from __future__ import annotations

import os
import time
import typing as t
from contextlib import contextmanager

from ansible_collections.fleetclean.docker.plugins.module_utils.engine import (
    Engine,
    EngineError,
)

#: What was in the container's pipes is written in much less (seconds); and the longest wait for that.
_QUIET, _PATIENCE = 0.15, 3.0


class NotPaused(Exception):
    """The container cannot stand still; the message is the engine's."""


@contextmanager
def paused(engine: Engine, ident: str, descriptor: int) -> t.Iterator[None]:
    """Pause a container, wait until nothing comes into its log any more, and let it go on at the end.

    One that is paused already stays so; one that does not run writes nothing.

    :raises NotPaused: the engine cannot, or the log goes on growing.
    """
    ours = _pause(engine, ident)
    try:
        _wait_for_quiet(descriptor)
        yield
    finally:
        if ours:
            _unpause(engine, ident)


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
