"""The test bed's command line: ``python3 -m tests.fleet --help``, from the repository's root."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Optional

from . import fleet, keeper, roots
from .errors import FleetError
from .host import HostSpec

_DEFAULT_DIRECTORY = keeper.PARENT / "fleetclean"
_DEFAULT_HOSTS = "web1:ext4:overlay2,db1:xfs:overlay2"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m tests.fleet", description="Throwaway Docker hosts in namespaces of this machine (needs root).")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def with_directory(name: str, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--dir", type=Path, default=Path(os.environ.get("FLEETCLEAN_DIR") or _DEFAULT_DIRECTORY),
                             help="the fleet's folder (default: $FLEETCLEAN_DIR or %(default)s)")
        return command

    up = with_directory("up", "start a fleet and print its inventory's path; it runs until `down`, or until the process --while ends")
    up.add_argument("--while", dest="owner", type=int, metavar="PID", help="end the fleet when this process ends")
    up.add_argument("--hosts", default=_DEFAULT_HOSTS, help="name:filesystem:driver:root,... or a JSON file with a list (default: %(default)s)")
    up.add_argument("--bare", action="store_true", help="engines only: no network, no ssh")
    up.add_argument("--timeout", type=float, default=60, help="seconds for each step of starting (default: %(default)s)")

    dirty = with_directory("dirty", "make hosts of a running fleet dirty, as hosts get with time")
    dirty.add_argument("host", nargs="*", help="which ones (default: all with an engine)")
    dirty.add_argument("--scale", type=float, default=1.0, help="sizes are multiplied by this (default: %(default)s)")
    dirty.add_argument("--log-size", default="200M", help="size of the one big log (default: %(default)s)")
    dirty.add_argument("--aged", action="store_true", help="make part of it 30 days old")
    dirty.add_argument("--leftovers", action="store_true", help="leave behind what crashed engines leave behind")

    with_directory("down", "end a fleet, also what is left of a dead one")
    with_directory("status", "say what runs")
    making = commands.add_parser("roots", help="make the root file systems of other Debian suites", description="Make root file systems with debootstrap.")
    making.add_argument("suite", nargs="*", default=[], help=f"which (default: all of {', '.join(roots.SUITES)})")
    contained = commands.add_parser("contained", help="run a command so that its end, SIGKILL too, ends all that it started",
                                    description="Run a command in a process namespace of its own; it also ends with the process that called this.")
    contained.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- CMD ...")
    return parser


def _specs(text: str, bare: bool) -> list[HostSpec]:
    if Path(text).is_file():
        try:
            records = json.loads(Path(text).read_text())
        except ValueError as error:
            raise FleetError(f"{text} is not JSON: {error}") from error
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise FleetError(f"{text} is not a list of hosts")
        return [HostSpec.from_json({**record, **({"ssh": False} if bare else {})}) for record in records]
    if text.endswith(".json"):
        raise FleetError(f"{text}: no such file")
    return [HostSpec.parse(part.strip(), ssh=not bare) for part in text.split(",") if part.strip()]


def _up(options: argparse.Namespace) -> int:
    if options.owner is not None and not Path(f"/proc/{options.owner}").exists():
        raise FleetError(f"--while: no process {options.owner}")
    started = fleet.Fleet(_specs(options.hosts, options.bare), options.dir, options.timeout)
    started.up(owner=options.owner)
    print(started.inventory)
    return 0


def _dirty(options: argparse.Namespace) -> int:
    from .dirty import dirty
    from .host import size_bytes

    running = fleet.Fleet.attach(options.dir)
    for name in options.host or [host.name for host in running if host.spec.engine]:
        if name not in running.hosts:
            raise FleetError(f"no host {name}; there are: {', '.join(running.hosts)}")
        dirt = dirty(running[name], scale=options.scale, log_bytes=size_bytes(options.log_size), aged=options.aged, leftovers=options.leftovers)
        print(f"{name}: {dirt.summary()}")
    return 0


def _down(options: argparse.Namespace) -> int:
    return 1 if fleet.end(options.dir.absolute()) else 0


def _status(options: argparse.Namespace) -> int:
    state = keeper.read_state(options.dir.absolute())
    if state is None:
        print(f"no fleet in {options.dir}")
        return 0
    if not keeper.processes(state):
        print(f"a dead fleet in {options.dir}; remove it with: python3 -m tests.fleet down --dir {options.dir}")
        return 0
    running = fleet.Fleet.attach(options.dir)
    print(f"inventory {running.inventory}")
    for host in running:
        engine = "no engine" if host.engine_process() is None else f"engine API {host.api_version}"
        spec = host.spec
        print(f"{host.name:12} {host.address or 'bare':15} {spec.filesystem or 'tmpfs'} {spec.driver} {spec.root}: "
              f"{engine if host.alive else 'gone'}")
    return 0


def _roots(options: argparse.Namespace) -> int:
    failed = 0
    for suite in options.suite or roots.SUITES:
        try:
            print(roots.make(suite), flush=True)
        except FleetError as error:
            print(f"tests.fleet: {error}", file=sys.stderr)
            failed = 1
    return failed


def _contained(options: argparse.Namespace) -> int:
    from .contained import run

    argv = options.argv[1:] if options.argv[:1] == ["--"] else options.argv
    if not argv:
        raise FleetError("contained: give a command after --")
    return run(argv)


def main(argv: Optional[list[str]] = None) -> int:
    """Run one command; its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["keep"]:
        owner_pipe = None if arguments[2] == "-" else int(arguments[2])
        keeper.run(json.load(sys.stdin), owner_pipe, int(arguments[1]))
        return 0
    options = _parser().parse_args(arguments)
    commands = {"up": _up, "dirty": _dirty, "down": _down, "status": _status, "roots": _roots, "contained": _contained}
    try:
        return commands[options.command](options)
    except FleetError as error:
        print(f"tests.fleet: {error}", file=sys.stderr)
        return 1
    except PermissionError as error:
        print(f"tests.fleet: {error.strerror}: {error.filename} (are you root?)", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
