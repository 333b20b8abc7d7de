# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who holds which bytes: laws that hold for any holders and sizes, and the few cases that people ask about."""

from __future__ import annotations

import pickle
import random

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils.accounts import Account
from ansible_collections.fleetclean.docker.plugins.module_utils.ledger import Ledger
from ansible_collections.fleetclean.docker.plugins.module_utils.leftovers import Entry
from ansible_collections.fleetclean.docker.plugins.module_utils.walk import Sizes
from ledgers import ledger_of

CATEGORIES = ("images", "containers", "build_cache", "leftovers")


def random_ledger(dice: random.Random) -> tuple[Ledger, dict[str, Account], dict[str, Sizes], list[str]]:
    holders = [f"image:{number}" for number in range(dice.randint(1, 6))] + [f"container:{number}" for number in range(dice.randint(0, 4))]
    accounts, sizes = {}, {}
    for number in range(dice.randint(0, 20)):
        name = f"account {number}"
        held = frozenset(dice.sample(holders, min(len(holders), dice.choice((0, 1, 1, 2, 9)))))
        accounts[name] = Account(dice.choice(CATEGORIES), held)
        if dice.random() < 0.9:  # of some nobody knows a size
            disk = dice.randrange(1000)
            sizes[name] = Sizes(disk, dice.randrange(1000), dice.randrange(disk + 1), dice.randrange(1000), dice.randrange(9))
    return ledger_of(accounts, sizes), accounts, sizes, holders


@pytest.mark.parametrize("seed", range(60))
def test_with_everybody_goes_all_that_anybody_holds(seed: int) -> None:
    ledger, accounts, sizes, holders = random_ledger(random.Random(seed))
    held = sum(sizes[name].frees for name, account in accounts.items() if account.holders and name in sizes)
    assert ledger.freed(holders) == held
    assert ledger.freed([]) == 0


@pytest.mark.parametrize("seed", range(60))
def test_one_after_the_other_frees_what_all_at_once_do(seed: int) -> None:
    dice = random.Random(seed)
    ledger, _accounts, _sizes, holders = random_ledger(dice)
    gone = dice.sample(holders, dice.randint(0, len(holders)))
    in_turn = ledger.freed_in_turn(gone)
    assert len(in_turn) == len(gone)
    assert sum(in_turn) == ledger.freed(gone)
    # And in any order the same in the end.
    dice.shuffle(gone)
    assert ledger.freed(gone) == sum(in_turn)
    # Each step frees what more is free with it than without.
    assert [ledger.freed(gone[: number + 1]) - ledger.freed(gone[:number]) for number in range(len(gone))] == ledger.freed_in_turn(gone)


@pytest.mark.parametrize("seed", range(60))
def test_alone_frees_no_more_than_it_holds_and_just_what_it_frees_by_itself(seed: int) -> None:
    ledger, _accounts, _sizes, holders = random_ledger(random.Random(seed))
    for holder in holders:
        assert ledger.alone(holder) == ledger.freed([holder]) <= ledger.of(holder).frees
        for other in holders:
            assert ledger.alone(holder, other) == ledger.freed([holder, other])
    # Together they free at least what each frees alone.
    assert ledger.freed(holders) >= sum(ledger.alone(holder) for holder in holders)


@pytest.mark.parametrize("seed", range(60))
def test_who_goes_twice_frees_nothing_more(seed: int) -> None:
    dice = random.Random(seed)
    ledger, _accounts, _sizes, holders = random_ledger(dice)
    gone = [dice.choice(holders) for _ in range(12)]
    once = list(dict.fromkeys(gone))
    assert ledger.freed(gone) == ledger.freed(once)
    again = [figure for number, figure in enumerate(ledger.freed_in_turn(gone)) if gone[number] in gone[:number]]
    assert set(again) <= {0}


@pytest.mark.parametrize("seed", range(30))
def test_categories_have_everything_once(seed: int) -> None:
    ledger, _accounts, sizes, _holders = random_ledger(random.Random(seed))
    for what in ("disk", "apparent", "shared", "frees", "inodes"):
        total = sum(getattr(ledger.in_category(category), what) for category in CATEGORIES)
        assert total == sum(getattr(each, what) for each in sizes.values())


@pytest.mark.parametrize("seed", range(30))
def test_what_an_object_holds_is_the_sum_over_the_categories(seed: int) -> None:
    ledger, _accounts, _sizes, holders = random_ledger(random.Random(seed))
    for holder in holders:
        total = Sizes()
        for category in CATEGORIES:
            total.add(ledger.of_category(holder, category))
        assert total == ledger.of(holder)


BASE = Account("images", frozenset({"image:a", "image:b"}))
ACCOUNTS = {
    "base": BASE,
    "top of a": Account("images", frozenset({"image:a"})),
    "top of b": Account("images", frozenset({"image:b", "container:c"})),
    "writable": Account("containers", frozenset({"container:c"})),
    "database": Account("engine_metadata"),
}
SIZES = {name: Sizes(disk=10 * figure, frees=figure) for name, figure in zip(ACCOUNTS, (1, 2, 4, 8, 16))}


def test_a_layer_of_two_images_goes_with_the_second() -> None:
    ledger = ledger_of(ACCOUNTS, SIZES)
    assert ledger.freed_in_turn(["image:a", "container:c", "image:b"]) == [2, 8, 1 + 4]
    assert ledger.freed_in_turn(["image:b", "image:a"]) == [0, 1 + 2]
    assert [ledger.alone(who) for who in ("image:a", "image:b", "container:c")] == [2, 0, 8]
    assert ledger.of("image:b").disk == 50


def test_what_nobody_holds_never_goes() -> None:
    ledger = ledger_of(ACCOUNTS, SIZES)
    assert ledger.freed(["image:a", "image:b", "container:c", "database", ""]) == 15


def test_an_object_that_nobody_knows_holds_and_frees_nothing() -> None:
    ledger = ledger_of(ACCOUNTS, SIZES)
    assert ledger.freed_in_turn(["image:never", "image:a"]) == [0, 2]
    assert (ledger.alone("image:never"), ledger.of("image:never"), ledger.of_category("image:never", "images")) == (0, Sizes(), Sizes())


def test_an_account_without_a_size_is_empty_and_a_size_without_an_account_is_nobodys() -> None:
    ledger = ledger_of(ACCOUNTS, {"stranger": Sizes(disk=7, frees=7)})
    assert ledger.freed(["image:a", "image:b", "container:c"]) == 0
    assert sum(ledger.in_category(category).disk for category in ("images", "containers", "engine_metadata")) == 0


def test_sums_are_new_and_change_no_account() -> None:
    ledger = ledger_of(ACCOUNTS, SIZES)
    ledger.of("image:a").add(Sizes(disk=1000))
    ledger.in_category("images").disk += 1000
    assert ledger.of("image:a").disk == 30
    assert ledger.in_category("images").disk == 70


def test_what_comes_free_is_told_by_filesystem() -> None:
    accounts = {
        "layer": Account("images", frozenset({"image:a", "container:c"}), disk="images"),
        "top": Account("images", frozenset({"image:a"}), disk="images"),
        "log": Account("logs", frozenset({"container:c"}), disk="data"),
        "empty": Account("containers", frozenset({"container:c"}), disk="elsewhere"),
    }
    ledger = ledger_of(accounts, {"layer": Sizes(frees=1, inodes=1), "top": Sizes(frees=2), "log": Sizes(frees=4)})
    assert [set(ledger.disks(holder)) for holder in ("container:c", "image:a", "image:never")] == [{"images", "data"}, {"images"}, set()]
    go = ledger.turns()
    assert {disk: sizes.frees for disk, sizes in go("image:a").items()} == {"images": 2}
    assert {disk: sizes.frees for disk, sizes in go("container:c").items() if sizes.frees} == {"images": 1, "data": 4}
    assert go("container:c") == {}


def test_what_came_free_already_does_not_come_free_again() -> None:
    ledger = ledger_of(ACCOUNTS, SIZES).reduced({("writable", ""): 5, ("top of a", ""): 99, ("stranger", ""): 7})
    assert ledger.freed_in_turn(["image:a", "container:c"]) == [0, 3]
    assert ledger_of(ACCOUNTS, SIZES).freed_in_turn(["image:a", "container:c"]) == [2, 8]


# -- small objects ---------------------------------------------------------------------------------------------


def test_objects_of_which_there_are_many_have_no_dictionary() -> None:
    for each in (Account("images", frozenset(("x",))), Entry("/x", "layer", 1.0, True)):
        assert not hasattr(each, "__dict__")
    assert Account("images")._replace(disk="8:1") == Account("images", disk="8:1")
    assert pickle.loads(pickle.dumps(Sizes(1, 2))) == Sizes(1, 2)
    with pytest.raises(AttributeError):
        Account("images").disk = "x"  # type: ignore[misc]
