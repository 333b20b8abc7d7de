# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's Docker SDK for Python, or the one that was carried along.

The action plugin hands the controller's SDK to the module as one zip. It is written to an anonymous
file in memory (memfd_create) and imported from there, so that a host needs neither the SDK nor a
free byte. Which one is taken is the option ``sdk``: ``auto`` takes the host's if it is good enough.
Importing it is most of what an idle run takes, so it has bytecode for hosts whose Python is the
controller's, and on all others each of its modules is compiled once (see ``_Importer``).

Known bad: an SDK older than 7.1 with requests 2.32 or newer fails every call with "Not supported
URL scheme http+docker" (docker-py issue 3256).
"""

from __future__ import annotations

import base64
import os
import re
import sys
import tempfile
import typing as t
import warnings
import zipimport
import zlib
from importlib import import_module

from ansible_collections.fleetclean.docker.plugins.module_utils.errors import (
    FleetcleanError,
)

#: The oldest release on a host whose calls are those that the engine module uses.
OLDEST_HOST_SDK = (5, 0)
_TOP_LEVEL = ("docker", "requests", "urllib3", "idna", "certifi", "charset_normalizer", "chardet")
_NEXT_STEP = (
    "Install the packages of the collection's meta/ee-requirements.txt on the controller "
    "(they are carried to the hosts), or python3-docker on the host."
)


class Sdk(t.NamedTuple):
    """Which SDK is in use: ``source`` is host or carried; ``version`` as in 7.1.0."""

    source: str
    version: str


def provide(choice: str, archive: str | None, about: dict[str, str] | None) -> Sdk:
    """Make ``import docker`` work and return which SDK that is.

    :param choice: auto, host or carried.
    :param archive: the carried zip, base64; empty or None if none came along.
    :param about: what the controller says of it: python (oldest that runs it), packages, error.
    :raises FleetcleanError: no SDK can be used; the message names each that was tried, and why not.
    """
    tried = []
    if choice in ("auto", "host"):
        version, problem = _host_sdk()
        if version:
            return Sdk("host", version)
        tried.append(f"on this host: {problem}")
    if choice in ("auto", "carried"):
        version, problem = _carried_sdk(archive, about or {})
        if version:
            return Sdk("carried", version)
        tried.append(f"from the controller: {problem}")
    raise FleetcleanError(
        f"There is no usable Docker SDK for Python ({'; '.join(tried)}). {_NEXT_STEP}", "no_sdk"
    )


def _host_sdk() -> tuple[str, str]:
    version, problem = _import()
    if version and _numbers(version) < OLDEST_HOST_SDK:
        problem = f"docker {version} is older than {'.'.join(map(str, OLDEST_HOST_SDK))}"
    elif version and _numbers(version) < (7, 1):
        requests = str(getattr(sys.modules["requests"], "__version__", "0"))
        urllib3 = str(getattr(sys.modules.get("urllib3"), "__version__", "0"))
        if _numbers(requests) >= (2, 32):
            problem = f"docker {version} does not work with requests {requests} (docker-py issue 3256)"
        elif _numbers(version) < (6, 1) and _numbers(urllib3) >= (2,):
            problem = f"docker {version} does not work with urllib3 {urllib3} (docker-py issue 3113)"
    if problem:
        _forget()
        return "", problem
    return version, ""


def _carried_sdk(archive: str | None, about: dict[str, str]) -> tuple[str, str]:
    if not archive:
        return "", about.get("error") or "none was carried along (the action plugin did not run)"
    needs = about.get("python") or "3.8"
    if sys.version_info[:2] < _numbers(needs)[:2]:
        return "", (
            f"{about.get('packages')} needs Python {needs} or newer, here is "
            f"{'.'.join(map(str, sys.version_info[:3]))}; the versions in meta/ee-requirements.txt run on 3.8"
        )
    # Whatever still wants a temporary file.
    if not os.environ.get("TMPDIR") and os.access("/dev/shm", os.W_OK | os.X_OK):
        tempfile.tempdir = "/dev/shm"
    descriptor = _memory_file()
    with os.fdopen(os.dup(descriptor), "wb") as stream:
        stream.write(_unpacked(archive))
    # The descriptor stays open for as long as the module runs: imports come later, too.
    path = f"/proc/self/fd/{descriptor}"

    def importer(entry: str) -> _Importer:
        if entry != path and not entry.startswith(f"{path}/"):
            raise ImportError(f"{entry} is not in the carried SDK")
        return _Importer(entry)

    sys.path_hooks.insert(0, importer)
    sys.path.insert(0, path)
    version, problem = _import(_certificates(path))
    if not version:
        sys.path.pop(0)
        sys.path_hooks.remove(importer)
        os.close(descriptor)
    return version, problem


def _unpacked(archive: str) -> bytes:
    """The zip that was carried; what is none stays what it is, and is no package later."""
    try:
        return zlib.decompress(base64.b64decode(archive))
    except (ValueError, zlib.error):
        return b""


def _certificates(archive: str) -> str:
    """Put certifi's bundle into a file in memory, and return its path; "" if there is none.

    certifi would unpack it into the temporary folder, where it stays if the process is killed.
    """
    try:
        bundle = zipimport.zipimporter(archive).get_data(f"{archive}/certifi/cacert.pem")
    except (OSError, zipimport.ZipImportError):
        return ""
    descriptor = _memory_file()
    with os.fdopen(os.dup(descriptor), "wb") as stream:
        stream.write(bundle)
    return f"/proc/self/fd/{descriptor}"


class _Importer(zipimport.zipimporter):
    """Python's own importer of zips, which from 3.10 on compiles each module twice: once to say its file's name."""

    def get_filename(self, fullname: str) -> str:
        package = "/__init__" if self.is_package(fullname) else ""
        return f"{self.archive}/{self.prefix}{fullname.rpartition('.')[2]}{package}.py"


def _memory_file() -> int:
    """An open file that is on no disk."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("fleetclean-sdk")
    # A Python built against an old C library: a nameless file on a tmpfs is the same.
    descriptor, path = tempfile.mkstemp(dir="/dev/shm")
    os.unlink(path)
    return descriptor


def _import(certificates: str = "") -> tuple[str, str]:
    """Import the SDK from sys.path; return its version, or the reason why not.

    :param certificates: where certifi's bundle lies, if not where certifi would put it.
    """
    _forget()
    try:
        if certificates:
            certifi = import_module("certifi")
            certifi.where = lambda: certificates  # type: ignore[attr-defined]
        with warnings.catch_warnings():
            # A missing charset detector is warned about, and of no meaning to JSON.
            warnings.simplefilter("ignore")
            package = import_module("docker")
            import_module("docker.api.client")
    except ModuleNotFoundError as error:
        if error.name == "docker":
            return "", "not installed"
        return "", f"cannot be imported ({error})"
    # A broken installation may raise anything at import; the carried SDK is there for that.
    except Exception as error:  # pylint: disable=broad-except
        return "", f"cannot be imported ({type(error).__name__}: {error})"
    version = getattr(package, "__version__", None) or getattr(package, "version", None)
    if not isinstance(version, str):
        return "", "is not the Docker SDK (a package named docker without a version)"
    return version, ""


def _forget() -> None:
    for name in list(sys.modules):
        if name.split(".", 1)[0] in _TOP_LEVEL:
            del sys.modules[name]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])
