"""What the gateways on one PostgreSQL database tell one another, by NOTIFY."""

import asyncio
import json
import logging
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal, get_args

from sqlalchemy import ARRAY, Text, bindparam, func, select

from gateway.db import postgres
from gateway.db.refusals import FAILURES

_log = logging.getLogger(__name__)

CHANNEL: Final = "genmedia_gateway"
FIRST_WAIT_S: Final = 0.1
LONGEST_WAIT_S: Final = 5.0
PROBE_S: Final = 15.0
"""How often a connection that says nothing is asked whether it is one still."""

Kind = Literal["job", "progress", "run_ended", "granted", "unowned", "room", "look", "missed"]
NOTIFY: Final = select(func.pg_notify(CHANNEL, func.unnest(bindparam("told", type_=ARRAY(Text)))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something another gateway committed.

    job: a job (`id`) changed, its status is `value` · progress: how far (`value`) a job is ·
    run_ended: a run was ended by another hand than its driver's · granted: a run of owner `value`
    has a place · unowned: runs (of the caller `value`, if named) have no owner · room: a backend
    has room again · look: a backend says that run `id` may be over · missed: notices may have been
    lost, from here on they are heard.
    """

    kind: Kind
    id: str = ""
    value: str = ""


class Notices:
    """This process's ear: one connection of its own, made anew whenever it is lost."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._sender = uuid.uuid4().hex
        self._heard: list[Callable[[Notice], None]] = []
        self.listening = asyncio.Event()
        """Set while the connection stands."""

    def listen(self, heard: Callable[[Notice], None]) -> None:
        """Call `heard` for whatever the others tell."""
        self._heard.append(heard)

    def encode(self, notices: Sequence[Notice]) -> list[str]:
        """Texts for NOTIFY."""
        return [json.dumps([self._sender, n.kind, n.id, n.value]) for n in notices]

    def missed(self) -> None:
        """Something may have been committed of which nobody here was told."""
        self._pass_on(Notice(kind="missed"))

    async def run(self) -> None:
        """Hear until cancelled."""
        wait_s = FIRST_WAIT_S
        while True:
            try:
                connection = await postgres.connect(self._url)
            except FAILURES as error:
                _log.warning("LISTEN: the database does not answer (%s)", type(error).__name__)
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
                continue
            try:
                await self._hear(connection)
            except FAILURES as error:
                _log.warning("LISTEN: the connection was lost (%s)", type(error).__name__)
            finally:
                self.listening.clear()
                connection.terminate()
            # one that is lost at once again must not be asked for without a pause
            await asyncio.sleep(wait_s)
            wait_s = FIRST_WAIT_S

    async def _hear(self, connection: postgres.Connection) -> None:
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _: lost.set())
        await connection.add_listener(CHANNEL, self._told)
        # whatever was told while nobody listened is to be found in the rows
        self.missed()
        self.listening.set()
        while not lost.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(PROBE_S):
                    await lost.wait()
                return
            await connection.execute("SELECT 1")

    def _told(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        try:
            sender, kind, subject, value = json.loads(str(payload))
        except ValueError:
            _log.warning("LISTEN: a notice that is none of ours")
            return
        # a newer version may tell of what this one does not know
        if sender != self._sender and kind in get_args(Kind):
            self._pass_on(Notice(kind=kind, id=str(subject), value=str(value)))

    def _pass_on(self, notice: Notice) -> None:
        for heard in self._heard:
            heard(notice)
