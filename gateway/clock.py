"""The wall clock, as something that can be replaced."""

from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Where times that are stored or compared with stored ones come from."""

    def now(self) -> datetime:
        """The present time, in UTC."""
        ...


class SystemClock:
    """This machine's clock."""

    def now(self) -> datetime:
        """The present time, in UTC."""
        return datetime.now(UTC)
