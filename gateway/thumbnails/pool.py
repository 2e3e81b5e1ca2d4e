"""Looks at pictures and videos in processes of their own: decoders are not to be trusted."""

from pathlib import Path
from types import TracebackType
from typing import Self

from gateway.thumbnails.order import Looked, Made, MediaAnswer, MediaLimits, MediaOrder
from gateway.thumbnails.unfit import UnfitMedia, too_costly
from gpu_server.workers import Died, Overran, Workers


class MediaPool:
    """Reads each file in a fresh, confined process, a few at a time."""

    def __init__(
        self,
        limits: MediaLimits | None = None,
        *,
        workers: int = 2,
        module: str = "gateway.thumbnails.worker",
    ) -> None:
        self._limits = limits or MediaLimits()
        self._workers = Workers(
            module, MediaAnswer, name="thumbnail", workers=workers, seconds=self._limits.seconds
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def look(self, path: Path, *, moving: bool = True) -> Looked:
        """Decode the file at `path`; `moving=False` refuses animated pictures.

        Raises UnfitMedia; OSError when the file or the process cannot be opened.
        """
        return (await self._run(MediaOrder(source=path, moving=moving, limits=self._limits)))[0]

    async def thumbnail(self, path: Path, target: Path, side: int) -> Made:
        """Write the picture at `path`, or a video's frame at 0.1 s, to `target`: at most `side`.

        Raises as `look_and_thumbnail`.
        """
        return (await self.look_and_thumbnail(path, target, side))[1]

    async def look_and_thumbnail(
        self, path: Path, target: Path, side: int, *, moving: bool = True
    ) -> tuple[Looked, Made]:
        """Do both, in one process. `target` is a WebP, there only if this returns.

        Raises UnfitMedia; OSError when a file or the process cannot be opened, or the disk is full.
        """
        order = MediaOrder(
            source=path, target=target, side=side, moving=moving, limits=self._limits
        )
        try:
            looked, made = await self._run(order)
        except BaseException:
            _remove(target)
            raise
        if made is None:
            raise RuntimeError("the thumbnail process wrote nothing")
        return looked, made

    async def close(self) -> None:
        """Kill what is running and wait until every process is gone."""
        await self._workers.close()

    async def _run(self, order: MediaOrder) -> tuple[Looked, Made | None]:
        # told here, or a file that has just been deleted would pass for a damaged one
        order.source.stat()
        try:
            answer = await self._workers.run(order)
        except Overran:
            raise too_costly() from None
        except Died as died:
            if died.overran:
                raise too_costly() from None
            # whatever it is, a decoder crashes over it
            raise UnfitMedia("unreadable_image", "could not be read: save it anew") from None
        if answer.errno is not None:
            raise OSError(answer.errno, "the thumbnail could not be written")
        if answer.looked is None:
            raise UnfitMedia(answer.code or "unreadable_image", answer.message)
        return answer.looked, answer.made


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
