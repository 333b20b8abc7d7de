# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a failed test of an emulated machine shows."""

from __future__ import annotations

from typing import Any

import pytest

# Its asserts say what they compared, as those in a test file do.
pytest.register_assert_rewrite("tests.vm.common")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """A failed test shows the engine's last words, and the kernel's."""
    report = yield
    if report.when == "call" and report.failed:
        for value in getattr(item, "funcargs", {}).values():
            machine = getattr(value, "machine", None)
            if machine is not None:
                report.sections.append((f"console of {machine.name}", machine.console()[-800:]))
                try:
                    report.sections.append((f"engine of {machine.name}", machine.engine_log()[-800:]))
                except Exception as error:  # the machine may be what failed
                    report.sections.append((f"engine of {machine.name}", str(error)))
    return report
