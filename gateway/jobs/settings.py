"""How patient the job engine is, and where it lets work go."""

from dataclasses import dataclass, field
from datetime import timedelta

from gateway.choices import Choices


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSettings:
    """Every limit, interval and order the rules of jobs know; times in seconds."""

    max_attempts: int = 3
    """Transient failures that end a job."""
    max_deaths: int = 3
    """Unclean deaths of a process working on a job that end it as poison."""
    retry_backoff_s: float = 2
    """Wait before the second attempt; doubles with each further one."""
    retry_backoff_max_s: float = 60
    backend_lost_after_s: float = 120
    """A backend unreachable for this long loses its runs to another attempt."""
    choices: Choices = field(default_factory=Choices)
    """Where work goes, by tool."""
    fallback_after_s: float = 15
    """A backend must have been away for this long before work goes to the next choice."""
    backend_full_pause_s: float = 1
    """A backend that refused a run for lack of room is granted none for this long."""
    reconnect_s: float = 0.25
    """First wait before an unreachable backend is tried again; doubles up to `reconnect_max_s`."""
    reconnect_max_s: float = 5
    window: int = 2000
    """Most open runs one gateway owns; the others wait without an owner."""
    lease_s: float = 15
    """A gateway silent for this long is taken for dead."""
    progress_write_s: float = 1
    """Shortest time between two stored progress values of a run."""
    poll_s: float = 2
    """How often a waiter looks by itself, should a wake-up be lost."""
    quiet_poll_s: float = 15
    """The same while every commit is heard of: only a bug of ours could lose a wake-up then."""
    backend_watch_s: float = 0.5
    """How often placement looks whether a backend's capacity or readiness changed."""
    sweep_s: float = 5
    """How often placement, cancels and deadlines are gone over without a cause."""
    max_running_per_caller: int = 0
    """Most runs of one caller under way at once, over all gateways; 0 = no such limit."""
    warm_for_s: float = 30
    """A run that waited longer competes as if its models were loaded everywhere."""
    priority_step_s: float = 300
    """Each such wait raises a run's priority by one."""
    slot_lifetime: timedelta = timedelta(hours=24)
    """Least time an output slot can be written to; a run's deadline extends it."""

    @property
    def per_caller(self) -> int:
        """Most open runs of one caller that one gateway owns."""
        return max(1, self.window // 4)
