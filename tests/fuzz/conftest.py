# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fuzz targets as tests."""

from __future__ import annotations

import pytest

from tests.fuzz import budget


def pytest_configure(config: pytest.Config) -> None:
    """An input that never returns ends the process; what it was doing has to be seen then, captured output or not."""
    try:
        from _pytest.faulthandler import fault_handler_stderr_fd_key
    except ImportError:  # another release of pytest keeps it elsewhere
        return
    budget.STDERR = config.stash.get(fault_handler_stderr_fd_key, None)
