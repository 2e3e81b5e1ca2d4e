"""The arguments of `python -m gpu_server`, and its commands for model files."""

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from gpu_server.part import PullError
from gpu_server.pull import Puller, gigabytes, is_by_hand, state_of
from gpu_server.workflow import ModelRequirement, WorkflowError, load_workflows

MakePuller = Callable[[Path, SecretStr | None], Puller]
_EVERY_PERCENT = 5


class UsageError(Exception):
    """What is wrong with the command or the environment, in one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """A file that workflows need, as each of them describes it."""

    described: list[ModelRequirement] = field(default_factory=list[ModelRequirement])

    @property
    def best(self) -> ModelRequirement:
        """The description that lets most be checked."""
        return max(self.described, key=lambda m: (m.hash is not None, m.bytes is not None))

    @property
    def contradicts_itself(self) -> bool:
        """The workflows mean different files by the same name."""
        hashes = {m.hash.lower() for m in self.described if m.hash is not None}
        sizes = {m.bytes for m in self.described if m.bytes is not None}
        return len(hashes) > 1 or len(sizes) > 1


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; exits with a usage message when it can't be read."""
    parser = argparse.ArgumentParser(
        prog="python -m gpu_server", description="Serve, or see to the model files."
    )
    parser.set_defaults(action=None)
    commands = parser.add_subparsers(title="commands", description="none: serve")
    actions = commands.add_parser(
        "models", help="the model files that workflows need"
    ).add_subparsers(dest="action", required=True)
    pull = actions.add_parser("pull", help="download what is missing into MODELS_PATH")
    pull.add_argument("workflows", nargs="*", metavar="workflow")
    pull.add_argument("--all", action="store_true", help="of every workflow")
    status = actions.add_parser("status", help="list the files, and which of them are there")
    status.add_argument("workflows", nargs="*", metavar="workflow")
    parsed = parser.parse_args(arguments)
    if parsed.action == "pull" and bool(parsed.workflows) == parsed.all:
        pull.error("name the workflows, or give --all for every one of them")
    return parsed


def run_models(
    arguments: argparse.Namespace,
    *,
    workflows_path: Path,
    models_path: Path,
    make_puller: MakePuller = lambda path, token: Puller(path, token=token),
) -> int:
    """Carry out `models pull` or `models status`; returns the exit status."""
    try:
        files = _needed(workflows_path, arguments.workflows)
        if arguments.action == "status":
            return _status(files, models_path)
        return asyncio.run(_pull_all(files, make_puller(models_path, _token())))
    except UsageError as error:
        _complain(str(error))
    except KeyboardInterrupt:
        _complain("\nInterrupted; run the command again to go on.")
    return 1


def _token() -> SecretStr | None:
    token = os.environ.get("HF_TOKEN", "").strip()
    # Anything else could not be sent, and the error that says so would hold it.
    if not (token.isascii() and token.isprintable()):
        raise UsageError("HF_TOKEN holds characters that no token has.")
    return SecretStr(token) if token else None


def _needed(workflows_path: Path, names: Sequence[str]) -> list[ModelFile]:
    """Gather the files of the named workflows, or of all; raises UsageError."""
    broken: dict[str, WorkflowError] = {}
    try:
        known = load_workflows(
            workflows_path, on_error=lambda name, _digest, error: broken.update({name: error})
        )
    except OSError as error:
        raise UsageError(f"{workflows_path} can't be read ({error.strerror}).") from None
    chosen = list(dict.fromkeys(names)) or [*known, *broken]
    for name in chosen:
        if name in broken:
            raise UsageError(f"The workflow {name} does not fit: {broken[name]}.")
        if name not in known:
            listed = ", ".join(known) or f"none in {workflows_path}"
            raise UsageError(f"There is no workflow {name}; known are: {listed}.")
    files: dict[tuple[str, str], ModelFile] = {}
    for model in (model for name in chosen for model in known[name].models):
        files.setdefault((model.directory, model.name), ModelFile()).described.append(model)
    return list(files.values())


def _status(files: Iterable[ModelFile], models_path: Path) -> int:
    ready = True
    for model in (file.best for file in files):
        try:
            state = state_of(models_path, model)
        except (PullError, OSError) as error:
            _complain(f"{_place(model)}: {error}")
            ready = False
            continue
        size = "-" if model.bytes is None else gigabytes(model.bytes)
        terms = [model.license]
        terms += [] if model.commercial else ["not for commercial use"]
        terms += ["gated"] if model.gated else []
        terms += [model.url] if state == "by hand" else []
        terms += ["its hash is not known here"] if state == "there" and model.hash is None else []
        _say(f"{state:<10}  {size:>9}  {_place(model)}  ({', '.join(terms)})")
        ready = ready and state in {"there", "by hand"}
    return 0 if ready else 1


async def _pull_all(files: Sequence[ModelFile], puller: Puller) -> int:
    bound = (m for file in files for m in file.described if not m.commercial)
    for place, licence in sorted({(_place(m), m.license) for m in bound}):
        _say(f"{place}: not for commercial use ({licence})")
    failures = 0
    async with puller:
        for file in files:
            model = file.best
            try:
                await _pull_one(file, puller)
            except PullError as error:
                _complain(f"{_place(model)}: {error}.")
                failures += 1
    return 1 if failures else 0


async def _pull_one(file: ModelFile, puller: Puller) -> None:
    model = file.best
    if file.contradicts_itself:
        raise PullError("the workflows' manifests name different sizes or hashes for it")
    if is_by_hand(model):
        _say(f"{_place(model)}: by hand, see {model.url}")
        return
    bar = _Bar(_place(model))
    try:
        came = await puller.pull(model, bar)
    finally:
        bar.end()
    _say(f"{_place(model)}: {'downloaded' if came else 'already there'}")


class _Bar:
    """Writes how far a download is: a line that changes on a terminal, elsewhere one a step."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._step = 0
        self._terminal = sys.stderr.isatty()

    def __call__(self, size: int, total: int | None) -> None:
        percent = size * 100 // total if total else None
        every = 1 if self._terminal else _EVERY_PERCENT
        step = size // 10**9 if percent is None else percent // every
        if step == self._step:
            return
        self._step = step
        far = gigabytes(size) if total is None else f"{gigabytes(size)} of {gigabytes(total)}"
        shown = f"{self._label}: {far}" + ("" if percent is None else f", {percent} %")
        if not self._terminal:
            _complain(shown)
            return
        sys.stderr.write(f"\r{shown}\x1b[K")
        sys.stderr.flush()

    def end(self) -> None:
        """Leave the line that changes."""
        if self._terminal and self._step:
            _complain("")


def _place(model: ModelRequirement) -> str:
    return f"{model.directory}/{model.name}"


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _complain(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
