"""What `benchmarks.compare` takes for a fall, and that the page of results is that of the files."""

import pytest

from benchmarks.compare import Verdict, compared
from benchmarks.page import PAGE, page


@pytest.mark.parametrize(
    ("kept", "found", "fell"),
    [
        ([2.0, 2.0, 2.0], [1.81], False),
        ([2.0, 2.0, 2.0], [1.79], True),
        ([1.5, 2.0, 2.5], [1.05], False),  # the kept repeats differ by half
        ([1.5, 2.0, 2.5], [0.95], True),
        ([2.0], [3.0], False),
        ([2.0], [], True),
        ([], [0.1], False),
    ],
)
def test_a_ratio_falls_where_noise_does_not_explain_it(kept, found, fell):
    assert Verdict("sft-cpu", "speed", kept, found).fell is fell


def test_ratios_that_are_gone_or_new_are_told():
    verdicts = compared("sft-cpu", {"gone": [1.0]}, {"new": [1.0]})
    assert [(verdict.name, verdict.fell) for verdict in verdicts] == [("gone", True), ("new", False)]


def test_the_page_of_results_is_that_of_the_files():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m benchmarks.page"
