"""moto's S3 server as a process: `python -m tests.support.moto_process PORT`.

It keeps what it holds in memory, so lines on its standard input (`stop`, `start`) take it off its
port and put it back; each is answered by a line.
"""

import sys
import tempfile

# moto's answers hold files that are closed when they are collected
from moto.server import ThreadedMotoServer


def main() -> None:
    """Serve until standard input ends."""
    port = int(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder  # bodies above a few megabytes go there
        server: ThreadedMotoServer | None = None
        for line in sys.stdin:
            if line.strip() == "start" and server is None:
                server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
                server.start()
            elif line.strip() == "stop" and server is not None:
                server.stop()
                server = None
            print(line.strip(), flush=True)  # noqa: T201  # the answer


if __name__ == "__main__":
    main()
