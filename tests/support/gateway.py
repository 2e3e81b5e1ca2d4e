"""The gateway's app over a real database and storage, with a backend that does what a test says."""

import asyncio
import functools
import hashlib
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from fastapi import FastAPI
from pydantic import JsonValue, SecretStr

from gateway.api.context import Context
from gateway.backends.base import (
    Kind,
    Order,
    Progressed,
    Readiness,
    RunFailed,
    WorkflowReadiness,
)
from gateway.db import migrate
from gateway.job import Produced
from gateway.main import create_app
from gateway.operations import RESCALE
from gateway.runtime import build
from gateway.settings import Settings
from gateway.storage.base import Storage
from gateway.storage.local import SLOTS_PATH
from gpu_server.protocol import Failure, Health, Missing, OutputFile

KEY = "the-key-of-this-test"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20
MISSING = Missing(
    kind="model",
    name="flux1-dev.safetensors",
    directory="diffusion_models",
    url="https://example.com/flux1-dev.safetensors",
    bytes=23_800_000_000,
    license="FLUX.1 [dev] Non-Commercial License",
)
_BOX = {"x": 1.0, "y": 1.0, "z": 1.0}
MEASURED: dict[str, dict[str, JsonValue]] = {
    RESCALE: {"unit": "m"}
    | {
        f"extents_{when}{unit}": dict[str, JsonValue](_BOX)
        for when in ("before", "after")
        for unit in ("", "_in_unit")
    }
}
"""What the gateway's own operations report of a mesh, by their names."""
SMALL = {"prompt": "a mug", "width": 256, "height": 256, "num_inference_steps": 2}


@dataclass(kw_only=True)
class ScriptedBackend:
    """Delivers the same few bytes for every run, unless told otherwise."""

    name: str = "scripted"
    kind: Kind = "gpu"
    billed: bool = False
    capacity: int = 4
    engine: str | None = "simulator"
    installed: Mapping[str, frozenset[str]] | None = field(
        default_factory=lambda: {
            "loras": frozenset({"style.safetensors", "ink.safetensors"}),
            "checkpoints": frozenset({"tiny.safetensors"}),
        }
    )
    health: Health | None = None
    states: dict[str, Readiness] = field(default_factory=dict[str, Readiness])
    fails: Failure | None = None
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    """A run ends once this is set; it is from the start."""
    storage: Storage | None = None
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once a run was started."""
    orders: list[Order] = field(default_factory=list[Order])
    cancelled: list[str] = field(default_factory=list[str])

    def readiness(self, workflow: str, digest: str) -> WorkflowReadiness:
        del digest
        state = self.states.get(workflow, "ready")
        return WorkflowReadiness(readiness=state, missing=(MISSING,) if state == "missing" else ())

    async def start(self, order: Order) -> str:
        self.orders.append(order)
        self.begun.set()
        return order.run_id

    async def renew(self, order: Order) -> None:
        self.orders = [order if o.run_id == order.run_id else o for o in self.orders]

    async def follow(self, run_id: str, reference: str) -> AsyncIterator[Progressed | Produced]:
        del reference
        order = next(o for o in self.orders if o.run_id == run_id)
        yield Progressed(fraction=0.5, node="9", step=1, steps=2)
        await self.gate.wait()
        if self.fails is not None:
            raise RunFailed(self.fails, executed=True)
        assert self.storage is not None
        outputs: list[OutputFile] = []
        for slot in order.slots:
            path = urlsplit(slot.url).path
            key = self.storage.key_of(slot.url) or path.removeprefix(SLOTS_PATH)
            await self.storage.write(key, "image/png", _chunks())
            digest = hashlib.sha256(PNG).hexdigest()
            outputs.append(
                OutputFile(
                    slot=slot.name,
                    media_type="image/png",
                    bytes=len(PNG),
                    sha256=digest,
                    width=256,
                    height=256,
                )
            )
        yield Produced(
            outputs=tuple(outputs),
            params={**order.call.params, **MEASURED.get(order.call.workflow, {})},
            engine="simulator",
            duration_seconds=0.5,
        )

    async def cancel(self, run_id: str, reference: str | None) -> None:
        del reference
        self.cancelled.append(run_id)

    async def forget(self, run_id: str, reference: str) -> None:
        del run_id, reference


@functools.cache
def _empty_database() -> bytes:
    """Migrate once, copy for every test."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "empty.sqlite"
        migrate(f"sqlite+aiosqlite:///{path}")
        return path.read_bytes()


async def _chunks() -> AsyncIterator[bytes]:
    yield PNG


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """A gateway at work, and ways in."""

    app: FastAPI
    context: Context
    backend: ScriptedBackend
    http: httpx.AsyncClient
    """Carries the key."""
    stranger: httpx.AsyncClient
    """Carries none."""


@asynccontextmanager
async def gateway(
    folder: Path,
    backend: ScriptedBackend | None = None,
    *,
    others: Sequence[ScriptedBackend] = (),
    key: str | None = KEY,
    **env: object,
) -> AsyncIterator[Gateway]:
    """Run a gateway in this event loop, called without a socket."""
    scripted = backend or ScriptedBackend()
    if backend is None:
        scripted.gate.set()
    settings = Settings.model_validate(
        {"workspace": folder, "gateway_api_key": SecretStr(key) if key else None, **env}
    )
    settings.data.mkdir(parents=True)
    (settings.data / "gateway.sqlite").write_bytes(_empty_database())
    runtime = build(settings, [scripted, *others])
    for one in (scripted, *others):
        one.storage = runtime.context.storage
    app = create_app(settings, runtime)
    async with (
        runtime.running(),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://gateway",
            headers={"Authorization": f"Bearer {KEY}"},
        ) as http,
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://gateway"
        ) as stranger,
    ):
        yield Gateway(
            app=app, context=runtime.context, backend=scripted, http=http, stranger=stranger
        )
