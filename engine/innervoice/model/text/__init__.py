"""Text in and out of ids: the tokenizer files of a checkpoint, its vocabulary, and its prompt template.

chat.py                  dialogues in that template, as ids
chat_template.py         a checkpoint's own Jinja template
dialogue.py              DialogueItem: a message as a template takes it
template_environment.py  the sandbox that it is rendered in, and its functions
templates.py             GLM-4-Voice's prompt, turn by turn
thinking.py              whether a prompt asks the model to think first
tiktoken_file.py         tokenizer.model in tiktoken's format
tokenizer.py             what a tokenizer offers; decoding piece by piece
tokenizer_json.py        tokenizer.json
tool_calls.py            a tool call as text
tools.py                 the list of tools in a prompt
vocabulary.py            which ids mean what
within.py                ids of a text that stands within another
"""

from innervoice.model.text.chat import (
    chat_runs,
    chat_turn_ids,
    check_variables,
    dialogue_ids,
    encode_parts,
    end_of_turn,
)
from innervoice.model.text.chat_template import ChatMessage, ChatTemplate, Piece
from innervoice.model.text.templates import (
    SPEECH_SYSTEM,
    TEXT_SYSTEM,
    default_system,
    dialogue_runs,
    turn_head_ids,
    turn_ids,
)
from innervoice.model.text.thinking import asks_to_think
from innervoice.model.text.tiktoken_file import TiktokenTokenizer, read_added_tokens, read_ranks
from innervoice.model.text.tokenizer import TextStream, TextTokenizer
from innervoice.model.text.tokenizer_json import JsonTokenizer
from innervoice.model.text.tool_calls import call_begin, call_ids, read_call
from innervoice.model.text.tools import (
    TOOLS,
    check_marks,
    function_of,
    read_tools,
    reads_tools,
    result_role,
    with_tools,
)
from innervoice.model.text.vocabulary import eos_ids, load_vocabulary, speech_ids, stand_in
from innervoice.model.text.within import ids_within

__all__ = [
    "SPEECH_SYSTEM",
    "TEXT_SYSTEM",
    "TOOLS",
    "ChatMessage",
    "ChatTemplate",
    "JsonTokenizer",
    "Piece",
    "TextStream",
    "TextTokenizer",
    "TiktokenTokenizer",
    "asks_to_think",
    "call_begin",
    "call_ids",
    "chat_runs",
    "chat_turn_ids",
    "check_marks",
    "check_variables",
    "default_system",
    "dialogue_ids",
    "dialogue_runs",
    "encode_parts",
    "end_of_turn",
    "eos_ids",
    "function_of",
    "ids_within",
    "load_vocabulary",
    "read_added_tokens",
    "read_call",
    "read_ranks",
    "read_tools",
    "reads_tools",
    "result_role",
    "speech_ids",
    "stand_in",
    "turn_head_ids",
    "turn_ids",
    "with_tools",
]
