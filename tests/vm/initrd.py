"""The first file system of an emulated machine, made for one boot: busybox, the modules for its disk and network, what the run adds.

Debian's own initrd would bring udev along, and be the larger part of the time that starting takes. Format: the kernel's
Documentation/driver-api/early-userspace/buffer-format.rst ("newc").
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path


def make(target: Path, image: Path, init: bytes, added: Mapping[str, tuple[bytes, int]]) -> None:
    """Write the archive ``target``. ``image``: a folder that root.sh made; ``init``: process 1; ``added``: path on the root, content, mode."""
    files = {
        "init": (init, 0o755),
        "bin/busybox": ((image / "busybox").read_bytes(), 0o755),
        **{f"modules/{path.name}": (path.read_bytes(), 0o644) for path in sorted((image / "modules").iterdir())},
        **{f"add/{name}": value for name, value in added.items()},
    }
    # It holds the machine's private key.
    with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        folders = {parent.as_posix() for name in files for parent in Path(name).parents} - {"."}
        for number, name in enumerate(sorted(folders | {"dev", "root"})):
            stream.write(_entry(number, name, stat.S_IFDIR | 0o755))
        # The kernel opens it for process 1 before that one can make it.
        stream.write(_entry(999, "dev/console", stat.S_IFCHR | 0o600, device=(5, 1)))
        for number, (name, (content, mode)) in enumerate(files.items(), 1000):
            stream.write(_entry(number, name, stat.S_IFREG | mode, content))
        stream.write(_entry(0, "TRAILER!!!", 0))


def _entry(number: int, name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    # inode, mode, uid, gid, links, mtime, size, device (2), device that it stands for (2), length of the name, checksum
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % value for value in fields) + name.encode() + b"\0"
    return _padded(head) + _padded(content)


def _padded(content: bytes) -> bytes:
    return content + b"\0" * (-len(content) % 4)
