"""An emulated machine for a look: ``python3 -m tests.vm DRIVER`` fills it, says where its inventory is, and ends with standard input."""

from __future__ import annotations

import argparse
import sys

from tests.fleet import FleetError

from . import content, images
from .machine import DRIVERS, Machine


def main() -> int:
    """See above."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.vm", description="A machine under emulation with an engine and the storage driver DRIVER.")
    parser.add_argument("driver", choices=sorted(DRIVERS), metavar="DRIVER", help=f"one of {', '.join(sorted(DRIVERS))}")
    parser.add_argument("--image", action="store_true", help="only make the image that it boots from, unless it is there")
    options = parser.parse_args()
    try:
        images.make(DRIVERS[options.driver][0])
        if options.image:
            return 0
        with Machine(options.driver) as machine:
            content.fill(machine)
            print(machine.inventory, flush=True)
            sys.stdin.read()
    except FleetError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
