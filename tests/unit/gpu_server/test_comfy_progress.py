from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gpu_server.comfy.progress import Meter, Stepped

GRAPH: dict[str, dict[str, Any]] = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {}},
    "2": {"class_type": "KSamplerSelect", "inputs": {}},
    "3": {"class_type": "KSampler", "inputs": {"steps": 10}},
    "4": {"class_type": "KSamplerAdvanced", "inputs": {"steps": 30}},
    "5": {"class_type": "SaveImage", "inputs": {}},
}


def state(value: float, most: float, kind: str = "running") -> dict[str, Any]:
    return {"value": value, "max": most, "state": kind}


def fraction(step: Stepped | None) -> float:
    assert step is not None
    return step.fraction


def test_sampler_steps_make_most_of_the_way_by_their_number() -> None:
    meter = Meter(GRAPH)
    assert abs(fraction(meter.stepped("3", 10, 10)) - 0.2) < 0.001
    assert abs(fraction(meter.stepped("4", 15, 30)) - 0.5) < 0.001
    step = meter.stepped("4", 16, 30)
    assert step is not None
    assert (step.node, step.step, step.steps) == ("4", 16, 30)


def test_a_graph_without_sampler_counts_its_nodes() -> None:
    meter = Meter({"a": {"class_type": "LoadImage"}, "b": {"class_type": "SaveImage"}})
    assert meter.entered("a") == Stepped(fraction=0, node="a")
    assert meter.entered("b") == Stepped(fraction=0.5, node="b")
    assert meter.entered("b") is None


def test_cached_nodes_are_done() -> None:
    meter = Meter(GRAPH)
    assert fraction(meter.cached(["1", "2", "3", "4", "unknown"])) > 0.9


def test_what_a_node_made_at_run_time_does_shows_as_its_maker() -> None:
    meter = Meter(GRAPH)
    inner = state(5, 10) | {"display_node_id": "3"}
    step = meter.state({"3.0.0.1": inner})
    assert step is not None
    assert (step.node, step.step) == ("3", 5)
    done = state(1, 1, "finished") | {"display_node_id": "3"}
    assert meter.state({"3.0.0.0": done}) is None


def test_odd_events_change_nothing() -> None:
    meter = Meter(GRAPH)
    assert fraction(meter.state({"1": None, "2": {"state": "pending"}, "3": state(0, 0)})) == 0
    assert fraction(meter.stepped("nobody", 1, 2)) == 0


nodes = st.sampled_from([*GRAPH, "unknown"])
events = st.one_of(
    st.tuples(st.just("entered"), st.tuples(nodes)),
    st.tuples(st.just("cached"), st.tuples(st.lists(nodes))),
    st.tuples(st.just("stepped"), st.tuples(nodes, st.integers(0, 40), st.integers(0, 30))),
    st.tuples(
        st.just("state"),
        st.tuples(
            st.dictionaries(
                nodes,
                st.builds(
                    state,
                    st.integers(0, 40),
                    st.integers(0, 30),
                    st.sampled_from(["running", "finished", "error"]),
                ),
            )
        ),
    ),
)


@given(st.lists(events))
def test_progress_never_goes_back_whatever_is_told_in_whatever_order(
    told: list[tuple[str, tuple[Any, ...]]],
) -> None:
    meter = Meter(GRAPH)
    steps = [getattr(meter, name)(*arguments) for name, arguments in told]
    fractions = [step.fraction for step in steps if step is not None]
    assert fractions == sorted(fractions)
    assert all(0 <= each <= 1 for each in fractions)
