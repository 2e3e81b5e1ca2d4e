"""Where webhooks may go: checked at the submit, and again at each delivery."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from gateway.errors import InvalidParameters
from gateway.jobs import receivers
from gateway.jobs.receivers import Receivers, Refused
from tests.support.receiver import receiver

PUBLIC = "93.184.216.34"


class Names:
    """A name server that answers as told, one answer after the other."""

    def __init__(self, *answers: Sequence[str] | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        del port
        self.asked.append(host)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


MakeReceivers = Callable[..., Receivers]


@pytest.fixture
async def made() -> AsyncIterator[MakeReceivers]:
    opened: list[Receivers] = []

    def make(*answers: Sequence[str] | Exception, allow_private: bool = False) -> Receivers:
        names = Names(*answers) if answers else None
        opened.append(Receivers(allow_private=allow_private, lookup=names))
        return opened[-1]

    yield make
    for each in opened:
        await each.close()


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/",
        "https:///no-host",
        "https://user:secret@example.com/",
        "not an address",
        "http://exa\x00mple.com/",
        "http://xn--/",
        "http://xn--a-ecp.ru/",
        "http://[fe80::1%25eth0]/",
        "http://a..b/",
        "http://.../",
        "http://.example.com/",
        f"http://{'a' * 64}.example.com/",
        f"http://{'a.' * 126}ab/",
    ],
)
@pytest.mark.parametrize("allow_private", [True, False])
async def test_what_is_no_plain_web_address_is_refused(
    made: MakeReceivers, url: str, *, allow_private: bool
) -> None:
    with pytest.raises(InvalidParameters) as refused:
        await made([PUBLIC], allow_private=allow_private).check(url)
    error = refused.value.errors[0]
    assert (error.field, error.code) == ("webhook_url", "webhook_url_refused")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "host",
    [
        "example.com.",
        "b\u00fccher.example",
        "my_service",
        "[2606:2800:21f::1]",
        f"{'a' * 63}.example",
        f"{'a.' * 126}a",
    ],
)
async def test_every_name_that_can_be_looked_up_is_taken(made: MakeReceivers, host: str) -> None:
    await made([PUBLIC]).check(f"https://{host}/")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8000/api",
        "http://localhost/",
        "http://2130706433/",
        "http://[::1]/",
        "http://[::ffff:10.0.0.1]/",
        "http://169.254.169.254/latest/meta-data",
        "https://192.168.1.1/",
    ],
)
async def test_private_addresses_are_refused_however_they_are_written(
    made: MakeReceivers, url: str
) -> None:
    with pytest.raises(InvalidParameters) as refused:
        await made().check(url)
    assert "WEBHOOK_ALLOW_PRIVATE" in refused.value.errors[0].message


async def test_a_name_is_refused_when_one_of_its_addresses_is_private(made: MakeReceivers) -> None:
    with pytest.raises(InvalidParameters):
        await made([PUBLIC, "10.0.0.1"]).check("https://hooks.example/")


async def test_private_addresses_are_taken_where_that_is_allowed(made: MakeReceivers) -> None:
    await made(allow_private=True).check("http://127.0.0.1:8000/")


async def test_a_name_nobody_knows_yet_is_left_to_the_delivery(made: MakeReceivers) -> None:
    await made(OSError("no such name")).check("https://hooks.example/")


async def test_a_name_server_that_does_not_answer_holds_no_submit_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(receivers, "CHECK_S", 0.01)

    async def silent(host: str, port: int) -> Sequence[str]:
        del host, port
        await asyncio.Event().wait()
        return []

    made = Receivers(allow_private=False, lookup=silent)
    await made.check("https://hooks.example/")
    await made.close()


async def test_a_name_is_looked_up_once_for_many_submits() -> None:
    names = Names([PUBLIC])
    made = Receivers(allow_private=False, lookup=names)
    await asyncio.gather(*(made.check(f"https://hooks.example/{n}") for n in range(50)))
    await made.close()
    assert names.asked == ["hooks.example"]


async def test_a_name_that_turns_private_after_the_submit_is_not_called(
    made: MakeReceivers,
) -> None:
    async with receiver() as there:
        port = there.url.rpartition(":")[2].partition("/")[0]
        url = f"http://hooks.example:{port}/"
        to = made([PUBLIC], ["127.0.0.1"])
        await to.check(url)
        with pytest.raises(Refused, match=r"hooks\.example is not a public address"):
            await to.post(url, {}, b"{}")
    assert not there.received


async def test_the_connection_goes_to_the_checked_address_under_the_receivers_name(
    made: MakeReceivers, monkeypatch: pytest.MonkeyPatch
) -> None:
    # no server of ours has a public address: loopback stands in for one
    monkeypatch.setattr(receivers, "is_public", lambda address: address == "127.0.0.1")
    async with receiver() as there:
        port = there.url.rpartition(":")[2].partition("/")[0]
        # a second look-up would be refused
        to = made(["127.0.0.1"], ["10.0.0.1"])
        status, _ = await to.post(f"http://hooks.example:{port}/a?b=c", {"x-y": "z"}, b"{}")
    assert status == 200
    assert there.received[0].headers["host"] == f"hooks.example:{port}"
    assert there.received[0].headers["x-y"] == "z"
    assert there.received[0].body == b"{}"
