"""The most listeners that a machine carries."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from innervoice.tools.simulator.run import SimulatedRun

FIRST_AUDIO_S = 2.0


def is_carried(run: SimulatedRun, rate: float = 0.0) -> bool:
    """Whether no listener heard a gap, 99 of 100 replies began within FIRST_AUDIO_S, and
    reflection came to 99% of `rate`.

    rate: hidden tokens per second of sound. Without the second condition a policy could carry any
    number by letting them wait.
    """
    return (
        run.num_underruns == 0
        and run.first_audio(0.99) <= FIRST_AUDIO_S
        and run.hidden_per_audio_s >= 0.99 * rate
    )


def most_carried(
    runs: Callable[[int], Iterable[SimulatedRun]], least: int, most: int, *, step: int = 1, rate: float = 0.0
) -> tuple[int, list[SimulatedRun]]:
    """The largest number of listeners between least and most, in steps, of which every
    run is carried, and those runs.

    By bisection: what is carried with more is taken to be carried with fewer. 0 and no
    runs: not even least is carried.
    """
    low = 0
    high = (most - least) // step + 1
    best = list[SimulatedRun]()
    while low < high:
        middle = (low + high) // 2
        made = list[SimulatedRun]()
        for run in runs(least + middle * step):
            made.append(run)
            if not is_carried(run, rate):
                break
        if is_carried(made[-1], rate):
            low, best = middle + 1, made
        else:
            high = middle
    return (least + (low - 1) * step if low else 0), best
