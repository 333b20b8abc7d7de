# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Accounts, paths and sizes that stand in columns are what objects, a dict of paths, and a dict of sizes would be."""

from __future__ import annotations

import os
import random
import sys
import tracemalloc
import typing as t

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import walk
from ansible_collections.fleetclean.docker.plugins.module_utils.accounts import CONTAINER, IMAGE, NOBODY, Account, Accounts, Paths
from ansible_collections.fleetclean.docker.plugins.module_utils.walk import Figures, Key, Sizes

# -- accounts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_accounts_are_what_was_noted_last_under_each_name(seed: int) -> None:
    dice = random.Random(seed)
    accounts, expected = Accounts(), {}
    for _step in range(60):
        kind, ident = dice.choice(("layer", "log of", "engine")), dice.choice(("", "one", "two words", "in /x"))
        name = f"{kind} {ident}".rstrip()
        number = accounts.find(kind, ident)
        if dice.random() < 0.2:
            if number is not None:
                accounts.drop(number)
                del expected[name]
            continue
        holders = frozenset(dice.sample(("image:a", "image:b", "container:a", "engine:"), dice.randrange(4)))
        account = Account(dice.choice(("images", "logs")), holders, dice.random() < 0.5, dice.choice(("", "words")), dice.choice(("", "8:1")))
        number = accounts.add(kind, ident, account.category, accounts.group_of_names(*holders), account.final, account.words)
        accounts.set_disk(number, account.disk)
        expected[name] = account
    assert {accounts.name(number): accounts[number] for number in accounts} == expected
    assert len(accounts) == len(expected) == len(list(accounts.values()))
    for category in ("images", "logs"):
        assert {accounts.name(number) for number in accounts.of_category(category)} == {n for n, a in expected.items() if a.category == category}
    for number in accounts:
        assert accounts.find(*accounts.parts(number)) == number
    assert accounts.find("layer", "three") is None


def test_the_same_holders_are_one_group_in_any_order() -> None:
    accounts = Accounts()
    one, both = accounts.group_of_names("image:a"), accounts.group_of_names("image:a", "container:c")
    assert accounts.group_of_names() == accounts.union(()) == NOBODY
    assert accounts.group_of_names("container:c", "image:a", "image:a") == both == accounts.union((one, accounts.group_of_names("container:c"), NOBODY))
    assert accounts.union((one, NOBODY)) == one and accounts.size_of_group(both) == 2
    assert {accounts.holder_name(holder) for holder in accounts.members(both)} == {"image:a", "container:c"}
    assert accounts.kinds_in(both) == {IMAGE, CONTAINER}
    assert accounts.find_holder("image:never") is None and accounts.holder_count == 2, "whoever asks makes no holder"


# -- paths -----------------------------------------------------------------------------------------------------------------


def random_paths(dice: random.Random) -> tuple[Paths[int], dict[str, int]]:
    paths: Paths[int] = Paths()
    expected: dict[str, int] = {}
    for number in range(dice.randrange(30)):
        folder, name = dice.choice(("/d", "/d/containers", "/d/containers/a", "")), dice.choice(("a", "b", "containers", "a-json.log"))
        paths.put(folder, name, number)
        expected[f"{folder}/{name}"] = number
    for number, name in enumerate(dice.sample(("a", "b", "c"), dice.randrange(4)), 100):
        forms = tuple(dice.sample(("{0}-json.log", "{0}-json.log.1", "local-logs/container.log", "container-cached.log"), dice.randint(1, 4)))
        paths.add_files("/d/containers", name, forms, number)
        for form in forms:
            expected.setdefault(f"/d/containers/{name}/{form.replace('{0}', name)}", number)
    return paths, expected


@pytest.mark.parametrize("seed", range(60))
def test_paths_by_folder_are_what_a_dict_of_paths_is(seed: int) -> None:
    paths, expected = random_paths(random.Random(seed))
    assert set(paths) == set(expected) and {path: paths[path] for path in paths} == expected
    others = {f"{path}{more}" for path in (*expected, "/d", "/d/containers/c") for more in ("", "/", "/a", "/a-json.log", ".1")} - set(expected)
    assert [path for path in others if path in paths or paths.get(path) is not None] == []
    with pytest.raises(KeyError):
        paths["/never"]
    assert set(paths.numbers()) >= set(expected.values())
    paths.clear()
    assert not list(paths)


@pytest.mark.parametrize("seed", range(60))
def test_the_walk_finds_the_folders_above_them_as_it_does_those_of_a_dict(seed: int) -> None:
    paths, expected = random_paths(random.Random(seed))
    compact, plain = (walk._Work([], owners, {}, (), {})._plan for owners in (paths, expected))
    folders = {path[:at] or "/" for path in (*expected, "/d/containers/c/local-logs/x/y", "/e/f/") for at, sign in enumerate(path) if sign == "/"}
    # More than one of the folders above none is looked into with care, which costs time alone.
    assert {folder for folder in folders if folder in plain.parents} <= {folder for folder in folders if folder in compact.parents} <= (
        {folder for folder in folders if folder in plain.parents} | {"/d/containers"}
    )
    assert {folder for folder in folders if folder in compact.above} - {folder for folder in folders if folder in plain.above} <= {"/d", "/d/containers"}
    assert {folder for folder in folders if folder in plain.above} <= {folder for folder in folders if folder in compact.above}
    assert None not in compact.above and None not in compact.parents


def test_files_of_each_container_take_no_texts_of_their_own() -> None:
    ids = [f"{number:064x}" for number in range(5000)]
    forms = ("{0}-json.log", "local-logs/container.log")
    paths: Paths[int] = Paths()
    tracemalloc.start()
    for number, ident in enumerate(ids):
        paths.put("/var/lib/docker/containers", ident, number)
        paths.add_files("/var/lib/docker/containers", ident, forms, number)
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert taken < 5000 * 160, "three paths of each in less than the text of one takes"
    assert len(paths) == 15_000 and paths[f"/var/lib/docker/containers/{ids[7]}/{ids[7]}-json.log"] == 7


# -- sizes -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("few", [0, 3, 500])
@pytest.mark.parametrize("seed", range(20))
def test_sizes_in_columns_are_what_a_dict_of_sizes_is(seed: int, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "_FEW", few)
    dice = random.Random(seed)
    figures, expected = Figures(), t.cast("dict[Key, Sizes]", {})
    for _step in range(80):
        key: Key = dice.choice((0, 1, 2, 70, 4000, "/nobody's"))
        its = Sizes(dice.randrange(-9, 99), dice.choice((1, 2**40, 2**63 - 1, 2**70)), 3, dice.randrange(99), 1)
        what = dice.random()
        if what < 0.7:
            figures.add(key, its)
            expected.setdefault(key, Sizes()).add(its)
        elif what < 0.85:
            figures[key] = its
            expected[key] = its.copy()
        elif key in expected:
            del figures[key]
            del expected[key]
        its.add(Sizes(1, 1, 1, 1, 1))  # what was given is not kept
    assert dict(figures) == expected and len(figures) == len(expected) and bool(figures) == bool(expected)
    total = Sizes()
    for its in expected.values():
        total.add(its)
    assert figures.total() == total
    copied = figures.copy()
    copied.add(1, Sizes(5))
    assert dict(figures) == expected and (1 not in expected or copied[1].disk == expected[1].disk + 5)
    figures.get(1, Sizes()).add(Sizes(7))
    assert dict(figures) == expected, "what is read is a copy"
    again = Figures()
    again.unpack(figures.packed())
    for key, its in figures.items():  # what does not fit stayed
        again.add(key, its)
    assert dict(again) == expected


def test_sizes_of_thousands_take_few_bytes() -> None:
    figures = Figures()
    tracemalloc.start()
    for number in range(20_000):
        figures.add(number, Sizes(number * 4096, number, 0, number * 4096, 9))
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert taken < 20_000 * 50
    assert sys.getsizeof(Sizes()) > 50 and figures[19_999] == Sizes(19_999 * 4096, 19_999, 0, 19_999 * 4096, 9)


def test_the_units_of_a_walk_are_made_as_they_are_asked_for() -> None:
    from ansible_collections.fleetclean.docker.plugins.module_utils.attribution import _Units

    units = _Units()
    units.first.append(walk.Unit(("/", "/var")))
    for name in "abc":
        units.add("/d", name)
    expected = [walk.Unit(("/", "/var")), walk.Unit(("/d/a",)), walk.Unit(("/d/b",)), walk.Unit(("/d/c",))]
    assert list(units) == units[:] == expected and len(units) == 4 and units[1:3] == expected[1:3]
    assert os.path.basename(units[3].paths[0]) == "c"
