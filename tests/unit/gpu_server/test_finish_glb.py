"""GLB files lose what stands in `asset.extras`; triangles are counted on the way."""

import json
import struct
from typing import Any

import pytest

from gpu_server.finish.facts import Unreadable
from gpu_server.finish.glb import GlbFilter

SECRET = "a prompt nobody else may read"
BINARY = bytes(range(256)) * 40


def glb(document: dict[str, Any], binary: bytes = BINARY) -> bytes:
    front = json.dumps(document).encode()
    front += b" " * (-len(front) % 4)
    chunks = struct.pack("<I4s", len(front), b"JSON") + front
    chunks += struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def document(**asset: Any) -> dict[str, Any]:
    return {
        "asset": {"version": "2.0", "generator": "ComfyUI", **asset},
        "accessors": [{"count": 24, "max": [0.1, 1e-7, 3]}, {"count": 36}, {"count": 7}],
        "meshes": [
            {"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]},
            {
                "primitives": [
                    {"attributes": {"POSITION": 0}},
                    {"attributes": {"POSITION": 0}, "indices": 2, "mode": 5},
                    {"attributes": {"POSITION": 0}, "indices": 2, "mode": 6},
                    {"attributes": {"POSITION": 0}, "mode": 1},
                ]
            },
        ],
        "extras": {"size": "large"},
    }


def passed(content: bytes, size: int = 1 << 20, *, keep: bool = False) -> tuple[bytes, GlbFilter]:
    through = GlbFilter(keep=keep)
    out = b"".join(through.feed(content[a : a + size]) for a in range(0, len(content), size))
    out += through.end()
    assert len(out) == len(content) - through.removed
    return out, through


def parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    magic, version, length = struct.unpack("<4sII", content[:12])
    assert (magic, version, length) == (b"glTF", 2, len(content))
    size, kind = struct.unpack("<I4s", content[12:20])
    assert (kind, size % 4) == (b"JSON", 0)
    return json.loads(content[20 : 20 + size]), content[20 + size :]


@pytest.mark.parametrize("size", [1, 7, 64, 1 << 20])
def test_the_extras_go_and_the_meshes_stay(size: int) -> None:
    before = glb(document(extras={"prompt": SECRET, "workflow": {"a": [SECRET]}}))
    after, _ = passed(before, size)
    assert SECRET.encode() not in after
    told, binary = parts(after)
    assert told == document()
    assert binary == parts(before)[1]


def test_one_without_extras_is_not_touched() -> None:
    assert passed(glb(document()))[0] == glb(document())


def test_kept_it_is_not_touched() -> None:
    before = glb(document(extras={"prompt": SECRET}))
    assert passed(before, keep=True)[0] == before


def test_the_simulators_marks_stay() -> None:
    simulated = {"generator": "SIMULATED: by a test"}
    after, _ = passed(glb(document(**simulated, extras={"prompt": SECRET, "engine": "simulator"})))
    asset = parts(after)[0]["asset"]
    assert asset == {"version": "2.0", **simulated, "extras": {"engine": "simulator"}}


@pytest.mark.parametrize("keep", [False, True])
def test_triangles_are_counted_in_lists_strips_and_fans(*, keep: bool) -> None:
    # 36 corners, 24 corners without indices, a strip and a fan of 7; lines are no faces
    assert passed(glb(document()), keep=keep)[1].facts.faces == 12 + 8 + 5 + 5


@pytest.mark.parametrize(
    "content",
    [
        b"glTF",
        glb(document())[:200],
        b"glTF" + bytes(100),
        struct.pack("<4sIII4s", b"glTF", 2, 30, 10, b"JSON") + b"not JSON..",
        glb({"asset": None}),
        struct.pack("<4sIII4s", b"glTF", 2, 30, 2**31, b"JSON") + bytes(50),
    ],
)
def test_what_is_no_glb_is_said_to_be_none(content: bytes) -> None:
    with pytest.raises(Unreadable):
        passed(content)
    assert passed(content, 5, keep=True)[0] == content


def test_faces_are_not_told_where_they_cannot_be_counted() -> None:
    assert passed(glb({**document(), "accessors": []}))[1].facts.faces is None


def test_half_a_surrogate_pair_stays_as_it_is() -> None:
    before = glb({**document(extras={"prompt": SECRET}), "nodes": [{"name": "a\ud800ü"}]})
    after = parts(passed(before)[0])[0]
    assert after == {**document(), "nodes": [{"name": "a\ud800ü"}]}


@pytest.mark.parametrize("count", ["1e999", "3e30", "-900", "NaN", str(2**31 * 3)])
@pytest.mark.parametrize("keep", [False, True])
def test_more_faces_than_a_file_has_are_not_told(count: str, *, keep: bool) -> None:
    content = glb(document()).replace(b"36", count.encode().ljust(2))
    size = struct.unpack("<I", content[12:16])[0] + len(content) - len(glb(document()))
    content = struct.pack("<4sIII", b"glTF", 2, len(content), size) + content[16:]
    after, through = passed(content, keep=keep)
    assert (after, through.facts.faces) == (content, None)


def wrong_length() -> bytes:
    content = glb(document(extras={"prompt": SECRET * 50}))
    return content[:8] + struct.pack("<I", 12) + content[12:]


@pytest.mark.parametrize(
    "content",
    [
        wrong_length(),
        glb({**document(extras={"prompt": SECRET}), "nodes": [{"scale": [float("inf")]}]}),
    ],
    ids=["a wrong length", "a number no JSON has"],
)
def test_one_that_cannot_be_made_anew_is_unreadable_and_passes_if_that_is_not_needed(
    content: bytes,
) -> None:
    with pytest.raises(Unreadable):
        passed(content)
    assert passed(content, 9, keep=True)[0] == content
