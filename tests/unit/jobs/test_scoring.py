"""Who goes next, as a pure function."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.jobs.scoring import Candidate, Place, choose
from gateway.jobs.settings import JobSettings

SETTINGS = JobSettings(warm_for_s=30, priority_step_s=300)


def candidate(run_id: str, **changes: object) -> Candidate:
    plain = Candidate(
        run_id=run_id,
        owner="me",
        epoch=0,
        caller="alice",
        priority=0,
        workflow="flux",
        digest="d",
        models=frozenset({"flux"}),
        waited_s=1,
        created_at=int(run_id),
        turn=0,
    )
    return replace(plain, **changes)


def place(backend: str = "gpu", room: int = 1, load: int = 0, *warm: str) -> Place:
    return Place(backend=backend, room=room, load=load, warm=frozenset(warm))


def order(
    candidates: list[Candidate], places: list[Place], running: dict[str, int] | None = None
) -> list[tuple[str, str]]:
    grants = choose(candidates, places, running or {}, lambda _backend, _one: True, SETTINGS)
    return [(grant.candidate.run_id, grant.backend) for grant in grants]


def test_first_come_first_served_where_nothing_else_tells_runs_apart() -> None:
    runs = [candidate("3"), candidate("1"), candidate("2")]
    assert order(runs, [place(room=2)]) == [("1", "gpu"), ("2", "gpu")]


def test_priority_goes_before_everything() -> None:
    runs = [candidate("1"), candidate("2", priority=1, caller="bob")]
    assert order(runs, [place("gpu", 1, 0, "flux")], {"bob": 5}) == [("2", "gpu")]


def test_waiting_raises_priority() -> None:
    runs = [candidate("1", waited_s=601), candidate("2", priority=1)]
    assert order(runs, [place()]) == [("1", "gpu")]


def test_a_caller_with_as_many_running_as_may_is_passed_over() -> None:
    runs = [candidate("1"), candidate("2"), candidate("3", caller="bob")]
    grants = choose(
        runs,
        [place(room=3)],
        {"alice": 1},
        lambda _backend, _one: True,
        replace(SETTINGS, max_running_per_caller=2),
    )
    assert [grant.candidate.run_id for grant in grants] == ["3", "1"]


def test_a_caller_with_less_under_way_goes_first() -> None:
    runs = [candidate("1"), candidate("2", caller="bob")]
    assert order(runs, [place()], {"alice": 1}) == [("2", "gpu")]


def test_one_callers_thousand_runs_share_places_with_anothers_one() -> None:
    runs = [*(candidate(str(n)) for n in range(1, 17)), candidate("999", caller="bob")]
    assert ("999", "gpu") in order(runs, [place(room=2)])


def test_the_caller_served_longest_ago_goes_first() -> None:
    runs = [candidate("1", turn=9), candidate("2", caller="bob", turn=5)]
    assert order(runs, [place()]) == [("2", "gpu")]


def test_a_run_goes_where_its_models_are_loaded() -> None:
    places = [place("cold", 1, 1, "sdxl"), place("warm", 1, 3, "flux", "lora")]
    assert order([candidate("1")], places) == [("1", "warm")]


def test_an_idle_place_gets_a_run_though_its_models_are_loaded_on_a_busy_one() -> None:
    places = [place("idle", 1, 0, "sdxl"), place("warm", 1, 1, "flux", "lora")]
    assert order([candidate("1"), candidate("2")], places) == [("1", "idle"), ("2", "warm")]


def test_a_place_takes_the_run_whose_models_it_has_loaded() -> None:
    runs = [candidate("1", models=frozenset({"sdxl"})), candidate("2")]
    assert order(runs, [place("gpu", 1, 0, "flux")]) == [("2", "gpu")]


def test_a_run_that_waited_long_is_not_passed_over_for_a_loaded_model() -> None:
    runs = [candidate("1", models=frozenset({"sdxl"}), waited_s=31), candidate("2", waited_s=30)]
    assert order(runs, [place("gpu", 1, 0, "flux")]) == [("1", "gpu")]


def test_the_second_grant_of_a_round_reckons_with_the_models_of_the_first() -> None:
    runs = [
        candidate("1"),
        candidate("2", models=frozenset({"sdxl"})),
        candidate("3"),
    ]
    assert order(runs, [place(room=2)]) == [("1", "gpu"), ("3", "gpu")]


def test_of_places_alike_the_one_with_less_to_do_is_taken() -> None:
    places = [place("busy", 1, 2), place("idle", 1, 0)]
    assert order([candidate("1")], places) == [("1", "idle")]


def test_a_backend_that_is_not_ready_for_a_workflow_is_not_given_it() -> None:
    runs = [candidate("1", workflow="wan"), candidate("2")]
    grants = choose(runs, [place(room=2)], {}, lambda _, one: one.workflow == "flux", SETTINGS)
    assert [grant.candidate.run_id for grant in grants] == ["2"]


candidates = st.builds(
    lambda n, caller, priority, model, waited, turn: candidate(
        str(n),
        caller=caller,
        priority=priority,
        models=frozenset({model}),
        waited_s=waited,
        turn=turn,
    ),
    n=st.integers(1, 10_000),
    caller=st.sampled_from("abc"),
    priority=st.integers(-3, 3),
    model=st.sampled_from(["flux", "sdxl", "wan"]),
    waited=st.floats(0, 2000),
    turn=st.integers(0, 5),
)
places = st.builds(
    lambda backend, room, load, warm: Place(backend=backend, room=room, load=load, warm=warm),
    backend=st.sampled_from(["g1", "g2", "g3"]),
    room=st.integers(-1, 4),
    load=st.integers(0, 4),
    warm=st.frozensets(st.sampled_from(["flux", "sdxl"])),
)


@settings(deadline=None)
@given(
    st.lists(candidates, max_size=12, unique_by=lambda one: one.run_id),
    st.lists(places, max_size=3, unique_by=lambda one: one.backend),
)
def test_places_are_filled_never_overfilled_and_no_run_is_placed_twice(
    runs: list[Candidate], where: list[Place]
) -> None:
    placed = order(runs, where)
    room = sum(max(0, one.room) for one in where)
    assert len(placed) == min(len(runs), room)
    assert len({run for run, _ in placed}) == len(placed)
    for one in where:
        assert sum(backend == one.backend for _, backend in placed) <= max(0, one.room)
    # a permutation of what is known changes nothing
    assert order(runs[::-1], where[::-1]) == placed
