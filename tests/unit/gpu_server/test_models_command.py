"""`models pull` and `models status`, from the arguments to the exit status."""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpu_server import cli
from gpu_server.pull import Puller
from tests.support.asgi import serving
from tests.support.recordings import ROOT

CONTENT = b"weights" * 1000
BUNDLED = "background-removal-birefnet"


class Site:
    """Answers every path with the same bytes; remembers the paths."""

    def __init__(self) -> None:
        self.url = ""
        self.paths: list[str] = []

    async def __call__(self, scope: Any, _receive: Any, send: Any) -> None:
        self.paths.append(scope["path"])
        headers = [(b"content-length", str(len(CONTENT)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": CONTENT})


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    app = Site()
    async with serving(app) as url:
        app.url = url
        yield app


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)


class Installation:
    """A folder of workflows and one of models."""

    def __init__(self, path: Path, site: Site) -> None:
        self.workflows, self.models, self.site = path / "workflows", path / "models", site
        self.workflows.mkdir()

    def add(self, workflow: str, name: str, **changes: Any) -> None:
        """A bundled workflow under another name, which needs one file."""
        source = ROOT / "workflows" / BUNDLED
        shutil.copy(source.with_suffix(".json"), self.workflows / f"{workflow}.json")
        manifest = yaml.safe_load(source.with_suffix(".yaml").read_text())
        needed = {
            "name": name,
            "directory": "vae",
            "url": f"{self.site.url}/owner/repo/resolve/main/{name}",
            "license": "MIT",
            "commercial": True,
            "bytes": len(CONTENT),
        }
        manifest["models"] = [needed | changes]
        (self.workflows / f"{workflow}.yaml").write_text(yaml.safe_dump(manifest))

    async def run(self, *arguments: str) -> int:
        """The exit status; in a thread, as the command has a loop of its own."""
        return await asyncio.to_thread(
            cli.run_models,
            cli.parse(["models", *arguments]),
            workflows_path=self.workflows,
            models_path=self.models,
            make_puller=lambda path, token: Puller(
                path, token=token, allow_origins=[self.site.url]
            ),
        )


@pytest.fixture
def there(tmp_path: Path, site: Site) -> Installation:
    return Installation(tmp_path, site)


async def test_two_workflows_with_one_file_download_it_once(
    there: Installation, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    there.add("first", "a.safetensors")
    there.add("second", "a.safetensors")
    assert await there.run("pull", "first", "second") == 0
    assert len(site.paths) == 1
    assert (there.models / "vae" / "a.safetensors").read_bytes() == CONTENT
    assert await there.run("pull", "--all") == 0
    assert len(site.paths) == 1
    out, err = capsys.readouterr()
    assert out == "vae/a.safetensors: downloaded\nvae/a.safetensors: already there\n"
    assert "vae/a.safetensors: 0.00 GB of 0.00 GB, 100 %" in err


async def test_workflows_that_mean_different_files_by_one_name_are_told(
    there: Installation, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    there.add("first", "a.safetensors")
    there.add("second", "a.safetensors", bytes=5)
    assert await there.run("pull", "--all") == 1
    assert "different sizes or hashes" in capsys.readouterr().err
    assert site.paths == []


async def test_one_file_that_fails_does_not_keep_the_others(
    there: Installation, capsys: pytest.CaptureFixture[str]
) -> None:
    there.add("first", "a.safetensors", hash="0" * 64, hash_type="SHA256")
    there.add("gated", "b.safetensors", gated=True)
    there.add("last", "c.safetensors", license="For study only", commercial=False)
    assert await there.run("pull", "--all") == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "vae/c.safetensors: not for commercial use (For study only)",
        "vae/c.safetensors: downloaded",
    ]
    assert "vae/a.safetensors: its SHA-256 is not the manifest's" in err
    assert f"vae/b.safetensors: it is gated: accept its licence at {there.site.url}" in err
    assert [p.name for p in (there.models / "vae").iterdir()] == ["c.safetensors"]


async def test_the_status_lists_each_file_and_what_became_of_it(
    there: Installation, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = there.models / "vae"
    folder.mkdir(parents=True)
    (folder / "a.safetensors").write_bytes(CONTENT)
    (folder / "b.safetensors").write_bytes(b"short")
    (folder / "c.safetensors.part").write_bytes(b"begun")
    for name in "abc":
        there.add(name, f"{name}.safetensors")
    there.add("d", "d.safetensors", gated=True, commercial=False)
    there.add("e", "pack-model", url="https://huggingface.co/owner/pack-model", bytes=None)
    assert await there.run("status") == 1
    assert [line.split("  ")[0].strip() for line in capsys.readouterr().out.splitlines()] == [
        "there",
        "wrong size",
        "partial",
        "missing",
        "by hand",
    ]
    assert await there.run("status", "d") == 1
    assert "(MIT, not for commercial use, gated)" in capsys.readouterr().out
    assert await there.run("status", "a", "e") == 0
    assert "(MIT, https://huggingface.co/owner/pack-model)" in capsys.readouterr().out
    assert await there.run("pull", "e") == 0
    assert "by hand, see https://huggingface.co/owner/pack-model" in capsys.readouterr().out


@pytest.mark.parametrize("action", ["pull", "status"])
async def test_an_unknown_workflow_lists_the_known_ones(
    there: Installation, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    there.add("first", "a.safetensors")
    there.add("second", "b.safetensors")
    assert await there.run(action, "third") == 1
    error = capsys.readouterr().err
    assert error == "There is no workflow third; known are: first, second.\n"


async def test_a_workflow_that_does_not_fit_is_one_sentence(
    there: Installation, capsys: pytest.CaptureFixture[str]
) -> None:
    there.add("first", "a.safetensors")
    (there.workflows / "first.yaml").write_text("tool: [")
    assert await there.run("pull", "first") == 1
    assert capsys.readouterr().err.startswith("The workflow first does not fit: first")


@pytest.mark.parametrize("arguments", [["pull"], ["pull", "--all", "first"]])
def test_pull_wants_either_names_or_all(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.parse(["models", *arguments])
    assert ended.value.code == 2
    assert "name the workflows, or give --all" in capsys.readouterr().err


async def test_a_token_that_cannot_be_sent_is_not_shown(
    there: Installation, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    there.add("first", "a.safetensors")
    monkeypatch.setenv("HF_TOKEN", "hf_gehörtmir")
    assert await there.run("pull", "first") == 1
    assert capsys.readouterr().err == "HF_TOKEN holds characters that no token has.\n"


def test_the_command_reads_the_services_settings(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gpu_server", "models", "status", BUNDLED],
        env={"MODELS_PATH": str(tmp_path), "WORKFLOWS_PATH": str(ROOT / "workflows")},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "background_removal/birefnet.safetensors" in done.stdout


def test_a_setting_that_does_not_fit_is_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gpu_server", "models", "status"],
        env={"MODELS_PATH": str(tmp_path), "GPU_SERVER_PORT": "seven"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("GPU_SERVER_PORT: ")
    assert "Traceback" not in done.stderr
