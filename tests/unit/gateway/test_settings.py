from pathlib import Path

import pytest
from pydantic import ValidationError

from gateway.agreement import Misconfigured, slots_address
from gateway.backends.sidecar import name_of
from gateway.runtime import build
from gateway.settings import Settings


@pytest.fixture(autouse=True)
def _no_dotenv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_setting_is_described_and_named_as_its_variable() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert name == name.lower()


def test_a_comma_list_names_several_gpu_services(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_SERVICE_URL", "http://localhost:8001/, http://10.0.0.7:8001")
    assert Settings().gpu_service_url == ("http://localhost:8001", "http://10.0.0.7:8001")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://localhost:8001", "localhost:8001"),
        ("https://me:secret@GPU.example.com", "gpu.example.com:443"),
        ("http://[::1]:8001/a/", "[::1]:8001/a"),
        ("http://10.0.0.7", "10.0.0.7:80"),
    ],
)
def test_a_gpu_service_is_named_by_its_address_wherever_it_stands_in_the_list(
    url: str, name: str
) -> None:
    assert name_of(url) == name
    for urls in ((url, "http://other:1"), ("http://other:1", url, url)):
        places = build(Settings(gpu_service_url=urls, public_url="http://a")).context.backends
        assert {each.name for each in places} == {name, "other:1"}


def test_two_addresses_of_one_gpu_service_are_refused() -> None:
    settings = Settings(gpu_service_url=("http://a:80", "http://a"), public_url="http://a")
    with pytest.raises(Misconfigured, match="a:80 twice"):
        build(settings)


def test_time_outs_are_set_tool_by_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOL_TIMEOUTS", "generate=600, video=3600")
    assert Settings().tool_timeouts == (("generate", 600), ("video", 3600))


@pytest.mark.parametrize("value", ["600", "generate=", "generate=soon", "generate=0"])
def test_a_time_out_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("TOOL_TIMEOUTS", value)
    with pytest.raises(ValidationError, match="tool_timeouts"):
        Settings()


def test_a_time_out_of_no_tool_is_refused(tmp_path: Path) -> None:
    settings = Settings(workspace=tmp_path, tool_timeouts=(("genrate", 60),))
    with pytest.raises(Misconfigured, match="no tool is named 'genrate'; there is generate"):
        build(settings)


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_API_KEY", "")
    monkeypatch.setenv("BACKEND_PORT", "")
    assert Settings().gateway_api_key is None
    assert Settings().backend_port == 8000


def test_secrets_do_not_show_when_settings_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_API_KEY", "very-secret")
    monkeypatch.setenv("GPU_SERVICE_TOKEN", "very-secret")
    assert "very-secret" not in repr(Settings())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BACKEND_PORT", "0"),
        ("REQUEST_TIMEOUT", "0"),
        ("LOG_FORMAT", "xml"),
        ("GPU_SERVICE_URL", "ftp://x"),
        ("GPU_SERVICE_URL", ","),
        ("GPU_SERVICE_URL", "http://x:port"),
        ("PUBLIC_URL", "gateway"),
        ("STORAGE_URL", "s3://bucket/folder"),
        ("STORAGE_URL", "s3://Bucket"),
        ("STORAGE_URL", "ftp://bucket"),
    ],
)
def test_a_wrong_value_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError) as refused:
        Settings()
    assert refused.value.errors()[0]["loc"] == (name.lower(),)


def test_severity_and_form_of_logs_may_be_written_in_any_case(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOG_LEVEL", "info")
    monkeypatch.setenv("LOG_FORMAT", "JSON")
    assert (Settings().log_level, Settings().log_format) == ("INFO", "json")


def test_the_default_wait_stays_below_what_a_proxy_allows() -> None:
    assert Settings().default_wait == 90
    assert Settings(request_timeout=30).default_wait == 30


def test_data_lies_in_the_workspace_unless_said_otherwise(tmp_path: Path) -> None:
    settings = Settings(workspace=tmp_path)
    assert settings.database == f"sqlite+aiosqlite:///{tmp_path}/data/gateway.sqlite"
    assert settings.files == tmp_path / "data" / "files"
    assert Settings(storage_url="file:///srv/files").files == Path("/srv/files")


def test_a_gpu_service_on_this_host_uses_the_internal_address() -> None:
    settings = Settings(backend_port=9000, gpu_service_url=("http://127.0.0.1:1",))
    assert slots_address(settings) == "http://127.0.0.1:9000"


def test_a_remote_gpu_service_needs_a_public_address() -> None:
    remote = ("http://localhost:8001", "http://gpu.example.com:8001")
    with pytest.raises(Misconfigured, match="PUBLIC_URL"):
        slots_address(Settings(gpu_service_url=remote))
    settings = Settings(gpu_service_url=remote, public_url="https://gateway.example.com/")
    assert slots_address(settings) == "https://gateway.example.com"
