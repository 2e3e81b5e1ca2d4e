"""Which waiting run goes where next: a pure function of what is known."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from gateway.jobs.settings import JobSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A run that waits."""

    run_id: str
    owner: str
    epoch: int
    caller: str
    priority: int
    workflow: str
    digest: str
    models: frozenset[str]
    waited_s: float
    created_at: int
    turn: int
    """When its caller was last granted anything; 0 = never."""
    places: tuple[str, ...] | None = None
    """Kinds or names of backends that its call asks for; None: as the settings say."""
    work: str = ""
    """The same for all runs of its workflow that may go to the same places."""

    @property
    def needs(self) -> frozenset[str]:
        """What is loaded once it has run: its models, or the workflow where it names none."""
        return self.models or frozenset({self.digest})


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A backend with room."""

    backend: str
    room: int
    load: int
    """Runs it has now."""
    warm: frozenset[str]
    """What is loaded there, as far as known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A run and the backend it is given."""

    candidate: Candidate
    backend: str


Score = tuple[int, int, bool, bool, int, int, str, bool, int, str]


def score(candidate: Candidate, place: Place, running: int, settings: JobSettings) -> Score:
    """How soon a run should get a place; the lowest goes first.

    In this order: priority (raised by waiting), callers with fewer runs under way, idle places
    (a GPU that loads a model does more than one that does nothing), places where its models are
    loaded (until it has waited long enough), the caller served longest ago, first come.
    `running` = runs its caller has under way. Places alike in all that: warm ones, then by load.
    """
    cold = not candidate.needs <= place.warm
    return (
        -candidate.priority - int(candidate.waited_s // settings.priority_step_s),
        running,
        place.load > 0,
        cold and candidate.waited_s < settings.warm_for_s,
        candidate.turn,
        candidate.created_at,
        candidate.run_id,
        cold,
        place.load,
        place.backend,
    )


def choose(
    candidates: Sequence[Candidate],
    places: Sequence[Place],
    running: Mapping[str, int],
    ready: Callable[[str, Candidate], bool],
    settings: JobSettings,
) -> list[Grant]:
    """Fill the places with the best candidates, one after the other.

    `running` = runs under way by caller; `ready(backend, candidate)` = it can carry that run out.
    A caller with as many as may be under way is passed over.
    """
    grants: list[Grant] = []
    open_places = {place.backend: place for place in places if place.room > 0}
    waiting = {candidate.run_id: candidate for candidate in candidates}
    under_way = Counter(running)
    most = settings.max_running_per_caller or math.inf
    while open_places and waiting:
        pairs = [
            (score(candidate, place, under_way[candidate.caller], settings), candidate, place)
            for candidate in waiting.values()
            if under_way[candidate.caller] < most
            for place in open_places.values()
            if ready(place.backend, candidate)
        ]
        if not pairs:
            break
        _, best, place = min(pairs, key=lambda pair: pair[0])
        grants.append(Grant(candidate=best, backend=place.backend))
        del waiting[best.run_id]
        under_way[best.caller] += 1
        if place.room == 1:
            del open_places[place.backend]
        else:
            open_places[place.backend] = replace(
                place, room=place.room - 1, load=place.load + 1, warm=best.needs
            )
    return grants
