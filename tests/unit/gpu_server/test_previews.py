"""Previews: ComfyUI's frames read, and told to those alone who asked."""

import asyncio
import base64
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_server import run as run_module
from gpu_server.comfy.preview import MAX_BYTES, Picture, parse
from gpu_server.protocol import Event, RunRequest, WorkflowRef
from gpu_server.run import Run

JPEG = b"\xff\xd8\xff\xe0 a picture"


def plain(data: bytes = JPEG, kind: int = 1) -> bytes:
    return struct.pack(">II", 1, kind) + data


def described(data: bytes = JPEG, **changes: object) -> bytes:
    metadata = {"prompt_id": "r", "node_id": "3", "image_type": "image/png"} | changes
    encoded = json.dumps(metadata).encode()
    return struct.pack(">II", 4, len(encoded)) + encoded + data


def test_a_frame_without_metadata_is_of_whatever_runs() -> None:
    assert parse(plain()) == Picture(run_id=None, media_type="image/jpeg", data=JPEG)
    assert parse(plain(kind=2)) == Picture(run_id=None, media_type="image/png", data=JPEG)


def test_a_frame_with_metadata_names_its_run() -> None:
    assert parse(described()) == Picture(run_id="r", media_type="image/png", data=JPEG)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x00\x00\x00\x01",
        plain(b""),
        plain(kind=9),
        plain(b"x" * (MAX_BYTES + 1)),
        struct.pack(">II", 3, 1) + b"3text",
        described(image_type="image/tiff"),
        described(image_type=["image/png"]),
        struct.pack(">II", 4, 2) + b"[]" + JPEG,
        struct.pack(">II", 4, 4_000_000_000) + b"{}",
        struct.pack(">II", 4, 2) + b"\xff\xfe",
    ],
)
def test_what_is_no_picture_or_too_large_is_passed_over(frame: bytes) -> None:
    assert parse(frame) is None


@given(st.binary(max_size=100))
def test_no_frame_whatsoever_raises(frame: bytes) -> None:
    for event in (b"", struct.pack(">I", 1), struct.pack(">I", 4)):
        picture = parse(event + frame)
        assert picture is None or picture.data


def idle_run() -> Run:
    return Run("r", RunRequest(workflow=WorkflowRef(name="x", digest="0" * 64)), workflow=None)


def picture_of(event: Event | None) -> bytes | None:
    assert event is not None
    assert event.type == "preview"
    assert event.preview is not None
    return base64.b64decode(event.preview.data)


async def test_previews_reach_only_those_who_asked_and_are_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run_module, "PREVIEW_EVERY_S", 0)
    run = idle_run()
    run.pictured("image/jpeg", b"before anybody looked")
    viewer = run.events(heartbeat_s=60, previews=True)
    other = run.events(heartbeat_s=0.001)
    for events in (viewer, other):
        first = await anext(events)
        assert first is not None
        assert first.type == "progress"
    run.pictured("image/jpeg", b"overtaken")
    run.pictured("image/jpeg", b"latest")
    assert picture_of(await anext(viewer)) == b"latest"
    assert await anext(other) is None
    await viewer.aclose()
    later = run.events(heartbeat_s=0.001, previews=True)
    await anext(later)
    assert await anext(later) is None
    for events in (other, later):
        await events.aclose()


async def test_previews_keep_their_distance_while_everything_else_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run_module, "PREVIEW_EVERY_S", 1000)
    run = idle_run()
    events = run.events(heartbeat_s=60, previews=True)
    await anext(events)
    run.pictured("image/jpeg", b"first")
    assert picture_of(await anext(events)) == b"first"
    run.pictured("image/jpeg", b"too soon")
    following = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0.01)
    assert not following.done()
    run.end(run.decide("failed"))
    last = await following
    assert last is not None
    assert last.type == "failed"
    await events.aclose()


def test_the_largest_picture_makes_an_event_below_100_kb() -> None:
    run = idle_run()
    run._viewers = 1
    run.pictured("image/jpeg", b"x" * MAX_BYTES)
    assert len(Event(type="preview", preview=run._preview).model_dump_json()) < 100_000
