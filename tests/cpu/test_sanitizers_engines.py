"""The tests of the engines on a library with sanitizers. A file of its own, which runs beside that of the ops."""

from sanitized import ROOT, assert_tests_pass, library

# How well sums are rounded is not for this build to show. Nor is where infinities go: the same problems run here with
# other numbers, for other numbers of threads. What the environment means is read by code that has no pointers.
ELSEWHERE = ("errors_are_not_above_torchs", "infinities_and_nan", "environment")


def test_engines_pass_under_the_sanitizers() -> None:
    selection = " and ".join(f"not {name}" for name in ELSEWHERE)
    assert_tests_pass(ROOT / "tests" / "cpu" / "test_engines.py", selection=selection, library=library()[0])
