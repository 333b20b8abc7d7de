"""A command in a process namespace of its own: whatever ends this process, SIGKILL too, ends all that the command started.

    caller ──► run() ──► unshare --kill-child ──► supervise(), the namespace's process 1 ──► the command

The kernel kills every process of a namespace with its process 1. That one is ours and not the command: process 1 does not feel signals
that it has no handler for, and it has to take orphans off the process table.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .errors import FleetError
from .system import children, die_with_parent

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SI_KERNEL = 0x80


def run(argv: Sequence[str]) -> int:
    """Run ``argv``; its exit code, or 128 + the signal that ended it.

    Everything that it started ends with it, with this process, and with this process's parent. SIGINT, SIGTERM and SIGHUP are passed on.
    """
    if os.geteuid() != 0:
        raise FleetError("contained needs root (a process namespace)")
    if shutil.which(argv[0]) is None:
        raise FleetError(f"{argv[0]}: command not found")
    die_with_parent(os.getppid())
    signal.pthread_sigmask(signal.SIG_BLOCK, {*_PASSED_ON, signal.SIGCHLD})
    own = os.getpid()
    # The folder of the package must not be on the command's path, nor may its own PYTHONPATH change: the file is run as such.
    unshare = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--", sys.executable, "-I", str(Path(__file__).with_name("supervise.py")), *argv],
        preexec_fn=lambda: die_with_parent(own))
    while True:
        info = signal.sigwaitinfo({*_PASSED_ON, signal.SIGCHLD})
        if info.si_signo == signal.SIGCHLD:
            if unshare.poll() is not None:
                return unshare.returncode if unshare.returncode >= 0 else 128 - unshare.returncode
        # What the terminal sends reaches the command without us, since it is in the same process group.
        elif info.si_code != _SI_KERNEL:
            for pid in children(unshare.pid):
                os.kill(pid, info.si_signo)
