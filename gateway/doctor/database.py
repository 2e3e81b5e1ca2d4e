"""Is the database there, at this version's schema, and does it tell the gateways of one another?"""

import os
from urllib.parse import urlsplit

from gateway.db import DatabaseRefused, look
from gateway.db.schema import newest
from gateway.db.tables import metadata
from gateway.doctor.findings import Notes
from gateway.settings import Settings

LIMIT_S = 45.0
OLDEST_POSTGRES = 140_000
APART_S = 2.0
"""Seconds two clocks may differ before it is worth a word."""
BESIDE_THE_POOL = 2


async def check_database(settings: Settings, notes: Notes) -> None:
    """Look at it without writing a row or taking the folder's lock."""
    url = settings.database
    try:
        await _look(settings, url, notes)
    except DatabaseRefused as error:
        notes.fail("reachable", str(error), look.remedy(url, error))


async def _look(settings: Settings, url: str, notes: Notes) -> None:
    server = await look.server(url)
    if not look.is_postgres(url):
        if _file(url, notes):
            await _schema(url, notes)
        return
    where = urlsplit(url).netloc.rpartition("@")[2] or "its socket"
    notes.ok("reachable", f"{server.name} at {where} answers in {server.ms:.0f} ms")
    if server.version < OLDEST_POSTGRES:
        notes.warn("version", f"{server.name} is older than 14", "update it to 14 or newer")
    _clock(server.ahead_s, notes)
    _connections(settings, server.max_connections, notes)
    if await _schema(url, notes):
        await _rights(url, notes)
    if await look.hears(url):
        notes.ok("LISTEN/NOTIFY", "what one connection tells reaches another one")
    else:
        notes.fail(
            "LISTEN/NOTIFY",
            f"nothing was heard within {look.HEAR_S:g} s: gateways would wake each other late",
            "let DATABASE_URL lead to PostgreSQL itself or to a pooler in session mode",
        )


def _file(url: str, notes: Notes) -> bool:
    """Whether the file of SQLite is there; and whether this user may write it."""
    path = look.sqlite_path(url)
    if not path.exists():
        notes.fail("schema", f"{path} is not there yet", "run: python -m gateway migrate")
        return False
    # SQLite writes a journal beside the file: both must be writable
    shut = next((each for each in (path, path.parent) if not os.access(each, os.W_OK)), None)
    if shut is None:
        notes.ok("writable", str(path))
    else:
        notes.fail(
            "writable",
            f"{shut} cannot be written by user {os.getuid()}",
            f"chown -R {os.getuid()} {path.parent}, or run the gateway as the user it belongs to",
        )
    return True


async def _schema(url: str, notes: Notes) -> bool:
    trouble = await look.schema_trouble(url)
    if trouble is None:
        notes.ok("schema", f"fits this version ({newest()})")
        return True
    notes.fail("schema", str(trouble), f"run: {trouble.command}")
    return False


async def _rights(url: str, notes: Notes) -> None:
    table = await look.forbidden_table(url, sorted(metadata.tables))
    if table is not None:
        notes.fail(
            "rights",
            f"this user may not read and write every table ({table}, for one)",
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO the user of "
            "DATABASE_URL, or let it own them",
        )


def _clock(ahead_s: float, notes: Notes) -> None:
    if abs(ahead_s) < APART_S:
        notes.ok("clock", f"{ahead_s:+.1f} s against this machine's")
        return
    notes.warn(
        "clock",
        f"the database's clock is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} "
        "this machine's: deadlines and links end at the wrong time",
        "let both machines keep time by NTP (timedatectl set-ntp true)",
    )


def _connections(settings: Settings, most: int | None, notes: Notes) -> None:
    wanted = settings.database_connections + BESIDE_THE_POOL
    if most is not None and wanted > most:
        notes.warn(
            "connections",
            f"one gateway may open {wanted}, and PostgreSQL lets in {most}",
            f"raise max_connections there, or lower DATABASE_CONNECTIONS below {most}",
        )
