"""After a careful clean-up."""

from __future__ import annotations

MB = 1_000_000


def test_what_runs_goes_on_running(dirt, docker):
    running = docker("ps --format '{{.Names}}'").split()
    assert {dirt.running, dirt.chatty, dirt.big_log} <= set(running)


def test_images_of_containers_stay_with_all_their_tags(dirt, there):
    for image in (dirt.base_image, *dirt.running_tags):
        assert there("image", image), image


def test_old_containers_go_and_new_ones_stay(dirt, there):
    for name in (dirt.stopped_old, dirt.never_started, dirt.dead, dirt.with_anonymous_volume):
        assert not there("container", name), name
    assert there("container", dirt.stopped_new)


def test_old_images_without_a_tag_go(dirt, there):
    assert not there("image", dirt.dangling_image)


def test_images_that_nobody_can_pull_again_stay(dirt, there):
    # Old and unused, but never pushed to a registry.
    assert there("image", dirt.unused_image_old)


def test_volumes_are_not_touched(dirt, there):
    for name in (dirt.named_volume, dirt.used_named_volume, dirt.anonymous_volume, dirt.used_anonymous_volume):
        assert there("volume", name), name


def test_what_is_labelled_stays(dirt, there):
    for kind, name in (("container", dirt.kept_container), ("image", dirt.kept_image), ("volume", dirt.kept_volume), ("network", dirt.kept_network)):
        assert there(kind, name), f"{kind} {name}"


def test_networks_that_are_used_or_predefined_stay(dirt, there):
    # A test host's engine has no bridge.
    for name in (dirt.used_network, "host", "none"):
        assert there("network", name), name


def test_the_big_log_is_short_and_ends_as_before(dirt, docker):
    size = int(docker(f"logs {dirt.big_log} | wc -c"))
    assert 5 * MB < size <= 11 * MB
    # Not `--tail`: engines from 23 on lose their place in a log that became shorter (moby 45728), until the container is started again.
    last = docker(f"logs {dirt.big_log} | tail -n 2 | cut -c 1-40").splitlines()
    assert last[0].startswith("noisy line") and last[1] == "started"


def test_a_running_container_still_writes_its_log(dirt, docker, host):
    before = docker(f"logs {dirt.chatty} | wc -l")
    host.run("sleep 0.3")
    assert int(docker(f"logs {dirt.chatty} | wc -l")) > int(before)
