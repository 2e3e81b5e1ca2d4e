"""What doctor says of settings, folders, the secret and the disk, and how it is printed."""

import ast
import io
import json
import os
import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gateway.doctor import exposure, page
from gateway.doctor.bucket import check_clock
from gateway.doctor.examination import examine
from gateway.doctor.findings import Notes, report
from gateway.doctor.refusals import Store, code_in, code_of, words
from gateway.security.signing import load_secret
from gateway.settings import Settings
from gateway.storage.base import StorageError
from tests.support.asgi import serving
from tests.support.doctor import doctored, everything, found, run_doctor, told
from tests.support.stack import ROOT, free_port

STORE = Store(address="s3://pictures", prefix="S3", endpoint="http://127.0.0.1:9")


async def test_every_setting_that_is_wrong_is_named_and_nothing_else_is_tried() -> None:
    wrong = {
        "backend_port": 0,
        "public_url": "ftp://me:my-password@example.com",
        "webhook_secret": "short",
    }
    seen = await examine(lambda: Settings.model_validate(wrong))
    assert {f.check for f in seen.findings} == {"BACKEND_PORT", "PUBLIC_URL", "WEBHOOK_SECRET"}
    assert not seen.ok
    assert "my-password" not in everything(seen)
    assert all("docs/settings.md" in told(f) for f in seen.findings)


async def test_settings_that_contradict_each_other_are_all_said(tmp_path: Path) -> None:
    seen = await doctored(
        tmp_path,
        gpu_service_url="http://gpu.example.com,http://user:secret@gpu.example.com:80",
        tool_timeouts="paint=5",
        policy="no.such.module:make",
    )
    named = {f.check for f in seen.findings if f.group == "settings" and f.verdict == "failed"}
    assert named == {"PUBLIC_URL", "GPU_SERVICE_URL", "TOOL_TIMEOUTS", "POLICY"}
    assert "secret@" not in everything(seen)


async def test_a_workflow_that_is_left_out_is_named(tmp_path: Path) -> None:
    (tmp_path / "workflows").mkdir()
    (tmp_path / "workflows" / "broken.json").write_text("{")
    (tmp_path / "workflows" / "broken.yaml").write_text("name: broken")
    seen = await doctored(tmp_path, workflows_path=tmp_path / "workflows")
    assert "broken" in told(found(seen, "settings", "workflows"))


async def test_before_the_first_start_nothing_is_made(tmp_path: Path) -> None:
    seen = await doctored(tmp_path)
    assert os.listdir(tmp_path) == []  # noqa: PTH208  # a path's own way is flagged in a coroutine
    assert found(seen, "folders", "folder data").verdict == "ok"
    assert "python -m gateway migrate" in told(found(seen, "database", "schema"))


async def test_a_secret_others_can_read_and_one_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "data" / "secret"
    load_secret(path)
    assert found(await doctored(tmp_path), "folders", "signing secret").verdict == "ok"
    path.chmod(0o644)
    finding = found(await doctored(tmp_path), "folders", "signing secret")
    assert (finding.verdict, finding.fix) == ("warning", (f"chmod 600 {path}",))
    path.write_text("nonsense")
    finding = found(await doctored(tmp_path), "folders", "signing secret")
    assert finding.verdict == "failed"
    assert "hexadecimal" in finding.said


async def test_a_data_folder_that_cannot_be_made_says_whose_it_must_be(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where the folder belongs")
    finding = found(await doctored(tmp_path), "folders", "folder data")
    assert finding.verdict == "failed"
    assert "chown" in told(finding)


async def test_too_little_free_disk_fails_and_says_the_limit(tmp_path: Path) -> None:
    seen = await doctored(tmp_path, min_free_disk_mb=100_000_000)
    finding = found(seen, "folders", "free disk")
    assert finding.verdict == "failed"
    assert "MIN_FREE_DISK_MB=100000000" in finding.said


async def test_no_key_on_every_address_and_any_origin_are_warned_of(tmp_path: Path) -> None:
    seen = await doctored(tmp_path, backend_host="0.0.0.0", cors_origins="*")
    for check in ("GATEWAY_API_KEY", "CORS_ORIGINS", "GPU_SERVICE_TOKEN"):
        assert found(seen, "exposure", check).verdict == "warning"


async def test_a_remote_gpu_service_without_a_token_fails(tmp_path: Path) -> None:
    seen = await doctored(
        tmp_path, gpu_service_url="http://192.0.2.1:9", public_url="http://127.0.0.1:9"
    )
    assert found(seen, "exposure", "GPU_SERVICE_TOKEN").verdict == "failed"
    assert "itself" in told(found(seen, "gateway", "PUBLIC_URL"))


async def test_with_keys_and_on_loopback_nothing_is_exposed(tmp_path: Path) -> None:
    seen = await doctored(tmp_path, gateway_api_key="a-key", gpu_service_token="a-token")
    assert found(seen, "exposure", "keys").verdict == "ok"


async def test_a_comfyui_that_answers_beyond_loopback_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # loopback stands in for an address of this machine that others reach
    monkeypatch.setattr(exposure, "own_addresses", lambda: ["127.0.0.1"])
    settings = Settings.model_validate({"workspace": tmp_path, "gpu_service_token": "t"})
    async with serving(_comfyui) as url:
        notes = Notes("exposure")
        await exposure.check_exposure(settings, notes, comfyui_url=url)
    [finding] = [f for f in notes.findings if f.check == "ComfyUI"]
    assert finding.verdict == "failed"
    assert "--listen 127.0.0.1" in told(finding)


async def _comfyui(scope: Any, receive: Any, send: Any) -> None:
    del scope, receive
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    body = b'{"queue_running": [], "queue_pending": []}'
    await send({"type": "http.response.body", "body": body})


async def test_something_else_on_the_gateways_port_is_said(tmp_path: Path) -> None:
    async with serving(_comfyui) as url:
        seen = await doctored(tmp_path, backend_port=int(url.rpartition(":")[2]))
    assert found(seen, "gateway", "running").verdict == "failed"


async def test_no_gateway_is_a_note_and_no_failure(tmp_path: Path) -> None:
    assert found(await doctored(tmp_path), "gateway", "running").verdict == "warning"


def test_no_login_and_no_secret_comes_through() -> None:
    notes = Notes("g")
    notes.fail("c", "postgresql://me:pass@host/db and key-of-mine", "use key-of-mine-too")
    text = everything(report(notes.findings, ["key-of-mine", "key-of-mine-too", "x"]))
    assert text == "g c postgresql://***@host/db and *** use ***"


def test_each_check_is_one_line_with_a_word_for_its_verdict() -> None:
    notes = Notes("storage")
    notes.ok("put", "lies\nthere")
    notes.warn("clock", "is off", "set it")
    notes.fail("read", "[bold]is[/] torn", "look", "and again")
    seen = report(notes.findings)
    assert page.as_lines(seen).splitlines() == [
        "✓ ok      storage · put: lies there",
        "! look    storage · clock: is off",
        "          fix: set it",
        "✗ failed  storage · read: [bold]is[/] torn",
        "          fix: look",
        "          fix: and again",
        "",
        "1 failed, 1 to look at; 1 ok.",
    ]
    screen = io.StringIO()
    page.show(seen, Console(file=screen, width=100, force_terminal=True, color_system=None))
    for word in ("✓ ok", "! look", "✗ failed", "[bold]is[/] torn", "and again"):
        assert word in screen.getvalue()
    as_object = json.loads(page.as_json(seen))
    assert (as_object["ok"], as_object["failed"], as_object["warnings"]) == (False, 1, 1)
    assert as_object["findings"][2]["fix"] == ["look", "and again"]


def test_the_command_ends_with_0_only_when_nothing_fails(tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        env = {
            "WORKSPACE": str(tmp_path),
            "BACKEND_PORT": str(free_port()),
            "GPU_SERVICE_URL": f"http://127.0.0.1:{held.getsockname()[1]}",
            "GATEWAY_API_KEY": "a-key-nobody-may-read",
        }
        done = run_doctor(env, tmp_path)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "✗ failed" in done.stdout
        assert done.stderr == ""
        read = json.loads(run_doctor(env, tmp_path, "--json").stdout)
    assert read["ok"] is False
    assert {"group", "check", "verdict", "said", "fix"} == set(read["findings"][0])
    assert "a-key-nobody-may-read" not in done.stdout + json.dumps(read)


@pytest.mark.parametrize(
    ("code", "said", "fix"),
    [
        ("NoSuchBucket", "no bucket pictures", "STORAGE_URL"),
        ("InvalidAccessKeyId", "does not know", "S3_ACCESS_KEY_ID"),
        ("SignatureDoesNotMatch", "signature", "S3_SECRET_ACCESS_KEY"),
        ("RequestTimeTooSkewed", "clock", "timedatectl"),
        ("AccessDenied", "may not", "read, write, list and delete"),
        ("PermanentRedirect", "region", "S3_REGION"),
        ("NoConnection", "no store answers", "S3_ENDPOINT_URL"),
        ("Certificate", "certificate", "S3_ENDPOINT_URL"),
        ("SlowDown", "SlowDown", "status"),
    ],
)
def test_each_refusal_of_a_store_is_put_into_words(code: str, said: str, fix: str) -> None:
    told_said, told_fix = words(STORE, code)
    assert said in told_said
    assert fix in told_fix


def test_the_code_is_found_in_an_answer_and_behind_an_error() -> None:
    assert code_in(b"<Error><Code>NoSuchBucket</Code></Error>") == "NoSuchBucket"
    assert code_in(b"<html>") is None

    class ClientError(Exception):
        response = {"Error": {"Code": "AccessDenied"}}  # noqa: RUF012  # as botocore has it

    refused = StorageError("refused")
    # as `raise … from None` leaves it
    refused.__context__ = ClientError()
    assert code_of(refused) == "AccessDenied"
    assert code_of(StorageError("x")) is None


@pytest.mark.parametrize(
    ("ahead_s", "verdict", "word"),
    [(0, "ok", "agrees"), (3600, "failed", "behind"), (-3600, "failed", "ahead of")],
)
def test_a_clock_far_from_the_stores_fails(ahead_s: int, verdict: str, word: str) -> None:
    notes, now = Notes("storage"), datetime.now(UTC)
    check_clock(format_datetime(now + timedelta(seconds=ahead_s), usegmt=True), now, notes)
    [finding] = notes.findings
    assert finding.verdict == verdict
    assert word in finding.said


def test_a_store_that_does_not_say_its_time_is_not_judged_by_it() -> None:
    notes = Notes("storage")
    check_clock("", datetime.now(UTC), notes)
    assert notes.findings == []


def test_the_page_lists_every_check_there_is() -> None:
    text = (ROOT / "docs" / "doctor.md").read_text()
    checks = {
        node.args[0].value
        for path in (ROOT / "gateway" / "doctor").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in {"ok", "warn", "fail"}
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }
    assert len(checks) > 20
    assert not [check for check in checks if f"`{check}`" not in text and check != "settings"]
