# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docker_log_truncate from its options to its result: which logs, how each is cut, and what is said of it.

For each container that was chosen: its log files are cut, its rotated files removed, the space of deleted ones given back.
Then, if that was asked for, what cannot be read or written properly any more is started again, and looked at once more.
"""

from __future__ import annotations

import errno
import os
import re
import typing as t
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from functools import lru_cache

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleetclean.docker.plugins.module_utils import (
    apart,
    engine,
    history,
    log_cuts,
    log_holders,
    log_records,
    log_rescue,
    logs,
    names,
    options,
    pausing,
    session,
    snapshot,
    stale_readers,
    words,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import (
    FleetcleanError,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.log_cuts import Cut
from ansible_collections.fleetclean.docker.plugins.module_utils.storage import Storage
from ansible_collections.fleetclean.docker.plugins.module_utils.units import say_size

_Ask = t.Callable[[], engine.Engine]
#: A log that the engine rotates again and again while we try to cut it is left alone in the end.
_ATTEMPTS = 5
#: So many containers are started again, or asked for their last line, at once.
_AT_ONCE = 4


def truncate(module: AnsibleModule, result: dict[str, t.Any]) -> None:
    """Fill ``result`` with the logs that were cut, or in check mode would be."""
    wish = options.read_truncate(module.params)
    site = session.open_site(module.params)
    result.update(logs=[], reclaimed_bytes=0, restarted=[], live_restore_file="")
    if not site.own_storage:
        raise FleetcleanError(
            f"{site.proof.words}; nothing was touched. Run this on that host, without docker_host.", "foreign_root"
        )
    if wish.restart == "engine" and wish.live_restore != "enable" and not site.engine.info.get("LiveRestoreEnabled"):
        raise FleetcleanError(
            "restart: engine: this engine would stop its containers, since live-restore is off; nothing was touched. Use restart: containers "
            'or never, add live_restore: enable, or set "live-restore": true in its daemon.json.', "bad_input",
        )
    looked = snapshot.take(site.engine, snapshot.Wanted(images=True, networks=True), None)
    for line in site.refused:
        module.warn(words.printable(line))
    work = _Work(module, wish, site, site.own_storage, looked.containers)
    work.prepare()
    try:
        work.cut()
        work.restart()
    finally:
        result["logs"] = [{key: value for key, value in cut._asdict().items() if key not in ("failed", "disk_full")} for cut in work.told()]
        result["reclaimed_bytes"] = sum(cut.reclaimed_bytes for cut in work.cuts)
        result["restarted"] = work.restarted
        result["live_restore_file"] = work.live_restore_file
        result["changed"] = bool(work.restarted or work.live_restore_file) or any(cut.changed for cut in work.cuts)
    if not module.check_mode:
        history.note(module.params["state_dir"] or "", site.engine_id, looked, volumes=False, networks=True)
    if module._diff:
        lines = [_line(cut, wish) for cut in sorted(work.told(), key=lambda cut: -cut.reclaimed_bytes)]
        result["diff"] = {"prepared": "".join(f"{line}\n" for line in lines)}
    failed = [cut for cut in work.cuts if cut.failed]
    if failed:
        result["failure"] = "disk_full" if all(cut.disk_full for cut in failed) else "disk"
        result["msg"] = (
            f"{len(failed)} log{'' if len(failed) == 1 else 's'} could not be cut, all others were. "
            f"The first: {words.printable(failed[0].name)}: {failed[0].words}"
        )


class _Work:
    """One run: ``cuts`` are what was done so far, ``restarted`` what was started again, ``live_restore_file`` where live-restore was turned on."""

    def __init__(
        self, module: AnsibleModule, wish: options.LogWish, site: session.Site, storage: Storage, containers: t.Sequence[snapshot.Container]
    ) -> None:
        self.cuts: list[Cut] = []
        self.restarted: list[str] = []
        self.live_restore_file = self._live_restore_path = ""
        self._params = module.params
        self._dry = bool(module.check_mode)
        self._wish = wish
        self._engine = site.engine
        self._folder = storage.containers
        self._version = _numbers(site.engine.info.get("ServerVersion"))
        self._holders = log_holders.Holders(storage.root, self._folder, storage.volumes)
        self._known = {container.id for container in containers}
        self._chosen = [container for container in containers if _wanted(container, wish)]
        self._configs: dict[str, tuple[str, dict[str, str]]] = {}
        info = site.engine.info
        self._has_live_restore = bool(info.get("LiveRestoreEnabled"))
        is_swarm = engine.swarm_state(info) != "inactive"
        self._readers = stale_readers.StaleReaders(wish.stale_readers, self._has_live_restore, is_swarm)

    @property
    def _major(self) -> int:
        return self._version[0]

    def _connect(self) -> engine.Engine:
        return engine.connect(self._params)

    def prepare(self) -> None:
        """See whether what was asked for can be restarted, so that no reader stays stale.

        :raises FleetcleanError: live-restore is to be turned on, and cannot be.
        """
        self._readers.is_cured = self._wish.restart != "never"
        if self._wish.restart != "engine":
            return
        if not self._has_live_restore:
            self._enable_live_restore(only_look=True)
            return
        from ansible_collections.fleetclean.docker.plugins.module_utils import live_restore

        try:
            live_restore.check_restart(self._engine, self._holders.engine)
        except FleetcleanError as error:
            self._readers.is_cured, self._readers.no_cure = False, str(error)

    def _enable_live_restore(self, only_look: bool) -> None:
        # Rarely needed, and then alone.
        from ansible_collections.fleetclean.docker.plugins.module_utils import live_restore

        if only_look:
            self._live_restore_path = live_restore.check(self._engine, self._holders.engine).path
        else:
            live_restore.enable(self._engine, self._holders.engine, self._connect)

    def told(self) -> list[Cut]:
        """What was done; and of logs whose readers the cut left stale, what cures them."""
        advice = self._readers.advice()
        return [cut._replace(words=advice) if cut.readers == "stale" and cut.method != "deleted" and not cut.words else cut for cut in self.cuts]

    def cut(self) -> None:
        """Everything but the restarts."""
        if self._chosen:
            with suppress(OSError):
                self._readers.look(self._folder)
        for container in self._chosen:
            found = logs.kinds(self._folder, container.id)
            for kind in found:
                self._add(self._cut_one(container, kind))
                if self._wish.rotated == "remove":
                    self._add(self._remove_rotated(container, kind))
            if not found:
                self._add(self._without_file(container))
        self._elsewhere()

    def _add(self, cut: Cut | None) -> None:
        if cut and (cut.changed or cut.words):
            self.cuts.append(cut)

    def _config(self, ident: str) -> tuple[str, dict[str, str]]:
        """A container's log driver and that driver's options; nothing known of one that is gone."""
        if ident not in self._configs:
            try:
                found = ((self._engine.container(ident).get("HostConfig") or {}).get("LogConfig")) or {}
            except engine.EngineError as error:
                if not error.gone:
                    raise
                found = {}
            self._configs[ident] = (str(found.get("Type") or ""), dict(found.get("Config") or {}))
        return self._configs[ident]

    def _found(self, container: snapshot.Container, kind: logs.Kind) -> Cut:
        driver, config = self._config(container.id)
        # The other kinds rotate by themselves, at 20 MB unless told otherwise.
        unbounded = kind is logs.JSON_FILE and config.get("max-size", "-1") == "-1"
        return Cut(container.id, container.name, kind.driver or driver, kind.path(self._folder, container.id), 0, 0, 0, unbounded=unbounded)

    def _without_file(self, container: snapshot.Container) -> Cut | None:
        driver, _config = self._config(container.id)
        if driver in ("json-file", "local", ""):
            return None  # it never ran
        why = f"nothing to cut: the driver {driver} keeps no log file here"
        return Cut(container.id, container.name, driver, "", 0, 0, 0, words=why)

    # -- one log -----------------------------------------------------------------------------

    def _cut_one(self, container: snapshot.Container, kind: logs.Kind) -> Cut | None:
        path = kind.path(self._folder, container.id)
        found = Cut(container.id, container.name, kind.driver, path, 0, 0, 0)
        try:
            with logs.open_log(self._folder, container.id, False, kind) as descriptor:
                if not self._worth_a_look(descriptor, kind):
                    return None
                found = self._found(container, kind)
                self._readers.look(descriptor)
                if self._dry:
                    return self._decided(descriptor, container, kind, found, lambda: self._engine)[0]
            return apart.do(lambda: self._cut_now(container, kind, found))
        except FileNotFoundError:
            return None
        except logs.LogRefused as refusal:
            if self._is_small_behind_link(path):
                return None
            return found._replace(words=str(refusal), failed=True)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            # What no way exists for is no failure: it is said, and stays.
            failed = error.errno != errno.EOPNOTSUPP
            return found._replace(words=f"{path}: {error.strerror or error}", failed=failed, disk_full=full)

    def _is_small_behind_link(self, path: str) -> bool:
        """Whether a log that is not reached, since the folder of all containers is a link that was not verified, is too small to be cut anyway."""
        try:
            return os.path.islink(self._folder) and os.stat(path).st_size <= self._wish.larger_than
        except OSError:
            return False

    def _worth_a_look(self, descriptor: int, kind: logs.Kind) -> bool:
        """Whether a log is large, or a small one has fillers, or what readers stumble over, at its beginning or its end."""
        size = os.fstat(descriptor).st_size
        front = kind.format.front(descriptor, size)
        large = size - front.text > self._wish.larger_than
        return bool(large or front.fillers or front.nuls or kind.format.end(descriptor, size) < size)

    def _cut_now(self, container: snapshot.Container, kind: logs.Kind, found: Cut) -> Cut:
        """Decide once more and do it: in a process of its own, with a connection of its own."""
        # Asked for only where it is needed: what a process shares with another it must not speak through.
        ask = lru_cache(maxsize=None)(self._connect)
        for _attempt in range(_ATTEMPTS):
            try:
                with logs.claim(self._folder, container.id, kind) as descriptor:
                    return self._do(descriptor, container, kind, found, ask)
            except logs.Rotated:
                continue
            except pausing.NotPaused as refusal:
                return found._replace(words=f"the engine rotates it, and its container cannot be paused for a moment: {_by_name(refusal, container)}")
        return found._replace(words="the engine rotated it again and again")

    def _do(self, descriptor: int, container: snapshot.Container, kind: logs.Kind, found: Cut, ask: _Ask) -> Cut:
        # What somebody left who was killed in the middle.
        log_rescue.put_back(descriptor)
        nuls = 0 if self._writer(descriptor, container.id, ask).writes else log_cuts.drop_nuls(descriptor, kind.format)
        decided, plans, writer = self._decided(descriptor, container, kind, found, ask)
        if not plans and nuls:
            return (decided or found)._replace(method="rewrite", words=f"{nuls} NULs at its end were taken out")
        if not plans:
            return decided or found

        @contextmanager
        def pause() -> t.Iterator[None]:
            try:
                with pausing.paused(self._connect, container.id, descriptor):
                    yield
            except pausing.NotPaused as refusal:
                raise OSError(errno.EOPNOTSUPP, f"its container cannot be paused for a moment: {_by_name(refusal, container)}") from None

        # An engine that packs a file would not notice that lines move in it, so it must have no reason to rotate now.
        rotates = writer.writes and self._rotates(container, kind)
        with pausing.paused(self._connect, container.id, descriptor) if rotates else nullcontext():
            if not logs.is_current(self._folder, container.id, kind, descriptor):
                raise logs.Rotated
            plan = self._carry_out(descriptor, kind.format, plans, writer, pause)
        return log_cuts.outcome(found, plan, writer, self._major)

    def _carry_out(
        self, descriptor: int, form: log_records.Format, plans: list[log_cuts.Plan], writer: log_cuts.Writer, pause: t.Callable[[], t.ContextManager[object]]
    ) -> log_cuts.Plan:
        spare = [plan for plan in plans if not log_cuts.leaves_stale(plan, writer, self._major)]
        if self._readers.are_allowed(descriptor) or not spare:
            return log_cuts.carry_out(descriptor, form, plans, pause)
        try:
            return log_cuts.carry_out(descriptor, form, spare, pause)
        except OSError as error:
            rest = [plan for plan in plans if plan not in spare]
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not rest or not self._readers.yield_to_a_full_disk:
                raise
            return log_cuts.carry_out(descriptor, form, rest, pause)

    def _rotates(self, container: snapshot.Container, kind: logs.Kind) -> bool:
        return kind is not logs.JSON_FILE or self._config(container.id)[1].get("max-size", "-1") != "-1"

    def _decided(
        self, descriptor: int, container: snapshot.Container, kind: logs.Kind, found: Cut, ask: _Ask
    ) -> tuple[Cut | None, list[log_cuts.Plan], log_cuts.Writer]:
        """What is to be said of a log (None: nothing), the ways to cut it, and who writes it."""
        writer = self._writer(descriptor, container.id, ask)
        size = os.fstat(descriptor).st_size
        front = kind.format.front(descriptor, size)
        found = found._replace(bytes_before=size - front.text, bytes_after=size - front.text)
        try:
            plans, why = log_cuts.decide(descriptor, kind.format, writer, self._major, self._wish.larger_than, self._wish.keep)
        except log_records.Unreadable as error:
            plans, why = [], f"{found.path}: {error}; it stays as it is"
        if plans and not self._readers.are_allowed(descriptor) and all(log_cuts.leaves_stale(plan, writer, self._major) for plan in plans):
            return found._replace(readers="spared", words=self._readers.reason_to_keep(descriptor, max(0, plans[0].frees))), [], writer
        if plans:
            return log_cuts.outcome(found, plans[0], writer, self._major), plans, writer
        return (found._replace(words=why) if why else None), plans, writer

    def _writer(self, descriptor: int, ident: str, ask: _Ask) -> log_cuts.Writer:
        """Who writes this log at this moment: the list of containers is as old as all the cuts before this one."""
        held = self._holders.of(descriptor)
        if held:
            # In check mode an engine is left as it is; it could be made to append wherever its open files can be seen.
            appends = all(log.appends or self._dry or log_holders.make_append(log) for log in held)
            return log_cuts.Writer(True, appends, pausable=True)
        try:
            live = snapshot.container_from({"Id": ident}, ask().container(ident)).live
        except engine.EngineError as error:
            if not error.gone:
                raise
            live = False
        return log_cuts.Writer(live, appends=not live, seen=not live, doubt=self._holders.engine.why)

    # -- other files -------------------------------------------------------------------------

    def _remove_rotated(self, container: snapshot.Container, kind: logs.Kind) -> Cut | None:
        path = kind.path(self._folder, container.id)
        held = {log.inode for log in self._holders.logs()}
        try:
            there = [about for _name, about in logs.rotated(self._folder, container.id, kind) if (about.st_dev, about.st_ino) not in held]
        except (OSError, logs.LogRefused) as error:
            return Cut(container.id, container.name, kind.driver, path, 0, 0, 0, words=f"{error}", failed=True)
        if not there:
            return None
        size = sum(about.st_size for about in there)
        found = self._found(container, kind)._replace(path=f"{path}.*", bytes_before=size, bytes_after=size)
        if container.live and self._version < logs.MISSES_NO_ROTATED:
            return found._replace(words="this engine would miss rotated files of a container that runs; they stay")
        freed = sum(about.st_blocks * 512 for about in there if about.st_nlink == 1)
        try:
            if not self._dry:
                freed = apart.do(lambda: self._remove_now(container, kind))
        except (OSError, pausing.NotPaused) as error:
            return found._replace(words=f"{path}.*: {error}", failed=True)
        return found._replace(bytes_after=0, reclaimed_bytes=freed, method="rotated")

    def _remove_now(self, container: snapshot.Container, kind: logs.Kind) -> int:
        held = {log.inode for log in self._holders.logs()}
        with logs.claim(self._folder, container.id, kind) as descriptor:
            # While the container stands still the engine has no reason to rotate.
            still = pausing.paused(self._connect, container.id, descriptor) if container.live else nullcontext()
            with still:
                return logs.remove_rotated(self._folder, container.id, kind, held)

    def _elsewhere(self) -> None:
        """Logs that are written where nobody reads them: deleted under the engine, or renamed."""
        chosen = {container.id: container for container in self._chosen}
        for log in self._holders.logs():
            container = chosen.get(log.container)
            if container is None and log.container in self._known:
                continue
            if log.deleted:
                self._add(self._give_back(log, container))
            elif container is not None and os.path.basename(log.path) not in {kind.file(log.container) for kind in logs.KINDS}:
                why = f"the engine writes to {log.path}, which somebody renamed: docker logs does not show it until the container is started again"
                driver = self._config(log.container)[0]
                self._add(Cut(log.container, container.name, driver, log.path, log.bytes, log.bytes, 0, readers="stale", words=why))

    def _give_back(self, log: log_holders.OpenLog, container: snapshot.Container | None) -> Cut | None:
        name = container.name if container else log.container[:12]
        driver = self._config(log.container)[0] if container else None
        readers = "stale" if container else "ok"
        found = Cut(log.container, name, driver or "json-file", log.path, log.bytes, log.bytes, 0, readers=readers)
        if not self._wish.deleted or not log.bytes:
            lost = "its log was deleted while the engine held it open: docker logs shows nothing new until it is started again"
            return found._replace(words=lost) if container and self._wish.restart != "never" else None
        try:
            freed = log.bytes if self._dry else log_holders.give_back_deleted(log)
        except OSError as error:
            return found._replace(words=f"{log.path}: {error.strerror}", failed=True)
        return found._replace(bytes_after=0, reclaimed_bytes=freed, method="deleted") if freed else None

    # -- restarts ----------------------------------------------------------------------------

    def restart(self) -> None:
        """Start again what cannot be read or written properly, as far as that was asked for, and see whether it helped."""
        if self._wish.restart == "never":
            return
        self._find_stale()
        ailing = {cut.container: cut.name for cut in self.cuts if cut.readers == "stale" and not cut.failed and cut.container in self._known}
        if not ailing:
            return
        from ansible_collections.fleetclean.docker.plugins.module_utils import live_restore, restarting

        if self._wish.restart == "engine":
            if not self._has_live_restore:
                if not self._dry:
                    self._enable_live_restore(only_look=False)
                self.live_restore_file = self._live_restore_path
            if not self._dry:
                live_restore.restart(self._engine, self._holders.engine, self._connect)
            elif self._has_live_restore:
                live_restore.check_restart(self._engine, self._holders.engine)
            self.restarted.append("engine")
        # A container gets ten seconds to end, if nothing else was wished for it.
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            troubles = dict(zip(ailing, pool.map(self._restart_one, ailing)))
        if self._wish.restart == "containers":
            self.restarted += [name for ident, name in ailing.items() if not troubles[ident]]
        self._holders.look_for_processes()
        for ident, trouble in troubles.items():
            why = trouble
            if not why and not self._dry and not restarting.cured(lambda ident=ident: self._reads_well(ident)):  # type: ignore[misc]
                why = "it was started again, and docker logs --tail still shows nothing"
            self.cuts = [_after_restart(cut, why) if cut.container == ident and cut.readers == "stale" else cut for cut in self.cuts]

    def _restart_one(self, ident: str) -> str:
        """Start a container again, if they are to be; return what was in the way."""
        if self._wish.restart == "containers" and not self._dry:
            try:
                self._engine.restart_container(ident)
            except FleetcleanError as error:
                return f"{error}"
        return ""

    def _find_stale(self) -> None:
        """Add the logs that earlier runs, or somebody's truncate, left so that their readers stay silent."""
        if self._major < log_cuts.REMEMBERS:
            return
        ailing = {cut.container for cut in self.cuts if cut.readers == "stale"}
        asked = [container for container in self._chosen if container.state == "running" and container.id not in ailing]
        # Each that is stale keeps the engine busy until we hang up; one that answers late for that gets a second look.
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            silent = [one for one, well in zip(asked, pool.map(lambda one: self._reads_well(one.id), asked)) if not well]
            answers = list(pool.map(lambda one: self._reads_well(one.id, patience=15), silent))
        for container, well in zip(silent, answers):
            kinds = logs.kinds(self._folder, container.id)
            if kinds and not well:
                why = "docker logs --tail showed nothing, though there is something to show"
                self._add(self._found(container, kinds[0])._replace(readers="stale", words=why))

    def _reads_well(self, ident: str, patience: float = 4) -> bool:
        """Whether the log is written where it is read, and its last line is shown within some seconds, if it has one.

        What cannot be told counts as well: nothing is started again on a suspicion.
        """
        found = logs.kinds(self._folder, ident)
        for kind in found:
            try:
                with logs.open_log(self._folder, ident, False, kind) as descriptor:
                    if not self._holders.of(descriptor) and any(log.container == ident for log in self._holders.logs()):
                        return False
                    size = os.fstat(descriptor).st_size
                    if kind.format.front(descriptor, size).text >= size:
                        continue  # nothing to show
            except (OSError, logs.LogRefused):
                continue
            try:
                return self._engine.shows_last_line(ident, patience)
            except engine.EngineError:
                return True
        return bool(found) or not any(log.container == ident for log in self._holders.logs())


def _by_name(refusal: pausing.NotPaused, container: snapshot.Container) -> str:
    return names.with_names(str(refusal), {container.id: container.name})


def _after_restart(cut: Cut, why: str) -> Cut:
    return cut._replace(words="; ".join(filter(None, (cut.words, why))), failed=True) if why else cut._replace(readers="ok")


def _wanted(container: snapshot.Container, wish: options.LogWish) -> bool:
    # By default all: then also one that an engine lists without a name of its own.
    known = container.names if "/" not in container.name else (*container.names, container.id[:12])
    selected = names.selects_container(wish.containers, known or (container.name,)) or names.matches(wish.containers, container.id, ())
    return selected and not any(names.has_label(container.labels, pattern) for pattern in wish.keep_labels)


def _line(cut: Cut, wish: options.LogWish) -> str:
    if not cut.changed:
        return words.kept_line("log", 1, cut.bytes_before, f"{cut.name}: {cut.words}")
    if cut.method == "deleted":
        why = "deleted while the engine held it open"
    elif cut.method == "rotated":
        why = "rotated files"
    elif cut.bytes_before <= wish.larger_than:
        why = "fillers of earlier cuts, or NULs, are taken out"
    else:
        why = f"larger than {say_size(wish.larger_than)}, {f'newest {say_size(wish.keep)} stay' if wish.keep else 'nothing stays'}"
    if cut.readers == "stale" and cut.words:
        why += f"; {cut.words}"
    return words.step_line("log", cut.name, cut.reclaimed_bytes, why)


def _numbers(version: object) -> tuple[int, int]:
    found = re.findall(r"[0-9]+", str(version or "")[:100])[:2]
    return (int(found[0]) if found else 0, int(found[1]) if len(found) > 1 else 0)
