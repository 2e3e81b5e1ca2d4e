"""Whether a request carries the key. Decides only: it reads nothing and looks nothing up."""

import hmac
from typing import Annotated

from fastapi import Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from gateway.errors import Unauthorized

BEARER = HTTPBearer(
    scheme_name="ApiKey",
    bearerFormat="opaque",
    description="The key in `GATEWAY_API_KEY`, sent as `Authorization: Bearer <key>`.",
    auto_error=False,
)

Credentials = Annotated[HTTPAuthorizationCredentials | None, Security(BEARER)]


class RequireKey:
    """FastAPI dependency: lets a request pass that carries the key, or every one if none is set."""

    def __init__(self, key: str | None) -> None:
        self._key = key.encode() if key else None

    @property
    def open(self) -> bool:
        """No key is set: everybody may call."""
        return self._key is None

    def accepts(self, credentials: HTTPAuthorizationCredentials | None) -> bool:
        """Whether these credentials open the API."""
        if self._key is None:
            return True
        if credentials is None:
            return False
        presented = credentials.credentials.encode(errors="replace")
        return hmac.compare_digest(self._key, presented)

    async def __call__(self, credentials: Credentials) -> None:
        """Raise Unauthorized unless the request may pass."""
        if self.accepts(credentials):
            return
        if credentials is None:
            raise Unauthorized("Send the API key as `Authorization: Bearer <key>`.")
        raise Unauthorized("That API key is not known here.")
