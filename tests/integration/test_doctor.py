"""Doctor where a database, a GPU service or a webhook's receiver is broken on purpose."""

import json
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from fastapi import FastAPI

from gateway.db import FolderLock
from gateway.db.schema import alembic_config
from gateway.doctor.findings import Report
from gateway.security.signing import load_secret, webhook_secret
from tests.support.asgi import serving
from tests.support.databases import rows
from tests.support.doctor import doctored, everything, findings, found, run_doctor, told
from tests.support.gpu_double import TOKEN, Double
from tests.support.postgres import PASSWORD, USER, Databases, own_server
from tests.support.receiver import receiver
from tests.support.stack import Stack, free_port, running, wait_readiness, wait_ready

VARIANT = "checkpoint:tiny-sd15.ckpt"
HIDDEN = "z_image_turbo_bf16.safetensors"
PATIENCE_S = 60


def verdicts(report: Report, group: str) -> dict[str, str]:
    return {f.check: f.verdict for f in report.findings if f.group == group}


async def test_a_postgresql_that_works_passes_every_check(
    tmp_path: Path, postgres_url: str
) -> None:
    seen = await doctored(tmp_path, database_url=postgres_url)
    assert verdicts(seen, "database") == dict.fromkeys(
        ("reachable", "clock", "schema", "LISTEN/NOTIFY"), "ok"
    )
    assert "PostgreSQL 1" in found(seen, "database", "reachable").said
    assert PASSWORD not in everything(seen)


async def test_a_postgresql_that_is_stopped_says_where_and_to_start_it(tmp_path: Path) -> None:
    port = free_port()
    url = f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{port}/genmedia"
    finding = found(await doctored(tmp_path, database_url=url), "database", "reachable")
    assert finding.verdict == "failed"
    assert f"127.0.0.1:{port}" in finding.said
    assert "start PostgreSQL" in told(finding)
    assert PASSWORD not in told(finding)


async def test_a_wrong_password_of_the_database_is_said_and_not_shown(
    tmp_path: Path, postgres_url: str
) -> None:
    wrong = postgres_url.replace(PASSWORD, "another-secret")
    seen = await doctored(tmp_path, database_url=wrong)
    finding = found(seen, "database", "reachable")
    assert finding.verdict == "failed"
    assert "password" in finding.said
    assert "another-secret" not in everything(seen)


async def test_an_old_schema_and_none_at_all_name_the_command(
    tmp_path: Path, postgres_databases: Databases
) -> None:
    url = postgres_databases.new(tables=False)
    finding = found(await doctored(tmp_path, database_url=url), "database", "schema")
    assert (finding.verdict, finding.fix) == ("failed", ("run: python -m gateway migrate",))
    command.upgrade(alembic_config(url), "0002")
    finding = found(await doctored(tmp_path, database_url=url), "database", "schema")
    assert "0002" in finding.said
    assert finding.fix == ("run: python -m gateway migrate",)
    postgres_databases.drop(url)


async def test_a_table_this_user_may_not_write_is_named(tmp_path: Path, postgres_url: str) -> None:
    rows(postgres_url, "DROP ROLE IF EXISTS doctor_reader")
    rows(postgres_url, "CREATE ROLE doctor_reader LOGIN PASSWORD 'a-readers-secret'")
    try:
        rows(postgres_url, "GRANT SELECT ON ALL TABLES IN SCHEMA public TO doctor_reader")
        as_reader = postgres_url.replace(f"{USER}:{PASSWORD}", "doctor_reader:a-readers-secret")
        seen = await doctored(tmp_path, database_url=as_reader)
        assert found(seen, "database", "schema").verdict == "ok"
        assert "GRANT" in told(found(seen, "database", "rights"))
    finally:
        rows(postgres_url, "DROP OWNED BY doctor_reader")
        rows(postgres_url, "DROP ROLE doctor_reader")


@pytest.mark.timeout(600)
async def test_more_connections_than_postgresql_has_are_warned_of(tmp_path: Path) -> None:
    with own_server(max_connections="12") as server:
        seen = await doctored(tmp_path, database_url=server.url, database_connections=20)
    finding = found(seen, "database", "connections")
    assert finding.verdict == "warning"
    assert "lets in 12" in finding.said


def copied(folder: Path, sqlite_tables: Path) -> Path:
    path = folder / "data" / "gateway.sqlite"
    path.parent.mkdir(exist_ok=True)
    shutil.copy(sqlite_tables, path)
    return path


async def test_sqlite_is_looked_at_without_a_trace_and_without_its_lock(
    tmp_path: Path, sqlite_tables: Path
) -> None:
    path = copied(tmp_path, sqlite_tables)
    before = path.read_bytes()
    assert verdicts(await doctored(tmp_path), "database") == {"writable": "ok", "schema": "ok"}
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == before
    lock = FolderLock(path.parent)
    lock.acquire()
    try:
        writing = sqlite3.connect(path, isolation_level=None)
        writing.execute("PRAGMA journal_mode=WAL")
        writing.execute("BEGIN IMMEDIATE")
        seen = await doctored(tmp_path)
        assert verdicts(seen, "database") == {"writable": "ok", "schema": "ok"}
        writing.execute("ROLLBACK")
        writing.close()
    finally:
        lock.release()


async def test_a_sqlite_file_that_is_none_is_said(tmp_path: Path) -> None:
    path = tmp_path / "data" / "gateway.sqlite"
    path.parent.mkdir()
    path.write_bytes(b"not a database" * 100)
    finding = found(await doctored(tmp_path), "database", "reachable")
    assert finding.verdict == "failed"
    assert "no SQLite database" in finding.said


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("doctor")) as stack:
        with stack.client() as client:
            wait_ready(client, VARIANT)
        yield stack


def stack_settings(stack: Stack, **changes: Any) -> dict[str, Any]:
    """The gateway's own settings, as doctor would read them beside it."""
    names = ("BACKEND_PORT", "GATEWAY_API_KEY", "GPU_SERVICE_URL", "GPU_SERVICE_TOKEN")
    return {name.lower(): stack.env()[name] for name in names} | changes


def test_beside_a_running_gateway_nothing_fails_and_nothing_is_left(stack: Stack) -> None:
    env = stack.env() | {"MIN_FREE_DISK_MB": "1"}
    before = {p for p in stack.workspace.rglob("*") if "doctor" in p.name}
    done = run_doctor(env, stack.workspace, "--json")
    assert done.returncode == 0, done.stdout
    report = json.loads(done.stdout)
    by_name = {f"{f['group']}: {f['check']}": f for f in report["findings"]}
    for check in ("put", "head", "read", "signed GET", "wrong signature", "signed PUT", "delete"):
        assert by_name[f"storage: {check}"]["verdict"] == "ok", by_name
    assert by_name["gateway: running"]["verdict"] == "ok"
    assert "generate" in by_name["GPU: tools"]["said"]
    assert any("SIMULATOR" in f["said"] for f in report["findings"])
    assert {p for p in stack.workspace.rglob("*") if "doctor" in p.name} == before
    for secret in ("test-key-of-the-stack", "test-token-of-the-stack"):
        assert secret not in done.stdout


async def test_another_secret_than_the_running_gateways_is_found_out(
    stack: Stack, tmp_path: Path
) -> None:
    load_secret(tmp_path / "data" / "secret")
    (tmp_path / "data" / "files").mkdir()
    seen = await doctored(tmp_path, **stack_settings(stack))
    finding = found(seen, "storage", "signed GET")
    assert finding.verdict == "failed"
    assert "data/secret" in told(finding)
    assert [p.name for p in (tmp_path / "data" / "files").iterdir()] == [".incoming"]


async def test_a_gpu_service_that_refuses_the_token_says_which_setting(
    stack: Stack, tmp_path: Path
) -> None:
    wrong = "a-token-that-is-not-theirs"
    seen = await doctored(tmp_path, **stack_settings(stack, gpu_service_token=wrong))
    [finding] = [f for f in seen.findings if f.group == "GPU"]
    assert finding.verdict == "failed"
    assert "refuses our token" in finding.said
    assert "GPU_SERVICE_TOKEN" in told(finding)
    assert wrong not in everything(seen)
    seen = await doctored(tmp_path, **stack_settings(stack, gpu_service_token=None))
    [finding] = [f for f in seen.findings if f.group == "GPU"]
    assert "asks for a token" in finding.said


async def test_a_gpu_service_that_is_absent_says_how_to_start_it(tmp_path: Path) -> None:
    [finding] = [f for f in (await doctored(tmp_path)).findings if f.group == "GPU"]
    assert finding.verdict == "failed"
    assert "python -m gpu_server" in told(finding)


async def test_something_else_at_a_gpu_services_address_is_said(
    stack: Stack, tmp_path: Path
) -> None:
    seen = await doctored(tmp_path, gpu_service_url=stack.comfyui)
    [finding] = [f for f in seen.findings if f.group == "GPU"]
    assert "something else" in finding.said


def test_missing_models_are_named_with_size_source_and_command(stack: Stack) -> None:
    stack.simulator(hide=[HIDDEN])
    try:
        finding = _until_lacking(stack, HIDDEN)
        assert finding["verdict"] == "warning"
        assert f"diffusion_models/{HIDDEN} (" in finding["said"]
        assert " GB" in finding["said"]
        fixes = "\n".join(finding["fix"])
        assert "python -m gpu_server models pull " in fixes
        assert "https://" in fixes
    finally:
        stack.simulator(hide=[])


def _until_lacking(stack: Stack, file: str) -> dict[str, Any]:
    """Doctor's finding about a file; the GPU service asks its ComfyUI now and then."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        done = run_doctor(stack.env(), stack.workspace, "--json")
        for finding in json.loads(done.stdout)["findings"]:
            if finding["group"] == "GPU" and file in finding["said"]:
                return dict(finding)
        assert time.monotonic() < deadline, done.stdout


async def test_a_comfyui_that_is_gone_is_told_from_a_service_that_is(
    stack: Stack, tmp_path: Path
) -> None:
    stack.kill("simulator")
    try:
        with stack.client() as client:
            wait_readiness_lost(client)
        seen = await doctored(tmp_path, **stack_settings(stack))
        name = f"127.0.0.1:{stack.ports['gpu_server']}"
        failed = [f for f in findings(seen, "GPU", name) if f.verdict == "failed"]
        assert any("ComfyUI is not connected" in f.said for f in failed)
    finally:
        stack.start("simulator")
        with stack.client() as client:
            wait_readiness(client, VARIANT, "ready")


def wait_readiness_lost(client: Any) -> None:
    """Wait until the gateway has seen that ComfyUI is away."""
    deadline = time.monotonic() + PATIENCE_S
    while client.get("/health").json()["status"] == "healthy":
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
async def former() -> AsyncIterator[str]:
    """A GPU service of a former version."""
    app: FastAPI = Double(protocol=["v1", "previews"]).app()

    async def open_health(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/health":
            scope = {**scope, "headers": [(b"authorization", f"Bearer {TOKEN}".encode())]}
        await app(scope, receive, send)

    async with serving(open_health) as url:
        yield url


async def test_a_gpu_service_of_a_former_version_is_told_what_it_lacks(
    former: str, tmp_path: Path
) -> None:
    seen = await doctored(tmp_path, gpu_service_url=former, gpu_service_token=TOKEN)
    lacking = [f for f in seen.findings if f.group == "GPU" and "lacks parts" in f.said]
    assert lacking
    assert all(part in lacking[0].said for part in ("files", "check", "sized"))
    assert "previews" not in lacking[0].said


async def test_a_receiver_gets_a_signed_event_it_can_verify(tmp_path: Path) -> None:
    secret = webhook_secret(load_secret(tmp_path / "data" / "secret"))
    async with receiver() as at:
        seen = await doctored(tmp_path, webhook_url=at.url, webhook_allow_private=True)
    assert found(seen, "webhooks", "receiver").verdict == "ok"
    [came] = at.received
    assert came.verified(secret)["type"] == "doctor.ping"


@pytest.mark.parametrize(
    ("status", "word"), [(500, "receiver's log"), (302, "redirects"), (401, "webhook-secret")]
)
async def test_a_receiver_that_refuses_fails_with_its_status(
    tmp_path: Path, status: int, word: str
) -> None:
    load_secret(tmp_path / "data" / "secret")
    async with receiver(status=status) as at:
        seen = await doctored(tmp_path, webhook_url=at.url, webhook_allow_private=True)
    finding = found(seen, "webhooks", "receiver")
    assert finding.verdict == "failed"
    assert str(status) in finding.said
    assert word in told(finding)


async def test_a_receiver_that_is_not_there_or_not_allowed_fails(tmp_path: Path) -> None:
    load_secret(tmp_path / "data" / "secret")
    url = f"http://127.0.0.1:{free_port()}/hooks/my-capability"
    seen = await doctored(tmp_path, webhook_url=url, webhook_allow_private=True)
    assert "nothing listens" in found(seen, "webhooks", "receiver").said
    assert "my-capability" not in everything(seen)
    seen = await doctored(tmp_path, webhook_url=url)
    assert "WEBHOOK_ALLOW_PRIVATE" in told(found(seen, "webhooks", "receiver"))
