"""The key store in Redis: what it promises, and what becomes of it when the server is away."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path

import coredis
import pytest
import trio
import trio.testing
import trustme
from coredis.tokens import PureToken

from gz_trio import (
    Key,
    KeyStore,
    KeyStoreError,
    Record,
    RedisKeyStore,
    RefreshError,
    open_authenticator,
)
from gz_trio.testing import check_key_store
from tests.redis_server import RedisServer, redis_server, require_server

pytestmark = pytest.mark.skipif(os.name != "posix", reason="no redis-server for Windows")

MODULE = "gz_trio._auth.stores.redis"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncGenerator[RedisServer]:
    async with redis_server(tmp_path) as running:
        yield running


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds become tenths."""
    for name, seconds in (
        ("CALL_SECONDS", 0.5),
        ("PATIENCE_SECONDS", 0.3),
        ("RECONNECT_SECONDS", (0.02, 0.1)),
    ):
        monkeypatch.setattr(f"{MODULE}.{name}", seconds)


def short_lease(monkeypatch: pytest.MonkeyPatch, lease: float, renew: float, left: float) -> None:
    monkeypatch.setattr(f"{MODULE}.LEASE_SECONDS", lease)
    monkeypatch.setattr(f"{MODULE}.RENEW_SECONDS", renew)
    monkeypatch.setattr(f"{MODULE}.LEFT_SECONDS", left)


async def ask(
    server: RedisServer, question: Callable[[coredis.Redis[str]], Awaitable[object]]
) -> object:
    """As an administrator."""
    async with coredis.Redis.from_url(server.url, decode_responses=True) as client:
        return await question(client)


def held(version: int, value: str, *, epoch: int = 1) -> Record:
    return Record(version, epoch, Key(value, None, None, version, epoch))


async def put(store: KeyStore, version: int, value: str) -> None:
    assert await store.replace(version, Record(epoch=1, key=Key(value)))


# The promises


async def test_it_keeps_the_promises(server: RedisServer) -> None:
    store = RedisKeyStore(server.url, profile="a {b} c")
    assert isinstance(store, KeyStore)
    assert await store.load() == Record()
    await check_key_store(store)


async def test_it_keeps_them_over_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    async with redis_server(tmp_path, "--unixsocket", str(path)):
        await check_key_store(RedisKeyStore(f"unix://{path}"))


async def test_what_is_written_can_be_read_by_people(server: RedisServer) -> None:
    key = Key("sk-1", expires_at=1_800_000_000.5, refresh_token="rt-1")
    await RedisKeyStore(server.url).replace(0, Record(epoch=3, key=key))
    async with coredis.Redis.from_url(server.url, decode_responses=True) as client:
        fields = dict(await client.hgetall("gz-trio:{default}:key"))
    assert len(fields.pop("write")) == 32
    assert fields == {
        "version": "1",
        "epoch": "3",
        "refused": "0",
        "value": "sk-1",
        "generation": "1",
        "expires_at": "1800000000.5",
        "refresh_token": "rt-1",
    }


async def test_profiles_share_a_server_and_nothing_else(server: RedisServer) -> None:
    work = RedisKeyStore(server.url, profile="work")
    home = RedisKeyStore(server.url, profile="home")
    async with home.changes() as changes, work.lease(), home.lease():
        await put(work, 0, "sk-work")
        with trio.move_on_after(0.1) as nothing:
            await changes.receive()
        assert nothing.cancelled_caught
    assert await home.load() == Record()


async def test_a_write_by_one_is_told_to_another(server: RedisServer) -> None:
    one, two = RedisKeyStore(server.url), RedisKeyStore(server.url)
    async with one.changes() as changes:
        for version in range(3):
            await put(two, version, f"sk-{version}")
            with trio.fail_after(10):
                while await one.load() != held(version + 1, f"sk-{version}"):
                    await changes.receive()


async def test_what_somebody_else_has_put_there_is_an_error(server: RedisServer) -> None:
    name = "gz-trio:{default}:key"
    await ask(server, lambda client: client.hset(name, {"a": "sk-secret"}))
    store = RedisKeyStore(server.url)
    with pytest.raises(KeyStoreError, match="that gz-trio has not written") as caught:
        await store.load()
    assert "sk-secret" not in str(caught.value)
    with pytest.raises(KeyStoreError, match="that gz-trio has not written"):
        await store.replace(0, Record(key=Key("sk-1")))
    await ask(server, lambda client: client.delete([name]))
    await ask(server, lambda client: client.set(name, "sk-secret"))
    with pytest.raises(KeyStoreError, match="does not do what a key store needs"):
        await RedisKeyStore(server.url).load()


# The URL


@pytest.mark.parametrize(
    "url",
    ["", "localhost", "http://localhost", "redis://", "redis:///0", "unix://", "redis://h?db=1"],
)
def test_a_url_that_can_be_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="the URL of a Redis key store must"):
        RedisKeyStore(url)


def test_without_the_extra_it_says_which_one_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> ModuleSpec | None:
        assert name == "coredis"
        return None

    monkeypatch.setattr("gz_trio._auth.stores._shared.find_spec", missing)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'gz-trio\[redis\]'"):
        RedisKeyStore("redis://localhost")


async def test_a_password_is_sent_and_never_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with redis_server(tmp_path, "--requirepass", "pass:w/rd") as server:
        right = f"redis://:pass%3Aw%2Frd@127.0.0.1:{server.port}/0"
        await put(RedisKeyStore(right), 0, "sk-1")
        for url in (right.replace("pass", "wrong-pass"), server.url):
            store = RedisKeyStore(url)
            with pytest.raises(KeyStoreError, match="user and password") as caught:
                await store.load()
            shown = f"{caught.value!r}{caught.value.__cause__!r}{store!r}{caplog.text}"
            assert "wrong-pass" not in shown
            assert f"redis://127.0.0.1:{server.port}/0" in str(caught.value)


async def test_over_tls_certificate_and_name_are_verified(tmp_path: Path) -> None:
    require_server()
    authority = trustme.CA()
    certificate = authority.issue_cert("redis.test", "127.0.0.1")
    files = {name: str(tmp_path / f"{name}.pem") for name in ("cert", "key", "ca")}
    certificate.cert_chain_pems[0].write_to_path(files["cert"])
    certificate.private_key_pem.write_to_path(files["key"])
    authority.cert_pem.write_to_path(files["ca"])
    with trio.socket.socket() as free:
        await free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = (
        *("--tls-port", str(port), "--tls-auth-clients", "no"),
        *("--tls-cert-file", files["cert"], "--tls-key-file", files["key"]),
        *("--tls-ca-cert-file", files["ca"]),
    )
    trusting = ssl.create_default_context(cafile=files["ca"])
    async with redis_server(tmp_path, *options):
        await check_key_store(RedisKeyStore(f"rediss://127.0.0.1:{port}/0", ssl_context=trusting))
        for url, context in (
            (f"rediss://127.0.0.1:{port}/0", None),  # Nobody has heard of that authority.
            (f"rediss://localhost:{port}/0", trusting),  # Another name.
        ):
            with pytest.raises(KeyStoreError, match="cannot be reached"):
                await RedisKeyStore(url, ssl_context=context).load()


# The lease


async def test_whoever_waits_is_told_when_the_lease_is_given_back(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_lease(monkeypatch, lease=1000.0, renew=300.0, left=600.0)
    one, two = RedisKeyStore(server.url), RedisKeyStore(server.url)
    async with one.changes(), trio.open_nursery() as nursery:

        async def wait() -> None:
            async with one.lease():
                pass

        async with two.lease():
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked(0.1)
            assert nursery.child_tasks


async def test_the_lease_of_one_that_is_gone_ends_by_itself(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_lease(monkeypatch, lease=0.3, renew=0.1, left=0.2)
    await ask(server, lambda client: client.set("gz-trio:{default}:lease", "gone", px=200))
    with trio.fail_after(10):
        async with RedisKeyStore(server.url).lease():
            pass


async def test_the_lease_is_renewed_for_as_long_as_it_is_held(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_lease(monkeypatch, lease=0.3, renew=0.1, left=0.2)
    one, two = RedisKeyStore(server.url), RedisKeyStore(server.url)
    async with one.lease():
        with trio.move_on_after(1) as scope:
            async with two.lease():
                pass
        assert scope.cancelled_caught


async def test_nothing_is_begun_under_a_lease_that_has_gone_to_another(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_lease(monkeypatch, lease=10.0, renew=1000.0, left=20.0)
    store = RedisKeyStore(server.url)
    await put(store, 0, "sk-1")
    calls = 0

    async def refresh(_: Key | None) -> str:
        nonlocal calls
        calls += 1
        return "sk-2"

    class Slow(RedisKeyStore):
        """Its process was stopped between the lease and what is done under it."""

        @asynccontextmanager
        async def lease(self) -> AsyncGenerator[None]:
            async with super().lease():
                name = "gz-trio:{default}:lease"
                await ask(server, lambda client: client.set(name, "another"))
                yield

    async with open_authenticator(Slow(server.url), refresh) as authenticator:
        with pytest.raises(RefreshError, match=r"the lease in .* has ended"):
            await authenticator.refresh("sk-1")
    assert calls == 0
    lease = await ask(server, lambda client: client.get("gz-trio:{default}:lease"))
    assert lease == "another", "what is another's is not released"


# A server that is away


@pytest.mark.usefixtures("impatient")
async def test_after_a_lost_connection_the_record_is_read_again(server: RedisServer) -> None:
    one, two = RedisKeyStore(server.url), RedisKeyStore(server.url)
    async with one.changes() as changes:
        for version in range(3):
            await ask(server, lambda client: client.client_kill(type_=PureToken.PUBSUB))
            await put(two, version, f"sk-{version}")
            with trio.fail_after(10):
                while await one.load() != held(version + 1, f"sk-{version}"):
                    await changes.receive()


@pytest.mark.usefixtures("impatient")
async def test_without_a_server_the_key_that_was_read_goes_on_working(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    store = RedisKeyStore(server.url)
    await put(store, 0, "sk-1")
    async with store.changes():
        await server.stop()
        assert await store.load() == held(1, "sk-1")
    assert await store.load() == held(1, "sk-1")
    with pytest.raises(KeyStoreError, match="cannot be reached"):
        await RedisKeyStore(server.url).load()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("how", ["stopped", "frozen"])
async def test_without_a_server_a_refresh_goes_on_without_the_lease_and_is_written_later(
    server: RedisServer, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = RedisKeyStore(server.url)
    await put(store, 0, "sk-1")

    async def refresh(rejected: Key | None) -> str:
        assert rejected is not None
        return f"sk-{int(rejected.value[3:]) + 1}"

    async with open_authenticator(store, refresh) as authenticator:
        if how == "stopped":
            await server.stop()
        else:
            server.freeze()
        for number in (2, 3):
            assert (await authenticator.refresh()).value == f"sk-{number}"
        assert "without the lease" in caplog.text
        assert "written once the server is back" in caplog.text
        for change in (authenticator.sign_out, lambda: authenticator.sign_in("sk-other")):
            with pytest.raises(KeyStoreError, match="cannot be reached"):
                await change()
        assert (await authenticator.key()).value == "sk-3"
        if how == "stopped":
            await server.start()
        else:
            server.thaw()
        other = RedisKeyStore(server.url)
        with trio.fail_after(20):
            async with other.changes() as changes:
                while await other.load() != held(3, "sk-3"):
                    await changes.receive()


@pytest.mark.usefixtures("impatient")
async def test_who_was_faster_while_the_server_was_away_has_the_word(server: RedisServer) -> None:
    cut_off, other = RedisKeyStore(server.url), RedisKeyStore(server.url)
    await put(cut_off, 0, "sk-1")
    server.freeze()
    await put(cut_off, 1, "sk-2")
    assert await cut_off.load() == held(2, "sk-2")
    server.thaw()
    await other.load()
    await other.replace((await other.load()).version, Record(epoch=2))
    signed_out = await other.load()
    assert await cut_off.load() == signed_out
    assert signed_out.key is None


@pytest.mark.usefixtures("impatient")
async def test_a_server_that_has_lost_everything_gets_it_back(server: RedisServer) -> None:
    """Restarted without a disk; what it held is what the last sign-in left, not nothing."""
    store = RedisKeyStore(server.url)
    await put(store, 0, "sk-1")
    await put(store, 1, "sk-2")
    await server.stop()
    await server.start()
    assert await RedisKeyStore(server.url).load() == Record()
    assert await store.load() == held(2, "sk-2")
    assert await RedisKeyStore(server.url).load() == held(2, "sk-2")


@pytest.mark.usefixtures("impatient")
async def test_a_server_that_comes_late_is_waited_for(server: RedisServer) -> None:
    await server.stop()
    store = RedisKeyStore(server.url)
    async with store.changes() as changes:
        await server.start()
        await put(RedisKeyStore(server.url), 0, "sk-1")
        with trio.fail_after(20):
            await changes.receive()
        assert await store.load() == held(1, "sk-1")


@pytest.mark.usefixtures("impatient")
async def test_leaving_while_the_server_is_away_takes_no_time(server: RedisServer) -> None:
    store = RedisKeyStore(server.url)
    await put(store, 0, "sk-1")
    with trio.fail_after(20):
        async with store.changes(), store.lease():
            server.freeze()
    server.thaw()


async def test_a_write_outlives_the_connection_that_it_went_over(server: RedisServer) -> None:
    """As a refusal does that is stored while its authenticator is left."""
    for version in range(20):
        store = RedisKeyStore(server.url)
        async with trio.open_nursery() as nursery, store.changes():
            nursery.start_soon(put, store, version, f"sk-{version}")
            for _ in range(version):
                await trio.lowlevel.checkpoint()
        assert await RedisKeyStore(server.url).load() == held(version + 1, f"sk-{version}")


@pytest.mark.parametrize("asked", ["eval", "set"])
async def test_what_was_done_before_the_connection_was_lost_is_not_taken_for_somebody_elses(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    store = RedisKeyStore(server.url)
    done, left = trio.Event(), trio.Event()
    as_it_is = getattr(coredis.Redis, asked)

    async def without_its_answer(*arguments: object, **options: object) -> object:
        answer = await as_it_is(*arguments, **options)
        if not done.is_set():
            done.set()
            await left.wait()
            raise ConnectionResetError
        return answer

    async def write_or_take_the_lease() -> None:
        if asked == "eval":
            await put(store, 0, "sk-1")
        else:
            with trio.fail_after(5):  # the lease of somebody else lasts 10
                async with store.lease():
                    pass

    monkeypatch.setattr(coredis.Redis, asked, without_its_answer)
    async with trio.open_nursery() as nursery:
        async with store.changes():
            nursery.start_soon(write_or_take_the_lease)
            await done.wait()
        left.set()
    if asked == "eval":
        assert await RedisKeyStore(server.url).load() == held(1, "sk-1")


async def test_a_bug_in_the_users_block_comes_out_as_it_is(server: RedisServer) -> None:
    store, bug = RedisKeyStore(server.url), LookupError("a bug")
    for block in (store.changes, store.lease):
        with pytest.raises(LookupError) as caught:
            async with block():
                raise bug
        assert caught.value is bug
