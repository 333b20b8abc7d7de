# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Small engines, wishes, and others at work meanwhile: what is wanted never goes, and what was planned is what is done.

What has to go and to stay is told by expected.py. hypothesis throws the dice, so a world that fails is shown as small as it can be.
"""

from __future__ import annotations

import threading
import typing as t

import pytest
from ansible_collections.fleetclean.docker.plugins.module_utils import last_look, path_uses, policy, removal, snapshot
from ansible_collections.fleetclean.docker.plugins.module_utils.last_use import uses_seen
from expected import Expected, promised, what
from hypothesis import strategies as st
from model import NOW, Box, Model
from worlds import DAY, HOUR, MINUTE, hexadecimal, sha

from tests.fuzz.budget import fuzz
from tests.fuzz.dice import Dice, SeededDice, dice

AGES = (None, 0, HOUR, DAY, 7 * DAY)
LABELS: tuple[dict[str, str], ...] = ({}, {}, {}, {}, {}, {"fleetclean.keep": ""}, {"tier": "database"}, {"other": "fleetclean.keep"})
MANAGERS = (
    {"io.kubernetes.pod.name": "p"},
    {"com.amazonaws.ecs.task-arn": "arn"},
    {"com.hashicorp.nomad.alloc_id": "a"},
    {"com.docker.swarm.task": "t"},
)
#: What containers, networks and images may be called, and no shell, path or pattern would like.
NETS = ("a b", "../../etc", "%2e%2e%2f", "*", "[ab]", "sch\u00f6n", "net:1", "null", "0123456789abcdef")
REPOSITORIES = ("app", "host:5000/team/db", "ci/build", "a.b-c__d/x", "deadbeef")


# -- a world, and wishes ---------------------------------------------------------------------------


def moment(dice: Dice, none: bool = True) -> float | None:
    """A time in the past, often near a limit that a wish may have, seldom in the future (clocks differ)."""
    near = dice.choice((HOUR, DAY, 7 * DAY)) * dice.choice((0.97, 1.03))
    age = dice.choice((-HOUR, MINUTE, near, near, 3 * DAY, 100 * DAY, dice.uniform(8, 40) * DAY, None if none else DAY + HOUR))
    return None if age is None else NOW - age - dice.random()


def when(dice: Dice) -> float:
    return moment(dice, none=False) or NOW


def labels(dice: Dice, managed: float = 0.03) -> dict[str, str]:
    found = dict(dice.choice(LABELS))
    if dice.chance(managed):
        found.update(dice.choice(MANAGERS))
    return found


def random_model(dice: Dice) -> Model:
    engine = Model(dice.choice(("graphdriver", "containerd")))
    free = [f"{repository}:{tag}" for repository in REPOSITORIES for tag in ("1", "2", "latest")]
    dice.shuffle(free)
    for number in range(dice.randint(0, 8)):
        names = [free.pop() for _ in range(dice.choice((0, 0, 1, 1, 1, 2, 3))) if free]
        parent = f"i{dice.randrange(number)}" if number and dice.chance(0.4) else ""
        made = engine.add_image(
            f"i{number}", *names, created=when(dice), parent=parent, labels=dict(dice.choice(LABELS)), tagged=moment(dice) if names else None
        )
        if dice.chance(0.5) and not engine.containerd:
            others = [f"{dice.choice(REPOSITORIES)}@{sha(f'other {number} {more}')}" for more in range(dice.choice((0, 0, 1, 2)))]
            made.references += [f"{name.rpartition(':')[0]}@{sha(f'digest {number}')}" for name in names[:1]] + others
        elif engine.containerd and not names and dice.chance(0.4):
            made.references += [f"{dice.choice(REPOSITORIES)}@{made.id}"]
    for number in range(dice.randint(0, 5)):
        anonymous = dice.chance(0.5)
        marked = {"com.docker.volume.anonymous": ""} if anonymous and engine.containerd else {}
        shown = dice.choice(("/x", f"/nowhere/volumes/v{dice.randrange(5)}/_data/deep", "/nowhere/volumes"))
        elsewhere = ({"type": "nfs", "o": "addr=10.0.0.1", "device": ":/x"}, {"type": "none", "o": "bind", "device": shown})
        options = dice.choice(({}, {}, {}, {"size": "1g"}, *elsewhere))
        driver = "local" if anonymous else dice.choice(("local", "local", "local", "rexray"))
        project = {"com.docker.compose.project": dice.choice("pq")} if not anonymous and dice.chance(0.2) else {}
        name = hexadecimal(f"v{number}") if anonymous else dice.choice((f"v{number}", f"buildx_buildkit_b{number}_state"))
        engine.add_volume(
            name, moment(dice), labels={**labels(dice), **marked, **project}, driver=driver,
            options={} if anonymous or driver != "local" else options, cluster=dice.chance(0.05),
        )
    for name in dice.sample(NETS, dice.randint(0, 4)):
        project = {"com.docker.compose.project": dice.choice("pq")} if dice.chance(0.2) else {}
        engine.add_net(name, moment(dice), labels={**labels(dice), **project}, scope="swarm" if dice.chance(0.1) else "local")
    for number in range(dice.randint(0, 6)):
        random_box(dice, engine, number)
    ids: list[str] = []
    for number in range(dice.randint(0, 8)):
        parents = sorted({dice.choice(ids) for _ in range(dice.choice((0, 1, 1, 2) if engine.containerd else (0, 1))) if ids})
        # Ids that are parts of each other, and one that is full of what an expression has.
        ids.append(dice.choice(("r", "r1", "r.")) + str(number))
        engine.add_record(
            ids[-1], *parents, type=dice.choice(("regular", "source.local", "internal", "frontend", "exec.cachemount")),
            in_use=dice.chance(0.1), size=dice.choice((None, 0, 1, 5, 20)), created=when(dice), used=moment(dice),
            images=frozenset(dice.sample(sorted(engine.pictures), min(len(engine.pictures), 2))) if dice.chance(0.3) else frozenset(),
        )
    if dice.chance(0.1):
        for picture in dice.sample(list(engine.pictures.values()), min(2, len(engine.pictures))):
            names = picture.tags + picture.digests
            if names:
                spec = {"TaskTemplate": {"ContainerSpec": {"Image": dice.choice(names), "Mounts": [{"Type": "volume", "Source": "v1"}]}}}
                engine.swarm_services.append({"Spec": spec} if dice.chance(0.5) else {"Spec": {}, "PreviousSpec": spec})
    for picture in engine.pictures.values():
        if picture.tags and dice.chance(0.2):
            actor = {"ID": "gone", "Attributes": {"image": dice.choice(picture.tags)}}
            action, time = dice.choice(("create", "start", "die")), int(min(when(dice), NOW - 2))
            engine.events.append({"Type": "container", "Action": action, "Actor": actor, "time": time})
    network_events(dice, engine)
    return engine


def network_events(dice: Dice, engine: Model) -> None:
    """Networks that containers had which are gone; and an engine that has forgotten what was before."""
    for net in engine.nets.values():
        if dice.chance(0.4):
            actor = {"ID": net.id, "Attributes": {"container": "gone", "name": net.name, "type": "bridge"}}
            action, time = dice.choice(("create", "connect", "disconnect")), int(min(when(dice), NOW - 2))
            engine.events.append({"Type": "network", "Action": action, "Actor": actor, "time": time})
    engine.events.sort(key=lambda event: event["time"])
    if dice.chance(0.3):
        engine.events_kept = len(engine.events)


def random_box(dice: Dice, engine: Model, number: int) -> None:
    state = dice.choice(("created", "exited", "exited", "dead", "running", "paused", "restarting", "removing"))
    created = when(dice)
    started = None if state == "created" else max(created, when(dice))
    finished = max(started, when(dice)) if started and state in ("exited", "dead", "restarting") else None
    if state in ("exited", "dead") and dice.chance(0.1):
        finished = None  # the engine was killed meanwhile
    marked = labels(dice, 0.06)
    if dice.chance(0.15):
        marked["com.docker.compose.project"] = dice.choice("pq")
    name = f"c{number}"
    if dice.chance(0.04):
        name = dice.choice(("k8s_POD_x", "ecs-agent", "nomad_init_x", "buildx_buildkit_b1"))
    image = dice.choice(sorted(engine.pictures)) if engine.pictures and dice.chance(0.85) else sha("taken by force")
    given = dice.choice([*engine.pictures[image].references, image]) if image in engine.pictures else "app:gone"
    box = Box(
        hexadecimal(f"container {number}"), name, image, state=state, given=given, created=created, started=started, finished=finished,
        labels=marked, restart=dice.choice(("no", "no", "on-failure", "unless-stopped", "always")),
        volumes=[volume for volume in engine.data if dice.chance(0.35)],
        networks=[net.name if dice.chance(0.7) else net.id for net in engine.nets.values() if net.scope == "local" and dice.chance(0.3)],
        links=[f"/c0/alias{number}"] if dice.chance(0.1) else [],
        exit_code=dice.choice((0, 1, 137)), retries=dice.choice((0, 3)), restarted=dice.choice((0, 2, 3)),
    )
    if marked.get("com.docker.compose.project") and dice.chance(0.3):
        marked["com.docker.compose.oneoff"] = "True"
    others = [other for other in engine.boxes.values() if other.name.startswith("c")]
    for need in ("NetworkMode", "IpcMode", "PidMode", "VolumesFrom", "Links"):
        if others and dice.chance(0.08):
            other = dice.choice(others)
            box.needs[need] = other.id if need.endswith("Mode") else other.name
    places = [f"volumes/{volume}/_data" for volume in engine.data] + [f"containers/{other.id}" for other in others] + ["volumes", "containers"]
    box.binds = [f"/nowhere/{place}{dice.choice(('', '/deep'))}" if place.count("/") else f"/nowhere/{place}" for place in places if dice.chance(0.05)]
    mountable = [name for picture in engine.pictures.values() for name in (picture.id, *picture.tags)]
    if mountable and dice.chance(0.15):
        box.mounted.append(dice.choice(mountable))
    if not any(other.name == name for other in engine.boxes.values()):
        engine.boxes[box.id] = box


def random_wishes(dice: Dice, engine: Model) -> policy.Wishes:
    def maybe(wish: t.Any) -> t.Any:
        return wish if dice.chance(0.8) else None

    def some(*patterns: str) -> tuple[str, ...]:
        return tuple(pattern for pattern in patterns if dice.chance(0.15))

    def only(*patterns: str) -> tuple[str, ...] | None:
        return tuple(pattern for pattern in patterns if dice.chance(0.4)) if dice.chance(0.15) else None

    def only_labels() -> tuple[str, ...] | None:
        return dice.choice(((), ("tier",), ("tier=data*", "other"))) if dice.chance(0.1) else None

    image = dice.choice(sorted(engine.pictures) or [sha("none")])
    digest = dice.choice([digest for picture in engine.pictures.values() for digest in picture.digests] or ["no@digest"])
    return policy.Wishes(
        containers=maybe(
            policy.ContainerWish(
                states=tuple(state for state in ("created", "exited", "dead", "running", "paused", "restarting") if dice.chance(0.6)),
                older_than=dice.choice(AGES),
                keep=some("c1", "c[23]", hexadecimal("container 4"), hexadecimal("container 0")[:12], "*/alias5"),
                volumes=dice.chance(0.5),
                compose=dice.chance(0.3),
                only=only("c1", "c[23]", "c0*", hexadecimal("container 0")[:12], "*/alias5"),
                only_labels=only_labels(),
            )
        ),
        images=maybe(
            policy.ImageWish(
                scope=dice.choice(("dangling", "unused", "unused", "all")),
                older_than=dice.choice(AGES),
                dangling_older_than=dice.choice(AGES),
                keep=some("app", "*:latest", "docker.io/library/deadbeef", "host:5000/*", image, image[7:19], digest),
                keep_latest=dice.choice((0, 0, 0, 1, 2)),
                keep_local=dice.chance(0.2),
                only=only("app", "*:latest", "docker.io/library/deadbeef", "host:5000/*", image, image[7:19], digest),
                only_labels=only_labels(),
            )
        ),
        volumes=maybe(
            policy.VolumeWish(
                dice.choice(("anonymous", "unused")), dice.choice(AGES), some("v1", "v[23]", hexadecimal("v0")),
                drivers=dice.choice((("local",), ("local",), ("local", "rexray"), ("*",), ("local", "local/bind"), ())),
                only=only("v1", "v[23]", "*", hexadecimal("v0")[:12]),
                only_labels=only_labels(),
            )
        ),
        networks=maybe(policy.NetworkWish(dice.choice(AGES), some("[ab]", "../*", hexadecimal("network a b")), only("[ab]", "../*"), only_labels())),
        build_cache=maybe(policy.CacheWish(dice.choice(("unused", "all")), dice.choice(AGES), dice.choice((None, None, 0, 10, 40)))),
        keep_labels=dice.choice((("fleetclean.keep",), ("fleetclean.keep",), ("tier=data*", "fleetclean.*"), ("tier=x",), ())),
        orchestrated=dice.choice(("keep", "clean")),
        cheapest_first=dice.chance(0.3),
    )


# -- doing it --------------------------------------------------------------------------------------------


class Case(t.NamedTuple):
    """A world, wishes, what they come to, and the plan."""

    engine: Model
    wishes: policy.Wishes
    expected: Expected
    plan: policy.Plan
    remembered: dict[str, float]


def wanted_of(wishes: policy.Wishes) -> snapshot.Wanted:
    """As the module asks (module_utils/cleaning.py)."""
    return snapshot.Wanted(
        images=wishes.images is not None,
        volumes=wishes.volumes is not None or bool(wishes.containers and wishes.containers.volumes),
        networks=wishes.networks is not None,
        build_cache=wishes.build_cache is not None,
        ages=True,
        parallel=1,
    )


def look(engine: Model, wishes: policy.Wishes) -> snapshot.Snapshot:
    return path_uses.complete(snapshot.take(t.cast(t.Any, engine), wanted_of(wishes), None), None, "/nowhere")


def case(dice: Dice) -> Case:
    engine = random_model(dice)
    wishes = random_wishes(dice, engine)
    seen = {ident: when(dice) for ident in engine.pictures if dice.chance(0.2)}
    seen.update({policy.VOLUME + name: when(dice) for name in engine.data if dice.chance(0.2)})
    seen.update({snapshot.NETWORK + ident: when(dice) for ident in engine.nets if dice.chance(0.2)})
    looked = look(engine, wishes)
    sharers = {record.id: record.images for record in engine.records.values()}
    plan = policy.decide(looked, wishes, seen, sharers)
    remembered = dict(seen)
    for name, moment_ in uses_seen(looked).items():
        remembered[name] = max(moment_, remembered.get(name, 0))
    return Case(engine, wishes, Expected(engine, wishes, seen), plan, remembered)


def act(made: Case, parallel: int) -> removal.Outcome:
    outcome = removal.Outcome()
    removal.carry_out(t.cast(t.Any, made.engine), made.plan, parallel, lambda: None, None, outcome)
    return outcome


def explain(made: Case) -> str:
    def say(found: t.Iterable[t.Any]) -> list[str]:
        return [f"{entry.kind} {entry.name} {entry.id[:19]}: {entry.reason}" for entry in found]

    return "\n".join(["", str(made.wishes), *say(made.plan.steps), "kept:", *say(made.plan.kept)])


def check_plan(made: Case) -> None:
    """The plan takes what was asked for, and nothing that is wanted; each object is told of once."""
    going = promised(made.plan)
    assert not going & made.expected.stays, explain(made)
    kinds = {"container", "image", "tag", "volume", "network"}
    assert {entry for entry in going if entry[0] in kinds} == made.expected.goes, explain(made)
    accounted = [entry for entry in what(made.plan.steps) if entry[0] != "tag"] + [(kept.kind, kept.id) for kept in made.plan.kept]
    assert len(accounted) == len(set(accounted)), "an object is told of twice" + explain(made)
    assert set(accounted) == made.expected.asked, explain(made)
    check_cache(made)


def check_cache(made: Case) -> None:
    """The least recently used goes first, as much as keep_storage asks and no record more."""
    wish, records = made.wishes.build_cache, made.engine.records
    if wish is None:
        return

    def shared(record: t.Any) -> bool:
        return any(("image", image) not in made.expected.goes and image in made.engine.pictures for image in record.images)

    # Where a target may end the run, what images share goes behind them.
    held_back = made.wishes.cheapest_first and any(record.images for record in records.values())
    total = sum(record.size or 0 for record in records.values() if wish.scope == "all" or not shared(record))
    left = dict(records)
    for step in (step for step in made.plan.steps if step.kind == "build_cache"):
        assert held_back or wish.keep_storage is None or total > wish.keep_storage, "more than needed" + explain(made)
        able = [
            record.used or record.created or 0 for record in left.values()
            if ("build_cache", record.id) not in made.expected.stays and not any(record.id in other.parents for other in left.values())
        ]
        record = left.pop(step.id)
        assert held_back or (record.used or record.created or 0) == min(able), "not the least recently used" + explain(made)
        total -= record.size or 0
    if wish.keep_storage is None or total > wish.keep_storage:
        assert {("build_cache", ident) for ident in left} <= made.expected.stays, explain(made)


@fuzz(400, thrown=dice(), parallel=st.sampled_from([1, 4]))
def test_what_is_planned_is_what_is_done_and_the_second_run_plans_nothing(thrown: Dice, parallel: int) -> None:
    made = case(thrown)
    check_plan(made)
    before = made.engine.everything()
    outcome = act(made, parallel)
    assert (outcome.failed, outcome.gone, outcome.kept) == ([], [], []), explain(made)
    assert before - made.engine.everything() == promised(made.plan), explain(made)
    assert made.engine.robbed == [], "a container lost its network" + explain(made)
    if parallel == 1:
        assert outcome.removed == list(made.plan.steps)
        tags = {("tag", tag) for step in made.plan.steps if step.kind == "image" for tag in step.expects}
        # Of the build cache the engine takes many at once, in its own order.
        cache = {("build_cache", ident) for ident in made.engine.records} | {entry for entry in made.engine.log if entry[0] == "build_cache"}
        assert [entry for entry in made.engine.log if entry not in tags | cache] == [
            entry for entry in what(made.plan.steps) if entry not in cache
        ], explain(made)
    else:
        assert sorted(what(outcome.removed)) == sorted(what(made.plan.steps))
    again = policy.decide(look(made.engine, made.wishes), made.wishes, made.remembered, {})
    assert again.steps == (), explain(made) + "\nagain:\n" + explain(made._replace(plan=again))


# -- others at work ------------------------------------------------------------------------------------------


class Others:
    """Does what people and programs do on a host while it is cleaned; ``wanted`` is what must be there afterwards, ``took`` what they took."""

    def __init__(self, dice: Dice, engine: Model) -> None:
        self.dice, self.engine = dice, engine
        self.wanted: set[tuple[str, str]] = set()
        self.took: set[tuple[str, str]] = set()
        self.did: list[tuple[str, ...]] = []
        self.made = 0
        self.lock = threading.RLock()

    def any_of(self, found: t.Iterable[t.Any]) -> t.Any:
        listed = list(found)
        return self.dice.choice(listed) if listed else None

    def use(self, box: Box, names: bool = True) -> None:
        """A container, its image and its volumes are wanted from now on; with ``names`` the image's tags and the networks, too."""
        self.did.append(("used", box.name, box.image[:19], *box.networks))
        self.wanted.add(("container", box.id))
        self.wanted.update(("volume", name) for name in box.volumes if name in self.engine.data)
        for picture in self.engine.pictures.values():
            # By id the engine takes an image from under who mounts it, so that has to be seen before.
            mounted = names and {picture.id, *picture.references} & set(box.mounted)
            if picture.id == box.image or mounted:
                self.wanted.add(("image", picture.id))
                self.wanted.update(("tag", tag) for tag in picture.tags if names)
        self.wanted.update(("network", net.id) for net in self.engine.nets.values() if names and {net.id, net.name} & set(box.networks))

    def starts(self, names: bool = True) -> None:
        box = self.any_of(box for box in self.engine.boxes.values() if box.state in ("created", "exited"))
        if box:
            try:
                self.engine.start(box.id)
            except Exception:  # its network is gone: others took it
                return
            self.use(box, names)

    def creates(self, names: bool = True, state: str = "created") -> None:
        picture = self.any_of(self.engine.pictures.values())
        if picture:
            self.made += 1
            nets = [net.name for net in self.engine.nets.values() if names and net.scope == "local" and self.dice.chance(0.5)]
            volumes = [name for name in self.engine.data if self.dice.chance(0.5)]
            box = self.engine.add_box(
                f"new{self.made}", picture.id, state=state, started=NOW if state == "running" else None, volumes=volumes, networks=nets
            )
            self.use(box, names)

    def runs_again(self) -> None:
        """A stopped container was started and has ended again."""
        box = self.any_of(box for box in self.engine.boxes.values() if box.state == "exited")
        if box:
            box.started, box.finished = NOW - 1, NOW
            self.use(box)

    def tags(self) -> None:
        """An image gets a new name, which is one that another had, or a fresh one."""
        picture = self.any_of(self.engine.pictures.values())
        if picture:
            self.made += 1
            others = (other for other in self.engine.pictures.values() if other is not picture)
            old = [tag for other in others for tag in other.tags if ("tag", tag) not in self.wanted]
            name = self.dice.choice(old) if old and self.dice.chance(0.8) else f"new/name:{self.made}"
            self.engine.tag(picture.id, name)
            self.did.append(("tagged", picture.id[:19], name))
            self.wanted.update({("image", picture.id), ("tag", name)})

    def takes(self) -> None:
        """Another cleaner takes an object, as far as the engine lets it."""
        before = self.engine.everything()
        box = self.any_of(box for box in self.engine.boxes.values() if ("container", box.id) not in self.wanted)
        picture = self.any_of(picture for picture in self.engine.pictures.values() if ("image", picture.id) not in self.wanted)
        volume = self.any_of(name for name in self.engine.data if ("volume", name) not in self.wanted)
        net = self.any_of(net for net in self.engine.nets.values() if ("network", net.id) not in self.wanted)
        held = {name for box in self.engine.boxes.values() for name in box.networks}
        hook, self.engine.before = self.engine.before, None
        for there, take in (
            (box, lambda: self.engine.remove_container(box.id, force=True)),
            (picture, lambda: self.engine.remove_image(self.dice.choice([*picture.tags, picture.id]))),
            (volume, lambda: self.engine.remove_volume(volume)),
            # As an engine it would let a stopped container's network go; this one cares.
            (net and not held & {net.id, net.name}, lambda: self.engine.remove_network(net.id)),
            (self.engine.records, lambda: self.engine.remove_cache_records([self.dice.choice(sorted(self.engine.records))])),
        ):
            if there and self.dice.chance(0.4):
                try:
                    take()
                except removal.EngineError:
                    pass
        self.engine.before = hook
        self.took |= before - self.engine.everything()

    def makes_anew(self) -> None:
        """A volume goes, and another one gets its name: nobody decided on that one."""
        used = {name for box in self.engine.boxes.values() for name in box.volumes}
        # Of one without a time of its making (other drivers), or of the same second, nobody could tell.
        name = self.any_of(
            data.name for data in self.engine.data.values() if (data.created or NOW) < NOW - 1 and not data.anonymous and data.name not in used
        )
        if name:
            self.engine.add_volume(name, NOW, labels=dict(self.engine.data[name].labels))
            self.wanted.add(("volume", name))

    def builds(self) -> None:
        record = self.any_of(self.engine.records.values())
        if record:
            record.in_use = True
            self.wanted.add(("build_cache", record.id))
            self.made += 1
            self.engine.add_record(f"new{self.made}", record.id, in_use=True)


def check_disturbed(made: Case, others: Others, outcome: removal.Outcome) -> None:
    told = explain(made) + f"\nothers: {others.did}\nleft in the end:\n" + "\n".join(f"{kept.name}: {kept.reason}" for kept in outcome.kept)
    there = made.engine.everything()
    assert outcome.failed == [], told
    lost = {*others.wanted, *(made.expected.stays - others.took)} - there
    assert not lost, f"gone: {lost}" + told
    ends = what(outcome.removed) + what(outcome.gone) + [(kept.kind, kept.name if kept.kind == "tag" else kept.id) for kept in outcome.kept]
    assert sorted(ends) == sorted(what(made.plan.steps)), "a step is lost, or told of twice" + told
    left = set(what([*outcome.removed, *outcome.gone])) & there
    assert not left, f"told as removed, and still there: {left}" + told
    assert not set(made.engine.robbed) & {box.id for box in made.engine.boxes.values()}, "a container lost its network" + told


@fuzz(300, thrown=dice(), parallel=st.sampled_from([1, 4]))
def test_what_comes_into_use_after_the_plan_stays_and_what_is_gone_is_done(thrown: Dice, parallel: int) -> None:
    made = case(thrown)
    others = Others(thrown, made.engine)
    for _ in range(thrown.randint(1, 6)):
        thrown.choice((others.starts, others.creates, others.runs_again, others.tags, others.tags, others.takes, others.makes_anew, others.builds))()
    check_disturbed(made, others, act(made, parallel))


@fuzz(300, thrown=dice(), parallel=st.sampled_from([1, 4]), seed=st.integers(0, 1 << 32))
def test_what_comes_into_use_during_the_run_stays(thrown: Dice, parallel: int, seed: int) -> None:
    """Between looking and doing the engine is the one that says no: what others do here is what it protects."""
    made = case(thrown)
    # In another thread hypothesis throws no dice.
    dice = SeededDice(seed)
    others = Others(dice, made.engine)

    def meddle(call: str, about: str) -> None:
        with others.lock:
            if not dice.chance(0.2):
                return
            acts: list[t.Callable[[], None]] = [
                lambda: others.starts(names=False), lambda: others.creates(names=False, state="running"), others.takes, others.builds,
            ]
            if parallel == 1 and call in ("image", "container"):
                acts.append(others.tags)
            with made.engine._lock:
                dice.choice(acts)()

    made.engine.before = meddle
    outcome = act(made, parallel)
    made.engine.before = None
    check_disturbed(made, others, outcome)


@fuzz(100, thrown=dice())
def test_two_runs_at_once_do_no_harm(thrown: Dice) -> None:
    made = case(thrown)
    before = made.engine.everything()
    outcomes: list[removal.Outcome] = []
    threads = [threading.Thread(target=lambda: outcomes.append(act(made, 2))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [outcome.failed for outcome in outcomes] == [[], []], explain(made)
    assert before - made.engine.everything() == promised(made.plan), explain(made)
    assert made.engine.robbed == []


# -- one thing at a time: what chance finds too seldom ---------------------------------------------------------


def planned(engine: Model, wishes: policy.Wishes, *names: str) -> Case:
    """A plan that has these steps, by name."""
    plan = policy.decide(look(engine, wishes), wishes)
    assert [step.name for step in plan.steps] == list(names)
    return Case(engine, wishes, Expected(engine, wishes, {}), plan, {})


def test_a_network_that_came_into_use_while_others_were_removed_stays() -> None:
    """The engine itself takes a network from under a container that does not run, which then cannot start."""
    engine = Model()
    for days, name in ((3, "n1"), (2, "n2"), (1, "n3")):
        engine.add_net(name, NOW - days * DAY)
    engine.add_image("i", "app:1")

    def meddle(call: str, about: str) -> None:
        if call == "remove_network" and not engine.boxes:
            engine.add_box("new", sha("i"), state="created", networks=["n3"])

    made = planned(engine, policy.Wishes(networks=policy.NetworkWish()), "n1", "n2", "n3")
    engine.before = meddle
    outcome = act(made, 1)
    assert [step.name for step in outcome.removed] == ["n1", "n2"]
    assert [(kept.name, kept.reason) for kept in outcome.kept] == [("n3", "it came into use")]
    assert engine.robbed == []


def test_a_network_that_a_job_had_while_others_were_removed_stays() -> None:
    """It is used by nobody again, but its last use is not as long ago as was asked for."""
    engine = Model()
    for days, name in ((3, "n1"), (2, "n2"), (1, "n3")):
        engine.add_net(name, NOW - days * DAY)

    def meddle(call: str, about: str) -> None:
        if call == "remove_network" and not engine.events:
            actor = {"ID": hexadecimal("network n3"), "Attributes": {"container": "gone", "name": "n3"}}
            engine.events.append({"Type": "network", "Action": "disconnect", "Actor": actor, "time": int(NOW) + 1})

    made = planned(engine, policy.Wishes(networks=policy.NetworkWish(older_than=HOUR)), "n1", "n2", "n3")
    engine.before = meddle
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(last_look, "_FRESH", -1.0)
        outcome = act(made, 1)
    assert [step.name for step in outcome.removed] == ["n1", "n2"]
    assert [(kept.name, kept.reason) for kept in outcome.kept] == [("n3", "it was used meanwhile")]


both_stores = pytest.mark.parametrize("store", ["graphdriver", "containerd"])


@both_stores
def test_an_image_whose_kept_name_moved_on_keeps_the_others(store: str) -> None:
    """The last of them would take the image along."""
    engine = Model(store)
    engine.add_image("i", "app:1", "other:1", "other:2", created=NOW - DAY)
    engine.add_image("new", "app:2", created=NOW - DAY)
    made = planned(engine, policy.Wishes(images=policy.ImageWish("unused", keep=("app",))), "other:1", "other:2")
    engine.tag(sha("new"), "app:1")
    act(made, 1)
    assert ("image", sha("i")) in engine.everything()


@both_stores
def test_an_image_that_a_container_mounts_since_the_plan_stays(store: str) -> None:
    """By id the engine does not ask who mounts it."""
    engine = Model(store)
    engine.add_image("base", "base:1", created=NOW - DAY)
    engine.add_image("data", "data:1", created=NOW - DAY)
    made = planned(engine, policy.Wishes(images=policy.ImageWish("unused", keep=("base",))), "data:1")
    engine.add_box("new", sha("base"), state="running", mounted=["data:1"])
    assert [(kept.name, kept.reason) for kept in act(made, 1).kept] == [("data:1", "it came into use")]
    assert ("tag", "data:1") in engine.everything()


@both_stores
def test_what_is_selected_goes_and_leaves_digests_links_and_parents_that_are_not(store: str) -> None:
    engine = Model(store)
    engine.add_image("base", created=NOW - DAY)
    own = engine.add_image("i", "app:1", "app:2", created=NOW - DAY)
    own.references += [f"app@{own.id}", f"other@{own.id}"]
    engine.add_image("j", "app:3", created=NOW - DAY, parent="base")
    engine.add_image("run", "run:1", created=NOW - DAY)
    engine.add_box("c1", sha("run"), created=NOW - DAY, finished=NOW - DAY)
    engine.add_box("db", sha("run"), created=NOW - DAY, finished=NOW - DAY, links=["/c1/db"])
    wishes = policy.Wishes(containers=policy.ContainerWish(only=("c*",)), images=policy.ImageWish("unused", only=("app",)))
    plan = policy.decide(look(engine, wishes), wishes)
    made = Case(engine, wishes, Expected(engine, wishes, {}), plan, {})
    check_plan(made)
    assert sorted(step.name for step in plan.steps) == ["app:1", "app:2", "app:3", "c1"]
    outcome = act(made, 1)
    assert (outcome.failed, outcome.kept) == ([], [])
    assert own.references == [f"other@{own.id}"]
    assert {("container", hexadecimal("container db")), ("image", own.id), ("image", sha("base"))} <= engine.everything()
    assert policy.decide(look(engine, wishes), wishes).steps == ()


@both_stores
@pytest.mark.parametrize("state", ["created", "running"])
def test_force_takes_no_image_from_under_a_container_that_the_plan_did_not_know(store: str, state: str) -> None:
    engine = Model(store)
    engine.add_image("i", "app:1", created=NOW - DAY)
    engine.add_box("old", sha("i"), state="exited", created=NOW - DAY, started=NOW - DAY, finished=NOW - DAY)
    wishes = policy.Wishes(containers=policy.ContainerWish(states=("created",)), images=policy.ImageWish("all"))
    made = planned(engine, wishes, "app:1")
    assert made.plan.steps[0].force
    engine.add_box("new", sha("i"), state=state)
    outcome = act(made, 1)
    assert [kept.name for kept in outcome.kept] == ["app:1"]
    assert {("image", sha("i")), ("tag", "app:1")} <= engine.everything()


@both_stores
def test_the_model_refuses_what_an_engine_refuses(store: str) -> None:
    """Else all of this would show nothing: each refusal here was seen on a real one, too (tests/integration/test_random_hosts.py)."""

    def refused(act_: t.Callable[[], t.Any]) -> str:
        with pytest.raises(removal.EngineError) as caught:
            act_()
        return caught.value.answer

    engine = Model(store)
    one, two = engine.add_image("one", "app:1", "app:2"), engine.add_image("two", "b:1", "c:1")
    used, below = engine.add_image("used", "d:1"), engine.add_image("below")
    engine.add_image("child", "e:1", parent="below")
    engine.add_volume("v")
    net = engine.add_net("n")
    box = engine.add_box("box", used.id, state="running", volumes=["v"], networks=["n"])
    assert "multiple repositories" in refused(lambda: engine.remove_image(one.id))
    assert "multiple repositories" in refused(lambda: engine.remove_image(two.id))
    assert "running container" in refused(lambda: engine.remove_image(used.id, force=True))
    assert "is using its referenced image" in refused(lambda: engine.remove_image("d:1"))
    assert "volume is in use" in refused(lambda: engine.remove_volume("v"))
    assert "active endpoints" in refused(lambda: engine.remove_network(net.id))
    assert "cannot remove a running container" in refused(lambda: engine.remove_container(box.id))
    assert "pre-defined" in refused(lambda: engine.remove_network("bridge"))
    assert "No such image" in refused(lambda: engine.remove_image("nobody:1"))
    if store == "graphdriver":
        assert "dependent child images" in refused(lambda: engine.remove_image(below.id, force=True))
    box.state = "exited"
    assert "stopped container" in refused(lambda: engine.remove_image(used.id))
    engine.remove_image(used.id, force=True)
    engine.remove_network(net.id)
    assert engine.robbed == [box.id], "from under a stopped container it goes, and that has to be seen"
    engine.remove_image(two.id, force=True)
    assert not {("tag", "b:1"), ("tag", "c:1")} & engine.everything(), "by force all names go at once"
