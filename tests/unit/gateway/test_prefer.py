import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.prefer import Preference, preference


@pytest.mark.parametrize(
    ("header", "wait", "applied"),
    [
        (None, 90, None),
        ("", 90, None),
        ("wait=5", 5, "wait=5"),
        ('Wait = "5"', 5, "wait=5"),
        ("wait=0", 0, "wait=0"),
        ("wait=9999", 180, "wait=180"),
        ("respond-async", 0, "respond-async"),
        ("respond-async, wait=10", 10, "wait=10"),
        ("return=minimal", 90, None),
        ("wait=soon", 90, None),
        ("wait=-1", 90, None),
        ("wait=99999999999999999999", 180, "wait=180"),
    ],
)
def test_the_header_says_how_long_to_wait(
    header: str | None, wait: int, applied: str | None
) -> None:
    assert preference(header, default=90, longest=180) == Preference(wait=wait, applied=applied)


@given(st.text(max_size=200))
def test_no_header_makes_a_call_wait_longer_than_allowed(header: str) -> None:
    assert 0 <= preference(header, default=90, longest=180).wait <= 180
