# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A module that wrote no JSON: the line that it, its Python, or sudo wrote last, and what to do about it.

Ansible itself says "No start of json char found" or "MODULE FAILURE". The line is the reason as a rule; it is the host's, so it is data and
cut, made visible and quoted. The next step is ours, and comes of a table: the first row that fits counts.
"""

from __future__ import annotations

import re
import typing as t

from ansible_collections.fleetclean.docker.plugins.plugin_utils import answers

#: What ssh says of each session that has a terminal.
_SSH_ENDED = re.compile(r"(Shared c|C)onnection to \S+ closed\.")
#: Of all that a host wrote, as much of its end as is looked at.
_MOST_LOOKED = 20_000

_PYTHON = "The modules need Python 3.8 or newer on the host; set ansible_python_interpreter to one"
_SUDO = "Install sudo there, or log in as root without it (become: false; cleanup_become: false for the playbooks), or set ansible_become_method"
_TERMINAL = (
    "Let this user's sudo work without a terminal (in sudoers: Defaults:USER !requiretty), or give it one: ansible_pipelining: false, "
    "and ssh with -tt"
)
_RIGHTS = "Let the user become root there (sudoers), or log in as another one"
_TMPDIR = (
    "No temporary folder can be written there: neither /dev/shm nor another one. Give one in memory: environment: {TMPDIR: /run}, "
    "and where Ansible copies modules (without pipelining) ansible_remote_tmp: /run"
)
_PASSWORD = "Give ansible_become_password (or --ask-become-pass), or let the user become root there without one (sudoers: NOPASSWD)"
_KILLED = "It was killed, for want of memory as a rule: the host's dmesg tells. Running it again goes on where it ended"
_ELSE = "Run it with -vvv to see all that the host wrote"

_NO_ROOM = re.compile(
    "no usable temporary directory|no space left on device|read-only file system|disk quota exceeded|failed to create temporary directory", re.IGNORECASE
)
_NO_PASSWORD = re.compile(r"\b(missing|incorrect) \S+ password", re.IGNORECASE)
#: What is found in the last lines, or in the last one alone, and what to do then.
_STEPS: t.Sequence[tuple[re.Pattern[str], str]] = tuple((re.compile(pattern, re.IGNORECASE | re.MULTILINE), step) for pattern, step in (
    (r"^\s*SyntaxError: |requires a minimum of python|future feature annotations", _PYTHON),
    (r"python[\d.]*['\"]?: (no such file|(command )?not found|permission denied|cannot execute|error while loading)", _PYTHON),
    (r"\b(sudo|doas|dzdo|pbrun)['\"]?: (no such file|(command )?not found|permission denied)", _SUDO),
    (r"must have a tty|a (terminal|tty) is required|no tty present|not a tty", _TERMINAL),
    (r"is not in the sudoers|is not allowed to (run|execute)|may not run sudo|a password is required", _RIGHTS),
    (_NO_ROOM.pattern, _TMPDIR),
    (r"^killed$|out of memory|MemoryError|cannot allocate memory", _KILLED),
))
#: What a shell returns for a process that was killed by SIGKILL, and for a command that it cannot run.
_KILLED_CODE, _NOT_RUN_CODES = 137, (126, 127)


def last_line(*texts: object) -> str:
    """Return the last line of the first of these texts that has one, cut and made visible; empty if none has."""
    for text in texts:
        for line in reversed(text[-answers.MAX_TEXT:].splitlines() if isinstance(text, str) else ()):
            words = " ".join(answers.one_line(line, 400).split())
            if words and not _SSH_ENDED.fullmatch(words):
                return words
    return ""


def no_answer(module: str, stdout: str, stderr: str, code: object, interpreter: str = "") -> str:
    """Return what to tell of a module that wrote no JSON: the host's last line, and the next step.

    :param interpreter: the Python that Ansible ran it with.
    """
    line = last_line(stderr, stdout)
    said = f"it wrote last: {line.rstrip('.')}" if line else f"it wrote nothing and ended with {code}" if isinstance(code, int) else "it wrote nothing"
    is_interpreter = code in _NOT_RUN_CODES and interpreter and f"{interpreter}: " in line
    return f"{module}: no answer from the host; {said}. {_PYTHON if is_interpreter else _next_step(line, stdout, stderr, code)}."


def is_mute(msg: object) -> bool:
    """Whether a message is Ansible's own for a module that wrote no JSON."""
    return isinstance(msg, str) and re.search("No (start|end) of json char found|JSONDecodeError", msg) is not None


def not_run(module: str, error: str) -> str:
    """Return what to tell where Ansible itself could not run a module: no place to copy it to, no password; empty for any other error."""
    line = next((line for line in error.splitlines() if _NO_ROOM.search(line)), "")
    if line:
        return no_answer(module, "", line, None)
    line = next((line for line in error.splitlines() if _NO_PASSWORD.search(line)), "")
    return f"{module}: {answers.one_line(line, 400).rstrip('.')}. {_PASSWORD}." if line else ""


def _next_step(line: str, stdout: str, stderr: str, code: object) -> str:
    """What to do, by the last line that a host wrote, else by what it wrote before."""
    for text in (line, stderr[-_MOST_LOOKED:], stdout[-_MOST_LOOKED:]):
        for pattern, step in _STEPS:
            if pattern.search(text):
                return step
    return _KILLED if code == _KILLED_CODE else _ELSE
