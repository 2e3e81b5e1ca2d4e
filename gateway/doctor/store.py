"""Do files go into the store and come back: put, look, read a part, links, slots, delete."""

import httpx

from gateway.doctor.findings import Notes
from gateway.doctor.gateway import answering
from gateway.doctor.refusals import store_of
from gateway.doctor.trial import Trial
from gateway.security.signing import Signer, UnusableSecret, load_secret
from gateway.settings import Settings
from gateway.storage.local import LocalStorage

LIMIT_S = 90.0


async def check_store(settings: Settings, notes: Notes) -> None:
    """Put a small file into the configured store, use it in every way, remove it."""
    # what speaks to buckets costs every start half a second, and this is imported at each
    from gateway.doctor.bucket import check_bucket, check_input_buckets  # noqa: PLC0415

    store = store_of(settings)
    if store is not None:
        await check_bucket(settings, store, notes)
    else:
        await _check_folder(settings, notes)
    if settings.input_buckets or settings.gcs_bucket_name:
        await check_input_buckets(settings, notes)


async def _check_folder(settings: Settings, notes: Notes) -> None:
    folder, secret = settings.files, settings.data / "secret"
    if folder is None or not folder.is_dir() or not secret.exists():
        notes.ok("folder", "files are kept in a folder that is made at the first start")
        return
    try:
        signer = Signer(load_secret(secret))
        storage = LocalStorage(folder, signer, settings.local_url)
    except (UnusableSecret, OSError):
        # said with the folders
        return
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        trial = Trial(storage, http, notes, store=None)
        try:
            if await trial.direct():
                who = await answering(settings.local_url)
                if who == "gateway":
                    await trial.signed()
                else:
                    said = f"not tried: no gateway answers at {settings.local_url}"
                    notes.warn("signed addresses", said, "start the gateway and look again")
        finally:
            await trial.remove()
