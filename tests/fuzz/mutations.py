# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Somebody else's answers, changed: values of a wrong type, missing, twice, without a bound; and bytes of files, changed."""

from __future__ import annotations

import copy
from typing import Any, Sequence, Tuple

from hypothesis import note
from hypothesis import strategies as st

from tests.fuzz.dice import Dice

#: What JSON can bring where something else is expected. The first is what a found case shrinks to.
JUNK: Tuple[Any, ...] = (
    None, "", 0, [], {}, True, False, -1, 1.5, "x", "-", "1", [None], [[]], [{}], {"x": None}, {"": []}, {"bytes": "x"}, "<b>&'\"", "\ud800", "\x1b[2J\x07\r\n\x00",
    "{{ 7 * 7 }}", "../../etc/passwd", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "sha256:", "\u202e\u2028", 2**31, 2**63, 2**64, -(2**63), 10**400,
    float("nan"), float("inf"), -0.0, 1e308, 5e-324,
)
_LARGE: Tuple[Any, ...] = ("y" * 200_000, ["z"] * 20_000, {str(number): number for number in range(20_000)}, [[{}]] * 5_000)


def junk(dice: Dice, large: bool = False) -> Any:
    """A value of any type; seldom one without a bound, or with a deep nest of lists."""
    if large and dice.chance(0.02):
        return copy.deepcopy(dice.choice(_LARGE))
    if dice.chance(0.03):
        found: Any = 1
        # No deeper: copying it would end somewhere near Python's own limit, once here and once there.
        for _ in range(dice.choice((5, 50, 150))):
            found = [found] if dice.chance(0.5) else {"a": found}
        return found
    return copy.deepcopy(dice.choice(JUNK))


def mutate(dice: Dice, value: Any, most: int = 4, large: bool = False) -> Any:
    """A copy of an answer with one to ``most`` changes anywhere in it."""
    changed = copy.deepcopy(value)
    for _ in range(dice.randint(1, most)):
        if not isinstance(changed, (dict, list)) or not changed:
            return junk(dice, large)
        holder, key = _place(dice, changed)
        change = dice.choice(("replace", "replace", "replace", "remove", "again", "rename"))
        note(f"{change} {key!r}: {str(holder[key])[:60]}")
        if change == "replace":
            holder[key] = junk(dice, large)
        elif change == "remove":
            del holder[key]
        elif isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif change == "rename":
            holder[str(dice.choice(("", "x", "\ud800", "id", "__class__", "items", "a" * 300)))] = holder.pop(key)
        else:
            holder[str(key)] = copy.deepcopy(holder[dice.choice(sorted(holder, key=str))])
    return changed


def _place(dice: Dice, value: Any) -> Tuple[Any, Any]:
    """What holds a value somewhere in an answer, and its key there; the parts of long lists count no more than those of short ones."""
    holder: Any = value
    while True:
        key = dice.choice(sorted(holder, key=str)) if isinstance(holder, dict) else dice.randrange(len(holder))
        inner = holder[key]
        if not isinstance(inner, (dict, list)) or not inner or dice.chance(0.2):
            return holder, key
        holder = inner


def mutate_bytes(dice: Dice, content: bytes, most: int = 8, spots: Tuple[int, ...] = ()) -> bytes:
    """Bytes that were flipped, cut out, put in, repeated or cut off at the end; at ``spots`` more often than elsewhere."""
    changed = bytearray(content)
    for _ in range(dice.randint(1, most)):
        if not changed:
            return bytes(dice.randrange(256) for _ in range(dice.randint(0, 40)))
        at = dice.choice(spots) % len(changed) if spots and dice.chance(0.6) else dice.randrange(len(changed))
        length = dice.choice((1, 2, 4, 8, 64))
        change = dice.choice(("byte", "byte", "byte", "number", "cut", "remove", "repeat", "zero"))
        if change == "byte":
            changed[at] = dice.choice((0, 1, 255, 127, 128, 10, dice.randrange(256)))
        elif change == "number":
            number = dice.choice((0, 1, 2, 3, 2**16 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, dice.randrange(2**16)))
            raw = (number % 2 ** (8 * min(length, 8))).to_bytes(min(length, 8), dice.choice(("little", "big")))
            changed[at : at + len(raw)] = raw
        elif change == "cut":
            del changed[at:]
        elif change == "remove":
            del changed[at : at + length]
        elif change == "repeat":
            changed[at:at] = changed[at : at + length]
        else:
            changed[at : at + length] = bytes(len(changed[at : at + length]))
    return bytes(changed)


@st.composite
def mutated(draw: Any, answers: Sequence[Any], most: int = 4, large: bool = False) -> Any:
    """A strategy of one of the answers, changed; a found case shows it, and can be kept as it is shown."""
    thrown = Dice(draw)
    return mutate(thrown, thrown.choice(answers), most, large)


@st.composite
def mutated_bytes(draw: Any, contents: Sequence[bytes], most: int = 8, spots: Tuple[int, ...] = ()) -> bytes:
    """The same for the bytes of files."""
    thrown = Dice(draw)
    return mutate_bytes(thrown, thrown.choice(contents), most, spots)
