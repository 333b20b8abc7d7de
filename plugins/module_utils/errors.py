# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one exception that ends a module with a message a person can act on."""

from __future__ import annotations


class FleetcleanError(Exception):
    """What went wrong, where, and the next step, in one sentence or two.

    ``code`` tells kinds of failure apart for the role's fleet report: ``bad_input``, ``no_sdk``,
    ``no_engine`` (nothing is installed), ``engine_down``, ``denied``, ``not_docker``,
    ``foreign_root``, ``not_yet``, ``engine`` (any other answer of the engine), ``disk``.
    """

    def __init__(self, message: str, code: str = "engine") -> None:
        super().__init__(message)
        self.code = code


def not_yet(what: str, instead: str) -> FleetcleanError:
    """The error for what the interface names and this release does not do: never a pretended result."""
    return FleetcleanError(f"{what}: not there yet in this release; {instead}.", "not_yet")
