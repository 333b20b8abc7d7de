# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A process that holds log files open as an engine does, and writes to them when it is told to.

What proves an engine is the database of its volumes, which it has open as long as it runs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import typing as t
from pathlib import Path

#: Opens what it is told, says which descriptors these are, and writes "number text" from its input to them.
_SCRIPT = """
import os, sys
for argument in sys.argv[1:]:
    mode, path = argument.split(":", 1)
    flags = {"append": os.O_WRONLY | os.O_APPEND, "offset": os.O_WRONLY, "both": os.O_RDWR | os.O_APPEND, "read": os.O_RDONLY}[mode]
    descriptor = os.open(path, flags | os.O_CREAT)
    if mode == "offset":
        os.lseek(descriptor, 0, os.SEEK_END)
    print(descriptor, end=" ")
print(flush=True)
for line in sys.stdin:
    number, text = line.split(" ", 1)
    if text == "close\\n":
        os.close(int(number))
    else:
        os.write(int(number), text.encode())
    print("done", flush=True)
"""


def database(root: t.Union[str, Path]) -> Path:
    """The database of a data root's volumes, made if it is not there."""
    path = Path(root) / "volumes/metadata.db"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.touch(mode=0o600)
    return path


class Holder:
    """An engine's process; ``descriptors`` are its files in the order in which they were named.

    ``root``: whose engine it is, proven by its database; None: nobody's.
    """

    def __init__(self, *opened: str, before: t.Sequence[str] = (), root: t.Union[str, Path, None] = None) -> None:
        if root is not None:
            opened = (*opened, f"both:{database(root)}")
        self._process = subprocess.Popen([*before, sys.executable, "-c", _SCRIPT, *opened], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid
        self.descriptors = [int(word) for word in self._said().split()]

    def _said(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def tell(self, descriptor: int, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{descriptor} {text}\n")
        self._process.stdin.flush()
        assert self._said() == "done\n"

    def end(self) -> None:
        if self._process.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
        self._process.communicate()
