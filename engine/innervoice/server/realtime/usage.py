"""Token counts of a reply in the protocol's terms."""

from __future__ import annotations

from typing import Any

from innervoice.types import Usage


def to_json(usage: Usage, is_spoken_turn: bool) -> dict[str, Any]:
    """Write the usage of a reply; is_spoken_turn: its prompt counts as sound, else as text."""
    prompt, cached = usage.prompt_tokens, usage.cached_tokens
    speech = usage.speech_tokens
    return {
        "total_tokens": prompt + usage.total_new_tokens,
        "input_tokens": prompt,
        "output_tokens": usage.total_new_tokens,
        "input_token_details": {
            **_by_kind(prompt, is_spoken_turn),
            "cached_tokens": cached,
            "cached_tokens_details": _by_kind(cached, is_spoken_turn),
        },
        "output_token_details": {
            "text_tokens": usage.total_new_tokens - speech,
            "audio_tokens": speech,
            "reflection_tokens": usage.reflection_tokens,
        },
    }


def _by_kind(num_tokens: int, is_spoken: bool) -> dict[str, int]:
    return {
        "text_tokens": 0 if is_spoken else num_tokens,
        "audio_tokens": num_tokens if is_spoken else 0,
        "image_tokens": 0,
    }
