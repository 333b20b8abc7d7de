"""A pytest plugin (``-p tests.no_skips``): where FLEETCLEAN_NO_SKIP=1 is set, as in CI, a skipped test is a failed one.

A machine that lacks root or an engine skips most of the tests, which is a help to whoever works there and must not look like success in
CI. What cannot run on some machines at all says so: its reason begins with ``not here:`` and stays a skip. So does an expected failure.
"""

from __future__ import annotations

import os
from typing import Any, Generator, Union

import pytest

ALLOWED = "not here:"


def _reason(report: Union[pytest.TestReport, pytest.CollectReport]) -> str:
    """Why it was skipped, without pytest's own ``Skipped: `` before it."""
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text[len("Skipped: "):] if text.startswith("Skipped: ") else text


def _judge(report: Union[pytest.TestReport, pytest.CollectReport]) -> None:
    if report.skipped and not hasattr(report, "wasxfail") and not _reason(report).startswith(ALLOWED):
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be (FLEETCLEAN_NO_SKIP=1): {_reason(report)}"


if os.environ.get("FLEETCLEAN_NO_SKIP") == "1":

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """A test that skips itself, or is marked so."""
        report = yield
        _judge(report)
        return report

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_make_collect_report() -> Generator[None, Any, pytest.CollectReport]:
        """A whole file that skips itself while it is read."""
        report = yield
        _judge(report)
        return report
