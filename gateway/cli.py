"""`python -m gateway …`: serve, migrate, doctor, webhook-secret, openapi, docs, demo."""

import asyncio
import json
import logging
import signal
import socket
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer
import uvicorn
from pydantic import ValidationError
from rich.console import Console

from gateway import reference
from gateway.agreement import Misconfigured
from gateway.db import (
    DatabaseRefused,
    DatabaseUnavailable,
    FolderInUse,
    SchemaOutdated,
    migrate,
)
from gateway.demo import DemoFailed, make_picture
from gateway.doctor import page
from gateway.doctor.examination import examine
from gateway.main import create_app
from gateway.observability.logging import configure
from gateway.runtime import Runtime, build
from gateway.security.signing import UnusableSecret, load_secret, webhook_secret
from gateway.settings import Settings, environment_name

logger = logging.getLogger("gateway")

SHUTDOWN_S = 5
"""Seconds open requests have to end once the process is asked to stop."""

cli = typer.Typer(
    name="gateway",
    help="One REST gateway in front of ComfyUI, serverless GPUs and hosted models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_errors = Console(stderr=True, highlight=False, soft_wrap=True)


class Server(uvicorn.Server):
    """A server that ends waits and streams before it waits for open connections."""

    def __init__(self, config: uvicorn.Config, runtime: Runtime) -> None:
        super().__init__(config)
        self._runtime = runtime

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop serving."""
        self._runtime.context.stopping.set()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Stop at SIGINT and SIGTERM.

        uvicorn's own way raises the signal again afterwards, which would end the process before
        its jobs are given back.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


@cli.command()
def serve() -> None:
    """Serve the API on BACKEND_HOST:BACKEND_PORT until it is told to stop."""
    settings = _settings()
    configure(settings.log_level, settings.log_format)
    try:
        runtime = build(settings)
        config = uvicorn.Config(
            create_app(settings, runtime),
            host=settings.backend_host,
            port=settings.backend_port,
            access_log=False,
            log_config=None,
            # Started and stopped around the server instead: its refusals then are sentences.
            lifespan="off",
            timeout_graceful_shutdown=SHUTDOWN_S,
            server_header=False,
        )
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(_served(Server(config, runtime), runtime))
    except (
        Misconfigured,
        UnusableSecret,
        SchemaOutdated,
        DatabaseRefused,
        FolderInUse,
    ) as error:
        _give_up(str(error))
    except DatabaseUnavailable:
        _give_up("The database went away while the gateway was starting: try again shortly.")


async def _served(server: Server, runtime: Runtime) -> None:
    async with runtime.running():
        await server.serve()


@cli.command(name="migrate")
def migrate_database() -> None:
    """Bring the database to the schema of this version."""
    settings = _settings()
    try:
        migrate(settings.database)
    except (DatabaseRefused, SchemaOutdated) as error:
        _give_up(str(error))
    typer.echo("The database is up to date.")


@cli.command(name="webhook-secret")
def show_webhook_secret() -> None:
    """Print what webhooks are signed with: receivers verify by it."""
    settings = _settings()
    try:
        own = webhook_secret(load_secret(settings.data / "secret"))
    except UnusableSecret as error:
        _give_up(str(error))
    typer.echo("\n".join(settings.webhook_secrets or [own]))


@cli.command()
def openapi() -> None:
    """Print the OpenAPI document."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(_env_file=None, workspace=Path(folder))  # pyright: ignore[reportCallIssue]  # the stub lacks BaseSettings' own keyword
        document = create_app(settings).openapi()
    json.dump(document, sys.stdout, indent=2, ensure_ascii=False)
    typer.echo()


@cli.command()
def docs(
    out: Annotated[Path, typer.Option(help="Folder the reference pages go to.")] = Path("docs"),
) -> None:
    """Write the reference pages: errors, settings, tools."""
    for name, text in reference.pages(Settings().workflows).items():
        (out / name).write_text(text, encoding="utf-8")
        typer.echo(str(out / name))


@cli.command()
def demo(
    url: Annotated[str, typer.Option(help="Where the gateway is.")] = "http://127.0.0.1:8000",
    out: Annotated[Path, typer.Option(help="Folder the picture goes to.")] = Path("demo"),
) -> None:
    """Generate a picture through a running gateway, with progress."""
    key = _settings().gateway_api_key
    try:
        make_picture(url, key.get_secret_value() if key else None, out)
    except DemoFailed as error:
        _give_up(str(error))


@cli.command()
def doctor(
    webhook_url: Annotated[
        str | None, typer.Option(help="A receiver of webhooks: it is sent a signed test event.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,  # noqa: FBT002  # how typer declares a switch
) -> None:
    """Check what this installation needs, and say what to fix; it may run meanwhile."""
    # what the checks meet on their way is told in the report
    logging.disable()
    found = asyncio.run(examine(webhook_url=webhook_url))
    if as_json:
        typer.echo(page.as_json(found))
    elif sys.stdout.isatty():
        page.show(found, Console(highlight=False, safe_box=True))
    else:
        typer.echo(page.as_lines(found))
    raise typer.Exit(0 if found.ok else 1)


def _settings() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        lines = [
            f"{environment_name(str(item['loc'][0]))}: {item['msg']}"
            for item in error.errors(include_url=False, include_input=False)
        ]
        _give_up("\n".join(lines))


def _give_up(message: str) -> NoReturn:
    _errors.print(message, markup=False)
    raise typer.Exit(1)
