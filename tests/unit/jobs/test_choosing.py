"""Which backends work may go to: first choices, fallback and back, as pure rules on a clock."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.backends.base import Kind, WorkflowReadiness
from gateway.choices import Choices, at_once, in_use, ranked
from gateway.jobs.choosing import ASKED, FIRST, OWN, Choosing, Standing, Work
from gateway.jobs.placement import _Heads
from gateway.jobs.scoring import Candidate
from gateway.jobs.settings import JobSettings
from tests.unit.jobs.world import MemoryStorage, ScriptedBackend

AFTER_S = 16.0
STEP_S = 1.0
FLUX = Work(workflow="flux", digest="f")
WAN = Work(workflow="wan", digest="w")


class Foreign(ScriptedBackend):
    """One for which some workflows are none of its own."""

    def readiness(self, workflow: str, digest: str) -> WorkflowReadiness | None:  # type: ignore[override]  # the protocol allows None
        return None if workflow in self.states else super().readiness(workflow, digest)


def backend(name: str, kind: Kind = "gpu", **changes: object) -> ScriptedBackend:
    return ScriptedBackend(storage=MemoryStorage(), name=name, kind=kind, **changes)  # type: ignore[arg-type]


class Clock:
    """Looks at the backends once a second, as placement's loop does."""

    def __init__(self, *backends: ScriptedBackend, **choices: object) -> None:
        made = Choices(**choices)  # type: ignore[arg-type]
        self.backends = {one.name: one for one in backends}
        self.choosing = Choosing(
            self.backends,
            JobSettings(choices=made, fallback_after_s=AFTER_S, backend_watch_s=STEP_S),
        )
        self.now = 0.0
        self.choosing.look(self.now)

    def after(self, seconds: float, work: Work = FLUX) -> Standing:
        for _ in range(int(seconds / STEP_S)):
            self.now += STEP_S
            self.choosing.look(self.now)
        return self.choosing.standing(work)


@pytest.fixture
def gpu() -> ScriptedBackend:
    return backend("gpu-1")


@pytest.fixture
def runpod() -> ScriptedBackend:
    return backend("runpod:a", "runpod", billed=True)


def test_the_first_choice_is_taken_while_it_can_whatever_else_there_is(
    gpu: ScriptedBackend, runpod: ScriptedBackend
) -> None:
    found = Clock(runpod, gpu).after(60)
    assert found == Standing(open=frozenset({"gpu-1"}), reason=FIRST, able=True)


def test_the_next_choice_is_taken_once_the_first_was_away_long_enough_and_given_up_at_once(
    gpu: ScriptedBackend, runpod: ScriptedBackend
) -> None:
    clock = Clock(gpu, runpod)
    clock.after(5)
    gpu.capacity = 0
    waiting = clock.after(AFTER_S)
    assert (waiting.open, waiting.able) == (frozenset(), True)
    found = clock.after(1)
    assert found.open == {"runpod:a"}
    assert found.fallback
    assert found.reason == "gpu-1 has not answered for 16 s"
    gpu.capacity = 1
    assert clock.choosing.standing(FLUX).open == {"gpu-1"}
    gpu.capacity = 0
    # it was there for a moment: its time away begins anew
    gpu.capacity = 1
    clock.after(1)
    gpu.capacity = 0
    assert clock.after(AFTER_S).open == frozenset()


def test_one_never_seen_is_away_since_the_start(
    gpu: ScriptedBackend, runpod: ScriptedBackend
) -> None:
    gpu.capacity = 0
    clock = Clock(gpu, runpod)
    assert clock.after(AFTER_S - 1).open == frozenset()
    assert clock.after(1).open == {"runpod:a"}


def test_a_process_that_stood_still_falls_back_on_nothing(
    gpu: ScriptedBackend, runpod: ScriptedBackend
) -> None:
    clock = Clock(gpu, runpod)
    clock.after(1)
    gpu.capacity = 0
    clock.after(1)
    clock.now += 3600
    clock.choosing.look(clock.now)
    assert clock.choosing.standing(FLUX).open == frozenset()


def test_all_of_a_choice_must_be_away_before_the_next_one_is_taken(
    gpu: ScriptedBackend, runpod: ScriptedBackend
) -> None:
    other = backend("gpu-2")
    clock = Clock(gpu, other, runpod)
    gpu.capacity = 0
    assert clock.after(60).open == {"gpu-2"}
    other.capacity = 0
    assert clock.after(AFTER_S - 1).open == frozenset()
    found = clock.after(2)
    assert found.open == {"runpod:a"}
    assert found.reason == "gpu-1 has not answered for 76 s; gpu-2 has not answered for 16 s"


def test_what_the_first_choice_lacks_goes_to_the_next_and_only_that(
    gpu: ScriptedBackend, runpod: ScriptedBackend
) -> None:
    gpu.states = {"wan": "missing"}
    clock = Clock(gpu, runpod)
    found = clock.after(60, WAN)
    assert (found.open, found.reason) == ({"runpod:a"}, "gpu-1 lacks flux.safetensors")
    assert clock.after(1, FLUX).open == {"gpu-1"}
    gpu.states = {}
    assert clock.after(1, WAN).open == {"gpu-1"}


def test_what_is_none_of_its_own_waits_for_no_first_choice(gpu: ScriptedBackend) -> None:
    foreign = Foreign(
        storage=MemoryStorage(), name="runpod:a", kind="runpod", states={"own.x": "ready"}
    )
    clock = Clock(foreign, gpu, order=("runpod", "gpu"))
    found = clock.choosing.standing(Work(workflow="own.x", digest="x"))
    assert (found.open, found.reason, found.fallback) == ({"gpu-1"}, FIRST, False)


def test_what_a_call_asks_for_is_waited_for(gpu: ScriptedBackend, runpod: ScriptedBackend) -> None:
    clock = Clock(gpu, runpod)
    asked = Work(workflow="flux", digest="f", places=("runpod",))
    found = clock.after(1, asked)
    assert (found.open, found.reason, found.fallback) == ({"runpod:a"}, ASKED, False)
    runpod.capacity = 0
    assert clock.after(60, asked).open == frozenset()
    runpod.state = "unknown"
    assert not clock.after(1, asked).able
    assert clock.choosing.waits_for(asked) == (
        "its call asks for runpod, which does not answer at present"
    )


def test_a_tool_has_an_order_of_its_own(gpu: ScriptedBackend, runpod: ScriptedBackend) -> None:
    orders = {"video": ("runpod:a", "gpu")}
    clock = Clock(gpu, runpod, by_tool=orders, tools={"wan": "video", "flux": "generate"})
    assert clock.after(1, WAN).open == {"runpod:a"}
    assert clock.after(1, FLUX).open == {"gpu-1"}
    runpod.capacity = 0
    assert clock.after(60, WAN).reason == "runpod:a has not answered for 59 s"


def test_a_backend_in_no_order_gets_nothing_unless_it_is_asked_for(
    gpu: ScriptedBackend, runpod: ScriptedBackend
) -> None:
    clock = Clock(gpu, runpod, order=("gpu",))
    gpu.capacity = 0
    assert clock.after(600).open == frozenset()
    asked = Work(workflow="flux", digest="f", places=("runpod:a",))
    assert clock.after(1, asked).open == {"runpod:a"}


def test_the_gateways_own_work_is_subject_to_no_order(gpu: ScriptedBackend) -> None:
    cpu = backend("cpu", "cpu")
    found = Clock(gpu, cpu).after(1)
    assert (found.open, found.reason) == ({"cpu"}, OWN)


def test_room_of_a_reserve_is_no_room_until_it_is_used(
    gpu: ScriptedBackend, runpod: ScriptedBackend
) -> None:
    clock = Clock(gpu, runpod)
    assert clock.choosing.in_use() == {"gpu-1"}
    before = clock.choosing.turns()
    gpu.capacity = 0
    clock.after(AFTER_S + 1)
    assert clock.choosing.in_use() == {"runpod:a"}
    assert clock.choosing.turns() != before


def test_a_reserve_is_used_by_what_the_first_choice_lacks(
    gpu: ScriptedBackend, runpod: ScriptedBackend
) -> None:
    gpu.states = {"wan": "missing"}
    clock = Clock(gpu, runpod)
    clock.after(60, WAN)
    assert clock.choosing.in_use() == {"gpu-1", "runpod:a"}


def test_estimates_count_the_places_that_are_used_alone(
    gpu: ScriptedBackend, runpod: ScriptedBackend
) -> None:
    every, order = [runpod, gpu, backend("gpu-2")], ("gpu", "runpod")
    assert [one.name for one in in_use(every, order)] == ["gpu-1", "gpu-2"]
    assert [at_once(one) for one in every] == [4, 1, 1]
    gpu.capacity = every[2].capacity = 0
    assert [one.name for one in in_use(every, order)] == ["runpod:a"]
    assert in_use([gpu], order) == ()


def test_a_name_before_its_kind_makes_two_choices(
    gpu: ScriptedBackend, runpod: ScriptedBackend
) -> None:
    other = backend("gpu-2")
    found = ranked([gpu, other, runpod], ("gpu-2", "runpod", "gpu", "gpu-9"))
    assert [[one.name for one in tier] for tier in found] == [["gpu-2"], ["runpod:a"], ["gpu-1"]]


EVENTS = st.lists(
    st.tuples(st.sampled_from(["gpu-1", "gpu-2", "runpod:a"]), st.sampled_from([0, 2]),
              st.sampled_from(["ready", "missing", "unknown"]), st.integers(0, 24)),
    max_size=40,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(EVENTS)
def test_a_later_choice_is_open_exactly_while_all_before_it_were_away_long_enough(
    events: list[tuple[str, int, str, int]],
) -> None:
    tiers = (("gpu-1", "gpu-2"), ("runpod:a",))
    clock = Clock(backend("gpu-1"), backend("gpu-2"), backend("runpod:a", "runpod"))
    clock.choosing.standing(FLUX)
    unable_s = dict.fromkeys(clock.backends, -STEP_S)

    def able(name: str) -> bool:
        one = clock.backends[name]
        return one.capacity > 0 and one.state == "ready"

    def seconds(count: int) -> Iterator[None]:
        for _ in range(count):
            clock.after(STEP_S)
            for name in unable_s:
                # from the first look that found it so
                unable_s[name] = -STEP_S if able(name) else unable_s[name] + STEP_S
            yield

    for name, capacity, state, count in events:
        clock.backends[name].capacity = capacity
        clock.backends[name].state = state  # type: ignore[assignment]
        for _ in seconds(count):
            found = clock.choosing.standing(FLUX)
            wanted = frozenset[str]()
            for tier in tiers:
                wanted = frozenset(filter(able, tier))
                if wanted or any(unable_s[one] < AFTER_S for one in tier):
                    break
            assert found.open == wanted
            assert not found.open or found.fallback == (found.open == {"runpod:a"})


def test_only_the_gateway_that_drives_a_run_finds_its_first_choice_away() -> None:
    standing = Standing(open=frozenset({"runpod:a"}), fallback=True, able=True)
    mine = Candidate(
        run_id="r",
        owner="me",
        epoch=0,
        caller="alice",
        priority=0,
        workflow="flux",
        digest="f",
        models=frozenset(),
        waited_s=0,
        created_at=0,
        turn=0,
        work="f",
    )
    reached = {"me": None, "other": frozenset({"gpu"})}
    for replica, owner, may in (("me", "me", True), ("me", "other", False), ("it", "me", False)):
        heads = _Heads(replica=replica, reached=reached, standings={"f": standing})
        assert heads.may_go("runpod:a", replace(mine, owner=owner)) == may
