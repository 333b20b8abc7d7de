# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a module starts: out of the archive that Ansible sends, whose code Python compiles each time."""

from __future__ import annotations

import os
import sys
from zipimport import zipimporter


class _CompilesOnce(zipimporter):
    """Python compiles a module's code to tell its file's name, throws it away, and compiles it once more to run it. That is half of the
    start-up. Here everything is source, so the name is known without."""

    def get_filename(self, fullname: str) -> str:
        name = fullname.rpartition(".")[2]
        return os.path.join(self.archive, self.prefix, *([name, "__init__.py"] if self.is_package(fullname) else [name + ".py"]))


def compile_once() -> None:
    """Have each of this collection's modules that is imported from now on compiled once. Outside of an archive nothing is changed."""
    for path in sys.modules[__package__].__path__:
        if isinstance(sys.path_importer_cache.get(path), zipimporter):
            sys.path_importer_cache[path] = _CompilesOnce(path)
