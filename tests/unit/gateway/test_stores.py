"""Buckets from the settings, and what is said when a setting is missing."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from gateway.agreement import Misconfigured, slots_address, stores_of
from gateway.observability.logging import configure
from gateway.security.signing import Signer
from gateway.settings import Settings
from gateway.storage.local import LocalStorage
from gateway.storage.s3 import S3Storage
from gateway.storage.stores import InputBuckets, Stores, StoreUnusable

ROOT = Path(__file__).parents[3]
KEY = "generated/2026/03/09/01890000-0000-7000-8000-000000000000/0a1b2c.png"
HOUR = timedelta(hours=1)
R2 = {
    "r2_endpoint_url": "https://account.r2.cloudflarestorage.com/",
    "r2_access_key_id": "r2-key",
    "r2_secret_access_key": "r2-secret",
}
S3 = {"s3_access_key_id": "s3-key", "s3_secret_access_key": "s3-secret"}
GCS = {"gcs_access_key_id": "GOOG1", "gcs_secret_access_key": "gcs-secret"}


@pytest.fixture(autouse=True)
def _no_dotenv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def settings(**values: object) -> Settings:
    return Settings.model_validate(values)


def stores(**values: object) -> Stores:
    return Stores.of(settings(**values), Signer(bytes(32)), "http://127.0.0.1:8000")


def link(**values: object) -> str:
    return stores(**values).storage.link(KEY, HOUR)


def test_without_a_setting_files_lie_in_a_folder(tmp_path: Path) -> None:
    storage = stores(workspace=tmp_path).storage
    assert isinstance(storage, LocalStorage)
    assert storage.max_bytes == 2 * 1024**3


def test_what_may_be_uploaded_may_be_stored() -> None:
    storage = stores(upload_max_mb=4000, storage_url="r2://pictures", **R2).storage
    assert isinstance(storage, S3Storage)
    assert storage.max_bytes == 4000 * 1024 * 1024


@pytest.mark.parametrize(
    ("values", "begins", "region"),
    [
        (
            {"storage_url": "r2://pictures", **R2},
            "https://account.r2.cloudflarestorage.com/pictures/generated/",
            "auto",
        ),
        (
            {"storage_url": "s3://my.pictures", "s3_region": "eu-central-1", **S3},
            "https://s3.eu-central-1.amazonaws.com/my.pictures/generated/",
            "eu-central-1",
        ),
        (
            {"storage_url": "s3://pictures", "s3_region": "cn-north-1", **S3},
            "https://s3.cn-north-1.amazonaws.com.cn/pictures/generated/",
            "cn-north-1",
        ),
        (
            {"storage_url": "s3://pictures", "s3_endpoint_url": "http://minio:9000", **S3},
            "http://minio:9000/pictures/generated/",
            "auto",
        ),
        (
            {"storage_url": "gs://pictures", "project_name": "studio", **GCS},
            "https://storage.googleapis.com/pictures/studio/generated/",
            "auto",
        ),
    ],
)
def test_each_store_is_reached_by_path_in_its_region(
    values: dict[str, object], begins: str, region: str
) -> None:
    made = link(**values)
    assert made.startswith(begins)
    assert f"%2F{region}%2Fs3%2Faws4_request" in made


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"storage_url": "r2://pictures"},
            "r2://pictures: set R2_ENDPOINT_URL, R2_ACCESS_KEY_ID, R2_SECRET_ACCESS_KEY",
        ),
        (
            {"storage_url": "r2://pictures", **R2, "r2_access_key_id": None},
            "STORAGE_URL names r2://pictures: set R2_ACCESS_KEY_ID",
        ),
        (
            {"storage_url": "s3://pictures", "s3_region": "us-east-1"},
            "STORAGE_URL names s3://pictures: set S3_ACCESS_KEY_ID, S3_SECRET_ACCESS_KEY",
        ),
        ({"storage_url": "s3://pictures", **S3}, "set S3_REGION to the region it lies in"),
        (
            {"storage_url": "gs://pictures"},
            "STORAGE_URL names gs://pictures: set GCS_ACCESS_KEY_ID, GCS_SECRET_ACCESS_KEY",
        ),
        (
            {"input_buckets": "gs://pictures/in/"},
            "INPUT_BUCKETS names gs://pictures: set GCS_ACCESS_KEY_ID, GCS_SECRET_ACCESS_KEY",
        ),
        ({"gcs_bucket_name": "pictures"}, "GCS_BUCKET_NAME names gs://pictures: set GCS_ACCESS"),
        (
            {"storage_url": "r2://pictures", "input_buckets": "r2://pictures/generated/", **R2},
            "every caller could read everyone's",
        ),
    ],
)
def test_what_is_missing_is_said_by_the_names_of_the_settings(
    values: dict[str, object], said: str
) -> None:
    with pytest.raises(Misconfigured) as caught:
        stores_of(settings(**values), Signer(bytes(32)))
    assert said in str(caught.value)
    assert "-secret" not in str(caught.value)


@pytest.mark.parametrize(
    "endpoint",
    [
        "account.r2.cloudflarestorage.com",
        "ftp://account.r2.cloudflarestorage.com",
        "https://account.r2.cloudflarestorage.com/pictures",
        "https://key:r2-secret@account.r2.cloudflarestorage.com",
        "https://account.r2.cloudflarestorage.com?x=1",
        "https://[account",
        "https://",
    ],
)
def test_an_endpoint_is_the_stores_address_alone(endpoint: str) -> None:
    with pytest.raises(StoreUnusable, match="R2_ENDPOINT_URL") as caught:
        stores(storage_url="r2://pictures", **{**R2, "r2_endpoint_url": endpoint})
    assert "r2-secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["r2://", "r2://Up", "r2://a/b", "s3://pictures/folder", "gs:///x"])
def test_a_storage_url_names_a_bucket_alone(url: str) -> None:
    with pytest.raises(ValidationError, match=r"r2://bucket"):
        settings(storage_url=url)


def buckets(**values: object) -> InputBuckets:
    return InputBuckets.of(settings(**values))


def test_files_of_named_buckets_and_folders_are_opened_and_no_others() -> None:
    named = buckets(
        input_buckets="r2://shared,s3://stock/free/",
        gcs_bucket_name="ours",
        s3_endpoint_url="http://minio:9000",
        **R2,
        **S3,
        **GCS,
    )
    known = {
        "r2://shared/a b.png": "r2://shared/a%20b.png",
        "s3://stock/free/a.png": "s3://stock/free/a.png",
        "gs://ours/a.png": "gs://ours/a.png",
        "https://storage.googleapis.com/ours/a.png": "gs://ours/a.png",
    }
    for address, canonical in known.items():
        assert named.canonical(address) == canonical
        made = named.link(canonical, HOUR)
        assert made is not None
        assert "X-Amz-Signature=" in made
        assert "-secret" not in made
    for address in (
        "r2://other/a.png",
        "gs://shared/a.png",
        "s3://stock/a.png",
        "s3://stock/freeze/a.png",
        "s3://stock/free/../a.png",
        "s3://stock/free/",
        "https://storage.googleapis.com/other/a.png",
        "https://example.com/a.png",
    ):
        assert named.canonical(address) is None
        assert named.link(address, HOUR) is None


def test_the_storage_itself_is_no_bucket_of_everyones_by_whatever_name() -> None:
    own = {"storage_url": "gs://ours", "gcs_bucket_name": "ours", **GCS}
    assert buckets(**own).canonical("gs://ours/a.png") is None
    assert buckets(**own, project_name="studio").canonical("gs://ours/studio/a.png") is None
    same = {"s3_endpoint_url": R2["r2_endpoint_url"], "input_buckets": "s3://pictures", **S3}
    with pytest.raises(StoreUnusable, match="every caller"):
        buckets(storage_url="r2://pictures", **R2, **same)
    beside = buckets(
        storage_url="r2://pictures", project_name="studio", input_buckets="r2://pictures/in/", **R2
    )
    assert beside.canonical("r2://pictures/in/a.png") is not None
    assert beside.canonical("r2://pictures/studio/a.png") is None


def test_with_a_bucket_gpu_services_elsewhere_need_no_address_of_the_gateway() -> None:
    remote = {"gpu_service_url": "http://10.0.0.7:8001"}
    with pytest.raises(Misconfigured, match="PUBLIC_URL"):
        slots_address(settings(**remote))
    assert slots_address(settings(storage_url="r2://pictures", **remote)).startswith("http://127")


def test_only_local_folders_are_looked_at_for_room(tmp_path: Path) -> None:
    local = settings(workspace=tmp_path)
    assert local.files in local.written_folders
    remote = settings(workspace=tmp_path, storage_url="r2://pictures")
    assert set(remote.written_folders) == {tmp_path / "data"}
    elsewhere = settings(storage_url="r2://pictures", database_url="postgresql://u:p@db:5432/g")
    assert elsewhere.written_folders == (elsewhere.data,)


def test_a_storage_that_does_not_run_signs_and_does_nothing_else() -> None:
    storage = stores(storage_url="r2://pictures", **R2).storage
    assert storage.slot(KEY, HOUR)
    with pytest.raises(RuntimeError, match="not running"):
        storage.stat(KEY).send(None)


@pytest.fixture
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]


@pytest.mark.usefixtures("_logging_as_before")
def test_what_signs_logs_no_detail_even_when_everything_is_logged() -> None:
    configure("DEBUG", "standard")
    for name in ("botocore.auth", "botocore.endpoint", "aiobotocore.httpsession"):
        assert not logging.getLogger(name).isEnabledFor(logging.INFO)


def test_who_keeps_files_in_a_folder_loads_nothing_that_speaks_s3() -> None:
    program = "import sys, gateway.cli; print({'aioboto3', 'botocore', 'aiohttp'} & {*sys.modules})"
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "set()"
