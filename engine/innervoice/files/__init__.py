"""Files of the user's: read or refused in one sentence, written whole or not at all.

packaged.py   the model and the recordings that come with the package
reading.py    bytes and text of a file, and the reasons why there are none
replacing.py  a new file takes the place of an old one when it is complete
sound.py      the containers of sound, and samples written to them
"""

from innervoice.files.packaged import (
    PackagedQuestion,
    assets_folder,
    packaged_model,
    packaged_questions,
)
from innervoice.files.reading import check_readable, named, parse_json, read_bytes, read_text
from innervoice.files.replacing import check_replaceable, replacing
from innervoice.files.sound import SoundFormat, sound_format, write_sound

__all__ = [
    "PackagedQuestion",
    "SoundFormat",
    "assets_folder",
    "check_readable",
    "check_replaceable",
    "named",
    "packaged_model",
    "packaged_questions",
    "parse_json",
    "read_bytes",
    "read_text",
    "replacing",
    "sound_format",
    "write_sound",
]
