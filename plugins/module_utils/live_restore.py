# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Turn an engine's live-restore on by a reload, and restart the engine without stopping a container.

Invariants

* An engine is restarted only if its file as it is now, with the command line of its process, lets it start with the data root, the storage driver, the
  image store and the live-restore that it has. What an administrator changed in a service's own command line meanwhile is not seen.
* The file is the one that the engine reads: what its proven process was started with, seen alike from there and from here, and of nobody else's.
* Only `live-restore` is added: all else stays to the byte, and so do mode, owner and attributes. An explicit `false` is somebody's decision.
* A new file is written whole beside the old one and renamed; where there was none it takes no name that somebody gave away meanwhile. Where the
  engine does not say afterwards that live-restore is on, the old one is put back, the same inode, unless the new one is not ours any more.
* No container stops: SIGHUP makes the engine read the file again (moby, cmd/dockerd/daemon.go: reloadConfig).

A swarm node refuses live-restore ("incompatible with swarm mode"), and an engine refuses an option that is given as a flag and in the file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import time
import typing as t

from ansible_collections.fleetclean.docker.plugins.module_utils import processes, restarting, safe_open, storage, trust
from ansible_collections.fleetclean.docker.plugins.module_utils.engine import Engine, is_rootless, swarm_state
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import FleetcleanError

_KEY = "live-restore"
#: moby, cmd/dockerd/config_unix.go and opts: defaultDaemonConfigFile and defaultDataRoot of an engine of root's.
_DEFAULT_PATH, _DEFAULT_ROOT = "/etc/docker/daemon.json", "/var/lib/docker"
#: What may be given in both, the file and the command line (moby, daemon/config: findConfigurationConflicts), or means something else there.
_IN_BOTH = ("runtimes", "features")
#: Options that have other names on the command line.
_OTHER_NAMES = {"hosts": "-H", "debug": "-D", "log-level": "-l", "group": "-G", "bridge": "-b", "pidfile": "-p", "storage-driver": "-s"}
_SNAPSHOTTER = "containerd-snapshotter"
#: Before this release an engine has graph drivers unless it is told otherwise (Docker Engine 29 release notes).
_SNAPSHOTTER_BY_ITSELF = 29
#: As Go reads a flag (strconv.ParseBool).
_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_MAX_FILE_BYTES = 1 << 20
_RELOAD_TIMEOUT_S = 15.0
#: Everybody who may read a folder may lock it.
_LOCK_TIMEOUT_S = 10.0
#: Beside the file, in a folder that nobody else may write to; what a run that was killed left has these names.
_NEW, _OLD = ".{0}.fleetclean-new", ".{0}.fleetclean-old"
_ROOTLESS = "this engine runs without root, and its containers end with its namespaces. Use restart: containers"
_BOM = b"\xef\xbb\xbf"


class Change(t.NamedTuple):
    """What turning live-restore on does: ``content`` becomes the file's at ``path`` (None: it has it already) in place of ``before`` (None: no file)."""

    process: processes.Process
    path: str
    before: os.stat_result | None
    content: bytes | None


class _CommandLine(t.NamedTuple):
    """What a process was started with: the names of its options; its file, data root and live-restore ("": not given)."""

    options: frozenset[str]
    path: str
    is_path_given: bool
    root: str
    live_restore: str


class _Unfit(Exception):
    """The engine would not start with its file, or not with what it has; the message says why."""


def check(engine: Engine, found: processes.Engine) -> Change:
    """Return what would be done to turn live-restore on, and do nothing.

    :param found: the engine's processes, as far as they are proven.
    :raises FleetcleanError: it cannot or must not be done; the message says why.
    """
    state = swarm_state(engine.info)
    if state != "inactive":
        raise _refusal(f"this host is a swarm node ({state}), and a swarm refuses live-restore. Use restart: containers")
    if is_rootless(engine.info):
        raise _refusal(_ROOTLESS)
    process = restarting.check(engine, found)
    try:
        line = _command_line(process)
    except OSError as error:
        raise _refusal(f"process {process.pid} cannot be looked at ({error}); use become: true", "denied") from None
    if line.live_restore:
        raise _refusal(f"its command line has --{_KEY}, and the engine refuses what is given there and in its file. Change the command line")
    path = line.path
    try:
        before, content = _read(process, path, {0, found.user_id})
        values = _values(path, content)
        _refuse_unfit(line, values, engine.info)
        return Change(process, path, before, None if values.get(_KEY) is True else _with_key(path, content))
    except _Unfit as why:
        raise _refusal(str(why)) from None
    except RecursionError:
        raise _refusal(f"{path} is nested too deeply. Mend it") from None
    except (OSError, trust.NotTrusted) as error:
        raise _refusal(f"{path}: {getattr(error, 'strerror', None) or error}. Turn live-restore on yourself, or use restart: containers", "denied") from None


def enable(engine: Engine, found: processes.Engine, connect: t.Callable[[], Engine]) -> None:
    """Turn live-restore on and see that the engine says so; no container stops.

    :param connect: makes a new connection to the engine.
    :raises FleetcleanError: it is off still, and the file as it was.
    """
    change = check(engine, found)
    try:
        with _replaced(change) as settled:
            _reload(change.process)
            if not _is_on(connect):
                raise _refusal(f"the engine does not say that it is on after {change.path} was reloaded; its log says why. The file is as it was", "engine")
            settled()
    except FleetcleanError:
        if change.content is not None:
            # What the engine may have read of it is not true any more.
            with contextlib.suppress(OSError):
                _reload(change.process)
        raise
    except OSError as error:
        raise _refusal(f"{change.path} could not be changed: {error.strerror or error}. The engine was not restarted", "disk") from None


def check_restart(engine: Engine, found: processes.Engine) -> None:
    """See that an engine that has live-restore comes back with all of its containers, if it is restarted from here; nothing is done.

    What it would read is looked at, wherever that lies: whoever may change the file may do so after the restart as well.

    :raises FleetcleanError: it does not; the message says why.
    """
    if is_rootless(engine.info):
        raise _no_restart(_ROOTLESS)
    process = restarting.check(engine, found)
    path = "its command line"
    try:
        line = _command_line(process)
        path = line.path
        try:
            content = _read_as_engine(process, path)
        except FileNotFoundError:
            if line.is_path_given:
                raise
            content = b""
        values = _values(path, content)
        _refuse_unfit(line, values, engine.info)
        if values.get(_KEY) is not True and line.live_restore not in _TRUE:
            raise _Unfit(f"{path} does not turn {_KEY} on (any more), which the engine has: restarted, it would stop its containers. Mend it")
    except _Unfit as why:
        raise _no_restart(str(why)) from None
    except RecursionError:
        raise _no_restart(f"{path} is nested too deeply. Mend it") from None
    except (OSError, trust.NotTrusted) as error:
        problem = getattr(error, "strerror", None) or error
        raise _no_restart(f"{path} cannot be read ({problem}), so nobody knows with what the engine would start. Restart it yourself", "denied") from None


def restart(engine: Engine, found: processes.Engine, connect: t.Callable[[], Engine]) -> None:
    """Restart an engine that has live-restore, if it comes back with all of its containers, and wait until it answers.

    :raises FleetcleanError: as ``check_restart`` and ``restarting.restart_engine`` do.
    """
    check_restart(engine, found)
    restarting.restart_engine(engine, found, connect)


def _no_restart(why: str, code: str = "bad_input") -> FleetcleanError:
    return FleetcleanError(f"restart: engine: {why}.", code)


def _refusal(why: str, code: str = "bad_input") -> FleetcleanError:
    return FleetcleanError(f"live_restore: enable: {why}.", code)


# -- what may be done --------------------------------------------------------------------------------


def _command_line(process: processes.Process) -> _CommandLine:
    arguments = processes.read_text(f"/proc/{process.pid}/cmdline").split("\0")[1:-1]
    folder = os.readlink(f"/proc/{process.pid}/cwd")
    options, path, root, live_restore = set(), "", "", ""
    for number, argument in enumerate(arguments):
        name, given, value = argument.partition("=")
        if argument.startswith("-g") and not given:
            name, given, value = "-g", argument[2:], argument[2:]
        value = value if given else "".join(arguments[number + 1:number + 2])
        # A short one may have its value right behind it.
        options.update({name, name[:2]} if argument[:1] == "-" != argument[1:2] else {name})
        if name == "--config-file":
            path = value
        elif name in ("--data-root", "--graph", "-g"):
            root = value
        elif name == f"--{_KEY}":
            live_restore = value if given else "true"
    return _CommandLine(frozenset(options), os.path.join(folder, path or _DEFAULT_PATH), bool(path), os.path.join(folder, root or _DEFAULT_ROOT), live_restore)


def _read(process: processes.Process, path: str, users: t.Collection[int]) -> tuple[os.stat_result | None, bytes]:
    """The file as it is, and its content; no stat where there is none.

    :raises OSError, trust.NotTrusted: it cannot be read, is no plain file, or another user could change it.
    """
    folder = trust.resolve(os.path.dirname(path), users, missing=True)
    if not os.path.isdir(folder):
        _refuse_other_view(process, os.path.dirname(folder))
        return None, b""
    _refuse_other_view(process, folder)
    try:
        descriptor = safe_open.open_regular(os.path.join(folder, os.path.basename(path)))
    except FileNotFoundError:
        return None, b""
    except safe_open.NotRegular:
        raise trust.NotTrusted("it is a link or no plain file") from None
    try:
        about = os.fstat(descriptor)
        if about.st_nlink > 1 and not _is_left(folder, os.path.basename(path), about):
            raise trust.NotTrusted("it has another name elsewhere (a hard link)")
        if about.st_uid not in users or trust.others_may_write(about, path):
            raise trust.NotTrusted("others than root may write it")
        return about, _content(descriptor)
    finally:
        os.close(descriptor)


def _content(descriptor: int) -> bytes:
    content = b""
    while len(content) <= _MAX_FILE_BYTES:
        piece = os.read(descriptor, _MAX_FILE_BYTES)
        if not piece:
            return content
        content += piece
    raise trust.NotTrusted("it is larger than 1 MB")


def _read_as_engine(process: processes.Process, path: str) -> bytes:
    """The file's content as the engine would read it, links followed, in its own view of the folders."""
    seen = f"/proc/{process.pid}/root{path}"
    about = os.stat(seen)
    descriptor = safe_open.open_regular_of_process(seen, (about.st_dev, about.st_ino))
    try:
        return _content(descriptor)
    finally:
        os.close(descriptor)


def _is_left(folder: str, name: str, about: os.stat_result) -> bool:
    """Whether a run of ours that was killed left a file's other name."""
    try:
        return about.st_nlink == 2 and any(
            os.path.samestat(about, os.lstat(os.path.join(folder, left.format(name))))
            for left in (_OLD, _NEW) if os.path.lexists(os.path.join(folder, left.format(name)))
        )
    except OSError:
        return False


def _refuse_other_view(process: processes.Process, folder: str) -> None:
    """Refuse a folder that is another one to the engine (a mount namespace, a root directory of its own)."""
    if not os.path.samestat(os.stat(f"/proc/{process.pid}/root{folder}"), os.stat(folder)):
        raise trust.NotTrusted(f"{folder} is another folder to the engine")


def _refuse_unfit(line: _CommandLine, values: dict[str, t.Any], info: t.Mapping[str, t.Any]) -> None:
    """Refuse a file that was changed since the engine read it: restarted, it would not start, or have none of its containers.

    :param info: the engine's answer to ``GET /info``.
    """
    for key in values:
        # A list has one name in the file (log-opts, insecure-registries) and another on the command line (--log-opt, --insecure-registry).
        spellings = {f"--{key}", f"--{key[:-1]}" if key.endswith("s") else "", f"--{key[:-3]}y" if key.endswith("ies") else "", _OTHER_NAMES.get(key, "")}
        if key not in _IN_BOTH and line.options & (spellings - {""}):
            raise _Unfit(f"{line.path} and the engine's command line both give {json.dumps(key)[:80]}, with which it does not start. Mend the file")
    given = next(((key, values[key]) for key in ("data-root", "graph") if values.get(key)), None)
    root = str(info.get("DockerRootDir") or "")
    wanted, real = os.path.realpath(str(given[1]) if given else line.root), os.path.realpath(root)
    # With userns-remap the engine's is a folder in it, which has the numbers of that user and group.
    if not re.fullmatch(rf"{re.escape(wanted)}(/[0-9]+\.[0-9]+)?", real):
        says = f'says "{given[0]}": {json.dumps(given[1])[:200]}' if given else f"names no data root, which makes it {line.root}"
        raise _Unfit(f"{line.path} {says}, and the engine's data root is {root}: restarted, it would have none of its containers. Mend it")
    driver, has_snapshotter = info.get("Driver"), storage.from_info(dict(info)).image_store == "containerd"
    for key, is_so, has in (
        ("userns-remap", bool(values.get("userns-remap")) or "--userns-remap" in line.options, wanted != real),
        (_SNAPSHOTTER, _wants_snapshotter(line, values, info, has_snapshotter), has_snapshotter),
        # With containerd's image store it means a snapshotter, which has other names.
        ("storage-driver", (not has_snapshotter and values.get("storage-driver")) or driver, driver),
    ):
        if is_so != has:
            raise _Unfit(f"{line.path} gives the engine another {key} than it has: restarted, it would have none of its containers. Mend it")


def _wants_snapshotter(line: _CommandLine, values: dict[str, t.Any], info: t.Mapping[str, t.Any], has: bool) -> bool:
    """Whether the engine would have containerd's image store; where that is not told, whether it has it."""
    features = values.get("features")
    told = features.get(_SNAPSHOTTER) if isinstance(features, dict) else None
    if isinstance(told, bool):
        return told
    major = str(info.get("ServerVersion") or "").partition(".")[0]
    is_known = major.isdigit() and int(major) < _SNAPSHOTTER_BY_ITSELF and "--feature" not in line.options
    return has and not is_known


def _values(path: str, content: bytes) -> dict[str, t.Any]:
    def refuse(constant: str) -> t.NoReturn:
        raise ValueError(f"{constant} is no number")  # of JSON's; Python has it

    try:
        found = json.loads(content.decode("utf-8-sig"), parse_constant=refuse) if content.strip() else {}
    except ValueError as error:
        raise _Unfit(f"{path} is no JSON ({error}). Mend it") from None
    if not isinstance(found, dict):
        raise _Unfit(f"{path} is no JSON object. Mend it")
    return found


def _with_key(path: str, content: bytes) -> bytes:
    """The same with live-restore, all else as it was."""
    values = _values(path, content)
    if _KEY in values:
        raise _Unfit(f'{path} says "{_KEY}": {json.dumps(values[_KEY])[:40]}, which somebody decided. Change it there')
    head, brace, rest = content.partition(b"{")
    if not values:
        tail = rest.partition(b"}")[2] if brace else b"\n"
        added = (_BOM if content.startswith(_BOM) else b"") + b'{\n  "%s": true\n}' % _KEY.encode() + tail
    else:
        blank = t.cast("re.Match[bytes]", re.match(rb"[ \t\r\n]*", rest))[0]
        added = head + b"{" + blank + b'"%s": true,' % _KEY.encode() + (blank or b" ") + rest[len(blank):]
    if _values(path, added) != {**values, _KEY: True}:
        raise _Unfit(f"{path} cannot be changed with all else as it is. Change it yourself")
    return added


# -- doing it ----------------------------------------------------------------------------------------


def _reload(process: processes.Process) -> None:
    processes.send_signal(process, signal.SIGHUP)


def _is_on(connect: t.Callable[[], Engine]) -> bool:
    end = time.monotonic() + _RELOAD_TIMEOUT_S
    while True:
        with contextlib.suppress(FleetcleanError):
            if connect().info.get("LiveRestoreEnabled"):
                return True
        if time.monotonic() > end:
            return False
        time.sleep(0.1)


@contextlib.contextmanager
def _replaced(change: Change) -> t.Iterator[t.Callable[[], None]]:
    """Put the new content in the file's place, and the old file back unless what is yielded was called."""
    if change.content is None:
        yield lambda: None
        return
    name, is_settled = os.path.basename(change.path), False
    new, old = _NEW.format(name), _OLD.format(name)
    folder_path = os.path.realpath(os.path.dirname(change.path))
    is_made = not os.path.isdir(folder_path)
    if is_made:
        os.mkdir(folder_path, 0o755)

    def settle() -> None:
        nonlocal is_settled
        is_settled = True

    folder = os.open(folder_path, safe_open.DIRECTORY)
    try:
        _lock(folder, folder_path)
        _clean_up(folder, name)
        try:
            ours = _write(folder, new, name, change)
            if change.before is None:
                os.link(new, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
                os.unlink(new, dir_fd=folder)
            else:
                os.link(name, old, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
                if _identity_at(folder, old) != _identity(change.before):
                    raise _Changed(name)
                os.rename(new, name, src_dir_fd=folder, dst_dir_fd=folder)
        except FileExistsError:
            _clean_up(folder, name)
            raise _Changed(name) from None
        except BaseException:
            _clean_up(folder, name)
            raise
        try:
            os.fsync(folder)
            yield settle
        finally:
            if not is_settled:
                _put_back(folder, name, change, ours)
            _clean_up(folder, name)
    finally:
        os.close(folder)
        if is_made and not is_settled:
            with contextlib.suppress(OSError):
                os.rmdir(folder_path)


class _Changed(OSError):
    """Somebody else is at the file."""

    def __init__(self, name: str) -> None:
        super().__init__(f"somebody changes it at this moment ({name})")


def _identity(about: os.stat_result) -> tuple[int, ...]:
    """What tells a file, as it was written, from what somebody else wrote or put in its place."""
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns


def _identity_at(folder: int, name: str) -> tuple[int, ...]:
    """The same of what has a name; () if nothing has."""
    try:
        return _identity(os.lstat(name, dir_fd=folder))
    except FileNotFoundError:
        return ()


def _lock(folder: int, path: str) -> None:
    """See that no other run of ours is at the folder.

    :raises OSError: somebody holds it for long.
    """
    end = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        try:
            return fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise OSError(f"{path} is locked by somebody else for {_LOCK_TIMEOUT_S:.0f} s (lslocks names him)") from None
        time.sleep(0.1)


def _write(folder: int, new: str, name: str, change: Change) -> tuple[int, ...]:
    """Write the new file beside the old one, with all that belongs to that; return what it is known by."""
    before = change.before
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        with open(os.dup(descriptor), "wb") as stream:
            stream.write(change.content or b"")
        if before is not None:
            was = safe_open.open_regular(name, dir_fd=folder)
            try:
                now = os.fstat(was)
                if _identity(now) != _identity(before):
                    raise _Changed(name)
                os.fchown(descriptor, now.st_uid, now.st_gid)
                for attribute in os.listxattr(was):
                    with contextlib.suppress(OSError):  # not all can be set by everybody
                        os.setxattr(descriptor, attribute, os.getxattr(was, attribute))
            finally:
                os.close(was)
        os.fchmod(descriptor, 0o644 if before is None else before.st_mode & 0o7777)
        os.fsync(descriptor)
        return _identity(os.fstat(descriptor))
    finally:
        os.close(descriptor)


def _put_back(folder: int, name: str, change: Change, ours: tuple[int, ...]) -> None:
    """Put the old file in the place of ours.

    :raises FleetcleanError: it cannot be done, or what lies there is somebody else's.
    """
    try:
        if _identity_at(folder, name) != ours:
            _clean_up(folder, name)
            raise _refusal(f"{change.path} was changed by somebody else meanwhile, so it stays as he left it; look at it, and at the engine's log", "engine")
        if change.before is None:
            os.unlink(name, dir_fd=folder)
        else:
            os.rename(_OLD.format(name), name, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)
    except OSError as error:
        raise _refusal(f"{change.path} could not be put back ({error.strerror or error}); take {_KEY} out of it", "disk") from None


def _clean_up(folder: int, name: str) -> None:
    """Remove what this run, or one that was killed, left beside the file."""
    for left in (_NEW.format(name), _OLD.format(name)):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(left, dir_fd=folder)
