"""Why a job fails, as the worker's callers read it."""

from typing import Self

from pydantic import JsonValue

from gpu_server.protocol import Failure, FailureKind

SICK = frozenset({"gpu_failed", "comfyui_unavailable", "comfyui_wedged"})
"""After a failure of this kind a worker takes no more jobs: the next ones would fail as well."""
TOO_LARGE = "result_too_large"


class CallFailed(Exception):
    """A job ended without result; `failure` says why."""

    def __init__(
        self, kind: FailureKind, code: str, message: str, *, node: str | None = None
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.failure = Failure(kind=kind, code=code, message=message, node=node)

    @classmethod
    def of(cls, failure: Failure) -> Self:
        """Fail for a reason that is known already."""
        return cls(failure.kind, failure.code, failure.message, node=failure.node)


def told_to_people(failure: Failure) -> dict[str, JsonValue]:
    """What a plain call is answered; `error` is a sentence, RunPod passes on nothing but texts."""
    return {"error": failure.message, "code": failure.code, "kind": failure.kind}


def told_to_gateway(failure: Failure) -> dict[str, JsonValue]:
    """What a RunRequest is answered; `error` is a `Failure` of the wire contract as JSON."""
    return {"error": failure.model_dump_json(exclude_none=True)}
