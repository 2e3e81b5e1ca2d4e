"""One value on its way into a graph, at the ends of what numbers and texts can be."""

import pytest

from gpu_server.workflow.manifest import Target
from gpu_server.workflow.node_specs import InputSpec
from gpu_server.workflow.values import LONGEST_TEXT, ParamError, checked, transformed


def refused(target: Target, value: float | str) -> ParamError:
    with pytest.raises(ParamError) as caught:
        transformed("a", target, value)
    return caught.value


@pytest.mark.parametrize("value", [1e10, 10**400, -(10**400)])
def test_a_number_that_becomes_infinite_is_the_callers_fault(value: float) -> None:
    error = refused(Target(to="5.steps", scale=1e300), value)
    assert (error.param, error.code) == ("a", "invalid_param")


def test_a_clamp_keeps_a_number_finite() -> None:
    target = Target(to="5.steps", scale=1e300, clamp=(1, 50))
    assert transformed("a", target, 1e10) == 50


def test_a_template_never_makes_more_text_than_is_bearable() -> None:
    target = Target(to="3.text", template="{value} " * 10)
    longest = LONGEST_TEXT // 10 - 1
    assert len(str(transformed("a", target, "x" * longest))) == LONGEST_TEXT
    assert "is too long" in refused(target, "x" * (longest + 1)).message


@pytest.mark.parametrize("kind", ["INT", "FLOAT"])
def test_a_number_no_float_can_hold_is_refused(kind: str) -> None:
    spec = InputSpec(name="x", type=kind, required=True, options={"min": 0.0, "step": 2.0})
    with pytest.raises(ParamError):
        checked("a", spec, 10**400)
