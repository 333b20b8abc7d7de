# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who holds which bytes, and what comes free when holders go. Pure: neither the engine nor the disk is known here.

An account is what is kept or given back as one: a layer, a container's writable layer, a volume, a record. It
is held by objects of the engine (``image:<id>``, ``container:<id>``, ``volume:<name>``, ``build_cache:<id>``),
and comes free with the last of them.
"""

from __future__ import annotations

import typing as t
from array import array
from itertools import accumulate

from ansible_collections.fleetclean.docker.plugins.module_utils.accounts import CACHE, CONTAINER, IMAGE, NOBODY, VOLUME, Accounts
from ansible_collections.fleetclean.docker.plugins.module_utils.walk import Figures, Sizes

#: What stands before the id of an object, by the kind that a plan calls it.
PREFIXES = {"image": IMAGE, "container": CONTAINER, "volume": VOLUME, "build_cache": CACHE}
#: So many holders have few groups in common.
_MANY = 4
#: An account by the two parts of its name.
Name = t.Tuple[str, str]


class Going:
    """Objects that go together: whether all holders of a group are among them is found out once for each group."""

    def __init__(self, accounts: Accounts, names: t.Iterable[str]) -> None:
        self._accounts = accounts
        self._holders = {accounts.find_holder(name) for name in names}
        self._known: dict[int, bool] = {}

    def has_all(self, group: int) -> bool:
        known = self._known.get(group)
        if known is None:
            known = self._known[group] = self._holders.issuperset(self._accounts.members(group))
        return known


class Ledger:
    """Accounts and their sizes.

    Thousands of images hold the same lower layers: accounts with the same holders are one group, and an object has its groups.
    """

    def __init__(self, accounts: Accounts, sizes: Figures) -> None:
        self.accounts = accounts
        self._sizes = sizes
        self._sums: dict[str, Sizes] = {}
        self._groups = _ByGroup(accounts)
        for number in accounts:
            self._sums.setdefault(accounts.category(number), Sizes()).add(self.of_number(number))
        self._shared = _with_others(accounts, self._groups)
        self._disks_of_many: dict[int, dict[str, Sizes]] = {}

    def reduced(self, freed: t.Mapping[Name, int]) -> Ledger:
        """The same, after so many bytes of these accounts came free."""
        if not freed:
            return self
        sizes = self._sizes.copy()
        for name, size in freed.items():
            number = self.accounts.find(*name)
            known = None if number is None else sizes.get(number)
            if number is not None and known:
                sizes[number] = Sizes(max(0, known.disk - size), known.apparent, known.shared, max(0, known.frees - size), known.inodes)
        return Ledger(self.accounts, sizes)

    def _groups_of(self, holder: str) -> t.Iterator[int]:
        """The groups of accounts that an object holds."""
        number = self.accounts.find_holder(holder)
        if number is not None:
            own = self.accounts.group_of_one(number)
            yield from (group for group in (own, *self._shared.get(number, ())) if self._groups.of(group))

    def _numbers(self, holder: str) -> t.Iterator[int]:
        for group in self._groups_of(holder):
            yield from self._groups.of(group)

    def of(self, holder: str) -> Sizes:
        """All that an object holds, also what others hold with it."""
        total = Sizes()
        for number in self._numbers(holder):
            total.add(self.of_number(number))
        return total

    def going(self, names: t.Iterable[str]) -> Going:
        """Objects for ``disks``."""
        return Going(self.accounts, names)

    def disks(self, holder: str, going: Going | None = None, without: str = "") -> dict[str, Sizes]:
        """What an object holds, on which filesystem.

        :param going: no more than what may come free with it, be it together with these other objects.
        :param without: leave out what objects of this kind hold as well.
        """
        found: dict[str, Sizes] = {}
        for group in self._groups_of(holder):
            if without and without in self._groups.kinds(group):
                continue
            if going is not None and not going.has_all(group):
                continue
            for disk, size in self._disks_of(group).items():
                found.setdefault(disk, Sizes()).add(size)
        return found

    def _disks_of(self, group: int) -> dict[str, Sizes]:
        """What the accounts of a group have on which filesystem; of a group of many, which is asked for by each of them, it is kept."""
        found = self._disks_of_many.get(group)
        if found is None:
            found = {}
            for number in self._groups.of(group):
                size = self._sizes.get(number)
                if size and (size.frees or size.inodes):
                    found.setdefault(self.accounts.disk(number), Sizes()).add(size)
            if self.accounts.size_of_group(group) > _MANY:
                self._disks_of_many[group] = found
        return found

    def of_category(self, holder: str, category: str) -> Sizes:
        """What of an object's stands in one category."""
        total = Sizes()
        for number in self._numbers(holder):
            if self.accounts.category(number) == category:
                total.add(self.of_number(number))
        return total

    def of_number(self, number: int) -> Sizes:
        """The sizes of an account."""
        return self._sizes.get(number) or Sizes()

    def size(self, kind: str, object_id: str = "") -> Sizes:
        """The sizes of an account, by the two parts of its name."""
        number = self.accounts.find(kind, object_id)
        return Sizes() if number is None else self.of_number(number)

    def in_category(self, category: str) -> Sizes:
        """The sum of a category; categories have no account in common."""
        return (self._sums.get(category) or Sizes()).copy()

    def alone(self, *holders: str) -> int:
        """Bytes that come free if these objects go and no others."""
        going = self.going(holders)
        groups = {group for holder in holders for group in self._groups_of(holder) if going.has_all(group)}
        return sum(self.of_number(number).frees for group in groups for number in self._groups.of(group))

    def freed(self, gone: t.Iterable[str]) -> int:
        """Bytes that the filesystem has more once these objects are gone."""
        turns = self.turns()
        return sum(sizes.frees for holder in gone for sizes in turns(holder).values())

    def freed_in_turn(self, gone: t.Iterable[str]) -> list[int]:
        """The same for one after the other: an account counts where its last holder goes."""
        return [sizes.frees for sizes in self.in_turn(gone)]

    def in_turn(self, gone: t.Iterable[str]) -> list[Sizes]:
        """All that comes free with one after the other, inodes too."""
        turns = self.turns()
        freed = []
        for holder in gone:
            total = Sizes()
            for sizes in turns(holder).values():
                total.add(sizes)
            freed.append(total)
        return freed

    def turns(self) -> t.Callable[[str], dict[str, Sizes]]:
        """Return what says, of one object after the other, what comes free with it after those before, by filesystem."""
        # How many holders of a group are gone; of objects that hold anything, whether they are.
        gone = array("I", bytes(4 * self.accounts.group_count))
        done = bytearray(self.accounts.holder_count)

        def go(holder: str) -> dict[str, Sizes]:
            freed: dict[str, Sizes] = {}
            number = self.accounts.find_holder(holder)
            if number is None or done[number]:
                return freed
            done[number] = 1
            for group in self._groups_of(holder):
                gone[group] += 1
                if gone[group] < self.accounts.size_of_group(group):
                    continue
                for account in self._groups.of(group):
                    freed.setdefault(self.accounts.disk(account), Sizes()).add(self.of_number(account))
            return freed

        return go


class _ByGroup:
    """The accounts of each group of holders, one group's behind the other's."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts
        counts = array("I", bytes(4 * accounts.group_count))
        held = [number for number in accounts if accounts.group_number(number) != NOBODY]
        for number in held:
            counts[accounts.group_number(number)] += 1
        self._starts = array("I", [0, *accumulate(counts)])
        self._numbers = array("I", bytes(4 * len(held)))
        ends = self._starts[:]
        for number in held:
            group = accounts.group_number(number)
            self._numbers[ends[group]] = number
            ends[group] += 1
        self._kinds: dict[int, frozenset[str]] = {}

    def of(self, group: int) -> array[int]:
        return self._numbers[self._starts[group]:self._starts[group + 1]]

    def kinds(self, group: int) -> t.Container[str]:
        """The kinds of the holders of a group; of one with many they are found out once."""
        known = self._kinds.get(group)
        if known is None:
            known = frozenset(self._accounts.kinds_in(group))
            if self._accounts.size_of_group(group) > 1:
                self._kinds[group] = known
        return known


def _with_others(accounts: Accounts, by_group: _ByGroup) -> dict[int, tuple[int, ...]]:
    """By object the groups of accounts that it holds together with others. Most objects have these in common with others, too."""
    found: dict[int, tuple[int, ...]] = {}
    same: dict[tuple[int, ...], tuple[int, ...]] = {}
    for group in range(accounts.group_count):
        if accounts.size_of_group(group) > 1 and by_group.of(group):
            for holder in accounts.members(group):
                its = (*found.get(holder, ()), group)
                found[holder] = same.setdefault(its, its)
    return found
