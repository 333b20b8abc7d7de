"""The one error of the test bed."""

from __future__ import annotations


class FleetError(Exception):
    """Something a person can understand and act on; its text is one line, with more lines only for a log's end."""
