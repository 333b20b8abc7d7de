# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each of the modules does first and last: engine, whose disk it is; and errors without tracebacks."""

from __future__ import annotations

import ctypes
import os
import traceback
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleetclean.docker.plugins.module_utils import engine as engines
from ansible_collections.fleetclean.docker.plugins.module_utils import lists, misuse, options, places, state_folder, tmp_leftovers
from ansible_collections.fleetclean.docker.plugins.module_utils.errors import (
    FleetcleanError,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.storage import (
    Proof,
    Storage,
    from_info,
    prove,
)
from ansible_collections.fleetclean.docker.plugins.module_utils.words import printable


class Site(t.NamedTuple):
    """An engine, its storage, and whether that storage is on this machine.

    ``located``: the storage as it really lies, links that were verified followed; ``refused``: those that were not, in words.
    """

    engine: engines.Engine
    storage: Storage
    proof: Proof
    located: Storage | None = None
    refused: tuple[str, ...] = ()

    @property
    def own_storage(self) -> Storage | None:
        """The storage, if it may be read here."""
        return (self.located or self.storage) if self.proof.proven else None

    @property
    def engine_id(self) -> str:
        """What tells this engine from others in what is remembered."""
        return str(self.engine.info.get("ID") or "")

    def facts(self) -> dict[str, t.Any]:
        """The engine's facts that every module returns, from ``docker info``; nothing secret among them."""
        info, version = self.engine.info, self.engine.version
        return {
            "name": info.get("Name"),
            "version": info.get("ServerVersion") or version.get("Version"),
            "api_version": self.engine.api_version,
            "storage_driver": self.storage.driver,
            "image_store": self.storage.image_store,
            "driver_status": self.storage.driver_status,
            "logging_driver": info.get("LoggingDriver"),
            "root_dir": self.storage.root,
            "root_dir_proven": self.proof.proven,
            "root_dir_proof": self.proof.words,
            "rootless": engines.is_rootless(info),
            "live_restore": bool(info.get("LiveRestoreEnabled")),
            "swarm": engines.swarm_state(info),
            "containers": info.get("Containers"),
            "containers_running": info.get("ContainersRunning"),
            "containers_paused": info.get("ContainersPaused"),
            "containers_stopped": info.get("ContainersStopped"),
            "images": info.get("Images"),
            "operating_system": info.get("OperatingSystem"),
            "kernel_version": info.get("KernelVersion"),
            "architecture": info.get("Architecture"),
            "cpus": info.get("NCPU"),
            "memory_bytes": info.get("MemTotal"),
            "cgroup_driver": info.get("CgroupDriver"),
            "security_options": [str(option) for option in info.get("SecurityOptions") or []],
        }


class _Module(AnsibleModule):
    """A module whose lists may be texts: they are split before Ansible does it, which knows commas only; and that explains what is misused."""

    params: dict[str, t.Any]
    input_error: FleetcleanError | None = None

    def _load_params(self) -> None:
        super()._load_params()
        try:
            misuse.check(self.params, self.argument_spec)
            self.params = lists.split_lists(self.params, self.argument_spec)
        except FleetcleanError as error:
            # To be told once the module can tell anything, and before Ansible says less of the same.
            self.input_error = error
            self.params = {name: value for name, value in self.params.items() if name.startswith("_ansible_")}


#: Options of mallopt(3): what is larger comes from the system and goes back to it at once; so much at the end of the heap goes back; and how many
#: heaps there are.
_MALLOPT = ((-3, 64 << 10), (-1, 128 << 10), (-8, 1))


def _return_memory_at_once() -> None:
    """Let glibc give freed memory back: else it keeps more the more was freed, and what one thread freed is of no use to another."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option:
        for name, value in _MALLOPT:
            set_option(name, value)


def main(spec: dict[str, t.Any], work: t.Callable[[AnsibleModule, dict[str, t.Any]], None]) -> None:
    """Let ``work`` fill a result and end the module with it.

    :param spec: the module's own options; the shared ones are added.

    Whatever ends the work early, the result has all that was done until then. Work that came to its
    end with something to complain of says so in ``failure`` and ``msg``.
    """
    _return_memory_at_once()
    module = _Module(argument_spec={**options.shared_spec(), **spec}, supports_check_mode=True)
    result: dict[str, t.Any] = {"changed": False}
    name = module._name.rsplit(".", 1)[-1]
    try:
        if module.input_error:
            raise module.input_error
        if not module.check_mode:
            tmp_leftovers.sweep()
        if state_folder.has_file(module.params["state_dir"] or ""):
            from ansible_collections.fleetclean.docker.plugins.module_utils import state_file

            damaged = state_file.damage(module.params["state_dir"])
            if damaged:
                module.warn(printable(damaged))
        try:
            work(module, result)
        finally:
            # Ansible wants to be told of them, not to be given them among the result's values.
            for warning in result.pop("warnings", ()):
                module.warn(warning)
    except FleetcleanError as error:
        module.fail_json(msg=f"{name}: {error}", failure=error.code, **result)
    except OSError as error:
        path = f"{error.filename}: " if error.filename else ""
        module.fail_json(msg=f"{name}: {path}{error.strerror or error}", failure="disk", **result)
    # What is not foreseen must not lose what was done. The traceback goes to Ansible's -vvv.
    except Exception as error:  # pylint: disable=broad-except
        module.fail_json(
            msg=f"{name}: this is a defect of the module: {type(error).__name__}: {error}. What was done until then is in the result.",
            failure="defect",
            exception=traceback.format_exc(),
            **result,
        )
    if result.get("failure"):
        module.fail_json(**{**result, "msg": f"{name}: {result['msg']}"})
    module.exit_json(**result)


def open_site(params: dict[str, t.Any]) -> Site:
    """Connect to the engine of the module's shared options and find out whether its disk is here."""
    state_dir = params["state_dir"] or "/"
    if not os.path.isabs(state_dir):
        raise FleetcleanError(f'state_dir: "{state_dir}" is not an absolute path; use one such as /var/lib/fleetclean, or "".', "bad_input")
    state_folder.check(state_dir)
    engine = engines.connect(params)
    where = from_info(engine.info)
    containers: list[str] = []
    volumes: list[str] = []
    if not os.path.exists(f"{where.root}/engine-id"):
        containers = [str(raw.get("Id")) for raw in engine.containers()]
        volumes = [] if containers else [str(raw.get("Name")) for raw in engine.volumes()]
    proof = prove(where, engine.info, engine.host, containers, volumes, listener=engine.listener)
    if not proof.proven:
        return Site(engine, where, proof)
    located, refused = places.locate(where, engine, engine.listener)
    return Site(engine, where, proof, located, tuple(refused))
