# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bad input and engines that cannot be had: one clear error each, and nothing touched."""

from __future__ import annotations

import json
import shutil
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Set, Tuple

import pytest

from tests.certificates import Certificates
from tests.fleet import Fleet, Host, HostSpec, dirty
from tests.integration.support import REPOSITORY, Ansible, Run, start, state
from tests.integration.things import until

sys.path.insert(0, str(REPOSITORY / "playbooks/collections"))

from ansible_collections.fleetclean.docker.plugins.module_utils import engine as engines
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import FleetcleanError


@pytest.fixture(scope="module")
def fleet(here: None) -> Iterator[Fleet]:
    with start([HostSpec("one"), HostSpec("two", ssh=False)]) as hosts:
        dirty(hosts["one"], "small", log_bytes=2_000_000)
        yield hosts


@contextmanager
def nothing_touched(fleet: Fleet) -> Iterator[None]:
    before = {host.name: state(host) for host in fleet}
    yield
    assert {host.name: state(host) for host in fleet} == before


@pytest.fixture(autouse=True)
def untouched(fleet: Fleet) -> Iterator[None]:
    with nothing_touched(fleet):
        yield


def fails(ansible: Ansible, module: str, args: Dict[str, Any], **variables: Any) -> Dict[str, Any]:
    return failed(ansible.module(module, args, **variables)["one"])


def failed(result: Dict[str, Any]) -> Dict[str, Any]:
    assert result.get("failed"), result
    assert "Traceback" not in str(result)
    assert not result.get("changed")
    return result


BAD_INPUT: Tuple[Tuple[str, Dict[str, Any], str], ...] = (
    ("docker_clean", {"images": {"older_than": "3 fortnights"}}, 'docker_clean: images.older_than: "3 fortnights" is not a duration; use a number with s, m, h, d or w, such as 7d.'),
    ("docker_clean", {"images": {}, "free_target": "much"}, 'docker_clean: free_target: "much" is neither a size nor a share; use 20GB, or 15% of the filesystem.'),
    ("docker_clean", {"build_cache": {"keep_storage": "10 elephants"}}, 'build_cache.keep_storage: "10 elephants" is not a size'),
    ("docker_clean", {"images": {"scope": "everything"}}, "value of scope must be one of: dangling, unused, all, got: everything found in images"),
    ("docker_clean", {"containers": {"states": ["asleep"]}}, "value of states must be one or more of"),
    ("docker_clean", {"images": {"older_then": "7d"}}, "older_then"),
    ("docker_clean", {"image": {}}, "Unsupported parameters for (fleetclean.docker.docker_clean) module: image. Supported parameters include: api_version, assume_reclaimed,"),
    ("docker_clean", {"images": True}, "docker_clean: images: true does not say which of them. Write images: {} for the defaults, or options such as images: {scope: unused"),
    ("docker_clean", {"containers": [1], "images": {}}, "docker_clean: containers: a list is no mapping of options. Write containers: {}"),
    ("docker_clean", {"builder_cache": True}, "docker_clean: builder_cache: is an option of community.docker.docker_prune. Here it is build_cache"),
    ("docker_clean", {}, "docker_clean: nothing was asked for; give at least one of containers, images, volumes"),
    ("docker_clean", {"leftovers": {}}, "docker_clean: leftovers: not there yet in this release; leave the section out."),
    ("docker_clean", {"images": {}, "parallel": 0}, "parallel: 0 is out of range; use 1 to 32."),
    ("docker_clean", {"images": {"keep": "postgres:16, redis:.*"}}, 'docker_clean: images.keep: "redis:.*" cannot match any image. Use repository:tag, repository, digests or IDs'),
    ("docker_clean", {"images": {"keep": {"app": 1}}}, "docker_clean: images.keep: an entry is a mapping and not a text. Use repository:tag"),
    ("docker_clean", {"images": {}, "keep_labels": ["team=a", ""]}, "docker_clean: keep_labels: an entry is empty. Use key or key=value"),
    ("docker_clean", {"images": {"only": None}}, "docker_clean: images.only: has no value; leave it out if all are meant. Use repository:tag"),
    ("docker_clean", {"containers": {"only": ["app:1"]}}, 'docker_clean: containers.only: "app:1" cannot match any container. Use names or IDs'),
    ("docker_log_truncate", {"containers": "web db"}, 'docker_log_truncate: containers: "web db" cannot match any container. Use names or IDs of containers'),
    ("docker_log_truncate", {"keep": "some"}, 'docker_log_truncate: keep: "some" is not a size'),
    ("docker_disk_report", {"include": ["everything"]}, "value of include must be one or more of"),
    ("docker_disk_report", {"state_dir": "state"}, 'docker_disk_report: state_dir: "state" is not an absolute path'),
    ("docker_clean", {"images": {}, "state_dir": "/dev/shm"}, 'docker_clean: state_dir: "/dev/shm" cannot be used: others may write to /dev/shm'),
)


@pytest.fixture(scope="module")
def answers(fleet: Fleet, ansible: Ansible, tmp_path_factory: pytest.TempPathFactory) -> List[Dict[str, Any]]:
    """What each of ``BAD_INPUT`` comes to: tasks of one play, which goes on after each."""
    tasks = [{"name": f"{number}", f"fleetclean.docker.{module}": args, "ignore_errors": True} for number, (module, args, _words) in enumerate(BAD_INPUT)]
    playbook = tmp_path_factory.mktemp("input") / "play.yml"
    playbook.write_text(json.dumps([{"hosts": "one", "gather_facts": False, "tasks": tasks}]))
    with nothing_touched(fleet):
        run = ansible.run(["ansible-playbook", "-i", ansible.inventory, str(playbook)])
    return [{**line["result"], "failed": line["outcome"] == "failed"} for line in sorted(run.lines, key=lambda line: int(line["task"]))]


@pytest.mark.parametrize("number", range(len(BAD_INPUT)), ids=[f"{module}: {args}" for module, args, _words in BAD_INPUT])
def test_bad_input_names_the_option_and_what_it_takes(answers: List[Dict[str, Any]], number: int) -> None:
    assert len(answers) == len(BAD_INPUT)
    assert BAD_INPUT[number][2] in failed(answers[number])["msg"]


BAD_VARIABLES: Tuple[Tuple[Dict[str, Any], str], ...] = (
    ({"cleanup_images_older_than": "3 fortnights"}, 'cleanup_images_older_than: "3 fortnights" is not a duration'),
    ({"cleanup_logs_keep": "some"}, 'cleanup_logs_keep: "some" is not a size'),
    ({"cleanup_image_keep": ["app/*"]}, "cleanup_image_keep: there is no such variable; did you mean cleanup_images_keep?"),
    ({"cleanup_images_keep": "app/*, redis:.*"}, 'cleanup_images_keep: "redis:.*" cannot match any image. Use repository:tag'),
    ({"cleanup_profile": "thorough"}, "value of cleanup_profile must be one of: careful, standard, full"),
    ({"cleanup_profile": "full"}, "set cleanup_full_confirmed: true if that is meant"),
    ({"cleanup_leftovers": True}, "leftovers: not there yet in this release"),
)


@pytest.fixture(scope="module")
def plays(fleet: Fleet, ansible: Ansible) -> List[Run]:
    """The role with each of ``BAD_VARIABLES``, some at once."""
    with nothing_touched(fleet), ThreadPoolExecutor(max_workers=3) as pool:
        return list(pool.map(lambda entry: ansible.play("clean", **entry[0]), BAD_VARIABLES))


@pytest.mark.parametrize("number", range(len(BAD_VARIABLES)), ids=[str(variables) for variables, _words in BAD_VARIABLES])
def test_the_role_refuses_before_the_first_host_is_asked(plays: List[Run], number: int) -> None:
    run, words = plays[number], BAD_VARIABLES[number][1]
    assert run.code != 0
    assert words in run.text.replace("\n", " ").replace('\\"', '"') or any(words in str(line["result"].get("msg")) for line in run.lines)
    assert not run.task("choose the storage driver's paths")


def test_a_host_with_a_wrong_variable_of_its_own_stops_no_other(ansible: Ansible, tmp_path: Path) -> None:
    inventory = json.loads(Path(ansible.inventory).read_text())
    one = next(group["hosts"]["one"] for group in inventory.values() if "one" in group.get("hosts", {}))
    hosts = {"good": {**one, "site_age": "9d"}, "bad": {**one, "site_age": "9 lives"}, "odd": {**one, "site_age": "9d", "cleanup_timeout": "{{ nope }}"}}
    (tmp_path / "hosts.yml").write_text(json.dumps({"all": {"hosts": hosts}}))
    role = {"ansible.builtin.include_role": {"name": "fleetclean.docker.cleanup", "rolespec_validate": False}, "vars": {"cleanup_images_older_than": "{{ site_age }}"}}
    (tmp_path / "play.yml").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": [role]}]))
    run = ansible.run(["ansible-playbook", "--check", "-i", str(tmp_path / "hosts.yml"), str(tmp_path / "play.yml")])
    assert run.outcome("Refuse what cannot be meant") == {"good": "ok", "bad": "failed", "odd": "failed"}
    refused = run.task("Refuse what cannot be meant")
    assert refused["bad"]["msg"].startswith('cleanup_images_older_than: "9 lives" is not a duration')
    assert refused["odd"]["msg"] == "cleanup_timeout: 'nope' is undefined"
    for asking in ("choose the storage driver's paths", "Shorten logs in place", "Remove what the profile allows"):
        assert run.outcome(asking) == {"good": "ok"}
    table = " ".join(run.task("The fleet")["good"]["msg"])
    assert table.count("was not asked: its variables were refused") == 2


@pytest.mark.parametrize(
    ("keywords", "failing", "asked"),
    [
        ({"serial": 1}, {"z-last"}, {"a-down", "c-good", "d-down", "z-last"}),
        # Beside one that is well a host fails at once.
        ({"serial": 3}, {"a-down", "b-odd", "d-down"}, {"a-down", "c-good", "d-down", "z-last"}),
        # Who wants the run to end with a failure has it end.
        ({"serial": 1, "max_fail_percentage": 0}, {"a-down"}, {"a-down"}),
    ],
    ids=["one by one", "by three", "max_fail_percentage"],
)
def test_each_host_has_its_turn_and_the_run_fails_at_its_end(
    ansible: Ansible, tmp_path: Path, keywords: Dict[str, Any], failing: Set[str], asked: Set[str]
) -> None:
    inventory = json.loads(Path(ansible.inventory).read_text())
    one = next(group["hosts"]["one"] for group in inventory.values() if "one" in group.get("hosts", {}))
    down = {**one, "cleanup_docker_host": "unix:///run/nowhere.sock"}
    hosts = {"a-down": down, "b-odd": {**one, "cleanup_images_older_than": "9 lives"}, "c-good": one, "d-down": down, "z-last": one}
    (tmp_path / "hosts.yml").write_text(json.dumps({"all": {"hosts": hosts}}))
    role = {"ansible.builtin.import_role": {"name": "fleetclean.docker.cleanup", "rolespec_validate": False}}
    (tmp_path / "play.yml").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": [role], **keywords}]))
    run = ansible.run(["ansible-playbook", "--check", "-i", str(tmp_path / "hosts.yml"), str(tmp_path / "play.yml")])
    assert run.code == 2
    assert {host for host, outcome in run.outcome("choose the storage driver's paths").items() if outcome != "skipped"} == asked
    assert {line["host"] for line in run.lines if line["outcome"] == "failed"} == failing
    first = " ".join(next(" ".join(line["result"]["msg"]) for line in run.lines if line["task"].endswith(": The fleet")).split())
    assert "was not asked: its turn has not come" in first
    if asked > {"a-down"}:
        last = " ".join(next(" ".join(line["result"]["msg"]) for line in reversed(run.lines) if line["task"].endswith(": The fleet")).split())
        assert 'b-odd was not asked: its variables were refused: cleanup_images_older_than: "9 lives" is not a duration' in last
        assert "its turn has not come" not in last and "fleet 5 hosts: 0 to clean, 2 had nothing to do, 3 need a look" in last
    if keywords == {"serial": 1}:
        assert run.task("Say which hosts need a look")["z-last"]["msg"].startswith(
            "Of earlier batches 3 hosts need a look. a-down: engine does not answer: /run/nowhere.sock: no such file. Start the engine"
        )


def test_a_socket_that_is_not_there(ansible: Ansible) -> None:
    result = fails(ansible, "docker_clean", {"images": {}, "docker_host": "unix:///run/nowhere.sock"})
    assert result["failure"] == "engine_down"
    assert result["msg"].startswith("docker_clean: engine does not answer: /run/nowhere.sock: no such file. Start the engine")


def test_the_engines_own_words_call_a_container_by_its_name(fleet: Fleet) -> None:
    host = fleet["one"]
    engine = engines.connect({"docker_host": f"unix://{host.path('/run/docker.sock')}", "api_version": "auto", "timeout": 30})
    running = next(entry for entry in engine.containers() if entry["State"] == "running")
    with pytest.raises(engines.EngineError) as caught:
        engine.remove_container(running["Id"])
    name = running["Names"][0].lstrip("/")
    assert str(caught.value).startswith(f'DELETE /containers/{name}: the engine says "') and running["Id"][:12] not in str(caught.value)


def test_a_socket_without_permission(ansible: Ansible) -> None:
    result = fails(ansible, "docker_clean", {"images": {}}, ansible_user="ops")
    assert result["failure"] == "denied"
    assert "/var/run/docker.sock: Permission denied. Use become: true" in result["msg"]


def test_a_file_that_is_no_socket(ansible: Ansible) -> None:
    result = fails(ansible, "docker_clean", {"images": {}, "docker_host": "unix:///etc/hostname"})
    assert "docker_host: /etc/hostname is not a socket" in result["msg"]


@pytest.mark.parametrize(
    "answer",
    [b"220 smtp.example ESMTP\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}', b""],
    ids=["another protocol", "not JSON", "JSON of something else", "hangs up"],
)
def test_a_server_that_is_no_engine(fleet: Fleet, ansible: Ansible, answer: bytes) -> None:
    with serving(fleet["one"], lambda connection: connection.sendall(answer)) as address:
        result = fails(ansible, "docker_clean", {"images": {}, "docker_host": address})
    assert result["failure"] in ("not_docker", "engine_down")
    assert address.replace("tcp://", "") in result["msg"].replace("http://", "")


def test_podman_is_told_apart(fleet: Fleet, ansible: Ansible) -> None:
    body = b'{"ApiVersion": "1.41", "Version": "4.3.1", "Components": [{"Name": "Podman Engine", "Version": "4.3.1"}]}'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)

    def answer(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(head + body)

    with serving(fleet["one"], answer) as address:
        result = fails(ansible, "docker_clean", {"images": {}, "docker_host": address})
    assert result["failure"] == "not_docker"
    assert "is Podman, not Docker" in result["msg"]


def test_an_engine_that_does_not_answer_in_time(fleet: Fleet, ansible: Ansible) -> None:
    release = threading.Event()
    with serving(fleet["one"], lambda connection: release.wait(20)) as address:
        result = fails(ansible, "docker_clean", {"images": {}, "docker_host": address, "timeout": 1})
        release.set()
    assert result["failure"] == "engine_down"
    assert "took longer than the timeout" in result["msg"]


def engine_without_end(connection: socket.socket, piece: bytes, pause: float) -> None:
    """Tells its version and facts as an engine does, and to all else it never ends its answer."""
    known = {
        "/version": {"Version": "26.1.5", "ApiVersion": "1.45"},
        "/info": {"ID": "ABCD", "Name": "elsewhere", "ServerVersion": "26.1.5", "Driver": "overlay2", "DockerRootDir": "/var/lib/docker"},
    }
    with connection.makefile("rb") as stream:
        while True:
            path = stream.readline().decode().split(" ")[1]
            while stream.readline().strip():
                pass
            told = next((told for ending, told in known.items() if path.endswith(ending)), None)
            if told is None:
                break
            body = json.dumps(told).encode()
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n[")
        while True:
            connection.sendall(piece)
            time.sleep(pause)


@pytest.mark.parametrize(
    ("piece", "pause", "words"),
    [
        (b'{"Id":"a"},' * 5000, 0.0, "unexpected answer: it is larger than 64.0 MB; if that is right for this host, raise `max_answer_size`."),
        (b" ", 0.1, "took longer than the timeout. Raise `timeout` (seconds)"),
        (b'{"Id":"a","Names":{}},' * 5000, 0.0, "GET /containers/json: unexpected answer: [0].Names is an object, not a list."),
    ],
    ids=["without end", "byte by byte", "wrong type"],
)
def test_an_engine_whose_answers_are_no_answers(fleet: Fleet, ansible: Ansible, piece: bytes, pause: float, words: str) -> None:
    began = time.monotonic()
    with serving(fleet["one"], lambda connection: engine_without_end(connection, piece, pause)) as address:
        result = fails(ansible, "docker_clean", {"containers": {}, "docker_host": address, "timeout": 2})
    assert time.monotonic() - began < 60
    assert words in result["msg"]
    assert result["failure"] in ("engine", "engine_down")


def test_an_engine_behind_ssh_needs_the_sdk_and_an_option_of_old_has_no_effect(ansible: Ansible) -> None:
    result = fails(ansible, "docker_clean", {"images": {}, "docker_host": "ssh://root@two", "sdk": "carried"})
    assert result["failure"] == "no_sdk"
    assert "docker_host: ssh://root@two needs the Python packages docker (4.4 or newer) and paramiko on this host" in result["msg"]
    assert any("'sdk' is deprecated" in warning for warning in result["warnings"])


@contextmanager
def engine_with_tls(host: Host, folder: Path, certificate: str) -> Iterator[str]:
    """A second engine of the host, of which clients need a certificate; its address."""
    address = f"tcp://{host.address}:2376"
    target = host.path("/run") / f"tls-{certificate}"
    shutil.copytree(folder, target)
    (target / "daemon.json").write_text("{}")
    inside = f"/run/tls-{certificate}"
    said = folder / f"{certificate}.log"
    log = said.open("w")
    with host.popen(["dockerd", "--data-root", f"{inside}/data", "--exec-root", f"{inside}/exec", "--pidfile", f"{inside}/pid", "--host", address, "--bridge=none",
                     "--iptables=false", "--storage-driver=vfs", "--tlsverify", "--tlscacert", f"{inside}/ca.pem", "--tlscert", f"{inside}/{certificate}.pem",
                     "--tlskey", f"{inside}/{certificate}.key", "--config-file", f"{inside}/daemon.json"], stdout=log, stderr=log) as process, log:
        try:
            until(lambda: "API listen on" in said.read_text() or process.poll() is not None)
            assert process.poll() is None, said.read_text()[-1000:]
            yield address
        finally:
            host.exec(["sh", "-c", f"kill $(cat {inside}/pid)"], check=False)
            process.wait(30)


def test_tls_with_a_real_engine_is_as_it_was_asked_for(fleet: Fleet, tmp_path: Path) -> None:
    host = fleet["one"]
    (tmp_path / "made").mkdir()
    made = Certificates(tmp_path / "made", str(host.address))
    right = {"validate_certs": True, "ca_path": "ca.pem", "client_cert": "client.pem", "client_key": "client.key"}
    for certificate, cases in {
        "server": (
            (right, True), ({**right, "validate_certs": False, "tls": True}, True), ({**right, "tls_hostname": "elsewhere.example"}, False),
            ({**right, "ca_path": "other-ca.pem"}, False), ({**right, "client_cert": "", "client_key": ""}, False),
            ({**right, "client_cert": "stranger.pem", "client_key": "stranger.key"}, False), ({**right, "client_cert": "expired.pem", "client_key": "expired.key"}, False),
        ),
        "elsewhere": ((right, False), ({**right, "tls_hostname": "elsewhere.example"}, True)),
        "expired": ((right, False),),
    }.items():
        with engine_with_tls(host, made.folder, certificate) as address:
            for given, good in cases:
                params = {name: made.path(value) if isinstance(value, str) and value.endswith((".pem", ".key")) else value for name, value in given.items()}
                params.update(docker_host=address, api_version="auto", timeout=5)
                if good:
                    assert engines.connect(params).containers() == []
                    continue
                with pytest.raises(FleetcleanError) as caught:
                    engines.connect(params)
                assert (caught.value.code, "Check tls, validate_certs, ca_path and tls_hostname." in str(caught.value)) == ("denied", True), (certificate, given, str(caught.value))


def test_an_engine_on_another_machine(fleet: Fleet, ansible: Ansible) -> None:
    """Both have /var/lib/docker: what lies there is not read, not cut, and not called that engine's."""
    with serving(fleet["one"], lambda connection: relay(connection, fleet["two"])) as address:
        report = ansible.module("docker_disk_report", {"docker_host": address})["one"]
        assert not report.get("failed"), report
        assert (report["engine"]["name"], report["engine"]["root_dir_proven"]) == ("two", False)
        assert (report["paths"], report["filesystems"]) == ({}, [])
        assert "logs" not in report["usage"]
        assert any("is not the one of the engine at" in warning for warning in report["warnings"])
        result = fails(ansible, "docker_log_truncate", {"docker_host": address, "keep": "0"})
        assert result["failure"] == "foreign_root"
        assert "nothing was touched. Run this on that host, without docker_host." in result["msg"]
        result = fails(ansible, "docker_clean", {"docker_host": address, "images": {}, "only_below": "99%"})
        assert result["failure"] == "foreign_root"
        clean = ansible.module("docker_clean", {"docker_host": address, "images": {}}, check=True)["one"]
        assert (clean["free_before"], clean["reclaimed_bytes"]) == (None, None)


@contextmanager
def serving(host: Host, handle: Any) -> Iterator[str]:
    """A TCP server that only this host can reach, at the outer end of its own link; gives its address."""
    first, last = str(host.address).rsplit(".", 1)
    with socket.create_server((f"{first}.{int(last) - 1}", 0)) as server:
        server.settimeout(0.2)
        stop = threading.Event()

        def one(connection: socket.socket) -> None:
            with connection:
                try:
                    handle(connection)
                except OSError:
                    pass

        def loop() -> None:
            while not stop.is_set():
                try:
                    connection, _peer = server.accept()
                except (TimeoutError, socket.timeout):
                    continue
                threading.Thread(target=one, args=(connection,), daemon=True).start()

        thread = threading.Thread(target=loop)
        thread.start()
        try:
            yield "tcp://{}:{}".format(*server.getsockname()[:2])
        finally:
            stop.set()
            thread.join()


def relay(connection: socket.socket, host: Host) -> None:
    """Pass bytes between a connection and another host's engine, both ways."""
    with socket.socket(socket.AF_UNIX) as engine:
        engine.connect(str(host.path("/run/docker.sock")))

        def back() -> None:
            while True:
                data = engine.recv(65536)
                if not data:
                    break
                connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=back, daemon=True)
        thread.start()
        while True:
            data = connection.recv(65536)
            if not data:
                break
            engine.sendall(data)
        engine.shutdown(socket.SHUT_WR)
        thread.join(5)
