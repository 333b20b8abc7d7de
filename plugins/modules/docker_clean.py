#!/usr/bin/python
# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module docker_clean."""

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_clean
short_description: Remove what a Docker host no longer needs, and say what and why
version_added: 0.1.0
description:
  - Removes containers, images, volumes, networks and build cache by scope, age, name and label, object by object.
  - In check mode it returns the very plan that a real run carries out, with the reason for each object that goes and for
    what stays.
  - A running container, a named volume, an image that a container uses and an object with one of O(keep_labels) are
    never removed unless the option made for it asks for it. The predefined networks always stay.
  - What comes into use between plan and removal stays; what is gone already counts as done. One object that fails does
    not stop the rest; the module fails at the end, with all that it did in the result.
author: The fleetclean.docker contributors (@fleetclean)
extends_documentation_fragment:
  - fleetclean.docker.options
  - fleetclean.docker.options.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
notes:
  - Sizes are bytes, or a number with a unit (powers of 1024), such as V(500MB) or V(10GiB).
  - Durations are a number with V(s), V(m), V(h), V(d) or V(w), such as V(7d). Ages are counted by the engine's clock.
  - A section that is not given is not touched. V({}) takes a section's defaults.
  - Lists may also be text with commas or lines between the entries, as surveys give them; white space at the ends of entries is dropped.
    Patterns are globs (V(*), V(?), V([abc]), V([!abc])). What no name of that kind can match, such as a regular expression or an empty entry, is
    an error before anything is touched.
options:
  containers:
    description:
      - Which containers to remove.
      - One stays whose network, IPC or PID namespace, volumes (C(--volumes-from)) or link a container that stays uses, and so does all
        that it has; without it that one could not start again.
    type: dict
    suboptions:
      states:
        description:
          - The states that may go. Containers that are V(running), V(paused) or V(restarting) are killed.
          - A stopped container starts again with the engine if its restart policy is C(always), or C(unless-stopped) and nobody stopped
            it by hand, or C(on-failure) and it ended with an error (C(docker stop) often makes it one) and tries are left. It counts as one
            of those that run, and stays unless V(running) is given too, or O(orchestrated=clean).
        type: list
        elements: str
        choices: [created, exited, dead, running, paused, restarting]
        default: [created, exited, dead]
      only:
        description:
          - Only those with one of these names (globs) or ids; others stay, and what they have.
          - What a link calls a container, such as C(web/database), is selected by a pattern that has a slash, part by part; C(web*) does not select
            what C(web) is linked to.
          - Where O(containers.only_labels) is given as well, both have to select it. Without the option all are meant; an empty list selects nothing,
            be it that a template found nothing. What O(containers.keep) or O(keep_labels) names stays all the same.
          - Of an id the twelve digits that Docker shows are enough.
        type: list
        elements: str
      only_labels:
        description: Only those with one of these labels, which read as O(keep_labels) does; see O(containers.only) for both together and for an empty list.
        type: list
        elements: str
      older_than:
        description: Only those that stopped (never started ones, were created) longer ago. For running ones, the creation counts.
        type: str
      keep:
        description: Names (globs) and ids of containers that stay.
        type: list
        elements: str
        default: []
      volumes:
        description: Whether the anonymous volumes of removed containers go too, each right behind its container.
        type: bool
        default: false
      compose:
        description:
          - Whether stopped containers of a compose project's services may go while the project runs. Compose counts on those that
            ran once, such as a migration (C(service_completed_successfully)).
          - What C(docker compose run) left behind is none of them, and goes by state and age as any other.
        type: bool
        default: false
  images:
    description: Which images to remove.
    type: dict
    suboptions:
      scope:
        description:
          - V(dangling) are those without a tag; V(unused) those that no container has, tagged or not.
          - On containerd's image store an image that is known by its digest, as one that was pulled by it is, is not dangling.
            With a graph driver a tag that moved on leaves an image in the same state, and the engine cannot tell them apart.
          - V(all) also takes images of containers that are stopped and stay for their state or age alone; nobody can make those
            containers again. Images of running containers, of those that a label or O(containers.keep) keeps, and of those that start
            again with the engine stay always, and so does what a container mounts, by the name by which it does.
        type: str
        choices: [dangling, unused, all]
        default: dangling
      only:
        description:
          - Only those named, as C(repository:tag), C(repository), digest or id; they read as in O(images.keep).
          - Where O(images.only_labels) is given as well, both have to select it. Without the option all are meant; an empty list selects nothing,
            be it that a template found nothing. What O(images.keep) or O(keep_labels) names stays all the same.
          - Of an id the twelve digits that Docker shows are enough.
          - Of an image with several tags those go that are selected, and it stays under the others. So it does under a digest by which another
            repository is known (C(docker images --digests)), unless that is selected, too; of one without a tag all digests have to be.
          - One without a tag or a digest has no name, so no glob selects it. That goes for what an image was built on, too, be it a step of its build or
            a base image whose tag moved on, which engines show alike. It stays when the image goes, unless its id or, where O(images.only) is left
            out, a label of its own selects it.
        type: list
        elements: str
      only_labels:
        description: Only those with one of these labels, which read as O(keep_labels) does; see O(images.only) for both together and for an empty list.
        type: list
        elements: str
      older_than:
        description:
          - Only those not used for longer. The latest sign of use counts, a container's start or stop, the last tagging,
            the arrival on the host; where none is known, the image's creation. The plan says which it was.
          - Uses are known from the containers that are there, from the events that the engine still holds in memory (the last 256,
            gone when it starts anew), and from what earlier runs of any of the modules saw, see O(state_dir). It is called never used
            only if those events reach back to when it came.
        type: str
      dangling_older_than:
        description:
          - The same for images without a tag; O(images.older_than) if not given.
          - For an image that is known by its digest alone the longer of the two counts with a graph driver, and O(images.older_than)
            on containerd's image store.
          - A build by the classic builder that is under way holds images without a tag, so keep this above some minutes.
        type: str
      keep:
        description:
          - Images that stay, as C(repository:tag) or C(repository) (globs), digests (also C(repository@digest)) or ids, or their beginnings.
          - V(docker.io/*) are the images of Docker Hub, V(docker.io/library/*) its official ones, V(registry.example:5000/*) those of another
            registry, also of one with an IPv6 address such as V([2001:db8::1]:5000/*).
        type: list
        elements: str
        default: []
      keep_latest:
        description: So many newest images of each repository stay, by their creation, with all tags that they have there.
        type: int
        default: 0
      keep_local:
        description:
          - Whether tagged images that were never pushed or pulled stay. Nobody can pull them again.
          - An image without digests is taken for one. With containerd's image store every image has digests, so nothing can be
            told there, and with this option all tagged images stay.
        type: bool
        default: false
  volumes:
    description:
      - Which volumes to remove. A volume that any container has, stopped ones too, stays; also one that a container has by a path, as a
        bind of its folder or something below it, or through another volume that shows its data. A bind of all volumes keeps none.
      - A volume stays if anything is mounted at or below its folder, in any mount namespace, or if its data is mounted elsewhere on the
        host, be it as a part of an overlay or as the file of a loop device. The engine would empty what is mounted there.
    type: dict
    suboptions:
      scope:
        description:
          - V(anonymous) are those that the engine named; V(unused) are all that no container has, named ones too.
          - A named volume of a compose project stays as long as a container of the project does.
          - Where a buildx builder instance keeps its cache is a named volume, too, and outlives the builder.
        type: str
        choices: [anonymous, unused]
        default: anonymous
      only:
        description:
          - Only those with one of these names (globs).
          - Where O(volumes.only_labels) is given as well, both have to select it. Without the option all are meant; an empty list selects nothing,
            be it that a template found nothing. What O(volumes.keep) or O(keep_labels) names stays all the same.
          - An anonymous volume has no name that a glob selects, only its id, of which twelve digits are enough. One that goes
            with its container (O(containers.volumes)) is selected with it.
        type: list
        elements: str
      only_labels:
        description: Only those with one of these labels, which read as O(keep_labels) does; see O(volumes.only) for both together and for an empty list.
        type: list
        elements: str
      older_than:
        description:
          - Only those not used for longer. The latest sign of use counts, a container that has or had it, the last change of its top
            folder (where the data root is this host's), or its creation.
          - An engine does not know when a volume was used last; O(state_dir) remembers what earlier runs saw.
        type: str
      keep:
        description: Names (globs) of volumes that stay. Those of other drivers than V(local) may have any name, see O(volumes.drivers).
        type: list
        elements: str
        default: []
      drivers:
        description:
          - Volumes of these drivers (globs) may go. The data of others is elsewhere, so nothing would come free here.
          - A volume of the driver V(local) that mounts something counts as C(local/) and the type, such as V(local/nfs) or V(local/bind).
        type: list
        elements: str
        default: [local]
  networks:
    description:
      - Which networks to remove. Those of a container, stopped ones too, the predefined ones and swarm's stay, and those of a
        compose project as long as a container of it does.
    type: dict
    suboptions:
      only:
        description:
          - Only those with one of these names (globs) or ids.
          - Where O(networks.only_labels) is given as well, both have to select it. Without the option all are meant; an empty list selects nothing,
            be it that a template found nothing. What O(networks.keep) or O(keep_labels) names stays all the same.
          - Of an id the twelve digits that Docker shows are enough.
        type: list
        elements: str
      only_labels:
        description: Only those with one of these labels, which read as O(keep_labels) does; see O(networks.only) for both together and for an empty list.
        type: list
        elements: str
      older_than:
        description:
          - Only those not used for longer. The latest counts of its creation, the last use of a container that is there and attached to it,
            the engine's events of containers that were connected or disconnected, and what earlier runs of any of the modules
            saw, see O(state_dir). The plan says which it was.
          - An engine holds its last 256 events only, which ten containers with health checks fill in some minutes. If there were more, and
            those that it holds do not reach back as far as this, or if it tells none, a network stays, since its last use is not known.
            With O(state_dir) the events of several runs count together, as long as each run finds some that the one before it saw.
          - An engine that was started anew has forgotten its events, and does not tell since when.
        type: str
      keep:
        description: Names (globs) and ids of networks that stay.
        type: list
        elements: str
        default: []
  build_cache:
    description:
      - Which records of the engine's build cache to remove. Needs API 1.39.
      - Records have no names and no labels that anybody gave, and one may be of many images' builds, so nothing can be selected among them as with
        O(images.only). Leave the section out where only some things may go.
    type: dict
    suboptions:
      scope:
        description:
          - V(unused) leaves what images share and what the builder keeps for itself; V(all) takes that as well.
          - What only images share that go in the same run goes after them. With another machine's engine that is seen only once
            they are gone, so it is not in check mode's plan.
        type: str
        choices: [unused, all]
        default: unused
      older_than:
        description: Only those not used for longer. The builder checks it again when it removes them.
        type: str
      keep_storage:
        description: So much of the cache stays, the most recently used. What images share does not count if O(build_cache.scope=unused).
        type: str
  leftovers:
    description: What lies below the data root and no engine object owns. Not there yet in this release, and refused.
    type: dict
    suboptions:
      older_than:
        description: Only those not changed for longer.
        type: str
        default: 24h
      offline:
        description: Whether to take also what only a stopped engine can let go of.
        type: bool
        default: false
  keep_labels:
    description:
      - Objects with one of these labels stay. C(key) or C(key=value), globs allowed in both.
      - Values may have blanks in them. Keys have none, nor quotes or characters of regular expressions; V(?) stands for one where it has to.
    type: list
    elements: str
    default: [fleetclean.keep]
  only_below:
    description:
      - Do nothing unless less than this is free, as a size or a share such as V(15%) (of each filesystem's own size).
      - Every filesystem that holds what the engine owns counts, see RV(filesystems); one of them is enough to begin.
    type: str
  free_target:
    description:
      - Stop as soon as this much is free, as a size or a share. Least recently used first, the cheapest loss first.
      - With several filesystems the target is met when each of them meets it, and only what lies on one that does not goes for it, with
        a tenth of its bytes or 16 MiB of them at least. A size that is larger than one of them cannot be met there; take a share where they differ.
      - What comes free with each object is measured first, as in check mode, and the shortest beginning of the plan that is enough
        is carried out; further ones go only if the filesystem then has less. What can never free anything, such as networks, stays.
      - If all of it is not enough, RV(target_met) is false; that is no failure.
    type: str
  only_below_inodes:
    description: Like O(only_below), for inodes, as a number or a share. With both, one of them is enough to begin.
    type: str
  free_target_inodes:
    description: Like O(free_target), for inodes, as a number or a share. With both, the run goes on until both are met.
    type: str
  orchestrated:
    description:
      - Whether to V(keep) what others look after on this host, or to V(clean) it as well.
      - That is what belongs to kubelet, the ECS agent, Nomad, swarm (what its services name, too, where a manager can tell) or a
        buildx builder instance, by labels and containers' names, and on hosts of the first three all images.
      - Labels that a container has from its image alone do not count; whoever made the image could have set them.
      - And stopped containers that start again with the engine, see O(containers.states).
      - Networks and volumes of a swarm stack are told by their label, also where no manager can be asked.
    type: str
    choices: [keep, clean]
    default: keep
  assume_reclaimed:
    description:
      - In check mode, what earlier tasks of the same run would have reclaimed from logs, so that O(only_below), O(free_target) and the
        sizes of containers come out as in the real run. It counts as free on the filesystem of the containers' folder.
      - Ignored in a real run, where the filesystem itself tells.
    type: list
    elements: dict
    default: []
    suboptions:
      container:
        description: The id of the container whose log it was, which then has so much less; empty for a log that was deleted before.
        type: str
        default: ""
      bytes:
        description: As in RV(fleetclean.docker.docker_log_truncate#module:logs[].reclaimed_bytes).
        type: int
        required: true
  parallel:
    description: How many removals at once, 1 to 32. With a target, one at a time.
    type: int
    default: 4
seealso:
  - module: fleetclean.docker.docker_disk_report
  - module: fleetclean.docker.docker_log_truncate
  - module: community.docker.docker_prune
"""

EXAMPLES = r"""
- name: See what would go (run with --check --diff)
  fleetclean.docker.docker_clean:
    containers: {older_than: 7d}
    images: {scope: unused, older_than: 7d, keep_latest: 2}
    networks: {older_than: 7d}
    build_cache: {older_than: 7d}

- name: Only when less than 15 % is free, and only until 30 % is
  fleetclean.docker.docker_clean:
    containers: {older_than: 24h}
    images: {scope: unused}
    build_cache: {}
    only_below: 15%
    free_target: 30%

- name: Only what one team built, on hosts that others use as well
  fleetclean.docker.docker_clean:
    containers: {only_labels: [com.example.team=search], older_than: 1h}
    images: {scope: unused, only: ["registry.example:5000/search/*"], older_than: 3d}
    volumes: {scope: unused, only: ["search-*"], older_than: 3d}

- name: Everything but what carries a label
  fleetclean.docker.docker_clean:
    containers: {states: [created, exited, dead, running, paused, restarting], volumes: true}
    images: {scope: all}
    volumes: {scope: unused}
    networks: {}
    build_cache: {scope: all}
    keep_labels: [fleetclean.keep, com.example.tier=database]
"""

RETURN = r"""
policy:
  description: What was wished, in words, a sentence for each section.
  returned: when the options are right
  type: list
  elements: str
  sample: ["images: unused for 7 days, keep the newest 2 of each repository"]
removed:
  description: What was removed; in check mode, what would be, in the same order.
  returned: when the engine answers
  type: list
  elements: dict
  sample:
    - {kind: image, id: sha256:5f2a, name: "ci/build:417", bytes: 2200000000, logical_bytes: 2100000000,
       reason: unused for 34 days (last container)}
  contains:
    kind: {description: 'container, image, tag, volume, network or build_cache.', type: str, returned: always}
    id: {description: "The engine's id (for a tag, its image's).", type: str, returned: always}
    name: {description: What people call it., type: str, returned: always}
    bytes:
      description: >-
        What comes free with it at its place in the plan, with all that goes along (a container's folder and log, a layer with the last
        that has it), measured on the disk in check mode and with a target. In a plain run it is measured where that costs little, before the
        removal, for up to 50 objects that have up to 20,000 files on a host with up to 2,000 objects, with a driver whose layers share no
        files; else null.
      type: int
      returned: always
    logical_bytes:
      description: The engine's figure for it, a sum of file lengths; null where it has none or was not asked.
      type: int
      returned: always
    reason: {description: Why it goes., type: str, returned: always}
failures:
  description: What should have been removed and could not be, as in RV(removed), with C(error).
  returned: when the engine answers
  type: list
  elements: dict
  sample: []
  contains:
    kind: {description: 'container, image, tag, volume, network or build_cache.', type: str, returned: always}
    id: {description: "The engine's id (for a tag, its image's).", type: str, returned: always}
    name: {description: What people call it., type: str, returned: always}
    bytes: {description: What should have come free with it., type: int, returned: always}
    logical_bytes: {description: The engine's figure for it., type: int, returned: always}
    reason: {description: Why it should go., type: str, returned: always}
    error: {description: Why it could not., type: str, returned: always}
kept:
  description: What stays, by kind and reason, with the number of objects and their bytes.
  returned: when the engine answers
  type: list
  elements: dict
  sample: [{kind: image, reason: used by a container, count: 12, bytes: 9800000000}]
  contains:
    kind: {description: 'As in RV(removed[].kind).', type: str, returned: always}
    reason: {description: Why they stay., type: str, returned: always}
    count: {description: How many they are., type: int, returned: always}
    bytes: {description: 'What they have, by the engine''s figures.', type: int, returned: always}
planned_bytes:
  description: >-
    The sum of RV(removed[].bytes) of the whole plan, and null where they were not measured. In check mode it is measured, as
    M(fleetclean.docker.docker_disk_report) does with C(measure=exact), and is what the filesystem will have more.
  returned: when the engine answers
  type: int
  sample: 13600000000
planned_logical_bytes:
  description: The sum of RV(removed[].logical_bytes) of the whole plan; null where the engine's figure for one of them is not known.
  returned: when the engine answers
  type: int
  sample: 12900000000
reclaimed_bytes:
  description: What came free on all RV(filesystems), measured there; null where they are not this host's, and in check mode 0.
  returned: when the engine answers
  type: int
  sample: 13600000000
reclaimed_by_kind:
  description: RV(reclaimed_bytes), measured after each kind of object; volumes that go along with a container count with it.
  returned: when the engine answers
  type: dict
  elements: int
  sample: {container: 1200000000, image: 12400000000}
free_before:
  description: Bytes available on the data root's filesystem before; null where that is not this host's.
  returned: when the engine answers
  type: int
  sample: 0
free_after:
  description: Bytes available afterwards; in check mode, as planned.
  returned: when the engine answers
  type: int
  sample: 13600000000
filesystem_bytes:
  description: The size of the data root's filesystem; null where that is not this host's.
  returned: when the engine answers
  type: int
  sample: 53660876800
filesystems:
  description: >-
    The filesystems that hold what the engine owns, that of the data root first (RV(free_before) and RV(free_after) are its figures);
    empty where they are not this host's.
  returned: when the engine answers
  type: list
  elements: dict
  sample:
    - {mount_point: /var/lib/docker, size: 53660876800, free_before: 9000000000, free_after: 9400000000, planned_bytes: 400000000,
       reclaimed_bytes: 400000000}
    - {mount_point: /var/lib/containerd, size: 53660876800, free_before: 0, free_after: 13200000000, planned_bytes: 13200000000,
       reclaimed_bytes: 13200000000}
  contains:
    mount_point: {description: Where it is mounted., type: str, returned: always}
    size: {description: Its bytes., type: int, returned: always}
    free_before: {description: Bytes available before., type: int, returned: always}
    free_after: {description: 'Bytes available afterwards; in check mode, as planned.', type: int, returned: always}
    planned_bytes:
      description: What comes free there by the plan; 0 where it was not measured (it is in check mode and with a target).
      type: int
      returned: always
    reclaimed_bytes: {description: 'What came free there, measured; in check mode 0.', type: int, returned: always}
assumed_bytes:
  description: The sum of O(assume_reclaimed), as far as it counts as free in RV(free_before), RV(free_after) and RV(filesystems).
  returned: when the engine answers
  type: int
  sample: 0
target_met:
  description: Whether O(free_target) and O(free_target_inodes) are met; null without them, and where O(only_below) gave no reason to begin.
  returned: when the engine answers
  type: bool
  sample: true
failure:
  description: >-
    What kind of failure it was, as in M(fleetclean.docker.docker_disk_report); V(foreign_root) if a watermark was given and the
    data root is not this host's.
  returned: on failure
  type: str
  sample: engine
"""

import typing as t

from ansible_collections.fleetclean.docker.plugins.module_utils import start

if t.TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """Run the module."""
    start.prepare()
    from ansible_collections.fleetclean.docker.plugins.module_utils import options, session

    session.main(options.clean_spec(), _work)


def _work(module: AnsibleModule, result: dict[str, t.Any]) -> None:
    from ansible_collections.fleetclean.docker.plugins.module_utils import options

    wishes, marks = options.read_clean(module.params)
    from ansible_collections.fleetclean.docker.plugins.module_utils import cleaning

    cleaning.clean(module, result, wishes, marks)


if __name__ == "__main__":
    main()
