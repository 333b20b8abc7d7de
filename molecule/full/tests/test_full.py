"""After a clean-up of all that can be had."""

from __future__ import annotations


def test_only_what_is_labelled_stays(dirt, docker):
    assert docker("ps --all --format '{{.Names}}'").split() == [dirt.kept_container]
    assert docker("volume ls --quiet").split() == [dirt.kept_volume]
    networks = set(docker("network ls --format '{{.Name}}'").split())
    assert dirt.kept_network in networks and not {dirt.used_network, dirt.unused_network} & networks


def test_images_stay_with_a_label_or_for_a_container_with_one(dirt, docker):
    # The base image is what the labelled container was made from.
    tags = docker("images --all --format '{{.Repository}}:{{.Tag}}'").split()
    assert sorted(tags) == sorted([dirt.kept_image, dirt.base_image])


def test_no_build_cache_is_left(docker):
    assert "Build Cache 0 0" in docker("system df --format '{{.Type}} {{.TotalCount}} {{.Active}}'")


def test_the_engine_works(host, docker):
    host.check_output("tar -C /bin -c busybox | PATH=/usr/bin:$PATH docker import - probe:1")
    assert docker("run --rm --network none probe:1 /busybox echo it works") == "it works"
    docker("rmi probe:1")
