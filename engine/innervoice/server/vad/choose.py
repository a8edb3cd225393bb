"""The choice of a network for voice activity by its name."""

from __future__ import annotations

import logging

from innervoice.server.vad.energy import EnergyNetwork
from innervoice.server.vad.network import SpeechNetwork
from innervoice.server.vad.silero import SileroNetwork, find_weights

log = logging.getLogger("innervoice")


def load_network(name: str) -> SpeechNetwork:
    """Make the network of this name: silero or energy.

    Without the package of its weights silero is replaced by energy, which a warning says. Raises ValueError for
    other names.
    """
    if name == "energy":
        return EnergyNetwork()
    if name != "silero":
        raise ValueError(f"vad is {name!r}: use silero or energy")
    weights = find_weights()
    if weights is None:
        log.warning(
            "silero-vad is not installed, so turns are found by the level of sound alone, which noise disturbs: "
            "pip install 'innervoice[server]'"
        )
        return EnergyNetwork()
    return SileroNetwork.load(weights)
