# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Packs the controller's Docker SDK into one zip that a host can import from memory.

The packages come from the controller's own Python environment, or from a folder made with
``pip install --target FOLDER -r meta/ee-requirements.txt`` and named by the variable
``fleetclean_sdk_path`` or the environment variable ``FLEETCLEAN_SDK_PATH``. Nothing is downloaded.

Only ``.py`` files (and certifi's bundle of authorities) go into the zip: compiled parts would fit
one Python and one machine only, and every package here works without them.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import typing as t
import zipfile
from importlib import metadata

#: What the SDK needs at run time. charset-normalizer is optional to requests, the rest is not.
PACKAGES = ("docker", "requests", "urllib3", "idna", "certifi", "charset-normalizer")
#: The first release of the SDK that works with today's requests (docker-py issue 3256).
OLDEST_SDK = (7, 1)


class CarriedSdk(t.NamedTuple):
    """A zip to carry (base64), or the reason why there is none."""

    archive: str
    python: str
    packages: str
    error: str


def pack(folder: str | None, cache_dir: str) -> CarriedSdk:
    """Return the SDK of `folder` (None: this Python's own environment) as a base64 zip.

    The zip is built once per `cache_dir` (Ansible's temporary folder of this run, which all
    workers share), so that a thousand hosts cost one packing.
    """
    found = _distributions(folder)
    where = folder or "the controller's Python environment"
    missing = [name for name in ("docker", "requests", "urllib3") if name not in found]
    if missing:
        return CarriedSdk("", "", "", f"{where} has no {' and no '.join(missing)}")
    version = found["docker"].version
    if _numbers(version) < OLDEST_SDK:
        return CarriedSdk("", "", "", f"{where} has docker {version}; carrying needs 7.1.0 or newer")
    packages = " ".join(f"{name}=={dist.version}" for name, dist in sorted(found.items()))
    python = _oldest_python(found.values())
    key = hashlib.sha256(f"{packages} {folder}".encode()).hexdigest()[:16]
    cached = os.path.join(cache_dir, f"fleetclean-sdk-{key}.b64")
    try:
        with open(cached, encoding="ascii") as stream:
            return CarriedSdk(stream.read(), python, packages, "")
    except OSError:
        pass
    try:
        archive = base64.b64encode(_zip(found)).decode("ascii")
    except OSError as error:
        return CarriedSdk("", "", "", f"{where}: {error}")
    _keep(cached, archive)
    return CarriedSdk(archive, python, packages, "")


def _distributions(folder: str | None) -> dict[str, metadata.Distribution]:
    found: dict[str, metadata.Distribution] = {}
    for name in PACKAGES:
        try:
            if folder is None:
                found[name] = metadata.distribution(name)
            else:
                found[name] = next(iter(metadata.distributions(name=name, path=[folder])))
        except (metadata.PackageNotFoundError, StopIteration):
            continue
    return found


def _zip(found: dict[str, metadata.Distribution]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for dist in found.values():
            for path in sorted(dist.files or (), key=str):
                if ".." in path.parts or "__pycache__" in path.parts or len(path.parts) < 2:
                    continue
                if path.suffix == ".py" or path.name == "cacert.pem":
                    archive.write(str(dist.locate_file(path)), "/".join(path.parts))
    return buffer.getvalue()


def _keep(path: str, text: str) -> None:
    """Write the file whole or not at all; not being able to is no error, only slower."""
    temporary = f"{path}.{os.getpid()}"
    try:
        with open(temporary, "w", encoding="ascii") as stream:
            stream.write(text)
        os.replace(temporary, path)
    except OSError:
        try:
            os.unlink(temporary)
        except OSError:
            pass


def _oldest_python(found: t.Iterable[metadata.Distribution]) -> str:
    """The oldest Python that all of them say they run on, as in 3.8."""
    oldest: tuple[int, ...] = (3, 8)
    for dist in found:
        for bound in re.findall(r">=\s*([0-9.]+)", str(dist.metadata["Requires-Python"] or "")):
            oldest = max(oldest, _numbers(bound)[:2])
    return ".".join(str(number) for number in oldest)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])
