# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is told of a module that wrote no JSON. The lines are what hosts of the bed wrote, with the Python or the sudo that is named."""

from __future__ import annotations

import pytest
from ansible_collections.fleetclean.docker.plugins.plugin_utils import last_words

PYTHON = "The modules need Python 3.8 or newer on the host; set ansible_python_interpreter to one"


@pytest.mark.parametrize(
    ("stderr", "step"),
    [
        # Python 3.6.15 under ansible-core 2.19, 3.7.16 under 2.17 and 2.19, 2.7.18.
        ('  File "<stdin>", line 3\nSyntaxError: future feature annotations is not defined\n', PYTHON),
        ('Traceback (most recent call last):\n    def f(required: X = None, /, **fields: Y) -> None:\n    ^\nSyntaxError: invalid syntax\n', PYTHON),
        ('  File "<stdin>", line 40\n    zip_data: str,\n            ^\nSyntaxError: invalid syntax\n', PYTHON),
        ("/bin/sh: 1: /opt/none/python3: not found\n", PYTHON),
        ("bash: line 1: /usr/bin/python3.12: No such file or directory\n", PYTHON),
        ("/opt/py/bin/python3.7: error while loading shared libraries: libpython3.7m.so.1.0: cannot open shared object file\n", PYTHON),
        ("/bin/sh: 1: sudo: not found\n", "Install sudo there"),
        ("sh: sudo: command not found\n", "Install sudo there"),
        ("sudo: sorry, you must have a tty to run sudo\n", "Let this user's sudo work without a terminal"),
        ("sudo: a terminal is required to read the password; either use the -S option\n", "Let this user's sudo work without a terminal"),
        ("ops is not in the sudoers file.  This incident will be reported.\n", "Let the user become root there"),
        ("OSError: [Errno 28] No space left on device\n", "No temporary folder can be written there"),
        ("FileNotFoundError: [Errno 2] No usable temporary directory found in ['/dev/shm', '/tmp']\n", "No temporary folder can be written there"),
        ("MemoryError\n", "It was killed, for want of memory as a rule"),
        ("Killed\n", "It was killed, for want of memory as a rule"),
        ("KeyError: 'x'\n", "Run it with -vvv"),
        ("", "Run it with -vvv"),
    ],
)
@pytest.mark.parametrize("terminal", [False, True])
def test_each_last_line_has_its_next_step(stderr: str, step: str, terminal: bool) -> None:
    # With a terminal all of it comes on stdout, and ssh says that it ends.
    texts = (stderr.replace("\n", "\r\n"), "Shared connection to web1 closed.\r\n") if terminal else ("", stderr)
    found = last_words.no_answer("docker_clean", *texts, 1)
    last = (stderr.splitlines() or ["nothing and ended with 1"])[-1].rstrip(".")
    assert found.startswith("docker_clean: no answer from the host; it wrote ")
    assert f"{' '.join(last.split())}. {step}" in found
    assert found.endswith(".") and ".." not in found


def test_who_was_killed_without_a_word_is_known_by_what_the_shell_says() -> None:
    assert last_words.no_answer("docker_clean", "", "", 137) == (
        "docker_clean: no answer from the host; it wrote nothing and ended with 137. "
        "It was killed, for want of memory as a rule: the host's dmesg tells. Running it again goes on where it ended."
    )


@pytest.mark.parametrize(("code", "interpreter", "known"), [(127, "/opt/none", True), (126, "/opt/none", True), (1, "/opt/none", False), (127, "", False)])
def test_an_interpreter_of_any_name_that_is_not_there_is_known(code: int, interpreter: str, known: bool) -> None:
    assert (PYTHON in last_words.no_answer("docker_clean", "", "/bin/sh: 1: /opt/none: not found\n", code, interpreter)) == known


def test_a_host_says_no_more_than_a_line_and_nothing_that_cannot_be_seen() -> None:
    found = last_words.no_answer("docker_clean", "x" * 10_000_000 + "\n\x1b[2J" + "\u202ey" * 1000 + "\r\n\r\n", "", 1)
    assert len(found) < 600 and found.isprintable()


def test_what_was_written_before_the_last_line_counts_where_that_says_nothing() -> None:
    assert PYTHON in last_words.no_answer("docker_clean", "", "  File\nSyntaxError: invalid syntax\nMOTD: have a nice day\n", 1)


@pytest.mark.parametrize(
    ("error", "step"),
    [
        ("Failed to create temporary directory. In some cases", "No temporary folder can be written there"),
        ("failed to transfer file to x:\n\ndd: y: No space left on device\n0+1 records in", "y: No space left on device. No temporary folder can be written there"),
        ("Missing sudo password", "docker_clean: Missing sudo password. Give ansible_become_password"),
        ("Incorrect sudo password", "docker_clean: Incorrect sudo password. Give ansible_become_password"),
        ("Failed to connect to the host via ssh: x", ""),
    ],
)
def test_of_ansibles_own_errors_want_of_a_place_and_of_a_password_are_told(error: str, step: str) -> None:
    found = last_words.not_run("docker_clean", error)
    assert step in found and bool(found) == bool(step)
