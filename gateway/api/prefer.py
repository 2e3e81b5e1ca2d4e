"""How long a caller wants to wait: the `Prefer` header (RFC 7240)."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Header

PreferHeader = Annotated[
    str | None,
    Header(
        max_length=1000,
        description="`wait=N`: answer within N seconds, with the result or with the job (at most "
        "`REQUEST_TIMEOUT`). `respond-async`: answer with the job at once.",
        examples=["wait=60", "respond-async"],
    ),
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description="Sent again with the same body it finds the same job instead of making "
        "another; with another body it is refused.",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """Seconds to wait, and what to say in `Preference-Applied`."""

    wait: int
    applied: str | None


def preference(header: str | None, *, default: int, longest: int) -> Preference:
    """Read the header; what it does not say or says wrongly is ignored, as RFC 7240 asks."""
    wanted: dict[str, str] = {}
    for part in (header or "").split(","):
        name, _, value = part.partition(";")[0].partition("=")
        wanted.setdefault(name.strip().lower(), value.strip().strip('"'))
    stated = wanted.get("wait", "")
    if stated.isascii() and stated.isdecimal():
        wait = min(int(stated), longest)
        return Preference(wait=wait, applied=f"wait={wait}")
    if "respond-async" in wanted:
        return Preference(wait=0, applied="respond-async")
    return Preference(wait=default, applied=None)
