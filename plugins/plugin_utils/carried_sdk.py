# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Packs the controller's Docker SDK into one zip that a host can import from memory.

The packages come from the controller's own Python environment, or from a folder made with
``pip install --target FOLDER -r meta/ee-requirements.txt`` and named by the variable
``fleetclean_sdk_path`` or the environment variable ``FLEETCLEAN_SDK_PATH``. Nothing is downloaded.

Compiled parts would fit one machine only, and every package here works without them. What a host's
Python would have to compile anew on each run, which takes longer than all that an idle module does
else, goes along as bytecode too: it fits hosts that have the controller's release of Python, and
others take the source beside it, as zipimport does with what has another release's magic number.

What was packed is kept in a folder of the controller's user, for the next run.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import marshal
import os
import re
import stat
import sys
import time
import typing as t
import zipfile
import zlib
from contextlib import suppress
from importlib import metadata

#: What the SDK needs at run time. charset-normalizer is optional to requests, the rest is not.
PACKAGES = ("docker", "requests", "urllib3", "idna", "certifi", "charset-normalizer")
#: The first release of the SDK that works with today's requests (docker-py issue 3256).
OLDEST_SDK = (7, 1)
#: Other ways to an engine than the modules have, each of which would import what the host has for it
#: (paramiko takes longer than all else), and what only a browser has.
_LEFT_OUT = ("docker/transport/sshconn.py", "docker/transport/npipe", "urllib3/contrib/emscripten/", "charset_normalizer/cli/")
#: Large, and imported for names of servers that are not ASCII alone.
_RARE = ("idna/uts46data.py",)
#: Of files that are kept. The layout is counted up when the same packages are packed in another way.
_PREFIX, _LAYOUT = "fleetclean-sdk-", 2
#: Seconds after which a kept file is made anew: versions that are gone from here shall go there, too.
_KEPT_FOR = 90 * 86400


class CarriedSdk(t.NamedTuple):
    """A zip to carry (base64), or the reason why there is none."""

    archive: str
    python: str
    packages: str
    error: str


def pack(folder: str | None, *caches: str) -> CarriedSdk:
    """Return the SDK of `folder` (None: this Python's own environment) as a zip, deflated and in base64.

    It is packed once for the first of `caches` that can be written: folders of this user's, such as
    Ansible's home (then once for all runs) and its temporary folder of this run, which all workers
    share (then a thousand hosts cost one packing).
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
    try:
        files = _files(found.values())
        name = f"{_PREFIX}{_fingerprint(files)}.b64"
        archive = next(filter(None, (_kept(os.path.join(cache, name)) for cache in caches)), "")
        if not archive:
            archive = base64.b64encode(zlib.compress(_zip(files), 9)).decode("ascii")
            any(_keep(cache, name, archive) for cache in caches)
    except OSError as error:
        return CarriedSdk("", "", "", f"{where}: {error}")
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


def _files(found: t.Iterable[metadata.Distribution]) -> list[tuple[str, str]]:
    """What goes into the zip: names there, and paths here."""
    files = []
    for dist in found:
        for path in sorted(dist.files or (), key=str):
            if ".." in path.parts or "__pycache__" in path.parts or len(path.parts) < 2:
                continue
            name = "/".join(path.parts)
            if (path.suffix == ".py" or path.name == "cacert.pem") and not name.startswith(_LEFT_OUT):
                files.append((name, str(dist.locate_file(path))))
    return files


def _fingerprint(files: t.Iterable[tuple[str, str]]) -> str:
    """A name for what these files and this Python give."""
    digest = hashlib.sha256(f"{_LAYOUT} {sys.implementation.cache_tag} {importlib.util.MAGIC_NUMBER!r}".encode())
    for name, path in files:
        status = os.stat(path)
        digest.update(f"{name} {path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _zip(files: t.Iterable[tuple[str, str]]) -> bytes:
    """A zip that is not compressed: as a whole it becomes smaller, and is unpacked faster."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, path in files:
            with open(path, "rb") as stream:
                content = stream.read()
            archive.writestr(zipfile.ZipInfo(name), content)
            if name.endswith(".py") and name not in _RARE:
                try:
                    archive.writestr(zipfile.ZipInfo(f"{name}c"), _bytecode(name, content))
                except (SyntaxError, ValueError):
                    continue  # who imports it will be told
    return buffer.getvalue()


def _bytecode(name: str, source: bytes) -> bytes:
    """What is in a ``.pyc`` file that is never compared with its source (PEP 552)."""
    code = compile(source, name, "exec", dont_inherit=True)
    return importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + bytes(8) + marshal.dumps(code)


def _kept(path: str) -> str:
    """What was kept there, if it is whole and from this user: it runs as root on every host."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), encoding="ascii") as stream:
            status = os.fstat(stream.fileno())
            if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return ""
            digest, _line, text = stream.read().partition("\n")
    except (OSError, ValueError):
        return ""
    return text if text and digest == _digest(text) else ""


def _keep(folder: str, name: str, text: str) -> bool:
    """Write the file whole or not at all, and remove old ones; not being able to is no error, only slower."""
    temporary = os.path.join(folder, f"{name}.{os.getpid()}")
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="ascii") as stream:
            stream.write(f"{_digest(text)}\n{text}")
        os.replace(temporary, os.path.join(folder, name))
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        return False
    with suppress(OSError):
        for entry in os.scandir(folder):
            if entry.name.startswith(_PREFIX) and entry.stat(follow_symlinks=False).st_mtime < time.time() - _KEPT_FOR:
                os.unlink(entry.path)
    return True


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _oldest_python(found: t.Iterable[metadata.Distribution]) -> str:
    """The oldest Python that all of them say they run on, as in 3.8."""
    oldest: tuple[int, ...] = (3, 8)
    for dist in found:
        for bound in re.findall(r">=\s*([0-9.]+)", str(dist.metadata["Requires-Python"] or "")):
            oldest = max(oldest, _numbers(bound)[:2])
    return ".".join(str(number) for number in oldest)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])
