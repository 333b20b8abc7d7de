"""After the clean-up of a host that had no free byte."""

from __future__ import annotations

MB = 1_000_000


def test_there_is_space_again(host):
    figures = host.check_output("stat --file-system --format '%a %S' /var/lib/docker").split()
    assert int(figures[0]) * int(figures[1]) > 100 * MB


def test_old_things_are_gone(dirt, there):
    for kind, name in (("container", dirt.stopped_old), ("image", dirt.unused_image_old), ("image", dirt.dangling_image)):
        assert not there(kind, name), f"{kind} {name}"


def test_what_runs_goes_on_running(dirt, docker):
    assert {dirt.running, dirt.chatty, dirt.big_log} <= set(docker("ps --format '{{.Names}}'").split())


def test_what_is_wanted_stays(dirt, there):
    for kind, name in (("volume", dirt.named_volume), ("volume", dirt.kept_volume), ("image", dirt.kept_image), ("container", dirt.stopped_new)):
        assert there(kind, name), f"{kind} {name}"


def test_the_engine_can_be_used_again(host, docker):
    host.check_output("tar -C /bin -c busybox | PATH=/usr/bin:$PATH docker import - probe:1")
    assert docker("run --rm --network none probe:1 /busybox echo it works") == "it works"
