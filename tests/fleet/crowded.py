"""Fills a host with many objects and many files, for benchmarks and for what has to stay small: real images, containers and volumes.

The layers of the images differ in one file only, so that an archive is put together from one block that is made once: a million files take
as long as the engine takes to unpack them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from .dirty import _sha256, load_image, tar
from .host import Host

_FOLDER = 50
# What a source tree is made of: from empty to a few blocks.
_SIZES = (0, 120, 700, 300, 1900, 60, 450, 1100, 5000, 200)
# One request of the engine's API carries so many layers; all of it is in memory, here and there.
_BATCH = 24


@dataclass(frozen=True)
class Crowd:
    """How many of everything: images of ``layers`` layers with ``files`` files each, beside one layer that all have."""

    images: int = 0
    layers: int = 1
    files: int = 1
    containers: int = 0
    container_files: int = 0
    volumes: int = 0
    volume_files: int = 0

    @property
    def all_files(self) -> int:
        """Files that lie in layers, volumes and writable layers, without the engine's own."""
        return self.images * self.layers * (self.files + 1) + self.containers * self.container_files + self.volumes * self.volume_files


def crowd(host: Host, wanted: Crowd) -> None:
    """Make ``wanted`` on ``host``. Containers are created from the images, one from each in turn, and every other one has a volume."""
    load_image(host, "crowd/base:1", {})
    load_images(host, wanted.images, wanted.layers, wanted.files)
    with ThreadPoolExecutor(max_workers=4) as pool:
        list(pool.map(lambda number: _volume(host, number, wanted.volume_files), range(wanted.volumes)))
        list(pool.map(lambda number: _container(host, number, wanted), range(wanted.containers)))
    host.exec(["sync", "--file-system", host.data_root])


def load_images(host: Host, count: int, layers: int, files: int, base: str = "crowd/base:1") -> None:
    """Load images ``crowd/N:1`` on top of ``base``, which has to be there, with ``layers`` layers of ``files`` small files each.

    Without layers of their own images differ in what they say of themselves, and a thousand take few seconds.
    """
    below = host.must("GET", f"/images/{quote(base)}/json")["RootFS"]["Layers"]
    rest = tar(_tree(files))
    batch = max(1, _BATCH // layers) if layers else 1000
    for first in range(0, count, batch):
        archive = {}
        manifest = []
        for image in range(first, min(first + batch, count)):
            own = []
            for layer in range(layers):
                # Header and data of one file; what ends an archive comes with the rest.
                content = tar({"srv/own": f"{image} {layer}".encode()})[:1024] + rest
                name = f"{image}.{layer}.tar"
                archive[name] = content
                own.append((name, _sha256(content)))
            config = json.dumps({
                "architecture": "amd64", "os": "linux", "created": "2024-01-01T00:00:00Z", "config": {"Cmd": ["/bin/true"], "Env": ["PATH=/bin"]},
                "rootfs": {"type": "layers", "diff_ids": [*below, *(digest for _, digest in own)]},
                "history": [{"created_by": f"test bed {image}"}] * (len(below) + layers),
            }).encode()
            identifier = _sha256(config).partition(":")[2]
            archive[f"{identifier}.json"] = config
            # A layer that the engine has is not read from the archive.
            names = [*(["below"] * len(below)), *(name for name, _ in own)]
            manifest.append({"Config": f"{identifier}.json", "RepoTags": [f"crowd/{image}:1"], "Layers": names})
        host.must("POST", "/images/load?quiet=1", tar({**archive, "manifest.json": json.dumps(manifest).encode()}))


def write_files(folder: Path, count: int, links: int = 0) -> None:
    """Write ``count`` empty files, a thousand in each folder below ``folder``; the first ``links`` of them get a second name there."""
    for first in range(0, count, 1000):
        below = folder / str(first)
        below.mkdir()
        opened = os.open(below, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for number in range(min(1000, count - first)):
                os.close(os.open(str(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=opened))
                if first + number < links:
                    os.link(str(number), f"{number}.again", src_dir_fd=opened, dst_dir_fd=opened)
        finally:
            os.close(opened)


def _tree(files: int) -> dict[str, bytes]:
    return {f"srv/{number // _FOLDER}/{number}": b"x" * size for number, size in zip(range(files), _cycle())}


def _cycle() -> Iterator[int]:
    while True:
        yield from _SIZES


def _volume(host: Host, number: int, files: int) -> None:
    made = host.must("POST", "/volumes/create", {"Name": f"crowd-{number}"})
    data = host.path(made["Mountpoint"])
    for name, content in _tree(files).items():
        path = data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _container(host: Host, number: int, wanted: Crowd) -> None:
    image = f"crowd/{number % wanted.images}:1" if wanted.images else "crowd/base:1"
    binds = [f"crowd-{number % wanted.volumes}:/data"] if wanted.volumes and number % 2 else []
    made = host.must("POST", f"/containers/create?name=crowd-{number}", {
        "Image": image, "Cmd": ["/bin/true"], "HostConfig": {"NetworkMode": "none", "Binds": binds}})
    if wanted.container_files:
        host.must("PUT", f"/containers/{made['Id']}/archive?path=/", tar({f"new{name}": data for name, data in _tree(wanted.container_files).items()}))
