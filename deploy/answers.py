"""Is a service of this container up? `python answers.py VARIABLE /path` ends with 0 if it is.

The variable holds an address, or the port of a service on this machine.
"""  # noqa: INP001 - a script on its own: containers run it by its path

import os
import sys
import urllib.request

_TIMEOUT_S = 4


def main(variable: str, path: str) -> None:
    """Ask; an error's traceback, and its exit status, are the container's health log."""
    place = os.environ[variable]
    base = place if "://" in place else f"http://127.0.0.1:{place}"
    # on this machine, so never through a proxy
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(base.rstrip("/") + path, timeout=_TIMEOUT_S) as answer:
        answer.read(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
