"""The worker, but its work fails with the error that is named."""

import builtins
import os
from typing import Any

from gpu_server.mesh import work, worker


def _fail(*_: Any) -> None:
    raise getattr(builtins, os.environ["FAILING_WITH"])("secret detail")


if __name__ == "__main__":
    work.carry_out = _fail
    worker.main()
