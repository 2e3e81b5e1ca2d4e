"""Who may come in: everything needs the key, except what is listed as open."""

from collections.abc import Callable
from urllib.parse import parse_qs

from fastapi.security import HTTPAuthorizationCredentials
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.api.problems import rendered
from gateway.errors import Forbidden, GatewayError, Unauthorized
from gateway.security.api_keys import RequireKey
from gateway.security.signing import Signer

CALLER = "default"
"""The one caller there is until there are several keys."""


class Access:
    """Lets a request pass that carries the key or a signature that fits.

    It stands before the routes, so that a route added tomorrow is closed and no stranger's body is
    ever parsed.
    """

    def __init__(
        self, app: ASGIApp, *, key: RequireKey, signer: Signer, is_open: Callable[[str], bool]
    ) -> None:
        self._app = app
        self._key = key
        self._signer = signer
        self._is_open = is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or self._key.open or self._is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await rendered(refusal, scope["path"])(scope, receive, send)

    def _refusal(self, scope: Scope) -> GatewayError | None:
        credentials = _credentials(Headers(scope=scope).get("authorization", ""))
        if self._key.accepts(credentials):
            return None
        if credentials is not None:
            return Unauthorized("That API key is not known here.")
        query = parse_qs(scope["query_string"].decode("latin-1"))
        expires, signature = query.get("expires"), query.get("signature")
        if expires is None or signature is None:
            return Unauthorized("Send the API key as `Authorization: Bearer <key>`.")
        if self._signer.valid(scope["method"], scope["path"], expires[0], signature[0]):
            return None
        return Forbidden("The link has expired or was altered; read the job again.")


def _credentials(header: str) -> HTTPAuthorizationCredentials | None:
    scheme, _, value = header.partition(" ")
    if scheme.lower() != "bearer" or not value.strip():
        return None
    return HTTPAuthorizationCredentials(scheme=scheme, credentials=value.strip())
