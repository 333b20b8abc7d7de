# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Accounts by number, and paths by folder: a host with thousands of containers has tens of thousands of both.

An object for each account and a text for each of its names would take most of a module's memory. So an account is a number, and what
belongs to it stands in columns. Its name has two parts, what it is and of which object (``log of``, ``<id>``): the object's id is
the very text that the snapshot has. A path is the name in a folder, and the folders are few. Pure: neither engine nor disk is known here.
"""

from __future__ import annotations

import typing as t
from array import array

IMAGE, CONTAINER, VOLUME, CACHE = "image:", "container:", "volume:", "build_cache:"
#: First parts of accounts' names by which they are looked up; the second part is the object's id or name.
WRITABLE_LAYER, LAYER, LOG, VOLUME_DATA, LEFTOVER = "writable layer of", "layer", "log of", "volume", "leftover"
#: The group of what has no holder.
NOBODY = 0
_Value = t.TypeVar("_Value")


class Account(t.NamedTuple):
    """``category`` is where its bytes are reported. One without holders never goes by itself.

    ``final``: what is in it never changes again, as in a layer that is registered.
    ``words``: what it is, for a person. ``disk``: the device of the filesystem that it lies on, "" for the data root's.
    """

    category: str
    holders: frozenset[str] = frozenset()
    final: bool = False
    words: str = ""
    disk: str = ""


class Accounts:
    """All accounts. Those with the same holders have a group of holders in common, which is a number, too."""

    def __init__(self) -> None:
        self._numbers: dict[str, dict[str, int]] = {}
        self._kinds: list[str] = []
        self._ids: list[str] = []
        self._categories: list[str] = []
        self._disks: list[str] = []
        self._group_of = array("I")
        self._final = bytearray()
        self._words: dict[int, str] = {}
        self._dropped = 0
        self._holders: dict[str, dict[str, int]] = {}
        self._holder_kinds: list[str] = []
        self._holder_ids: list[str] = []
        # One holder is itself, several are in order; of most groups there is one.
        self._groups: list[int | tuple[int, ...]] = [()]
        self._group_numbers: dict[int | tuple[int, ...], int] = {(): NOBODY}

    # -- holders -------------------------------------------------------------------------------

    def holder(self, kind: str, object_id: str) -> int:
        """The number of an object that may hold something; ``kind`` is one of ``PREFIXES``, or what stands in the place of one."""
        numbers = self._holders.setdefault(kind, {})
        number = numbers.get(object_id)
        if number is None:
            number = numbers[object_id] = len(self._holder_ids)
            self._holder_kinds.append(kind)
            self._holder_ids.append(object_id)
        return number

    def find_holder(self, name: str) -> int | None:
        """The number of an object such as ``container:<id>``; None if it holds nothing."""
        kind, colon, object_id = name.partition(":")
        return self._holders.get(kind + colon, {}).get(object_id)

    def holder_name(self, holder: int) -> str:
        return self._holder_kinds[holder] + self._holder_ids[holder]

    @property
    def holder_count(self) -> int:
        return len(self._holder_ids)

    def group(self, holders: t.Iterable[int]) -> int:
        """The number of the group of these holders."""
        members = sorted(set(holders))
        key = members[0] if len(members) == 1 else tuple(members)
        number = self._group_numbers.get(key)
        if number is None:
            number = self._group_numbers[key] = len(self._groups)
            self._groups.append(key)
        return number

    def group_of_names(self, *names: str) -> int:
        """The number of the group of objects such as ``container:<id>``."""
        return self.group(self.holder(f"{kind}:", object_id) for kind, _colon, object_id in (name.partition(":") for name in names))

    def group_of_one(self, holder: int) -> int:
        """The number of the group of one holder; ``NOBODY`` if there is none."""
        return self._group_numbers.get(holder, NOBODY)

    def members(self, group: int) -> tuple[int, ...]:
        """The holders of a group, lowest number first."""
        found = self._groups[group]
        return (found,) if isinstance(found, int) else found

    def size_of_group(self, group: int) -> int:
        """How many holders a group has."""
        found = self._groups[group]
        return 1 if isinstance(found, int) else len(found)

    def union(self, groups: t.Collection[int]) -> int:
        """The number of the group that has all holders of these."""
        several = set(groups) - {NOBODY}
        if len(several) < 2:
            return next(iter(several), NOBODY)
        return self.group(holder for group in several for holder in self.members(group))

    @property
    def group_count(self) -> int:
        return len(self._groups)

    def kinds_in(self, group: int) -> set[str]:
        """The kinds of the holders of a group."""
        return {self._holder_kinds[holder] for holder in self.members(group)}

    # -- accounts ------------------------------------------------------------------------------

    def add(self, kind: str, object_id: str, category: str, group: int = NOBODY, final: bool = False, words: str = "") -> int:
        """Make an account, or change the one of that name; return its number."""
        numbers = self._numbers.setdefault(kind, {})
        number = numbers.get(object_id)
        if number is None:
            number = numbers[object_id] = len(self._kinds)
            self._kinds.append(kind)
            self._ids.append(object_id)
            self._categories.append(category)
            self._disks.append("")
            self._group_of.append(group)
            self._final.append(final)
        else:
            self._categories[number], self._group_of[number], self._final[number] = category, group, final
            self._words.pop(number, None)
        if words:
            self._words[number] = words
        return number

    def find(self, kind: str, object_id: str = "") -> int | None:
        """The number of an account; None if there is none of that name."""
        return self._numbers.get(kind, {}).get(object_id)

    def drop(self, number: int) -> None:
        """Take an account away; its number is no other's."""
        del self._numbers[self._kinds[number]][self._ids[number]]
        self._kinds[number] = ""
        self._words.pop(number, None)
        self._dropped += 1

    def is_there(self, number: int) -> bool:
        """Whether an account was not dropped."""
        return bool(self._kinds[number])

    def name(self, number: int) -> str:
        kind, object_id = self._kinds[number], self._ids[number]
        return f"{kind} {object_id}" if object_id else kind

    def parts(self, number: int) -> tuple[str, str]:
        """What an account is, and of which object."""
        return self._kinds[number], self._ids[number]

    def category(self, number: int) -> str:
        return self._categories[number]

    def set_category(self, number: int, category: str) -> None:
        self._categories[number] = category

    def group_number(self, number: int) -> int:
        return self._group_of[number]

    def is_final(self, number: int) -> bool:
        return bool(self._final[number])

    def words(self, number: int) -> str:
        return self._words.get(number, "")

    def disk(self, number: int) -> str:
        return self._disks[number]

    def set_disk(self, number: int, disk: str) -> None:
        self._disks[number] = disk

    def of_category(self, category: str) -> t.Iterator[int]:
        """The accounts whose bytes are reported there."""
        return (number for number, its in enumerate(self._categories) if its == category and self._kinds[number])

    @property
    def room(self) -> int:
        """All numbers are less than that."""
        return len(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds) - self._dropped

    def __iter__(self) -> t.Iterator[int]:
        return (number for number, kind in enumerate(self._kinds) if kind)

    def __getitem__(self, number: int) -> Account:
        holders = frozenset(map(self.holder_name, self.members(self._group_of[number])))
        return Account(self._categories[number], holders, bool(self._final[number]), self.words(number), self._disks[number])

    def values(self) -> t.Iterator[Account]:
        return map(self.__getitem__, self)


class Paths(t.MutableMapping[str, _Value]):
    """A mapping of absolute paths, kept by folder: of the paths in one folder the names alone.

    ``add_files``: files in an object's own folder. Thousands of such folders have the same ones, but for the folder's name in theirs.
    """

    def __init__(self) -> None:
        self._folders: dict[str, dict[str, _Value]] = {}
        self._files: dict[str, dict[str, _Value]] = {}
        self._forms: dict[str, dict[str, tuple[str, ...]]] = {}
        self._above_files: tuple[str, ...] = ()

    def put(self, folder: str, name: str, value: _Value) -> None:
        """Set the value of ``folder/name``; the name is kept as the object that it is."""
        self._folders.setdefault(folder, {})[name] = value

    def add_files(self, folder: str, name: str, forms: tuple[str, ...], value: _Value) -> None:
        """Set the value of files in ``folder/name``, or in a folder of that; ``forms`` are their names with ``{0}`` in place of ``name``."""
        if folder not in self._files:
            self._above_files += (f"{folder}/",)
        self._files.setdefault(folder, {})[name] = value
        self._forms.setdefault(folder, {})[name] = forms

    def folders(self) -> t.Iterator[str]:
        """The folders right above the paths, other than those that ``leads_to_files``; and those right above such."""
        for folder in (*self._folders, *self._files):
            yield folder or "/"

    def has_files(self, folder: str) -> bool:
        """Whether a folder is right above some of ``add_files``."""
        _above, _own, forms, inner = self._in_own(folder)
        return any(form.rpartition("/")[0] == inner for form in forms)

    def leads_to_files(self, folder: str) -> bool:
        """Whether a folder is somewhere above some of ``add_files``, in the object's own folder or the same."""
        _above, _own, forms, inner = self._in_own(folder)
        return any(not inner or form.startswith(f"{inner}/") for form in forms)

    def _in_own(self, path: str) -> tuple[str, str, tuple[str, ...], str]:
        """The object's own folder in which a path lies, in two parts, the files in there, and the rest of the path; no files if it lies in none."""
        if not path.startswith(self._above_files):
            return "", "", (), ""
        above, _slash, own = path.rpartition("/")
        inner: list[str] = []
        for _level in range(3):
            forms = self._forms.get(above, _NOTHING).get(own)
            if forms is not None:
                return above, own, forms, "/".join(reversed(inner))
            inner.append(own)
            above, _slash, own = above.rpartition("/")
        return "", "", (), ""

    def _of_file(self, path: str) -> _Value | None:
        above, own, forms, inner = self._in_own(path)
        return self._files[above][own] if any(form.replace("{0}", own) == inner for form in forms) else None

    def get(self, key: str, default: t.Any = None) -> t.Any:
        folder, _slash, name = key.rpartition("/")
        found: t.Any = self._folders.get(folder, _NOTHING).get(name)
        if found is None and self._files:
            found = self._of_file(key)
        return default if found is None else found

    def __getitem__(self, path: str) -> _Value:
        found = self.get(path)
        if found is None:
            raise KeyError(path)
        return t.cast(_Value, found)

    def __setitem__(self, path: str, value: _Value) -> None:
        folder, _slash, name = path.rpartition("/")
        self.put(folder, name, value)

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and self.get(path) is not None

    def __delitem__(self, path: str) -> None:
        folder, _slash, name = path.rpartition("/")
        del self._folders[folder][name]

    def __iter__(self) -> t.Iterator[str]:
        for folder, names in self._folders.items():
            for name in names:
                yield f"{folder}/{name}"
        for folder, owned in self._forms.items():
            for own, forms in owned.items():
                for form in forms:
                    yield f"{folder}/{own}/{form.replace('{0}', own)}"

    def __len__(self) -> int:
        return sum(map(len, self._folders.values())) + sum(len(forms) for owned in self._forms.values() for forms in owned.values())

    def each(self) -> t.Iterator[tuple[str, str, _Value]]:
        """Folder, name and value of each path, but for ``add_files``: neither makes a text for it."""
        for folder, names in self._folders.items():
            for name, value in names.items():
                yield folder, name, value

    def numbers(self) -> t.Iterator[_Value]:
        """The values, of the files in one folder once."""
        for names in (*self._folders.values(), *self._files.values()):
            yield from names.values()

    def clear(self) -> None:
        self._folders.clear()
        self._files.clear()
        self._forms.clear()
        self._above_files = ()


_NOTHING: dict[str, t.Any] = {}
