# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read what containerd's own records say of images, in place of one inspection for each.

An engine that keeps its images in containerd takes what an inspection says from there: ``LastTagTime`` is the newest
update of all records that name the image, the parent is a label of theirs, the layers are those of the configuration
of one platform's manifest (moby, ``daemon/containerd``: image.go, image_inspect.go and image_manifest.go; the records'
form: containerd, ``core/metadata/buckets.go`` and ``boltutil/helpers.go``).

Whatever is not plain here is left out, so that the caller asks the engine.
"""

from __future__ import annotations

import re
import typing as t
from collections import defaultdict

from ansible_collections.fleetclean.docker.plugins.module_utils import bolt, record_files
from ansible_collections.fleetclean.docker.plugins.module_utils.storage import Storage

_DIGEST = re.compile(r"([a-z0-9]+):([0-9a-f]{32,128})")
_MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
_INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
_LAYERS = ("application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs.")
#: The label by which the classic builder names an image's parent (``daemon/containerd/image_builder.go``).
_PARENT = b"org.mobyproject.image.parent"
#: The annotation by which BuildKit tells attestations from images (its ``attestation-storage.md``).
_ATTESTATION = "vnd.docker.reference.type"
#: The variant that stands for none; of others it depends on the processor which of them the engine prefers.
_PLAIN_VARIANTS = {"arm64": ("", "v8")}
#: Seconds between the year 1, from which Go counts, and 1970.
_GO_EPOCH = 62135596800


class ImageRecord(t.NamedTuple):
    """What an inspection would say of an image.

    ``tagged`` is in seconds since 1970. ``layers`` are the digests of its layers, lowest first; None if they were not asked
    for, or are not plain to see here.
    """

    tagged: float | None
    parent: str
    layers: tuple[str, ...] | None


class _Name(t.NamedTuple):
    """One record: a name that leads to an image."""

    media_type: str
    updated: float
    parent: str


def read(storage: Storage, platform: tuple[str, str], layers: bool) -> dict[str, ImageRecord]:
    """Return what the records say of each image, by its id; nothing of those that only the engine can tell of.

    :param storage: the engine's own storage, proven to be on this machine.
    :param platform: the engine's operating system and architecture.
    :param layers: whether to look for the layers, in two files for each image.
    """
    base = storage.containerd
    if not base:
        return {}
    try:
        names, content = bolt.read(f"{base}/io.containerd.metadata.v1.bolt/meta.db", lambda top: _read_names(top, storage.namespace))
    except (OSError, bolt.BoltError, ValueError):
        return {}
    blobs = _Blobs(f"{base}/io.containerd.content.v1.content/blobs", content)
    found = {}
    for digest, records in names.items():
        parents = {record.parent for record in records} - {""}
        if len(parents) > 1:
            continue
        newest = max(record.updated for record in records)
        diff_ids = blobs.layers(digest, records[0].media_type, platform) if layers else None
        found[digest] = ImageRecord(newest if newest > 0 else None, next(iter(parents), ""), diff_ids)
    return found


def _read_names(top: bolt.Bucket, namespace: str) -> tuple[dict[str, list[_Name]], set[str]]:
    """Return the names of each image, by the digest that they lead to, and the digests of all content that the namespace has."""
    names: dict[str, list[_Name]] = defaultdict(list)
    content: set[str] = set()
    space = top.bucket(b"v1", namespace.encode())
    for kind, bucket in space.buckets() if space else ():
        if kind == b"images":
            for _name, image in bucket.buckets():
                target = (image.bucket(b"target") or bolt.empty()).values()
                labels = (image.bucket(b"labels") or bolt.empty()).values()
                names[_text(target.get(b"digest", b""))].append(
                    _Name(
                        _text(target.get(b"mediatype", b"")),
                        _parse_moment(image.values().get(b"updatedat", b"")),
                        _text(labels.get(_PARENT, b"")),
                    )
                )
        elif kind == b"content":
            content = {_text(digest) for digest, _blob in (bucket.bucket(b"blob") or bolt.empty()).buckets()}
    return names, content


class _Blobs:
    """containerd's content, as far as the engine's namespace has it."""

    def __init__(self, folder: str, present: t.Collection[str]) -> None:
        self._folder = folder
        self._present = present

    def layers(self, digest: str, media_type: str, platform: tuple[str, str]) -> tuple[str, ...] | None:
        """Return the digests of an image's layers on a platform, lowest first; None if it is not plain which they are."""
        if media_type in _MANIFESTS:
            return self._layers_of_manifest(digest)
        index = self._read(digest) if media_type in _INDEXES else None
        entries = index.get("manifests") if index else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            return None
        images = [entry for entry in entries if not _is_attestation(entry) and str(entry.get("digest")) in self._present]
        if any(entry.get("mediaType") not in _MANIFESTS for entry in images):
            return None  # an index in an index
        if len(images) > 1:
            # Of several the engine prefers that of its own platform.
            if not all(isinstance(entry.get("platform"), dict) for entry in images):
                return None
            images = [entry for entry in images if (entry["platform"].get("os"), entry["platform"].get("architecture")) == platform]
            if len(images) == 1 and images[0]["platform"].get("variant", "") not in _PLAIN_VARIANTS.get(platform[1], ("",)):
                return None
        return self._layers_of_manifest(str(images[0]["digest"])) if len(images) == 1 else None

    def _layers_of_manifest(self, digest: str) -> tuple[str, ...] | None:
        try:
            manifest = self._read(digest) or {}
            if not all(entry["mediaType"].startswith(_LAYERS) for entry in manifest["layers"]):
                return None  # something else than an image, kept as one
            config = self._read(manifest["config"]["digest"]) or {}
            return tuple(record_files.texts(config["rootfs"].get("diff_ids")))
        except (KeyError, TypeError, AttributeError, ValueError):
            return None

    def _read(self, digest: object) -> dict[str, t.Any] | None:
        """Return the JSON object that a digest names; None if it is not there or no such thing."""
        match = _DIGEST.fullmatch(str(digest))
        if not match or match[0] not in self._present:
            return None
        try:
            return record_files.read_object(f"{self._folder}/{match[1]}/{match[2]}")
        except (OSError, ValueError):
            return None


def _is_attestation(entry: dict[str, t.Any]) -> bool:
    platform, annotations = entry.get("platform"), entry.get("annotations")
    unknown = isinstance(platform, dict) and platform.get("os") == platform.get("architecture") == "unknown"
    return unknown or (isinstance(annotations, dict) and _ATTESTATION in annotations)


def _parse_moment(raw: bytes) -> float:
    """Return a time in Go's binary form as seconds since 1970; 0 if there is none (``time.Time``, MarshalBinary)."""
    if len(raw) not in (15, 16) or raw[0] not in (1, 2):
        raise ValueError("a time of another form")
    return int.from_bytes(raw[1:9], "big", signed=True) - _GO_EPOCH + int.from_bytes(raw[9:13], "big", signed=True) / 1e9


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
