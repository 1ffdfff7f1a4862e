"""While a command starts, Python looks seldom for garbage; when the run begins, as often as ever; at the end, no more."""

import gc
import subprocess
import sys
from contextlib import ExitStack

from slime_core.start_up import collect_again, collect_seldom, collecting_old_seldom, collecting_seldom


def test_thresholds_are_as_before_when_a_run_begins():
    collect_again()  # a command that another test ran in this process may not have begun a run
    gc.unfreeze()
    before = gc.get_threshold()
    try:
        collect_seldom()
        collect_seldom()
        assert gc.get_threshold()[0] > 100 * before[0]
    finally:
        collect_again()
        gc.unfreeze()
    assert gc.get_threshold() == before


def test_without_a_deferral_nothing_is_frozen():
    before = gc.get_freeze_count()
    collect_again()
    assert gc.get_freeze_count() == before


def test_the_command_line_collects_seldom():
    code = "import gc, sys; sys.argv = ['slime', '--version']; from slime_core.cli import main; main(); print(gc.get_threshold()[0])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split()[-1] == "1000000"


def test_nothing_that_a_command_made_is_looked_through_at_its_end() -> None:
    code = (
        "import atexit, gc, sys; from slime_core.cli import main; sys.argv = ['slime', '--version']\n"
        "atexit.register(lambda: print(gc.isenabled(), len(gc.get_objects()), gc.get_freeze_count()))\n"
        "main()"
    )
    enabled, looked_at, frozen = subprocess.check_output([sys.executable, "-c", code], text=True).split()[-3:]
    assert enabled == "False"
    assert int(looked_at) < 1000 < int(frozen)


def test_garbage_is_collected_as_before_when_the_last_reader_is_done() -> None:
    before = gc.get_threshold()
    with collecting_seldom():
        with ExitStack() as another:
            another.enter_context(collecting_seldom())
            assert gc.get_threshold()[0] >= 1_000_000
        assert gc.get_threshold()[0] >= 1_000_000
    assert gc.get_threshold() == before


def test_old_objects_are_looked_through_seldom_while_samples_are_made_and_new_ones_as_before() -> None:
    before = gc.get_threshold()
    with ExitStack() as maker, ExitStack() as reader:
        maker.enter_context(collecting_old_seldom())
        assert gc.get_threshold() == (*before[:2], 1000)
        reader.enter_context(collecting_seldom())
        assert gc.get_threshold() == (1_000_000, before[1], 1000)
        maker.close()
        assert gc.get_threshold() == (1_000_000, *before[1:])
    assert gc.get_threshold() == before
