"""Whatever is sent, the answer is a result or a problem, never a 500."""

import asyncio
import json
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.gateway import Gateway, gateway

FIELDS = [
    "prompt",
    "variant",
    "base_model",
    "model_id",
    "loras",
    "lora_scale",
    "width",
    "height",
    "seed",
    "guidance_scale",
    "negative_prompt",
    "num_images",
    "num_inference_steps",
    "name",
    "scale",
    "mode",
    "tool",
    "items",
    "extra_params",
    "style",
]
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=40)
    | st.sampled_from(["flux1-dev", "checkpoint:tiny.safetensors", "z-image-turbo", "free"])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=10), inner, max_size=6)
    ),
    max_leaves=12,
)
bodies = st.dictionaries(st.sampled_from(FIELDS), values, max_size=8)
quick = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class World:
    """A gateway in a loop of its own: Hypothesis calls tests without one."""

    def __init__(self, loop: asyncio.Runner, served: Gateway) -> None:
        self._loop = loop
        self._served = served

    def post(self, path: str, **kwargs: Any) -> Any:
        """Call it."""
        return self._loop.run(self._served.http.post(path, **kwargs))

    def get(self, path: str, **kwargs: Any) -> Any:
        """Call it."""
        return self._loop.run(self._served.http.get(path, **kwargs))


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as loop:
        stack = AsyncExitStack()
        served = loop.run(stack.enter_async_context(gateway(Path(folder))))
        yield World(loop, served)
        loop.run(stack.aclose())


def check(answer: Any) -> None:
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["code"]
        assert len(answer.content) < 20_000


@quick
@given(
    body=bodies,
    path=st.sampled_from(["/api/generate/async", "/generate", "/api/models", "/api/batches"]),
)
def test_any_json_body_gets_an_answer(world: World, body: dict[str, Any], path: str) -> None:
    headers = {"Content-Type": "application/json"}
    check(world.post(path, content=json.dumps(body), headers=headers))


@quick
@given(content=st.binary(max_size=200))
def test_any_bytes_get_an_answer(world: World, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    check(world.post("/api/generate/async", content=content, headers=headers))


@quick
@given(
    part=st.text(max_size=60),
    prefix=st.sampled_from(
        ["/api/generate/", "/api/jobs/", "/api/models/", "/generate/", "/api/images/", "/api/"]
    ),
)
def test_any_path_gets_an_answer(world: World, part: str, prefix: str) -> None:
    check(world.get(prefix + quote(part, safe="", errors="replace")))


@quick
@given(
    params=st.dictionaries(
        st.sampled_from(["tool", "status", "since", "cursor", "limit"]),
        st.text(max_size=40),
        max_size=5,
    )
)
def test_any_query_gets_an_answer(world: World, params: dict[str, str]) -> None:
    check(world.get("/api/jobs", params=params))


@quick
@given(
    header=st.sampled_from(["Prefer", "Idempotency-Key", "Last-Event-ID", "X-Request-Id"]),
    value=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=300),
)
def test_any_header_gets_an_answer(world: World, header: str, value: str) -> None:
    body = {"prompt": "a", "width": 256, "height": 256}
    check(world.post("/api/generate/async", json=body, headers={header: value.strip()}))
