"""Vector operations that compilers do not find in plain loops, built from LLVM's vector types.

Loads, shuffles and integer arithmetic on vectors of fixed length, without a word of any one processor's instruction
set: LLVM lowers them to as few or as many registers as the machine has. (Plain loops leave a transposition scalar, ten
times slower, and multiply 16-bit samples in 32 bits.) Indices are not checked: callers make sure that all that is
addressed lies inside the arrays.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils

intrinsic: Any = extending.intrinsic  # its own type counts the context among the arguments of a call

LANES = 32  # samples that are copied, summed or converted at a time
BYTE_TILE = 16  # rows of bytes that are transposed at a time: 16 bytes are the unit that every machine can shuffle
WORD_TILE = 8  # rows of words that are transposed at a time

BYTE, WORD, LONG = ir.IntType(8), ir.IntType(16), ir.IntType(32)


def is_flat(value: Any, *dtypes: Any) -> bool:
    """Tell whether a Numba type is a contiguous array of one dimension with elements of one of these types."""
    return isinstance(value, types.Array) and value.ndim == 1 and value.layout == "C" and value.dtype in dtypes


def pointer(context: Any, builder: Any, signature: Any, arguments: Any, position: int) -> Any:
    """Return the address of the first element of the array that is the argument at ``position``."""
    return context.make_array(signature.args[position])(context, builder, arguments[position]).data


def load(builder: Any, array: Any, index: Any, element: Any, length: int) -> Any:
    """Read ``length`` elements from an array's ``index`` on."""
    place = builder.bitcast(builder.gep(array, [index]), ir.VectorType(element, length).as_pointer())
    return builder.load(place, align=element.width // 8)


def store(builder: Any, vector: Any, array: Any, index: Any) -> None:
    """Write a vector to an array's ``index`` and behind it."""
    place = builder.bitcast(builder.gep(array, [index]), vector.type.as_pointer())
    builder.store(vector, place, align=vector.type.element.width // 8)


def constant(element: Any, value: int, length: int) -> Any:
    """Return a vector of equal elements."""
    return ir.Constant(ir.VectorType(element, length), [value] * length)


def multiply_high(builder: Any, words: Any, factors: Any, signed: bool) -> Any:
    """Return the upper 16 bits of the products of words: one instruction nearly everywhere."""
    wide = ir.VectorType(LONG, words.type.count)
    extend = builder.sext if signed else builder.zext
    products = builder.mul(extend(words, wide), extend(factors, wide))
    return builder.trunc(builder.lshr(products, constant(LONG, 16, words.type.count)), words.type)


def _shuffle(builder: Any, first: Any, second: Any, indices: list[int]) -> Any:
    return builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(LONG, len(indices)), indices))


def _splat(builder: Any, value: Any, length: int) -> Any:
    single = builder.insert_element(ir.Constant(ir.VectorType(value.type, 1), [0]), value, ir.Constant(LONG, 0))
    return _shuffle(builder, single, single, [0] * length)


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """Transpose n x n tiles, side by side in n rows: perfect shuffles of the rows' halves, log2(n) times."""
    side, length = len(rows), rows[0].type.count
    lower = [tile + i + row for tile in range(0, length, side) for i in range(side // 2) for row in (0, length)]
    upper = [index + side // 2 for index in lower]
    for _ in range(side.bit_length() - 1):
        pairs = zip(rows[: side // 2], rows[side // 2 :], strict=True)
        rows = [_shuffle(builder, *pair, indices) for pair in pairs for indices in (lower, upper)]
    return rows


def _transpose_tiles(
    builder: Any, source: Any, out: Any, place: Any, stride: Any, index: Any, step: Any, of: Any
) -> None:
    side = BYTE_TILE if of is BYTE else WORD_TILE
    rows = []
    for _ in range(side):
        rows.append(load(builder, source, place, of, LANES))
        place = builder.add(place, stride)
    columns = _transposed(builder, rows)
    for tile in range(0, LANES, side):
        for column in columns:
            words = _shuffle(builder, column, column, list(range(tile, tile + side)))
            if of is BYTE:
                words = builder.shl(builder.zext(words, ir.VectorType(WORD, side)), constant(WORD, 8, side))
            store(builder, words, out, index)
            index = builder.add(index, step)


@intrinsic
def transpose_bytes(context: Any, source: Any, place: Any, stride: Any, out: Any, index: Any, step: Any) -> Any:
    """Write 16 rows of 32 bytes as columns of 8.8 fixed-point words.

    Args:
        source: uint8 array; a row begins at ``place`` and every ``stride`` elements.
        out: uint16 array; a column is written to ``index`` and every ``step`` elements.
    """
    if not (is_flat(source, types.uint8) and is_flat(out, types.uint16)):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, out = (pointer(context, builder, signature, arguments, position) for position in (0, 3))
        _transpose_tiles(builder, source, out, arguments[1], arguments[2], arguments[4], arguments[5], BYTE)
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp, out, types.intp, types.intp), generate


@intrinsic
def transpose_words(context: Any, source: Any, place: Any, stride: Any, out: Any, index: Any, step: Any) -> Any:
    """Write 8 rows of 32 words as columns; arguments as those of ``transpose_bytes``, both arrays uint16."""
    if not (is_flat(source, types.uint16) and is_flat(out, types.uint16)):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, out = (pointer(context, builder, signature, arguments, position) for position in (0, 3))
        _transpose_tiles(builder, source, out, arguments[1], arguments[2], arguments[4], arguments[5], WORD)
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp, out, types.intp, types.intp), generate


@intrinsic
def sum_words(
    context: Any,
    source: Any,
    place: Any,
    stride: Any,
    weights: Any,
    weight: Any,
    taps: Any,
    start: Any,
    out: Any,
    index: Any,
) -> Any:
    """Write ``start`` plus the weighted sum of ``taps`` rows of 32 words, modulo 2**16.

    Args:
        source: uint16 array; a row begins at ``place`` and every ``stride`` elements.
        weights: uint16 array; the weights begin at ``weight``, in units of 2**-16. Products are rounded down.
        out: uint16 array, written to from ``index`` on.
    """
    if not all(is_flat(array, types.uint16) for array in (source, weights, out)):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, place, stride, _, weight, taps, start, _, index = arguments
        source, weights, out = (pointer(context, builder, signature, arguments, position) for position in (0, 3, 7))
        total = cgutils.alloca_once(builder, ir.VectorType(WORD, LANES))  # becomes a register
        builder.store(_splat(builder, start, LANES), total)
        with cgutils.for_range(builder, taps) as loop:
            row = load(builder, source, builder.add(place, builder.mul(loop.index, stride)), WORD, LANES)
            factor = builder.load(builder.gep(weights, [builder.add(weight, loop.index)]))
            product = multiply_high(builder, row, _splat(builder, factor, LANES), signed=False)
            builder.store(builder.add(builder.load(total), product), total)
        store(builder, builder.load(total), out, index)
        return context.get_dummy_value()

    size = types.intp
    return types.void(source, size, size, weights, size, size, types.uint16, out, size), generate


@intrinsic
def copy_lanes(context: Any, source: Any, place: Any, out: Any, index: Any, length: Any) -> Any:
    """Copy at least ``length`` bytes from one uint8 array to another, 32 at a time: up to 31 more are moved, too."""
    if not (is_flat(source, types.uint8) and is_flat(out, types.uint8)):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, place, _, index, length = arguments
        source, out = (pointer(context, builder, signature, arguments, position) for position in (0, 2))
        lanes = ir.Constant(length.type, LANES)
        steps = builder.sdiv(builder.add(length, ir.Constant(length.type, LANES - 1)), lanes)
        with cgutils.for_range(builder, steps) as loop:
            offset = builder.mul(loop.index, lanes)
            store(
                builder, load(builder, source, builder.add(place, offset), BYTE, LANES), out, builder.add(index, offset)
            )
        return context.get_dummy_value()

    return types.void(source, types.intp, out, types.intp, types.intp), generate
