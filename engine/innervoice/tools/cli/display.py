"""Draws a reply as it comes: a line a segment, which grows while its tokens are
decoded; plain lines on a pipe.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import track
from rich.table import Table
from rich.text import Text

from innervoice.checkpoint.quantization import Quantization
from innervoice.runtime.record import Line

if TYPE_CHECKING:
    from innervoice.tools.quantize import Written

_STYLE = {
    "reflection": "dim italic",
    "transcript": "bold",
    "speech": "cyan",
    "audio": "green",
    "tool": "yellow",
    "end": "dim",
}
_LABEL_LEN = 22  # cells before a line's text: time, kind and the gaps
_MARK = "▮"


class Display:
    """Shows lines of an EventLog on a console; a context manager.

    On a terminal the open segment is redrawn in place.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = (
            Live(console=console, transient=True, refresh_per_second=12) if console.is_terminal else None
        )

    def __enter__(self) -> Display:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def show(self, complete: Sequence[Line], growing: Line | None) -> None:
        """Print the lines that are complete above the one that grows."""
        if self._live:
            self._live.update(
                _row(line_text(growing, self._tail_len), growing) if growing else Text(),
                refresh=bool(complete),
            )
        for line in complete:
            self._print(line)

    @property
    def _tail_len(self) -> int:
        return max(8, self._console.width - _LABEL_LEN)

    def _print(self, line: Line) -> None:
        if line["kind"] == "done":
            self._console.print()
            for sentence in summary(line):
                self._console.print(sentence, highlight=False, soft_wrap=True)
        elif self._live:
            self._console.print(_row(line_text(line), line))
        else:
            self._console.print(
                f"{_label(line)}  {line_text(line)}", markup=False, highlight=False, soft_wrap=True
            )


def line_text(line: Line, tail_len: int | None = None) -> str:
    """The text to show for a line; tail_len: the end of it, in at most so many cells."""
    if line["kind"] == "audio":
        return (
            f"{line['samples'] / line['rate']:.2f} s of sound, from {line['start'] / line['rate']:.2f} s on"
        )
    if line["kind"] == "speech":
        return f"{_MARK * min(len(line['ids']), 26)} {len(line['ids'])}"
    text = printable(line["text"]) or ("end of turn" if line["kind"] == "end" else "")
    return text if tail_len is None else _tail(text, tail_len)


def summary(done: Line) -> list[str]:
    """Two or three sentences on a finished reply, from its done line."""
    usage = done["usage"]
    names = ("reflection", "transcript", "speech", *(("tool",) if usage.get("tool_tokens") else ()))
    kinds = ", ".join(f"{usage[f'{kind}_tokens']} {kind}" for kind in names)
    said = [
        f"{done['reason']}: {usage['total_new_tokens']} tokens ({kinds}), {usage['audio_s']:.2f} s of sound"
    ]
    if usage["audio_ttfp_ms"] is not None and usage["first_chunk_s"] is not None:
        said.append(
            f"first audio after {usage['audio_ttfp_ms'] / 1e3:.2f} s, a chunk of {usage['first_chunk_s']:.2f} s"
        )
    if usage["audio_rtf"] is not None:
        said.append(f"real-time factor {usage['audio_rtf']:.2f} (below 1 is faster than it plays)")
    return said


def plan_rows(plan: Line) -> dict[str, str]:
    """Name -> value of a plan's fields, in the order to print."""
    heard = {
        "speech tokenizer": f"{_bytes(plan['speech_tokenizer_bytes'])} ({plan['speech_tokenizer_dtype']})"
    }
    if plan.get("audio_encoder_bytes"):
        heard = {"audio encoder": f"{_bytes(plan['audio_encoder_bytes'])} ({plan['audio_encoder_dtype']})"}
    return {
        "device": f"{plan['device']}, {_bytes(plan['memory_bytes'])} of memory",
        "weights": f"{_bytes(plan['weight_bytes'])} ({_formats(plan)})",
        **heard,
        "speech decoder": f"{_bytes(plan['codec_bytes'])} ({plan['codec_dtype']})",
        "cache per token": f"{_bytes(plan['kv_bytes_per_token'])} ({plan['kv_dtype']})",
        "cache per session": f"{_bytes(plan['kv_bytes_per_session'])} (of {plan['max_model_len']} tokens)",
        "voice per session": _bytes(plan["voice_bytes_per_session"]),
        "step per session": _bytes(plan["step_bytes_per_session"]),
        "sessions that fit": str(plan["sessions"]),
    }


def _formats(plan: Line) -> str:
    fields = plan["quantization"]
    formats = str(plan["dtype"]) if fields is None else f"{Quantization(**fields)}, the rest {plan['dtype']}"
    inputs = {"int8": "; inputs int8", "mixed": "; inputs int8, native for queries, keys and values"}
    return formats + inputs.get(str(plan.get("activations")), "")


def written_as_it_goes(written: Iterable[Written], total: int, console: Console) -> list[Written]:
    """Take all tensors, under a progress bar."""
    return list(track(written, "quantising", total=total, console=console, transient=True))


def written_table(written: Sequence[Written]) -> Table:
    """Format, size and error of each tensor."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title, side in (
        ("tensor", "left"),
        ("format", "left"),
        ("shape", "right"),
        ("size", "right"),
        ("error", "right"),
    ):
        table.add_column(title, justify=side, no_wrap=True)  # type: ignore[arg-type]
    for one in written:
        error = "" if one.error is None else f"{one.error:.2%}"
        table.add_row(one.name, one.format, " x ".join(map(str, one.shape)), _bytes(one.num_bytes), error)
    return table


def printable(text: str) -> str:
    """The text on one line and harmless to a terminal.

    Dots stand for unprintable characters, spaces for line breaks and tabs.
    """
    return "".join(c if c.isprintable() else " " if c.isspace() else "·" for c in text).strip()


def _row(text: str, line: Line) -> RenderableType:
    """A label and a text that wraps beside it, not below it."""
    row = Table.grid(padding=(0, 2))
    row.add_column(no_wrap=True)
    row.add_column(overflow="fold")
    row.add_row(Text(_label(line), style="dim"), Text(text, style=_STYLE[line["kind"]]))
    return row


def _label(line: Line) -> str:
    return f"{line['t']:7.2f} s  {line['kind']:<10}"


def _tail(text: str, cells: int) -> str:
    if cell_len(text) <= cells:
        return text
    text = text[-cells:]
    while cell_len(text) > cells - 1:
        text = text[1:]
    return f"…{text}"


def _bytes(count: int) -> str:
    size, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
