"""The page over loopback: its files are there, need no key, and may load nothing but each other."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser

import pytest
from paths import ENGINE, ROOT
from small_servers import RunningServer, running_server

from innervoice import Engine
from innervoice.files import packaged_questions

PAGE = ENGINE / "server" / "page"
FILES = sorted(path.name for path in PAGE.iterdir())
LOADED = re.compile(r"""(?:from|import|new URL\()\s*["'](?:\./)?([\w-]+\.js)["']""")


@pytest.fixture(scope="module")
def server(small_engine: Engine) -> Iterator[RunningServer]:
    with running_server(small_engine) as made:
        yield made


class References(HTMLParser):
    """The files that a document names, and its inline scripts and styles, which its policy forbids."""

    def __init__(self) -> None:
        super().__init__()
        self.files: set[str] = set()
        self.inline: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.inline += [f"{tag} {name}" for name in given if name == "style" or name.startswith("on")]
        if tag == "style" or (tag == "script" and "src" not in given):
            self.inline.append(tag)
        named = [given.get("src"), given.get("href")]
        self.files |= {value for value in named if value and not value.startswith("#")}


def test_the_page_is_served_without_a_key_and_with_a_strict_policy(server: RunningServer) -> None:
    with server.client(key=None) as client:
        page = client.get("/")
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert set(policy.values()) == {"'none'", "'self'"}
        assert client.get("/v1/models").status_code == 401


def test_all_that_the_page_names_is_served(server: RunningServer) -> None:
    found = References()
    found.feed((PAGE / "index.html").read_text(encoding="utf-8"))
    assert found.inline == []
    assert len(found.ids) == len(set(found.ids))
    named = {file.removeprefix("page/") for file in found.files}
    for path in PAGE.glob("*.js"):
        named |= set(LOADED.findall(path.read_text(encoding="utf-8")))
    assert {"app.js", "style.css", "playback-worklet.js", "capture-worklet.js"} <= named
    assert set(FILES) - named == {"index.html"}, "files that nothing loads"
    types = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml", "flac": "audio/flac"}
    with server.client(key=None) as client:
        questions = client.get("/page/questions.json").json()
        assert [one["text"] for one in questions] == [one.text for one in packaged_questions()]
        named |= {one["file"] for one in questions}
        for name in named:
            answer = client.get(f"/page/{name}")
            assert answer.status_code == 200, name
            assert answer.headers["content-type"].split(";")[0] == types[name.rsplit(".", 1)[1]]
            assert "content-security-policy" in answer.headers
            assert len(answer.content) > 100


@pytest.mark.parametrize("name", ["none.js", "..%2fapp.py", "%2e%2e/app.py", "NOTICE.md", "."])
def test_other_files_are_not_served(server: RunningServer, name: str) -> None:
    with server.client(key=None) as client:
        answer = client.get(f"/page/{name}")
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "unknown_url"


def test_scripts_use_only_elements_that_there_are() -> None:
    found = References()
    found.feed((PAGE / "index.html").read_text(encoding="utf-8"))
    used = set(re.findall(r'\$\("([\w-]+)"\)', (PAGE / "app.js").read_text(encoding="utf-8")))
    assert len(used) > 20
    assert used - set(found.ids) == set()


def test_the_wheel_carries_the_page() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = table["tool"]["setuptools"]["package-data"]["innervoice"]
    packed = {path for pattern in patterns for path in ENGINE.glob(pattern)}
    assert [name for name in FILES if PAGE / name not in packed] == []
