# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the integration tests, and what a failed one shows."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fleet import Fleet, HostSpec, keeper
from tests.integration.support import Ansible


@pytest.fixture(scope="session")
def here() -> None:
    """Skip what needs root and an engine on a machine that lacks them."""
    reason = keeper.missing([HostSpec("any")])
    if reason:
        pytest.skip(reason)
    if not shutil.which("ansible", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"):
        pytest.skip("no ansible beside this Python")


@pytest.fixture(scope="module")
def ansible(fleet: Fleet) -> Ansible:
    """Ansible on the fleet of the test's own file."""
    return Ansible(str(fleet.inventory))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """A failed test shows the engines' last words."""
    report = yield
    if report.when == "call" and report.failed:
        for value in getattr(item, "funcargs", {}).values():
            for host in value if isinstance(value, Fleet) else ():
                try:
                    report.sections.append((f"engine of {host.name}", host.engine_log()[-800:]))
                except Exception as error:  # the host may be what failed
                    report.sections.append((f"engine of {host.name}", str(error)))
    return report
