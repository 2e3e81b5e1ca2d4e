"""A bucket: who answers, whether it takes our key, and what uploads left behind."""

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final

import httpx

from gateway.doctor.findings import Notes
from gateway.doctor.refusals import Store, code_in, code_of, store_at, words
from gateway.doctor.trial import LIFETIME, Trial, new_key
from gateway.security.signing import Signer
from gateway.settings import Settings
from gateway.storage.base import StorageError
from gateway.storage.s3 import S3Storage
from gateway.storage.stores import InputBuckets, StoreUnusable, storage_of

SKEW_S: Final = 60.0
"""Stores refuse requests from clocks that are 15 minutes off; links end wrongly before."""
LEFT_AFTER: Final = timedelta(hours=1)
"""What began before that and is not done has broken off: the sweep says the same."""
ANSWER_S: Final = 15.0
_NOTHING_THERE: Final = frozenset({"NoSuchKey", "404", "NotFound"})


async def check_bucket(settings: Settings, store: Store, notes: Notes) -> None:
    """Build the store as the gateway does, and look at it."""
    try:
        # a bucket's addresses are signed with its own key: nothing of ours signs here
        storage = storage_of(settings, Signer(b""), "")
    except StoreUnusable as error:
        notes.fail("settings", str(error), "set what is named; docs/storage.md has an example")
        return
    if not isinstance(storage, S3Storage):
        return
    async with (
        httpx.AsyncClient(trust_env=False, timeout=ANSWER_S) as http,
        storage.running(),
    ):
        if not await _knock(http, storage, store, notes):
            return
        trial = Trial(storage, http, notes, store=store)
        try:
            if await trial.direct():
                await trial.signed()
        finally:
            await trial.remove()
        await _unfinished(storage, store, notes)


async def check_input_buckets(settings: Settings, notes: Notes) -> None:
    """See whether files in the further buckets that calls may name can be read."""
    try:
        buckets = InputBuckets.of(settings)
    except StoreUnusable as error:
        notes.fail("settings", str(error), "set what is named; docs/storage.md has an example")
        return
    google = [f"gs://{settings.gcs_bucket_name}"] if settings.gcs_bucket_name else []
    async with httpx.AsyncClient(trust_env=False, timeout=ANSWER_S) as http:
        for address in (*settings.input_buckets, *google):
            link = buckets.link(f"{address.rstrip('/')}/{new_key()}", LIFETIME)
            if link is not None:
                await _readable(http, link, address, store_at(settings, address), notes)


async def _readable(
    http: httpx.AsyncClient, link: str, address: str, store: Store, notes: Notes
) -> None:
    try:
        answer = await http.get(link)
    except httpx.HTTPError as error:
        notes.fail(address, *words(store, code_of(error)))
        return
    code = code_in(answer.content) or str(answer.status_code)
    if code in _NOTHING_THERE:
        notes.ok(address, "calls may name its files, and they can be read")
    elif code == "AccessDenied":
        # one that may read and not list is told so of every file that is not there
        said = "the key may not list it; whether it may read cannot be told without a file"
        notes.warn(address, said, "try one file in a call")
    else:
        notes.fail(address, *words(store, code))


async def _unfinished(storage: S3Storage, store: Store, notes: Notes) -> None:
    try:
        count = await storage.unfinished(datetime.now(UTC) - LEFT_AFTER)
    except StorageError as error:
        said, fix = words(store, code_of(error))
        notes.warn("broken uploads", f"cannot be listed: {said}", fix)
        return
    if count:
        notes.warn(
            "broken uploads",
            f"{count} uploads in parts broke off and take up room",
            "keep a gateway running: its hourly sweep aborts them; or give the bucket a lifecycle "
            "rule for incomplete multipart uploads",
        )
    else:
        notes.ok("broken uploads", "none is left over")


async def _knock(http: httpx.AsyncClient, storage: S3Storage, store: Store, notes: Notes) -> bool:
    """Whether it answers that a file which is not there is not there; asked as strangers ask.

    What a store says itself is plainer than what libraries make of it.
    """
    try:
        answer = await http.get(storage.link(new_key(), LIFETIME))
    except httpx.HTTPError as error:
        notes.fail("reachable", *words(store, code_of(error)))
        return False
    dates = answer.headers.get_list("date")
    check_clock(dates[-1] if dates else "", datetime.now(UTC), notes)
    code = code_in(answer.content) or str(answer.status_code)
    if answer.status_code == HTTPStatus.NOT_FOUND and code in _NOTHING_THERE:
        notes.ok("reachable", f"{store.endpoint} answers for {store.address}")
        return True
    notes.fail("reachable", *words(store, code))
    return False


def check_clock(date: str, now: datetime, notes: Notes) -> None:
    """Compare with the `Date` a store answers with."""
    try:
        ahead_s = (parsedate_to_datetime(date) - now).total_seconds()
    except (ValueError, TypeError):
        # a store that does not say its time
        return
    if abs(ahead_s) < SKEW_S:
        notes.ok("clock", "this machine's agrees with the store's")
        return
    notes.fail(
        "clock",
        f"this machine's is {abs(ahead_s):.0f} s {'behind' if ahead_s > 0 else 'ahead of'} the "
        "store's: signatures are refused or end at the wrong time",
        "set the clock (timedatectl set-ntp true)",
    )
