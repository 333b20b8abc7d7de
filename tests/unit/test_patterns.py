# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lists of patterns: how texts are split, what is refused because it can never match, and that nothing else is."""

from __future__ import annotations

import glob
import random
import subprocess
import typing as t

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import lists, names, options, patterns, policy
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import FleetcleanError
from worlds import hexadecimal, image, sha, world

SPEC: dict[str, t.Any] = {
    "images": {"type": "dict", "options": {"keep": {"type": "list"}, "scope": {"type": "str"}}},
    "keep_labels": {"type": "list"},
    "include": {"type": "list", "choices": ["logs", "images"]},
}


def split(value: object) -> list[str]:
    """What a list becomes that was given so, below a section and above them."""
    result = lists.split_lists({"images": {"keep": value, "scope": "a, b"}, "keep_labels": value}, SPEC)
    assert result["images"]["scope"] == "a, b"
    assert result["images"]["keep"] == result["keep_labels"]
    return t.cast(t.List[str], result["keep_labels"])


def refused(option: str, *entries: object, **more: t.Any) -> str:
    with pytest.raises(FleetcleanError) as caught:
        patterns.read_list(option, entries, **more)
    assert caught.value.code == "bad_input"
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- splitting -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "entries"),
    [
        ("a", ["a"]),
        ("a, b", ["a", "b"]),
        ("team=a, fleetclean.keep", ["team=a", "fleetclean.keep"]),
        ("a\nb\n", ["a", "b"]),
        ("a\r\n\r\n b \r\n", ["a", "b"]),
        ("a,\nb,\n", ["a", "b"]),
        (" a, b, ", ["a", "b"]),
        (",a", ["a"]),
        ("\u00a0a\u00a0", ["a"]),
        ("", []),
        (" \n ", []),
        (",", []),
        ([], []),
        (["a", " b "], ["a", "b"]),
        (("a", "b"), ["a", "b"]),
        (["a\nb\n"], ["a", "b"]),
        (["team=a, b"], ["team=a, b"]),
        ([5000, 1.5], ["5000", "1.5"]),
        (5000, ["5000"]),
        ('["a", "b"]', ["a", "b"]),
        ("['a', ' b']", ["a", "b"]),
        ("[ab]*", ["[ab]*"]),
        ("[0]", ["[0]"]),
    ],
)
def test_a_list_is_split_by_commas_and_lines_and_stripped(value: object, entries: list[str]) -> None:
    assert split(value) == entries


@pytest.mark.parametrize("value", [None, ...])
def test_a_list_that_is_not_given_stays_so(value: object) -> None:
    given = {} if value is ... else {"keep_labels": value, "images": value}
    assert lists.split_lists(given, SPEC) == given


@pytest.mark.parametrize("option", ["only", "only_labels"])
def test_a_selection_without_a_value_is_refused_and_one_that_is_left_out_is_not(option: str) -> None:
    """Without it all are meant: a template that comes to nothing must not mean that."""
    with pytest.raises(FleetcleanError, match=rf"^images\.{option}: has no value; leave it out if all are meant\. Use "):
        lists.split_lists({"images": {option: None}}, options.clean_spec())
    # Also in a section that came as a text.
    for text in (f'{{"scope": "all", "{option}": null}}', f"{{'scope': 'all', '{option}': None}}"):
        with pytest.raises(FleetcleanError, match=rf"^images\.{option}: has no value"):
            lists.split_lists({"images": text}, options.clean_spec())
    assert lists.split_lists({"images": "scope=all keep=a"}, options.clean_spec()) == {"images": {"scope": "all", "keep": ["a"]}}
    assert lists.split_lists({"images": "no mapping"}, options.clean_spec()) == {"images": "no mapping"}
    variable = f"cleanup_images_{option}"
    with pytest.raises(FleetcleanError, match=f"^{variable}: has no value"):
        lists.split_lists({variable: None}, {variable: {"type": "list", "elements": "str"}})
    assert lists.split_lists({"images": {}}, options.clean_spec()) == {"images": {}}


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("a,,b", "an entry is empty"),
        ("a, ,b", "an entry is empty"),
        (["a", ""], "an entry is empty"),
        ([" "], "an entry is empty"),
        ([None], "an entry is empty"),
        ([["a"]], "an entry is a list and not a text"),
        ([{"postgres": 16}], "an entry is a mapping and not a text"),
        ({"team": "a"}, "an entry is a mapping and not a text"),
        ([True], "an entry is True (yes, no, on and off want quotes) and not a text"),
        (False, "an entry is False (yes, no, on and off want quotes) and not a text"),
    ],
)
def test_what_is_no_list_of_texts_is_refused_by_the_options_name(value: object, problem: str) -> None:
    for given, option, takes in (
        ({"images": {"keep": value}}, "images.keep", "repository:tag, repository, digests or IDs"),
        ({"keep_labels": value}, "keep_labels", "key or key=value"),
        ({"include": value}, "include", "logs, images;"),
    ):
        with pytest.raises(FleetcleanError) as caught:
            lists.split_lists(given, SPEC)
        assert str(caught.value).startswith(f"{option}: {problem}. Use {takes}")
        assert caught.value.code == "bad_input"


def test_every_list_of_the_modules_has_choices_or_is_known_by_what_it_takes() -> None:
    lists = {}
    for spec in (options.clean_spec(), options.report_spec(), options.truncate_spec()):
        for name, about in spec.items():
            lists.update({name: about} if about["type"] == "list" else {})
            lists.update({f"{name}.{inner}": found for inner, found in about.get("options", {}).items() if found["type"] == "list"})
    texts = {name: about for name, about in lists.items() if about["elements"] == "str"}
    assert {name for name, about in texts.items() if not about.get("choices")} == set(patterns._KINDS)
    assert set(lists) - set(texts) == {"assume_reclaimed"}, "records, which nobody writes by hand"


# -- what can never match --------------------------------------------------------------------------

NO_IMAGE = (
    "redis:.*", "^app", "app$", "app|db", "(x)", "app.+", r"app\d", ".*", "app:[.-]*", "a b", "a\tb", "a*b c", "app:", "/app", "registry.example/team/",
    "https://registry.example/app", "Postgres:16", "registry.example/App", "*/App", "app:1:2", "a/../b", "a//b", "app[", "'app'", '"app:1"', "app@sha256:", "app@abcd",
    "[2001:db8::1]:5000", "[^a]*", "[z-a]*", "app,db", "app\x1b", "rédis", "{{ app }}",
)
NO_NAME = ("redis:.*", "^app", "app$", "app|db", "(x)", "a+", ".*", "_a", "[.]a", "a b", "a*b c", "[vw", "[^a]*", "[!a-zA-Z0-9]*", "web,db", "'web'", "app:1", "naïve", "a\x00")
NO_LABEL = ("team a", "a b=c", "^team", "team$", "a|b", "(a)", r"team\.a", "=a", "=", '"team=a"', "te\x1bam")
NO_DRIVER = ("local|nfs", "^local", "local driver", "(local)")


@pytest.mark.parametrize(
    ("option", "entry"),
    [
        *(("images.keep", entry) for entry in NO_IMAGE),
        *((option, entry) for option in ("containers.keep", "containers", "volumes.keep") for entry in NO_NAME),
        ("containers.keep", "web/"),
        ("containers.keep", "web /db"),
        ("volumes.keep", "a/b"),
        *(("keep_labels", entry) for entry in NO_LABEL),
        *(("volumes.drivers", entry) for entry in NO_DRIVER),
    ],
)
def test_what_no_name_can_be_is_refused(option: str, entry: str) -> None:
    words = refused(option, "good", entry)
    shown = entry.replace("\x1b", "?").replace("\t", "?").replace("\x00", "?")
    assert words.startswith(f'{option}: "{shown}" cannot match any ')
    assert "regular expressions are not" in words


@pytest.mark.parametrize(
    ("option", "entries"),
    [
        (
            "images.keep",
            [
                "*", "app", "postgres:16", "app/*", "app.*", "*:1", "*/app:*", "[ab]*", "[!a]*", "app:[0-9]*", "MyRegistry/app:1", "localhost/x", "library/postgres",
                "docker.io/*", "docker.io/library/*", "index.docker.io/library/postgres:*", "registry.example:5000/team/*", "registry.example:5000", "*.example/*",
                "[2001:db8::1]:5000/app:1", "[2001:db8::1]:5000/*", "[::1]/x", "[2001:db8::*]/x", "[[]2001:db8::1]/x", "app@*", "*@*", "*@sha256:ab*", "app@sha256:abcd",
                "app:1@" + sha("x"), sha("x"), hexadecimal("x"), "0123", "sha256:0123", "sha512:" + "a" * 128, "a__b--c/d.e:X_1.-", "5000",
            ],
        ),
        ("containers.keep", ["web", "/web", "w*b", "*", "?", "[vw]eb", "B.b-_", "shop-web-1", "*/alias", "web/any thing", hexadecimal("x"), "sha256:abcd", "web.*"]),
        ("containers", ["*", "web-1"]),
        ("volumes.keep", ["db", "a..b", "x--force", "b.", "*", "[0-9a-f]*"]),
        ("networks.keep", ["a b", "../../x", "[x]*1", "w n 1", "-rf", "$(id)", "a?b", "/", "(x)", "naïve", "net[1]"]),
        ("keep_labels", ["fleetclean.keep", "a=", "a=b c", "*=a|b", "../..=/etc", "[x]*", "--filter=label!=x", "url=a=b", "x[0]", "rule=Host(`a`) && b"]),
        ("volumes.drivers", ["local", "local/*", "*", "vieux/sshfs:latest", "registry.example/driver:1"]),
        ("containers.states", ["created", "exited"]),
    ],
)
def test_what_some_name_can_be_is_taken_as_it_is(option: str, entries: list[str]) -> None:
    assert patterns.read_list(option, entries) == tuple(entries)


def test_what_comes_split_by_commas_only_is_stripped_and_split_as_well() -> None:
    # As Ansible itself splits a text.
    assert patterns.read_list("images.keep", "postgres:16, app/*\nteam/*".split(",")) == ("postgres:16", "app/*", "team/*")
    assert refused("images.keep", "a", "").startswith("images.keep: an entry is empty. Use repository:tag")


def test_blanks_around_a_labels_equals_sign_are_none_of_its_own() -> None:
    (pattern,) = patterns.read_list("keep_labels", ["team = a b= c"])
    assert pattern == "team=a b= c"
    assert names.has_label({"team": "a b= c"}, pattern)
    assert names.has_label({"team": " a b= c\n"}, pattern), "a value that has blanks at its ends can be named, too"


def test_volumes_of_other_drivers_may_be_called_anything() -> None:
    for drivers in (["*"], ["local", "elsewhere"], ["local*"]):
        assert patterns.read_list("volumes.keep", ["a b", "../x"], drivers) == ("a b", "../x")
        assert refused("volumes.keep", "", drivers=drivers)
    for drivers in ([], ["local"], ["local", " local/nfs"]):
        assert refused("volumes.keep", "a b", drivers=drivers)


# -- nothing that exists is ever refused -----------------------------------------------------------

ALPHANUMERIC = "abcxyzABCXYZ0189"


def some(dice: random.Random, characters: str, most: int = 4) -> str:
    return "".join(dice.choice(characters) for _ in range(dice.randint(1, most)))


def random_name(dice: random.Random) -> str:
    """As containers and local volumes are called."""
    return some(dice, ALPHANUMERIC, 1) + some(dice, ALPHANUMERIC + "_.-", 6)


def random_repository(dice: random.Random) -> str:
    """As github.com/distribution/reference allows."""
    path = "/".join(
        dice.choice((".", "_", "__", "-", "---")).join(some(dice, "abz019") for _ in range(dice.randint(1, 3))) for _ in range(dice.randint(1, 3))
    )
    host = dice.choice(
        ("", "", "library/", "docker.io/", "docker.io/library/", "index.docker.io/", "localhost/", "localhost:5000/", "registry.example/", "My-Registry/", "10.0.0.1:5000/",
         "[2001:db8::1]:5000/", "[::1]/", "[FE80::]:1/")
    )
    return host + (path.partition("/")[0] if host.endswith("library/") else path)


def random_tag(dice: random.Random) -> str:
    return some(dice, ALPHANUMERIC + "_", 1) + "".join(dice.choice(ALPHANUMERIC + "_.-") for _ in range(dice.randint(0, 5)))


def blurred(dice: random.Random, name: str) -> str:
    """A glob that fits the name: parts of it are ``*``, ``?`` and classes."""
    parts = []
    for char in name:
        parts.append(dice.choice((char,) * 6 + ("?", "*", f"[{char}x]" if char not in "[]^-!" else char, f"*{char}")))
    if name.startswith("["):
        parts[0] = dice.choice(("[[]", "?", "*"))
    return "".join(parts)


@pytest.mark.parametrize("seed", range(15))
def test_no_glob_of_a_name_is_refused_and_each_keeps_what_it_was_made_from(seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(50):
        name, reference = random_name(dice), f"{random_repository(dice)}:{random_tag(dice)}"
        for pattern in (name, blurred(dice, name)):
            for option in ("containers.keep", "volumes.keep"):
                assert patterns.read_list(option, [pattern]) == (pattern,)
            assert names.matches((pattern,), "", (name,)), (pattern, name)
        for pattern in (reference, blurred(dice, names.plain_name(reference))):
            assert patterns.read_list("images.keep", [pattern]) == (pattern,)
            assert names.fits_image(pattern, reference), (pattern, reference)


@pytest.mark.parametrize("seed", range(15))
def test_an_image_is_kept_by_each_of_its_own_names_and_others_go(seed: int) -> None:
    """Whatever it is called: by its name plain or escaped, without its tag, by its digest, its id, and the beginnings of both."""
    dice = random.Random(1000 + seed)
    listed = names.plain_name(random_repository(dice))
    tag = random_tag(dice)
    mine = image("mine", f"{listed}:{tag}", digests=(f"{listed}@{sha('digest')}",))
    others = [image(name, f"{name}:1") for name in ("other", "registry.other/one", "[2001:db8::2]:5000/app", "2/app", ":/app")]
    spelled = [f"{listed}:{tag}", listed, f"{glob.escape(listed)}:*", f"{listed}@{sha('digest')}", f"{listed}:{tag}@{sha('digest')}", f"{listed}@{sha('digest')[:15]}"]
    spelled += [sha("digest"), sha("digest")[:15], sha("mine"), hexadecimal("mine")[:6]]
    if names.plain_name(f"docker.io/{listed}") == listed and not listed.startswith(("localhost", "[")) and names._split_domain(listed)[0] == "docker.io":
        spelled += [f"{hub}/{listed}:{tag}" for hub in ("docker.io", "index.docker.io")] + ["docker.io/*"]
        spelled += [f"{prefix}library/{listed}" for prefix in ("", "docker.io/") if "/" not in listed]
    else:
        spelled += [f"{listed.partition('/')[0]}/*"]
    for pattern in spelled:
        (read,) = patterns.read_list("images.keep", [pattern])
        for scope in ("unused", "all"):
            plan = policy.decide(world(mine, *others), policy.Wishes(images=policy.ImageWish(scope, keep=(read,))))
            gone = {step.name for step in plan.steps}
            assert f"{listed}:{tag}" not in gone, (pattern, listed, tag)
            if pattern != "docker.io/*":
                assert len(gone) == len(others), (pattern, gone)


# -- how images are kept ---------------------------------------------------------------------------

IMAGES = (
    "postgres:16", "team/app:1", "registry.example:5000/team/app:1", "registry.example/app:1", "localhost/x:1", "[2001:db8::1]:5000/app:1", "[2001:db8::1]:5000/app:2",
    "[2001:db8::2]/app:1", "MyRegistry/app:1",
)


@pytest.mark.parametrize(
    ("pattern", "kept"),
    [
        ("*", IMAGES),
        ("docker.io/*", ("postgres:16", "team/app:1")),
        ("index.docker.io/*", ("postgres:16", "team/app:1")),
        ("docker.io/library/*", ("postgres:16",)),
        ("library/*", ("postgres:16",)),
        ("docker.io/library/*:1", ()),
        ("docker.io/postgres:16", ("postgres:16",)),
        ("docker.io/library/postgres", ("postgres:16",)),
        ("index.docker.io/library/postgres:*", ("postgres:16",)),
        ("library/postgres", ("postgres:16",)),
        ("postgres:16", ("postgres:16",)),
        ("docker.io/team/*", ("team/app:1",)),
        ("docker.io/team/app", ("team/app:1",)),
        ("team/*", ("team/app:1",)),
        ("library/app", ()),
        ("docker.io/registry.example/app", ()),
        ("registry.example:5000/team/*", ("registry.example:5000/team/app:1",)),
        ("registry.example*/*", ("registry.example:5000/team/app:1", "registry.example/app:1")),
        ("localhost/x", ("localhost/x:1",)),
        ("localhost/*", ("localhost/x:1",)),
        ("MyRegistry/*", ("MyRegistry/app:1",)),
        ("[2001:db8::1]:5000/app:1", ("[2001:db8::1]:5000/app:1",)),
        ("[2001:db8::1]:5000/app", ("[2001:db8::1]:5000/app:1", "[2001:db8::1]:5000/app:2")),
        ("[2001:db8::1]:5000/*", ("[2001:db8::1]:5000/app:1", "[2001:db8::1]:5000/app:2")),
        ("[2001:db8::1]:*/app:[!1]", ("[2001:db8::1]:5000/app:2",)),
        ("[2001:db8::*", ("[2001:db8::1]:5000/app:1", "[2001:db8::1]:5000/app:2", "[2001:db8::2]/app:1")),
        ("[2001:db8::*]*/app:1", ("[2001:db8::1]:5000/app:1", "[2001:db8::2]/app:1")),
        ("[2001:db8::?]/*", ("[2001:db8::2]/app:1",)),
        ("[[]2001:*", ("[2001:db8::1]:5000/app:1", "[2001:db8::1]:5000/app:2", "[2001:db8::2]/app:1")),
        ("*::1]:5000/app:1", ("[2001:db8::1]:5000/app:1",)),
    ],
)
def test_a_pattern_with_a_registry_fits_that_registrys_images(pattern: str, kept: tuple[str, ...]) -> None:
    here = world(*(image(name, name, digests=()) for name in IMAGES))
    plan = policy.decide(here, policy.Wishes(images=policy.ImageWish("unused", keep=(pattern,))))
    assert {entry.name for entry in plan.kept} == set(kept)


def test_an_image_without_a_tag_is_kept_by_the_repository_of_its_digest_however_that_is_written() -> None:
    here = world(*(image(name, digests=(f"{name}@{sha(name)}",)) for name in ("postgres", "[2001:db8::1]:5000/app", "registry.example/x")))
    for pattern, kept in (
        ("docker.io/library/postgres", {"postgres"}), ("docker.io/*", {"postgres"}), ("[2001:db8::1]:5000/*", {"[2001:db8::1]:5000/app"}),
        ("docker.io/library/*@sha256:*", {"postgres"}), ("[2001:db8::1]:5000/app@*", {"[2001:db8::1]:5000/app"}), ("*@*", {"postgres", "[2001:db8::1]:5000/app", "registry.example/x"}),
    ):
        plan = policy.decide(here, policy.Wishes(images=policy.ImageWish(keep=(pattern,))))
        assert {entry.name.partition("@")[0] for entry in plan.kept} == kept, pattern


def test_the_newest_of_a_repository_are_counted_for_ipv6_registries_too() -> None:
    tags = [f"[2001:db8::1]:5000/app:{number}" for number in (1, 2, 3)]
    here = world(*(image(tag, tag, created=100 - number) for number, tag in enumerate(tags)))
    plan = policy.decide(here, policy.Wishes(images=policy.ImageWish("unused", keep_latest=1)))
    assert [(entry.name, entry.reason) for entry in plan.kept] == [(tags[2], "the newest 1 of [2001:db8::1]:5000/app")]


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("docker.io/library/app:1", "app:1"), ("index.docker.io/library/app", "app"), ("library/app", "app"), ("docker.io/team/app", "team/app"), ("docker.io/app", "app"),
        ("library/team/app", "library/team/app"), ("registry.example/library/app", "registry.example/library/app"), ("[::1]/library/app", "[::1]/library/app"), ("app", "app"),
    ],
)
def test_docker_hubs_names_are_short_and_others_stay(name: str, plain: str) -> None:
    assert names.plain_name(name) == plain


def test_a_name_with_blanks_or_slashes_at_its_ends_can_be_kept() -> None:
    assert names.matches(("x",), "", ("\nx ",))
    assert names.matches(("x*",), "", (" x1",))
    assert names.matches(("/",), "", ("/",))
    assert names.matches(("/a[1]",), "", ("/a[1]",))
    assert not names.matches(("x",), "", ("x y",))


def test_a_glob_that_is_none_fits_nothing_and_breaks_nothing() -> None:
    # Python before 3.11 has an error for it.
    assert not names.matches(("[z-a]*",), "", ("b",))
    assert names.matches(("[z-a]*",), "", ("[z-a]*",))


#: Globs as fnmatch has them, and one that fits in as many ways as there are to share a text among its stars.
GLOBS = """
import importlib.util, itertools, re, sys, time
from fnmatch import fnmatchcase
spec = importlib.util.spec_from_file_location("names", sys.argv[1])
names = importlib.util.module_from_spec(spec)
spec.loader.exec_module(names)
parts = ["", "a", "b", "*", "?", "[ab]", "[!a]", "[b-a]", "[", "]", "[]]", "[*]"]
for pattern in map("".join, itertools.product(parts, repeat=3)):
    for name in ("", "a", "b", "ab", "a]", "[a", "*", "aab", "[", "ba\\n"):
        try:
            expected = fnmatchcase(name, pattern)
        except re.error:
            expected = False
        assert names.glob_fits(pattern, name) == expected, (pattern, name, expected)
begun = time.monotonic()
assert not names.glob_fits("*a" * 30 + "*b", "a" * 10000)
assert names.has_label({"tier": "a" * 10000 + "b"}, "t*=" + "*a" * 30 + "*b")
assert time.monotonic() - begun < 2
"""


def test_a_glob_is_what_it_is_to_fnmatch_and_takes_no_time_in_any_python(python: str) -> None:
    """Before 3.9 fnmatch tries every way of sharing a text among the stars, and label values are what an image's author wants."""
    answer = subprocess.run([python, "-I", "-B", "-c", GLOBS, names.__file__], capture_output=True, text=True, timeout=20, check=False)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_is_no_number_is_refused_before_ansible_makes_one_of_it(value: float) -> None:
    spec: dict[str, t.Any] = {"top": {"type": "int"}, "images": {"type": "dict", "options": {"keep_latest": {"type": "int"}}}}
    for given, option in (({"top": value}, "top"), ({"images": {"keep_latest": value}}, "images.keep_latest")):
        with pytest.raises(FleetcleanError, match=f"^{option}: .* is no whole number") as refused:
            lists.split_lists(given, spec)
        assert refused.value.code == "bad_input"
    assert lists.split_lists({"top": 3.0}, spec) == {"top": 3.0}
