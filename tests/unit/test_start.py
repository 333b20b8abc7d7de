# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a module starts out of the archive that Ansible sends, on each Python that is here."""

from __future__ import annotations

import json
import subprocess
import typing as t
import zipfile
from pathlib import Path

from conftest import ROOT

PACKAGE = "ansible_collections/fleetclean/docker/plugins/module_utils"
#: Counts how often a module's source is compiled, and tells where Python says that it came from.
RUN = f"""
import json, sys, zipimport
sys.path.insert(0, sys.argv[1])
from {PACKAGE.replace("/", ".")} import start
if sys.argv[2:] == ["prepare"]:
    start.prepare()
compiled, compile_source = [], zipimport._compile_source
def count(path, *more):
    compiled.append(path.rpartition("/")[2])
    return compile_source(path, *more)
zipimport._compile_source = count
from {PACKAGE.replace("/", ".")} import probe, inner
told = {{"compiled": sorted(compiled), "file": probe.__file__, "package": inner.__file__, "within": inner.deep.SAYS}}
try:
    probe.fail()
except ZeroDivisionError as error:
    import traceback
    told["line"] = traceback.extract_tb(error.__traceback__)[-1].line
import http.client
told["tls_came_along"] = "ssl" in sys.modules
import ssl
told["tls"] = bool(ssl.create_default_context)
print(json.dumps(told))
"""


def run(python: str, archive: Path, *words: str) -> dict[str, object]:
    done = subprocess.run([python, "-I", "-S", "-B", "-c", RUN, str(archive), *words], capture_output=True, text=True, check=False)
    assert not done.stderr, done.stderr
    return dict(json.loads(done.stdout))


def test_each_module_is_compiled_once_and_tls_stays_away(tmp_path: Path, python: str) -> None:
    archive = tmp_path / "payload.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        folders = [PACKAGE[:end] for end in range(len(PACKAGE) + 1) if PACKAGE[end:end + 1] in ("/", "")]
        for folder in folders:
            packed.writestr(f"{folder}/__init__.py", "")
        packed.writestr(f"{PACKAGE}/start.py", (ROOT / "plugins/module_utils/start.py").read_text())
        packed.writestr(f"{PACKAGE}/probe.py", "def fail():\n    return 1 // 0\n")
        packed.writestr(f"{PACKAGE}/inner/__init__.py", "from . import deep\n")
        packed.writestr(f"{PACKAGE}/inner/deep.py", "SAYS = 'here'\n")
    quick, plain = run(python, archive, "prepare"), run(python, archive)
    assert quick.pop("compiled") == ["__init__.py", "deep.py", "probe.py"]
    assert quick.pop("tls_came_along") is False and plain.pop("tls_came_along") is True
    assert set(t.cast("list[str]", plain.pop("compiled"))) == {"__init__.py", "deep.py", "probe.py"}
    assert quick == plain
    assert quick["line"] == "return 1 // 0" and quick["within"] == "here"
