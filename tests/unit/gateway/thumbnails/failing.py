"""The worker, but reading a picture ends as `FAILING_WITH` says."""

import os
import signal
import socket
from typing import Any

from gateway.thumbnails import still, worker


def _fail(*_: Any, **__: Any) -> None:
    match os.environ["FAILING_WITH"]:
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "work":
            while True:
                pass
        case "connection":
            socket.socket()
        case "file":
            open("/etc/hostname").close()  # noqa: PTH123  # what is tried is the call
        case _:
            raise RuntimeError("secret detail")


if __name__ == "__main__":
    still.read = _fail  # pyright: ignore[reportAttributeAccessIssue]
    worker.main()
