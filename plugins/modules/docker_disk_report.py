#!/usr/bin/python
# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module docker_disk_report."""

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_disk_report
short_description: Say where every byte of a Docker host's disk has gone
version_added: 0.1.0
description:
  - >-
    Reports what an engine's images, containers, volumes, build cache, logs, the engine's own files and leftovers take below
    its data root, what of it could be had back, and by which means. Each byte stands in one category; what has no owner is
    named as such.
  - >-
    Changes nothing but what it remembers itself (O(state_dir)), and runs on a host without a free byte.
  - >-
    What could be had back is counted by the policy of M(fleetclean.docker.docker_clean) and by the filesystem: a layer
    comes free with the last image, container or build cache that has it; xfs frees inodes besides blocks; btrfs keeps small
    files in its metadata; blocks that others share give nothing.
author: The fleetclean.docker contributors (@fleetclean)
extends_documentation_fragment:
  - fleetclean.docker.options
  - fleetclean.docker.options.attributes
attributes:
  check_mode:
    support: full
    details: It changes nothing anyway, so the answer is the same.
  diff_mode:
    support: none
options:
  include:
    description:
      - What to report, as a list or as text with commas or lines between the entries. An empty list gives the engine's facts and paths alone,
        from one question to the engine.
      - >-
        V(containers) has the category C(container_metadata) with it; V(leftovers) has C(tmp), C(engine_metadata), C(other_users)
        and, with O(measure=exact), C(unattributed).
    type: list
    elements: str
    choices: [filesystem, images, containers, volumes, build_cache, logs, leftovers]
    default: [filesystem, images, containers, volumes, build_cache, logs, leftovers]
  measure:
    description:
      - >-
        V(fast) takes the engine's and the layer store's own figures, and walks what nobody else has a figure for: logs,
        containers' folders, the engine's own files, temporary files and leftovers.
      - >-
        V(exact) walks everything once. A layer never changes once it is registered, so what it was found to take is
        remembered in O(state_dir), and the next run walks only what is new or can change.
    type: str
    choices: [fast, exact]
    default: fast
  top:
    description: How many of the largest items to list of each category; V(0) none, V(-1) all.
    type: int
    default: 20
  gentle:
    description: Whether to measure with the lowest priority (nice 19, idle I/O), so that the host's own work goes first.
    type: bool
    default: true
seealso:
  - module: fleetclean.docker.docker_clean
  - module: fleetclean.docker.docker_log_truncate
"""

EXAMPLES = r"""
- name: Where has the space gone?
  fleetclean.docker.docker_disk_report:
  register: disk

- name: Where has every byte gone?
  fleetclean.docker.docker_disk_report:
    measure: exact
  register: disk

- name: Only the engine's facts and the storage driver's paths
  fleetclean.docker.docker_disk_report:
    include: []
  register: engine

- name: The hundred largest volumes and logs
  fleetclean.docker.docker_disk_report:
    include: [volumes, logs]
    top: 100
"""

RETURN = r"""
engine:
  description: Facts of the engine, from C(docker info).
  returned: when the engine answers
  type: dict
  sample:
    name: build1
    version: 26.1.5
    api_version: "1.45"
    storage_driver: overlay2
    image_store: graphdriver
    driver_status: {"Backing Filesystem": extfs}
    logging_driver: json-file
    root_dir: /var/lib/docker
    root_dir_proven: true
    root_dir_proof: /var/lib/docker/engine-id
    rootless: false
    live_restore: false
    swarm: inactive
    containers: 14
    containers_running: 3
    containers_paused: 0
    containers_stopped: 11
    images: 12
    operating_system: Debian GNU/Linux 13 (trixie)
    kernel_version: 6.12.48
    architecture: x86_64
    cpus: 8
    memory_bytes: 33554432000
    cgroup_driver: systemd
    security_options: ["name=seccomp,profile=builtin"]
  contains:
    name: {description: The host's name as the engine knows it., type: str, returned: always}
    version: {description: The engine's release., type: str, returned: always}
    api_version: {description: The API that was spoken., type: str, returned: always}
    storage_driver: {description: The storage driver or snapshotter., type: str, returned: always}
    image_store: {description: V(graphdriver) or V(containerd)., type: str, returned: always}
    driver_status: {description: 'What the driver says of itself, by name.', type: dict, elements: str, returned: always}
    logging_driver: {description: The logging driver that new containers get., type: str, returned: always}
    root_dir: {description: The engine's data root., type: str, returned: always}
    root_dir_proven: {description: Whether that folder on this host was shown to be this engine's., type: bool, returned: always}
    root_dir_proof: {description: 'By what it was shown, or why it was not.', type: str, returned: always}
    rootless: {description: Whether the engine runs without root., type: bool, returned: always}
    live_restore: {description: Whether containers outlive the engine., type: bool, returned: always}
    swarm: {description: The node's state in a swarm., type: str, returned: always}
    containers: {description: How many containers there are., type: int, returned: always}
    containers_running: {description: How many run., type: int, returned: always}
    containers_paused: {description: How many are paused., type: int, returned: always}
    containers_stopped: {description: How many do not run., type: int, returned: always}
    images: {description: 'How many images there are, as the engine counts.', type: int, returned: always}
    operating_system: {description: The host's operating system., type: str, returned: always}
    kernel_version: {description: The host's kernel., type: str, returned: always}
    architecture: {description: The host's architecture., type: str, returned: always}
    cpus: {description: The host's processors., type: int, returned: always}
    memory_bytes: {description: The host's memory., type: int, returned: always}
    cgroup_driver: {description: Who manages control groups., type: str, returned: always}
    security_options: {description: 'What secures containers, such as V(name=userns) or V(name=rootless).', type: list, elements: str, returned: always}
paths:
  description: The storage driver's paths below the data root that exist, lists by category; empty if the data root is not proven to be here.
  returned: when the engine answers
  type: dict
  elements: list
  sample: {layers: [/var/lib/docker/overlay2], image_metadata: [/var/lib/docker/image/overlay2]}
filesystems:
  description: >-
    Every filesystem that holds what the engine owns, once, that of the data root first: those of the data root and of its
    containerd's, and those that are mounted or linked there on a folder of one sort of objects. C(holds) are the categories of RV(usage)
    that lie on it. Sizes in bytes; C(headroom) is C(available), but below zero where root has taken of what is reserved for it (ext4):
    so much has to come free before anything is available. Of C(used), C(deleted_open_bytes) are in deleted
    files that processes hold open (RV(deleted_open)) and, with O(measure=exact), C(attributed_bytes) in what stands in RV(usage),
    blocks that files share once; C(unaccounted_bytes) are the rest. If the filesystem has nothing but the engine's, that is its
    own metadata, such as tables of inodes and the journal; if it has other things as well, such as the operating system, they are in
    it too. Both are null where they are not known: without O(measure=exact), and where layers lie on devices of their own (zfs,
    thin pools); C(unaccounted_bytes) also where the files add up to more than the filesystem says is used (btrfs counts late).
  returned: when O(include) has V(filesystem) and the data root is proven to be here
  type: list
  elements: dict
  sample:
    - {mount_point: /var/lib/docker, type: ext4, size: 53660876800, used: 53660876800, free: 0, available: 0,
       inodes: 3276800, inodes_available: 3010000, headroom: 0, read_only: false, attributed_bytes: 53011480576,
       deleted_open_bytes: 150994944, unaccounted_bytes: 498401280,
       holds: [images, containers, build_cache, logs, container_metadata, engine_metadata, tmp]}
    - {mount_point: /var/lib/docker/volumes, type: xfs, size: 107374182400, used: 21474836480, free: 85899345920, available: 85899345920,
       inodes: 52428800, inodes_available: 52400000, headroom: 85899345920, read_only: false, holds: [volumes],
       attributed_bytes: 21400000000, deleted_open_bytes: 0, unaccounted_bytes: 74836480}
  contains:
    mount_point: {description: Where it is mounted., type: str, returned: always}
    type: {description: 'Its type, such as V(ext4).', type: str, returned: always}
    size: {description: Its bytes., type: int, returned: always}
    used: {description: Bytes in use., type: int, returned: always}
    free: {description: 'Bytes free, with those that are reserved for root.', type: int, returned: always}
    available: {description: Bytes free for everybody., type: int, returned: always}
    inodes: {description: 'Its inodes; 0 where they are made as they are needed.', type: int, returned: always}
    inodes_available: {description: Inodes free for everybody., type: int, returned: always}
    headroom: {description: 'As C(available), but below zero by what root took of its reserve.', type: int, returned: always}
    read_only: {description: Whether it is mounted read-only., type: bool, returned: always}
    holds: {description: The categories of RV(usage) that lie on it., type: list, elements: str, returned: always}
    attributed_bytes: {description: What of C(used) stands in RV(usage)., type: int, returned: when something was measured}
    deleted_open_bytes: {description: What of C(used) is in deleted files that are held open., type: int, returned: when looked for}
    unaccounted_bytes: {description: The rest of C(used)., type: int, returned: when something was measured}
deleted_open:
  description: >-
    Files that were deleted while a process held them open, or mapped into its memory, on any filesystem that has something of the
    engine's: C(df) counts them, C(du) does not. Their bytes come free when the last process that has them ends or lets go of
    them. Only processes that this module sees count: those of its own process namespace and, without root, of its own user.
    Files that only the kernel holds, such as that of a loop device, are not seen.
  returned: when O(include) is not empty and the data root is proven to be here; else empty
  type: dict
  sample:
    count: 1
    bytes: 150994944
    unread: 0
    largest:
      - {path: /srv/builds/cache.tar, bytes: 150994944, pid: 4711, command: gitlab-runner, user_id: 999, unit: gitlab-runner.service,
         container: null, container_id: null, mount_point: /, how: descriptor, processes: 1, means: null}
  contains:
    count: {description: How many such files take space. Each counts once., type: int, returned: when looked for}
    bytes: {description: 'What they take, without blocks that other files have as well.', type: int, returned: when looked for}
    unread: {description: How many processes could not be looked into or had too much open to look at all of it., type: int, returned: when looked for}
    largest:
      description: >-
        The largest O(top) of them, with C(path) (the one that the process had it by; in a container that is a path in it), C(bytes),
        C(pid), C(command) and C(user_id) (the effective user) of a process that has it, C(processes) (how many have it), the
        process's systemd C(unit) or its C(container) (the name, if it is known) and C(container_id), C(mount_point) of the filesystem
        that has the blocks, C(how) (V(descriptor), or V(mapped) without one) and C(means) (how this collection can free
        it, which is so for the engine's logs alone; else null).
      type: list
      elements: dict
      returned: when looked for
      contains:
        path: {description: Where it was., type: str, returned: always}
        bytes: {description: What it takes., type: int, returned: always}
        pid: {description: A process that has it., type: int, returned: always}
        command: {description: That process's name., type: str, returned: always}
        user_id: {description: Its effective user., type: int, returned: always}
        unit: {description: Its unit of systemd., type: str, returned: always}
        container: {description: The name of its container., type: str, returned: always}
        container_id: {description: The ID of its container., type: str, returned: always}
        mount_point: {description: Where the filesystem is mounted that has the blocks., type: str, returned: always}
        how: {description: V(descriptor) or V(mapped)., type: str, returned: always}
        processes: {description: How many processes have it., type: int, returned: always}
        means: {description: How this collection can free it., type: str, returned: always}
usage:
  description: >-
    By category. C(images) (layers, each once), C(containers) (writable layers), C(volumes) (of the driver C(local)),
    C(build_cache), C(logs) (of every driver that writes files, rotated ones too), C(container_metadata), C(engine_metadata)
    (databases and records), C(tmp), C(leftovers) (what no object of the engine owns), C(other_users) (where others use the same
    containerd) and C(unattributed). Categories do not overlap in C(disk_bytes). With another machine's engine there are the engine's figures alone.
  returned: when the engine answers
  type: dict
  elements: dict
  sample:
    images: {count: 12, active: 3, logical_bytes: 9000000000, disk_bytes: 9800000000, apparent_bytes: 9000000000,
             shared_bytes: 0, reclaimable_bytes: 6000000000}
  contains:
    count: {description: How many objects., type: int, returned: always}
    active: {description: How many of them are in use., type: int, returned: always}
    logical_bytes:
      description: The engine's figure, a sum of file lengths; null where it has none.
      type: int
      returned: always
    disk_bytes:
      description: Allocated blocks, a hard-linked file once; null where they were not measured.
      type: int
      returned: always
    apparent_bytes:
      description: The lengths of the files, more than C(disk_bytes) where they are sparse; null where they were not measured.
      type: int
      returned: always
    shared_bytes:
      description: >-
        The part of C(disk_bytes) that other files have as well (btrfs snapshots, reflinks), and that C(du) counts each time;
        null where it was not measured.
      type: int
      returned: always
    reclaimable_bytes:
      description: >-
        What the filesystem would have more once all that is unused in this category was removed, with everything that goes
        along (a container's folder and log); the engine's figure where nothing was measured.
      type: int
      returned: always
largest:
  description: >-
    By category the largest items, with C(id), C(name), C(size), C(logical_bytes), C(disk_bytes), C(shared_bytes),
    C(reclaimable_bytes) (removing it alone; an image takes the unnamed steps of its build along), C(age) in seconds, C(active)
    and C(used_by). Images have C(tags), C(digests), C(dangling) (what the engine calls so), C(layers) and, with O(measure=exact), C(last_used) (seconds ago)
    and C(evidence) (how that is known) besides, and one item stands for all layers that no image names (in the making, held by
    the engine, a pool); containers have C(state), C(image) and C(virtual_bytes); volumes C(driver), C(anonymous), C(dangling)
    and C(path); build cache C(type), C(in_use), C(shared) and C(last_used) (seconds ago); logs C(path) and C(files); leftovers
    C(kind), C(reason) and C(path).
  returned: when the engine answers
  type: dict
  elements: list
  sample:
    logs: [{id: 5f2a, name: ci-runner, size: 8100000000, logical_bytes: 8099000000, disk_bytes: 8100000000, shared_bytes: 0,
            reclaimable_bytes: 8100000000, age: 864000, active: true, used_by: [ci-runner],
            path: /var/lib/docker/containers/5f2a/5f2a-json.log, files: 1}]
  contains:
    id: {description: The engine's ID., type: str, returned: always}
    name: {description: What people call it., type: str, returned: always}
    size: {description: Bytes by which items are sorted., type: int, returned: always}
    logical_bytes: {description: 'The engine''s figure, or the lengths of the files.', type: int, returned: always}
    disk_bytes: {description: Allocated blocks; null where they were not measured., type: int, returned: always}
    shared_bytes: {description: 'The part of them that others have as well; null where it was not measured.', type: int, returned: always}
    reclaimable_bytes: {description: What comes free with it., type: int, returned: always}
    age: {description: Seconds since it was made., type: int, returned: always}
    active: {description: Whether it is in use., type: bool, returned: always}
    used_by: {description: Who uses it., type: list, elements: str, returned: always}
    tags: {description: An image's tags., type: list, elements: str, returned: for images}
    digests: {description: An image's digests., type: list, elements: str, returned: for images}
    dangling: {description: Whether the engine calls it dangling., type: bool, returned: for images and volumes}
    layers: {description: How many layers an image has., type: int, returned: for images}
    last_used: {description: Seconds since it was last used., type: int, returned: for images and build cache}
    evidence: {description: How that is known., type: str, returned: for images}
    state: {description: A container's state., type: str, returned: for containers}
    image: {description: A container's image., type: str, returned: for containers}
    virtual_bytes: {description: A container's writable layer and image together., type: int, returned: for containers}
    driver: {description: A volume's driver., type: str, returned: for volumes}
    anonymous: {description: Whether a volume has no name that somebody gave., type: bool, returned: for volumes}
    path: {description: Where it lies., type: str, returned: 'for volumes, logs and leftovers'}
    type: {description: What a record of the build cache is., type: str, returned: for build cache}
    in_use: {description: Whether a build uses it., type: bool, returned: for build cache}
    shared: {description: Whether an image shares it., type: bool, returned: for build cache}
    files: {description: 'How many files, rotated ones too.', type: int, returned: for logs}
    kind: {description: What kind of leftover it is., type: str, returned: for leftovers}
    reason: {description: Why it is one., type: str, returned: for leftovers}
reclaimable:
  description: >-
    What could be had back, way by way: C(bytes), C(count) of objects and C(means). The ways are C(stopped_containers),
    C(dangling_images), C(unused_images), C(anonymous_volumes), C(unused_volumes), C(unused_build_cache), C(everything_unused)
    (all of these in one run), C(logs) (all log files, rotated ones too, the engine's and logrotate's), C(deleted_logs) (logs that were
    deleted and that the engine still writes), C(tmp) and C(leftovers). All are without any age; what a label or an orchestrator keeps is not counted.
  returned: when something but the filesystem was asked for
  type: dict
  elements: dict
  sample:
    unused_images: {bytes: 6000000000, count: 9, means: "docker_clean: images: {scope: unused}"}
  contains:
    bytes: {description: What comes free., type: int, returned: always}
    count: {description: How many objects go., type: int, returned: always}
    means: {description: How., type: str, returned: always}
totals:
  description: >-
    Sums over all categories, asked for or not. C(attributed_bytes) and C(unattributed_bytes) together are C(disk_bytes), which
    is what C(du -sx) says of RV(roots) (and of the subvolumes in them, on btrfs). C(reclaimable_bytes) counts
    nothing twice. Null where nothing was measured.
  returned: when the engine answers
  type: dict
  sample: {disk_bytes: 42100000000, attributed_bytes: 42090000000, unattributed_bytes: 10000000, shared_bytes: 0,
           reclaimable_bytes: 31200000000}
  contains:
    disk_bytes: {description: Allocated blocks below RV(roots)., type: int, returned: always}
    attributed_bytes: {description: What of it has an owner., type: int, returned: always}
    unattributed_bytes: {description: What of it has none., type: int, returned: always}
    shared_bytes: {description: What of it other files have as well., type: int, returned: always}
    reclaimable_bytes: {description: What could be had., type: int, returned: always}
roots:
  description: >-
    The data root, its containerd's if that lies elsewhere, and the places of the engine that another filesystem is mounted on or a link
    leads to, with what is below each and below no other. A link is followed if root made it right below a data root, and if what it
    leads to is shown to be this engine's; else a warning says why not. C(subvolume_bytes) is the part in btrfs
    subvolumes, into which C(du -x) does not look.
  returned: with O(measure=exact)
  type: list
  elements: dict
  sample: [{path: /var/lib/docker, disk_bytes: 42100000000, subvolume_bytes: 0}]
  contains:
    path: {description: Where it is., type: str, returned: always}
    disk_bytes: {description: Allocated blocks below it., type: int, returned: always}
    subvolume_bytes: {description: What of them is in subvolumes of btrfs., type: int, returned: always}
mounts:
  description: Other filesystems below the data roots, such as a disk on a volume's own folder. They are not the engine's and are not entered.
  returned: when something but the filesystem was asked for
  type: list
  elements: dict
  sample: [{path: /var/lib/docker/volumes/nfs-data/_data, type: nfs4}]
  contains:
    path: {description: Where it is mounted., type: str, returned: always}
    type: {description: Its type., type: str, returned: always}
unread:
  description: >-
    What could not be read: how many files and folders (C(count)), the first of them with the reason (C(examples)), and how many
    were gone when their turn came (C(vanished)), which is no failure.
  returned: when the engine answers
  type: dict
  sample: {count: 0, vanished: 2, examples: []}
  contains:
    count: {description: How many could not be read., type: int, returned: always}
    vanished: {description: How many were gone., type: int, returned: always}
    examples:
      description: The first of those that could not be read.
      type: list
      elements: dict
      returned: always
      contains:
        path: {description: What could not be read., type: str, returned: always}
        error: {description: Why., type: str, returned: always}
measured:
  description: >-
    What it took: C(mode), C(seconds), C(processes), C(files) and C(walked_bytes), and the layers that were known from an
    earlier run (C(remembered_layers), C(remembered_bytes)).
  returned: when something but the filesystem was asked for
  type: dict
  sample: {mode: exact, seconds: 2.1, processes: 2, files: 1005000, walked_bytes: 4281106432, remembered_layers: 0,
           remembered_bytes: 0}
  contains:
    mode: {description: V(exact) or V(fast)., type: str, returned: always}
    seconds: {description: How long it took., type: float, returned: always}
    processes: {description: How many processes walked., type: int, returned: always}
    files: {description: How many inodes were looked at., type: int, returned: always}
    walked_bytes: {description: What they take., type: int, returned: always}
    remembered_layers: {description: How many layers were known., type: int, returned: always}
    remembered_bytes: {description: What those take., type: int, returned: always}
failure:
  description: >-
    What kind of failure it was: V(bad_input), V(no_sdk) (of an engine behind C(ssh://)), V(no_engine) (nothing is installed), V(engine_down),
    V(denied), V(not_docker), V(not_yet), V(engine), V(disk), V(defect) (of the module itself), V(unexpected_answer) (the host
    answered something else than this module returns; told by the controller, which keeps none of it) or V(no_answer) (the module could
    not run there: the message has the last line that the host wrote, and the next step).
  returned: on failure
  type: str
  sample: engine_down
"""

from ansible_collections.fleetclean.docker.plugins.module_utils import start


def main() -> None:
    """Run the module."""
    start.prepare()
    from ansible_collections.fleetclean.docker.plugins.module_utils import options, reporting, session

    session.main(options.report_spec(), reporting.report)


if __name__ == "__main__":
    main()
