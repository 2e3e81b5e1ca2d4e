"""The short soak: everything is killed once while jobs run."""

import sys

import pytest

from tests.soak.plan import draw
from tests.soak.soak import soak
from tests.support.postgres import NoPostgres


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_no_job_is_lost_or_done_twice_while_everything_is_killed_on_postgresql() -> None:
    try:
        report = soak(draw(1, jobs=60, faults=10, postgres=True), _say)
    except NoPostgres as error:
        pytest.skip(str(error))
    assert report.wrong == [], report.lines


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_no_job_is_lost_or_done_twice_while_everything_is_killed_on_sqlite() -> None:
    report = soak(draw(2, jobs=60, faults=10, postgres=False), _say)
    assert report.wrong == [], report.lines


def test_a_seed_always_gives_the_same_plan() -> None:
    one, other = (draw(7, jobs=300, faults=30, postgres=True) for _ in range(2))
    assert one == other
    assert {fault.kind for fault in one.faults} == {
        "gateway",
        "gpu_server",
        "simulator",
        "postgres",
    }
