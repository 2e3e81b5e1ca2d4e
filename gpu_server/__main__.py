"""`python -m gpu_server`: the service under uvicorn."""

import sys

import uvicorn

from gpu_server import logs
from gpu_server.claim import ClaimError, claimed
from gpu_server.main import create_app
from gpu_server.settings import Settings


def main() -> None:
    """Serve until the process is told to stop."""
    settings = Settings()
    logs.configure(settings.log_level, settings.log_format)
    try:
        with claimed(settings.journal_path):
            uvicorn.run(
                create_app(settings),
                host=settings.gpu_server_host,
                port=settings.gpu_server_port,
                access_log=False,
                log_config=None,
                # Followers of a run hold their streams open: a stop must not wait for them.
                timeout_graceful_shutdown=2,
            )
    except ClaimError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
