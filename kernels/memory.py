"""Memory by its address, and counters that threads share, for compiled code that runs without the GIL."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, extending, njit, types
from numba.core import cgutils

intrinsic: Any = extending.intrinsic  # its own type counts the context among the arguments of a call


@intrinsic
def _pointer(context: Any, address: Any) -> Any:
    """Turn an integer into a pointer to bytes."""
    if not isinstance(address, types.Integer):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.CPointer(types.uint8)(address), generate


@njit(nogil=True, inline="always")
def bytes_at(address: int, length: int) -> np.ndarray:
    """Return the memory at an address as uint8 (length,), without a copy; it must outlive the view."""
    return carray(_pointer(address), (length,))


@intrinsic
def fetch_add(context: Any, counters: Any, index: Any, value: Any) -> Any:
    """Add ``value`` to ``counters[index]`` (int64, contiguous) at once for all threads; return what stood there."""
    if not isinstance(counters, types.Array) or counters.dtype != types.int64:
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array_type, index_type, value_type = signature.args
        array = context.make_array(array_type)(context, builder, arguments[0])
        place = context.cast(builder, arguments[1], index_type, types.intp)
        pointer = cgutils.get_item_pointer(context, builder, array_type, array, [place], wraparound=False)
        amount = context.cast(builder, arguments[2], value_type, types.int64)
        return builder.atomic_rmw("add", pointer, amount, "seq_cst")

    return types.int64(counters, index, value), generate
