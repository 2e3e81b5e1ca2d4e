"""How far a graph got, from ComfyUI's progress events (pure)."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

# Nodes whose steps take most of a run's time; `KSamplerSelect` and the like only choose.
_SAMPLING = re.compile(r"KSampler(?!Select)|SamplerCustom|Sampler$|^Train")
_SAMPLING_SHARE = 0.8
_USUAL_STEPS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepped:
    """Progress: `fraction` never goes back; `step` of `steps` where the node counts steps."""

    fraction: float
    node: str | None
    step: int | None = None
    steps: int | None = None


class Meter:
    """Adds up what the nodes of one graph report, each weighted by what it usually takes."""

    def __init__(self, graph: Mapping[str, Mapping[str, Any]]) -> None:
        self._weights = _weights(graph)
        self._done = dict.fromkeys(graph, 0.0)
        self._fraction = 0.0
        self._node: str | None = None
        self._step: tuple[int, int] | None = None
        self._last: Stepped | None = None

    def cached(self, nodes: Iterable[object]) -> Stepped | None:
        """Count nodes whose results ComfyUI still has."""
        for node in nodes:
            self._set(str(node), 1.0)
        return self._report()

    def entered(self, node: str) -> Stepped | None:
        """Count a node that begins."""
        if node != self._node:
            if self._node is not None:
                self._set(self._node, 1.0)
            self._node, self._step = node, None
        return self._report()

    def stepped(self, node: str, value: float, most: float) -> Stepped | None:
        """Count a node's own progress, `value` of `most`."""
        self._note(node, value, most)
        return self._report()

    def state(self, nodes: Mapping[str, object]) -> Stepped | None:
        """Count `progress_state`, which lists every node begun so far."""
        for node_id, each in nodes.items():
            if not isinstance(each, dict):
                continue
            known = cast("dict[str, Any]", each)
            # A node that a node made at run time shows as the one that made it.
            node = str(known.get("display_node_id") or node_id)
            if known.get("state") == "finished":
                if node == node_id:
                    self._set(node, 1.0)
            elif known.get("state") == "running":
                self._note(node, _number(known.get("value")), _number(known.get("max")))
        return self._report()

    def _note(self, node: str, value: float, most: float) -> None:
        if node != self._node:
            self._node, self._step = node, None
        if most > 0:
            self._set(node, min(value / most, 1.0))
        if most > 1:
            self._step = (int(value), int(most))

    def _set(self, node: str, done: float) -> None:
        # Events may be late or repeated: a node never gets less done than it was.
        if done > self._done.get(node, 1.0):
            self._done[node] = done

    def _report(self) -> Stepped | None:
        total = sum(self._weights[node] * done for node, done in self._done.items())
        self._fraction = min(max(self._fraction, total), 1.0)
        step, steps = self._step or (None, None)
        now = Stepped(fraction=round(self._fraction, 4), node=self._node, step=step, steps=steps)
        if now == self._last:
            return None
        self._last = now
        return now


def _weights(graph: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Share out 1: most of it among the sampling nodes by their steps, the rest evenly."""
    steps = {node_id: _steps(node) for node_id, node in graph.items() if _samples(node)}
    others = len(graph) - len(steps)
    share = 0.0 if not steps else _SAMPLING_SHARE if others else 1.0
    return {
        node_id: share * steps[node_id] / sum(steps.values())
        if node_id in steps
        else (1 - share) / others
        for node_id in graph
    }


def _samples(node: Mapping[str, Any]) -> bool:
    return _SAMPLING.search(str(node.get("class_type"))) is not None


def _steps(node: Mapping[str, Any]) -> int:
    steps = node.get("inputs", {}).get("steps")
    return steps if isinstance(steps, int) and steps > 0 else _USUAL_STEPS


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
