# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What one call sends to a host: little, and nothing that the host's Python does not run by itself."""

from __future__ import annotations

import base64
import io
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import ansible
import pytest
from conftest import COLLECTIONS, PYTHONS, ROOT

MODULES = ("docker_clean", "docker_disk_report", "docker_log_truncate")
#: Of one call, as it goes through the connection.
MAX_PAYLOAD_BYTES = 500_000
#: Prints the file that Ansible's action plugins send for a module, without this machine's Docker SDK.
_PACK = """
import sys
sys.modules.update(dict.fromkeys(("docker", "requests", "urllib3", "paramiko")))
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader, module_loader
from ansible.template import Templar
init_plugin_loader([sys.argv[1]])
from ansible.executor.module_common import modify_module
name = "fleetclean.docker." + sys.argv[2]
path = module_loader.find_plugin_with_context(name).plugin_resolved_path
variables = {"ansible_python_interpreter": "/usr/bin/python3"}
built = modify_module(module_name=name, module_path=path, module_args={}, templar=Templar(DataLoader(), variables), task_vars=variables,
                      module_compression="ZIP_DEFLATED")
sys.stdout.buffer.write(built[0] if isinstance(built, tuple) else built.b_module_data)
"""


@pytest.mark.parametrize("module", MODULES)
def test_one_call_sends_less_than_half_a_megabyte_and_all_that_it_needs(module: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    sent = subprocess.run([sys.executable, "-c", _PACK, str(COLLECTIONS), module], capture_output=True, check=True, env=environment).stdout
    assert len(sent) < MAX_PAYLOAD_BYTES
    (packed,) = re.findall(rb"[A-Za-z0-9+/=]{10000,}", sent)
    names = zipfile.ZipFile(io.BytesIO(base64.b64decode(packed))).namelist()
    assert {name.split("/")[0] for name in names} <= {"ansible", "ansible_collections", "__main__.py"}
    # Imported inside a function, where Ansible has to see it nevertheless.
    assert "ansible_collections/fleetclean/docker/plugins/module_utils/ssh_transport.py" in names


def test_what_runs_on_a_host_can_be_imported_by_every_python_that_has_nothing_else(tmp_path: Path, python: str) -> None:
    """-I and -S keep this machine's packages out; of Ansible there is what a module's zip has."""
    version = next(version for version, path in PYTHONS.items() if path == python)
    there = Path(str(ansible.__file__)).parent
    found = re.search(r"_PY_MIN = \((\d+), (\d+)\)", (there / "module_utils/basic.py").read_text())
    assert found, "ansible-core says it in another way now"
    if tuple(map(int, version.split("."))) < tuple(map(int, found.groups())):
        pytest.skip(f"not here: this ansible-core does not run modules on Python {version}")
    (tmp_path / "ansible").mkdir()
    (tmp_path / "ansible/__init__.py").touch()
    (tmp_path / "ansible/module_utils").symlink_to(there / "module_utils")
    names = sorted(path.stem for path in (ROOT / "plugins/module_utils").glob("*.py"))
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3]\nfrom importlib import import_module\n"
        "for name in sys.argv[3:]: import_module('ansible_collections.fleetclean.docker.plugins.module_utils.' + name)\n"
        "print(sorted({'docker', 'requests', 'urllib3', 'paramiko'}.intersection(sys.modules)))\n"
    )
    done = subprocess.run([python, "-I", "-S", "-B", "-c", code, str(COLLECTIONS), str(tmp_path), *names], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
