"""Throwaway Docker hosts for tests, benchmarks and demonstrations: see host.py for what one is, keeper.py for how long it lives."""

from __future__ import annotations

from .dirty import Dirt, age, dirty
from .errors import FleetError
from .fleet import Fleet
from .host import CommandFailed, Host, HostSpec

__all__ = ["CommandFailed", "Dirt", "Fleet", "FleetError", "Host", "HostSpec", "age", "dirty"]
