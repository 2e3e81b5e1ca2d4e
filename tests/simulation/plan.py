"""What one seed stands for: the world's size, its workload and which faults may strike."""

import random
from dataclasses import dataclass, field
from typing import Literal

FAULTS = (
    "crash",
    "crash_loop",
    "stop",
    "freeze",
    "zombie",
    "partition",
    "late_answers",
    "lost_answers",
    "duplicates",
    "service_restart",
    "engine_death",
    "full",
    "transient",
    "fatal",
    "hang",
    "bad_files",
    "storage_errors",
    "clock_jump",
    "disk_stall",
    "cancel",
    "delete",
    "hang_up",
    "deadline",
)
"""Kinds of faults; each seed draws its own subset, so that rare combinations come up at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything drawn before the world starts."""

    seed: int
    scheduler: str
    driver: Literal["direct", "aiosqlite"]
    faults: frozenset[str]
    jobs: int
    callers: int
    capacities: tuple[int, ...]
    """Runs each backend takes at once."""
    span_s: float
    """Jobs are submitted and faults strike within this time."""
    crashes: tuple[int, ...]
    """Turn at which each incarnation of the gateway dies; later ones live."""
    slow_database: float
    settings: dict[str, float] = field(default_factory=dict[str, float])

    def has(self, fault: str) -> bool:
        """Whether that kind of fault may strike."""
        return fault in self.faults


def draw(seed: int) -> Plan:
    """The plan a seed stands for."""
    rng = random.Random(f"plan {seed}")
    share = rng.choice((0, 0.15, 0.3, 0.3, 0.5))
    faults = frozenset(fault for fault in FAULTS if rng.random() < share)
    crashes: list[int] = []
    if "crash" in faults:
        crashes = [_turn(rng, 20, 2000) for _ in range(rng.randint(1, 3))]
    if "crash_loop" in faults:
        crashes += [_turn(rng, 1, 400) for _ in range(rng.randint(2, 5))]
    return Plan(
        seed=seed,
        scheduler=rng.choice(("fifo", "random", "random")),
        # the whole of SQLAlchemy's async machinery costs three times as much: a share of the seeds
        driver="aiosqlite" if seed % 10 == 0 else "direct",
        faults=faults,
        jobs=rng.choice((1, 1, 2, 2, 3, 5)),
        callers=rng.randint(1, 3),
        capacities=tuple(rng.randint(1, 2) for _ in range(rng.choice((1, 1, 2)))),
        span_s=rng.choice((0.3, 3, 10, 30)),
        crashes=tuple(crashes),
        slow_database=rng.choice((0, 0.1, 0.5)),
        settings={"backend_lost_after_s": rng.choice((8, 30))},
    )


def _turn(rng: random.Random, low: int, high: int) -> int:
    """Early turns are as likely as late ones on a logarithmic scale."""
    return int(low * (high / low) ** rng.random())
