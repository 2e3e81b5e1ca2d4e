"""The worker, but its work says its process number and never ends."""

import os
import threading
from pathlib import Path
from typing import Any

from gpu_server.mesh import work, worker


def _hang(*_: Any) -> None:
    (Path(os.environ["HANGING_FOLDER"]) / "pid").write_text(str(os.getpid()))
    threading.Event().wait()


if __name__ == "__main__":
    work.carry_out = _hang
    worker.main()
