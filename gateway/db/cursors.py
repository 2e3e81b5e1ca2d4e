"""Where a page of a list ended, as text that only this API reads."""

import base64
import binascii
import uuid

from gateway.errors import FieldError, InvalidParameters

_LATEST = 2**63 - 1
_NAMED = "name."


def cursor_after(created_at: int, row_id: str) -> str:
    """Point behind that row of a list in order of creation."""
    return base64.urlsafe_b64encode(f"{created_at}.{row_id}".encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> tuple[int, str]:
    """When the row was created, and its id. Raises InvalidParameters when it is none of ours."""
    try:
        plain = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        created_at, _, row_id = plain.partition(".")
        place = int(created_at), str(uuid.UUID(row_id))
    except (ValueError, binascii.Error):
        raise _not_ours() from None
    # a larger number than the database holds would be an error of its own
    if not 0 <= place[0] <= _LATEST:
        raise _not_ours()
    return place


def cursor_behind(name: str) -> str:
    """Point behind that row of a list in order of names."""
    return base64.urlsafe_b64encode(f"{_NAMED}{name}".encode()).decode().rstrip("=")


def read_name(cursor: str) -> str:
    """Name the row a page ended with. Raises InvalidParameters when the cursor is none of ours."""
    try:
        plain = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
    except (ValueError, binascii.Error):
        raise _not_ours() from None
    if not plain.startswith(_NAMED):
        raise _not_ours()
    return plain.removeprefix(_NAMED)


def _not_ours() -> InvalidParameters:
    wrong = FieldError(
        field="cursor",
        code="invalid_cursor",
        message="use the next_cursor of an earlier answer, or leave it out to begin anew",
    )
    return InvalidParameters([wrong])
