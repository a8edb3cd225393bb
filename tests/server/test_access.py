"""Who is let in: keys, client secrets, web pages, names of the host."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from innervoice.server.access import Access
from innervoice.server.errors import ApiError
from innervoice.server.options import ServerOptions
from innervoice.server.origins import Origins
from innervoice.server.signer import Signer

SECRET = b"s" * 32
KEY = "sk-right"


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def access(*keys: str, clock: Clock | None = None) -> Access:
    return Access(keys, Signer(SECRET, clock or Clock()))


def bearer(value: str) -> Headers:
    return Headers({"Authorization": f"Bearer {value}"})


@pytest.mark.parametrize(
    ("headers", "protocols"),
    [
        ({"authorization": f"Bearer {KEY}"}, ()),
        ({"authorization": f"bearer  {KEY} "}, ()),
        ({"api-key": KEY}, ()),
        ({}, ("realtime", f"openai-insecure-api-key.{KEY}", "openai-beta.realtime-v1")),
    ],
)
def test_a_key_is_taken_wherever_clients_put_it(headers: dict[str, str], protocols: tuple[str, ...]) -> None:
    made = access("sk-other", KEY)
    assert not made.grant(Headers(headers), protocols).is_secret
    with pytest.raises(ApiError) as caught:
        access("sk-other").grant(Headers(headers), protocols)
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")
    assert KEY not in caught.value.message


@pytest.mark.parametrize("headers", [{}, {"authorization": "Basic abc"}, {"authorization": "Bearer"}])
def test_without_a_credential(headers: dict[str, str]) -> None:
    with pytest.raises(ApiError, match="no API key was given"):
        access(KEY).grant(Headers(headers), ("realtime",))
    assert not access().grant(Headers(headers)).presets


def test_any_key_is_good_for_a_server_without_keys() -> None:
    assert not access().grant(bearer("whatever")).is_secret


def test_a_client_secret_carries_its_session_until_it_expires() -> None:
    clock = Clock()
    made = access(KEY, clock=clock)
    secret = made.make_secret({"instructions": "Be brief."}, expires_at=1600)
    assert secret.startswith("ek_")
    grant = made.grant(Headers({}), ("realtime", f"openai-insecure-api-key.{secret}"))
    assert grant.is_secret
    assert grant.presets == {"instructions": "Be brief."}
    with pytest.raises(ApiError, match="opens sessions and nothing else"):
        made.grant_key(bearer(secret))
    clock.now_s = 1600.0
    for keys in ((KEY,), ()):
        with pytest.raises(ApiError, match="expired"):
            access(*keys, clock=clock).grant(bearer(secret))


@pytest.mark.parametrize("secret", ["ek_", "ek_abc", "ek_" + "A" * 80, "ek_\u00e9", "ek_" + "=" * 9])
def test_a_secret_of_others_is_refused(secret: str) -> None:
    with pytest.raises(ApiError, match="was not made by this server"):
        access(KEY).grant(Headers({}), (f"openai-insecure-api-key.{secret}",))


@given(payload=st.dictionaries(st.text(), st.integers() | st.text() | st.none()), place=st.integers(0, 500))
def test_a_token_is_read_back_and_a_changed_one_is_not(payload: dict[str, object], place: int) -> None:
    signer = Signer(SECRET, Clock())
    token = signer.sign("kind", payload, 2000)
    assert signer.read("kind", token) == payload
    i = place % (len(token) - 1)  # the last character may have bits that say nothing
    changed = token[:i] + ("A" if token[i] != "A" else "B") + token[i + 1 :]
    for kind, one, by in (("kind", changed, SECRET), ("other", token, SECRET), ("kind", token, b"t" * 32)):
        with pytest.raises(ValueError, match="not made by this server"):
            Signer(by, Clock()).read(kind, one)


@pytest.mark.parametrize(
    ("origin", "is_allowed"),
    [
        ("http://127.0.0.1:3000", True),
        ("http://localhost", True),
        ("https://[::1]:1", True),
        ("https://here.example:8443", True),  # the server's own
        ("https://here.example", False),
        ("http://here.example:8443", True),
        ("https://friend.example", True),
        ("http://friend.example", False),
        ("https://friend.example.evil.example", False),
        ("https://evil.example", False),
        ("http://127.0.0.1.evil.example", False),
        ("null", False),
        ("file://", False),
        ("", False),
    ],
)
def test_pages(origin: str, is_allowed: bool) -> None:
    origins = Origins(("https://friend.example",), on_loopback=False)
    headers = Headers({"host": "here.example:8443", "origin": origin})
    if is_allowed:
        origins.check(headers)
    else:
        with pytest.raises(ApiError) as caught:
            origins.check(headers)
        assert (caught.value.status, caught.value.code) == (403, "invalid_origin")
    Origins(("*",), on_loopback=False).check(headers)


@pytest.mark.parametrize(
    ("host", "is_known"),
    [
        ("127.0.0.1:8000", True),
        ("localhost:8000", True),
        ("[::1]:8000", True),
        ("friend.example", True),
        ("evil.example:8000", False),
        ("", False),
    ],
)
def test_a_server_on_loopback_knows_its_names(host: str, is_known: bool) -> None:
    headers = Headers({"host": host})
    Origins((), on_loopback=False).check(headers)
    origins = Origins(("https://friend.example",), on_loopback=True)
    if is_known:
        origins.check(headers)
    else:
        with pytest.raises(ApiError) as caught:
            origins.check(headers)
        assert caught.value.code == "invalid_host"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"port": 65536}, "port is 65536"),
        ({"port": "80"}, "port is '80'"),
        ({"drain_s": -1}, "drain_s is -1"),
        ({"api_keys": ("a b",)}, "API key"),
        ({"api_keys": ("",)}, "API key"),
        ({"allow_origins": ("friend.example",)}, "allow_origins has 'friend.example'"),
        ({"allow_origins": ("https://friend.example/path",)}, "scheme://host"),
        ({"ssl_keyfile": __file__}, "ssl_keyfile"),
        ({"vad": "ears"}, "vad is 'ears'"),
        ({"transcription_url": "ftp://host"}, "transcription_url"),
        ({"max_session_s": 0}, "max_session_s is 0"),
    ],
)
def test_options_that_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ServerOptions(**options)  # type: ignore[arg-type]


def test_secrets_are_not_shown() -> None:
    shown = repr(ServerOptions(api_keys=(KEY,), transcription_key="sk-theirs"))
    assert KEY not in shown
    assert "sk-theirs" not in shown
