"""`python -m gpu_server`: the service under uvicorn, or a command of `cli.py`."""

import sys

import uvicorn
from pydantic import ValidationError

from gpu_server import cli, logs
from gpu_server.claim import ClaimError, claimed
from gpu_server.main import create_app
from gpu_server.settings import Settings


def main() -> None:
    """Carry out the command, or serve until the process is told to stop."""
    arguments = cli.parse()
    try:
        settings = Settings()
    except ValidationError as error:
        # The input stays out: it may be a secret.
        wrong = error.errors(include_url=False, include_input=False)
        sys.exit("\n".join(f"{str(e['loc'][0]).upper()}: {e['msg']}" for e in wrong))
    if arguments.action is not None:
        sys.exit(
            cli.run_models(
                arguments,
                workflows_path=settings.workflows_path,
                models_path=settings.models_path,
            )
        )
    _serve(settings)


def _serve(settings: Settings) -> None:
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
