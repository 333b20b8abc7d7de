"""What the scenarios' tests share: what the host was made dirty with, and its engine's client."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Callable

import pytest
from testinfra.host import Host

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.fleet import Dirt, Fleet

# Debian's own client comes before another that the machine may have; no answer of the engine's takes long.
CLIENT = "PATH=/usr/bin:$PATH timeout 30 docker"


def _name(host: Host) -> str:
    return str(host.backend.get_pytest_id()).rpartition("/")[2]


@pytest.fixture
def dirt(host: Host) -> Dirt:
    """What the host was made dirty with."""
    return Dirt.load(Fleet.attach(os.environ["FLEETCLEAN_DIR"])[_name(host)])


@pytest.fixture
def docker(host: Host) -> Callable[..., str]:
    """Runs the host's Docker client; what it prints."""

    def run(arguments: str) -> str:
        return str(host.check_output(f"{CLIENT} {arguments}"))

    return run


@pytest.fixture
def there(host: Host) -> Callable[..., bool]:
    """Whether the engine has an object: ``there("image", name)``."""

    def ask(kind: str, name: str) -> bool:
        found = host.run(f"{CLIENT} {kind} inspect {name}")
        assert found.rc == 0 or "No such" in found.stderr or "not found" in found.stderr, found.stderr
        return found.rc == 0 and bool(json.loads(found.stdout))

    return ask


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):  # type: ignore[no-untyped-def]
    """A failed test shows what the host's engine had to say."""
    report = yield
    if report.failed and "host" in getattr(item, "funcargs", {}):
        log = item.funcargs["host"].run("tail -n 30 /run/fleet/engine.log")
        report.sections.append((f"the engine's log on {_name(item.funcargs['host'])}", log.stdout))
    return report
