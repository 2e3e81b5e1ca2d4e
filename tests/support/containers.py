"""Reads the container files, so that tests can judge them and start what they name."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from tests.support.stack import ROOT

_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<kind>[?+-])(?P<rest>[^}]*))?\}")


@dataclass(kw_only=True)
class Stage:
    """One `FROM` of a Dockerfile; what it takes from an earlier stage is filled in."""

    name: str
    image: str
    steps: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """Instructions and their arguments, this stage's own."""
    before: "Stage | None" = None

    @property
    def base(self) -> str:
        """The image that all of it stands on."""
        return self.image if self.before is None else self.before.base

    def all_steps(self) -> list[tuple[str, str]]:
        """Those of the stages below too, in their order."""
        return [*(self.before.all_steps() if self.before else ()), *self.steps]

    def last(self, instruction: str) -> str | None:
        """Arguments of the last one of a kind."""
        found = [rest for name, rest in self.all_steps() if name == instruction]
        return found[-1] if found else None

    def command(self) -> list[str]:
        """What a container of it runs."""
        return [
            word
            for instruction in ("ENTRYPOINT", "CMD")
            for word in json.loads(self.last(instruction) or "[]")
        ]

    def health(self) -> list[str] | None:
        """The command of its health check."""
        check = self.last("HEALTHCHECK")
        return None if check is None else json.loads(check.partition("CMD")[2])

    def environment(self) -> dict[str, str]:
        """What `ENV` sets, without `PATH`."""
        words = [w for name, rest in self.all_steps() if name == "ENV" for w in shlex.split(rest)]
        pairs = dict(word.split("=", 1) for word in words)
        return {name: value for name, value in pairs.items() if name != "PATH"}

    def copies(self) -> Iterator[tuple[str | None, list[str]]]:
        """Stage copied from (None: the build context) and sources, its own alone."""
        for name, rest in self.steps:
            if name not in {"COPY", "ADD"}:
                continue
            words = shlex.split(rest)
            stage = next(
                (w.removeprefix("--from=") for w in words if w.startswith("--from=")), None
            )
            yield stage, [word for word in words if not word.startswith("--")][:-1]


def read_dockerfile(path: Path = ROOT / "Dockerfile") -> dict[str, Stage]:
    """Its stages by name."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    stages: dict[str, Stage] = {}
    for logical in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        name, _, rest = logical.strip().partition(" ")
        if name == "FROM":
            image, _, stage = rest.partition(" AS ")
            newest = Stage(name=stage, image=image, before=stages.get(image))
            stages[stage] = newest
        elif name:
            next(reversed(stages.values())).steps.append((name.upper(), rest.strip()))
    return stages


def read_compose() -> dict[str, Any]:
    """The compose file as it stands."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return found


def filled(value: str, variables: Mapping[str, str]) -> str:
    """Put variables into a text of the compose file. Raises KeyError for a required one."""

    def one(match: re.Match[str]) -> str:
        chosen = variables.get(match["name"], "")
        if match["kind"] == "+":
            return match["rest"] if chosen else ""
        if chosen or match["kind"] != "-":
            return chosen or variables[match["name"]]
        return match["rest"]

    return _VARIABLE.sub(one, value)


def given(service: Mapping[str, Any], variables: Mapping[str, str]) -> dict[str, str]:
    """What a service of the compose file gets, with `variables` as the content of `.env`.

    Later files go before earlier ones, and what is fixed goes before all of them.
    """
    found: dict[str, str] = {}
    for each in service.get("env_file", ()):
        path = filled(each if isinstance(each, str) else each["path"], variables)
        lines = [] if path == ".env" else (ROOT / path).read_text().splitlines()
        pairs = [line.partition("=") for line in lines if line and not line.startswith("#")]
        own = {name: filled(value, variables) for name, _, value in pairs}
        found |= dict(variables) if path == ".env" else own
    return found | {k: filled(v, variables) for k, v in service["environment"].items()}


def required(value: str) -> set[str]:
    """Variables without which the compose file refuses to start."""
    return {found["name"] for found in _VARIABLE.finditer(value) if found["kind"] == "?"}


def in_context() -> set[str]:
    """Files that a build is sent: those git has or would take, and `.dockerignore` lets through."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    return {path for path in listed if (ROOT / path).exists() and not _ignored(path, rules)}


def _ignored(path: str, rules: list[str]) -> bool:
    """As Docker reads them: the last rule that matches the path or a folder above it decides."""
    parts = path.split("/")
    above = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    ignored = False
    for rule in rules:
        pattern = rule.removeprefix("!")
        anywhere = pattern.removeprefix("**/")
        names = parts if anywhere != pattern else above
        # a lone `*` stands for one level: everything at the top, and so everything
        if any(fnmatch(name, anywhere) for name in names):
            ignored = not rule.startswith("!")
    return ignored
