# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way through a tree of any depth and width: folder by folder, depth first, in bounded memory.

A container may make millions of folders, each in the one before or all in one, with names of 255 bytes. So no level has a path,
and a level with nothing left to visit is forgotten at once. Of the others the newest ``_WINDOW`` are open and know which folders
are still to be visited. Of those above, ``_FROZEN`` numbers are kept: which folder it is, and how far it was visited. The way back to one is ``..``;
that it is the same folder is checked, since somebody may have moved it. A folder's folders are visited in the order of their
inode numbers, so where its list was dropped, or was too long, it is read again from there on.

A level that has a ``path`` (few do: those above what the caller looks for by path) stays open.
"""

from __future__ import annotations

import errno
import os
import sys
import typing as t
from array import array

from ansible_collections.fleetclean.docker.plugins.module_utils.safe_open import open_directory

#: So many levels are open at once, besides those that have a path.
_WINDOW = 32
#: Bytes of names that wait to be visited, of all levels together, and of a single one.
_MOST_WAITING, _MOST_OF_ONE = 12 << 20, 6 << 20
#: Python's objects for one name, besides its characters; and what a name takes at most.
_ENTRY, _LARGEST_ENTRY = 100, 700
_COUNT_EXACTLY_FROM = 64
#: How long a list of folders is when it is weighed for the first time.
FIRST_LIMIT = 4096
#: Of a level that is not open: depth, device, inode, the inode that was visited last, and how many of that number were.
_FROZEN = 5
#: So many levels have folders left to visit; what lies deeper is named and left out.
_MOST_FROZEN = 400_000


class Folders:
    """The folders of one folder that are to be visited, those with the highest inode numbers first, so that the last is the next.

    :param more: there are others behind them, for which there was no room.
    """

    __slots__ = ("more", "waiting", "weight")

    def __init__(self, waiting: list[tuple[int, str]], more: bool) -> None:
        count = len(waiting)
        if count > 1:
            waiting.sort(reverse=True)
        self.waiting = waiting
        self.more = more
        # Almost always it is not worth to look closer.
        self.weight = count * _LARGEST_ENTRY if count < _COUNT_EXACTLY_FROM else _weigh(waiting)


def shorten(waiting: list[tuple[int, str]], limit: int) -> tuple[int, bool]:
    """Drop those that come last, if a list of folders (inode, name) is too long.

    :param limit: its length.
    :return: at which length to call this again, and whether some were dropped.
    """
    if _weigh(waiting) <= _MOST_OF_ONE:
        return limit * 2, False
    waiting.sort()
    del waiting[len(waiting) // 2:]
    return limit, True


def _weigh(waiting: list[tuple[int, str]]) -> int:
    return len(waiting) * _ENTRY + sum(sys.getsizeof(name) for _inode, name in waiting)


class Level:
    """A folder that was entered. ``path`` is None for those that nobody looks for by path."""

    __slots__ = ("account", "depth", "descriptor", "device", "folders", "inode", "last", "path", "ties")

    def __init__(self, descriptor: int, about: os.stat_result, depth: int, account: int | str, path: str | None, folders: Folders) -> None:
        self.descriptor = descriptor
        self.device = about.st_dev
        self.inode = about.st_ino
        self.depth = depth
        self.account = account
        self.path = path
        self.folders = folders
        #: The inode number that was visited last, and how many of this number were (of btrfs a subvolume and a folder can have the same).
        self.last = 0
        self.ties = 0


_NONE = Folders([], False)


class Descent:
    """Gives one folder to visit after the other. What was entered is given to ``push``.

    :param lost: called with a descriptor and a reason for what cannot be visited.
    """

    def __init__(self, lost: t.Callable[[int, OSError], None]) -> None:
        self._lost = lost
        self._levels: list[Level] = []
        self._frozen: array[int] = array("Q")
        self._weight = 0

    def __iter__(self) -> t.Iterator[tuple[Level, str]]:
        levels = self._levels
        while levels:
            level = levels[-1]
            folders = level.folders
            if folders.waiting:
                inode, name = folders.waiting.pop()
                level.ties = level.ties + 1 if inode == level.last else 1
                level.last = inode
                yield level, name
            elif folders.more:
                self._weight -= folders.weight
                level.folders = self._read_on(level)
                self._weight += level.folders.weight
            else:
                self._leave()

    def push(self, level: Level) -> None:
        """Visit the folders of this one next; it is closed once they are done."""
        levels = self._levels
        if levels and not levels[-1].folders.waiting and not levels[-1].folders.more:
            # Nobody comes back to that one.
            above = levels.pop()
            self._weight -= above.folders.weight
            os.close(above.descriptor)
        levels.append(level)
        self._weight += level.folders.weight
        if len(levels) > _WINDOW or self._weight > _MOST_WAITING:
            self._make_room()

    def close(self) -> None:
        """Close whatever is open."""
        for level in self._levels:
            os.close(level.descriptor)
        self._levels.clear()
        self._frozen = array("Q")

    def _make_room(self) -> None:
        """Close the uppermost levels, and drop their lists, but the newest level's."""
        levels = self._levels
        first = next((at for at, level in enumerate(levels) if level.path is None), len(levels))
        while len(levels) - first > 1 and (len(levels) - first > _WINDOW or self._weight > _MOST_WAITING):
            if len(self._frozen) >= _MOST_FROZEN * _FROZEN:
                newest = levels.pop()
                self._lost(newest.descriptor, OSError(errno.ENAMETOOLONG, "it lies too deep to be visited"))
                self._drop(newest)
                continue
            level = levels.pop(first)
            self._frozen.extend((level.depth, level.device, level.inode, level.last, level.ties))
            self._drop(level)

    def _drop(self, level: Level) -> None:
        self._weight -= level.folders.weight
        os.close(level.descriptor)

    def _leave(self) -> None:
        level = self._levels.pop()
        self._weight -= level.folders.weight
        if not self._frozen or (self._levels and self._levels[-1].path is None):
            os.close(level.descriptor)
            return
        above = self._climb(level)
        if above:
            self._levels.append(above)
            self._weight += above.folders.weight

    def _climb(self, level: Level) -> Level | None:
        """Return from the last open level to the next one above it that has folders left; None if it is not there any more."""
        depth, device, inode, last, ties = self._frozen[-_FROZEN:]
        del self._frozen[-_FROZEN:]
        descriptor = level.descriptor
        try:
            for _step in range(level.depth - depth):
                up = open_directory("..", descriptor)
                os.close(descriptor)
                descriptor = up
            about = os.fstat(descriptor)
            if (about.st_dev, about.st_ino) != (device, inode):
                raise OSError(errno.EXDEV, "it was moved here while it was looked at; what lay beside it was not visited")
        except OSError as error:
            self._lost(descriptor, error)
            os.close(descriptor)
            self._frozen = array("Q")  # the way to those further up leads over this one
            return None
        above = Level(descriptor, about, depth, level.account, None, _NONE)
        above.last, above.ties = last, ties
        above.folders = self._read_on(above)
        return above

    def _read_on(self, level: Level) -> Folders:
        """Read the folders that come behind those that were visited."""
        waiting: list[tuple[int, str]] = []
        limit, more = FIRST_LIMIT, False
        try:
            with os.scandir(level.descriptor) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False) and entry.inode() >= level.last:
                        waiting.append((entry.inode(), entry.name))
                        if len(waiting) >= limit:
                            limit, cut = shorten(waiting, limit)
                            more = more or cut
        except OSError as error:
            self._lost(level.descriptor, error)
        folders = Folders(waiting, more)
        visited = sum(1 for inode, _name in waiting[-level.ties:] if inode == level.last) if level.ties else 0
        if visited:
            del waiting[-visited:]
        return folders
