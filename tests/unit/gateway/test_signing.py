from datetime import date, timedelta
from multiprocessing import get_context
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.security.signing import SignedFileNames, Signer, UnusableSecret, load_secret

SECRET = bytes(range(32))
PATH = "/api/images/0a1b.png"
DAY = timedelta(hours=24)


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def query(link: str) -> tuple[str, str]:
    found = parse_qs(urlsplit(link).query)
    return found["expires"][0], found["signature"][0]


def test_a_link_opens_its_path_for_get_and_head_until_it_expires() -> None:
    clock = Clock(1_800_000_000)
    signer = Signer(SECRET, clock=clock)
    link = signer.link(PATH, DAY)
    expires, signature = query(link)
    assert urlsplit(link).path == PATH
    assert signer.valid("GET", PATH, expires, signature)
    assert signer.valid("HEAD", PATH, expires, signature)
    clock.now = int(expires) - 1
    assert signer.valid("GET", PATH, expires, signature)
    clock.now = int(expires)
    assert not signer.valid("GET", PATH, expires, signature)


def test_a_link_lasts_at_least_its_lifetime_and_is_the_same_text_within_an_hour() -> None:
    clock = Clock(1_800_000_000 - 1_800_000_000 % 3600 + 1)
    signer = Signer(SECRET, clock=clock)
    first = signer.link(PATH, DAY)
    assert int(query(first)[0]) >= clock.now + DAY.total_seconds()
    clock.now += 3598
    assert signer.link(PATH, DAY) == first
    clock.now += 2
    assert signer.link(PATH, DAY) != first


def test_a_slot_permits_put_alone_and_a_link_permits_no_put() -> None:
    signer = Signer(SECRET, clock=Clock(1000))
    slot, link = signer.slot(PATH, DAY), signer.link(PATH, DAY)
    assert signer.valid("PUT", PATH, *query(slot))
    assert not signer.valid("GET", PATH, *query(slot))
    assert not signer.valid("HEAD", PATH, *query(slot))
    assert not signer.valid("PUT", PATH, *query(link))
    assert not signer.valid("DELETE", PATH, *query(link))


def test_a_slot_ends_when_its_lifetime_does() -> None:
    signer = Signer(SECRET, clock=Clock(1000.5))
    assert query(signer.slot(PATH, timedelta(seconds=60)))[0] == "1061"


@given(st.text(max_size=30), st.text(max_size=60))
def test_nothing_made_up_is_valid(expires: str, signature: str) -> None:
    signer = Signer(SECRET, clock=Clock(0))
    assert not signer.valid("GET", PATH, expires, signature)
    assert not signer.valid("GET", PATH, "99999999999", signature)


@pytest.mark.parametrize(
    ("expires", "signature"), [(None, None), ("1", None), (None, "x"), ("", ""), ("9" * 5000, "x")]
)
def test_a_part_that_is_missing_or_absurd_is_not_valid(
    expires: str | None, signature: str | None
) -> None:
    assert not Signer(SECRET).valid("GET", PATH, expires, signature)


def test_changing_path_expiry_or_secret_breaks_a_signature() -> None:
    clock = Clock(1000)
    signer = Signer(SECRET, clock=clock)
    expires, signature = query(signer.link(PATH, DAY))
    assert not signer.valid("GET", PATH + "x", expires, signature)
    assert not signer.valid("GET", PATH, str(int(expires) + 1), signature)
    assert not signer.valid("GET", PATH, "0" + expires, signature)
    assert not Signer(SECRET[::-1], clock=clock).valid("GET", PATH, expires, signature)


def test_a_slot_issued_again_has_the_same_key_and_another_run_or_slot_has_not() -> None:
    names = SignedFileNames(Signer(SECRET))
    job = "01890000-0000-7000-8000-000000000000"

    def key(run_id: str, slot: str) -> str:
        return names.key(
            prefix="generated",
            day=date(2026, 3, 9),
            job_id=job,
            run_id=run_id,
            slot=slot,
            ext="png",
        )

    first = key(job, "images/0")
    assert first == key(job, "images/0")
    assert first.startswith(f"generated/2026/03/09/{job}/")
    assert names.filename(first) == first.split("/")[-1]
    assert len({first, key(job, "images/1"), key("another-run", "images/0")}) == 3
    other = SignedFileNames(Signer(SECRET[::-1]))
    assert names.filename(first).removesuffix(".png") != Signer(SECRET[::-1]).name(job, "images/0")
    assert other.filename(first) == names.filename(first)


def test_the_secret_is_made_once_and_read_by_nobody_else(tmp_path: Path) -> None:
    path = tmp_path / "data" / "signing.secret"
    secret = load_secret(path)
    assert len(secret) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_secret(path) == secret
    assert [child.name for child in path.parent.iterdir()] == [path.name]


def test_processes_that_start_at_once_agree_on_one_secret(tmp_path: Path) -> None:
    path = tmp_path / "signing.secret"
    with get_context("spawn").Pool(4) as pool:
        secrets = pool.map(load_secret, [path] * 8, chunksize=1)
    assert len(set(secrets)) == 1


@pytest.mark.parametrize("content", ["", "abc", "zz" * 32, "ab" * 31])
def test_a_damaged_secret_is_refused_with_what_to_do(tmp_path: Path, content: str) -> None:
    path = tmp_path / "signing.secret"
    path.write_text(content)
    with pytest.raises(UnusableSecret, match="remove it"):
        load_secret(path)
