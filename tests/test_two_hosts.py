"""Two machines for real, as two network namespaces with a cable between them; skipped where such cannot be made. The scenarios
are those of `python -m benchmarks.two_hosts`, of which the longer ones run there alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks import two_hosts
from benchmarks.hosts import why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "can be made")


@pytest.fixture(scope="module")
def scene() -> Iterator[two_hosts.Scene]:
    with two_hosts.scene() as made:
        yield made


@pytest.fixture(scope="module")
def cluster_of_two(scene: two_hosts.Scene) -> two_hosts.Scene:
    scene.start_ray()
    return scene


def test_ranks_meet_though_host_names_stand_for_loopback_addresses(scene: two_hosts.Scene) -> None:
    assert len(two_hosts.ranks_meet(scene)) == 2


def test_a_rank_that_cannot_be_reached_is_named_with_machine_process_and_port(scene: two_hosts.Scene) -> None:
    assert two_hosts.unreachable_rank_is_named(scene)


def test_ranks_say_what_they_tried_in_the_time_that_it_took(scene: two_hosts.Scene) -> None:
    assert two_hosts.missing_ranks_are_named(scene)


def test_weights_reach_a_server_on_the_other_machine(scene: two_hosts.Scene) -> None:
    pytest.importorskip("slime_engine_sglang")
    assert two_hosts.weights_reach_a_server(scene)


def test_another_version_of_a_plugin_on_the_second_machine_is_refused(cluster_of_two: two_hosts.Scene) -> None:
    assert two_hosts.other_versions_are_refused(cluster_of_two)


@pytest.mark.slow
def test_a_machine_that_is_cut_off_in_mid_step_is_named_in_seconds_and_ends_the_run(
    cluster_of_two: two_hosts.Scene,
) -> None:
    """The last test: it leaves the cable pulled. That the run resumes bit for bit is among the longer scenarios."""
    assert two_hosts.lost_machine_is_named(cluster_of_two)
