"""Whole machines, emulated, for the storage drivers that the kernel of a test machine lacks: see machine.py."""

from __future__ import annotations

from .machine import DRIVERS, Machine

__all__ = ["DRIVERS", "Machine"]
