# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For hypothesis: files that were whole once, JSON of any form; and a watch on what reading them takes."""

from __future__ import annotations

import resource
import signal
import time
import tracemalloc
import types
import typing as t
from contextlib import contextmanager

from hypothesis import strategies as st


class Hang(BaseException):
    """It takes too long; nothing catches this."""


@contextmanager
def bounded(seconds: float, size: int) -> t.Iterator[None]:
    """What is done within takes no longer, and no more memory: Python's own, and the process's at its most.

    Seconds are those of the processor, so that a busy machine makes no difference; who waits is given six times as many by the clock.
    """

    def ring(_number: int, _frame: types.FrameType | None) -> None:
        raise Hang(f"more than {seconds} s")

    timers = ((signal.SIGPROF, signal.ITIMER_PROF, seconds), (signal.SIGALRM, signal.ITIMER_REAL, 6 * seconds))
    before = {number: signal.signal(number, ring) for number, _timer, _after in timers}
    for _number, timer, after in timers:
        signal.setitimer(timer, after)
    peak, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    tracing = tracemalloc.is_tracing()
    if not tracing:
        tracemalloc.start(1)
    try:
        tracemalloc.reset_peak() if hasattr(tracemalloc, "reset_peak") else None
        yield
        assert tracemalloc.get_traced_memory()[1] < size, f"{tracemalloc.get_traced_memory()[1]} bytes of Python's"
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024
        assert grown < size, f"the process has grown by {grown} bytes"
        assert time.process_time() - begun < seconds  # a call into C is not interrupted
    finally:
        for number, timer, _after in timers:
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])
        if not tracing:
            tracemalloc.stop()


@st.composite
def mutated(draw: st.DrawFn, whole: bytes) -> bytes:
    """The bytes of a file with some of them changed, moved, cut off, or added."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 8))):
        if not data:
            break
        at = draw(st.integers(0, len(data) - 1))
        kind = draw(st.sampled_from(("bit", "bytes", "cut", "copy", "zeros", "ones")))
        if kind == "bit":
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "bytes":
            part = draw(st.binary(max_size=16))
            data[at : at + len(part)] = part
        elif kind == "cut":
            del data[at:]
        elif kind == "copy":
            source, count = draw(st.integers(0, len(data) - 1)), draw(st.integers(1, 4096))
            part = data[source : source + count]
            data[at : at + len(part)] = part
        else:
            count = min(draw(st.integers(1, 4096)), len(data) - at)
            data[at : at + count] = bytes([255 * (kind == "ones")]) * count
    return bytes(data)


def any_json(keys: t.Sequence[str] = ()) -> st.SearchStrategy[t.Any]:
    """JSON of any form; objects have these keys more often than others."""
    plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    names = st.sampled_from(keys) | st.text(max_size=5) if keys else st.text(max_size=5)
    return st.recursive(plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=5), max_leaves=20)
