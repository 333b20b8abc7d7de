# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A process that holds log files open as an engine does, and writes to them when it is told to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import typing as t

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


class Holder:
    """An engine's process; ``descriptors`` are its files in the order in which they were named."""

    def __init__(self, *opened: str, before: t.Sequence[str] = ()) -> None:
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
