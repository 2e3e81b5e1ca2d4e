"""Real S3-protocol servers on loopback.

`rclone serve s3` checks signatures, expiry and `Content-MD5`; its ETags are plain MD5, it answers
200 to a range, and ignores conditions on PUT. moto checks none of the three; it answers 206 and 412
as AWS does, and its multipart ETags are `md5-N`.
"""

import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Protocol

import boto3  # pyright: ignore[reportMissingTypeStubs]  # only its asynchronous twin has stubs
import httpx
import pytest
from botocore.config import Config

from gateway.storage.bucket import Bucket
from tests.support.rclone import PROGRAM
from tests.support.stack import ROOT, free_port

Kind = Literal["rclone", "moto"]
START_S = 60
STOP_S = 20
ACCESS_KEY_ID = "test-access-key"
SECRET_ACCESS_KEY = "a-bucket-secret-no-text-may-show"


class _Process(Protocol):
    def start(self) -> None: ...

    def stop(self) -> None: ...

    def make_bucket(self, name: str) -> None: ...


class S3Server:
    """A running server and one bucket in it."""

    def __init__(self, kind: Kind, port: int, bucket: str, process: _Process) -> None:
        self.kind: Kind = kind
        self.port = port
        self.endpoint = f"http://127.0.0.1:{port}"
        self.access_key_id = ACCESS_KEY_ID
        self.secret_access_key = SECRET_ACCESS_KEY
        self.bucket = bucket
        self._process = process

    def env(self, *, bucket: str | None = None) -> dict[str, str]:
        """What a gateway needs to keep its files in the bucket."""
        return {
            "STORAGE_URL": f"s3://{bucket or self.bucket}",
            "S3_ENDPOINT_URL": self.endpoint,
            "S3_REGION": "us-east-1",
            "S3_ACCESS_KEY_ID": self.access_key_id,
            "S3_SECRET_ACCESS_KEY": self.secret_access_key,
        }

    def stop(self) -> None:
        """Go away: connections are refused; what it holds stays."""
        self._process.stop()

    def start(self) -> None:
        """Come back on the same port."""
        self._process.start()

    def client(self) -> Any:
        """A blocking client of the server, for looking at what lies there."""
        made: Any = boto3
        return made.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def new_bucket(self) -> "S3Server":
        """The same server with another, empty bucket."""
        name = f"bucket-{next(_numbers)}"
        self._process.make_bucket(name)
        return S3Server(self.kind, self.port, name, self._process)

    def keys(self, prefix: str = "") -> list[str]:
        """Every key in the bucket."""
        lists = self.client().get_paginator("list_objects_v2")
        pages = lists.paginate(Bucket=self.bucket, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", ())]

    def unfinished(self) -> list[str]:
        """Keys of the multipart uploads that are neither completed nor aborted."""
        client = self.client()
        try:
            listed = client.list_multipart_uploads(Bucket=self.bucket)
        except client.exceptions.NoSuchUpload:  # rclone's word for none
            return []
        return [upload["Key"] for upload in listed.get("Uploads", ())]


_numbers = itertools.count(1)


@contextmanager
def rclone(folder: Path) -> Generator[S3Server]:
    """A server over a folder: buckets are folders in it. Skips where rclone is not there."""
    if not PROGRAM.exists():
        pytest.skip(f"{PROGRAM} is not there: `make setup` unpacks it")
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    process = _Rclone(folder, port)
    process.start()
    try:
        yield S3Server("rclone", port, "none", process).new_bucket()
    finally:
        process.stop()


@contextmanager
def moto() -> Generator[S3Server]:
    """A server in memory."""
    port = free_port()
    process = _Moto(port)
    try:
        process.start()
        yield S3Server("moto", port, "none", process).new_bucket()
    finally:
        process.end()


class _Rclone:
    """The process, and its log beside the folder."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder = folder
        self._port = port
        self._log = folder.with_name(f"{folder.name}.rclone.log")
        self._running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self._running is not None:
            return
        inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        command = [
            *(str(PROGRAM), "serve", "s3", "--config", "", "--addr", f"127.0.0.1:{self._port}"),
            *("--auth-key", f"{ACCESS_KEY_ID},{SECRET_ACCESS_KEY}"),
            # Not "--dir-cache-time 0s": its timers would then fire without a pause, which takes a
            # core and ends in a deadlock of its own. What is made beside the server it sees late.
            *("--vfs-cache-mode", "off", "--dir-cache-time", "1h", str(self._folder)),
        ]
        with self._log.open("ab") as log:
            self._running = subprocess.Popen(command, env=inherited, stdout=log, stderr=log)
        _await_port(self._port, self._running, self._log)

    def make_bucket(self, name: str) -> None:
        # by its own protocol: it would see a folder made beside it only later
        bucket = Bucket(
            scheme="s3",
            name=name,
            endpoint=f"http://127.0.0.1:{self._port}",
            region="us-east-1",
            access_key_id=ACCESS_KEY_ID,
            secret_access_key=SECRET_ACCESS_KEY,
        )
        address = bucket.signed("PUT", "", timedelta(minutes=5))
        made = httpx.put(address, timeout=START_S, trust_env=False)
        assert made.is_success, made.text

    def stop(self) -> None:
        process, self._running = self._running, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class _Moto:
    """A process of its own: moto changes botocore for the process it is imported into."""

    def __init__(self, port: int) -> None:
        self._port = port
        command = [sys.executable, "-m", "tests.support.moto_process", str(port)]
        environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
        self._running = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def start(self) -> None:
        self._say("start")

    def stop(self) -> None:
        self._say("stop")

    def make_bucket(self, name: str) -> None:
        # unsigned: it does not look
        made = httpx.put(f"http://127.0.0.1:{self._port}/{name}", timeout=START_S, trust_env=False)
        assert made.is_success, made.text

    def end(self) -> None:
        """Stop for good."""
        self._running.terminate()
        self._running.communicate()

    def _say(self, word: str) -> None:
        assert self._running.stdin is not None
        assert self._running.stdout is not None
        self._running.stdin.write(f"{word}\n")
        self._running.stdin.flush()
        assert self._running.stdout.readline().strip() == word, "moto ended"


def _await_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5):
                return
        except OSError:
            assert process.poll() is None, log.read_text(errors="replace")
            time.sleep(0.02)
    raise AssertionError(f"rclone did not come up:\n{log.read_text(errors='replace')}")
