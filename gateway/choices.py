"""Where work may go, and in which order: as the settings say, or as a call asks for.

An order is a list of words, each a backend's name or kind. It makes *tiers*: the backends of the
first word are the first choice, those of the second the next, and so on.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from gateway.backends.base import Backend

Order = tuple[str, ...]
Tiers = tuple[tuple[Backend, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """The orders of the settings."""

    order: Order = ("gpu", "runpod")
    by_tool: Mapping[str, Order] = field(default_factory=dict[str, Order])
    tools: Mapping[str, str] = field(default_factory=dict[str, str])
    """Tools by the name of the workflow; callers' own workflows are not among them."""

    def of_tool(self, tool: str | None) -> Order:
        """The order for a tool; None: for those that have none of their own."""
        return self.by_tool.get(tool or "", self.order)

    def of_workflow(self, workflow: str) -> Order:
        """The order for a workflow, that of its tool."""
        return self.of_tool(self.tools.get(workflow))

    @property
    def orders(self) -> Iterable[Order]:
        """Every order there is."""
        return {self.order, *self.by_tool.values()}


BILLED = "runpod:"
"""What the names of backends begin with whose runs are paid for one by one."""


def suits(backend: Backend, word: str) -> bool:
    """Whether that word of an order means this backend."""
    return word in {backend.name, backend.kind}


def ranked(backends: Iterable[Backend], order: Order) -> Tiers:
    """The backends in their tiers; a word that means none there is makes none."""
    left, tiers = list(backends), list[tuple[Backend, ...]]()
    for word in order:
        tiers.append(tuple(backend for backend in left if suits(backend, word)))
        left = [backend for backend in left if not suits(backend, word)]
    return tuple(tier for tier in tiers if tier)


def tiers(backends: Iterable[Backend], order: Order, workflow: str, digest: str) -> Tiers:
    """Backends that a workflow may go to; those for which it is none of their own are left out.

    What the gateway's CPU carries out stays there, whatever the order.
    """
    own = [one for one in backends if one.readiness(workflow, digest) is not None]
    on_cpu = tuple(backend for backend in own if backend.kind == "cpu")
    return (on_cpu,) if on_cpu else ranked(own, order)


def in_use(backends: Iterable[Backend], order: Order) -> Sequence[Backend]:
    """The tier that work goes to at present: the first in which any answers."""
    for tier in ranked(backends, order):
        answering = [backend for backend in tier if backend.capacity > 0]
        if answering:
            return answering
    return ()


def at_once(backend: Backend) -> int:
    """Jobs it executes at the same time; what a GPU service holds beyond one waits there."""
    return min(1, backend.capacity) if backend.kind == "gpu" else backend.capacity
