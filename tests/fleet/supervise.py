"""Process 1 of contained.py's namespace: runs its arguments as a command, passes signals on to it, and buries orphans."""

from __future__ import annotations

import os
import signal
import sys

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SI_KERNEL = 0x80


def main(argv: list[str]) -> int:
    """The command's exit code, or 128 + the signal that ended it; 127 when it cannot be run."""
    watched = {*_PASSED_ON, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    command = os.fork()
    if command == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, watched)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        try:
            os.execvp(argv[0], argv)
        except OSError as error:
            print(f"{argv[0]}: {error.strerror}", file=sys.stderr)
        os._exit(127)
    while True:
        info = signal.sigwaitinfo(watched)
        if info.si_signo == signal.SIGCHLD:
            while True:
                try:
                    pid, status = os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    break
                if pid == 0:
                    break
                if pid == command:
                    code = os.waitstatus_to_exitcode(status)
                    return code if code >= 0 else 128 - code
        elif info.si_code != _SI_KERNEL:
            os.kill(command, info.si_signo)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
