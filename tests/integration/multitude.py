# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A FAKE engine with thousands of objects, in a process of its own: what a module takes of memory to look at them all is its alone.

Its answers have the fields and the size of those of an engine 26.1. ``python -m tests.integration.multitude SOCKET ROOT IMAGES CONTAINERS`` lays its
data root out, answers at the socket, and says ``ready``.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import socketserver
import sys
import time
from http.server import BaseHTTPRequestHandler
from typing import Any, Dict, List, Tuple
from urllib.parse import parse_qs, urlsplit

#: Layers that all images have, below one of its own.
SHARED_LAYERS = 19
VOLUMES = 100
_OLD = time.time() - 30 * 86400
_CREATED = "2026-01-02T03:04:05.123456789Z"


@functools.lru_cache(maxsize=None)
def ident(*words: object) -> str:
    return hashlib.sha256(" ".join(map(str, words)).encode()).hexdigest()


def _write(path: str, content: str) -> None:
    try:
        stream = open(path, "w", encoding="utf-8")
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path))
        stream = open(path, "w", encoding="utf-8")
    with stream:
        stream.write(content)
    os.utime(path, (_OLD, _OLD))


def chain(diffs: List[str]) -> List[str]:
    found: List[str] = []
    for diff in diffs:
        found.append(diff if not found else "sha256:" + hashlib.sha256(f"{found[-1]} {diff}".encode()).hexdigest())
    return found


class Multitude:
    """``images`` images of 20 layers, and ``containers`` containers, of which every tenth runs, with ``VOLUMES`` volumes."""

    def __init__(self, root: str, images: int, containers: int) -> None:
        self.root, self.images, self.containers = root, images, containers
        self._base = [f"sha256:{ident('diff', number)}" for number in range(SHARED_LAYERS)]
        self._layers = chain(self._base)

    # -- the disk --------------------------------------------------------------------------------

    def lay_out(self) -> None:
        store = f"{self.root}/image/overlay2"
        _write(f"{self.root}/engine-id", "MULTITUDE")
        for number, layer in enumerate(self._layers):
            self._layer(layer, self._layers[number - 1] if number else "")
        for number in range(self.images):
            self._layer(self._top(number), self._layers[-1])
            config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": self._diffs(number)}, "config": {"Env": ["A=b"] * 20}}
            _write(f"{store}/imagedb/content/sha256/{ident('image', number)}", json.dumps(config))
        for number in range(self.containers):
            name = ident("container", number)
            folder = f"{self.root}/containers/{name}"
            _write(f"{folder}/config.v2.json", json.dumps(self._record(number)))
            _write(f"{folder}/hostconfig.json", json.dumps(self._host_config()))
            _write(f"{folder}/{name}-json.log", "")
            mount = ident("mount", number)
            for file, content in (("mount-id", mount), ("init-id", f"{mount}-init"), ("parent", self._top(number))):
                _write(f"{store}/layerdb/mounts/{name}/{file}", content)
            for layer in (mount, f"{mount}-init"):
                os.makedirs(f"{self.root}/overlay2/{layer}/diff")
        for number in range(VOLUMES):
            os.makedirs(f"{self.root}/volumes/data{number}/_data")

    def _diffs(self, number: int) -> List[str]:
        return [*self._base, f"sha256:{ident('own diff', number)}"]

    def _top(self, container: int) -> str:
        return chain([self._layers[-1], self._diffs(container % self.images)[-1]])[-1]

    def _layer(self, name: str, parent: str) -> None:
        record = f"{self.root}/image/overlay2/layerdb/sha256/{name[7:]}"
        folder = ident("folder", name)
        for file, content in (("cache-id", folder), ("diff", name), ("size", "1000"), *([("parent", parent)] if parent else [])):
            _write(f"{record}/{file}", content)
        _write(f"{self.root}/overlay2/{folder}/diff/file", "x")

    # -- the answers -----------------------------------------------------------------------------

    def answer(self, path: str, query: Dict[str, List[str]]) -> Any:
        parts = path.strip("/").split("/")
        if parts[0].startswith("v1."):
            parts = parts[1:]
        path = "/".join(parts)
        if path == "version":
            return {"Version": "26.1.5", "ApiVersion": "1.45", "MinAPIVersion": "1.24", "Os": "linux", "Arch": "amd64", "Components": [{"Name": "Engine"}]}
        if path == "info":
            return {
                "ID": "MULTITUDE", "Name": os.uname().nodename, "ServerVersion": "26.1.5", "Driver": "overlay2", "DockerRootDir": self.root,
                "DriverStatus": [["Backing Filesystem", "extfs"]], "SystemTime": time.strftime("%Y-%m-%dT%H:%M:%S.000000001Z", time.gmtime()),
                "Swarm": {"LocalNodeState": "inactive"}, "Images": self.images, "Containers": self.containers,
            }
        if path == "images/json":
            return [self._image(number) for number in range(self.images)]
        if path == "containers/json":
            return [self._summary(number, query.get("size") == ["1"]) for number in range(self.containers)]
        if path == "volumes":
            return {"Volumes": [self._volume(number) for number in range(VOLUMES)], "Warnings": None}
        if path == "networks":
            return []
        if path == "system/df":
            return self._usage(query.get("type") or [])
        if parts[0] == "containers" and parts[2:] == ["json"]:
            return self._details(self._number(parts[1]))
        if path == "events":
            return ""
        return None

    @functools.lru_cache(maxsize=1)  # noqa: B019 - there is one, for as long as the process
    def _numbers(self) -> Dict[str, int]:
        return {ident("container", number): number for number in range(self.containers)}

    def _number(self, container: str) -> int:
        return self._numbers()[container]

    def _usage(self, kinds: List[str]) -> Dict[str, Any]:
        found: Dict[str, Any] = {"LayersSize": 1 << 30, "BuildCache": []}
        if "container" in kinds:
            found["Containers"] = [self._summary(number, True) for number in range(self.containers)]
        if "volume" in kinds:
            found["Volumes"] = [{**self._volume(number), "UsageData": {"Size": 1000, "RefCount": 1}} for number in range(VOLUMES)]
        if "image" in kinds:
            found["Images"] = [self._image(number) for number in range(self.images)]
        return found

    def _image(self, number: int) -> Dict[str, Any]:
        return {
            "Containers": -1, "Created": int(_OLD), "Id": f"sha256:{ident('image', number)}", "Labels": self._labels("image", number), "ParentId": "",
            "RepoDigests": [f"registry.example/team{number % 50}/service{number}@sha256:{ident('digest', number)}"],
            "RepoTags": [f"registry.example/team{number % 50}/service{number}:1.{number}"], "SharedSize": -1, "Size": 123456789 + number,
        }

    @staticmethod
    def _labels(kind: str, number: int) -> Dict[str, str]:
        found = {f"org.example.{kind}.{name}": f"{name} as all of one team have it: {number % 50}" for name in ("title", "source", "team", "licence")}
        return {**found, f"org.example.{kind}.revision": ident("revision", number)[:40]}

    @staticmethod
    def _state(number: int) -> Tuple[str, str]:
        return ("running", "Up 2 weeks") if number % 10 == 0 else ("exited", "Exited (0) 2 weeks ago")

    def _summary(self, number: int, size: bool) -> Dict[str, Any]:
        name = ident("container", number)
        state, status = self._state(number)
        found = {
            "Id": name, "Names": [f"/service-{number}"], "Image": f"registry.example/team{number % self.images % 50}/service{number % self.images}:1.{number % self.images}",
            "ImageID": f"sha256:{ident('image', number % self.images)}", "Command": "/usr/bin/service --with --some --options=of-its-own", "Created": int(_OLD),
            "Ports": [{"IP": address, "PrivatePort": 80, "PublicPort": 8000, "Type": "tcp"} for address in ("0.0.0.0", "::")],
            "Labels": self._labels("container", number), "State": state, "Status": status, "HostConfig": {"NetworkMode": "bridge"},
            "NetworkSettings": {"Networks": {"bridge": self._end(number)}}, "Mounts": [self._mount(number)],
        }
        return {**found, "SizeRw": number, "SizeRootFs": number + 100} if size else found

    def _mount(self, number: int) -> Dict[str, Any]:
        return {
            "Type": "volume", "Name": f"data{number % VOLUMES}", "Source": f"{self.root}/volumes/data{number % VOLUMES}/_data", "Destination": "/data", "Driver": "local",
            "Mode": "z", "RW": True, "Propagation": "",
        }

    @staticmethod
    def _end(number: int) -> Dict[str, Any]:
        return {
            "IPAMConfig": None, "Links": None, "Aliases": None, "MacAddress": "02:42:ac:11:00:02", "DriverOpts": None, "NetworkID": ident("network"),
            "EndpointID": ident("endpoint", number), "Gateway": "172.17.0.1", "IPAddress": "172.17.0.2", "IPPrefixLen": 16, "IPv6Gateway": "",
            "GlobalIPv6Address": "", "GlobalIPv6PrefixLen": 0, "DNSNames": None,
        }

    def _volume(self, number: int) -> Dict[str, Any]:
        return {
            "CreatedAt": "2026-01-02T03:04:05Z", "Driver": "local", "Labels": self._labels("volume", number), "Name": f"data{number}", "Options": None,
            "Mountpoint": f"{self.root}/volumes/data{number}/_data", "Scope": "local",
        }

    @staticmethod
    def _host_config() -> Dict[str, Any]:
        return {"RestartPolicy": {"Name": "no", "MaximumRetryCount": 0}, "NetworkMode": "bridge", "Binds": [], "CapAdd": None, "MaskedPaths": ["/proc/x"] * 10}

    def _moments(self, number: int) -> Dict[str, Any]:
        state, _status = self._state(number)
        return {
            "Status": state, "Running": state == "running", "Paused": False, "Restarting": False, "ExitCode": 0, "StartedAt": _CREATED, "FinishedAt": _CREATED,
        }

    def _record(self, number: int) -> Dict[str, Any]:
        return {
            "ID": ident("container", number), "Created": _CREATED, "State": self._moments(number), "RestartCount": 0, "Config": {"Image": "x", "Env": ["A=b"] * 50},
            "NetworkSettings": {"Networks": {"bridge": self._end(number)}}, "HasBeenManuallyStopped": False,
        }

    def _details(self, number: int) -> Dict[str, Any]:
        return {
            **self._record(number), "Id": ident("container", number), "Image": f"sha256:{ident('image', number % self.images)}", "Mounts": [self._mount(number)],
            "HostConfig": self._host_config(),
        }


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64


def main() -> None:
    socket, root, images, containers = sys.argv[1:]
    multitude = Multitude(root, int(images), int(containers))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            found = multitude.answer(parts.path, parse_qs(parts.query))
            content = b"" if found == "" else json.dumps({"message": "page not found"} if found is None else found).encode()
            self.send_response(404 if found is None else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_words: Any) -> None:
            """Nobody reads it."""

    multitude.lay_out()
    server = _Server(socket, Handler)
    print("ready", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
