"""A real PostgreSQL for the tests: the one that TEST_DATABASE_URL names, or one of their own."""

import asyncio
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Coroutine, Generator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from gateway.db import migrate
from tests.support.stack import free_port

USER = "tester"
T = TypeVar("T")
PASSWORD = "a-password-no-text-may-show"
START_S = 60


class NoPostgres(Exception):
    """There is no PostgreSQL on this machine."""


def installed(program: str) -> str:
    """Path of one of the server's programs. Raises NoPostgres."""
    folders = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda at: float(at.parent.name)
    )
    found = shutil.which(program) or shutil.which(program, path=":".join(map(str, folders[::-1])))
    if found is None:
        raise NoPostgres("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    return found


class PostgresServer:
    """A server of the tests' own, on loopback, to be killed and started again.

    `durable` = commits survive a kill; without it tests are faster.
    """

    def __init__(self, folder: Path, *, durable: bool = False, **options: str) -> None:
        self.port = free_port()
        self.url = f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/postgres"
        self._folder = folder
        self._data = folder / "data"
        # PostgreSQL refuses to run as root
        self._user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        if self._user is not None:
            os.chown(folder, self._user.pw_uid, self._user.pw_gid)
        password = folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        self._call(
            *(installed("initdb"), "-D", str(self._data), "-U", USER, "-A", "scram-sha-256"),
            *("--pwfile", str(password), "-E", "UTF8", "--locale", "C", "--no-sync"),
        )
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(folder),
            "max_connections": "200",
            **({} if durable else {"fsync": "off", "synchronous_commit": "off"}),
            **options,
        }
        with (self._data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())

    @property
    def pid(self) -> int:
        """Of the server's first process."""
        return int((self._data / "postmaster.pid").read_text().split("\n", 1)[0])

    def start(self) -> None:
        """Return when it answers."""
        log = str(self._folder / "log")
        try:
            self._control("start", "-l", log, "-t", str(START_S))
        except subprocess.CalledProcessError as error:
            said = Path(log).read_text() if Path(log).exists() else ""
            raise RuntimeError(f"PostgreSQL did not start: {error.output}{said}") from error

    def stop(self, how: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Return when it has ended; `immediate` is a crash."""
        self._control("stop", "-m", how, "-t", str(START_S))

    def _control(self, *command: str) -> None:
        self._call(installed("pg_ctl"), "-D", str(self._data), "-w", *command)

    def _call(self, *command: str) -> None:
        as_user = partial(subprocess.run, cwd=self._folder, check=True, text=True)
        # to a file: a pipe would be held open by the server
        with (self._folder / "said").open("w+") as said:
            try:
                if self._user is None:
                    as_user(command, stdout=said, stderr=said)
                else:
                    uid, gid = self._user.pw_uid, self._user.pw_gid
                    as_user(command, stdout=said, stderr=said, user=uid, group=gid, extra_groups=[])
            except subprocess.CalledProcessError as error:
                said.seek(0)
                error.output = said.read()
                raise


@contextmanager
def own_server(*, durable: bool = False, **options: str) -> Generator[PostgresServer]:
    """A running server with a folder of its own. Raises NoPostgres."""
    # not a test's folder: those lie where only this user may go
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as folder:
        server = PostgresServer(Path(folder), durable=durable, **options)
        server.start()
        try:
            yield server
        finally:
            with suppress(subprocess.CalledProcessError):
                server.stop("immediate")


class Databases:
    """Makes databases on a server, each with the tables of this version, each new."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._names = itertools.count()
        self._prefix = f"test_{os.getpid()}"
        self._template = f"{self._prefix}_tables"
        self._made: list[str] = []
        self._create(self._template)
        migrate(self._at(self._template))

    def new(self, *, tables: bool = True) -> str:
        """Address of a new database."""
        name = f"{self._prefix}_{next(self._names)}"
        self._create(name, self._template if tables else "template1")
        return self._at(name)

    def drop(self, url: str | None = None) -> None:
        """Remove one database, or all that were made, whoever is still connected."""
        names = [urlsplit(url).path[1:]] if url else [*self._made]
        for name in names:
            execute(self._url, f"DROP DATABASE {name} WITH (FORCE)")
            self._made.remove(name)

    def _create(self, name: str, template: str = "template1") -> None:
        execute(self._url, f"CREATE DATABASE {name} TEMPLATE {template}")
        self._made.append(name)

    def _at(self, name: str) -> str:
        return urlunsplit(urlsplit(self._url)._replace(path=f"/{name}"))


@contextmanager
def databases() -> Generator[Databases]:
    """Databases for the tests, wherever there is a server. Raises NoPostgres."""
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        made = Databases(given)
        try:
            yield made
        finally:
            made.drop()
        return
    with own_server() as server:
        yield Databases(server.url)


def execute(url: str, statement: str, *values: object) -> list[dict[str, Any]]:
    """What another program does in the database; the rows it gets."""

    async def work() -> list[dict[str, Any]]:
        connection = await asyncpg.connect(url)
        try:
            return [dict(row) for row in await connection.fetch(statement, *values)]
        finally:
            await connection.close()

    return in_thread(work())


def in_thread(work: Coroutine[Any, Any, T]) -> T:
    """Run it beside the test's own event loop."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(asyncio.run(work))
        except BaseException as error:  # noqa: BLE001  # raised again below
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
