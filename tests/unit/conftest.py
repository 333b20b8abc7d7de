# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the collection importable by its own name, and finds the Pythons of this machine."""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COLLECTIONS = ROOT / "playbooks" / "collections"
sys.path.insert(0, str(COLLECTIONS))
sys.path.insert(0, str(Path(__file__).resolve().parent))

#: The releases that a host may have.
VERSIONS = tuple(f"3.{minor}" for minor in range(8, 15))


def _candidates() -> list[str]:
    folders = os.environ.get("PATH", "").split(os.pathsep)
    found = [os.path.join(folder, f"python{version}") for version in VERSIONS for folder in folders if folder]
    if shutil.which("pyenv"):
        answer = subprocess.run(["pyenv", "root"], capture_output=True, text=True, check=False)
        root = answer.stdout.strip()
        if root:
            found += sorted(glob.glob(f"{glob.escape(root)}/versions/*/bin/python3"))
    return [sys.executable] + [path for path in found if os.access(path, os.X_OK)]


def _pythons() -> dict[str, str]:
    """One working interpreter for each release; pyenv's stand-ins for absent ones do not count."""
    found: dict[str, str] = {}
    for path in _candidates():
        named = re.search(r"python(3\.\d+)$|/versions/(3\.\d+)", path)
        if named and (named.group(1) or named.group(2)) in found:
            continue
        answer = subprocess.run(
            [path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            capture_output=True,
            text=True,
            check=False,
        )
        version = answer.stdout.strip()
        if answer.returncode == 0 and version in VERSIONS:
            found.setdefault(version, path)
    return dict(sorted(found.items(), key=lambda item: int(item[0].split(".")[1])))


PYTHONS = _pythons()


@pytest.fixture(params=sorted(PYTHONS.items(), key=lambda item: int(item[0].split(".")[1])), ids=lambda item: item[0])
def python(request: pytest.FixtureRequest) -> str:
    """The interpreter of each release of Python that is here."""
    return request.param[1]
