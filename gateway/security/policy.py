"""What every call passes on its way into a job, and the bounds that stand unless replaced."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Protocol, cast

from pydantic import JsonValue

from gateway.errors import FieldError, PolicyViolation
from gateway.security.policy_rules import Mark, marks
from gateway.security.policy_text import phrases, says, words
from gateway.settings import Settings

logger = logging.getLogger(__name__)

NEGATIVE_PROMPT = "negative_prompt"
GUIDANCE = "guidance_scale"

_LONGEST_AT_ONCE = 20_000
"""Most characters judged without leaving the event loop."""

_SAID = {
    "minors": "asks for something sexual with minors, or for both in one call",
    "undressing": "asks for somebody to be undressed",
    "real_persons": "asks for something sexual with a picture or likeness of a real person",
    "extra_terms": "names something this installation does not make",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyCall:
    """A call as a policy sees it, before anything is queued."""

    tool: str
    variant: str
    caller: str
    params: Mapping[str, JsonValue]
    """What the caller sent, as validated, without files and the options of the job."""
    files: frozenset[str] = frozenset()
    """The parameters that came with a file."""


class Policy(Protocol):
    """Decides whether a call may become a job."""

    async def check(self, call: PolicyCall, /) -> None:
        """Raise PolicyViolation for a call that may not; `violation` makes one."""
        ...


class PolicyUnusable(Exception):
    """The policy the settings name cannot be used; the message says why."""


def violation(field_name: str, rule: str, message: str) -> PolicyViolation:
    """Make the refusal of one field; the message must repeat nothing of what was sent."""
    error = FieldError(field=field_name, code=PolicyViolation.code, message=message)
    return PolicyViolation([error], rule=rule)


async def enforce(policy: Policy, call: PolicyCall) -> None:
    """Let the policy judge, and log a refusal without a word of what was sent."""
    try:
        await policy.check(call)
    except PolicyViolation as error:
        logger.warning(
            "refused by the policy: tool=%s variant=%s field=%s rule=%s caller=%s",
            call.tool,
            # what follows the colon is the caller's own text
            call.variant.partition(":")[0],
            ",".join(one.field for one in error.errors),
            error.rule,
            call.caller,
        )
        raise


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The default: nobody is undressed, no real person sexualised, nothing sexual with minors."""

    extra: Mapping[str, list[list[str]]] = field(default_factory=dict[str, list[list[str]]])
    """Further phrases that are refused wherever they stand, as `phrases` prepares them."""

    async def check(self, call: PolicyCall, /) -> None:
        """Raise PolicyViolation for a call out of bounds."""
        if sum(len(text) for _, text in _texts(call)) > _LONGEST_AT_ONCE:
            # a caller's graph may hold so much that everybody else would wait for it
            await asyncio.to_thread(self._judge, call)
        else:
            self._judge(call)

    def _judge(self, call: PolicyCall) -> None:
        texts = [(name, words(text)) for name, text in _texts(call)]
        found = [(name, marks(text)) for name, text in texts]
        broken = _broken(found, call)
        if broken is None and self.extra:
            named = (name for name, text in texts if says(text, self.extra))
            broken = next((("extra_terms", name) for name in named), None)
        if broken is not None:
            rule, name = broken
            message = f"{_SAID[rule]}, which is refused: change or leave out that part"
            raise violation(name, rule, message)


def load_policy(settings: Settings) -> Policy:
    """Make the policy the settings name; raises PolicyUnusable."""
    if settings.policy != "default":
        return _imported(settings)
    if settings.policy_extra_terms is None:
        return Bounds()
    try:
        lines = settings.policy_extra_terms.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyUnusable(f"POLICY_EXTRA_TERMS cannot be read: {error}") from None
    return Bounds(extra=phrases(line for line in lines if not line.lstrip().startswith("#")))


def _imported(settings: Settings) -> Policy:
    module, _, name = settings.policy.partition(":")
    try:
        factory = cast("Callable[[Settings], Policy]", getattr(import_module(module), name))
    except (ImportError, AttributeError) as error:
        raise PolicyUnusable(f"POLICY names {settings.policy!r}: {error}") from None
    made = factory(settings)
    if not callable(getattr(made, "check", None)):
        raise PolicyUnusable(f"POLICY names {settings.policy!r}, which makes no policy: no `check`")
    return made


def _texts(call: PolicyCall) -> Iterator[tuple[str, str]]:
    """List every text of a call with the parameter it stands in."""
    yield "variant", call.variant
    guidance = call.params.get(GUIDANCE)
    # Below 1 the sampler goes towards the negative prompt, so it is a request like any other.
    inverted = isinstance(guidance, int | float) and guidance < 1
    for name, value in call.params.items():
        if inverted or name != NEGATIVE_PROMPT:
            for text in _strings(value):
                yield name, text


def _strings(value: JsonValue) -> Iterator[str]:
    match value:
        case str():
            yield value
        case list():
            for item in value:
                yield from _strings(item)
        case dict():
            for item in value.values():
                yield from _strings(item)
        case _:
            return


def _broken(found: Sequence[tuple[str, set[Mark]]], call: PolicyCall) -> tuple[str, str] | None:
    """Name the bound a call is beyond and the parameter that shows it."""
    every = set[Mark]().union(*(seen for _, seen in found))
    for rule, telling in (
        ("minors", _with_minors(every)),
        ("undressing", every & {"undressing"}),
        ("real_persons", _of_the_real(every, call)),
    ):
        if telling:
            return rule, next(name for name, seen in found if seen & telling)
    return None


def _with_minors(every: set[Mark]) -> set[Mark]:
    if "minor" in every:
        return every & {"explicit", "anatomy", "carved", "suggestive", "revealing"}
    return every & {"explicit", "anatomy"} if "maybe_minor" in every else set()


def _of_the_real(every: set[Mark], call: PolicyCall) -> set[Mark]:
    """Collect what must not stand beside somebody's picture, or a LoRA that may be somebody's."""
    pictures = call.files
    learned = call.params.get("model_id") is not None or call.params.get("loras")
    if not (pictures or learned or "likeness" in every):
        return set()
    faces = any("face" in name for name in pictures)
    refused: set[Mark] = {"explicit"}
    if "clinical" not in every:
        refused.add("anatomy")
    if "person" in every:
        refused |= {"carved", "suggestive"}
    if faces or "likeness" in every:
        refused |= {"suggestive", "revealing"}
    if pictures:
        refused.add("put_into")
    return every & refused
