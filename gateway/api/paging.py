"""The two parameters of every list."""

from typing import Annotated

from fastapi import Query

PAGE = 20
LONGEST_PAGE = 100

Cursor = Annotated[
    str | None, Query(max_length=200, description="`next_cursor` of the page before.")
]
Limit = Annotated[int, Query(ge=1, le=LONGEST_PAGE, description="Most items on the page.")]
