"""Where the gateway's own processes get a mesh from, and where they bring the finished one."""

from pathlib import Path

import httpx

from gateway.backends.base import RunFailed
from gateway.storage.disk import DiskSpace
from gpu_server.addresses import FetchRules
from gpu_server.fetch import Fetcher
from gpu_server.mesh.files import NotFetched, deliver, fetch
from gpu_server.mesh.order import MeshOrder
from gpu_server.protocol import Failure, InputFile, OutputFile, Slot
from gpu_server.sending import Refused


class Transfers:
    """Moves files for the gateway's own processes.

    `most` is the largest that is fetched. Links and slots that begin with `public`, this gateway's
    address for services elsewhere, are taken from `local`: it may not reach itself from outside.
    """

    def __init__(
        self,
        *,
        http: httpx.AsyncClient,
        disk: DiskSpace,
        most: int,
        public: str,
        local: str,
        rules: FetchRules | None = None,
    ) -> None:
        self._http = http
        self._disk = disk
        self._most = most
        self._public = f"{public.rstrip('/')}/"
        self._local = f"{local.rstrip('/')}/"
        self._fetcher = Fetcher(rules=rules)

    async def close(self) -> None:
        """Close every connection of its own."""
        await self._fetcher.__aexit__()

    async def fetch(self, file: InputFile, path: Path) -> None:
        """Bring a file here; only addresses the gateway has made are trusted.

        Raises RunFailed, MeshError (too large), OSError.
        """
        if (short := await self._disk.shortage()) is not None:
            failure = Failure(kind="transient", code="disk_full", message=short)
            raise RunFailed(failure, executed=False)
        near = file.model_copy(update={"url": self._nearest(file.url)})
        try:
            await fetch(self._fetcher, near, path, most=self._most)
        except NotFetched as error:
            raise RunFailed(error.failure, executed=False) from None

    async def deliver(self, work: MeshOrder, slot: Slot, *, faces: int) -> OutputFile:
        """Bring a finished file into its slot, as often as it takes, until it is cancelled.

        Raises RunFailed when the slot refuses it, OSError.
        """
        near = slot.model_copy(update={"url": self._nearest(slot.url)})
        try:
            return await deliver(self._http, work, near, faces=faces)
        except Refused as refused:
            raise RunFailed(refused.failure, executed=False) from None

    def _nearest(self, url: str) -> str:
        ours = url.startswith(self._public)
        return self._local + url[len(self._public) :] if ours else url
