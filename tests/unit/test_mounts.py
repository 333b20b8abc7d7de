# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Places: one name for one folder, however it is reached."""

from __future__ import annotations

import os
import subprocess
import typing as t
from contextlib import contextmanager
from pathlib import Path

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import mounts, processes

from tests import attacker

OWN = r"""22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw
23 22 8:17 / /var/lib/docker rw shared:2 - xfs /dev/sdb1 rw
24 23 8:1 /srv/i /var/lib/docker/volumes/data/_data/sub\040folder rw shared:1 - ext4 /dev/sda1 rw
25 22 8:17 /volumes/other/_data /srv/ftp rw - xfs /dev/sdb1 rw
26 22 0:50 / /mnt/with\134slash rw - tmpfs none rw
27 22 8:17 /volumes/gone//deleted /srv/gone rw - xfs /dev/sdb1 rw
no line of a mount table
"""
CONTAINER = """40 39 0:60 / / rw - overlay overlay rw
41 40 8:17 /volumes/used/_data /data rw - xfs /dev/sdb1 rw
42 41 0:61 / /data/cache rw - tmpfs tmpfs rw
43 40 8:17 /containers/abc/hosts /etc/hosts rw - xfs /dev/sdb1 rw
"""
A = "a" * 64


@pytest.fixture()
def table() -> mounts.Table:
    return mounts.Table(OWN, [(CONTAINER, (A,))])


def by_path(table: mounts.Table, path: str) -> mounts.Mount:
    (found,) = [mount for mount in table.mounts if mount.path == path]
    return found


def test_a_mount_covers_one_place_and_shows_another(table: mounts.Table) -> None:
    below = by_path(table, "/var/lib/docker/volumes/data/_data/sub folder")
    assert (below.at, below.shows, below.containers) == ("8:17 /volumes/data/_data/sub folder", "8:1 /srv/i", ())
    assert by_path(table, "/srv/ftp").shows == "8:17 /volumes/other/_data"
    assert by_path(table, r"/mnt/with\slash").at == r"8:1 /mnt/with\slash"
    assert by_path(table, "/srv/gone").shows == "8:17 /volumes/gone"
    assert [mount.at for mount in table.mounts if mount.path == "/"] == [None, None]


def test_a_mount_in_another_namespace_covers_its_place_on_the_filesystem(table: mounts.Table) -> None:
    inside = by_path(table, "/data/cache")
    assert (inside.at, inside.containers, inside.root) == ("8:17 /volumes/used/_data/cache", (A,), "0:60 /")
    assert by_path(table, "/data").shows == "8:17 /volumes/used/_data"


def test_a_path_has_one_place_whatever_leads_to_it(tmp_path: Path) -> None:
    real = os.path.realpath(tmp_path)
    (tmp_path / "volumes/a").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "volumes")
    table = mounts.Table(f"1 0 8:1 / / rw - ext4 x rw\n2 1 8:2 /deep {real}/volumes rw - ext4 y rw\n3 1 8:2 /deep/b /srv/b rw - ext4 y rw\n")
    assert table.place(f"{tmp_path}/link/a/not-there") == "8:2 /deep/a/not-there"
    assert table.place(f"{tmp_path}/volumes") == "8:2 /deep"
    assert table.place("/") == "8:1 /"
    assert table.path("8:2 /deep/b/x") == "/srv/b/x"
    assert table.path("8:9 /") is None


def test_the_mounts_of_this_machine_can_be_read() -> None:
    table = mounts.collect()
    assert table.path(table.place("/proc")) == "/proc"
    assert any(mount.path == "/" and mount.at is None for mount in table.mounts)


def test_below_and_ancestors() -> None:
    assert list(mounts.ancestors("8:1 /a/b")) == ["8:1 /a/b", "8:1 /a", "8:1 /"]
    assert list(mounts.ancestors("/a")) == ["/a", "/"]
    assert [mounts.below(path, "/a") for path in ("/a", "/a/b", "/ab", "/")] == [True, True, False, False]
    assert mounts.below("/a", "/")


@contextmanager
def shell(*before: str) -> t.Iterator[None]:
    """A process in a mount namespace of its own, with a mount of that name."""
    script = f"mount -t tmpfs {before[-1]} /mnt && echo on && read line"
    with subprocess.Popen([*before[:-1], "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "on\n"
        yield


def test_of_what_users_mount_for_themselves_no_more_than_a_bound_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """They may have a hundred thousand mounts in each of as many namespaces."""
    if not attacker.works():
        pytest.skip("not here: no user namespaces for users")
    by_root = ("unshare", "--user", "--map-root-user", "--mount", "of-roots")
    with shell(*attacker.IN_USER_NAMESPACE, "of-a-users"), shell(*by_root), shell("unshare", "--mount", "in-roots"):
        def sources(**more: t.Any) -> set[str]:
            return {mount.source for mount in mounts.collect(**more).mounts} & {"of-a-users", "of-roots", "in-roots"}

        assert sources() == {"of-a-users", "of-roots", "in-roots"}
        assert {namespace.is_users for namespace in mounts.collect().namespaces if "of-roots" in namespace.text or "of-a-users" in namespace.text} == {True}
        monkeypatch.setattr(mounts, "_MOST_OF_USERS", 100)
        assert sources() == {"of-roots", "in-roots"}
        assert sources(owners={attacker.USER}) == {"of-a-users", "of-roots", "in-roots"}, "an engine without root is such a user"


def test_who_made_a_user_namespace_is_the_kernels_word() -> None:
    if not attacker.works():
        pytest.skip("not here: no user namespaces for users")
    attack = attacker.Attacker("+/x")
    try:
        assert processes.user_namespace_owner(attack.pid) == attacker.USER
        assert processes.user_namespace(attack.pid) != processes.user_namespace(os.getpid()) != ""
    finally:
        attack.end()
    assert processes.user_namespace_owner(1 << 22) is None
