"""One process for one journal, and one sentence when it can't be used."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from gpu_server import claim
from gpu_server.claim import ClaimError, claimed


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "_PATIENCE_S", 0)


@pytest.mark.usefixtures("impatient")
def test_a_second_process_is_refused_and_the_next_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "data" / "gpu_server.sqlite"
    with claimed(path):
        ours = path.read_bytes()
        with pytest.raises(ClaimError, match="Another GPU service"), claimed(path):
            raise AssertionError("both hold it")
        assert path.read_bytes() == ours
    with claimed(path):
        pass


def test_a_killed_process_leaves_no_claim(tmp_path: Path) -> None:
    path = tmp_path / "gpu_server.sqlite"
    code = (
        "import sys, pathlib; from gpu_server.claim import claimed\n"
        "with claimed(pathlib.Path(sys.argv[1])): print(1, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        other.kill()
    with claimed(path):
        pass


def _no_database(path: Path) -> None:
    path.write_bytes(b"not a database, but long enough to be read as one" * 10)


def _damaged(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE runs (run_id TEXT PRIMARY KEY)")
        db.executemany("INSERT INTO runs VALUES (?)", [(f"{n:0200}",) for n in range(200)])
        db.execute("PRAGMA user_version = 1")
        db.commit()
    whole = path.read_bytes()
    path.write_bytes(whole[:8192] + b"\xff" * (len(whole) - 8192))


def _folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("spoil", [_no_database, _damaged, _folder])
def test_a_spoilt_journal_ends_the_process_with_one_sentence(tmp_path: Path, spoil: object) -> None:
    assert callable(spoil)
    (tmp_path / "data").mkdir()
    spoil(tmp_path / "data" / "gpu_server.sqlite")
    ended = subprocess.run(
        [sys.executable, "-m", "gpu_server"],
        env={"WORKSPACE": str(tmp_path), "GPU_SERVER_HOST": "127.0.0.1", "GPU_SERVER_PORT": "0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("The journal ")
    assert ended.stderr.count("\n") == 1


def test_a_folder_that_cant_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(ClaimError, match="can't be used"), claimed(tmp_path / "data" / "j.sqlite"):
        raise AssertionError("claimed nothing")
