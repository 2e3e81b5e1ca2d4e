"""What whoever starts a gateway should know, said in its log."""

import asyncio
import logging
from collections.abc import Sequence

from gateway.api.context import Context
from gateway.backends.sidecar import Sidecar
from gateway.storage.stores import Stores

logger = logging.getLogger(__name__)


def notices(context: Context) -> list[str]:
    """Say what whoever starts this should know."""
    found: list[str] = []
    if context.key.open:
        found.append("GATEWAY_API_KEY is not set: anyone who reaches the port may call this API")
    for tool in context.catalogue.tools:
        for variant in context.catalogue.families(tool):
            bound = [m for m in variant.workflow.models if not m.commercial]
            if variant.name == tool.default_variant and bound:
                terms = ", ".join(f"{m.name} ({m.license})" for m in bound)
                found.append(
                    f"{tool.path}: the default variant {variant.name} is not for commercial use: "
                    f"{terms}"
                )
    return found


def announce_bad_workflow(name: str, digest: str, error: Exception) -> None:
    """Say that a bundled workflow cannot be read."""
    del digest
    logger.error("workflow %s is left out: %s", name, error)


async def announce_trouble(stores: Stores) -> None:
    """Say once that files cannot be kept: it may pass, so it ends nothing."""
    if (trouble := await stores.trouble()) is not None:
        logger.warning("Files cannot be kept. %s Until they can, jobs wait or fail.", trouble)


async def announce_simulators(backends: Sequence[Sidecar]) -> None:
    """Say it loudly once a backend turns out to be a simulator."""
    told: set[str] = set()
    while True:
        for backend in backends:
            if backend.engine == "simulator" and backend.name not in told:
                told.add(backend.name)
                logger.warning("%s is a SIMULATOR: pictures are drawn, not generated", backend.name)
            elif backend.engine == "comfyui":
                told.discard(backend.name)
        await asyncio.sleep(2)
