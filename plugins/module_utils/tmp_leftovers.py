# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Remove what earlier runs left in memory: the temporary folders of modules that were killed.

Ansible unpacks a module into a folder below TMPDIR, which is a tmpfs here (see ``plugin_utils/anywhere.py``), and removes it when the module ends.
One that is killed (SIGKILL, no memory) leaves it, in the host's memory: a thousand killed runs would leave hundreds of megabytes.

Only what is provably one of these modules' goes: by its name, its owner, its mode, an age of a day, and that nobody has it open;
each run holds its own folder open as long as it lives.
"""

from __future__ import annotations

import itertools
import os
import re
import stat
import sys
import time
import typing as t

from ansible_collections.fleetclean.docker.plugins.module_utils import trust

_MODULES = r"docker_(?:clean|disk_report|log_truncate)"
#: What Ansible's wrapper makes (``_ansiballz/_wrapper.py``), and what it copies a module into without pipelining (``ShellBase._generate_temp_dir_name``).
_PAYLOAD = re.compile(rf"ansible_(?:[A-Za-z0-9_.]+\.)?{_MODULES}_payload_[A-Za-z0-9_]{{8}}")
_COPIED = re.compile(r"ansible-tmp-[0-9.]+-[0-9]+-[0-9]+")
_COPY = re.compile(rf"AnsiballZ_{_MODULES}\.py")
#: What ``plugin_utils/anywhere.py`` makes for the file of a job (``async``), and that file.
_JOB_FOLDER = re.compile(r"\.ansible_async-[0-9a-f]{16}")
_JOB = re.compile(r"j?[0-9]+\.[0-9]+(?:\.tmp)?")
#: Seconds. No run takes that long. A job's answer that nobody fetched stays for a week.
_AGE, _JOB_AGE = 86400.0, 7 * 86400.0
#: Names that are looked at; anybody may make more of them in such a folder.
_MOST_NAMES = 10_000


def sweep() -> None:
    """Keep this run's own folder from being removed, and remove those of runs that were killed. Not being able to is no error."""
    own = _own_folder()
    if not own:
        return
    try:
        # It stays open until the process ends.
        os.open(own, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        folder = trust.resolve(os.path.dirname(own), {0, os.geteuid()})
        with os.scandir(folder) as entries:
            found = [entry.path for entry in itertools.islice(entries, _MOST_NAMES) if entry.path != own and _is_left(entry)]
        if not found:
            return
        import shutil

        from ansible_collections.fleetclean.docker.plugins.module_utils.storage import open_files

        below = tuple(f"{path}/" for path in found)
        opened = {path for paths in open_files(lambda name: f"{name}/".startswith(below), {os.geteuid()}) for path in paths}
        for path in found:
            if not any(f"{name}/".startswith(f"{path}/") for name in opened):
                shutil.rmtree(path, ignore_errors=True)
    except (OSError, trust.NotTrusted):
        return


def _own_folder() -> str | None:
    folders = (os.path.dirname(path) for path in sys.path)
    return next((folder for folder in folders if _PAYLOAD.fullmatch(os.path.basename(folder))), None)


def _is_left(entry: os.DirEntry[str]) -> bool:
    inner = next((inner for outer, inner in ((_COPIED, _COPY), (_JOB_FOLDER, _JOB)) if outer.fullmatch(entry.name)), None)
    if not inner and not _PAYLOAD.fullmatch(entry.name):
        return False
    try:
        found = entry.stat(follow_symlinks=False)
        return (
            stat.S_ISDIR(found.st_mode)
            and found.st_uid == os.geteuid()
            and not found.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
            and found.st_mtime < time.time() - (_JOB_AGE if inner is _JOB else _AGE)
            and (not inner or _holds_only(inner, entry.path))
        )
    except OSError:
        return False


def _holds_only(inner: re.Pattern[str], folder: str) -> bool:
    names: t.Sequence[str] = os.listdir(folder)
    # An empty folder may be about to get another module than ours. One of a job is ours by its name.
    return bool(names or inner is _JOB) and all(inner.fullmatch(name) for name in names)
