"""What everything stands on: settings that fit together, folders, the secret, room on the disk."""

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from gateway.agreement import (
    Misconfigured,
    endpoints,
    orders_of_backends,
    policy_of,
    service_addresses,
    slots_address,
    tool_timeouts,
    worker_address,
)
from gateway.doctor.findings import Notes
from gateway.security.signing import UnusableSecret, load_secret
from gateway.settings import Settings, environment_name
from gateway.storage.disk import MEGABYTE, free_bytes
from gpu_server.workflow import load_workflows

LIMIT_S = 20.0
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
ENV_FILE = Path(".env")


def unreadable_settings(error: ValidationError) -> Notes:
    """Name every setting that has no value it may have."""
    notes = Notes("settings")
    for item in error.errors(include_url=False, include_input=False):
        name = environment_name(str(item["loc"][0])) if item["loc"] else "settings"
        notes.fail(
            name,
            item["msg"],
            f"correct {name} in the environment or in .env; docs/settings.md has its bounds",
        )
    return notes


def check_settings_together(settings: Settings, notes: Notes) -> None:
    """Settings that are right by themselves and cannot work together; workflows left out."""
    faults = list(_contradictions(settings))
    for said in faults:
        # such a sentence begins with the setting it is about
        name = said.partition(" ")[0].rstrip(":")
        notes.fail(name, said, f"correct {name}")
    if not faults:
        notes.ok("settings", "each has a value it may have, and they fit together")
    left_out: dict[str, str] = {}
    try:
        load_workflows(
            settings.workflows, on_error=lambda name, _, error: left_out.update({name: str(error)})
        )
    except OSError as error:
        notes.fail(
            "WORKFLOWS_PATH",
            f"{settings.workflows} cannot be read ({error.strerror})",
            "let WORKFLOWS_PATH name the folder of the workflows",
        )
    for name, why in left_out.items():
        notes.warn("workflows", f"{name} is left out: {why}", f"correct workflows/{name}.*")
    if ENV_FILE.is_file() and ENV_FILE.stat().st_mode & _OTHERS:
        path = ENV_FILE.absolute()
        notes.warn(".env", "other users of this machine can read its keys", f"chmod 600 {path}")


def _contradictions(settings: Settings) -> Iterator[str]:
    said: list[str] = []
    for needed in (
        slots_address,
        service_addresses,
        tool_timeouts,
        policy_of,
        endpoints,
        worker_address,
        orders_of_backends,
    ):
        try:
            needed(settings)
        except Misconfigured as error:
            said.append(str(error))
    # one asks what another has asked before
    yield from dict.fromkeys(said)


def check_ground(settings: Settings, notes: Notes) -> None:
    """Folders, secret and room; nothing that is not there is made."""
    _folder(settings.data, notes)
    if settings.files is not None and settings.data not in settings.files.parents:
        _folder(settings.files, notes)
    _secret(settings.data / "secret", notes)
    _room(settings, notes)


def _folder(folder: Path, notes: Notes) -> None:
    there = _nearest(folder)
    check = f"folder {folder.name}"
    # by a file: permission bits do not tell of disks that are mounted read-only
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        notes.fail(
            check,
            f"{there} cannot be written ({error.strerror})",
            f"chown -R {os.getuid()} {there}, or name another folder (WORKSPACE, STORAGE_URL)",
        )
    else:
        later = "" if there == folder else ", made at the first start"
        notes.ok(check, f"{folder} can be written{later}")


def _secret(path: Path, notes: Notes) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        notes.ok("signing secret", f"{path} is made at the first start")
        return
    except OSError as error:
        notes.fail("signing secret", f"{path} cannot be read ({error.strerror})", _own(path))
        return
    try:
        load_secret(path)
    except UnusableSecret as error:
        notes.fail("signing secret", str(error), f"put a copy back, or: rm {path}")
    except OSError as error:
        notes.fail("signing secret", f"{path} cannot be read ({error.strerror})", _own(path))
    else:
        if mode & _OTHERS:
            notes.warn(
                "signing secret",
                f"{path} can be read by others (mode {mode & 0o777:o}): who has it signs links",
                f"chmod 600 {path}",
            )
        else:
            notes.ok("signing secret", "usable and private")


def _own(path: Path) -> str:
    return f"let it belong to the user the gateway runs as: chown {os.getuid()} {path}"


def _room(settings: Settings, notes: Notes) -> None:
    least = settings.min_free_disk_mb
    # one line a disk
    disks = {folder.stat().st_dev: folder for folder in map(_nearest, settings.written_folders)}
    for folder in disks.values():
        free = free_bytes(folder) // MEGABYTE
        said = f"{free} MB are free at {folder}; below MIN_FREE_DISK_MB={least} nothing is taken"
        if least and free < least:
            notes.fail("free disk", said, "remove files there, or lower MIN_FREE_DISK_MB")
        else:
            notes.ok("free disk", said)


def _nearest(folder: Path) -> Path:
    """The folder, or the first one above it that is there."""
    return next((each for each in (folder, *folder.parents) if each.exists()), folder)
