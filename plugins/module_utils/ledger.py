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
from dataclasses import dataclass, replace

from ansible_collections.fleetclean.docker.plugins.module_utils.slotted import slotted
from ansible_collections.fleetclean.docker.plugins.module_utils.walk import Sizes

IMAGE, CONTAINER, VOLUME, CACHE = "image:", "container:", "volume:", "build_cache:"
#: What stands before the id of an object, by the kind that a plan calls it.
PREFIXES = {"image": IMAGE, "container": CONTAINER, "volume": VOLUME, "build_cache": CACHE}


@slotted
@dataclass(frozen=True)
class Account:
    """``category`` is where its bytes are reported. One without holders never goes by itself.

    ``final``: what is in it never changes again, as in a layer that is registered.
    ``words``: what it is, for a person. ``disk``: the device of the filesystem that it lies on, "" for the data root's.
    """

    category: str
    holders: frozenset[str] = frozenset()
    final: bool = False
    words: str = ""
    disk: str = ""


class Ledger:
    """Accounts and their sizes.

    Thousands of images hold the same lower layers: accounts with the same holders are one group, and an object has its groups.
    """

    def __init__(self, accounts: t.Mapping[str, Account], sizes: t.Mapping[str, Sizes]) -> None:
        self._accounts = accounts
        self._sizes = sizes
        self._sums: dict[str, Sizes] = {}
        self._groups: dict[frozenset[str], list[str]] = {}
        for name, account in accounts.items():
            if account.holders:
                self._groups.setdefault(account.holders, []).append(name)
            self._sums.setdefault(account.category, Sizes()).add(self.size(name))
        self._shared = _with_others(self._groups)

    def reduced(self, accounts: t.Mapping[str, int]) -> Ledger:
        """The same, after so many bytes of these accounts came free."""
        if not accounts:
            return self
        sizes = dict(self._sizes)
        for name, freed in accounts.items():
            known = self.size(name)
            sizes[name] = replace(known, disk=max(0, known.disk - freed), frees=max(0, known.frees - freed))
        return Ledger(self._accounts, sizes)

    def _groups_of(self, holder: str) -> t.Iterator[tuple[frozenset[str], list[str]]]:
        """The groups of accounts that an object holds, with their holders."""
        for holders in (frozenset((holder,)), *self._shared.get(holder, ())):
            names = self._groups.get(holders)
            if names:
                yield holders, names

    def _names(self, holder: str) -> t.Iterator[str]:
        for _holders, names in self._groups_of(holder):
            yield from names

    def of(self, holder: str) -> Sizes:
        """All that an object holds, also what others hold with it."""
        total = Sizes()
        for name in self._names(holder):
            total.add(self.size(name))
        return total

    def disks(self, holder: str, going: t.Collection[str] | None = None, without: str = "") -> dict[str, Sizes]:
        """What an object holds, on which filesystem.

        :param going: no more than what may come free with it, be it together with these other objects.
        :param without: leave out what objects of this kind hold as well.
        """
        found: dict[str, Sizes] = {}
        for holders, names in self._groups_of(holder):
            if without and any(other.startswith(without) for other in holders):
                continue
            if going is not None and not holders.issubset(going):
                continue
            for name in names:
                size = self.size(name)
                if size.frees or size.inodes:
                    found.setdefault(self._accounts[name].disk, Sizes()).add(size)
        return found

    def of_category(self, holder: str, category: str) -> Sizes:
        """What of an object's stands in one category."""
        total = Sizes()
        for name in self._names(holder):
            if self._accounts[name].category == category:
                total.add(self.size(name))
        return total

    def size(self, account: str) -> Sizes:
        return self._sizes.get(account) or Sizes()

    def in_category(self, category: str) -> Sizes:
        """The sum of a category; categories have no account in common."""
        return replace(self._sums.get(category) or Sizes())

    def alone(self, *holders: str) -> int:
        """Bytes that come free if these objects go and no others."""
        going = frozenset(holders)
        groups = {held_by: names for holder in going for held_by, names in self._groups_of(holder) if held_by <= going}
        return sum(self.size(name).frees for names in groups.values() for name in names)

    def freed(self, gone: t.Iterable[str]) -> int:
        """Bytes that the filesystem has more once these objects are gone."""
        return sum(self.freed_in_turn(gone))

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
        left: dict[frozenset[str], int] = {}
        done: set[str] = set()

        def go(holder: str) -> dict[str, Sizes]:
            freed: dict[str, Sizes] = {}
            for holders, names in () if holder in done else self._groups_of(holder):
                left[holders] = left.get(holders, len(holders)) - 1
                if left[holders]:
                    continue
                for name in names:
                    freed.setdefault(self._accounts[name].disk, Sizes()).add(self.size(name))
            done.add(holder)
            return freed

        return go


def _with_others(groups: t.Iterable[frozenset[str]]) -> dict[str, tuple[frozenset[str], ...]]:
    """By object the holders of each group that it holds together with others. Most objects have these in common with others, too."""
    found: dict[str, tuple[frozenset[str], ...]] = {}
    same: dict[tuple[frozenset[str], ...], tuple[frozenset[str], ...]] = {}
    for holders in groups:
        for holder in holders if len(holders) > 1 else ():
            its = (*found.get(holder, ()), holders)
            found[holder] = same.setdefault(its, its)
    return found
