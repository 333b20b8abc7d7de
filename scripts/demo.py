"""Shows on four throwaway hosts what the collection does: they get dirty, one gets full to the last byte, and all get clean again.

Needs root, and what `make setup` brings. Nothing of it outlives this process, however it ends: it dies with what started it (make), the
fleet ends with it (tests/fleet/keeper.py), and each command runs in a process namespace that ends with it as well.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from tests.fleet import Dirt, Fleet, FleetError, Host, HostSpec, dirty  # noqa: E402
from tests.fleet.system import die_with_parent  # noqa: E402

#: Small disks, so that little has to be written; /tmp lies on the root disk and is full with it.
HOSTS = (
    HostSpec("build1", "ext4", data_size="1G", root_size="256M"),
    HostSpec("db1", "xfs", data_size="1G"),
    HostSpec("web1", "btrfs", "btrfs", data_size="2G"),
    HostSpec("web2", "ext4", data_size="1G"),
)
FULL, STOPPED = "build1", "web2"
CLEAN = ("ansible-playbook", "playbooks/clean.yml", "-e", "cleanup_profile=standard")
WIDTH = 100
# A line of what --diff prints, and what is left of one that was too long.
PLAN = r"^[-+ ] +(wished|log|container|image|tag|volume|stays|free) .*|^ {30,}\S.*"
# Ansible's exit code when a host failed but the run went through.
A_HOST_FAILED = 2
STARTED = time.monotonic()


class Unexpected(Exception):
    """The demo did not show what it is there to show."""


def say(text: str) -> None:
    """A step, and the time it began."""
    print(f"\n=== {time.monotonic() - STARTED:3.0f} s  {text}", flush=True)


def megabytes(size: int) -> str:
    return f"{size / 1_000_000:,.0f} MB"


def expect(condition: bool, what: str) -> None:
    if not condition:
        raise Unexpected(what)


def shape(text: str) -> str:
    """Text as it is at any time and on any disk: without its figures, the ids of images, and where its lines end."""
    lines = (re.sub(r"(?<=\S)( +)-(?= |$)", r"\1N", line.rstrip("* ")) for line in text.splitlines())
    words = re.sub(r"\b[0-9a-f]{12}\b", "ID", " ".join(" ".join(lines).split()))
    words = re.sub(r"\b\d[\d.]* (second|minute|hour|day)s?\b", "N T", words)
    return re.sub(r"(?<![\w.])\d[\d.]*( [KMGT]?B\b)?", "N", words)


def expect_readme(command: str, output: str) -> None:
    """What README.md shows of the command that ends so is what was printed, in this order; ``...`` stands for what it leaves out."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    match = re.search(rf"^\$ ansible-playbook .*{re.escape(command)}(?: -i fleet)?\n((?!\$ |```).*\n)+", readme, re.MULTILINE)
    expect(match is not None, f"README.md does not show {command}")
    assert match is not None
    rest = shape(output)
    for part in re.split(r"^\.\.\.\n", match[0].partition("\n")[2], flags=re.MULTILINE):
        _before, found, rest = rest.partition(shape(part)) if part.strip() else ("", "all", rest)
        expect(bool(found), f"README.md shows of {command} what was not printed:\n{part}")


class Commands:
    """Runs Ansible as a user would, and shows the command and what it prints."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
            # Ansible's temporary files on this machine go with the fleet's folder.
            "ANSIBLE_LOCAL_TEMP": str(fleet.directory / "ansible"),
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(fleet.directory / "s"),
            "ANSIBLE_FORCE_COLOR": "false",
            "ANSIBLE_NOCOLOR": "true",
        }

    def run(self, *command: str, only: str = "", task: str = "") -> tuple[int, str]:
        """Exit code and output of a command; prints what matches ``only`` in it, or what the task ``task`` said, or all if that is nothing."""
        command = (*command, "-i", str(self._fleet.inventory))
        print(f"$ {shlex.join(command)}", flush=True)
        # Ends with this process, and so does all that it starts.
        contained = [sys.executable, "-m", "tests.fleet", "contained", "--", *command]
        done = subprocess.run(contained, cwd=REPOSITORY, env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, errors="replace", check=False)
        lines = [line.rstrip() for line in done.stdout.splitlines()]
        shown = [match[0] for match in re.finditer(only, done.stdout, re.MULTILINE)] if only else said_by(lines, task)
        for line in shown or lines:
            # Whitespace within a line is what aligns a table.
            for part in textwrap.wrap(line, WIDTH, subsequent_indent="    ", drop_whitespace=False, break_on_hyphens=False):
                print(part.rstrip())
        sys.stdout.flush()
        return done.returncode, done.stdout


def said_by(lines: list[str], task: str) -> list[str]:
    """What the task called ``task`` printed, from its banner to the line with which Ansible says how it went."""
    found = []
    within = False
    for line in lines:
        if line.startswith(("TASK [", "PLAY ")):
            within = line.startswith("TASK [") and line.partition("]")[0].endswith(f" : {task}")
        elif within and re.match(r"(ok|changed|skipping|fatal|failed): \[|\[(WARNING|ERROR)\]: ", line):
            within = False
        elif within:
            found.append(line)
    return found


def recap(output: str) -> dict[str, dict[str, int]]:
    """Ansible's closing figures: host, then ok, changed, unreachable, failed."""
    found = re.findall(r"^(\S+)\s+: (ok=.*)$", output, re.MULTILINE)
    return {host: {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", figures)} for host, figures in found}


def make_dirty(host: Host) -> Dirt:
    """Images, containers, volumes and a log as they pile up in a month."""
    dirt = dirty(host, "small", log_bytes=150_000_000, aged=True)
    # btrfs counts what is written only once it is on the disk.
    host.exec(["sync", "--file-system", host.data_root])
    return dirt


def fill(host: Host) -> None:
    """Not a byte is left on the data root, / and /tmp."""
    for folder in (host.data_root, "/"):
        host.fill(folder)
    for folder in (host.data_root, "/", "/tmp"):
        expect(host.free_bytes(folder) == 0, f"{folder} of {host.name} still has {host.free_bytes(folder)} bytes free")


def exists(host: Host, kind: str, name: str) -> bool:
    return host.api("GET", f"/{kind}/{name}{'' if kind == 'volumes' else '/json'}")[0] == 200


def show(fleet: Fleet) -> None:
    """The demo's steps; raises :class:`Unexpected`."""
    commands = Commands(fleet)
    for host in fleet:
        print(f"  {host.name:7} {host.address:15} {host.spec.filesystem:6} storage driver {host.spec.driver}")

    say("A month passes: each host gets old images, stopped containers, volumes and a long log")
    with ThreadPoolExecutor() as pool:
        dirt = dict(zip(fleet.hosts, pool.map(make_dirty, fleet)))

    say(f"{FULL} runs full: 0 bytes free on {fleet[FULL].data_root}, / and /tmp. {STOPPED}'s engine stops")
    fill(fleet[FULL])
    fleet[STOPPED].stop_engine()
    free = {host.name: host.free_bytes() for host in fleet}
    print("  free: " + ", ".join(f"{name} {megabytes(size)}" for name, size in free.items()))

    say(f"Ansible's own modules cannot work on {FULL} any more")
    code, output = commands.run("ansible", FULL, "-m", "ansible.builtin.ping", "--one-line", only=rf"^{FULL} \| \w+|error writing .*?No space left on device")
    expect(code != 0 and "No space left on device" in output, "ping should have failed for want of space")

    say("Where has the space gone? (changes nothing)")
    code, output = commands.run("ansible-playbook", "playbooks/report.yml", task="The fleet")
    expect_readme("fleetclean.docker.report", output)
    expect(code == A_HOST_FAILED and FULL in output, f"report.yml ended with {code}")

    say(f"What would go on {FULL}, and why? (changes nothing)")
    code, output = commands.run(*CLEAN, "--check", "--diff", "--limit", FULL, only=PLAN)
    expect(code == 0, f"clean.yml --check ended with {code}")
    expect_readme("cleanup_profile=standard --check --diff --limit build1", output)

    say("Clean: the profile standard takes what is older than a day")
    code, output = commands.run(*CLEAN, task="The fleet")
    expect_readme("cleanup_profile=standard", output)
    print(f"  exit code {code}, as it has to be: {STOPPED}'s engine is down, which needs a look and stopped no other host")
    figures = recap(output)
    expect(code == A_HOST_FAILED, f"clean.yml ended with {code} instead of {A_HOST_FAILED}")
    expect([name for name, count in figures.items() if count["failed"] or count["unreachable"]] == [STOPPED], f"{STOPPED} alone should have failed: {figures}")

    say("What came free, seen from outside")
    for host in fleet:
        if host.name != STOPPED:
            print(f"  {host.name:7} {megabytes(free[host.name]):>9} -> {megabytes(host.free_bytes()):>9} free")
            expect(host.free_bytes() > free[host.name] + 100_000_000, f"{host.name} should have more than 100 MB more")
            check_what_stays(host, dirt[host.name])
    print("  still there: what runs and its image, named volumes, and all that carries the label fleetclean.keep")

    say("Once more: there is nothing left to do")
    code, output = commands.run(*CLEAN, only=r".*changed=\d+")
    figures = recap(output)
    expect(code == A_HOST_FAILED and set(figures) == set(fleet.hosts), f"clean.yml ended with {code}")
    expect(not any(count["changed"] for count in figures.values()), f"something changed again: {figures}")
    expect(not any(count["failed"] for name, count in figures.items() if name != STOPPED), f"{STOPPED} alone should have failed: {figures}")


def check_what_stays(host: Host, dirt: Dirt) -> None:
    running = {container["Names"][0].lstrip("/") for container in host.must("GET", "/containers/json")}
    expect({dirt.running, dirt.chatty, dirt.big_log} <= running, f"{host.name}: {running} run")
    for kind, name in (("images", dirt.running_image), ("images", dirt.kept_image), ("volumes", dirt.named_volume), ("volumes", dirt.kept_volume),
                       ("containers", dirt.kept_container)):
        expect(exists(host, kind, name), f"{host.name}: {kind}: {name} is gone")
    for kind, name in (("containers", dirt.stopped_old), ("images", dirt.unused_image_old), ("images", dirt.dangling_image)):
        expect(not exists(host, kind, name), f"{host.name}: {kind}: {name} is still there")


def main() -> int:
    if os.geteuid() != 0:
        print("demo: needs root, for the throwaway hosts (namespaces, mounts)", file=sys.stderr)
        return 1
    die_with_parent(os.getppid())
    say(f"Four throwaway hosts, reached over SSH: {', '.join(spec.name for spec in HOSTS)}")
    try:
        with Fleet(HOSTS) as fleet:
            directory = fleet.directory
            show(fleet)
            say("The fleet is taken down")
        expect(not directory.exists(), f"{directory} is still there")
    except (Unexpected, FleetError) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted; the fleet is taken down", file=sys.stderr)
        return 130
    print(f"\ndemo: all as it should be, in {time.monotonic() - STARTED:.0f} s; nothing is left running", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
