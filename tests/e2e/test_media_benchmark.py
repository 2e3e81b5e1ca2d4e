"""The benchmark of large files still measures: by a small one, in every way it has."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.rclone import PROGRAM
from tests.support.stack import ROOT

WAYS = ("upload", "direct upload", "download")


@pytest.mark.timeout(600)
def test_the_benchmark_of_large_files_measures_every_way_and_no_process_grows_much(
    tmp_path: Path,
) -> None:
    if not PROGRAM.exists():
        pytest.skip(f"{PROGRAM} is not there: `make setup` unpacks it")
    written = tmp_path / "media.md"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.media", "--megabytes", "20"),
            *("--folder", str(tmp_path), "--write", str(written)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    table = written.read_text()
    for store in ("local disk", "S3 (rclone)"):
        for way in WAYS:
            assert f"| {store}, {way} |" in table
    assert "is kept" in table, table
    assert [path.name for path in tmp_path.iterdir()] == ["media.md"]
