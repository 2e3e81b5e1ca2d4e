"""What a backend must know of runs whose jobs lie at a provider of its own."""

from collections.abc import Callable, Sequence

from sqlalchemy import String, bindparam, literal_column, or_, select

from gateway.db.engine import Database, Transaction
from gateway.db.notices import Notice
from gateway.db.records import to_run
from gateway.db.tables import jobs, runs
from gateway.job import Run

_RUN = (
    select(runs, jobs.c.call, jobs.c.outcome)
    .join(jobs, jobs.c.id == runs.c.job_id)
    .where(runs.c.id == bindparam("run"))
)
_REFERENCES = select(runs.c.reference).where(
    runs.c.backend == bindparam("backend"),
    runs.c.reference.is_not(None),
    # written out: a plan made without knowing the state would read the whole table
    or_(runs.c.state == literal_column("'started'", String), runs.c.cancel_pending),
)


class ServerlessRows:
    """Reads of runs, whoever drives them."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def run(self, run_id: str) -> Run | None:
        """One run as its row has it. Raises DatabaseUnavailable."""
        row = await self._db.read(lambda reading: reading.row(_RUN, {"run": run_id}))
        return None if row is None else to_run(row)

    async def references(self, backend: str) -> Sequence[str]:
        """What a backend called the runs that may be open there. Raises DatabaseUnavailable."""
        rows = await self._db.read(lambda reading: reading.rows(_REFERENCES, {"backend": backend}))
        return [row["reference"] for row in rows]

    async def tell_followers(self, run_id: str) -> None:
        """Let whichever gateway follows a run look how it is. Raises DatabaseUnavailable."""
        if self._db.notices is None:
            # there is no other
            return

        async def work(writing: Transaction) -> None:
            writing.tell("look", run_id)

        await self._db.write(work)

    def on_look(self, look: Callable[[str], object]) -> None:
        """Call `look` with each run that another gateway tells of."""

        def heard(notice: Notice) -> None:
            if notice.kind == "look":
                look(notice.id)

        self._db.on_notice(heard)
