"""innervoice codec encode | decode | roundtrip: a codec by itself, files to files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

import innervoice
from innervoice.codec.audio import read_channels
from innervoice.files import sound_format
from innervoice.tools.cli.outputs import refuse_same, reserved
from innervoice.types import Samples

if TYPE_CHECKING:
    from innervoice.codec.residual_vq.codec import Codec
    from innervoice.codec.residual_vq.codec import Progress as ReportProgress
    from innervoice.codec.residual_vq.codes import Codes

app = typer.Typer(
    rich_markup_mode=None, help="Mimi, EnCodec, DAC or SNAC by itself: sound to codes and back."
)

CodecOption = Annotated[
    Path, typer.Option("--codec", help="Directory with the codec's config.json and weights.")
]
CodebooksOption = Annotated[int | None, typer.Option(help="How many codebooks to encode with; default: all.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
DtypeOption = Annotated[Literal["float32", "bfloat16"], typer.Option(help="Type of the weights.")]
SoundArgument = Annotated[Path, typer.Argument(metavar="FILE", help="The sound: WAV, FLAC, OGG or MP3.")]


@app.command()
def encode(
    file: SoundArgument,
    codec: CodecOption,
    out: Annotated[Path | None, typer.Option(help="The codes; default: FILE with the ending .codes.")] = None,
    codebooks: CodebooksOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
) -> None:
    """Turn a sound into codes."""
    target = out or file.with_suffix(".codes")
    refuse_same(file, target)
    with reserved(target) as part:
        codes = _encoded(_load(codec, device, dtype), file, codebooks)
        codes.save(part)
    print(f"wrote {target}: {_described(codes)}", flush=True)


@app.command()
def decode(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Codes that `encode` wrote.")],
    codec: CodecOption,
    out: Annotated[Path, typer.Option(help="The sound: .wav, .flac or .ogg.")] = Path("decoded.wav"),
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
) -> None:
    """Turn codes into a sound."""
    refuse_same(file, out)
    with _sound_at(out, codec, device, dtype) as (loaded, part):
        duration_s = _decoded(loaded, innervoice.Codes.load(file), part)
    print(f"wrote {out}: {duration_s:.2f} s", flush=True)


@app.command()
def roundtrip(
    file: SoundArgument,
    codec: CodecOption,
    out: Annotated[Path, typer.Option(help="The sound: .wav, .flac or .ogg.")] = Path("roundtrip.wav"),
    codebooks: CodebooksOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
) -> None:
    """Encode a sound and decode it again, to hear how much the codec keeps."""
    refuse_same(file, out)
    with _sound_at(out, codec, device, dtype) as (loaded, part):
        codes = _encoded(loaded, file, codebooks)
        print(f"{file}: {_described(codes)}", flush=True)
        duration_s = _decoded(loaded, codes, part)
    print(f"wrote {out}: {duration_s:.2f} s", flush=True)


@contextmanager
def _sound_at(out: Path, codec: Path, device: str, dtype: str) -> Iterator[tuple[Codec, Path]]:
    """The codec and the hidden file of a sound, which may be written as its ending says. Raises ValueError,
    OSError.
    """
    kind = sound_format(out)
    with reserved(out) as part:
        loaded = _load(codec, device, dtype)
        kind.check(loaded.sample_rate)
        yield loaded, part


def _load(directory: Path, device: str, dtype: str) -> Codec:
    import torch

    return innervoice.Codec.from_pretrained(directory, device=device, dtype=getattr(torch, dtype))


def _encoded(codec: Codec, file: Path, codebooks: int | None) -> Codes:
    samples, rate = read_channels(file)
    if rate != codec.sample_rate:
        print(f"{file} has {rate} Hz: resampled to the {codec.sample_rate} Hz of {codec.kind}", flush=True)
    with _progress("encoding") as report:
        sound: tuple[Samples, int] = (samples, rate)
        return codec.encode(sound, num_codebooks=codebooks, progress=report)


def _decoded(codec: Codec, codes: Codes, out: Path) -> float:
    """Write the sound of the codes; returns its seconds."""
    with _progress("decoding") as report:
        audio = codec.decode(codes, progress=report)
    audio.save(out)
    return audio.duration_s


@contextmanager
def _progress(what: str) -> Iterator[ReportProgress]:
    """A bar on a terminal, nothing elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=1.0)
        yield lambda share: bar.update(task, completed=share)


def _described(codes: Codes) -> str:
    return f"{codes.kind}, {codes.num_codebooks} codebooks, {sum(len(row) for row in codes.ids)} ids"
