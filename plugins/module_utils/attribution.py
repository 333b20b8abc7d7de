# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose bytes they are: every path below the data root goes on one account, every account into one category.

The order matters. First what is there is listed, then the engine is asked for its objects, then its records are
read, and only then the folders are walked: so what comes or goes meanwhile is never taken for nobody's.

``exact`` walks everything, but layers that ``history`` knows; ``fast`` walks what nobody else has a figure
for (logs, containers' folders, the engine's own files, leftovers) and takes the engine's figures for the rest.
"""

from __future__ import annotations

import os
import re
import time
import typing as t
from collections import defaultdict
from dataclasses import dataclass, field

from ansible_collections.fleetclean.docker.plugins.module_utils import (
    history,
    layers,
    leftovers,
    logs,
    measure,
    path_uses,
    places,
    snapshot,
    walk,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.accounts import (
    CACHE,
    CONTAINER,
    IMAGE,
    LEFTOVER,
    LOG,
    NOBODY,
    VOLUME,
    VOLUME_DATA,
    WRITABLE_LAYER,
    Accounts,
    Paths,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.engine import Engine
from ansible_collections.fleetclean.docker.plugins.module_utils.ledger import Going, Ledger
from ansible_collections.fleetclean.docker.plugins.module_utils.storage import COPIES, Storage, from_info, is_name
from ansible_collections.fleetclean.docker.plugins.module_utils.storage import pool as outside
from ansible_collections.fleetclean.docker.plugins.module_utils.walk import Figures, Sizes

#: Categories that a report has, in the order in which people read them.
CATEGORIES = (
    "images", "containers", "volumes", "build_cache", "logs", "container_metadata", "engine_metadata", "tmp", "leftovers",
    "other_users", "unattributed",
)


@dataclass
class Survey:
    """All that is known of an engine's disk at one moment.

    ``ledger`` has what was measured, and the engine's figures where nothing was; ``measured`` says which categories
    have nothing but measured figures. ``roots``: bytes on disk by place. ``sharers`` are the images that have a build cache record's layer, where that is
    known. ``log_files``: by container the names of its log files below its folder, with ``{0}`` for its id. ``found`` is None where
    there was no disk to look at.
    """

    snapshot: snapshot.Snapshot
    ledger: Ledger
    measured: frozenset[str] = frozenset()
    sharers: dict[str, frozenset[str]] = field(default_factory=dict)
    found: walk.Found | None = None
    roots: dict[str, int] = field(default_factory=dict)
    leftovers: list[leftovers.Leftover] = field(default_factory=list)
    log_files: dict[str, tuple[str, ...]] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)
    seconds: float = 0.0
    processes: int = 0
    files: int = 0
    walked_bytes: int = 0
    remembered: int = 0
    remembered_bytes: int = 0


class How(t.NamedTuple):
    """``exact``: walk everything. ``state_dir`` and ``engine_id``: where what was measured is remembered."""

    exact: bool
    gentle: bool
    state_dir: str
    engine_id: str


def survey(engine: Engine, storage: Storage | None, how: How, wanted: snapshot.Wanted | None = None) -> Survey:
    """Ask the engine for everything, and its disk, and bring both together.

    :param storage: the engine's storage if it is proven to be here; else the engine's figures are all there is.
    :param wanted: what else to ask the engine for; all that has bytes is asked for anyway.
    """
    begun = time.monotonic()
    # The engine may name its root by a link. Below it none is followed.
    own = _where_it_leads(storage) if storage else None
    listed = leftovers.listing(own) if own else leftovers.Listing()
    everything = (wanted or snapshot.Wanted())._replace(
        images=True,
        volumes=True,
        build_cache=True,
        # When an image was last used is worth a call for each container; fast is for those who cannot wait.
        container_ages=how.exact,
        sizes=True,
        volume_sizes=not (own and how.exact),
        # What images share is measured here, for those who have no other use for the engine's figure.
        image_sizes=own is None or wanted is None or wanted.image_sizes,
    )
    looked = path_uses.complete(snapshot.take(engine, everything, own), own, from_info(engine.info).root)
    if own is None:
        return Survey(looked, _by_the_engine(looked), seconds=time.monotonic() - begun)
    surveyor = _Surveyor(own, looked, how, listed)
    del listed
    result = surveyor.look()
    result.seconds = time.monotonic() - begun
    return result


def sharers(storage: Storage, looked: snapshot.Snapshot) -> dict[str, frozenset[str]]:
    """The images that have a build cache record's layer, by the engine's records on the disk; by the record's id."""
    return _sharers(layers.read(_where_it_leads(storage), looked), looked)


def measure_alone(storage: Storage, looked: snapshot.Snapshot, how: How, going: t.Collection[str], most_files: int) -> Ledger | None:
    """Measure no more than what these objects, such as ``container:<id>``, hold and no other does.

    :param most_files: with more files and folders than this nothing is measured.
    :returns: a ledger that is good for these objects alone, in any order; None where it would not be exact without all the rest, as with
        drivers that share files or extents between layers, where a record cannot be read, or where there are too many files.
    """
    own = _where_it_leads(storage)
    if own.sharing or own.pools or outside(own).layers:
        return None
    return _Surveyor(own, looked, how, leftovers.Listing()).look_at(going, most_files)


def _where_it_leads(storage: Storage) -> Storage:
    return storage._replace(root=os.path.realpath(storage.root))


def _sharers(holdings: layers.Holdings, looked: snapshot.Snapshot) -> dict[str, frozenset[str]]:
    images: dict[str, set[str]] = {chain: set() for chain in holdings.chains.values()}
    for image in looked.images:
        for layer in images.keys() & image.layers if images else ():
            images[layer].add(image.id)
    return {record: frozenset(images[chain]) for record, chain in holdings.chains.items()}


class _Surveyor:
    """The disk's side of a survey."""

    def __init__(self, storage: Storage, looked: snapshot.Snapshot, how: How, listed: leftovers.Listing) -> None:
        self._storage = storage
        self._looked = looked
        self._how = how
        self._listed = listed
        self._accounts = Accounts()
        self._owners: Paths[int] = Paths()
        self._heavy: Paths[int] = Paths()
        self._remembered_bytes = 0
        self._identities: dict[int, str] = {}
        self._plain: dict[str, bool] = {}
        self._places = places.find(storage)
        self._beyond = places.beyond(storage)
        self._home: dict[int, str] = {}
        self._log_files: dict[str, tuple[str, ...]] = {}

    def look(self) -> Survey:
        """Find the owners, walk, and sum up."""
        self._engines_own()
        first = self._accounts.room
        holdings = layers.read(self._storage, self._looked, self._accounts, self._owners)
        self._layers(holdings, first)
        self._containers()
        self._volumes()
        nobodys = self._leftovers(holdings)
        self._drop_what_has_no_path()
        self._part_by_place()
        estimates = self._estimates(holdings)
        holdings.logical.clear()
        sizes, remembered = self._remembered() if self._how.exact or self._how.state_dir else ({}, {})
        found, processes = self._walk(sizes.keys())
        walked = found.sizes.total()
        files, walked_bytes = walked.inodes, walked.disk
        for account, known in sizes.items():
            found.sizes.add(account, known)  # what was walked of it lies beside its folder
        figures, found.sizes = found.sizes, Figures()
        missing = self._missing(figures)
        self._linked(found, figures)
        self._pooled(figures, estimates)
        if self._how.exact:
            self._remember(found, figures, remembered)
        measured = frozenset(CATEGORIES) - missing
        roots = self._roots(figures)
        doubts = [*holdings.doubts, *self._links(), *self._before_remapping(), *(f"{self._storage.root}: {limit}" for limit in sorted(found.limits))]
        # What comes now has to have room.
        self._heavy.clear()
        self._home.clear()
        found.self_contained.clear()
        found.entangled.clear()
        self._owners.clear()
        for number, size in estimates.items():
            if number not in figures:
                figures.add(number, _estimate(size))
        estimates.clear()
        return Survey(
            self._looked,
            Ledger(self._accounts, figures),
            measured=measured,
            sharers=_sharers(holdings, self._looked),
            found=found,
            roots=roots,
            leftovers=nobodys,
            log_files=self._log_files,
            doubts=doubts,
            processes=processes,
            files=files,
            walked_bytes=walked_bytes,
            remembered=len(remembered),
            remembered_bytes=self._remembered_bytes,
        )

    def look_at(self, going: t.Collection[str], most_files: int) -> Ledger | None:
        """Walk only what these objects alone hold."""
        accounts, first = self._accounts, self._accounts.room
        holdings = layers.read(self._storage, self._looked, accounts, self._owners)
        if holdings.doubts:
            return None
        self._layers(holdings, first)
        self._containers()
        self._volumes()
        self._drop_what_has_no_path()
        self._part_by_place()
        known, _notes = self._remembered() if self._how.state_dir else ({}, {})
        gone = Going(accounts, going)
        mine: dict[str, None] = {}
        for path, account in self._owners.items():
            group = accounts.group_number(account)
            if group != NOBODY and account not in known and gone.has_all(group) and os.path.lexists(path):
                if not self._is_plain(os.path.dirname(path)):
                    return None
                mine[path] = None
        # What lies in another one of them is walked with it, and goes on its own account there.
        paths = [path for path in mine if not any(above in mine for above in _above(path))]
        if not _are_few(paths, most_files):
            return None
        found = walk.walk([walk.Unit((path,)) for path in paths], self._owners, self._models(), 1, self._heavy, self._places)
        if found.unread or found.limits:
            return None
        figures, found.sizes = found.sizes, Figures()
        for account, size in known.items():
            figures.add(account, size)
        self._linked(found, figures)
        return Ledger(accounts, figures)

    # -- owners --------------------------------------------------------------------------------

    def _own(self, path: str, kind: str, ident: str, category: str, group: int = NOBODY, words: str = "") -> None:
        """Put a path on an account, which is made if it is not there yet."""
        account = self._accounts.find(kind, ident)
        self._owners[path] = self._accounts.add(kind, ident, category, group, words=words) if account is None else account

    def _drop_what_has_no_path(self) -> None:
        """A path that went to another account leaves none behind that would still be counted by the engine's figure."""
        named = bytearray(self._accounts.room)
        for number in self._owners.numbers():
            named[number] = 1
        for number in self._accounts:
            if not named[number]:
                self._accounts.drop(number)

    def _engines_own(self) -> None:
        """Places by their name alone. What stands at the top and is not known to be the engine's is nobody's we know."""
        storage = self._storage
        for place in self._places:
            self._own(place, "engine", "", "engine_metadata")
        ours = {*storage.engines_own(), *storage.layer_folders(), *storage.pools}
        ours |= {os.path.dirname(path) for path in ours}
        for path in leftovers.children(storage.root):
            if path not in ours and path not in storage.temporary():
                self._own(path, "unattributed", path, "unattributed", words=path)
        for path in storage.temporary():
            self._own(path, "temporary", "", "tmp")
            for child in leftovers.children(path):
                self._own(child, "temporary", child, "tmp", words=child)
        for path in storage.pools:
            for child in leftovers.children(path):
                self._own(child, "pool", os.path.basename(child), "images", words="the storage driver's pool of all layers")
        for folder in storage.layer_folders():
            # A layer that comes while we look is in no record that we read.
            self._own(folder, *_MAKING)
            for child in leftovers.children(folder, storage.is_drivers_own):
                self._own(child, "engine", "", "engine_metadata")

    def _layers(self, holdings: layers.Holdings, first: int) -> None:
        """Note the folders of layers to be walked; ``first`` is the first account of those that the records name."""
        folders = set(self._storage.layer_folders())
        for folder, name, account in self._owners.each():
            if account >= first and folder in folders and os.path.lexists(f"{folder}/{name}"):
                self._heavy.put(folder, name, holdings.depth.get(f"{folder}/{name}", 0))
        holdings.depth.clear()

    def _containers(self) -> None:
        above = self._storage.containers
        same: dict[tuple[str, ...], tuple[str, ...]] = {}
        for container in self._looked.containers:
            ident, folder = container.id, f"{above}/{container.id}"
            group = self._accounts.group((self._accounts.holder(CONTAINER, ident),))
            self._owners.put(above, ident, self._accounts.add("folder of", ident, "container_metadata", group))
            forms = tuple(path[len(folder) + 1:].replace(ident, "{0}") for path in logs.files(folder, ident))
            if forms:
                forms = same.setdefault(forms, forms)
                self._owners.add_files(above, ident, forms, self._accounts.add(LOG, ident, "logs", group))
                self._log_files[ident] = forms

    def _volumes(self) -> None:
        above = self._storage.volumes
        for volume in self._looked.volumes:
            if volume.driver == "local" and is_name(volume.name):
                group = self._accounts.group((self._accounts.holder(VOLUME, volume.name),))
                self._owners.put(above, volume.name, self._accounts.add(VOLUME_DATA, volume.name, "volumes", group))
                if os.path.lexists(f"{above}/{volume.name}"):
                    self._heavy.put(above, volume.name, 0)

    def _leftovers(self, holdings: layers.Holdings) -> list[leftovers.Leftover]:
        ownerless = bytearray(self._accounts.room)
        for number in self._accounts.of_category("leftovers"):
            ownerless[number] = 1
        registered = {
            f"{folder}/{name}": self._accounts.words(account) for folder, name, account in self._owners.each() if ownerless[account]
        }
        listed, self._listed = self._listed, leftovers.Listing()
        nobodys, making = leftovers.find(self._storage, listed, _But(self._owners, registered), registered, time.time())
        if holdings.doubts:
            # Without the records nobody can say what is nobody's.
            for unclear in nobodys:
                words = f"{unclear.path}: its records could not be read"
                self._own(unclear.path, "unattributed", unclear.path, "unattributed", words=words)
                self._heavy[unclear.path] = _LAST
            nobodys = []
        for entry in making:
            self._own(entry.path, *_MAKING)
            self._heavy[entry.path] = _LAST
        nobodys += leftovers.others(self._storage)
        for path in registered.keys() - {left.path for left in nobodys} - {entry.path for entry in making}:
            # It came while we looked, or is no folder of its own kind: in doubt it is somebody's.
            self._own(path, *_MAKING)
        for left in nobodys:
            self._own(left.path, LEFTOVER, left.path, "leftovers", words=left.reason)
            self._heavy.setdefault(left.path, _LAST)
        return nobodys

    # -- sizes ---------------------------------------------------------------------------------

    def _estimates(self, holdings: layers.Holdings) -> dict[int, int]:
        """The engine's own figures in bytes by account, where nothing is measured."""
        found: dict[int, int] = {}

        def note(number: int | None, size: int | None) -> None:
            if number is not None and self._accounts.is_there(number):
                found[number] = size or 0

        for number, size in holdings.logical.items():
            note(number, size)
        for container in self._looked.containers:
            note(self._accounts.find(WRITABLE_LAYER, container.id), container.bytes)
        for volume in self._looked.volumes:
            note(self._accounts.find(VOLUME_DATA, volume.name), volume.bytes)
        by_record = {CACHE + record.id: record.bytes for record in self._looked.build_cache}
        for number in self._accounts.of_category("build_cache"):
            if number not in found:
                names = map(self._accounts.holder_name, self._accounts.members(self._accounts.group_number(number)))
                known = [by_record[holder] for holder in names if holder in by_record]
                note(number, known[0] if len(known) == 1 else 0)
        return found

    def _missing(self, walked: t.Container[walk.Key]) -> set[str]:
        """The categories of which some was not measured."""
        found = set()
        for folder, name, _depth in self._heavy.each():
            is_plain = self._is_plain(folder)
            if not (is_plain and self._how.exact):
                account = self._owners[f"{folder}/{name}"]
                if not is_plain or account not in walked:
                    found.add(self._accounts.category(account))
        return found

    def _final(self) -> dict[int, list[str]]:
        """The folders of each layer that never changes again (aufs has three)."""
        folders: dict[int, list[str]] = defaultdict(list)
        for path in self._heavy:
            if self._accounts.is_final(self._owners[path]):
                folders[self._owners[path]].append(path)
        return {account: sorted(paths) for account, paths in folders.items()}

    def _remembered(self) -> tuple[dict[int, Sizes], dict[str, history.Measured]]:
        """What earlier runs measured of layers whose folders are still the same ones."""
        known = history.measured(self._how.state_dir, self._how.engine_id)
        sizes, still = {}, {}
        for account, paths in self._final().items() if known else ():
            name = self._accounts.name(account)
            old = known.get(name)
            if old and old.identity == leftovers.identity(*paths):
                sizes[account] = Sizes(disk=old.disk, apparent=old.apparent, frees=old.frees, inodes=old.inodes)
                still[name] = old
                self._remembered_bytes += old.disk
        return sizes, still

    def _walk(self, known: t.Collection[int]) -> tuple[walk.Found, int]:
        storage = self._storage
        if self._how.gentle:
            walk.give_way()
        models = self._models()
        sharing = storage.sharing
        if sharing == COPIES and not any(model.reflinks for model in models.values()):
            sharing = ""
        lightly = ("leftovers", "tmp", "unattributed")
        of_layers = set(storage.layer_folders()) if sharing else set()
        together: list[str] = []
        units = _Units()
        for folder, name, _depth in self._heavy.each():
            path = f"{folder}/{name}"
            account = self._owners[path]
            if account in known or not self._is_plain(folder) or not (self._how.exact or self._accounts.category(account) in lightly):
                continue
            if folder in of_layers:
                together.append(path)
            else:
                units.add(folder, name)
        # Taken before the walk, and compared after it: what changed meanwhile is not remembered.
        self._identities = {
            account: leftovers.identity(*paths)
            for account, paths in (self._final().items() if self._how.exact and self._how.state_dir else ())
            if account not in known
        }
        units.first.append(walk.Unit(tuple(self._places)))
        if together:
            together.sort(key=lambda path: (self._heavy[path], path))
            units.first.append(walk.Unit(tuple(together), sharing))
        processes = walk.spare_processors(self._how.gentle)
        return walk.walk(units, self._owners, models, processes, self._heavy, self._places), processes

    def _models(self) -> dict[int, walk.Model]:
        """What the filesystem of each place gives back for a file, by device number."""
        return {os.stat(place).st_dev: walk.model_of(place, measure.filesystem(place).type) for place in self._places}

    def _part_by_place(self) -> None:
        """Give each account its filesystem; one that has paths in several places becomes several."""
        if len(self._places) == 1 and not self._beyond:
            (disk,) = self._places.values()
            for number in self._accounts:
                self._accounts.set_disk(number, disk)
            return
        parts: dict[str, int] = {}
        for path, account in self._owners.items():
            place = places.place_of(path, self._places)
            if self._beyond and places.is_below(path, self._beyond):
                place = _ELSEWHERE
            if self._home.setdefault(account, place) != place:
                parts[path] = part = self._part(account, place)
                self._home[part] = place
        self._owners.update(parts)
        for number in self._accounts:
            self._accounts.set_disk(number, self._places.get(self._home[number], _ELSEWHERE))

    def _part(self, account: int, place: str) -> int:
        """The part of an account that lies in another place than the rest of it."""
        accounts = self._accounts
        kind, ident = accounts.parts(account)
        ident = f"{ident} in {place}".lstrip()
        return accounts.add(kind, ident, accounts.category(account), accounts.group_number(account), accounts.is_final(account), accounts.words(account))

    def _linked(self, found: walk.Found, sizes: Figures) -> None:
        """Files with hard links on several accounts come free with the last of all holders."""
        accounts = self._accounts
        for keys, frees in found.together.items():
            numbers = sorted((key for key in keys if isinstance(key, int)), key=accounts.name)
            # What has no holder stays, and so do they.
            groups = [accounts.group_number(number) for number in numbers]
            group = NOBODY if NOBODY in groups else accounts.union(groups)
            category = next((accounts.category(number) for number in numbers if accounts.category(number) != "leftovers"), "leftovers")
            number = accounts.add("links on", ", ".join(map(accounts.name, numbers)), category, group)
            accounts.set_disk(number, accounts.disk(numbers[0]))
            sizes[number] = Sizes(frees=frees)

    def _pooled(self, sizes: Figures, estimates: t.Mapping[int, int]) -> None:
        """Bytes of layers that a driver keeps outside plain folders: no walk sees them."""
        pool = outside(self._storage)
        for ident, size in pool.layers.items():
            account = next((self._owners[path] for path in self._storage.layer_paths(ident) if path in self._owners), None)
            if account is None:
                account = self._accounts.find("pool", ident)
            if account is None:
                account = self._accounts.add("pool", ident, "images", words="in the storage driver's pool")
            if pool.with_root:
                size = max(0, size - sizes.total().disk)  # what was walked is in it
            sizes.add(account, Sizes(disk=size, frees=size))
        if self._storage.pools or (pool.layers and not pool.by_layer):
            # Which layer takes what is known to the pool alone; the engine's figures say what would come free.
            for number, guess in estimates.items():
                if self._accounts.category(number) in ("images", "containers"):
                    changed = (sizes.get(number) or Sizes()).copy()
                    changed.frees = guess
                    sizes[number] = changed

    def _remember(self, found: walk.Found, sizes: Figures, still: dict[str, history.Measured]) -> None:
        if found.unread or not self._how.state_dir:
            return
        notes = dict(still)
        folders = self._final()
        for account, identity in self._identities.items():
            if account in found.self_contained and identity == leftovers.identity(*folders[account]):
                figures = sizes[account]
                notes[self._accounts.name(account)] = history.Measured(identity, figures.disk, figures.apparent, figures.frees, figures.inodes)
        if notes != history.measured(self._how.state_dir, self._how.engine_id):
            history.note_measured(self._how.state_dir, self._how.engine_id, notes)

    def _roots(self, sizes: Figures) -> dict[str, int]:
        """Bytes in each place. What lies outside all of them, in a driver's pool, counts with the data root."""
        found = dict.fromkeys(self._places, 0)
        first = next(iter(found))
        if not self._home:
            found[first] = sizes.total().disk
            return found
        for account, figures in sizes.items():
            home = self._home.get(account, first) if isinstance(account, int) else first
            if home != _ELSEWHERE:
                found[home] += figures.disk
        return found

    def _links(self) -> list[str]:
        places = {folder for folder, _name, _depth in self._heavy.each() if not self._is_plain(folder)}
        return [f"{place} leads elsewhere by a link; what is there is not counted" for place in sorted(places)]

    def _before_remapping(self) -> list[str]:
        """What an engine had before user namespaces were turned on lies beside its root, and is no business of this root's."""
        above, name = os.path.split(self._storage.root)
        old = [part for part in ("image", "containers", "volumes") if os.path.isdir(f"{above}/{part}")]
        if re.fullmatch(r"\d+\.\d+", name) and old:
            return [f"{above} has data of an engine without user namespaces ({', '.join(old)}); it is not counted"]
        return []

    def _is_plain(self, folder: str) -> bool:
        """Whether what is in a folder is reached without a link below the data root."""
        if folder not in self._plain:
            self._plain[folder] = os.path.realpath(folder) == folder
        return self._plain[folder]


def _above(path: str) -> t.Iterator[str]:
    """The folders above a path, from the lowest."""
    while len(path) > 1:
        path = os.path.dirname(path)
        yield path


def _are_few(paths: t.Iterable[str], most: int) -> bool:
    """Whether there are no more than so many files and folders, counted by their names alone and not below what is mounted there."""
    waiting, count = list(paths), 0
    mounts = {mount.path for mount in measure.mounts_below(waiting)}
    while waiting:
        path = waiting.pop()
        count += 1
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        if entry.path not in mounts:
                            waiting.append(entry.path)
                    else:
                        count += 1
                    if count + len(waiting) > most:
                        return False
        except NotADirectoryError:
            continue  # a file of its own
        except OSError:
            return False
    return count <= most


#: The account of layers that come while we look: kind, id and category.
_MAKING = ("layers in the making", "", "images")
#: Stands for the filesystem, and for the place, of what lies on none that is known.
_ELSEWHERE = "elsewhere"
#: Behind all layers: what a leftover shares with one of them is the layer's.
_LAST = 1 << 20


def _estimate(size: int | None) -> Sizes:
    return Sizes(apparent=size or 0, frees=size or 0)


class _Units(t.Sequence[walk.Unit]):
    """Some units, and one for each of tens of thousands of folders, which is made when it is asked for."""

    def __init__(self) -> None:
        self.first: list[walk.Unit] = []
        self._folders: list[str] = []
        self._names: list[str] = []

    def add(self, folder: str, name: str) -> None:
        """Add ``folder/name``."""
        self._folders.append(folder)
        self._names.append(name)

    def __len__(self) -> int:
        return len(self.first) + len(self._names)

    @t.overload
    def __getitem__(self, at: int) -> walk.Unit: ...

    @t.overload
    def __getitem__(self, at: slice) -> list[walk.Unit]: ...

    def __getitem__(self, at: int | slice) -> walk.Unit | list[walk.Unit]:
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(len(self)))]
        if at < len(self.first):
            return self.first[at]
        at -= len(self.first)
        return walk.Unit((f"{self._folders[at]}/{self._names[at]}",))


class _But:
    """What is in one collection and not in another."""

    def __init__(self, these: t.Container[str], others: t.Container[str]) -> None:
        self._these, self._others = these, others

    def __contains__(self, path: object) -> bool:
        return path in self._these and path not in self._others


def _by_the_engine(looked: snapshot.Snapshot) -> Ledger:
    """Accounts by the engine's figures alone: of an image its own bytes, since with whom it shares the rest is not told."""
    accounts, sizes = Accounts(), Figures()

    def note(kind: str, ident: str, category: str, holders: t.Iterable[int], size: int | None) -> None:
        sizes[accounts.add(kind, ident, category, accounts.group(holders))] = _estimate(size)

    images = {image.id: image for image in looked.images}
    holders: dict[str, dict[int, None]] = defaultdict(dict)
    for image in looked.images:
        who = accounts.holder(IMAGE, image.id)
        step: snapshot.Image | None = image
        while step and who not in holders[step.id]:
            holders[step.id][who] = None
            step = images.get(step.parent)
    for image in looked.images:
        # The classic builder leaves each step as an image: one has what was added to its parent, and holds that, too.
        parent = images.get(image.parent)
        others = (parent.bytes or 0) if parent else looked.shared_bytes.get(image.id, 0)
        note("image", image.id, "images", holders[image.id], max(0, (image.bytes or 0) - others))
    for container in looked.containers:
        note(WRITABLE_LAYER, container.id, "containers", [accounts.holder(CONTAINER, container.id)], container.bytes)
    for volume in looked.volumes:
        note(VOLUME_DATA, volume.name, "volumes", [accounts.holder(VOLUME, volume.name)], volume.bytes)
    for record in looked.build_cache:
        note("build cache", record.id, "build_cache", [accounts.holder(CACHE, record.id)], 0 if record.shared else record.bytes)
    return Ledger(accounts, sizes)
