"""One large file through upload, storage and download, and the memory of each process meanwhile.

The gateway runs in a process of its own, over a folder and over a bucket (rclone's S3 server on
loopback, a process of its own too). The same client sends and reads every time, in pieces of 1 MiB.
The floor of the folder is a bare server that writes the body into a file, of the bucket the store
itself by a signed address. The ratio counts; the seconds are this machine's.

    python -m benchmarks.media [--megabytes 1000] [--folder /tmp] [--write benchmarks/media.md]
"""

import argparse
import contextlib
import hashlib
import http.client
import json
import os
import platform
import secrets
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil

from benchmarks.memory import Grown, Watching
from gateway.storage.bucket import Bucket
from tests.support.media import video
from tests.support.rclone import PROGRAM
from tests.support.s3 import S3Server, rclone
from tests.support.stack import KEY, ROOT, Stack, free_port

MB = 1_000_000
PIECE = 1024 * 1024
SMALL_MB = 5
MOST_GROWTH_MB = 64
WARM_UPS = 3
LONG = timedelta(hours=1)
ROOM = 8
"""Times the file's size that must be free: the file, the store's, what is being looked at."""
BOUNDARY = "the-boundary-of-this-benchmark"
FORM = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="large.mp4"\r\n'
    "Content-Type: video/mp4\r\n\r\n"
).encode()
FORM_END = f"\r\n--{BOUNDARY}--\r\n".encode()
LEGEND = f"""\
Memory is the most each process had resident (`VmHWM`), and by how much that was more than before.
Every file is looked at by a worker of its own, a fresh process: what it had more than for a file of
{SMALL_MB} MB. It is looked at every 5 ms, so that its most may be missed. A direct upload goes to
the store and is then completed: the gateway reads it once more on its way to its final place."""
HEAD = "| store, way | s | MB/s | floor s | ratio | gateway MB | worker MB | store MB |"


@dataclass(frozen=True, kw_only=True)
class Film:
    """A video of a wanted size."""

    path: Path
    bytes: int
    sha256: str


def make_film(path: Path, size: int) -> Film:
    """Two seconds of film, then a box of random bytes that every player passes over."""
    video(path, width=1280, height=720, frames=48, options={"movflags": "faststart"})
    padding = size - path.stat().st_size
    piece = secrets.token_bytes(PIECE)
    with path.open("ab") as file:
        # size 1: the real one follows in 64 bits (ISO 14496-12 §4.2)
        file.write(struct.pack(">I4sQ", 1, b"free", padding))
        left = padding - 16
        while left > 0:
            left -= file.write(piece[:left])
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return Film(path=path, bytes=path.stat().st_size, sha256=digest.hexdigest())


def send(
    method: str, url: str, film: Film, *, form: bool = False, **headers: str
) -> dict[str, Any]:
    """Send a file in pieces; the JSON that is answered, if any is."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=600)
    before, after = (FORM, FORM_END) if form else (b"", b"")
    with contextlib.closing(connection), film.path.open("rb") as file:
        connection.putrequest(method, f"{parts.path}?{parts.query}" if parts.query else parts.path)
        connection.putheader("Content-Length", str(len(before) + film.bytes + len(after)))
        if form:
            headers["Content-Type"] = f"multipart/form-data; boundary={BOUNDARY}"
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders(before or None)
        while piece := file.read(PIECE):
            connection.send(piece)
        if after:
            connection.send(after)
        answer = connection.getresponse()
        body = answer.read()
    assert answer.status // 100 == 2, (answer.status, body[:2000])
    return json.loads(body) if body else {}


def read(url: str, size: int, *, digest: str | None = None, **headers: str) -> None:
    """Read a file in pieces and forget it; with a digest it is compared, which takes longer."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=600)
    hashed, total = hashlib.sha256(), 0
    with contextlib.closing(connection):
        path = f"{parts.path}?{parts.query}" if parts.query else parts.path
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        assert answer.status == 200, (answer.status, answer.read()[:2000])
        while piece := answer.read(PIECE):
            total += len(piece)
            if digest is not None:
                hashed.update(piece)
    assert total == size, (total, size)
    assert digest in {None, hashed.hexdigest()}


class Site:
    """A running gateway, and the ways a file takes through it."""

    def __init__(self, stack: Stack, store: S3Server | None) -> None:
        self.stack = stack
        self.store = store
        self.key = {"Authorization": f"Bearer {KEY}"}

    @property
    def pids(self) -> dict[str, int]:
        """Processes to watch."""
        gateway = {"gateway": self.stack.processes["gateway"].pid}
        if self.store is None:
            return gateway
        every = psutil.Process().children()
        return gateway | {"store": next(c.pid for c in every if c.name() == PROGRAM.name)}

    def upload(self, film: Film) -> dict[str, Any]:
        """By a form, through the gateway."""
        url = f"{self.stack.url}/api/media/upload"
        return self._checked(send("POST", url, film, form=True, **self.key), film)

    def direct(self, film: Film) -> dict[str, Any]:
        """Announced, PUT where it says, completed."""
        with self.stack.client() as client:
            said = client.post(
                "/api/media/uploads", json={"bytes": film.bytes, "content_type": "video/mp4"}
            )
            assert said.status_code == 201, said.text
            slot = said.json()["upload"]
            url = slot["url"]
            send("PUT", url if "://" in url else self.stack.url + url, film, **slot["headers"])
            done = client.post(f"/api/media/uploads/{said.json()['card_id']}/complete", timeout=600)
        assert done.status_code == 200, done.text
        return self._checked(done.json(), film)

    def download(self, media: dict[str, Any], *, digest: str | None = None) -> None:
        """From its address, through the gateway."""
        url = media["media_url"]
        url = url if "://" in url else self.stack.url + url
        read(url, media["bytes"], digest=digest)

    def remove(self, media: dict[str, Any]) -> None:
        """Make room again."""
        with self.stack.client() as client:
            assert client.delete(f"/api/media/{media['card_id']}").status_code == 204

    def _checked(self, media: dict[str, Any], film: Film) -> dict[str, Any]:
        assert (media["bytes"], media["sha256"]) == (film.bytes, film.sha256), media
        return media


@contextlib.contextmanager
def bare_store(folder: Path) -> Generator[str]:
    """The floor of a folder, in a process of its own."""
    folder.mkdir()
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.bare_store", str(port), str(folder)]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        for _ in range(600):
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"http://127.0.0.1:{port}/", trust_env=False)
                break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/film"
    finally:
        process.terminate()
        process.wait(30)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


def floors_of(site: Site, film: Film, folder: Path) -> tuple[float, float]:
    """Seconds to send the file, and to read it, where there is nothing but the store."""
    if site.store is None:
        with bare_store(folder / "bare") as url:
            found = _floors(film, url, url)
        shutil.rmtree(folder / "bare")
        return found
    store = site.store
    bucket = Bucket(
        scheme="s3",
        name=store.bucket,
        endpoint=store.endpoint,
        region="us-east-1",
        access_key_id=store.access_key_id,
        secret_access_key=store.secret_access_key,
    )
    put, get = (bucket.signed(method, "film", LONG) for method in ("PUT", "GET"))
    found = _floors(film, put, get)
    store.client().delete_object(Bucket=store.bucket, Key="film")
    return found


def _floors(film: Film, put: str, get: str) -> tuple[float, float]:
    sent, _ = timed(lambda: send("PUT", put, film))
    received, _ = timed(lambda: read(get, film.bytes))
    return sent, received


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way through one store."""

    store: str
    way: str
    seconds: float
    floor_s: float
    megabytes: float
    grown: Grown
    small_worker: float
    """What a worker takes for a small file: each is a fresh process, so this is its size before."""

    @property
    def growths(self) -> dict[str, float]:
        """MB by which each process of ours grew with the file."""
        more = max(self.grown.worker - self.small_worker, 0) if self.grown.worker else 0
        return {"gateway": self.grown.growth("gateway"), "worker": more}

    def __str__(self) -> str:
        """As a line of the table."""
        worker = f"{self.grown.worker:.0f} ({round(self.growths['worker']):+d})"
        store = self._shown("store") if "store" in self.grown.peak else "-"
        return (
            f"| {self.store}, {self.way} | {self.seconds:.1f} "
            f"| {self.megabytes / self.seconds:.0f} | {self.floor_s:.1f} "
            f"| **{self.seconds / self.floor_s:.1f}** "
            f"| {self._shown('gateway')} "
            f"| {worker if self.grown.worker else '-'} "
            f"| {store} |"
        )

    def _shown(self, name: str) -> str:
        return f"{self.grown.peak[name]:.0f} ({round(self.grown.growth(name)):+d})"


def measure(site: Site, name: str, small: Film, film: Film, folder: Path) -> Iterator[Row]:
    """Upload in both ways and download, each by itself."""
    put_s, get_s = floors_of(site, film, folder)
    warm = Watching(site.pids)
    media = site.upload(small)
    site.download(media, digest=small.sha256)
    site.remove(media)
    for _ in range(WARM_UPS):
        # several: a worker lives shortly, and the moment of its most may be missed
        site.remove(site.upload(small))
        site.remove(site.direct(small))
    small_worker = warm.stop().worker

    def row(way: str, floor_s: float, work: Callable[[], Any]) -> tuple[Row, Any]:
        watching = Watching(site.pids)
        seconds, result = timed(work)
        made = Row(
            store=name,
            way=way,
            seconds=seconds,
            floor_s=floor_s,
            megabytes=film.bytes / MB,
            grown=watching.stop(),
            small_worker=small_worker,
        )
        return made, result

    direct, media = row("direct upload", put_s, lambda: site.direct(film))
    site.remove(media)
    uploaded, media = row("upload", put_s, lambda: site.upload(film))
    downloaded, _ = row("download", get_s, lambda: site.download(media))
    yield from (uploaded, direct, downloaded)
    site.download(media, digest=film.sha256)
    site.remove(media)


@contextlib.contextmanager
def sites(folder: Path, kind: str) -> Generator[Site]:
    """A gateway over a folder or a bucket; it and the bucket's server are stopped at the end."""
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(rclone(folder / "store")) if kind == "bucket" else None
        env: dict[str, Any] = {"MIN_FREE_DISK_MB": "1", **(store.env() if store else {})}
        services = Stack(folder / "workspace", **env)
        stack.callback(services.stop)
        services.start("gateway")
        yield Site(services, store)


def rows(folder: Path, megabytes: int) -> Iterator[Row]:
    """Everything, the folder first."""
    small = make_film(folder / "small.mp4", SMALL_MB * MB)
    film = make_film(folder / "large.mp4", megabytes * MB)
    for kind, name in (("folder", "local disk"), ("bucket", "S3 (rclone)")):
        if kind == "bucket" and not PROGRAM.exists():
            print(f"no bucket is measured: {PROGRAM} is not there", flush=True)
            continue
        with sites(folder / kind, kind) as site:
            yield from measure(site, name, small, film, folder)
        shutil.rmtree(folder / kind)


def verdict(found: list[Row]) -> str:
    """Say which process grew most, against the aim."""
    most, what = max(
        (grown, f"{row.store}, {row.way}: {name}")
        for row in found
        for name, grown in row.growths.items()
    )
    kept = "kept" if most <= MOST_GROWTH_MB else "**not kept**"
    return (
        f"The aim that no process of ours grows by more than {MOST_GROWTH_MB} MB is {kept}: the "
        f"most is {most:.0f} MB ({what})."
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--megabytes", type=int, default=1000, help="size of the file")
    options.add_argument("--folder", type=Path, help="where everything lies meanwhile")
    options.add_argument("--write", type=Path, help="also write the table into this file")
    args = options.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        free = shutil.disk_usage(name).free
        if free < ROOM * args.megabytes * MB:
            sys.exit(f"{free // MB} MB are free in {name}: {ROOM * args.megabytes} are needed")
        lines, found = [HEAD, "|---|--:|--:|--:|--:|--:|--:|--:|"], list[Row]()
        print("\n".join(lines), flush=True)
        for row in rows(Path(name), args.megabytes):
            found.append(row)
            lines.append(str(row))
            print(row, flush=True)
    lines += ["", verdict(found)]
    print("\n".join(lines[-2:]))
    if args.write:
        machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.system()}"
        args.write.write_text(
            f"# Media\n\nMade by `python -m benchmarks.media --megabytes {args.megabytes} --write "
            f"{args.write}` on {machine}.\n\n{(__doc__ or '').split('    python')[0]}{LEGEND}\n\n"
            + "\n".join(lines)
            + "\n"
        )


if __name__ == "__main__":
    main()
