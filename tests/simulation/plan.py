"""What one seed stands for: the world's size, its workload and which faults may strike."""

import random
from dataclasses import dataclass, field
from typing import Literal

FAULTS = (
    "crash",
    "crash_loop",
    "pause",
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
    "database_away",
    "lost_commits",
    "cancel",
    "delete",
    "hang_up",
    "deadline",
)
"""Kinds of faults; each seed draws its own few, so that rare combinations come up at all."""

THEMES = (
    ("late_answers", "full"),
    ("late_answers", "full", "partition"),
    ("late_answers", "pause", "duplicates"),
    ("crash", "pause", "stop"),
    ("crash", "lost_commits"),
    ("pause", "database_away"),
    ("cancel", "late_answers", "crash"),
    ("delete", "cancel", "pause"),
    ("engine_death", "service_restart", "lost_answers"),
)
"""Faults that do their worst together: a share of the seeds draws one of these."""

PAID_FAULTS = frozenset({"silence"})
"""Faults of a serverless backend alone."""

DRIVER_FAULTS = frozenset({"database_away", "lost_commits"})
"""Faults only the direct driver brings about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything drawn before the world starts."""

    seed: int
    scheduler: Literal["fifo", "random"]
    driver: Literal["direct", "aiosqlite"]
    faults: frozenset[str]
    replicas: int
    """Gateways on the one database."""
    notify: bool
    """A commit tells the other gateways, as long as no message is lost."""
    jobs: int
    callers: int
    capacities: tuple[int, ...]
    """Runs each backend takes at once."""
    burst: bool
    """All jobs are submitted at about the same moment."""
    span_s: float
    """Jobs are submitted and faults strike within this time."""
    deadline_s: float
    crashes: tuple[tuple[int, ...], ...]
    """By gateway, the turn at which each of its incarnations dies; later ones live."""
    pauses: tuple[tuple[tuple[int, float], ...], ...]
    """By gateway and incarnation, the turn at which it is stopped, and for how long."""
    slow_database: float
    billed: int = 0
    """Runs a serverless backend takes at once, behind the others; 0: there is none."""
    settings: dict[str, float] = field(default_factory=dict[str, float])

    def has(self, fault: str) -> bool:
        """Whether that kind of fault may strike."""
        return fault in self.faults


def draw(seed: int) -> Plan:
    """The plan a seed stands for."""
    rng = random.Random(f"plan {seed}")
    big = rng.random() < 0.05
    # the whole of SQLAlchemy's async machinery costs ten times as much: a few of the seeds. It is
    # SQLite's own way, which serves one gateway
    driver: Literal["direct", "aiosqlite"] = "aiosqlite" if seed % 100 == 0 else "direct"
    replicas = rng.choice((1, 2, 2, 2, 3)) if driver == "direct" else 1
    kinds = rng.choice((3, 5, 8, 12)) if big else rng.choice((0, 1, 1, 2, 2, 3, 3))
    faults = frozenset(rng.choice(THEMES) if rng.random() < 0.3 else rng.sample(FAULTS, kinds))
    if driver != "direct":
        faults -= DRIVER_FAULTS
    # drawn apart: worlds without such a backend stay as they are
    paid = random.Random(f"billed {seed}")
    billed = paid.choice((0, 0, 0, 1, 2))
    if billed and paid.random() < 0.5:
        faults |= PAID_FAULTS
    lease_s = rng.choice((6, 15) if big else (6, 6, 9))
    return Plan(
        seed=seed,
        scheduler=rng.choice(("fifo", "random", "random")),
        driver=driver,
        faults=faults,
        replicas=replicas,
        notify=rng.random() < 0.5,
        jobs=rng.choice((3, 5, 8)) if big else rng.choice((1, 1, 2, 2, 3)),
        callers=rng.randint(1, 3),
        capacities=tuple(rng.randint(1, 2) for _ in range(rng.choice((1, 2, 2, 3)))),
        span_s=rng.choice((3, 10, 30)) if big else rng.choice((0.5, 3, 8)),
        burst=rng.random() < 0.3,
        deadline_s=90 if big else 20 if "hang" in faults else 90,
        crashes=tuple(_crashes(rng, faults) for _ in range(replicas)),
        pauses=tuple(_pauses(rng, faults, lease_s) for _ in range(replicas)),
        slow_database=rng.choice((0, 0.1, 0.5)),
        billed=billed,
        settings={
            "backend_lost_after_s": rng.choice((8, 30)) if big else 8,
            "lease_s": lease_s,
            "backend_watch_s": rng.choice((0.5, 2, 2)),
            "fallback_after_s": paid.choice((0, 3, 15)),
        },
    )


def _crashes(rng: random.Random, faults: frozenset[str]) -> tuple[int, ...]:
    crashes: list[int] = []
    if "crash" in faults:
        crashes = [_turn(rng, 10, 1000) for _ in range(rng.randint(0, 2))]
    if "crash_loop" in faults and rng.random() < 0.5:
        crashes += [_turn(rng, 1, 300) for _ in range(rng.randint(2, 5))]
    return tuple(crashes)


def _pauses(
    rng: random.Random, faults: frozenset[str], lease_s: float
) -> tuple[tuple[int, float], ...]:
    if "pause" not in faults:
        return ()
    return tuple(
        (_turn(rng, 10, 800), rng.choice((0.5, 1.2, 1.2, 2)) * lease_s)
        for _ in range(rng.randint(0, 2))
    )


def _turn(rng: random.Random, low: int, high: int) -> int:
    """Early turns are as likely as late ones on a logarithmic scale."""
    return int(low * (high / low) ** rng.random())
