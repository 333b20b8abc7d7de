# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docker_log_truncate under the hands of those who write and read: on each filesystem and engine the logs of ten containers that print
all the time are cut ten times, 50 cuts under fast writers and 50 under slow ones. Then the file itself, `docker logs`, its followers and
a log shipper are asked for what they have seen, and it has to be what the results said.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple

import pytest

from tests.fleet import Fleet, Host, HostSpec
from tests.integration.loglines import FAST, SLOW, Cutter, Follower, Line, Pace, Shipper, Stored, Writer, by_name, faults, missing, said, seconds_of, stored
from tests.integration.support import start
from tests.integration.things import base, until

ROUNDS, EACH = 10, 5
KEEP, LESS = 1 << 20, 1 << 19
#: What a log has to have grown by for a cut to be worth while everywhere: fillers come in whole pieces, and lines are long.
GROWTH = 200 * 1000
#: Fillers begin at multiples of this.
GRAIN = 1 << 16
#: What may stay above what is to be kept, for the same reason.
PIECE = 1 << 17
LOCAL = {"Type": "local", "Config": {"max-size": "200m", "max-file": "1", "compress": "false"}}
#: Each engine writes the driver local on another filesystem.
WITH_LOCAL = {("bullseye", "xfs"), ("trixie", "ext4"), ("forky", "btrfs")}
#: What may be started again where readers stay stale. No engine has live-restore at first.
CURES = {"trixie": {"restart": "containers"}, "forky": {"restart": "engine", "live_restore": "enable"}}
CASES = [(root, filesystem) for root in ("bullseye", "trixie", "forky") for filesystem in ("ext4", "xfs", "btrfs")]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def fleet(here: None, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    root, filesystem = request.param
    with start([HostSpec("live", filesystem, root=root, ssh=False)]) as hosts:
        if not len(hosts):
            pytest.skip(f"the root {root} is not made (make roots)")
        yield hosts


class Live:
    """A host's writers, what was done to their logs, and all that was seen of them meanwhile.

    ``fast`` and ``slow`` print all the time, ``turn`` is quiet while it is cut: who follows it has read all of it by then, as nobody can be
    sure to have with the others. ``local`` are the two of that driver, ``files`` all of json-file. By writer's name: ``entries`` of the
    module's results, ``cuts`` the first line that each kept, ``followers`` and ``shippers`` that began before the first, ``wrong`` what was
    wrong with the file after one of them.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.root, self.filesystem = host.spec.root, str(host.spec.filesystem)
        self.cutter = Cutter(host)
        image = base(host)
        kinds: List[Tuple[str, Pace, Any]] = [("fast", FAST, None)] * EACH + [("slow", SLOW, None)] * EACH + [("turn", SLOW, None)]
        if (self.root, self.filesystem) in WITH_LOCAL:
            kinds += [("local", FAST, LOCAL), ("local", SLOW, LOCAL)]
        with ThreadPoolExecutor(4) as pool:
            self.all = list(pool.map(lambda number, kind: Writer(host, f"{kind[0]}-{number}", image, *kind[1:]), range(len(kinds)), kinds))
        self.fast, self.slow, self.turn, self.local = self.all[:EACH], self.all[EACH:2 * EACH], self.all[2 * EACH], self.all[2 * EACH + 1:]
        self.files = [*self.fast, *self.slow, self.turn]
        self.entries: Dict[str, List[Mapping[str, Any]]] = {writer.name: [] for writer in self.all}
        self.cuts: Dict[str, List[Line]] = {writer.name: [] for writer in self.all}
        self.wrong: Dict[str, List[str]] = {writer.name: [] for writer in self.all}
        # A reader that has not come to the end of a file that becomes shorter goes on somewhere in the middle of it: such a one proves nothing.
        followed = [self.turn] if self.shorter else self.some
        for writer in self.all:
            until(lambda writer=writer: _size(writer) >= KEEP)
        self.followers = {writer.name: Follower(writer) for writer in followed if self.can_be_followed(writer)}
        self.shippers = {writer.name: Shipper(writer.path) for writer in followed}
        self._sizes: Dict[str, int] = {}
        self._begins: Dict[str, int] = {}

    def processes(self) -> List[Any]:
        """Each container's process, and since when it runs."""
        states = [self.host.must("GET", f"/containers/{writer.ident}/json")["State"] for writer in self.all]
        return [(state["Pid"], state["StartedAt"]) for state in states]

    @property
    def some(self) -> List[Writer]:
        """One writer of each kind of json-file: what reads through all fillers of all logs would take long."""
        return [self.fast[0], self.slow[0], self.turn]

    def named(self, name: str) -> Writer:
        return next(writer for writer in self.all if writer.name == name)

    def can_be_followed(self, writer: Writer) -> bool:
        """Whether `docker logs -f` lives long: engine 20.10.5 ends it ("unexpected EOF") as soon as it meets half a line, without any cut."""
        return self.root != "bullseye" or writer.pace is SLOW

    @property
    def shorter(self) -> bool:
        """Whether a json-file log becomes shorter when it is cut here."""
        return self.filesystem == "ext4" or (self.filesystem == "xfs" and self.root == "bullseye")

    @property
    def stale(self) -> bool:
        """Whether this engine's readers suffer from it."""
        return self.shorter and self.root != "bullseye"

    @property
    def repeats(self) -> bool:
        """Whether this engine's followers see again what was kept."""
        return self.shorter and self.root == "bullseye"

    def wait_for_growth(self) -> None:
        """Wait until there is something to be cut of each log."""
        for writer in self.all:
            until(lambda writer=writer: _size(writer) >= self._sizes.get(writer.name, KEEP) + GROWTH)

    def cut_in_turn(self, keep: int) -> None:
        """Cut all logs, one of them when those who follow it have read all of it."""
        self.turn.hush()
        last = self.turn.last()
        follower, shipper = self.followers[self.turn.name], self.shippers[self.turn.name]
        if not self.stale or not self.cuts[self.turn.name]:
            until(lambda: follower.has(last))
        until(lambda: shipper.has(last))
        read = len(shipper.lines)
        self.cut(keep)
        if self.stale:
            # It would hang, and keep the engine busy.
            follower.stop()
        if self.shorter:
            until(lambda: len(shipper.lines) == read + len(stored(self.turn.path).lines))

    def cut(self, keep: int, writers: Optional[List[Writer]] = None, **options: Any) -> Dict[str, Any]:
        """Let the module cut these logs, else all, and look at each."""
        wanted = self.all if writers is None else writers
        # Each cut is looked at, also those that leave readers stale.
        result = self.cutter.run(containers=[writer.name for writer in wanted], keep=str(keep), stale_readers="allow", **options)
        entries = by_name(result)
        assert sorted(entries) == sorted(writer.name for writer in wanted), result
        for writer in wanted:
            self.entries[writer.name].append(entries[writer.name])
            self._sizes[writer.name] = _size(writer)
            if writer in self.files:
                self._look_at(writer, keep)
            else:
                lines, torn = said(writer)
                self.cuts[writer.name].append(lines[0])
                self._judge(writer, lines, torn, keep)
        return result

    def _look_at(self, writer: Writer, keep: int) -> None:
        found = self.stored(writer)
        # What was covered stays so: there is no need to read it all again each time. (Fillers may begin where only blanks were.)
        self._begins[writer.name] = 0 if self.shorter else found.begin // GRAIN * GRAIN
        self.cuts[writer.name].append(found.lines[0])
        self._judge(writer, found.lines, found.torn, keep)
        if found.text_bytes < keep - writer.pace.longest:
            self.wrong[writer.name].append(f"{found.text_bytes} bytes are left")

    def _judge(self, writer: Writer, lines: List[Line], torn: List[bytes], keep: int) -> None:
        wrong = self.wrong[writer.name]
        wrong += faults(lines)
        wrong += [f"torn: {line!r}" for line in torn]
        if len(lines) * writer.pace.longest < keep - writer.pace.longest:
            wrong.append(f"{len(lines)} lines are left")

    def stored(self, writer: Writer) -> Stored:
        """A writer's file from where the fillers ended when it was last looked at."""
        return stored(writer.path, self._begins.get(writer.name, 0))

    def hush(self) -> None:
        """Let nobody print any more; wait until all of it is in the logs."""
        for writer in self.all:
            writer.hush()
        for writer in self.files:
            last = writer.last()
            until(lambda writer=writer, last=last: self.stored(writer).lines[-1:] == [last])
        for writer in self.local:
            last = writer.last()
            until(lambda writer=writer, last=last: said(writer)[0][-1:] == [last])

    def go_on(self) -> None:
        """Let everybody print for a while."""
        sizes = {writer.name: _size(writer) for writer in self.all}
        for writer in self.all:
            writer.go_on()
        for writer in self.all:
            until(lambda writer=writer: _size(writer) >= sizes[writer.name] + GROWTH)
        self.hush()

    def stop(self) -> None:
        self.cutter.stop()
        for reader in (*self.followers.values(), *self.shippers.values()):
            reader.stop()


def _size(writer: Writer) -> int:
    """Bytes of its log, fillers included."""
    path = writer.path if writer.path.exists() else writer.path.parent / "local-logs/container.log"
    return path.stat().st_size if path.exists() else 0


@pytest.fixture(scope="module")
def live(fleet: Fleet) -> Iterator[Live]:
    host = Live(fleet["live"])
    try:
        for _round in range(ROUNDS):
            host.wait_for_growth()
            host.cut_in_turn(KEEP)
            host.turn.go_on()
        # The last one under nobody's hands, so that what stays can be told to the byte.
        host.wait_for_growth()
        host.hush()
        host.cut_in_turn(LESS)
        yield host
    finally:
        host.stop()


def test_a_log_is_cut_as_the_filesystem_and_the_engine_allow(live: Live) -> None:
    for writer in live.files:
        entries = live.entries[writer.name]
        assert {entry["method"] for entry in entries} == {"collapse" if live.shorter else "clone"}
        assert {entry["driver"] for entry in entries} == {"json-file"}
        assert {entry["readers"] for entry in entries} <= ({"stale"} if live.stale else {"ok", "slow"})
        assert {entry["repeats"] for entry in entries} == {live.shorter}


def test_no_line_is_lost_or_doubled_or_torn_by_any_cut(live: Live) -> None:
    assert {name: wrong for name, wrong in live.wrong.items() if wrong} == {}
    for writer in live.files:
        # All of the file, with the fillers of all cuts.
        found = stored(writer.path)
        assert found.torn == []
        assert faults(found.lines) == []
        assert found.lines[-1] == writer.last()


def test_what_is_to_be_kept_is_kept_and_little_more(live: Live) -> None:
    for writer in live.files:
        last = live.entries[writer.name][-1]
        found = live.stored(writer)
        assert LESS - writer.pace.longest <= found.text_bytes <= last["bytes_after"] <= LESS + PIECE, (writer.name, found.text_bytes, last)
        # Nothing was written since: what it says that it took is what is not there any more.
        assert last["bytes_before"] - last["bytes_after"] >= KEEP + GROWTH - LESS - PIECE, last
        assert live.cuts[writer.name] == sorted(live.cuts[writer.name])


def test_docker_logs_shows_all_that_was_kept(live: Live) -> None:
    for writer in live.files:
        assert said(writer) == (live.stored(writer).lines, []), writer.name


def test_docker_logs_since_a_time_shows_what_came_after_it(live: Live) -> None:
    for writer in live.some:
        found = live.stored(writer)
        middle = len(found.lines) // 2
        since = found.times[middle]
        first = found.times.index(since)
        assert said(writer, since=seconds_of(since)) == (found.lines[first:], []), writer.name


def test_docker_logs_with_a_tail_shows_the_newest_lines(live: Live) -> None:
    for writer in live.some if live.stale else live.files:
        shown = said(writer, tail=10, patience=1 if live.stale else 60)
        # What is stale may be silent, or hang; it is never wrong.
        assert shown == (live.stored(writer).lines[-10:], []) or (live.stale and shown == ([], [])), (writer.name, shown)


def test_a_follower_from_before_the_cuts_goes_on_as_the_results_say(live: Live) -> None:
    if not live.stale:
        live.go_on()
    for name, follower in live.followers.items():
        if not live.stale:
            until(lambda follower=follower, name=name: follower.has(live.named(name).last()))
        lines, turn = list(follower.lines), name == live.turn.name
        assert follower.torn == []
        assert lines[0] == (1, 1)
        # Nobody keeps up for sure with those who print all the time: what was not read when it was cut away comes no more.
        assert faults(lines, cuts=live.cuts[name], again=live.repeats, behind=not turn) == [], name
        assert live.repeats == (len(set(lines)) < len(lines)), name


def test_a_follower_from_after_the_cuts_sees_what_was_kept_and_what_comes(live: Live) -> None:
    if live.stale:
        pytest.skip("not here: readers are stale")
    followed = [writer for writer in live.some if live.can_be_followed(writer)]
    kept = {writer.name: live.stored(writer).lines[0] for writer in followed}
    followers = {writer.name: Follower(writer) for writer in followed}
    try:
        live.go_on()
        for writer in followed:
            follower = followers[writer.name]
            until(lambda follower=follower, writer=writer: follower.has(writer.last()))
            assert follower.torn == []
            assert follower.lines[0] == kept[writer.name]
            assert faults(follower.lines) == [], writer.name
    finally:
        for follower in followers.values():
            follower.stop()


def test_a_log_shipper_loses_nothing_and_sees_lines_again_only_where_the_file_became_shorter(live: Live) -> None:
    for name, shipper in live.shippers.items():
        until(lambda shipper=shipper, name=name: shipper.has(live.named(name).last()))
        lines, turn = list(shipper.lines), name == live.turn.name
        assert shipper.torn == []
        assert lines[0] == (1, 1)
        assert faults(lines, cuts=live.cuts[name], again=live.shorter, behind=not turn) == [], name
        assert (shipper.restarts, len(set(lines)) < len(lines)) == ((ROUNDS + 1, True) if live.shorter else (0, False)), name


def test_the_driver_local_loses_no_line_either(live: Live) -> None:
    if not live.local:
        pytest.skip("not here: this engine writes the driver local on another filesystem")
    for writer in live.local:
        entries = live.entries[writer.name]
        assert {entry["driver"] for entry in entries} == {"local"}
        assert all(entry["method"] not in ("none", "truncate") for entry in entries), entries
        assert live.wrong[writer.name] == []
        lines, torn = said(writer)
        assert torn == []
        assert faults(lines) == []
        assert lines[0] == live.cuts[writer.name][-1]
        assert lines[-1] == writer.last()
        assert live.cuts[writer.name] == sorted(live.cuts[writer.name])
        stale = entries[-1]["readers"] == "stale"
        tail, torn = said(writer, tail=10, patience=1 if stale else 60)
        # What is stale may be silent, or hang, or the engine complains in place of a line; it is never wrong.
        assert [text for text in torn if not (stale and text.startswith(b"Error grabbing logs: "))] == []
        assert tail == lines[-10:] or (stale and tail == []), (writer.name, tail)


def test_what_is_stale_is_cured_in_the_run_that_may_start_again(live: Live) -> None:
    if not live.stale:
        pytest.skip("not here: readers are not stale")
    # One has something to be cut, the others an earlier run has left stale.
    fast, slow = live.fast[0], live.slow[0]
    fast.go_on()
    before = _size(fast)
    until(lambda: _size(fast) >= before + LESS + GROWTH)
    live.hush()
    lasts = {writer.name: writer.last() for writer in (fast, slow)}
    cured = [fast, slow, *live.local[:1]]
    by_engine = CURES[live.root]["restart"] == "engine"
    was = live.processes()
    result = live.cut(LESS + PIECE, cured, **CURES[live.root])
    live.host.wait_for_engine()
    entries = by_name(result)
    assert sorted(result["restarted"]) == (["engine"] if by_engine else sorted(writer.name for writer in cured))
    assert result["live_restore_file"] == ("/etc/docker/daemon.json" if by_engine else "")
    assert (live.processes() == was) == by_engine, "the engine alone starts again"
    assert (entries[fast.name]["method"], entries[slow.name]["method"]) == ("collapse", "none")
    assert {entry["readers"] for entry in entries.values()} == {"ok"}
    assert result.get("warnings", []) == []
    for writer in live.local[:1]:
        lines, torn = said(writer)
        assert torn == []
        assert said(writer, tail=10) == (lines[-10:], [])
    followers = {}
    try:
        for writer in (fast, slow):
            lines = live.stored(writer).lines
            assert said(writer) == (lines, []), writer.name
            assert said(writer, tail=10) == (lines[-10:], []), writer.name
            followers[writer.name] = Follower(writer)
        live.go_on()
        for writer in (fast, slow):
            follower, last = followers[writer.name], lasts[writer.name]
            until(lambda follower=follower, writer=writer: follower.has(writer.last()))
            assert follower.torn == []
            assert faults(follower.lines, ends=[last]) == [], writer.name
            assert missing(follower.lines, [last]) == []
            assert said(writer, tail=10) == (live.stored(writer).lines[-10:], []), writer.name
    finally:
        for follower in followers.values():
            follower.stop()
