"""Every setting of the GPU service has its place in the documentation."""

from pathlib import Path

from gpu_server.settings import Settings

PAGE = Path(__file__).parents[3] / "docs" / "operate.md"


def test_every_setting_of_the_gpu_service_is_documented() -> None:
    text = PAGE.read_text()
    assert not [name for name in Settings.model_fields if f"`{name.upper()}`" not in text]
