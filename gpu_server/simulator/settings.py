"""The knobs: what a test or a demo may change about the simulator while it runs."""

import json
import os
import threading
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Milliseconds = Annotated[float, Field(ge=0, le=3_600_000)]
Count = Annotated[int, Field(ge=0)]


class Failure(BaseModel):
    """How a node class fails: with which exception, and how many more times."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    exception_type: str = "RuntimeError"
    message: str = "simulated failure"
    times: Count | None = None
    """Absent: every time."""


class Settings(BaseModel):
    """Every knob with its default; all faults are off."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step_ms: Milliseconds = 20
    """Time one sampler step takes."""
    previews: bool = False
    """Send a JPEG preview after each sampler step."""
    hide: tuple[str, ...] = ()
    """Model files that are not there."""
    output_bytes: Count = 0
    """Least size of a saved PNG; it is padded with incompressible bytes."""
    max_upload_size: Annotated[int, Field(ge=1)] = 104_857_600
    """Largest request body, in bytes."""

    slow_nodes: dict[str, Milliseconds] = {}
    """Class → extra time its execution blocks."""
    failing_nodes: dict[str, Failure] = {}
    """Class → how it fails; the exception type `ExecutionBlocked` blocks instead of failing."""
    out_of_memory: Count = 0
    """So many prompts, from the next on, fail with `torch.OutOfMemoryError` at their first node."""
    partial_reject: Count = 0
    """So many prompts, from the next on, are answered 200 with `node_errors`."""
    wedge: Literal["idle", "start", "running"] | None = None
    """Kill the worker, once: before it takes a prompt, after `execution_start`, in a node."""

    drop_at_step: Count | None = None
    """Drop every websocket, once, after the progress event of this step."""
    drop_after_event: str | None = None
    """Drop every websocket, once, after this event was sent."""
    refuse_sockets: bool = False
    """Refuse new websockets with 403."""
    late_executed: bool = False
    """Send `executed` only after `executing null`."""
    history_delay_ms: Milliseconds = 0
    """A history entry appears so long after `executing null`; until then it is "running"."""
    history_gap: bool = False
    """With `history_delay_ms`: the prompt is listed nowhere meanwhile (ComfyUI never does that)."""
    delay_ms: dict[str, Milliseconds] = {}
    """Path → how long its answer is withheld after the work was done."""
    hold_ms: dict[str, Milliseconds] = {}
    """Path → how long the request is not read."""


class SettingsError(Exception):
    """A setting does not exist or has an impossible value; the text names it."""


def settings_from_environment(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read `SIM_<NAME>` for every setting; lists and objects are JSON."""
    values: dict[str, Any] = {}
    for name in Settings.model_fields:
        text = environment.get(f"SIM_{name.upper()}")
        if text:
            values[name] = _parsed(text)
    return validated(values)


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def validated(values: dict[str, Any]) -> Settings:
    """Build settings, or say which one is wrong."""
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}"
            for fault in error.errors(include_url=False, include_input=False)
        )
        raise SettingsError(faults) from None


class Knobs:
    """The settings in force, shared by the event loop and the worker thread."""

    def __init__(self, settings: Settings) -> None:
        self._lock = threading.Lock()
        self._settings = settings

    @property
    def current(self) -> Settings:
        """The settings in force now."""
        return self._settings

    def replace(self, settings: Settings) -> None:
        """Put other settings in force."""
        with self._lock:
            self._settings = settings

    def update(self, changes: Mapping[str, Any]) -> None:
        """Change some settings and keep the rest; raises `SettingsError`."""
        with self._lock:
            self._settings = validated({**self._settings.model_dump(), **changes})

    def take(self, counter: Literal["out_of_memory", "partial_reject"]) -> bool:
        """Use up one of a counted fault; false when none is left."""
        with self._lock:
            left: int = getattr(self._settings, counter)
            if left:
                self._settings = self._settings.model_copy(update={counter: left - 1})
            return left > 0

    def take_failure(self, class_type: str) -> Failure | None:
        """Return how this node must fail now, if it must, and count it."""
        with self._lock:
            failure = self._settings.failing_nodes.get(class_type)
            if failure is None or failure.times is None:
                return failure
            if failure.times == 0:
                return None
            left = failure.model_copy(update={"times": failure.times - 1})
            failing = {**self._settings.failing_nodes, class_type: left}
            self._settings = self._settings.model_copy(update={"failing_nodes": failing})
            return failure
