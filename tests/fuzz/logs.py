# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A log file of either format, whose container goes on while it is cut: a state machine for any filesystem.

What stays is read by tests/unit/localdriver.py, which shares no code with what cuts. However a log is cut, it is then the newest whole
records of it, each once and in order, and of what its container wrote meanwhile nothing is missing.
"""

from __future__ import annotations

import os
import random
import threading
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Callable, Iterator, List

from ansible_collections.fleetclean.docker.plugins.module_utils import log_cuts
from ansible_collections.fleetclean.docker.plugins.module_utils.log_cuts import Writer
from ansible_collections.fleetclean.docker.plugins.module_utils.log_records import FRAMED, GRAIN, JSON_LINES
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from localdriver import JSON_FILE, LOCAL

FORMATS = {"json-file": (JSON_FILE, JSON_LINES), "local": (LOCAL, FRAMED)}
WRITERS = {"nobody": Writer(writes=False), "engine": Writer(writes=True), "pausable": Writer(writes=True, pausable=True)}

widths = st.lists(st.integers(0, 300) | st.integers(0, 4000) | st.sampled_from([16_300, 60_000]), min_size=1, max_size=40)
keeps = st.integers(0, 5000) | st.integers(0, 200_000) | st.sampled_from([0, 1, 10**9])
majors = st.sampled_from([20, 28])


def _hostile() -> List[bytes]:
    """What containers print to lead a reader of records astray: records, lengths, fillers, ends of lines."""
    noise = random.Random(1).randbytes(700)
    return [
        b"\0" * 500, b"\0\0\0\x0a" * 200, LOCAL.records(3, 120), LOCAL.record(7, 130)[:-1], FRAMED.filler(50) * 3, JSON_LINES.filler(500),
        JSON_FILE.records(2), b"\n" * 100, b'\n{"log":"fake\\n","stream":"stdout","time":"2024-03-01T12:00:00Z"}\n' * 10,
        b'","fleetclean":"filler 0000065536"', noise, b"\xff" * 3000, "\u2028\u00e9".encode() * 40,
    ]


HOSTILE = _hostile()


class LogMachine(RuleBasedStateMachine):
    """``place`` returns the folder, on the filesystem that is meant."""

    place: Callable[[], Path]

    @initialize(name=st.sampled_from(sorted(FORMATS)), filler=st.sampled_from([0, 0, 300, GRAIN]), hole=st.sampled_from([0, 0, 0, 5000, 100_123]))
    def begin(self, name: str, filler: int, hole: int) -> None:
        self.made, self.form = FORMATS[name]
        self.path = type(self).place() / f"log-{name}"
        #: What is to be read; of an unfinished last record what is still to come; whether NULs stand in front.
        self.wanted: List[int] = []
        self.rest, self.hole, self.number = b"", bool(hole), 0
        #: While another thread writes: the number of the record that it writes next, now and when a cut was decided.
        self.written = self.decided = 0
        with self.path.open("wb") as stream:
            if hole:
                stream.seek(hole)
            elif filler:
                stream.write(self.form.filler(filler))
            stream.write(self.record(900))

    def teardown(self) -> None:
        if hasattr(self, "path"):
            self.path.unlink()

    def record(self, width: int) -> bytes:
        self.wanted.append(self.number)
        made = self.made.record(self.number, self.made.least + width)
        self.number += 1
        return bytes(made)

    def append(self, content: bytes) -> None:
        with self.path.open("ab") as engine:
            engine.write(self.rest + content)
        self.rest = b""

    @rule(more=widths)
    def writes(self, more: List[int]) -> None:
        self.append(b"".join(map(self.record, more)))

    @rule(texts=st.lists(st.integers(0, len(HOSTILE) - 1), min_size=1, max_size=10))
    def writes_what_leads_astray(self, texts: List[int]) -> None:
        for number in texts:
            self.append(self.made.of_text(b"%08d " % self.number + HOSTILE[number]))
            self.wanted.append(self.number)
            self.number += 1

    # No precondition: whether a record is unfinished is a matter of moments once somebody wrote during a cut, and what is drawn must not be.
    @rule(width=st.integers(0, 70_000), part=st.integers(1, 99))
    def is_writing(self, width: int, part: int) -> None:
        if self.rest:
            return
        whole = self.record(width)
        written = max(1, len(whole) * part // 100)
        self.append(whole[:written])
        self.rest = whole[written:]

    @rule(keep=keeps, who=st.sampled_from(sorted(WRITERS)), major=majors)
    def is_cut(self, keep: int, who: str, major: int) -> None:
        content, stays = self.path.read_bytes(), self.wanted
        if not self.rest and not self.hole:
            stays = [shown.number for shown in self.made.read(content) if len(content) - shown.begin <= keep]
        if self.cut(keep, WRITERS[who], major, nullcontext):
            if self.rest or self.hole:
                self.hole = False
                self.finish(keep)
            else:
                self.wanted = self.wanted_of(content, keep, stays)
        self.check()

    def wanted_of(self, content: bytes, keep: int, stays: List[int]) -> List[int]:
        """What was asked for, or less than two blocks more: fillers may go without the records that share their last block."""
        left = self.made.numbers(self.path.read_bytes())
        more = [shown for shown in self.made.read(content) if shown.number in left and shown.number not in stays]
        assert sum(shown.end - shown.begin for shown in more) <= 2 * os.statvfs(self.path).f_bsize, f"{len(more)} more than {keep} bytes"
        assert stays == left[len(more):], f"{stays} were to stay, {left} are left"
        return self.wanted[len(self.wanted) - len(left):]

    @rule(keep=keeps, major=majors, more=widths)
    def is_cut_while_written(self, keep: int, major: int, more: List[int]) -> None:
        self.append(b"")
        new = [self.record(width) for width in more]
        self.written = self.number - len(new)
        standing = threading.Lock()

        @contextmanager
        def pause() -> Iterator[None]:
            with standing:
                yield

        def engine() -> None:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
            try:
                for record in new:
                    with standing:
                        self.written += 1  # before: whether it is seen is a matter of moments
                        os.write(descriptor, record)
            finally:
                os.close(descriptor)

        thread = threading.Thread(target=engine)
        thread.start()
        try:
            done = self.cut(keep, WRITERS["pausable"], major, pause)
        finally:
            thread.join()
        if done:
            self.hole = False
            left = self.made.numbers(self.path.read_bytes())
            late = list(range(self.decided, self.number))
            assert left[len(left) - len(late):] == late, f"of {late}, written since it was decided, {left} are left"
            assert keep < 10**9 or len(left) >= len(self.wanted), "more than was asked for is gone"
            self.wanted = self.wanted[len(self.wanted) - len(left):]
        self.check()

    def cut(self, keep: int, writer: Writer, major: int, pause: Callable[[], Any]) -> Any:
        descriptor = os.open(self.path, os.O_RDWR)
        try:
            plans, why = log_cuts.decide(descriptor, self.form, writer, major, keep, keep)
            self.decided = self.written
            assert not (plans and why)
            return log_cuts.carry_out(descriptor, self.form, plans, pause) if plans else None
        finally:
            os.close(descriptor)

    def finish(self, keep: int) -> None:
        """What its container was writing is whole afterwards, and what stays are the newest records."""
        unfinished = bool(self.rest)
        self.append(b"")
        left = self.made.numbers(self.path.read_bytes())
        assert not unfinished or left[-1:] == self.wanted[-1:], "the record that was being written is lost"
        assert keep < 10**9 or len(left) >= len(self.wanted), "more than was asked for is gone"
        self.wanted = self.wanted[-len(left):] if left else []

    def check(self) -> None:
        if not self.rest and not self.hole:
            assert self.made.numbers(self.path.read_bytes()) == self.wanted
