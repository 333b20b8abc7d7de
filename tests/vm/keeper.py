"""Runs an emulator and takes away all that it leaves: ``python3 -m tests.vm.keeper FOLDER``

The first line of standard input is the emulator's command, as a JSON list; its end is the end of the owner, however that came. Then the
emulator ends, and FOLDER is removed. When the emulator ends by itself, a line on standard output says so, and FOLDER stays until then.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.fleet.system import die_with_parent


def main(folder: Path) -> None:
    """See above."""
    # Ctrl+C is for the owner, which ends us by its own end. Handlers, not SIG_IGN: that would be inherited.
    for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(signum, lambda *_: None)
    try:
        line = sys.stdin.readline()
        if line:
            _run(json.loads(line), folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(command: list[str], folder: Path) -> None:
    own = os.getpid()
    with open(folder / "emulator.log", "wb") as log:
        # What it writes to disks that it throws away (snapshot=on) is in the folder too.
        emulator = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(folder)}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                    stderr=log, preexec_fn=lambda: die_with_parent(own))
    watched = [sys.stdin.fileno(), os.pidfd_open(emulator.pid)]
    while sys.stdin.fileno() not in select.select(watched, [], [])[0]:
        del watched[1:]
        print("ended", emulator.wait(), flush=True)
    emulator.kill()
    emulator.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
