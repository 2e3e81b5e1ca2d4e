"""Log lines for people or for machines; never a query string, a body or a key."""

import json
import logging
import sys
import time
from datetime import UTC, datetime
from typing import Literal

REQUESTS = logging.getLogger("gateway.requests")

_FIELDS = ("request_id", "method", "route", "status", "ms")


class StandardFormatter(logging.Formatter):
    """Time, severity, logger, text."""

    converter = time.gmtime

    def __init__(self) -> None:
        super().__init__(
            "%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S"
        )


class JsonFormatter(logging.Formatter):
    """One JSON object a line, the fields of a request beside its text."""

    def format(self, record: logging.LogRecord) -> str:
        """Write the line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: vars(record)[name] for name in _FIELDS if name in vars(record)}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(level: str, log_format: Literal["standard", "json"]) -> None:
    """Send every log line of this process to stderr in the chosen form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else StandardFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # httpx logs each request's whole address, signatures included; botocore what it signs.
    for noisy in ("httpx", "httpcore", "aiosqlite", "alembic", "botocore", "aiobotocore"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))


def request_line(request_id: str, method: str, route: str, status: int, ms: float) -> None:
    """Log one request: its route's template instead of its path, so no id or signature shows."""
    if not REQUESTS.isEnabledFor(logging.INFO):
        return
    REQUESTS.info(
        "%s %s %d %.1f ms [%s]",
        method,
        route,
        status,
        ms,
        request_id,
        extra={
            "request_id": request_id,
            "method": method,
            "route": route,
            "status": status,
            "ms": round(ms, 1),
        },
    )
