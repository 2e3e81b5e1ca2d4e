"""Every error this API answers with, as one tree.

GatewayError
├── UsageError                      the caller can mend it
│   ├── InvalidParameters     422   a field is wrong; `errors` names each one
│   ├── UnknownVariant        422   `variant` names nothing we have
│   ├── UnknownBackend        422   `backend` names nothing that could carry the call out
│   ├── ModelNotInstalled     422   a LoRA or checkpoint no GPU service lists
│   ├── PolicyViolation       422   asks for what this installation does not make
│   ├── IdempotencyKeyReused  422   the same key came with another body
│   ├── Unauthorized          401   no key, or a wrong one
│   ├── Forbidden             403   a link is expired or its signature does not fit
│   ├── NotEnabled            403   switched off on this installation
│   ├── QuotaExceeded         403   the caller keeps as much here as one may
│   ├── NotFound              404   no such job, file, model or route
│   ├── MethodNotAllowed      405   the route exists, the method does not
│   ├── Conflict              409   not possible in the present state
│   ├── PayloadTooLarge       413   more bytes than allowed
│   ├── UnsupportedMediaType  415   the body is not of the type the route reads
│   ├── RangeNotSatisfiable   416   the range lies outside the file
│   └── QueueFull             429   as many jobs wait as may; `Retry-After` says when to come again
├── DeadlineUnreachable       503   the queue is too long for the job's deadline
├── NotReady                  503   what the workflow needs is missing, and where to get it
│   └── NoBackend             503   nothing that is set up here carries the work out
├── Unavailable               503   database or storage does not answer at the moment
├── StorageFull               507   no room for results: the disk is nearly full
├── JobFailed                 422 | 502 | 503 | 504   a waited-for job ended in failure
│   └── JobCancelled          409   somebody cancelled a waited-for job
└── InternalError             500   a bug of ours; says nothing about its inside
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, JsonValue


class FieldError(BaseModel):
    """One wrong field: where it is, what is wrong, how to mend it."""

    model_config = ConfigDict(frozen=True)

    field: str
    code: str
    message: str


class Problem(BaseModel):
    """RFC 9457 problem details as this API sends them (`application/problem+json`)."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    instance: str | None = None
    errors: list[FieldError] | None = None
    job_id: str | None = None
    missing: list[dict[str, JsonValue]] | None = None
    retry_after: int | None = None


class GatewayError(Exception):
    """Base of all; never raised itself."""

    code: ClassVar[str]
    status: ClassVar[int]
    title: ClassVar[str]
    retryable: ClassVar[bool] = False
    headers: Mapping[str, str] = MappingProxyType({})
    """Response headers that belong to this answer."""
    retry_after: int | None = None
    """Seconds after which trying again makes sense; also sent as `Retry-After`."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    def problem(self) -> Problem:
        """What the caller is told."""
        return Problem(
            type=f"/docs/errors#{self.code}",
            title=self.title,
            status=self.status,
            detail=self.detail,
            code=self.code,
            retry_after=self.retry_after,
        )


class UsageError(GatewayError):
    """The caller can mend it."""

    code = "usage"
    status = 400
    title = "The request cannot be carried out"


class InvalidParameters(UsageError):
    """A field is wrong; `errors` names each one."""

    code = "invalid_parameters"
    status = 422
    title = "A parameter is not acceptable"

    def __init__(self, errors: Sequence[FieldError]) -> None:
        super().__init__("; ".join(f"{e.field}: {e.message}" for e in errors))
        self.errors = tuple(errors)

    def problem(self) -> Problem:
        """What the caller is told, field by field."""
        return super().problem().model_copy(update={"errors": list(self.errors)})


class UnknownVariant(InvalidParameters):
    """`variant` names nothing we have."""

    code = "unknown_variant"
    title = "No such variant"


class UnknownBackend(InvalidParameters):
    """`backend` names nothing that could carry the call out."""

    code = "unknown_backend"
    title = "No such backend"


class ModelNotInstalled(InvalidParameters):
    """A LoRA or checkpoint no GPU service lists."""

    code = "model_not_installed"
    title = "That model is not installed"


class PolicyViolation(InvalidParameters):
    """It asks for what this installation does not make; `errors` names the field."""

    code = "policy_violation"
    title = "That is not made here"

    def __init__(self, errors: Sequence[FieldError], *, rule: str = "") -> None:
        super().__init__(errors)
        self.rule = rule


class IdempotencyKeyReused(UsageError):
    """The same key came with another body."""

    code = "idempotency_key_reused"
    status = 422
    title = "That Idempotency-Key belongs to another request"


class Unauthorized(UsageError):
    """No key, or a wrong one."""

    code = "unauthorized"
    status = 401
    title = "A valid API key is required"
    headers = MappingProxyType({"WWW-Authenticate": "Bearer"})


class Forbidden(UsageError):
    """A link is expired or its signature does not fit."""

    code = "forbidden"
    status = 403
    title = "This link is not valid (any more)"


class NotEnabled(UsageError):
    """Switched off on this installation."""

    code = "not_enabled"
    status = 403
    title = "That is switched off here"


class QuotaExceeded(UsageError):
    """The caller keeps as much here as one may; says how much, and what can be deleted."""

    code = "quota_exceeded"
    status = 403
    title = "You keep as much here as you may"


class NotFound(UsageError):
    """No such job, file, model or route."""

    code = "not_found"
    status = 404
    title = "Not found"


class MethodNotAllowed(UsageError):
    """The route exists, the method does not."""

    code = "method_not_allowed"
    status = 405
    title = "This route does not take that method"

    def __init__(self, method: str, allowed: Sequence[str]) -> None:
        super().__init__(f"{method} is not possible here; use {' or '.join(allowed)}.")
        self.headers = {"Allow": ", ".join(allowed)}


class Conflict(UsageError):
    """Not possible in the present state."""

    code = "conflict"
    status = 409
    title = "Not possible in the present state"


class PayloadTooLarge(UsageError):
    """More bytes than allowed."""

    code = "payload_too_large"
    status = 413
    title = "Too many bytes"
    # the rest of the body is still on its way and nobody will read it
    headers = MappingProxyType({"Connection": "close"})


class UnsupportedMediaType(UsageError):
    """The body is not of the type the route reads: JSON, or a form."""

    code = "unsupported_media_type"
    status = 415
    title = "The body is of another media type"


class RangeNotSatisfiable(UsageError):
    """The range lies outside the file."""

    code = "range_not_satisfiable"
    status = 416
    title = "The range lies outside the file"

    def __init__(self, size: int) -> None:
        super().__init__(f"The file has {size} bytes; the range asked for begins behind its end.")
        self.headers = {"Content-Range": f"bytes */{size}"}


class QueueFull(UsageError):
    """As many jobs wait as may; `Retry-After` says when to come again."""

    code = "queue_full"
    status = 429
    title = "Too many jobs are waiting"
    retryable = True

    def __init__(self, detail: str, *, retry_after: int) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class DeadlineUnreachable(GatewayError):
    """The queue is too long for the job's deadline; `Retry-After` says when it may be shorter."""

    code = "deadline_unreachable"
    status = 503
    title = "The job would not be done before its deadline"
    retryable = True

    def __init__(self, detail: str, *, retry_after: int) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class NotReady(GatewayError):
    """What the workflow needs is missing; says what and where to get it."""

    code = "missing_model"
    status = 503
    title = "A model this tool needs is not installed"
    retryable = True
    # somebody has to install it first
    retry_after = 60

    def __init__(self, detail: str, missing: Sequence[dict[str, JsonValue]]) -> None:
        super().__init__(detail)
        self.missing = tuple(missing)

    def problem(self) -> Problem:
        """What the caller is told, thing by thing."""
        return super().problem().model_copy(update={"missing": list(self.missing)})


class NoBackend(NotReady):
    """Nothing that is set up here ever carries such work out; waiting would not help."""

    code = "no_backend"
    title = "No backend here carries this out"
    retryable = False
    retry_after = None

    def __init__(self, detail: str) -> None:
        super().__init__(detail, ())


class Unavailable(GatewayError):
    """Database or storage does not answer at the moment."""

    code = "unavailable"
    status = 503
    title = "Not possible at the moment"
    retryable = True
    retry_after = 5


class StorageFull(GatewayError):
    """The disk is nearly full: nothing new is taken until there is room for its results."""

    code = "storage_full"
    status = 507
    title = "There is no room for results"
    retryable = True


class JobFailed(GatewayError):
    """A waited-for job ended in failure; the code is the job's own."""

    code = "job_failed"
    status = 502
    title = "The job failed"

    def __init__(self, job_id: str, code: str, status: int, detail: str) -> None:
        super().__init__(detail)
        self.job_id = job_id
        self.job_code = code
        self.job_status = status

    def problem(self) -> Problem:
        """What the caller is told, with the job to look at."""
        return (
            super()
            .problem()
            .model_copy(
                update={
                    "type": f"/docs/errors#{self.job_code}",
                    "code": self.job_code,
                    "status": self.job_status,
                    "job_id": self.job_id,
                }
            )
        )


class JobCancelled(JobFailed):
    """Somebody cancelled the job a call waits for."""

    code = "cancelled"
    status = 409
    title = "The job was cancelled"

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id, self.code, self.status, "The job was cancelled before its end.")


class InternalError(GatewayError):
    """A bug of ours; says nothing about its inside."""

    code = "internal_error"
    status = 500
    title = "Something went wrong on our side"
