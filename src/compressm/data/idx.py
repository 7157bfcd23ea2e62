"""The idx format of the MNIST files: a magic number with type and rank, big-endian sizes, then unsigned bytes."""

from __future__ import annotations

import math
import struct

import numpy as np
from numpy.typing import NDArray

from compressm.errors import DataError

_UNSIGNED_BYTE = 0x08


def parse_idx(content: bytes, source: str) -> NDArray[np.uint8]:
    """The array in the decompressed bytes of one idx file; `source` names the file in messages.

    Raises:
        DataError: the magic number is foreign, or the number of bytes is not what the header says.
    """
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _UNSIGNED_BYTE or content[3] == 0:
        raise DataError(
            f"{source} is not an idx file of unsigned bytes: it starts with {content[:4].hex() or 'nothing'}."
        )
    rank = content[3]
    start = 4 + 4 * rank
    if len(content) < start:
        raise DataError(f"{source} ends inside its header: {len(content)} bytes, wanted at least {start}.")
    shape = struct.unpack(f">{rank}I", content[4:start])
    wanted = start + math.prod(shape)
    if len(content) != wanted:
        raise DataError(f"{source} has {len(content)} bytes, wanted {wanted} for the shape {shape} in its header.")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)
