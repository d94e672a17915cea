"""One digest for a set of named arrays."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray


def sha256_of(**arrays: NDArray[Any]) -> str:
    """SHA-256 over name, dtype, shape and little-endian bytes of the arrays, in the order of their names."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        portable = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        digest.update(f"{name} {portable.dtype.str} {portable.shape}\n".encode())
        digest.update(portable.tobytes())
    return digest.hexdigest()
