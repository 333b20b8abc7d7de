# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every target shares: its budget, and the limits of time and memory that each single input has.

``@fuzz(budget, name=strategy, ...)`` makes a function of one input a test, which runs ``budget`` inputs in CI. They are the same ones in each
run, so that a test fails for a change and never by chance. A found case is kept below it as ``@example(...)``.

Limits of each input, both reported with the input, made as small as hypothesis can:

- ``TIME_LIMIT_S``: an alarm raises ``Hang`` in what runs. Where even the alarm is not heard (C code that does not return), a second timer
  ends the process with a traceback; ``python -m tests.fuzz`` then runs the same inputs again to tell which one it was.
- ``MEMORY_LIMIT_BYTES`` above what the process had before the input, by the kernel's high-water mark; and no more than
  ``ADDRESS_SPACE_BYTES`` in all, so that a defect cannot take the machine along.
"""

from __future__ import annotations

import faulthandler
import functools
import os
import resource
import signal
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, Optional

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

#: Of the processor, so that a busy machine makes no difference; by the clock it is this many times as long.
TIME_LIMIT_S, _BY_THE_CLOCK = 5.0, 6
#: Where the alarm is not heard.
_KILL_AFTER_S = 60.0
#: A module's interpreter and imports take under 40 MB; both together stay under 100 MB.
MEMORY_LIMIT_BYTES = 60_000_000
ADDRESS_SPACE_BYTES = 4 * 1024**3


class Hang(AssertionError):
    """An input took longer than ``TIME_LIMIT_S``."""


class TooMuchMemory(AssertionError):
    """An input took more than ``MEMORY_LIMIT_BYTES``."""


@dataclass
class Tally:
    """What was done in this process; inputs that a strategy threw away, or that a target rejected, do not count."""

    inputs: int = 0
    peak_bytes: int = 0


TALLY = Tally()
#: Where a traceback is seen although pytest captures what is written; see conftest.py.
STDERR: Optional[int] = None
_armed_at = 0.0
_peak_file: Optional[int] = None


def profile(examples: int, fuzzing: bool = False, replay: bool = False, **more: Any) -> settings:
    """CI's settings: the same inputs in each run. Fuzzing: new ones in each round, which its seed makes again."""
    return settings(
        max_examples=examples,
        derandomize=not fuzzing,
        database=None,
        deadline=None,  # enforced here, by an alarm that also ends what does not return
        print_blob=fuzzing,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.verbose if replay else Verbosity.normal,
        # A world's explanation is its shrunk form; the phase "explain" would run each failure many times more.
        phases=(Phase.generate,) if replay else (Phase.generate, Phase.shrink) if fuzzing else (Phase.explicit, Phase.generate, Phase.shrink),
        **more,
    )


@contextmanager
def limits() -> Iterator[None]:
    """Let one input run within its limits of time and memory, and count it."""
    before = _reset_peak()
    on_main_thread = threading.current_thread() is threading.main_thread()
    if on_main_thread:
        _arm()
        previous = signal.signal(signal.SIGPROF, _ring), signal.signal(signal.SIGALRM, _ring)
        # Again and again: what it raises in a callback of the collector, Python drops.
        signal.setitimer(signal.ITIMER_PROF, TIME_LIMIT_S, 1.0)
        signal.setitimer(signal.ITIMER_REAL, TIME_LIMIT_S * _BY_THE_CLOCK, 1.0)
    try:
        yield
    finally:
        if on_main_thread:
            for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
                signal.setitimer(timer, 0)
            for number, handler in zip((signal.SIGPROF, signal.SIGALRM), previous):
                signal.signal(number, handler)
    taken = _peak() - before
    TALLY.inputs += 1
    TALLY.peak_bytes = max(TALLY.peak_bytes, taken)
    if taken > MEMORY_LIMIT_BYTES:
        raise TooMuchMemory(f"{taken / 1e6:.0f} MB for one input")


def _ring(_number: int, _frame: Any) -> None:
    raise Hang(f"longer than {TIME_LIMIT_S:g} s")


def _arm() -> None:
    """The second timer; it is set anew once in a while only, because each time starts a thread."""
    global _armed_at
    now = time.monotonic()
    if now - _armed_at > _KILL_AFTER_S / 4:
        faulthandler.dump_traceback_later(_KILL_AFTER_S, exit=True, file=STDERR or sys.stderr)
        _armed_at = now


def disarm() -> None:
    """No input runs."""
    global _armed_at
    faulthandler.cancel_dump_traceback_later()
    _armed_at = 0.0


def _reset_peak() -> int:
    """Set the high-water mark to what the process has now, and return it."""
    global _peak_file
    try:
        if _peak_file is None:
            _peak_file = os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
        os.write(_peak_file, b"5")
    except OSError:
        pass  # then the mark only ever grows: less is noticed, and nothing wrongly
    return _peak()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def limit_address_space() -> None:
    """For a process that only fuzzes."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))


def fuzz(budget: int, **strategies: Any) -> Callable[[Callable[..., None]], Any]:
    """Make a function of one input a target that runs ``budget`` inputs in CI."""

    def decorate(body: Callable[..., None]) -> Any:
        @functools.wraps(body)
        def limited(*args: Any, **kwargs: Any) -> None:
            with limits():
                body(*args, **kwargs)

        def run(how: settings, number: int) -> None:
            seed(number)(how(given(**strategies)(limited)))()

        def test() -> None:
            try:
                checked()
            finally:
                disarm()

        checked = profile(budget)(given(**strategies)(limited))
        for name in ("__name__", "__doc__", "__module__", "__qualname__"):
            setattr(test, name, getattr(body, name))
        return _as_target(test, run)

    return decorate


def machine(budget: int, steps: int) -> Callable[[Any], Any]:
    """Make a RuleBasedStateMachine a target that runs ``budget`` times in CI, ``steps`` steps each. Its rules run within the limits as a whole."""
    from hypothesis.stateful import get_state_machine_test

    def decorate(body: Any) -> Any:
        class Limited(body):
            def __init__(self) -> None:
                self._limits = limits()
                self._limits.__enter__()
                super().__init__()

            def teardown(self) -> None:
                try:
                    super().teardown()
                finally:
                    self._limits.__exit__(None, None, None)

        Limited.__name__ = Limited.__qualname__ = body.__name__

        def made(how: settings) -> Any:
            return get_state_machine_test(Limited, settings=how)

        def run(how: settings, number: int) -> None:
            seed(number)(made(settings(how, stateful_step_count=steps)))()

        def test() -> None:
            try:
                made(profile(budget, stateful_step_count=steps))()
            finally:
                disarm()

        test.__name__, test.__doc__, test.__module__ = f"test_{body.__name__.lower()}", body.__doc__, body.__module__
        return _as_target(test, run)

    return decorate


def _as_target(test: Any, run: Callable[[settings, int], None]) -> Any:
    test.fuzz_run = run
    return test


def targets(module: Any) -> Dict[str, Any]:
    """The targets of a test module, by name."""
    return {name: found for name, found in vars(module).items() if name.startswith("test_") and hasattr(found, "fuzz_run")}
