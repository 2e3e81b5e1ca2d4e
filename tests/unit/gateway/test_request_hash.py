"""What tells requests apart that come with one Idempotency-Key, and what it costs the others."""

import base64
import hashlib
import json
import threading
from typing import Any

import pytest

from gateway import submission
from gateway.inputs import Inputs
from gateway.submission import Origin, request_hash
from tests.support.caller_files import only
from tests.support.reading import data_uri, picture

LONG = "x" * 50_000


async def hashed(route: str = "/api/x", **body: Any) -> str:
    return await request_hash(Origin(caller="a", route=route, body=body))


async def test_what_was_sent_decides_and_not_its_order() -> None:
    one = await hashed(a=1, b={"c": [1, "ä", None]}, image_url=LONG)
    assert await hashed(image_url=LONG, b={"c": [1, "ä", None]}, a=1) == one
    others = [
        await hashed(a=2, b={"c": [1, "ä", None]}, image_url=LONG),
        await hashed(a=1, b={"c": [1, "ä", None]}, image_url=f"{LONG}x"),
        await hashed(a=1, b={"c": [1, "ä", None, LONG]}, image_url=LONG),
        await hashed(a=1, b={"c": [1, "ä", None]}, image_url=hashlib.sha256(b"x").hexdigest()),
        await hashed("/api/y", a=1, b={"c": [1, "ä", None]}, image_url=LONG),
    ]
    assert len({one, *others}) == 6


async def test_a_short_request_has_the_hash_it_always_had() -> None:
    written = json.dumps({"prompt": "a mug", "seed": 7}, separators=(",", ":"))
    assert await hashed(seed=7, prompt="a mug") == (
        hashlib.sha256(f"/api/x\n{written}".encode()).hexdigest()
    )


async def test_lone_surrogates_are_hashed_too() -> None:
    assert await hashed(prompt="\ud800" * 20_000) != await hashed(prompt="\ud801" * 20_000)


async def test_long_files_are_hashed_and_decoded_beside_the_event_loop(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = dict[str, threading.Thread]()

    def noted(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            threads[name] = threading.current_thread()
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(submission, "_hashed", noted("hash", submission._hashed))
    monkeypatch.setattr(base64, "b64decode", noted("decode", base64.b64decode))
    uri = data_uri(picture() + bytes(500_000))
    await hashed(image_url=uri)
    await only(inputs, image_url=uri)
    assert set(threads) == {"hash", "decode"}
    assert threading.main_thread() not in threads.values()
