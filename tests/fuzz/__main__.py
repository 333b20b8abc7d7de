# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fuzz for some minutes: ``python -m tests.fuzz --minutes 30``. All targets in turn, two at once, each in a process of its own.

A round is a seed and a number of inputs, so it can be run again: ``--target T --seed S --inputs N``. Prints a table at the end, and exits
with 1 if something was found.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from tests.fuzz import ROOT, budget

#: Seconds that a process has for one target, before it is another one's turn.
_SLICE_S = 20.0
_FOLDER = Path(__file__).resolve().parent


@dataclass
class Row:
    """What a target came to."""

    inputs: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    findings: List[str] = field(default_factory=list)


def find(pattern: str = "") -> Dict[str, Any]:
    """All targets whose name has ``pattern`` in it, as ``test_file::test_name``."""
    found: Dict[str, Any] = {}
    for path in (*sorted(_FOLDER.glob("test_*.py")), _FOLDER / "on_disks.py"):
        module = importlib.import_module(f"tests.fuzz.{path.stem}")
        if not getattr(module, "can_run", lambda: True)():
            print(f"{path.stem}: left out, it needs root and the tools of ext4, xfs and btrfs", file=sys.stderr)
            continue
        found.update({f"{path.stem}::{name}": target for name, target in budget.targets(module).items()})
    return {name: target for name, target in found.items() if pattern in name}


def run_slice(name: str, number: int, seconds: float, inputs: int, replay: bool) -> int:
    """In a process of its own: rounds of a target until the time is over. The last line of the output is the tally."""
    budget.limit_address_space()
    stem, _colons, function = name.partition("::")
    target = budget.targets(importlib.import_module(f"tests.fuzz.{stem}"))[function]
    started, size, error = time.monotonic(), inputs or 50, ""
    while True:
        print(json.dumps({"seed": number, "round": size}), flush=True)
        begun = time.monotonic()
        try:
            target.fuzz_run(budget.profile(size, fuzzing=True, replay=replay), number)
        except BaseException as found:
            error = "".join(traceback.format_exception(found)) if not isinstance(found, KeyboardInterrupt) else "interrupted"
        budget.disarm()
        left = seconds - (time.monotonic() - started)
        if error or inputs or left <= 0:
            break
        number += 1
        # As many as fit into a few seconds: a round ends when it has all its inputs, not by the clock.
        spent = max(time.monotonic() - begun, 0.01)
        size = max(10, min(size * 4, int(size * min(left, 5.0) / spent)))
    if error:
        print(error, file=sys.stderr)
    print(json.dumps({"inputs": budget.TALLY.inputs, "peak": budget.TALLY.peak_bytes, "failed": bool(error)}), flush=True)
    return 1 if error else 0


def one_slice(name: str, row: Row, seconds: float) -> None:
    """Start such a process, and note what it came to."""
    number, started = random.SystemRandom().randrange(1 << 32), time.monotonic()
    said = _process(name, "--seed", str(number), "--seconds", f"{seconds:g}", timeout=seconds * 3 + 120)
    row.seconds += time.monotonic() - started
    lines = [_json(line) for line in said[1].splitlines()]
    rounds = [line for line in lines if "round" in line]
    tally = lines[-1] if lines and "inputs" in lines[-1] else {}
    row.inputs += tally.get("inputs", 0)
    row.peak_bytes = max(row.peak_bytes, tally.get("peak", 0))
    if said[0] == 0:
        return
    again = rounds[-1] if rounds else {"seed": number, "round": 50}
    repeat = f"python -m tests.fuzz --target {name} --seed {again['seed']} --inputs {again['round']}"
    told = said[2] if tally else f"{said[2]}\n{_what_killed_it(name, again)}"
    row.findings.append(f"{name}\n{told.strip()}\nAgain: {repeat}")


def _what_killed_it(name: str, again: Dict[str, Any]) -> str:
    """A process that had to be killed cannot say at which input, so each is said before it runs."""
    _code, said, _error = _process(name, "--seed", str(again["seed"]), "--inputs", str(again["round"]), "--replay", timeout=600)
    last = said.rpartition("Trying example: ")[2]
    return f"The process did not end by itself (a hang in C code, or out of memory). The input: {last[:20000] or 'unknown'}"


def _process(name: str, *more: str, timeout: float) -> Tuple[int, str, str]:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz", "--target", name, *more], cwd=ROOT, capture_output=True, text=True, errors="replace",
            timeout=timeout, check=False,
        )
    except subprocess.TimeoutExpired as error:
        return -9, _text(error.stdout), f"{_text(error.stderr)}\nkilled after {timeout:.0f} s"
    return done.returncode, done.stdout, done.stderr


def _text(said: object) -> str:
    return said.decode(errors="replace") if isinstance(said, bytes) else str(said or "")


def _json(line: str) -> Dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def fuzz(minutes: float, pattern: str) -> int:
    """All targets in turn until the time is over; a target that found something has had its turn."""
    rows = {name: Row() for name in find(pattern)}
    if not rows:
        print(f"no target has {pattern!r} in its name", file=sys.stderr)
        return 2
    end = time.monotonic() + 60 * minutes
    processes = min(2, os.cpu_count() or 1)
    slice_s = max(1.0, min(_SLICE_S, 60 * minutes * processes / len(rows)))

    def work() -> None:
        while time.monotonic() < end:
            left = [name for name in waiting if not rows[name].findings]
            if not left:
                return
            name = min(left, key=lambda name: rows[name].seconds)
            waiting.remove(name)
            try:
                one_slice(name, rows[name], min(slice_s, max(1.0, end - time.monotonic())))
            finally:
                waiting.append(name)

    waiting = list(rows)
    with ThreadPoolExecutor(processes) as pool:
        for done in [pool.submit(work) for _ in range(processes)]:
            done.result()
    return report(rows)


def report(rows: Dict[str, Row]) -> int:
    """The table, and how to keep what was found."""
    width = max(len(name) for name in rows)
    print(f"{'target':{width}}  {'inputs':>10} {'seconds':>8} {'peak MB':>8} findings")
    for name, row in rows.items():
        print(f"{name:{width}}  {row.inputs:>10,} {row.seconds:>8.0f} {row.peak_bytes / 1e6:>8.1f} {len(row.findings):>8}")
    found = [finding for row in rows.values() for finding in row.findings]
    total = Row(sum(row.inputs for row in rows.values()), sum(row.seconds for row in rows.values()))
    print(f"{'all':{width}}  {total.inputs:>10,} {total.seconds:>8.0f} {'':>8} {len(found):>8}")
    for finding in found:
        print(f"\n{'-' * 100}\n{finding}")
    if found:
        print(
            "\nKeep each found case as a test, before it is mended: put it below the target's @fuzz(...), as @example(name=value, ...) with the values"
            '\nthat "Falsifying example" shows; if a value is data() or dice(), use hypothesis.reproduce_failure as printed while you work on it,'
            "\nand write the case as a test of its own."
        )
    return 1 if found else 0


def main(arguments: Optional[List[str]] = None) -> int:
    """See above."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Run the fuzz targets for some minutes.")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--only", default="", help="targets that have this in their name")
    parser.add_argument("--list", action="store_true", help="name the targets")
    one = parser.add_argument_group("one round of one target")
    one.add_argument("--target", help="test_file::test_name")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--inputs", type=int, default=0, help="one round of so many inputs")
    one.add_argument("--seconds", type=float, default=10.0, help="rounds until the time is over")
    one.add_argument("--replay", action="store_true", help="say each input before it runs")
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(find(options.only)))
        return 0
    if options.target:
        return run_slice(options.target, options.seed, options.seconds, options.inputs, options.replay)
    return fuzz(options.minutes, options.only)


if __name__ == "__main__":
    sys.exit(main())
