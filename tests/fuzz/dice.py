# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Dice that hypothesis throws: the interface of ``random.Random`` that the makers of worlds use, so that what they find shrinks.

Each throw shrinks to the first choice, the lowest number, no chance, nothing taken. ``SeededDice`` is for where hypothesis cannot
throw: in another thread, or before there is an input.
"""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Any, Callable, List, Sequence, TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

T = TypeVar("T")


class Dice:
    """Thrown by ``draw``, of ``st.composite`` or ``st.data()``."""

    def __init__(self, draw: Callable[[Any], Any]) -> None:
        self._draw = draw

    def chance(self, probability: float) -> bool:
        """True in so many of the cases, to a thousandth."""
        return bool(self._draw(_THOUSAND) >= 1000 - round(1000 * probability))

    def choice(self, values: Sequence[T]) -> T:
        return values[self.randrange(len(values))]

    def randint(self, low: int, high: int) -> int:
        return int(self._draw(_integers(low, high)))

    def randrange(self, end: int) -> int:
        return self.randint(0, end - 1)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.random()

    def random(self) -> float:
        """In steps of a millionth."""
        return self.randint(0, 999_999) / 1e6

    def sample(self, values: Sequence[T], count: int) -> List[T]:
        left = list(values)
        return [left.pop(self.randrange(len(left))) for _ in range(count)]

    def shuffle(self, values: List[Any]) -> None:
        values[:] = self.sample(values, len(values))


@lru_cache(maxsize=1024)
def _integers(low: int, high: int) -> st.SearchStrategy[int]:
    return st.integers(low, high)


_THOUSAND = st.integers(0, 999)


@st.composite
def dice(draw: Any) -> Dice:
    """A strategy of dice, for what makes a whole world at once."""
    return Dice(draw)


class SeededDice(random.Random):
    """The same by a seed alone: it does not shrink."""

    def chance(self, probability: float) -> bool:
        return self.random() < probability


def throw(count: int, number: int, world: Callable[[Dice, int], None]) -> None:
    """Let ``world`` happen ``count`` times, where each time costs seconds: the same worlds for the same ``number``, none of them twice or made smaller.

    It gets its dice, and how many worlds came before it. What it raises ends it at once.
    """
    for before in range(count):
        _once(1000 * number + before, lambda thrown, before=before: world(thrown, before))  # type: ignore[misc]


def _once(number: int, world: Callable[[Dice], None]) -> None:
    happened: List[bool] = []

    # Of two inputs the first is the smallest world of all, which shows nothing. What is thrown may hang on what an engine does, which
    # hypothesis would take for a defect of the test if two worlds began alike.
    @seed(number)
    @settings(max_examples=2, phases=(Phase.generate,), database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(is_one=st.booleans(), thrown=dice())
    def two(is_one: bool, thrown: Dice) -> None:
        if is_one and not happened:
            happened.append(True)
            world(thrown)

    two()
    assert happened, "hypothesis made no second input"
