"""What the libraries of text and weights raise becomes a ValueError that names the file or the text."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from chat_files import save

from innervoice.checkpoint.files import read_json
from innervoice.checkpoint.gguf import unpack
from innervoice.checkpoint.locate import locate
from innervoice.checkpoint.pickle_file import PickleFile
from innervoice.checkpoint.safetensors import TensorFile
from innervoice.checkpoint.yaml_reader import read_yaml
from innervoice.codec.residual_vq.codes import Codes
from innervoice.model.text import ChatTemplate, JsonTokenizer, TextTokenizer, TiktokenTokenizer, read_ranks
from innervoice.model.text.tokenizer import library_errors


class Panic(BaseException):
    """A failure of a library in Rust, which is no Exception."""


@pytest.fixture(scope="module")
def tiktoken(tiny_dir: Path) -> TiktokenTokenizer:
    return TiktokenTokenizer.from_pretrained(tiny_dir / "glm-4-voice-9b")


@pytest.fixture(scope="module")
def tokenizers(tiktoken: TiktokenTokenizer, tmp_path_factory: pytest.TempPathFactory) -> list[TextTokenizer]:
    folder = tmp_path_factory.mktemp("chat")
    save(folder, "chatml")
    return [tiktoken, JsonTokenizer.from_pretrained(folder)]


@pytest.mark.parametrize("space", [" ", "\t", "\u00a0", " \t", "\u3000"], ids=ascii)
def test_more_white_space_than_the_library_takes(
    tiktoken: TiktokenTokenizer, space: str, capfd: pytest.CaptureFixture[str]
) -> None:
    run = space * (1_000_000 // len(space))
    for text in (run + "x", "x" + run, run):
        with pytest.raises(ValueError, match="1000000 characters of white space in a row"):
            tiktoken.encode(text)
    assert capfd.readouterr().err == ""


def test_white_space_up_to_the_bound_is_encoded(tiktoken: TiktokenTokenizer) -> None:
    assert len(tiktoken.encode("x" + " " * 900_000 + "x")) == 900_002
    for text in ((" " * 999 + "\n") * 1000, "\r" * 1_000_000, " " * 900_000 + "\n" + " " * 900_000):
        assert len(tiktoken.encode(text + "x")) == len(text) + 1


@pytest.mark.parametrize("unit", [" ", "a", "!", "\n", "!\n", "7", "\u00a0", "ab "], ids=ascii)
def test_time_grows_as_the_text_does(tokenizers: list[TextTokenizer], unit: str) -> None:
    """Four times the text takes no more than about four times as long: nothing is tried from every place."""
    for tokenizer in tokenizers:
        took = []
        for num in (20_000, 80_000):
            text = unit * (num // len(unit)) + "x"
            tries = []
            for _ in range(3):
                begin = time.thread_time()
                tokenizer.encode(text)
                tries.append(time.thread_time() - begin)
            took.append(min(tries))
        assert took[1] < 12 * took[0] + 0.02, (unit, took)


@pytest.mark.parametrize("error", [Panic("StackOverflow\n at 1"), RuntimeError(), Exception("no")])
def test_a_panic_is_a_value_error(error: BaseException) -> None:
    match = r"^it cannot be done \(\w+( at 1)?\): try less$"
    with pytest.raises(ValueError, match=match), library_errors("it cannot be done", "try less"):
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_what_is_no_failure_of_a_library_passes(error: type[BaseException]) -> None:
    with pytest.raises(error), library_errors("it cannot be done", "try less"):
        raise error


@pytest.mark.parametrize(
    "template",
    [
        "{{ " + "(" * 5000 + ")" * 5000 + " }}",
        "{% if x %}" * 500 + "{% endif %}" * 500,
        "{{ x | nothing }}",
        "{% for %}",
    ],
    ids=["parentheses", "blocks", "filter", "loop"],
)
def test_a_template_that_does_not_compile(tmp_path: Path, template: str) -> None:
    with pytest.raises(
        ValueError, match=r"t\.jinja: the chat template is not valid \(.+\): download it again"
    ):
        ChatTemplate(template, {}, tmp_path / "t.jinja")


READERS: list[Callable[[Path], object]] = [
    read_json,
    read_yaml,
    read_ranks,
    TensorFile,
    PickleFile,
    Codes.load,
    unpack,
]


@pytest.mark.parametrize("read", READERS, ids=lambda read: getattr(read, "__qualname__", str(read)))
def test_every_reader_names_the_file_and_the_reason(
    tmp_path: Path, read: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "file.gguf"
    for content in (b"", b"\xff\xfe\x00garbage", b"[" * 100_000, b"- " * 20_000, b"{" * 9 + b"\x00" * 90):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"file\.gguf") as caught:
            read(path)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"file\.gguf"):
        read(path)
    path.mkdir()
    with pytest.raises(ValueError, match=r"file\.gguf.*is a directory"):
        read(path)


def test_a_template_in_other_bytes(tmp_path: Path) -> None:
    path = tmp_path / "chat_template.jinja"
    path.write_bytes(b"\xff{{ x }}")
    with pytest.raises(ValueError, match=r"chat_template\.jinja is not UTF-8 text"):
        ChatTemplate.read(tmp_path)
    path.write_bytes(b"{{ messages }}")
    assert ChatTemplate.read(tmp_path) is not None


def test_a_tokenizer_that_the_library_refuses(tmp_path: Path) -> None:
    data = {"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "z"]]}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(
        ValueError, match=r"tokenizer\.json cannot be read as a tokenizer \(.+\): download it again"
    ):
        JsonTokenizer.from_pretrained(tmp_path)


def test_no_home_for_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(OSError, match="set XDG_CACHE_HOME"):
        unpack(path)


def test_any_failure_of_the_hub_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object, **more: object) -> str:
        raise RuntimeError("the proxy\nis gone")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(FileNotFoundError, match=r"could not be had from the hub \(the proxy\): download it"):
        locate("nobody/nothing")
