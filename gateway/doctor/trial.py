"""Two small files put into a store, used in every way, and removed."""

import asyncio
import base64
import hashlib
import secrets
import uuid
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Final, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import httpx

from gateway.doctor.findings import Notes
from gateway.doctor.refusals import Store, code_in, code_of, words
from gateway.storage.base import NoRoom, Storage, StorageError

LIFETIME: Final = timedelta(minutes=10)
SIZE: Final = 64 * 1024
PART: Final = (1000, 2024)
TYPE: Final = "application/octet-stream"
_REMOVE_S: Final = 20.0
_MD5_UNKNOWN: Final = frozenset({"BadDigest", "InvalidDigest", "NotImplemented", "501"})
T = TypeVar("T")


class Trial:
    """One go at a store with two small files of its own."""

    def __init__(
        self, storage: Storage, http: httpx.AsyncClient, notes: Notes, *, store: Store | None
    ) -> None:
        self._storage = storage
        self._http = http
        self._notes = notes
        self._store = store
        self._body = secrets.token_bytes(SIZE)
        self.key, self._slot_key = new_key(), new_key()

    async def direct(self) -> bool:
        """Use it as the gateway does; whether a file lies there now."""
        put = await self._tried("put", self._storage.write(self.key, TYPE, self._chunks()))
        if put is None:
            return False
        self._notes.ok("put", f"{SIZE // 1024} KiB as {self._storage.address(self.key)}")
        stat = await self._tried("head", self._storage.stat(self.key))
        if stat is not None and stat.bytes == SIZE:
            self._notes.ok("head", f"says {stat.bytes} bytes")
        elif self._notes.findings[-1].check != "head":
            self._wrong("head", "does not know the file that was just put there")
        part = await self._tried("read", self._part())
        if part is not None and part == self._body[slice(*PART)]:
            self._notes.ok("read", f"a range of {len(part)} bytes is what was put")
        elif part is not None:
            self._wrong("read", "a range gives other bytes than were put there")
        return True

    async def signed(self) -> None:
        """Use it as those do who have an address and no key."""
        link = self._storage.link(self.key, LIFETIME)
        answer = await self._asked("signed GET", "GET", link)
        if answer is not None and not answer.is_success:
            self._refused("signed GET", answer)
        elif answer is not None and answer.content == self._body:
            self._notes.ok("signed GET", "gives the file")
        elif answer is not None:
            self._wrong("signed GET", "gives other bytes than were put there")
        forged = await self._asked("wrong signature", "GET", _altered(link))
        if forged is not None and forged.is_success:
            self._notes.fail(
                "wrong signature",
                "is taken: whoever knows a key reads the file",
                "use a store that checks signatures, and a bucket that is not public",
            )
        elif forged is not None:
            self._notes.ok("wrong signature", f"is refused ({forged.status_code})")
        await self._slot()

    async def _slot(self) -> None:
        address = self._storage.slot(self._slot_key, LIFETIME)
        headers = {"Content-Type": TYPE}
        if self._storage.wants_md5:
            headers["Content-MD5"] = _md5(self._body)
        answer = await self._asked("signed PUT", "PUT", address, headers=headers)
        if answer is None:
            return
        # a gateway's own slots take files of jobs alone, which it says after the signature
        if answer.status_code == HTTPStatus.CONFLICT and not self._storage.is_remote:
            self._notes.ok("signed PUT", "the signature is taken (files of jobs alone go in)")
        elif answer.is_success:
            with_md5 = " with its Content-MD5" if self._storage.wants_md5 else ""
            self._notes.ok("signed PUT", f"takes a file{with_md5}")
        else:
            self._refused("signed PUT", answer)

    async def remove(self) -> None:
        """Remove whatever was put there, and see that it is gone."""
        left: list[str] = []
        for key in (self.key, self._slot_key):
            with suppress(StorageError, TimeoutError):
                async with asyncio.timeout(_REMOVE_S):
                    await self._storage.delete(key)
                    if await self._storage.stat(key) is None:
                        continue
            left.append(key)
        if not left:
            self._notes.ok("delete", "nothing is left of it")
        elif any(each.check == "put" and each.verdict == "ok" for each in self._notes.findings):
            shown = " and ".join(map(self._storage.address, left))
            _, fix = words(self._store, "AccessDenied") if self._store else ("", "see the folder")
            self._notes.fail("delete", f"{shown} could not be removed", fix)

    async def _part(self) -> bytes:
        return b"".join([piece async for piece in self._storage.read(self.key, *PART)])

    async def _chunks(self) -> AsyncIterator[bytes]:
        yield self._body

    async def _tried(self, check: str, work: Awaitable[T]) -> T | None:
        try:
            return await work
        except NoRoom:
            self._notes.fail(check, "the store is full", "remove files, or give it more room")
        except (StorageError, KeyError) as error:
            if self._store is None:
                self._notes.fail(check, str(error), "see the disk that STORAGE_URL names")
            else:
                self._notes.fail(check, *words(self._store, code_of(error)))
        return None

    async def _asked(
        self, check: str, method: str, url: str, *, headers: dict[str, str] | None = None
    ) -> httpx.Response | None:
        body = self._body if method == "PUT" else None
        try:
            return await self._http.request(method, url, content=body, headers=headers)
        except httpx.HTTPError as error:
            if self._store is None:
                said = f"the gateway broke off ({type(error).__name__})"
                self._notes.fail(check, said, "see logs/backend.log")
            else:
                self._notes.fail(check, *words(self._store, code_of(error)))
        return None

    def _refused(self, check: str, answer: httpx.Response) -> None:
        if self._store is not None:
            code = code_in(answer.content) or str(answer.status_code)
            said, fix = words(self._store, code)
            if check == "signed PUT" and self._storage.wants_md5 and code in _MD5_UNKNOWN:
                fix = "set STORAGE_CONTENT_MD5=false: this store does not take Content-MD5"
            self._notes.fail(check, f"HTTP {answer.status_code}: {said}", fix)
            return
        self._notes.fail(
            check,
            f"the gateway that runs answers {answer.status_code}: it has another folder or secret",
            "let it and this command have the same WORKSPACE, STORAGE_URL and data/secret",
        )

    def _wrong(self, check: str, said: str) -> None:
        self._notes.fail(check, said, "see what stands between here and the store (cache, proxy)")


def new_key() -> str:
    """A key of its own for every file; the sweep removes what a killed doctor leaves."""
    return f"doctor/{datetime.now(UTC):%Y/%m/%d}/{uuid.uuid4()}/{secrets.token_hex(16)}.bin"


def _altered(link: str) -> str:
    """The same address with another signature of the same form."""
    parts = urlsplit(link)
    query = [
        (name, _other(value) if name.lower().endswith("signature") else value)
        for name, value in parse_qsl(parts.query)
    ]
    return urlunsplit(parts._replace(query=urlencode(query)))


def _other(signature: str) -> str:
    first = "b" if signature.startswith("a") else "a"
    return first + signature[1:]


def _md5(body: bytes) -> str:
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
