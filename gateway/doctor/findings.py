"""What a check found, and what to do about it; no secret gets in."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from gateway.settings import Settings

Verdict = Literal["ok", "warning", "failed"]

_LOGIN = re.compile(r"(?<=://)[^/@\s]+@")
_SHORTEST_SECRET = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line: `check` within its `group`, what was seen, and how to mend it."""

    group: str
    check: str
    verdict: Verdict
    said: str
    fix: tuple[str, ...] = ()


@dataclass(slots=True)
class Notes:
    """The findings of one group, kept as they come: a check that runs out of time loses none."""

    group: str
    findings: list[Finding] = field(default_factory=list[Finding])

    def ok(self, check: str, said: str) -> None:
        """It works."""
        self._add(check, "ok", said, ())

    def warn(self, check: str, said: str, *fix: str) -> None:
        """It works, and somebody should look at it."""
        self._add(check, "warning", said, fix)

    def fail(self, check: str, said: str, *fix: str) -> None:
        """It does not work."""
        self._add(check, "failed", said, fix)

    @property
    def failed(self) -> bool:
        """Whether anything does not work."""
        return any(finding.verdict == "failed" for finding in self.findings)

    def _add(self, check: str, verdict: Verdict, said: str, fix: tuple[str, ...]) -> None:
        self.findings.append(
            Finding(group=self.group, check=check, verdict=verdict, said=said, fix=fix)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that was found, in order."""

    findings: Sequence[Finding]

    @property
    def ok(self) -> bool:
        """Whether nothing has failed."""
        return not self.count("failed")

    def count(self, verdict: Verdict) -> int:
        """How many findings of that kind there are."""
        return sum(finding.verdict == verdict for finding in self.findings)


def report(findings: Iterable[Finding], secrets: Iterable[str] = ()) -> Report:
    """Put findings together, without logins in addresses and without any of the secrets."""
    # the longest first: one may be a part of another
    hidden = sorted({s for s in secrets if len(s) >= _SHORTEST_SECRET}, key=len, reverse=True)

    def clean(text: str) -> str:
        text = _LOGIN.sub("***@", text)
        for secret in hidden:
            text = text.replace(secret, "***")
        return text

    return Report(
        findings=[
            replace(one, said=clean(one.said), fix=tuple(map(clean, one.fix))) for one in findings
        ]
    )


def secrets_of(settings: Settings) -> list[str]:
    """Everything in the settings that no text may show."""
    values = (getattr(settings, name) for name in Settings.model_fields)
    found = [value.get_secret_value() for value in values if isinstance(value, SecretStr)]
    password = urlsplit(settings.database).password or ""
    return [
        *found,
        *(word for value in found for word in value.split()),
        password,
        unquote(password),
    ]
