"""Addresses and the veth pair of a host: 198.18.0.0/15, the range that is set aside for tests (RFC 2544).

The outer end's name, ``fc<number>``, is the lock of its subnet: the kernel makes a name once, whoever asks. The pair vanishes with the
host's network namespace, so nobody has to take it away.
"""

from __future__ import annotations

import ipaddress
import os
import subprocess
from dataclasses import dataclass

from .errors import FleetError

_RANGE = ipaddress.ip_network("198.18.0.0/15")
_SUBNETS = _RANGE.num_addresses // 4


@dataclass(frozen=True)
class Link:
    """A veth pair: its outer end's name, and the two addresses of its /30."""

    device: str
    outer: str
    inner: str


def connect(pid: int, first: int) -> Link:
    """Give the network namespace of ``pid`` an ``eth0`` with an address of its own; ``first`` is the subnet to try first.

    Raises :class:`FleetError` when ``ip`` fails for another reason than a taken number.
    """
    for number in range(first, first + _SUBNETS):
        number %= _SUBNETS
        base = _RANGE.network_address + 4 * number
        link = Link(f"fc{number}", str(base + 1), str(base + 2))
        # An address of that subnet without our device is somebody else's.
        if _in_use(link):
            continue
        made = _ip(f"link add {link.device} type veth peer name eth0 netns {pid}")
        if made and "exists" in made:
            continue
        if made:
            raise FleetError(f"cannot make a network device: {made}")
        inside = _ip(f"addr add {link.inner}/30 dev eth0\nlink set eth0 up", pid)
        failed = _ip(f"addr add {link.outer}/30 dev {link.device}\nlink set {link.device} up") or inside
        if failed:
            raise FleetError(f"cannot set up network device {link.device}: {failed}")
        return link
    raise FleetError("all addresses of 198.18.0.0/15 are taken")


def gone(device: str) -> bool:
    """Whether the device is gone."""
    return not os.path.exists(f"/sys/class/net/{device}")


def delete(device: str) -> None:
    """Delete an outer end; nothing when it is gone already."""
    _ip(f"link delete {device}")


def _in_use(link: Link) -> bool:
    if not gone(link.device):
        return True
    shown = subprocess.run(["ip", "-o", "route", "show", "match", link.inner, "root", str(_RANGE)], capture_output=True, text=True)
    return bool(shown.stdout.strip())


def _ip(batch: str, pid: int = 0) -> str:
    """What ``ip`` complains about the commands in ``batch``, in the network namespace of ``pid`` if given; "" when all is well."""
    command = ["ip", "-batch", "-"]
    if pid:
        command = ["nsenter", "--target", str(pid), "--net", *command]
    done = subprocess.run(command, input=batch + "\n", capture_output=True, text=True)
    return "" if done.returncode == 0 else (done.stderr or done.stdout).strip().splitlines()[0]
