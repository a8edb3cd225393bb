"""Text in and out of ids: the tokenizer files of a checkpoint, its vocabulary, and its prompt template."""

from innervoice.text.chat import chat_turn_ids, end_of_turn
from innervoice.text.chat_template import ChatTemplate
from innervoice.text.templates import SPEECH_SYSTEM, TEXT_SYSTEM, turn_head_ids, turn_ids
from innervoice.text.tiktoken_file import TiktokenTokenizer, read_added_tokens, read_ranks
from innervoice.text.tokenizer import TextStream, TextTokenizer
from innervoice.text.tokenizer_json import JsonTokenizer
from innervoice.text.vocabulary import load_vocabulary, speech_ids, stand_in

__all__ = [
    "SPEECH_SYSTEM",
    "TEXT_SYSTEM",
    "ChatTemplate",
    "JsonTokenizer",
    "TextStream",
    "TextTokenizer",
    "TiktokenTokenizer",
    "chat_turn_ids",
    "end_of_turn",
    "load_vocabulary",
    "read_added_tokens",
    "read_ranks",
    "speech_ids",
    "stand_in",
    "turn_head_ids",
    "turn_ids",
]
