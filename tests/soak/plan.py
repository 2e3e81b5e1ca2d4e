"""What a soak does, drawn from one seed: jobs, faults, how large the fleet is."""

import random
from dataclasses import dataclass
from typing import Any, Literal

VARIANT = "checkpoint:tiny-sd15.ckpt"
LEASE_S = 4
LOST_AFTER_S = 40
"""Longer than a service takes to start on a busy machine."""
BATCH = 10
"""Jobs that come as one batch."""

Way = Literal["sync", "async", "watch", "cancel", "batch"]
Kind = Literal["gateway", "gpu_server", "simulator", "postgres"]
Action = Literal["kill", "pause", "term"]
What = tuple[Kind, Action]
Name = tuple[Kind, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One job: what is asked for, how, and what is done with it."""

    n: int
    way: Way
    body: dict[str, Any]
    webhook: bool
    cancel_after_s: float
    replayed: bool
    """It is sent once more after its end, under the same key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault: it happens once so many jobs have ended, to one process, for so long.

    `kill` and `term` of PostgreSQL: kill -9 of its first process, and an immediate restart.
    """

    after: int
    kind: Kind
    n: int
    action: Action
    seconds: float

    @property
    def name(self) -> Name:
        """The process it happens to."""
        return self.kind, self.n


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One soak."""

    seed: int
    gateways: int
    gpus: int
    postgres: bool
    works: tuple[Work, ...]
    faults: tuple[Fault, ...]
    lease_s: int
    lost_after_s: int


# one of each that every run must see, then what makes the rest of a long one
_FIRST: list[What] = [
    ("gateway", "kill"),
    ("gateway", "pause"),
    ("gpu_server", "kill"),
    ("postgres", "kill"),
    ("simulator", "kill"),
    ("gateway", "kill"),
    ("gpu_server", "pause"),
    ("postgres", "term"),
    ("gateway", "term"),
    ("gpu_server", "term"),
]
_THEN: list[What] = [
    ("gateway", "kill"),
    ("gateway", "kill"),
    ("gateway", "kill"),
    ("gateway", "kill"),
    ("gateway", "pause"),
    ("gateway", "pause"),
    ("gateway", "term"),
    ("gpu_server", "kill"),
    ("gpu_server", "kill"),
    ("gpu_server", "pause"),
    ("gpu_server", "term"),
    ("postgres", "kill"),
    ("postgres", "term"),
    ("simulator", "kill"),
    ("simulator", "pause"),
]
# seconds a process is stopped, or that nobody starts it again
_LENGTH: dict[What, tuple[float, float]] = {
    # past the lease: the others take its runs over while it is stopped, and it comes back
    ("gateway", "pause"): (1.3 * LEASE_S, 2 * LEASE_S),
}


def draw(
    seed: int, *, jobs: int, faults: int, postgres: bool, gateways: int = 3, gpus: int = 2
) -> Plan:
    """The plan of a seed; the same arguments give the same plan."""
    rng = random.Random(seed)
    deck = [*_FIRST]
    while len(deck) < faults:
        deck += rng.sample(_THEN, len(_THEN))
    if not postgres:
        deck = [each if each[0] != "postgres" else _FIRST[0] for each in deck]
        gateways = 1
    chosen = deck[:faults]
    rng.shuffle(chosen)
    counts: dict[Kind, int] = {
        "gateway": gateways,
        "gpu_server": gpus,
        "simulator": gpus,
        "postgres": 1,
    }
    return Plan(
        seed=seed,
        gateways=gateways,
        gpus=gpus,
        postgres=postgres,
        works=tuple(_work(n, rng) for n in range(jobs)),
        faults=tuple(
            _fault(what, rng, after=int((n + 0.5) * (jobs - 10) / faults), counts=counts)
            for n, what in enumerate(chosen)
        ),
        lease_s=LEASE_S,
        lost_after_s=LOST_AFTER_S,
    )


def _work(n: int, rng: random.Random) -> Work:
    steps = rng.choice([1, 1, 2, 3, 5, 8, 12, 20, 30, 40])
    body: dict[str, Any] = {
        "prompt": f"a lighthouse, number {n}",
        "variant": VARIANT,
        "width": 256,
        "height": 256,
        "num_inference_steps": steps,
        "num_images": rng.choice([1, 1, 1, 2]),
        "seed": rng.randrange(2**40),
    }
    ways: list[Way] = ["sync", "async", "async", "watch", "cancel"]
    return Work(
        n=n,
        way="batch" if n < BATCH else rng.choice(ways),
        body=body,
        webhook=rng.random() < 0.25,
        cancel_after_s=rng.choice([0.0, rng.random(), 3 * rng.random()]),
        replayed=rng.random() < 0.2,
    )


def _fault(what: What, rng: random.Random, *, after: int, counts: dict[Kind, int]) -> Fault:
    kind, action = what
    low, high = _LENGTH.get(what, (1, 4) if action == "pause" else (0.2, 3))
    return Fault(
        after=after,
        kind=kind,
        n=rng.randrange(counts[kind]),
        action=action,
        seconds=round(rng.uniform(low, high), 2),
    )
