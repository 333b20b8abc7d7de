# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which Docker SDK a module gets: the host's, the carried one, or an error that says why neither.

Each case runs in a Python of its own. What is installed on a "host" are fakes in a folder; the carried SDK is
the real one of the environment that runs the tests.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import sys
import typing as t
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import ansible
import pytest
from ansible_collections.fleetclean.docker.plugins.plugin_utils import carried_sdk
from conftest import COLLECTIONS, PYTHONS

#: What a module does: choose, then use. Prints one JSON line. -S and -I keep this machine's packages out.
CHILD = """
import json, sys
collections, ansible, fakes = sys.argv[1:4]
sys.path[:0] = [collections] + fakes.split(":") * bool(fakes)
sys.path.append(ansible)
given = json.load(sys.stdin)
from ansible_collections.fleetclean.docker.plugins.module_utils import sdk
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import FleetcleanError
try:
    used = sdk.provide(given["choice"], given["archive"], given["about"])
except FleetcleanError as error:
    print(json.dumps({"error": str(error), "code": error.code}))
    sys.exit()
import docker
import docker.api.client
found = {"source": used.source, "version": used.version, "file": docker.__file__, "others": "paramiko" in sys.modules}
if used.source == "carried":
    import requests, urllib3, idna, certifi, docker.tls, docker.transport
    client = docker.api.client.APIClient(base_url="unix:///nonexistent.sock", version="1.41")
    found["client"] = client.api_version
    found["requests"] = requests.__file__
    found["compiled"] = client.__init__.__code__.co_filename
print(json.dumps(found))
"""


def provide(
    python: str,
    fakes: str = "",
    choice: str = "auto",
    archive: str | None = None,
    about: dict[str, str] | None = None,
    code: str = CHILD,
) -> dict[str, t.Any]:
    # ansible.module_utils is beside ansible itself; nothing of the rest of that folder may be found.
    answer = subprocess.run(
        [python, "-I", "-S", "-B", "-c", code, str(COLLECTIONS), str(ANSIBLE_ONLY), fakes],
        input=json.dumps({"choice": choice, "archive": archive, "about": about}),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


ANSIBLE_ONLY: Path


@pytest.fixture(scope="module", autouse=True)
def _ansible_alone(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A folder that has ansible's module_utils and nothing else, as a module's zip has."""
    global ANSIBLE_ONLY
    ANSIBLE_ONLY = tmp_path_factory.mktemp("ansible")
    (ANSIBLE_ONLY / "ansible").mkdir()
    (ANSIBLE_ONLY / "ansible/__init__.py").touch()
    (ANSIBLE_ONLY / "ansible/module_utils").symlink_to(Path(ansible.__file__).parent / "module_utils")


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> carried_sdk.CarriedSdk:
    sdk = carried_sdk.pack(None, str(tmp_path_factory.mktemp("cache")))
    if sdk.error:
        pytest.skip(f"not here: {sdk.error}")
    return sdk


def about(sdk: carried_sdk.CarriedSdk) -> dict[str, str]:
    return {"python": sdk.python, "packages": sdk.packages, "error": sdk.error}


def opened(sdk: carried_sdk.CarriedSdk) -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(zlib.decompress(base64.b64decode(sdk.archive))))


def fake_sdk(folder: Path, version: str | None, requests: str = "2.32.4", code: str = "") -> str:
    """Packages with the names and versions of a host's SDK, and nothing behind them."""
    (folder / "docker/api").mkdir(parents=True)
    said = f"__version__ = {version!r}\n" if version else ""
    (folder / "docker/__init__.py").write_text(f"{code}\nimport requests\n{said}")
    (folder / "docker/api/__init__.py").touch()
    (folder / "docker/api/client.py").touch()
    (folder / "requests").mkdir()
    (folder / "requests/__init__.py").write_text(f"__version__ = {requests!r}\n")
    return str(folder)


LEAVES = CHILD.rpartition("print(json.dumps(found))")[0] + """
import os, tempfile
# As it is while the module runs, and stays if that is killed.
found["left"] = os.listdir(tempfile.gettempdir())
found["bundle"] = certifi.where()
found["read"] = open(requests.certs.where()).read(200)
import ssl
found["certificates"] = len(ssl.create_default_context(cafile=requests.utils.DEFAULT_CA_BUNDLE_PATH).get_ca_certs())
print(json.dumps(found))
"""


def test_nothing_of_the_carried_sdk_lies_in_the_temporary_folder(
    carried: carried_sdk.CarriedSdk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    found = provide(sys.executable, choice="carried", archive=carried.archive, about=about(carried), code=LEAVES)
    assert (found["source"], found["left"]) == ("carried", [])
    assert found["bundle"].startswith("/proc/self/fd/") and found["certificates"] > 50


# -- the host's ------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["auto", "host"])
@pytest.mark.parametrize(
    ("version", "requests"),
    [("7.1.0", "2.32.4"), ("7.0.0", "2.31.0"), ("5.0.3", "2.25.1"), ("8.0.0", "2.99.0"), ("7.1.0.dev1", "2.32.0")],
)
def test_a_good_sdk_on_the_host_is_taken(tmp_path: Path, choice: str, version: str, requests: str) -> None:
    found = provide(sys.executable, fake_sdk(tmp_path, version, requests), choice, archive="bm90aGluZw==")
    assert (found["source"], found["version"]) == ("host", version)


@pytest.mark.parametrize(
    ("version", "requests", "why"),
    [
        ("4.4.4", "2.31.0", "docker 4.4.4 is older than 5.0"),
        ("1.10.6", "2.31.0", "docker 1.10.6 is older than 5.0"),
        ("7.0.0", "2.32.0", "docker 7.0.0 does not work with requests 2.32.0 (docker-py issue 3256)"),
        ("6.1.3", "2.33.1", "docker 6.1.3 does not work with requests 2.33.1 (docker-py issue 3256)"),
    ],
)
def test_an_sdk_that_is_known_not_to_work_is_named_with_the_reason(
    tmp_path: Path, version: str, requests: str, why: str
) -> None:
    # Trap 27.
    found = provide(sys.executable, fake_sdk(tmp_path, version, requests), "host")
    assert found["code"] == "no_sdk"
    assert found["error"].startswith(f"There is no usable Docker SDK for Python (on this host: {why}). ")
    assert "meta/ee-requirements.txt on the controller" in found["error"]
    assert "python3-docker on the host" in found["error"]


def test_without_any_sdk_both_tries_are_named() -> None:
    found = provide(sys.executable)
    assert found["code"] == "no_sdk"
    assert (
        "(on this host: not installed; from the controller: none was carried along (the action plugin did not run))"
        in found["error"]
    )


def test_why_the_controller_has_none_is_said_in_its_own_words() -> None:
    found = provide(
        sys.executable, choice="carried", about={"error": "the controller's Python environment has no docker"}
    )
    assert "(from the controller: the controller's Python environment has no docker)" in found["error"]
    assert "on this host" not in found["error"].split(").")[0]


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("raise RuntimeError('half an upgrade')", "cannot be imported (RuntimeError: half an upgrade)"),
        ("import six.moves.nothing", "cannot be imported (No module named 'six'"),
        ("def broken(:", "cannot be imported (SyntaxError"),
    ],
)
def test_a_broken_installation_is_an_answer_and_not_a_traceback(tmp_path: Path, code: str, why: str) -> None:
    found = provide(sys.executable, fake_sdk(tmp_path, "7.1.0", code=code), "host")
    assert f"on this host: {why}" in found["error"]


def test_a_package_of_the_same_name_is_not_the_sdk(tmp_path: Path) -> None:
    found = provide(sys.executable, fake_sdk(tmp_path, None), "host")
    assert "on this host: is not the Docker SDK (a package named docker without a version)" in found["error"]


def test_a_folder_named_docker_is_not_the_sdk(tmp_path: Path) -> None:
    # A namespace package: what `docker/` in a current directory is to Python.
    (tmp_path / "docker").mkdir()
    found = provide(sys.executable, str(tmp_path), "host")
    assert found["code"] == "no_sdk"


# -- the carried one ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def everywhere(carried: carried_sdk.CarriedSdk) -> dict[str, dict[str, t.Any]]:
    """What every Python here made of the carried SDK; two at a time, for compiling it takes a second or two."""
    with ThreadPoolExecutor(2) as pool:
        answers = pool.map(
            lambda path: provide(path, choice="carried", archive=carried.archive, about=about(carried)),
            PYTHONS.values(),
        )
        return dict(zip(PYTHONS, answers))


def test_the_carried_sdk_works_from_memory_on_every_python(
    python: str, carried: carried_sdk.CarriedSdk, everywhere: dict[str, dict[str, t.Any]]
) -> None:
    version = next(version for version, path in PYTHONS.items() if path == python)
    found = everywhere[version]
    if tuple(map(int, version.split("."))) < tuple(map(int, carried.python.split("."))):
        assert f"needs Python {carried.python} or newer, here is {version}" in found["error"]
        return
    assert found["source"] == "carried"
    assert found["version"] == metadata.version("docker")
    assert found["client"] == "1.41"
    assert found["file"].startswith("/proc/self/fd/")
    assert found["requests"].startswith("/proc/self/fd/")
    # Bytecode has the name that it was compiled with on the controller.
    same = version == f"3.{sys.version_info[1]}"
    assert found["compiled"] == ("docker/api/client.py" if same else f"{found['file'].rpartition('/')[0]}/api/client.py")


#: Counts what Python compiles out of the zip.
COUNTING = """
import zipimport
compiled, compile_source = [], zipimport._compile_source
def counted(path, source):
    compiled.append(path)
    return compile_source(path, source)
zipimport._compile_source = counted
""" + CHILD + """
print(json.dumps(compiled))
"""


def test_what_has_no_bytecode_is_compiled_once(carried: carried_sdk.CarriedSdk, tmp_path: Path) -> None:
    # Another release's Python, as seen from here.
    with opened(carried) as archive:
        sources = {name: archive.read(name) for name in archive.namelist() if not name.endswith(".pyc")}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in sources.items():
            archive.writestr(name, content)
    packed = base64.b64encode(zlib.compress(buffer.getvalue())).decode()
    answer = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", COUNTING, str(COLLECTIONS), str(ANSIBLE_ONLY), ""],
        input=json.dumps({"choice": "carried", "archive": packed, "about": about(carried)}),
        capture_output=True, text=True, check=True, timeout=60,
    )
    found, compiled = map(json.loads, answer.stdout.splitlines())
    assert found["compiled"].startswith("/proc/self/fd/")
    assert len(compiled) > 100
    assert len(compiled) == len(set(compiled))


def test_what_the_host_has_for_other_ways_to_an_engine_is_not_imported(tmp_path: Path, carried: carried_sdk.CarriedSdk) -> None:
    (tmp_path / "paramiko.py").touch()
    found = provide(sys.executable, str(tmp_path), "carried", carried.archive, about(carried))
    assert (found["source"], found["others"]) == ("carried", False)


def oldest_host_python() -> tuple[int, ...]:
    """What this ansible-core itself asks of a host; later releases ask for more than the collection does."""
    source = (Path(ansible.__file__).parent / "module_utils/basic.py").read_text()
    found = re.search(r"_PY_MIN = \((\d+), (\d+)\)", source)
    assert found, "ansible-core says it in another way now"
    return tuple(map(int, found.groups()))


def test_what_runs_on_a_host_can_be_imported_by_every_python(python: str) -> None:
    version = next(version for version, path in PYTHONS.items() if path == python)
    if tuple(map(int, version.split("."))) < oldest_host_python():
        pytest.skip(f"not here: this ansible-core does not run modules on Python {version}")
    code = (
        "import sys, json\nsys.path[:0] = sys.argv[1:3]\nfrom importlib import import_module\n"
        "for name in 'attribution engine errors logs measure options policy removal sdk session snapshot storage units words'.split():\n"
        "    import_module('ansible_collections.fleetclean.docker.plugins.module_utils.' + name)\n"
        "print(json.dumps({'python': '%d.%d' % sys.version_info[:2]}))\n"
    )
    assert provide(python, code=code)["python"] in PYTHONS


@pytest.mark.parametrize(("choice", "version"), [("auto", "6.1.3"), ("carried", "7.1.0")])
def test_auto_takes_the_carried_one_where_the_hosts_does_not_work_and_carried_always(
    tmp_path: Path, carried: carried_sdk.CarriedSdk, choice: str, version: str
) -> None:
    fakes = fake_sdk(tmp_path, version, "2.32.0")
    found = provide(sys.executable, fakes, choice, carried.archive, about(carried))
    # Nothing of the host's broken one may be left in use.
    assert found["source"] == "carried"
    assert found["file"].startswith("/proc/self/fd/")
    assert found["requests"].startswith("/proc/self/fd/")


def test_host_never_takes_the_carried_one(carried: carried_sdk.CarriedSdk) -> None:
    found = provide(sys.executable, "", "host", carried.archive, about(carried))
    assert found["code"] == "no_sdk"


def test_an_sdk_for_a_newer_python_is_refused_with_both_versions(carried: carried_sdk.CarriedSdk) -> None:
    found = provide(
        sys.executable, choice="carried", archive=carried.archive, about={**about(carried), "python": "3.99"}
    )
    here = ".".join(map(str, sys.version_info[:3]))
    assert f"{carried.packages} needs Python 3.99 or newer, here is {here}" in found["error"]
    assert "the versions in meta/ee-requirements.txt run on 3.8" in found["error"]


@pytest.mark.parametrize(
    "archive",
    [base64.b64encode(content).decode() for content in (b"not deflated", zlib.compress(b"no zip at all"), zlib.compress(b"PK\x05\x06" + b"\0" * 18))]
    + ["no base64"],
)
def test_a_damaged_archive_is_an_answer_and_not_a_traceback(archive: str) -> None:
    found = provide(sys.executable, choice="carried", archive=archive, about={"python": "3.8"})
    assert found["code"] == "no_sdk"
    assert "from the controller: not installed" in found["error"]


# -- packing -----------------------------------------------------------------------------------------


def test_the_zip_has_pure_python_alone(carried: carried_sdk.CarriedSdk) -> None:
    with opened(carried) as archive:
        names = archive.namelist()
    assert {"docker/__init__.py", "requests/__init__.py", "urllib3/__init__.py", "certifi/cacert.pem"} <= set(names)
    assert [name for name in names if not name.endswith((".py", ".pyc", "cacert.pem"))] == []
    assert [name for name in names if name.endswith(".pyc") and name[:-1] not in names] == []
    assert not any(name.startswith(("/", "..")) or "/../" in name for name in names)


def test_the_archive_says_what_is_in_it(carried: carried_sdk.CarriedSdk) -> None:
    assert f"docker=={metadata.version('docker')}" in carried.packages
    assert f"requests=={metadata.version('requests')}" in carried.packages
    assert carried.error == ""


@pytest.fixture
def packings(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows with each packing."""
    done: list[object] = []
    pack = carried_sdk._zip

    def counted(files: t.Iterable[tuple[str, str]]) -> bytes:
        done.append(files)
        return pack(files)

    monkeypatch.setattr(carried_sdk, "_zip", counted)
    return done


@pytest.fixture
def packages(tmp_path: Path) -> str:
    """A folder of packages that are quickly packed."""
    folder = tmp_path / "packages"
    folder.mkdir()
    for name, version in (("docker", "7.1.0"), ("requests", "2.32.4"), ("urllib3", "2.2.3")):
        fake_distribution(folder, name, version)
    return str(folder)


def test_a_thousand_hosts_cost_one_packing(tmp_path: Path, packings: list[object], packages: str) -> None:
    cache = tmp_path / "home" / "cache"
    first = carried_sdk.pack(packages, str(cache), str(tmp_path))
    assert carried_sdk.pack(packages, str(cache), str(tmp_path)) == first
    assert len(packings) == 1
    (kept,) = cache.iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600


def test_packages_that_changed_are_packed_anew(tmp_path: Path, packings: list[object], packages: str) -> None:
    first = carried_sdk.pack(packages, str(tmp_path))
    Path(packages, "docker/__init__.py").write_text("__version__ = '7.1.0'\npatched = True\n")
    again = carried_sdk.pack(packages, str(tmp_path))
    assert len(packings) == 2
    assert again.archive != first.archive


@pytest.mark.parametrize("what", ["writable", "link", "torn", "other", "old python"])
def test_what_this_user_did_not_keep_there_is_not_sent_to_hosts(
    tmp_path: Path, packings: list[object], packages: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    first = carried_sdk.pack(packages, str(cache))
    (kept,) = cache.iterdir()
    if what == "writable":
        kept.chmod(0o666)
    elif what == "link":
        kept.rename(tmp_path / "elsewhere")
        kept.symlink_to(tmp_path / "elsewhere")
    elif what == "torn":
        kept.write_text(kept.read_text()[:-5])
    elif what == "other":
        monkeypatch.setattr("os.geteuid", lambda: 12345)
    else:
        monkeypatch.setattr("importlib.util.MAGIC_NUMBER", b"\0\0\r\n")
    assert len(packings) == 1
    again = carried_sdk.pack(packages, str(cache))
    assert len(packings) == 2
    assert (again.archive == first.archive) == (what != "old python")


def test_a_file_that_was_kept_long_ago_is_removed_and_others_files_are_not(tmp_path: Path, packages: str) -> None:
    for name in ("fleetclean-sdk-0.b64", "fleetclean-sdk-1.b64", "galaxy.json"):
        (tmp_path / name).touch()
    for name in ("fleetclean-sdk-0.b64", "galaxy.json"):
        os.utime(tmp_path / name, (0, 0))
    carried_sdk.pack(packages, str(tmp_path))
    left = {path.name for path in tmp_path.iterdir()}
    assert {"fleetclean-sdk-1.b64", "galaxy.json"} < left
    assert "fleetclean-sdk-0.b64" not in left


def test_a_cache_that_cannot_be_written_gives_way_to_the_next(tmp_path: Path, packings: list[object], packages: str) -> None:
    first = carried_sdk.pack(packages, "/dev/null/cache", str(tmp_path / "run"))
    assert carried_sdk.pack(packages, "/dev/null/cache", str(tmp_path / "run")) == first
    assert len(packings) == 1


def test_a_cache_that_cannot_be_written_only_costs_time(packages: str, tmp_path: Path) -> None:
    assert carried_sdk.pack(packages, "/dev/null/cache") == carried_sdk.pack(packages, str(tmp_path))


def test_an_empty_folder_has_no_sdk_and_says_so(tmp_path: Path) -> None:
    sdk = carried_sdk.pack(str(tmp_path), str(tmp_path))
    assert sdk.archive == ""
    assert sdk.error == f"{tmp_path} has no docker and no requests and no urllib3"


def fake_distribution(folder: Path, name: str, version: str, python: str = ">=3.8") -> None:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Python: {python}\n"
    )
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(f"__version__ = {version!r}\n")
    (info / "RECORD").write_text(f"{name}/__init__.py,,\n../../../bin/evil.py,,\n{name}/native.so,,\n")
    (folder / name / "native.so").write_bytes(b"\x7fELF")


def test_an_sdk_too_old_to_be_carried_is_refused(tmp_path: Path) -> None:
    for name, version in (("docker", "7.0.0"), ("requests", "2.31.0"), ("urllib3", "2.2.3")):
        fake_distribution(tmp_path, name, version)
    sdk = carried_sdk.pack(str(tmp_path), str(tmp_path))
    assert sdk.error == f"{tmp_path} has docker 7.0.0; carrying needs 7.1.0 or newer"


def test_a_folder_made_for_carrying_is_packed_and_the_newest_python_bound_counts(tmp_path: Path) -> None:
    for name, version, python in (
        ("docker", "7.1.0", ">=3.8"),
        ("requests", "2.32.4", ">=3.10"),
        ("urllib3", "2.6.0", ">=3.9, <4"),
    ):
        fake_distribution(tmp_path, name, version, python)
    cache = tmp_path / "cache"
    cache.mkdir()
    sdk = carried_sdk.pack(str(tmp_path), str(cache))
    assert sdk.python == "3.10"
    assert sdk.packages == "docker==7.1.0 requests==2.32.4 urllib3==2.6.0"
    with opened(sdk) as archive:
        assert sorted(archive.namelist()) == [f"{name}/__init__.py{c}" for name in ("docker", "requests", "urllib3") for c in ("", "c")]


def test_the_pythons_under_test_include_this_one() -> None:
    assert f"3.{sys.version_info[1]}" in PYTHONS
    assert all(os.access(path, os.X_OK) for path in PYTHONS.values())
