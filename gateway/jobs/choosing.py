"""Which backends a waiting run may go to at this moment, and why: first choices and fallback.

It may go to its next choice only while nothing of the choices before it can carry it out, and has
not been able to for `fallback_after_s`. That they are busy is no reason.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gateway.backends.base import Backend
from gateway.choices import Tiers, ranked, tiers
from gateway.jobs.settings import JobSettings

KNOWN = 64
"""Workflows whose readiness is followed; of more than that, those that waited last."""
LEAST_LOOKS = 4
"""No single gap between two looks, however long, decides alone: this process may have stood."""

FIRST = "first choice"
ASKED = "asked for by the call"
OWN = "carried out by the gateway itself"


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What runs have in common that may go to the same places."""

    workflow: str
    digest: str
    places: tuple[str, ...] | None = None
    """The order its call asks for; None: as the settings say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where work of one kind can go."""

    open: frozenset[str] = frozenset()
    """Backends it may be given now, as soon as they have room."""
    reason: str = FIRST
    """Why those."""
    fallback: bool = False
    """They are not its first choice."""
    able: bool = False
    """Some backend has what it needs, though it may be away or not be its turn."""


class Choosing:
    """Follows for how long backends have not been able to carry out what waits."""

    def __init__(self, backends: Mapping[str, Backend], settings: JobSettings) -> None:
        self._backends = backends
        self._choices = settings.choices
        self._after_s = settings.fallback_after_s
        self._every_s = settings.backend_watch_s / 2
        self._looked_at = -math.inf
        self._up_s = 0.0
        self._away_s: dict[str, float] = {}
        """By backend that takes nothing, for how long."""
        self._unable_s: dict[Work, dict[str, float]] = {}
        """By followed work and backend that cannot carry it out, for how long."""

    def look(self, now: float) -> None:
        """Note who cannot carry out what; costs nothing when called more often than needed."""
        if now < self._looked_at + self._every_s:
            return
        passed = min(max(0.0, now - self._looked_at), self._after_s / LEAST_LOOKS)
        passed = 0.0 if math.isinf(self._looked_at) else passed
        self._looked_at = now
        self._up_s += passed
        away = [name for name, backend in self._backends.items() if backend.capacity <= 0]
        self._away_s = _longer(self._away_s, away, passed)
        for work, before in self._unable_s.items():
            unable = [name for name in self._backends if not self._carries_out(name, work)]
            self._unable_s[work] = _longer(before, unable, passed)

    def standing(self, work: Work) -> Standing:
        """Where such work may go now."""
        self._follow(work)
        return self._standing(work)

    def _standing(self, work: Work) -> Standing:
        found = self._tiers(work)
        able = any(self._has_all(one, work) for tier in found for one in tier)
        before: list[Backend] = []
        for tier in found:
            if now_able := [one.name for one in tier if self._carries_out(one.name, work)]:
                return Standing(
                    open=frozenset(now_able),
                    reason=self._reason(work, before, found),
                    fallback=bool(before),
                    able=True,
                )
            if not all(self._long_unable(one.name, work) for one in tier):
                break
            before += tier
        return Standing(able=able)

    def in_use(self) -> frozenset[str]:
        """Backends that something may go to at present, without its call asking for them.

        Whatever waits elsewhere has no use for the room of the others.
        """
        settled = (work for work in self._unable_s if work.places is None)
        found = {name for work in settled for name in self._standing(work).open}
        for order in self._choices.orders:
            for tier in ranked(self._backends.values(), order):
                found |= {one.name for one in tier if one.capacity > 0}
                if not all(self._gone(one.name) for one in tier):
                    break
        found |= {one.name for one in self._backends.values() if one.kind == "cpu"}
        return frozenset(found)

    def turns(self) -> object:
        """What differs once it is another one's turn by the passing of time."""
        gone = frozenset(name for name in self._away_s if self._gone(name))
        unable = frozenset(
            (work, name)
            for work, backends in self._unable_s.items()
            for name, seconds in backends.items()
            if seconds >= self._after_s
        )
        return gone, unable

    def waits_for(self, work: Work) -> str:
        """Say what work waits for that nobody can carry out, for the job's log."""
        allowed = [backend for tier in self._tiers(work) for backend in tier]
        asked = [backend.readiness(work.workflow, work.digest) for backend in allowed]
        known = [one for one in asked if one is not None]
        gpus = all(backend.kind == "gpu" for backend in allowed)
        if known and all(one.readiness == "missing" for one in known):
            lacking = dict.fromkeys(thing.name for one in known for thing in one.missing)
            where = "every GPU service" if gpus else "every backend it may go to"
            return f"missing on {where}: {', '.join(lacking)}"
        if work.places is not None:
            return f"its call asks for {' or '.join(work.places)}, which does not answer at present"
        kind = "GPU service" if gpus else "backend"
        return f"no {kind} that can carry it out answers at present"

    def _tiers(self, work: Work) -> Tiers:
        order = work.places or self._choices.of_workflow(work.workflow)
        return tiers(self._backends.values(), order, work.workflow, work.digest)

    def _follow(self, work: Work) -> None:
        """Begin to follow it, or remember that it was asked for last."""
        known = self._unable_s.pop(work, None)
        if known is None:
            unable = [name for name in self._backends if not self._carries_out(name, work)]
            known = {name: self._since(name, work) for name in unable}
        self._unable_s[work] = known
        if len(self._unable_s) > KNOWN:
            del self._unable_s[next(iter(self._unable_s))]

    def _since(self, name: str, work: Work) -> float:
        """For how long a backend has not been able to do what was never asked for before."""
        backend = self._backends[name]
        known = backend.readiness(work.workflow, work.digest)
        if backend.capacity > 0 and known is not None and known.readiness == "missing":
            # it has said so itself, and nobody has seen it otherwise
            return self._up_s
        return self._away_s.get(name, 0.0)

    def _carries_out(self, name: str, work: Work) -> bool:
        backend = self._backends[name]
        return backend.capacity > 0 and self._has_all(backend, work)

    def _has_all(self, backend: Backend, work: Work) -> bool:
        known = backend.readiness(work.workflow, work.digest)
        return known is not None and known.readiness == "ready"

    def _gone(self, name: str) -> bool:
        return self._away_s.get(name, -1.0) >= self._after_s

    def _long_unable(self, name: str, work: Work) -> bool:
        return self._unable_s[work].get(name, 0.0) >= self._after_s

    def _reason(self, work: Work, before: list[Backend], found: Tiers) -> str:
        if before:
            return "; ".join(self._why_not(backend, work) for backend in before)
        if any(backend.kind == "cpu" for backend in found[0]):
            return OWN
        return FIRST if work.places is None else ASKED

    def _why_not(self, backend: Backend, work: Work) -> str:
        if backend.capacity <= 0:
            seconds = self._unable_s[work].get(backend.name, 0.0)
            return f"{backend.name} has not answered for {seconds:.0f} s"
        known = backend.readiness(work.workflow, work.digest)
        lacking = known.missing if known else ()
        what = lacking[0].name if lacking else "something that it needs"
        return f"{backend.name} lacks {what}"


def _longer(before: Mapping[str, float], names: Iterable[str], passed: float) -> dict[str, float]:
    """Count on for those of before; what is new among the names counts from now."""
    return {name: before[name] + passed if name in before else 0.0 for name in names}
