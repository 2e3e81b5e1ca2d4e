"""`python -m gpu_server.simulator`: serve ComfyUI's protocol without ComfyUI."""

import argparse
import sys
from pathlib import Path
from tempfile import gettempdir

import uvicorn

from gpu_server import __version__
from gpu_server.simulator import COMFYUI_VERSION
from gpu_server.simulator.server import create_app, uvicorn_options
from gpu_server.simulator.settings import SettingsError, settings_from_environment


def main() -> None:
    """Parse the command line and serve until stopped."""
    parser = argparse.ArgumentParser(prog="python -m gpu_server.simulator", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8288, help="port to listen on")
    parser.add_argument(
        "--dir",
        type=Path,
        help="where input/, output/, temp/ and models/ lie; absent: a folder of this port's own "
        "among the temporary files",
    )
    parser.add_argument(
        "--ledger",
        type=Path,
        help="a file that gets a line for each execution and outlives this process: time, process "
        "id, prompt id",
    )
    options = parser.parse_args()
    directory: Path = options.dir or Path(gettempdir()) / f"comfyui-simulator-{options.port}"
    try:
        settings = settings_from_environment()
    except SettingsError as error:
        sys.exit(f"SIM_*: {error}")
    print(  # noqa: T201 - the first line of its log
        f"ComfyUI SIMULATOR {__version__} (speaks the protocol of {COMFYUI_VERSION}) at "
        f"http://{options.host}:{options.port}: no GPU and no weights, pictures are procedural and "
        f"marked SIMULATED. Files in {directory}",
        flush=True,
    )
    app = create_app(directory, settings, options.ledger)
    uvicorn.run(app, host=options.host, port=options.port, **uvicorn_options())


if __name__ == "__main__":
    main()
