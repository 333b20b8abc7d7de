# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What tests put on a host beside its dirt: any container, a registry that can be made to wait, a volume driver, images of two platforms."""

from __future__ import annotations

import ctypes
import gzip
import hashlib
import json
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple
from urllib.parse import quote

import pytest

from tests.fleet import Host
from tests.fleet.dirty import load_image, tar
from tests.integration.bare import Bare

IDLE = ("/bin/sleep", "1000000")


def container(
    host: Host, name: str, image: str, command: Any = IDLE, *, run: str = "", labels: Optional[Mapping[str, str]] = None,
    network: str = "none", **more: Any,
) -> str:
    """Make a container; its id. ``run``: "" leaves it created, "on" starts it, "done" waits for its end. ``more`` goes into HostConfig."""
    body = {"Image": image, "Cmd": list(command), "Labels": dict(labels or {}), "HostConfig": {"NetworkMode": network, **more}}
    ident = host.must("POST", f"/containers/create?name={quote(name, safe='')}", body)["Id"]
    if run:
        host.must("POST", f"/containers/{ident}/start")
    if run == "done":
        host.must("POST", f"/containers/{ident}/wait")
    return str(ident)


def base(host: Host, tag: str = "base/app:1") -> str:
    """An image of busybox alone; its tag."""
    load_image(host, tag, {})
    return tag


#: Runs a test on a host with a graph driver and on one with containerd's store; its ``host`` fixture knows them as one and ctd.
both_stores = pytest.mark.parametrize("host", ["one", "ctd"], indirect=True)


def clear(host: Host) -> None:
    """Remove all there is."""
    for entry in host.must("GET", "/containers/json?all=1"):
        host.api("DELETE", f"/containers/{entry['Id']}?force=1&v=1")  # one may be removing itself
    for _ in range(10):  # children first, whatever the order
        images = host.must("GET", "/images/json?all=1")
        for entry in images:
            host.api("DELETE", f"/images/{entry['Id']}?force=1")
        if not images:
            break
    for entry in host.must("GET", "/volumes")["Volumes"] or []:
        host.must("DELETE", f"/volumes/{quote(entry['Name'])}")
    for entry in host.must("GET", "/networks"):
        if entry["Name"] not in ("bridge", "host", "none", "docker_gwbridge", "ingress"):
            host.must("DELETE", f"/networks/{entry['Id']}")
    host.must("POST", "/build/prune?all=true")


def until(what: Callable[[], Any], seconds: float = 30) -> Any:
    """Wait for something to be true; return it."""
    end = time.monotonic() + seconds
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < end, f"{what} did not come true in {seconds} s"
        time.sleep(0.05)


def by_itself(host: Host, module: str = "docker_clean", check: bool = False, **options: Any) -> Dict[str, Any]:
    """A module's result, which may be that it failed. Without the controller, where nothing depends on it: that takes half the time."""
    return {"failed": False, **Bare(host, module).start(_ansible_check_mode=check, **options).end().result}


def removed(result: Mapping[str, Any], kind: str = "") -> Dict[str, str]:
    """Name and reason of what a result says was removed, or would be."""
    return {entry["name"]: entry["reason"] for entry in result["removed"] if kind in ("", entry["kind"])}


def kept(result: Mapping[str, Any], kind: str = "") -> Dict[str, int]:
    """Reason and number of what a result says stays."""
    return {entry["reason"]: entry["count"] for entry in result["kept"] if kind in ("", entry["kind"])}


# -- a registry --------------------------------------------------------------------------------


class Registry:
    """Just enough of a registry to be pulled from (https://distribution.github.io/distribution/spec/api/), with a hand on its tap."""

    def __init__(self) -> None:
        self.address = ""
        self.blobs: Dict[str, bytes] = {}
        self.manifests: Dict[Tuple[str, str], bytes] = {}
        #: A blob that is not given before ``open`` is set, and whether it was asked for.
        self.held = ""
        self.asked = threading.Event()
        self.open = threading.Event()

    def push(self, repository: str, tag: str, layers: List[bytes]) -> Tuple[str, List[str]]:
        """Have an image; its digest, and its layers' blobs."""
        packed = [gzip.compress(layer, 1, mtime=0) for layer in layers]
        config = json.dumps(
            {
                "architecture": "amd64", "os": "linux", "created": "2024-01-01T00:00:00Z", "config": {"Cmd": list(IDLE), "Env": ["PATH=/bin"]},
                "rootfs": {"type": "layers", "diff_ids": [_digest(layer) for layer in layers]}, "history": [{"created_by": "test"} for _ in layers],
            }
        ).encode()
        kind = "application/vnd.docker"
        manifest = {
            "schemaVersion": 2, "mediaType": f"{kind}.distribution.manifest.v2+json",
            "config": {"mediaType": f"{kind}.container.image.v1+json", **self._blob(config)},
            "layers": [{"mediaType": f"{kind}.image.rootfs.diff.tar.gzip", **self._blob(blob)} for blob in packed],
        }
        content = json.dumps(manifest).encode()
        for reference in (tag, _digest(content)):
            self.manifests[(repository, reference)] = content
        return _digest(content), [_digest(blob) for blob in packed]

    def hold(self, blob: str) -> None:
        """Do not give this blob until ``open`` is set."""
        self.held = blob
        self.asked.clear()
        self.open.clear()

    def _blob(self, content: bytes) -> Dict[str, Any]:
        self.blobs[_digest(content)] = content
        return {"digest": _digest(content), "size": len(content)}

    def answer(self, path: str) -> Tuple[int, str, bytes]:
        """Status, content type and body."""
        parts = path.partition("?")[0].strip("/").split("/")
        if parts == ["v2"]:
            return 200, "application/json", b"{}"
        repository, what, name = "/".join(parts[1:-2]), parts[-2], parts[-1]
        if what == "manifests" and (repository, name) in self.manifests:
            return 200, "application/vnd.docker.distribution.manifest.v2+json", self.manifests[(repository, name)]
        if what == "blobs" and name in self.blobs:
            if name == self.held:
                self.asked.set()
                self.open.wait(60)
            return 200, "application/octet-stream", self.blobs[name]
        return 404, "application/json", b'{"errors": [{"code": "NOT_FOUND", "message": "not here"}]}'


@contextmanager
def registry(host: Host) -> Iterator[Registry]:
    """A registry on the host's own loopback address, where engines do without TLS."""
    store = Registry()

    class Handler(BaseHTTPRequestHandler):
        """Passes requests on."""

        protocol_version = "HTTP/1.1"
        raw_requestline: bytes

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

        def parse_request(self) -> bool:
            """A client that begins with TLS is told that this is HTTP, and tries again without."""
            if self.raw_requestline.startswith(b"\x16"):
                self.close_connection = True
                self.wfile.write(b"HTTP/1.0 400 Bad Request\r\n\r\n")
                return False
            return super().parse_request()

        def do_GET(self) -> None:
            """Blobs and manifests."""
            status, kind, body = store.answer(self.path)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
            if "/manifests/" in self.path and status == 200:
                self.send_header("Docker-Content-Digest", _digest(body))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False) as server:
        server.socket.close()
        with ThreadPoolExecutor(max_workers=1) as pool:
            server.socket = pool.submit(_listen_inside, host).result()
        store.address = "{}:{}".format(*server.socket.getsockname())
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield store
        finally:
            store.open.set()
            server.shutdown()
            thread.join()


def _listen_inside(host: Host) -> socket.socket:
    """A listening socket of the host's network. The thread that calls this belongs to that network afterwards, so it has to end."""
    with open(f"/proc/{host.pid}/ns/net", encoding="ascii") as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0):
            raise OSError(ctypes.get_errno(), "setns")
    return socket.create_server(("127.0.0.1", 0))


def pull(host: Host, reference: str) -> None:
    """Pull an image, by tag or digest, as `docker pull` does."""
    name, at, digest = reference.partition("@")
    repository, _colon, tag = (name, "", digest) if at else reference.rpartition(":")
    host.must("POST", f"/images/create?fromImage={quote(repository, safe='')}&tag={quote(tag, safe='')}")


def _digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


# -- images of two platforms -------------------------------------------------------------------


def load_two_platforms(host: Host, tag: str, busybox: bytes, megabytes: int = 2) -> str:
    """Load an image index of amd64 and arm64 with content of its own each (containerd's store takes it); its id."""
    blobs: Dict[str, bytes] = {}

    def keep(kind: str, content: bytes) -> Dict[str, Any]:
        blobs["blobs/sha256/" + _digest(content).partition(":")[2]] = content
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": _digest(content), "size": len(content)}

    manifests = []
    for architecture in ("amd64", "arm64"):
        layer = tar({"bin/sleep": busybox, "of": architecture.encode(), "data": os.urandom(megabytes * 1_000_000)}, executable=["bin/sleep"])
        config = {
            "architecture": architecture, "os": "linux", "created": "2024-01-01T00:00:00Z", "config": {"Cmd": list(IDLE), "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]}, "history": [{"created_by": "test"}],
        }
        manifest = {
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": keep("config.v1+json", json.dumps(config).encode()), "layers": [keep("layer.v1.tar", layer)],
        }
        manifests.append({**keep("manifest.v1+json", json.dumps(manifest).encode()), "platform": {"os": "linux", "architecture": architecture}})
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests}
    top = keep("index.v1+json", json.dumps(index).encode())
    names = {"io.containerd.image.name": f"docker.io/{tag}", "org.opencontainers.image.ref.name": tag.rpartition(":")[2]}
    blobs["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    blobs["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [{**top, "annotations": names}]}).encode()
    host.must("POST", "/images/load?quiet=1", tar(blobs))
    return str(host.must("GET", f"/images/{quote(tag)}/json")["Id"])


def content_bytes(host: Host) -> int:
    """Bytes of all that containerd's content store has."""
    store = host.path(f"{host.data_root}/containerd/daemon/io.containerd.content.v1.content/blobs/sha256")
    return sum(file.stat().st_size for file in store.iterdir()) if store.exists() else 0


# -- a volume driver ---------------------------------------------------------------------------

_DRIVER = '''
import http.server, json, os, socketserver, sys, time
name, slow, folder = sys.argv[1], float(sys.argv[2]), "/srv/volumes"
volumes = set()

class Handler(http.server.BaseHTTPRequestHandler):
    def address_string(self):
        return "engine"
    def log_message(self, *words):
        pass
    def do_POST(self):
        asked = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        volume = json.loads(asked or b"{}").get("Name") or ""
        place = folder + "/" + volume.encode().hex()
        found = lambda v: {"Name": v, "Mountpoint": folder + "/" + v.encode().hex()}
        what, answer = self.path.rpartition(".")[2], {"Err": ""}
        if what == "Activate":
            answer = {"Implements": ["VolumeDriver"]}
        elif what == "Capabilities":
            answer = {"Capabilities": {"Scope": "local"}}
        elif what == "Create":
            volumes.add(volume)
            os.makedirs(place, exist_ok=True)
        elif what == "Remove":
            os.makedirs(folder, exist_ok=True)
            open(folder + "/removing", "w").close()
            time.sleep(slow)
            volumes.discard(volume)
        elif what == "List":
            answer["Volumes"] = [found(v) for v in sorted(volumes)]
        elif what == "Get":
            answer = {"Volume": found(volume), "Err": ""} if volume in volumes else {"Err": "no such volume"}
        elif what in ("Mount", "Path"):
            answer["Mountpoint"] = place
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

os.makedirs("/run/docker/plugins", exist_ok=True)
Server("/run/docker/plugins/%s.sock" % name, Handler).serve_forever()
'''


@contextmanager
def volume_driver(host: Host, name: str, slow: float = 0, forget: bool = True) -> Iterator[None]:
    """A volume driver on the host, as a program beside the engine; ``slow``: seconds that a removal takes.

    ``forget``: restart the engine at the end, which looks for a driver that it knows whenever it lists volumes, 15 s long; without it the
    driver is just gone. The protocol: https://docs.docker.com/engine/extend/plugins_volume/
    """
    door: Path = host.path("/run") / f"docker/plugins/{name}.sock"
    process = host.popen([host.python, "-c", _DRIVER, name, str(slow)])
    try:
        until(door.exists)
        yield
    finally:
        if forget:
            host.stop_engine()
        process.kill()
        process.wait()
        door.unlink(missing_ok=True)
        if forget:
            # What the engine wrote down of its volumes' drivers; local ones it finds again.
            (host.path(host.data_root) / "volumes/metadata.db").unlink(missing_ok=True)
            host.start_engine()
