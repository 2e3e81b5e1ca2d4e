"""Whose fault it is that a run could not fetch a file it reads."""

from gateway.job import Call, Source
from gpu_server.protocol import Failure

_CODES = frozenset(
    {"url_refused", "file_not_found", "fetch_failed", "file_too_large", "fetch_timeout"}
)
"""The GPU service's; its messages begin with the parameter, `<name>: ` or `<name>.<n>: `."""


def blamed(call: Call, failure: Failure, *, last: bool) -> Failure:
    """Tell a failure to fetch as the caller is to read it; any other stays as it is.

    At the caller's address it is the caller's to mend, once trying again has not helped (`last`).
    One of ours that is gone was deleted after the job was taken; else it is our fault, and our
    address is nobody's business.
    """
    place = failure.message.partition(":")[0]
    source = _source(call, place)
    said = call.as_sent(place)
    if source is not None:
        message = said + failure.message[len(place) :]
        failure = failure.model_copy(update={"message": message})
    if failure.code not in _CODES or source is None:
        return failure
    if source.in_bucket:
        return _of_bucket(failure, said)
    if source.key is None:
        return failure.model_copy(update={"kind": "usage"}) if last else failure
    if failure.code == "file_not_found" and source.slot is None:
        return Failure(
            kind="usage",
            code="input_gone",
            message=f"{said}: the file was deleted after the job was taken",
        )
    kind = "transient" if failure.kind == "transient" else "fatal"
    return Failure(
        kind=kind, code=failure.code, message=f"{said}: the file could not be read from storage"
    )


def _of_bucket(failure: Failure, said: str) -> Failure:
    """Tell it without the address, which is signed with keys of ours."""
    if failure.code == "file_not_found":
        message = f"{said}: there is no such file in the bucket"
        return failure.model_copy(update={"kind": "usage", "message": message})
    kind = "transient" if failure.kind == "transient" else "fatal"
    message = f"{said}: the file could not be read from its bucket"
    return failure.model_copy(update={"kind": kind, "message": message})


def _source(call: Call, place: str) -> Source | None:
    param, _, number = place.partition(".")
    sources = call.inputs.get(param, ())
    at = int(number) if number.isdecimal() else 0
    return sources[at] if at < len(sources) else None
