# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records of an engine, in which images and users have a say: whatever they hold, it is taken as it is meant or left alone, at no cost."""

from __future__ import annotations

import json
import os
import tempfile
import typing as t
from pathlib import Path

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import record_files
from ansible_collections.fleetclean.docker.plugins.module_utils.snapshot import container_from
from ansible_collections.fleetclean.docker.plugins.module_utils.storage import Storage
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mutations import any_json, bounded, mutated

IDENT = "1" * 64
CONFIG: dict[str, t.Any] = {
    "Created": "2024-03-01T12:00:00Z", "RestartCount": 0, "Config": {"Image": "app:1", "Labels": {"a": "b"}}, "HasBeenManuallyStopped": True,
    "State": {"Running": False, "Paused": False, "Restarting": False, "StartedAt": "2024-03-01T12:00:00Z", "FinishedAt": "", "ExitCode": 1},
    "NetworkSettings": {"Networks": {"web": {"Links": ["db:db"]}, "none": None}},
}
HOST: dict[str, t.Any] = {
    "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 2}, "NetworkMode": "web", "IpcMode": "", "PidMode": "", "VolumesFrom": None,
    "Links": ["db:db"],
}
KEYS = sorted({*CONFIG, *CONFIG["State"], *HOST, *HOST["RestartPolicy"], "Networks", "Links", "Image", "rootfs", "diff_ids", "kid"})
#: What broke a reader once, or would take too long or too much.
FOUND = {
    "deep lists": b"[" * 20_000,
    "deep objects": b'{"a":' * 20_000,
    "deep inside": b'{"rootfs": {}, "x": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    "no text": b'{"a": "\xff\xfe"}',
    "another encoding": '{"rootfs": {"diff_ids": []}}'.encode("utf-16"),
    "a number without end": b'{"State": {"ExitCode": ' + b"9" * 400_000 + b"}}",
    "a float without end": b'{"State": {"ExitCode": 1' + b"0" * 4000 + b".0}}",
    "constants": b'{"State": {"ExitCode": NaN, "Running": Infinity}}',
    "the same key": b'{"State": {}, "State": []}',
    "many small lists": b'{"a": [' + b"[]," * 170_000 + b"[]]}",
    "nothing": b"", "null": b"null", "NUL": b"\0" * 1000, "half": b'{"State": {"Run',
}


def read_any(content: bytes) -> None:
    """Whatever a record holds, each of its readers says what is right or nothing."""
    with tempfile.TemporaryDirectory() as root:
        storage = Storage(root, "overlay2", "graphdriver", {})
        folder = Path(root, "containers", IDENT)
        image = Path(root, "image/overlay2/imagedb/content/sha256", IDENT)
        for path in (folder / "config.v2.json", folder / "hostconfig.json", image):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        for name, other in (("hostconfig.json", HOST), ("config.v2.json", CONFIG)):
            (folder / name).write_text(json.dumps(other))
            record = storage.container_record(IDENT)
            if record is not None:
                container_from({"Id": IDENT, "Names": ["/a"], "State": "exited"}, record)
            (folder / name).write_bytes(content)
        layers = storage.image_layers(IDENT)
        assert layers is None or all(isinstance(layer, str) for layer in layers)
        try:
            assert isinstance(record_files.read_object(str(image)), dict)
        except (ValueError, OSError):
            pass


def test_a_record_is_read_as_it_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "containers" / IDENT
    folder.mkdir(parents=True)
    (folder / "config.v2.json").write_text(json.dumps(CONFIG))
    (folder / "hostconfig.json").write_text(json.dumps(HOST))
    record = Storage(str(tmp_path), "overlay2", "graphdriver", {}).container_record(IDENT)
    assert record is not None
    found = container_from({"Id": IDENT, "Names": ["/a"], "State": "exited"}, record)
    assert (found.restarts, found.stands_on, record["StoppedByHand"]) == ("on-failure", (("db", "link"),), True)
    assert found.networks == ("web", "web") or found.networks == ("web",)


@pytest.mark.parametrize("content", FOUND.values(), ids=FOUND)
def test_a_record_that_somebody_made_for_harm_is_left_alone(content: bytes) -> None:
    with bounded(10.0, 60 << 20):  # Python's collector looks through all that other tests have left
        read_any(content)


def test_a_record_of_gigabytes_or_of_another_sort_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "record"
    path.write_bytes(b"{}")
    assert record_files.read_object(str(path)) == {}
    os.truncate(path, 1 << 40)
    with bounded(1.0, 5 << 20), pytest.raises(OSError):
        record_files.read_object(str(path))
    (tmp_path / "link").symlink_to(path)
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "", "not there"):
        with bounded(1.0, 1 << 20), pytest.raises(OSError):
            record_files.read_object(str(tmp_path / name))
        with pytest.raises(OSError):
            record_files.read_line(str(tmp_path / name))
    with bounded(1.0, 5 << 20):
        assert len(record_files.read_line(str(path))) <= 200


@pytest.mark.parametrize("text", ["-5", "1e3", "9" * 30, "0x10", "\u0661", "1 2", ""])
def test_a_size_that_is_none_is_left_out(tmp_path: Path, text: str) -> None:
    record = tmp_path / "image/overlay2/layerdb/sha256/a"
    record.mkdir(parents=True)
    (record / "size").write_text(text)
    assert Storage(str(tmp_path), "overlay2", "graphdriver", {}).layer_sizes() == ({"sha256:a": 0} if not text else {})


@settings(max_examples=60, deadline=None)
@given(st.builds(lambda value: json.dumps(value).encode(), any_json(KEYS)))
def test_any_json_is_a_record_or_none(content: bytes) -> None:
    read_any(content)


@settings(max_examples=60, deadline=None)
@given(mutated(json.dumps({**CONFIG, **HOST, "rootfs": {"diff_ids": ["sha256:" + "a" * 64]}}).encode()))
@example(b'{"Config": {}, "State": {"Running": 1}, "RestartPolicy": []}')
def test_any_bytes_are_a_record_or_none(content: bytes) -> None:
    read_any(content)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KEYS), any_json(KEYS), st.sampled_from(("", "State", "Config", "RestartPolicy", "NetworkSettings")))
@example("MaximumRetryCount", "2", "RestartPolicy")
@example("Networks", [1], "NetworkSettings")
@example("Links", {"a": 1}, "")
def test_one_value_of_another_type_is_no_error(key: str, value: t.Any, inside: str) -> None:
    whole = {**CONFIG, **HOST}
    whole = {**whole, inside: {**whole[inside], key: value}} if inside else {**whole, key: value}
    read_any(json.dumps(whole).encode())
