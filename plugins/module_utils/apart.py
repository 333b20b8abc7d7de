# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work that comes to its end although the module is killed: a connection that breaks off, a controller that loses patience."""

from __future__ import annotations

import os
import pickle
import signal
import typing as t

_Answer = t.TypeVar("_Answer")


def do(work: t.Callable[[], _Answer]) -> _Answer:
    """Do ``work`` in a process of its own; return what it returns, raise what it raises.

    Nothing that ends this process ends that one; what it would have said is lost then. What comes back has to be picklable.
    """
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        try:
            go_on_whatever_comes()
            try:
                answer: t.Any = (True, work())
            except Exception as error:  # pylint: disable=broad-except
                answer = (False, error)
            with os.fdopen(write, "wb") as stream:
                stream.write(_packed(answer))
        except OSError:
            pass  # nobody is listening any more; the work is done
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        said = stream.read()
    os.waitpid(child, 0)
    if not said:
        raise ChildProcessError("the process that did the work was killed; what it did until then can be seen by running this again")
    fine, answer = pickle.loads(said)
    if not fine:
        raise answer
    return t.cast(_Answer, answer)


def _packed(answer: tuple[bool, t.Any]) -> bytes:
    try:
        packed = pickle.dumps(answer)
        pickle.loads(packed)
        return packed
    except Exception:  # pylint: disable=broad-except
        return pickle.dumps((False, RuntimeError(f"{type(answer[1]).__name__}: {answer[1]}")))


def go_on_whatever_comes() -> None:
    """Make this process one that no signal but SIGKILL ends, and that says nothing to anybody."""
    os.setsid()
    # SIGIO tells that somebody wants to open a file on which we have a lease: he waits.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGALRM, signal.SIGIO, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    # Whoever reads what the module says must not wait for this process.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
