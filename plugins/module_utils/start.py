# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a module starts: out of the archive that Ansible sends, whose code Python compiles each time."""

from __future__ import annotations

import os
import sys
import typing as t
from contextlib import contextmanager
from zipimport import zipimporter


class _CompilesOnce(zipimporter):
    """Python compiles a module's code to tell its file's name, throws it away, and compiles it once more to run it: half of the start-up.
    In Ansible's archive everything is source, so the name is known without."""

    def get_filename(self, fullname: str) -> str:
        if self.archive != getattr(__spec__.loader, "archive", None):
            return super().get_filename(fullname)
        name = fullname.rpartition(".")[2]
        return os.path.join(self.archive, self.prefix, *([name, "__init__.py"] if self.is_package(fullname) else [name + ".py"]))


@contextmanager
def _without(name: str) -> t.Iterator[None]:
    """Have an import of ``name`` fail that is not there yet, as in a Python that was built without it."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


def prepare() -> None:
    """Make what is imported from now on cost less. To be called first, in a process that is a module's alone."""
    _compile_once()
    # It brings TLS along, for a class of its own that nothing here uses; who needs TLS imports it (connection.tls_context).
    with _without("ssl"):
        import http.client  # noqa: F401


def _compile_once() -> None:
    """Have each module of the archive that this one came from compiled once. Outside of one nothing is changed."""
    if not isinstance(__spec__.loader, zipimporter):
        return
    sys.path_hooks.insert(0, _CompilesOnce)
    for path, finder in list(sys.path_importer_cache.items()):
        if isinstance(finder, zipimporter):
            sys.path_importer_cache[path] = _CompilesOnce(path)
