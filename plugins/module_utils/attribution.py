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
from dataclasses import dataclass, field, replace

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
from ansible_collections.fleetclean.docker.plugins.module_utils.engine import Engine
from ansible_collections.fleetclean.docker.plugins.module_utils.ledger import (
    CACHE,
    CONTAINER,
    IMAGE,
    VOLUME,
    Account,
    Ledger,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.storage import COPIES, Storage, from_info, is_name
from ansible_collections.fleetclean.docker.plugins.module_utils.storage import pool as outside
from ansible_collections.fleetclean.docker.plugins.module_utils.walk import Sizes

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
    known. ``log_files``: whose account each is. ``found`` is None where there was no disk to look at.
    """

    snapshot: snapshot.Snapshot
    ledger: Ledger
    accounts: dict[str, Account] = field(default_factory=dict)
    measured: frozenset[str] = frozenset()
    sharers: dict[str, frozenset[str]] = field(default_factory=dict)
    found: walk.Found | None = None
    roots: dict[str, int] = field(default_factory=dict)
    leftovers: list[leftovers.Leftover] = field(default_factory=list)
    log_files: dict[str, str] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)
    seconds: float = 0.0
    processes: int = 0
    files: int = 0
    walked_bytes: int = 0
    remembered: int = 0
    remembered_bytes: int = 0


@dataclass(frozen=True)
class How:
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
    everything = replace(
        wanted or snapshot.Wanted(),
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
        accounts, estimates = _by_the_engine(looked)
        return Survey(looked, Ledger(accounts, estimates), accounts, seconds=time.monotonic() - begun)
    surveyor = _Surveyor(own, looked, how, listed)
    del listed
    result = surveyor.look()
    result.seconds = time.monotonic() - begun
    return result


def sharers(storage: Storage, looked: snapshot.Snapshot) -> dict[str, frozenset[str]]:
    """The images that have a build cache record's layer, by the engine's records on the disk; by the record's id."""
    return _sharers(layers.read(_where_it_leads(storage), looked), looked)


def _where_it_leads(storage: Storage) -> Storage:
    return replace(storage, root=os.path.realpath(storage.root))


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
        self._accounts: dict[str, Account] = {}
        self._owners: dict[str, str] = {}
        self._heavy: dict[str, int] = {}
        self._remembered_bytes = 0
        self._identities: dict[str, str] = {}
        self._plain: dict[str, bool] = {}
        self._places = places.find(storage)
        self._beyond = places.beyond(storage)
        self._home: dict[str, str] = {}
        self._same: dict[frozenset[str], frozenset[str]] = {}

    def look(self) -> Survey:
        """Find the owners, walk, and sum up."""
        self._engines_own()
        holdings = layers.read(self._storage, self._looked)
        self._layers(holdings)
        self._containers()
        self._volumes()
        nobodys = self._leftovers(holdings)
        # A path that went to another account leaves none behind that would still be counted by the engine's figure.
        named = set(self._owners.values())
        for name in [name for name in self._accounts if name not in named]:
            del self._accounts[name]
        del named
        self._same.clear()
        self._part_by_place()
        estimates = self._estimates(holdings)
        holdings.logical.clear()
        sizes, remembered = self._remembered() if self._how.exact or self._how.state_dir else ({}, {})
        found, processes = self._walk(set(sizes))
        files, walked_bytes = sum(figures.inodes for figures in found.sizes.values()), sum(figures.disk for figures in found.sizes.values())
        for account, known in sizes.items():
            found.of(account).add(known)  # what was walked of it lies beside its folder
        for figures in found.sizes.values():
            if figures.frees == figures.disk:
                figures.frees = figures.disk  # the same number, not one that is equal
        sizes, found.sizes = found.sizes, {}
        missing = self._missing(sizes)
        self._linked(found, sizes)
        self._pooled(sizes, estimates)
        if self._how.exact:
            self._remember(found, sizes, remembered)
        measured = frozenset(CATEGORIES) - missing
        roots = self._roots(sizes)
        doubts = [*holdings.doubts, *self._links(), *self._before_remapping(), *(f"{self._storage.root}: {limit}" for limit in sorted(found.limits))]
        # What comes now has to have room.
        self._heavy.clear()
        self._home.clear()
        found.self_contained.clear()
        log_files = {path: account for path, account in self._owners.items() if self._accounts[account].category == "logs"}
        self._owners.clear()
        for name, size in estimates.items():
            sizes.setdefault(name, size)
        ledger = Ledger(self._accounts, sizes)
        return Survey(
            self._looked,
            ledger,
            self._accounts,
            measured=measured,
            sharers=_sharers(holdings, self._looked),
            found=found,
            roots=roots,
            leftovers=nobodys,
            log_files=log_files,
            doubts=doubts,
            processes=processes,
            files=files,
            walked_bytes=walked_bytes,
            remembered=len(remembered),
            remembered_bytes=self._remembered_bytes,
        )

    # -- owners --------------------------------------------------------------------------------

    def _own(self, path: str, account: str, category: str, holders: frozenset[str] = frozenset(), words: str = "") -> None:
        self._owners[path] = account
        if account not in self._accounts:
            self._accounts[account] = Account(category, holders, words=words)

    def _alike(self, holders: frozenset[str]) -> frozenset[str]:
        return self._same.setdefault(holders, holders)

    def _engines_own(self) -> None:
        """Places by their name alone. What stands at the top and is not known to be the engine's is nobody's we know."""
        storage = self._storage
        for place in self._places:
            self._own(place, "engine", "engine_metadata")
        ours = {*storage.engines_own(), *storage.layer_folders(), *storage.pools}
        ours |= {os.path.dirname(path) for path in ours}
        for path in leftovers.children(storage.root):
            if path not in ours and path not in storage.temporary():
                self._own(path, f"unattributed {path}", "unattributed", words=path)
        for path in storage.temporary():
            self._own(path, "temporary", "tmp")
            for child in leftovers.children(path):
                self._own(child, f"temporary {child}", "tmp", words=child)
        for path in storage.pools:
            for child in leftovers.children(path):
                self._own(child, f"pool {os.path.basename(child)}", "images", words="the storage driver's pool of all layers")

    def _layers(self, holdings: layers.Holdings) -> None:
        storage = self._storage
        for folder in storage.layer_folders():
            # A layer that comes while we look is in no record that we read.
            self._own(folder, "layers in the making", "images")
            for child in leftovers.children(folder):
                if storage.is_drivers_own(os.path.basename(child)):
                    self._own(child, "engine", "engine_metadata")
        # With thousands of containers and images there is no room for two of everything: these are taken over.
        known_accounts, known_owners = self._accounts, self._owners
        self._accounts, self._owners = holdings.accounts, holdings.paths
        holdings.accounts, holdings.paths = {}, {}
        folders = set(storage.layer_folders())
        for path in self._owners:
            if os.path.dirname(path) in folders and os.path.lexists(path):
                self._heavy[path] = holdings.depth.get(path, 0)
        for name, account in known_accounts.items():
            self._accounts.setdefault(name, account)
        for path, owner in known_owners.items():
            self._owners.setdefault(path, owner)
        self._same = holdings.same
        holdings.depth.clear()

    def _containers(self) -> None:
        for container in self._looked.containers:
            holder = self._alike(frozenset((CONTAINER + container.id,)))
            folder = f"{self._storage.containers}/{container.id}"
            self._own(folder, f"folder of {container.id}", "container_metadata", holder)
            for path in logs.files(folder, container.id):
                self._own(path, f"log of {container.id}", "logs", holder)

    def _volumes(self) -> None:
        for volume in self._looked.volumes:
            path = f"{self._storage.volumes}/{volume.name}"
            if volume.driver == "local" and is_name(volume.name):
                self._own(path, f"volume {volume.name}", "volumes", frozenset((VOLUME + volume.name,)))
                if os.path.lexists(path):
                    self._heavy[path] = 0

    def _leftovers(self, holdings: layers.Holdings) -> list[leftovers.Leftover]:
        registered = {
            path: self._accounts[account].words
            for path, account in self._owners.items()
            if self._accounts[account].category == "leftovers"
        }
        owned = self._owners.keys() - registered.keys()
        listed, self._listed = self._listed, leftovers.Listing()
        nobodys, making = leftovers.find(self._storage, listed, owned, registered, time.time())
        if holdings.doubts:
            # Without the records nobody can say what is nobody's.
            for unclear in nobodys:
                words = f"{unclear.path}: its records could not be read"
                self._own(unclear.path, f"unattributed {unclear.path}", "unattributed", words=words)
                self._heavy[unclear.path] = _LAST
            nobodys = []
        for entry in making:
            self._own(entry.path, "layers in the making", "images")
            self._heavy[entry.path] = _LAST
        nobodys += leftovers.others(self._storage)
        for path in registered.keys() - {left.path for left in nobodys} - {entry.path for entry in making}:
            # It came while we looked, or is no folder of its own kind: in doubt it is somebody's.
            self._own(path, "layers in the making", "images")
        for left in nobodys:
            self._own(left.path, f"leftover {left.path}", "leftovers", words=left.reason)
            self._heavy.setdefault(left.path, _LAST)
        return nobodys

    # -- sizes ---------------------------------------------------------------------------------

    def _estimates(self, holdings: layers.Holdings) -> dict[str, Sizes]:
        """The engine's own figures, where nothing is measured."""
        found = {name: _estimate(size) for name, size in holdings.logical.items()}
        for container in self._looked.containers:
            found[f"writable layer of {container.id}"] = _estimate(container.bytes)
        for volume in self._looked.volumes:
            found[f"volume {volume.name}"] = _estimate(volume.bytes)
        by_record = {CACHE + record.id: record.bytes for record in self._looked.build_cache}
        for name, account in self._accounts.items():
            if account.category == "build_cache" and name not in found:
                known = [by_record[holder] for holder in account.holders if holder in by_record]
                found[name] = _estimate(known[0] if len(known) == 1 else 0)
        return found

    def _missing(self, walked: t.Container[str]) -> set[str]:
        """The categories of which some was not measured."""
        return {
            self._accounts[self._owners[path]].category
            for path in self._heavy
            if (self._owners[path] not in walked and not self._how.exact) or not self._is_plain(path)
        }

    def _final(self) -> dict[str, list[str]]:
        """The folders of each layer that never changes again (aufs has three)."""
        folders: dict[str, list[str]] = defaultdict(list)
        for path in self._heavy:
            if self._accounts[self._owners[path]].final:
                folders[self._owners[path]].append(path)
        return {account: sorted(paths) for account, paths in folders.items()}

    def _remembered(self) -> tuple[dict[str, Sizes], dict[str, history.Measured]]:
        """What earlier runs measured of layers whose folders are still the same ones."""
        known = history.measured(self._how.state_dir, self._how.engine_id)
        sizes, still = {}, {}
        for account, paths in self._final().items() if known else ():
            old = known.get(account)
            if old and old.identity == leftovers.identity(*paths):
                sizes[account] = Sizes(disk=old.disk, apparent=old.apparent, frees=old.frees, inodes=old.inodes)
                still[account] = old
                self._remembered_bytes += old.disk
        return sizes, still

    def _walk(self, known: t.Collection[str]) -> tuple[walk.Found, int]:
        storage = self._storage
        if self._how.gentle:
            walk.give_way()
        models = {}
        for place in self._places:
            models[os.stat(place).st_dev] = walk.model_of(place, measure.filesystem(place).type)
        sharing = storage.sharing
        if sharing == COPIES and not any(model.reflinks for model in models.values()):
            sharing = ""
        todo = [path for path in self._heavy if self._owners[path] not in known and self._is_plain(path)]
        if not self._how.exact:
            lightly = ("leftovers", "tmp", "unattributed")
            todo = [path for path in todo if self._accounts[self._owners[path]].category in lightly]
        # Taken before the walk, and compared after it: what changed meanwhile is not remembered.
        self._identities = {
            account: leftovers.identity(*paths)
            for account, paths in (self._final().items() if self._how.exact and self._how.state_dir else ())
            if account not in known
        }
        units = [walk.Unit(tuple(self._places))]
        of_layers = tuple(f"{folder}/" for folder in storage.layer_folders())
        together = sorted((path for path in todo if sharing and path.startswith(of_layers)), key=lambda p: (self._heavy[p], p))
        if together:
            units.append(walk.Unit(tuple(together), sharing))
        apart = set(together)
        units += [walk.Unit((path,)) for path in todo if path not in apart]
        processes = walk.spare_processors(self._how.gentle)
        return walk.walk(units, self._owners, models, processes, self._heavy.keys(), self._places), processes

    def _part_by_place(self) -> None:
        """Give each account its filesystem; one that has paths in several places becomes several."""
        if len(self._places) == 1 and not self._beyond:
            (disk,) = self._places.values()
            self._note_disks(lambda _account: disk)
            return
        parts: dict[str, str] = {}
        for path, account in self._owners.items():
            place = places.place_of(path, self._places)
            if self._beyond and places.is_below(path, self._beyond):
                place = _ELSEWHERE
            if self._home.setdefault(account, place) != place:
                parts[path] = part = f"{account} in {place}"
                self._home[part] = place
                self._accounts[part] = self._accounts[account]
        self._owners.update(parts)
        self._note_disks(lambda account: self._places.get(self._home[account], _ELSEWHERE))

    def _note_disks(self, disk_of: t.Callable[[str], str]) -> None:
        for name, account in self._accounts.items():
            self._accounts[name] = replace(account, disk=disk_of(name))

    def _linked(self, found: walk.Found, sizes: dict[str, Sizes]) -> None:
        """Files with hard links on several accounts come free with the last of all holders."""
        for names, frees in found.together.items():
            accounts = [self._accounts[name] for name in sorted(names)]
            # What has no holder stays, and so do they.
            stays = any(not account.holders for account in accounts)
            holders: frozenset[str] = frozenset() if stays else frozenset().union(*(account.holders for account in accounts))
            category = next((account.category for account in accounts if account.category != "leftovers"), "leftovers")
            name = f"links on {', '.join(sorted(names))}"
            self._accounts[name] = Account(category, holders, disk=accounts[0].disk)
            sizes[name] = Sizes(frees=frees)

    def _pooled(self, sizes: dict[str, Sizes], estimates: t.Mapping[str, Sizes]) -> None:
        """Bytes of layers that a driver keeps outside plain folders: no walk sees them."""
        pool = outside(self._storage)
        for ident, size in pool.layers.items():
            account = next((self._owners[path] for path in self._storage.layer_paths(ident) if path in self._owners), "")
            if not account:
                account = f"pool {ident}"
                self._accounts.setdefault(account, Account("images", words="in the storage driver's pool"))
            if pool.with_root:
                size = max(0, size - sum(figures.disk for figures in sizes.values()))  # what was walked is in it
            mine = sizes.setdefault(account, Sizes())
            mine.disk += size
            mine.frees += size
        if self._storage.pools or (pool.layers and not pool.by_layer):
            # Which layer takes what is known to the pool alone; the engine's figures say what would come free.
            for name, guess in estimates.items():
                if self._accounts.get(name) and self._accounts[name].category in ("images", "containers"):
                    sizes.setdefault(name, Sizes()).frees = guess.frees

    def _remember(self, found: walk.Found, sizes: dict[str, Sizes], still: dict[str, history.Measured]) -> None:
        if found.unread or not self._how.state_dir:
            return
        notes = dict(still)
        folders = self._final()
        for account, identity in self._identities.items():
            if account in found.self_contained and identity == leftovers.identity(*folders[account]):
                figures = sizes[account]
                notes[account] = history.Measured(identity, figures.disk, figures.apparent, figures.frees, figures.inodes)
        if notes != history.measured(self._how.state_dir, self._how.engine_id):
            history.note_measured(self._how.state_dir, self._how.engine_id, notes)

    def _roots(self, sizes: t.Mapping[str, Sizes]) -> dict[str, int]:
        """Bytes in each place. What lies outside all of them, in a driver's pool, counts with the data root."""
        found = dict.fromkeys(self._places, 0)
        first = next(iter(found))
        for name, figures in sizes.items():
            home = self._home.get(name, first)
            if home != _ELSEWHERE:
                found[home] += figures.disk
        return found

    def _links(self) -> list[str]:
        places = {os.path.dirname(path) for path in self._heavy if not self._is_plain(path)}
        return [f"{place} leads elsewhere by a link; what is there is not counted" for place in sorted(places)]

    def _before_remapping(self) -> list[str]:
        """What an engine had before user namespaces were turned on lies beside its root, and is no business of this root's."""
        above, name = os.path.split(self._storage.root)
        old = [part for part in ("image", "containers", "volumes") if os.path.isdir(f"{above}/{part}")]
        if re.fullmatch(r"\d+\.\d+", name) and old:
            return [f"{above} has data of an engine without user namespaces ({', '.join(old)}); it is not counted"]
        return []

    def _is_plain(self, path: str) -> bool:
        """Whether a path is reached without a link below the data root."""
        folder = os.path.dirname(path)
        if folder not in self._plain:
            self._plain[folder] = os.path.realpath(folder) == folder
        return self._plain[folder]


#: Stands for the filesystem, and for the place, of what lies on none that is known.
_ELSEWHERE = "elsewhere"
#: Behind all layers: what a leftover shares with one of them is the layer's.
_LAST = 1 << 20


def _estimate(size: int | None) -> Sizes:
    return Sizes(apparent=size or 0, frees=size or 0)


def _by_the_engine(looked: snapshot.Snapshot) -> tuple[dict[str, Account], dict[str, Sizes]]:
    """Accounts by the engine's figures alone: of an image its own bytes, since with whom it shares the rest is not told."""
    accounts: dict[str, Account] = {}
    sizes: dict[str, Sizes] = {}

    def note(name: str, category: str, holders: t.Iterable[str], size: int | None) -> None:
        accounts[name] = Account(category, frozenset(holders))
        sizes[name] = _estimate(size)

    images = {image.id: image for image in looked.images}
    holders: dict[str, set[str]] = defaultdict(set)
    for image in looked.images:
        step: snapshot.Image | None = image
        while step and IMAGE + image.id not in holders[step.id]:
            holders[step.id].add(IMAGE + image.id)
            step = images.get(step.parent)
    for image in looked.images:
        # The classic builder leaves each step as an image: one has what was added to its parent, and holds that, too.
        parent = images.get(image.parent)
        others = (parent.bytes or 0) if parent else looked.shared_bytes.get(image.id, 0)
        note(f"image {image.id}", "images", holders[image.id], max(0, (image.bytes or 0) - others))
    for container in looked.containers:
        note(f"writable layer of {container.id}", "containers", {CONTAINER + container.id}, container.bytes)
    for volume in looked.volumes:
        note(f"volume {volume.name}", "volumes", {VOLUME + volume.name}, volume.bytes)
    for record in looked.build_cache:
        note(f"build cache {record.id}", "build_cache", {CACHE + record.id}, 0 if record.shared else record.bytes)
    return accounts, sizes
