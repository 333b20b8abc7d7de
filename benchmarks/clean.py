# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How fast docker_clean is, beside ``docker system prune`` and community.docker's ``docker_prune``: ratios, never a limit in seconds.

    make bench-clean                              # all of it, on a host that is made for it and gone afterwards
    .venv/bin/python benchmarks/clean.py --help   # fewer images, or on a host that stays for the next run

One host with 50, 300 and 1,000 images of 2 MB, each with a layer of its own, 100 stopped containers and 100 anonymous volumes. Before each
contender all of it is made anew; nothing is left after any, which is looked at. Their order is another one in each round. The least, the
median and the most are shown.

"Module" is docker_clean as its own process in the host, as Ansible starts it there, but without the controller; "start-up" is the same on the
host that is empty then: what it takes to find nothing. "Ad hoc" is ``ansible -m``, "playbook" ``ansible-playbook`` with one task, without
gathering facts; both over an SSH connection that is open already. docker_prune comes from the Python package ``ansible``, of the release that
goes with this ansible-core. What it imports on the host (requests and urllib3) is installed there in a virtual environment, with its bytecode;
docker_clean carries its own.

"Idle" is a run that finds nothing to do: on an empty host, and on the full one, where all is younger than what is asked for.

``--crowd 2000 --store containerd`` is another question: what check mode takes on a host with 2,000 small images, as many volumes and 100 stopped
containers, beside what the engine itself takes to list the images and to size everything. Nothing is removed, and nothing is fetched.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, Optional

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from benchmarks import common  # noqa: E402
from benchmarks.common import cpu_of_children, idle_cpus, markdown, say, span  # noqa: E402
from tests.fleet import Fleet, FleetError, Host, HostSpec  # noqa: E402
from tests.fleet.dirty import load_image, tar  # noqa: E402
from tests.fleet.system import die_with_parent  # noqa: E402
from tests.integration.bare import Bare, Outcome  # noqa: E402

PRUNE, MODULE, STARTUP, AD_HOC = "docker system prune", "docker_clean, module", "docker_clean, start-up", "docker_clean, ad hoc"
OURS, THEIRS = "docker_clean, playbook", "docker_prune, playbook"
PING, PING_PIPELINED = "ping", "ping, pipelining on"
EMPTY, FULL = "docker_clean, empty host", "docker_clean, full host"
LIST, SIZE, BOTH, CHECK = "GET /images/json", "GET /system/df", "the engine, both", "docker_clean, check mode"
IMAGES = (50, 300, 1000)
OTHERS = 100
#: An image's own layer: so many files of so many bytes.
FILES, FILE_BYTES = 100, 20_000
#: Images of a crowd: layers that all of them have, files in each layer, images in one archive.
SHARED_LAYERS, LAYER_FILES, ARCHIVE = 4, 40, 100
#: How much more than the engine's list and sizes check mode may take.
CROWD_AIM = 1.3
#: Seconds that an idle run may add to a ping.
IDLE_AIM = 0.3
#: What `docker system prune -af --volumes` takes.
ALL: dict[str, Any] = {"containers": {}, "images": {"scope": "unused"}, "networks": {}, "volumes": {"scope": "unused"},
                       "build_cache": {"scope": "all"}}
NOTHING_OLD: dict[str, Any] = {section: {**options, "older_than": "7d"} for section, options in ALL.items()}
THEIR_ALL: dict[str, Any] = {"containers": True, "images": True, "images_filters": {"dangling": False}, "networks": True, "volumes": True,
                             "builder_cache": True, "builder_cache_all": True}
VENV = "/opt/peer"


@dataclass
class Series(common.Series):
    """What one contender took in all rounds; ``engine`` is the CPU that the engine took meanwhile."""

    engine: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "engine_cpu_median": round(median(self.engine), 4)}


class Controller:
    """Ansible as users run it, on one host."""

    def __init__(self, fleet: Fleet, folder: Path, peer: Path) -> None:
        self._inventory = str(fleet.inventory)
        self._folder = folder
        self._environment = common.ansible_environment(folder, peer)

    def ad_hoc(self, module: str, arguments: dict[str, Any]) -> None:
        self._run(["ansible", "-i", self._inventory, "all", "-m", module, "-a", json.dumps(arguments)])

    def play(self, module: str, arguments: Optional[dict[str, Any]] = None, **variables: Any) -> None:
        """Run a playbook of one task. YAML is a superset of JSON."""
        play = {"hosts": "all", "gather_facts": False, "vars": variables, "tasks": [{"name": "The only one", module: arguments or {}}]}
        path = self._folder / f"{hashlib.sha256(json.dumps(play).encode()).hexdigest()[:12]}.yml"
        path.write_text(json.dumps([play]))
        self._run(["ansible-playbook", "-i", self._inventory, str(path)])

    def _run(self, command: list[str]) -> None:
        done = subprocess.run(command, env=self._environment, cwd=self._folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900)
        if done.returncode:
            raise FleetError(f"{' '.join(command)} ended with {done.returncode}: {(done.stdout + done.stderr)[-3000:]}")


def fill(host: Host, images: int) -> None:
    """Make all objects: nothing of an earlier round is made again, so no layer is there already."""
    load_image(host, "bench/base:1", {})
    below = host.must("GET", "/images/bench/base:1/json")["RootFS"]["Layers"]
    # The same for all images but for one file, so that it is made once.
    rest = tar({f"srv/{number}": random.randbytes(FILE_BYTES) for number in range(FILES)})
    for first in range(0, images, 25):
        archive, manifest = {}, []
        for number in range(first, min(first + 25, images)):
            layer = tar({"own": f"{number} {secrets.token_hex(8)}".encode()})[:1024] + rest
            config = json.dumps({
                "architecture": "amd64", "os": "linux", "created": "2024-01-01T00:00:00Z", "config": {"Cmd": ["/bin/true"]},
                "rootfs": {"type": "layers", "diff_ids": [*below, f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
            }).encode()
            name = f"{hashlib.sha256(config).hexdigest()}.json"
            archive.update({name: config, f"{number}.tar": layer})
            manifest.append({"Config": name, "RepoTags": [f"bench/{number}:1"], "Layers": [*(["below"] * len(below)), f"{number}.tar"]})
        host.must("POST", "/images/load?quiet=1", tar({**archive, "manifest.json": json.dumps(manifest).encode()}))
    with ThreadPoolExecutor(max_workers=4) as pool:
        # Engines of API 1.42 and newer prune volumes without a name only; this is one on all engines.
        list(pool.map(lambda _number: host.must("POST", "/volumes/create", {"Name": secrets.token_hex(32), "Labels": {"com.docker.volume.anonymous": ""}}),
                      range(OTHERS)))
        list(pool.map(lambda number: host.must("POST", f"/containers/create?name=bench-{number}", {
            "Image": f"bench/{number % images}:1", "Cmd": ["/bin/true"], "HostConfig": {"NetworkMode": "none"}}), range(OTHERS)))
    host.exec(["sync", "--file-system", host.data_root])


def fill_crowd(host: Host, count: int) -> None:
    """Make so many images, of a few shared layers and a small one of their own each, as many volumes, and containers."""
    shared = [tar({f"srv/{layer}/{number}": random.randbytes(800) for number in range(LAYER_FILES)}) for layer in range(SHARED_LAYERS)]
    names = [f"shared{layer}.tar" for layer in range(SHARED_LAYERS)]
    for first in range(0, count, ARCHIVE):
        archive, manifest = dict(zip(names, shared)), []
        for number in range(first, min(first + ARCHIVE, count)):
            own = tar({f"own/{file}": f"{number} {file}".encode() for file in range(5)})
            config = json.dumps({
                "architecture": "amd64", "os": "linux", "created": "2024-01-01T00:00:00Z", "config": {"Cmd": ["/bin/true"]},
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in (*shared, own)]},
            }).encode()
            name = f"{hashlib.sha256(config).hexdigest()}.json"
            archive.update({name: config, f"{number}.tar": own})
            manifest.append({"Config": name, "RepoTags": [f"crowd/{number}:1"], "Layers": [*names, f"{number}.tar"]})
        host.must("POST", "/images/load?quiet=1", tar({**archive, "manifest.json": json.dumps(manifest).encode()}))
    with ThreadPoolExecutor(max_workers=4) as pool:
        list(pool.map(lambda number: host.must("POST", "/volumes/create", {"Name": f"crowd-{number}"}), range(count)))
        list(pool.map(lambda number: host.must("POST", f"/containers/create?name=crowd-{number}", {
            "Image": f"crowd/{number % count}:1", "Cmd": ["/bin/true"], "HostConfig": {"NetworkMode": "none"}}), range(OTHERS)))
    host.exec(["sync", "--file-system", host.data_root])


def crowd_runs(host: Host, count: int, rounds: int, idle: list[float]) -> tuple[dict[str, Series], int]:
    """Check mode beside the engine's own list and sizes, one after the other in each round; and the most memory that the module took."""
    bare = Bare(host, "docker_clean")
    taken = {name: Series() for name in (LIST, SIZE, BOTH, CHECK)}
    outcomes: list[Outcome] = []
    for number in range(rounds):
        idle.append(round(idle_cpus(), 1))
        timed(host, partial(host.must, "GET", "/images/json?all=1"), taken[LIST])
        timed(host, partial(host.must, "GET", "/system/df"), taken[SIZE])
        for name in ("seconds", "cpu", "engine"):
            getattr(taken[BOTH], name).append(sum(getattr(taken[part], name)[-1] for part in (LIST, SIZE)))
        # Without what an earlier round has measured.
        timed(host, lambda: outcomes.append(bare.run(_ansible_check_mode=True, state_dir="", **ALL)), taken[CHECK])
        found = Counter(entry["kind"] for entry in outcomes[-1].result["removed"])
        if (found["image"], found["volume"], found["container"]) != (count, count, OTHERS):
            raise FleetError(f"not what was to be planned: {found}")
        say(f"round {number + 1} of {rounds}: " + ", ".join(f"{name} {series.seconds[-1]:.2f}" for name, series in taken.items()))
    return taken, max(outcome.peak for outcome in outcomes)


def crowd(options: argparse.Namespace) -> int:
    """Fill a host with very many objects, and print what it takes to look at them."""
    daemon: dict[str, Any] = {"features": {"containerd-snapshotter": True}} if options.store == "containerd" else {}
    spec = HostSpec("crowd", "ext4", root="forky" if options.store == "containerd" else "machine", data_size="20G", daemon_json=daemon)
    idle: list[float] = []
    with the_host(options.dir, spec) as (_fleet, host):
        if len(host.must("GET", "/images/json")) != options.crowd:
            fill_crowd(host, options.crowd)
            say("the host is full")
        info = host.must("GET", "/info")
        taken, peak = crowd_runs(host, options.crowd, options.rounds, idle)
    print(f"Engine {info['ServerVersion']}, {info['Driver']}, ext4, {len(os.sched_getaffinity(0))} CPUs.\n{options.crowd} images of {SHARED_LAYERS} shared "
          f"layers and one of their own, {options.crowd} volumes, {OTHERS} containers.")
    print("", *table(f"{options.crowd} images, {options.store}", taken, {"both": BOTH}), sep="\n")
    ratio = taken[CHECK].middle / taken[BOTH].middle
    print(f"\nidle CPUs before each round: {span(idle)}; most memory of the module {peak / 1e6:.0f} MB")
    print(f"check mode, {ratio:.2f} of the engine's list and sizes; aim at most {CROWD_AIM}: {'met' if ratio <= CROWD_AIM else 'missed'}")
    if options.json:
        figures = {"idle_cpus": idle, "peak": peak, "crowd": {name: series.to_json() for name, series in taken.items()}}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def empty(host: Host) -> None:
    host.docker("system", "prune", "-af", "--volumes", timeout=900)


def what_is_left(host: Host) -> dict[str, int]:
    found = {"containers": host.must("GET", "/containers/json?all=1"), "images": host.must("GET", "/images/json?all=1"),
             "volumes": host.must("GET", "/volumes")["Volumes"]}
    return {name: len(entries or ()) for name, entries in found.items()}


def cpu_of_engine(host: Host) -> float:
    """Seconds of CPU that the engine has had, see proc_stat(5)."""
    fields = host.path(f"/proc/{host.engine_process()}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def timed(host: Host, run: Callable[[], object], into: Series) -> None:
    engine, used, began = cpu_of_engine(host), cpu_of_children(), time.perf_counter()
    run()
    into.seconds.append(time.perf_counter() - began)
    into.cpu.append(cpu_of_children() - used)
    into.engine.append(cpu_of_engine(host) - engine)


def removals(host: Host, controller: Controller, images: int, rounds: int, idle: list[float]) -> dict[str, Series]:
    """All contenders, ``rounds`` times each, each on a host that has just been filled."""
    bare = Bare(host, "docker_clean")
    contenders: dict[str, Callable[[], object]] = {
        PRUNE: partial(empty, host),
        MODULE: lambda: bare.run(**ALL),
        AD_HOC: lambda: controller.ad_hoc("fleetclean.docker.docker_clean", ALL),
        OURS: lambda: controller.play("fleetclean.docker.docker_clean", ALL),
        THEIRS: lambda: controller.play("community.docker.docker_prune", THEIR_ALL, ansible_python_interpreter=f"{VENV}/bin/python3"),
    }
    taken = {name: Series() for name in (PRUNE, MODULE, STARTUP, AD_HOC, OURS, THEIRS)}
    order = list(contenders)
    for number in range(rounds):
        random.shuffle(order)
        for name in order:
            fill(host, images)
            there = what_is_left(host)
            if there != {"containers": OTHERS, "images": images + 1, "volumes": OTHERS}:
                raise FleetError(f"not what was to be made: {there}")
            idle.append(round(idle_cpus(), 1))
            timed(host, contenders[name], taken[name])
            there = what_is_left(host)
            if any(there.values()):
                raise FleetError(f"{name} has left {there}")
            if name == MODULE:
                timed(host, contenders[name], taken[STARTUP])
        say(f"{images} images, round {number + 1} of {rounds}: " + ", ".join(f"{name} {series.seconds[-1]:.2f}" for name, series in taken.items()))
    return taken


def idle_runs(host: Host, controller: Controller, images: int, rounds: int, idle: list[float]) -> dict[str, Series]:
    """Runs with nothing to do beside a ping, as whole playbooks: on an empty host, then on one with ``images`` images."""
    taken = {name: Series() for name in (PING, PING_PIPELINED, EMPTY, FULL)}
    contenders: dict[str, Callable[[], object]] = {
        PING: lambda: controller.play("ansible.builtin.ping"),
        PING_PIPELINED: lambda: controller.play("ansible.builtin.ping", ansible_pipelining=True),
    }
    for name, arguments in ((EMPTY, ALL), (FULL, NOTHING_OLD)):
        if name == FULL:
            fill(host, images)
        here: dict[str, Callable[[], object]] = {**contenders, name: partial(controller.play, "fleetclean.docker.docker_clean", arguments)}
        before, order = what_is_left(host), list(here)
        for number in range(rounds + 1):
            random.shuffle(order)
            idle.append(round(idle_cpus(), 1))
            for contender in order:
                # The first round warms what is warm for everybody's second run.
                timed(host, here[contender], taken[contender] if number else Series())
        if what_is_left(host) != before:
            raise FleetError(f"{name} was not idle: {before}, then {what_is_left(host)}")
    empty(host)
    say("idle: " + ", ".join(f"{name} {series.middle:.2f}" for name, series in taken.items()))
    return taken


def table(title: str, taken: dict[str, Series], others: dict[str, str], difference: bool = False) -> list[str]:
    """A table as Markdown has it: each contender, and its ratio to each of ``others`` (the column's name: the contender)."""
    rows = [[title, "seconds", "from-to", *(f"/ {column}" for column in others), *(f"- {column}" for column in others if difference), "CPU s", "engine's"]]
    for name, series in taken.items():
        against = [taken[other].middle for other in others.values()]
        rows.append([
            name, f"{series.middle:.2f}", series.from_to, *(f"{series.middle / other:.2f}" for other in against),
            *(f"{series.middle - other:+.2f}" for other in against if difference), f"{series.middle_cpu:.2f}", f"{median(series.engine):.2f}"])
    return markdown(rows)


def aims(removed: dict[int, dict[str, Series]], idle: dict[str, Series]) -> Iterator[str]:
    """What was aimed at, and what came of it."""
    for images, taken in removed.items():
        for ours, other in ((MODULE, PRUNE), (OURS, THEIRS)):
            ratio = taken[ours].middle / taken[other].middle
            yield f"{images} images: {ours}, {ratio:.2f} of {other}; aim at most 1.0: {'met' if ratio <= 1 else 'missed'}"
    for name in (EMPTY, FULL) if idle else ():
        added = idle[name].middle - idle[PING].middle
        yield f"idle, {name}: {added:+.2f} s to a ping; aim at most {IDLE_AIM:+}: {'met' if added <= IDLE_AIM else 'missed'}"


@contextmanager
def the_host(directory: Optional[Path], spec: HostSpec) -> Iterator[tuple[Fleet, Host]]:
    """The host: one for this run, or one that stays in ``directory``."""
    if directory is None:
        with Fleet([spec]) as fleet:
            yield fleet, fleet[spec.name]
        return
    try:
        fleet = Fleet.attach(directory)
    except FleetError:
        fleet = Fleet([spec], directory)
        fleet.up()
    yield fleet, fleet[spec.name]


def fetch_peer(folder: Path) -> str:
    """Get community.docker out of the Python package ``ansible`` into ``folder``; its version."""
    core = metadata.version("ansible-core").split(".")
    # Release N of the one goes with release 2.(N + 7) of the other.
    wanted = int(core[1]) - 7
    with tempfile.TemporaryDirectory() as downloads:
        done = subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", downloads,
                               f"ansible>={wanted},<{wanted + 1}"], capture_output=True, text=True)
        if done.returncode:
            raise FleetError(f"pip cannot download ansible {wanted}, which has community.docker: {done.stderr.strip()[-1000:]}")
        with zipfile.ZipFile(next(Path(downloads).glob("*.whl"))) as wheel:
            wheel.extractall(folder, [name for name in wheel.namelist() if name.startswith(
                ("ansible_collections/community/docker/", "ansible_collections/community/library_inventory_filtering_v1/"))])
    manifest = json.loads((folder / "ansible_collections/community/docker/MANIFEST.json").read_text())
    return str(manifest["collection_info"]["version"])


def install_for_peer(host: Host) -> None:
    """Give the host a virtual environment with what docker_prune imports."""
    host.exec([host.python, "-m", "venv", "--without-pip", VENV])
    target = next(host.path(f"{VENV}/lib").glob("python3*")) / "site-packages"
    for name in ("requests", "urllib3", "idna", "certifi", "charset-normalizer"):
        found = metadata.distribution(name)
        for path in found.files or ():
            if ".." not in path.parts and path.suffix not in (".pyc", ".so"):
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(str(found.locate_file(path)), target / path)
    host.exec([f"{VENV}/bin/python3", "-m", "compileall", "-q", f"{VENV}/lib"])


def main() -> int:
    parser = argparse.ArgumentParser(description="docker_clean beside docker system prune and docker_prune: ratios of one run (needs root).")
    parser.add_argument("--images", type=int, nargs="+", default=list(IMAGES), help="how many (default: 50 300 1000)")
    parser.add_argument("--rounds", type=int, default=5, help="of removals; half as many with 1,000 images and more (default: %(default)s)")
    parser.add_argument("--idle-rounds", type=int, default=9, help="of runs with nothing to do (default: %(default)s)")
    parser.add_argument("--dir", type=Path, help="keep the host in this folder for the next run; end it with: python3 -m tests.fleet down --dir DIR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--crowd", type=int, metavar="N", help="instead: check mode with N images and N volumes, beside the engine's own list and sizes")
    parser.add_argument("--store", choices=("graphdriver", "containerd"), default="containerd", help="of --crowd (default: %(default)s)")
    parser.add_argument("--profile", action="store_true", help="measure nothing, show where the module spends its time with the first of --images")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root, for the throwaway host")
    die_with_parent(os.getppid())
    removed: dict[int, dict[str, Series]] = {}
    quiet: dict[str, Series] = {}
    idle: dict[str, list[float]] = {}
    try:
        if options.crowd:
            return crowd(options)
        spec = HostSpec("bench", "ext4", data_size="20G")
        with the_host(options.dir, spec) as (fleet, host), tempfile.TemporaryDirectory(prefix="fleetclean-bench-") as folder:
            empty(host)
            if options.profile:
                return profile(host, options.images[0])
            version = fetch_peer(Path(folder))
            install_for_peer(host)
            controller = Controller(fleet, Path(folder), Path(folder))
            say(f"the host is there, community.docker {version} too")
            info = host.must("GET", "/info")
            if options.idle_rounds:
                idle["idle"] = []
                quiet = idle_runs(host, controller, options.images[min(1, len(options.images) - 1)], options.idle_rounds, idle["idle"])
            for images in options.images if options.rounds else ():
                idle[str(images)] = []
                rounds = options.rounds if images < 1000 else max(1, (options.rounds + 1) // 2)
                removed[images] = removals(host, controller, images, rounds, idle[str(images)])
    except FleetError as error:
        print(f"clean: {error}", file=sys.stderr)
        return 1
    print(f"ansible-core {metadata.version('ansible-core')}, community.docker {version}, Engine {info['ServerVersion']}, {info['Driver']}, ext4, "
          f"{len(os.sched_getaffinity(0))} CPUs.\nImages of {FILES * FILE_BYTES / 1e6:.0f} MB in {FILES} files, {OTHERS} containers, {OTHERS} volumes.")
    for images, taken in removed.items():
        print("", *table(f"{images} images", taken, {"prune": PRUNE, "docker_prune": THEIRS}), sep="\n")
        print(f"\nidle CPUs before each run: {span(idle[str(images)])}")
    if quiet:
        print("", *table("idle, playbook", quiet, {"ping": PING, "pipelined": PING_PIPELINED}, difference=True), sep="\n")
        print(f"\nidle CPUs before each round: {span(idle['idle'])}")
    print("", *aims(removed, quiet), sep="\n")
    if options.json:
        figures = {"idle_cpus": idle, "idle": {name: series.to_json() for name, series in quiet.items()},
                   **{str(images): {name: series.to_json() for name, series in taken.items()} for images, taken in removed.items()}}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def profile(host: Host, images: int) -> int:
    """Print where one run spends its time; what its threads do is seen as waiting."""
    import pstats

    inside = "/run/bare/profile"
    bare = Bare(host, "docker_clean")
    fill(host, images)
    bare.run(profile=inside, **ALL)
    printed = io.StringIO()
    statistics = pstats.Stats(str(host.path(inside)), stream=printed)
    statistics.strip_dirs().sort_stats("cumulative").print_stats(45)
    statistics.sort_stats("tottime").print_stats(25)
    print(printed.getvalue())
    return 0


if __name__ == "__main__":
    sys.exit(main())
