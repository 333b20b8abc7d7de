"""Runs an emulator and takes away all that it leaves: ``python3 -m tests.vm.keeper FOLDER COMMAND...``

The end of standard input is the end of the owner, however that came. Then the emulator ends, and FOLDER is removed. When the emulator ends
by itself, a line on standard output says so, and FOLDER stays for the owner to look into until then.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.fleet.system import die_with_parent


def main(folder: Path, command: list[str]) -> None:
    """See above."""
    # Ctrl+C is for the owner, which ends us by its own end. Handlers, not SIG_IGN: that would be inherited.
    for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(signum, lambda *_: None)
    own = os.getpid()
    try:
        # Disks that the emulator throws away (snapshot=on) are there too.
        emulator = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(folder)}, stdin=subprocess.DEVNULL,
                                    stdout=subprocess.DEVNULL, stderr=open(folder / "emulator.log", "wb"), preexec_fn=lambda: die_with_parent(own))
        ended = os.pidfd_open(emulator.pid)
        watched = [sys.stdin.fileno(), ended]
        while sys.stdin.fileno() not in (ready := select.select(watched, [], [])[0]):
            watched.remove(ended)
            print("ended", emulator.wait(), flush=True)
            assert ready == [ended]
        emulator.kill()
        emulator.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
