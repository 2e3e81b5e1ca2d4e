"""SQLAlchemy engines for simulated processes: a pool of its own each, one dialect for all.

Building a dialect and compiling every statement anew after each simulated restart would cost more
than the simulation itself, so engines made with the same arguments share dialect and compiled SQL.
"""

import random
import sqlite3
import tempfile
from contextvars import Context
from pathlib import Path
from typing import Any

from sqlalchemy.dialects.sqlite.aiosqlite import AsyncAdapt_aiosqlite_dbapi
from sqlalchemy.engine import Engine
from sqlalchemy.ext import asyncio as sa_asyncio
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.simulation import dbapi
from tests.simulation.loop import VirtualLoop

_real_create = sa_asyncio.create_async_engine
_templates: dict[str, Engine] = {}


def create_async_engine(url: str, /, **options: Any) -> AsyncEngine:
    """Stands in for SQLAlchemy's function of the same name."""
    key = f"{url} {sorted(options.items())!r}"
    template = _templates.get(key)
    if template is None:
        # the pool class names itself a file database's even if the url is a memory one
        template = _templates[key] = _template(url, options)
    engine = Engine(template.pool.recreate(), template.dialect, template.url)
    share_compiled(template, engine)
    return AsyncEngine(engine)


def share_compiled(template: Engine, engine: Engine) -> None:
    """Let an engine use the SQL another one of the same dialect has compiled."""
    # SQLAlchemy has no public name for it
    vars(engine)["_compiled_cache"] = vars(template)["_compiled_cache"]


def _template(url: Any, options: dict[str, Any]) -> Engine:
    module = AsyncAdapt_aiosqlite_dbapi(dbapi, sqlite3)  # type: ignore[arg-type]
    template = _real_create(url, module=module, **options)

    # the dialect examines the server at its first connection: do that here, or the first simulated
    # run of a process would differ from its replay
    def warm_up() -> None:
        with tempfile.TemporaryDirectory() as folder:
            loop = VirtualLoop(random.Random(0), scheduler="fifo", max_steps=10_000)
            path = str(Path(folder) / "warm-up.db")
            dbapi.SERVER.set(dbapi.Server(path, random.Random(0), observer=dbapi.Observer()))

            async def connect_once() -> None:
                async with template.connect():
                    pass
                await template.dispose()

            loop.run(connect_once())

    Context().run(warm_up)
    return template.sync_engine
