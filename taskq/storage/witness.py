"""The witness of a journal: a small file beside its folder, which outlives what is in the folder.

    magic 8s, version u16, segment u64, emptied_lsn u64, crc32c u32                          (little-endian)

It names what must be there: the newest segment by its first LSN, or, once an orderly stop has emptied the journal, the LSN that the store had
then.  So a folder that was emptied by hand, or a store that was deleted or replaced by an older copy, is not taken for a new broker.  The file
is replaced as a whole.  Where there is none, as in a data folder that was made from a backup, nothing is vouched for.
"""

from __future__ import annotations

from pathlib import Path
from struct import Struct

import attrs
from crc32c import crc32c

from taskq.errors import JournalCorrupt, StartError
from taskq.storage.files import replace_file

MAGIC = b"taskqWIT"
VERSION = 1

_FIELDS = Struct("<8sHQQ")
_CRC = Struct("<I")


@attrs.frozen
class Witness:
    """`segment`: the first LSN of the newest segment, 0 if there is none.  `emptied_lsn`: what the store had when the journal was emptied."""

    segment: int = 0
    emptied_lsn: int = 0


def read_witness(path: Path) -> Witness:
    """What the file says, nothing if there is none.  Raises JournalCorrupt if it is damaged."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Witness()
    fields = data[: _FIELDS.size]
    if len(data) != _FIELDS.size + _CRC.size or _CRC.unpack_from(data, _FIELDS.size)[0] != crc32c(fields):
        raise JournalCorrupt(f"{path}: damaged at offset 0: the witness of the journal is not valid; the files were left untouched")
    magic, version, segment, emptied_lsn = _FIELDS.unpack(fields)
    if magic != MAGIC or version != VERSION:
        raise StartError(f"{path}: witness format {version}, but this taskq reads format {VERSION}; start it with the version that wrote it")
    return Witness(segment, emptied_lsn)


def write_witness(path: Path, witness: Witness) -> None:
    """Replace the file, durably."""
    fields = _FIELDS.pack(MAGIC, VERSION, witness.segment, witness.emptied_lsn)
    replace_file(path, fields + _CRC.pack(crc32c(fields)))
