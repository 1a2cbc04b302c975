"""The Triton programs. Nothing imports this file before an operator runs: it needs Triton.

All make a tile of the weight in the same way, ``state[high, s] @ matrix[s, low]`` (:mod:`adntn.execution.tiles`): a
small product whose rows are the tile's high digits and whose columns are its low ones. Sizes are powers of two here;
what lies beyond the true ones is masked. A name in capitals is known when a program is compiled.
"""

# triton.jit reads annotations itself, so that they cannot be strings here.
import triton
import triton.language as tl

__all__ = ["fold_product", "fold_weight", "make_weight", "multiply"]


@triton.jit
def _dot(a, b, total, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    if WIDEN:  # Triton's interpreter multiplies the bits of bfloat16 numbers as if they were integers
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision=PRECISION)
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def _tile(
    state,  # of one group: (high, INNER)
    matrix,  # of one group: (INNER, low)
    high,
    high_inside,
    low,
    low_inside,
    INNER: tl.constexpr,
    LOW: tl.constexpr,
    HIGHS: tl.constexpr,
    LOWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return a tile in float32, shape (HIGHS, LOWS): zero outside."""
    tile = tl.zeros((HIGHS, LOWS), tl.float32)
    for start in range(0, INNER, BLOCK):
        s = start + tl.arange(0, BLOCK)
        some = s < INNER
        a = tl.load(state + high[:, None] * INNER + s[None, :], high_inside[:, None] & some[None, :], 0.0)
        b = tl.load(matrix + s[:, None] * LOW + low[None, :], some[:, None] & low_inside[None, :], 0.0)
        tile = tl.dot(a, b, tile, input_precision=PRECISION)
    return tile


@triton.jit
def _places(
    high,
    low,
    HIGH_0: tl.constexpr,
    HIGH_1: tl.constexpr,
    HIGH_2: tl.constexpr,
    LOW_0: tl.constexpr,
    LOW_1: tl.constexpr,
    LOW_2: tl.constexpr,
    SIZE_0: tl.constexpr,
    SIZE_1: tl.constexpr,
    SIZE_2: tl.constexpr,
):
    """Return where in a group's block of the weight each entry of a tile stands, and whether it stands in it."""
    i = (high // (HIGH_1 * HIGH_2))[:, None] * LOW_0 + (low // (LOW_1 * LOW_2))[None, :]
    j = (high // HIGH_2 % HIGH_1)[:, None] * LOW_1 + (low // LOW_2 % LOW_1)[None, :]
    k = (high % HIGH_2)[:, None] * LOW_2 + (low % LOW_2)[None, :]
    inside = (i < SIZE_0) & (j < SIZE_1) & (k < SIZE_2)
    inside = inside & (high < HIGH_0 * HIGH_1 * HIGH_2)[:, None] & (low < LOW_0 * LOW_1 * LOW_2)[None, :]
    return (i.to(tl.int64) * SIZE_1 + j) * SIZE_2 + k, inside


@triton.jit
def make_weight(
    state,
    matrix,
    weight,
    INNER: tl.constexpr,
    HIGH_0: tl.constexpr,
    HIGH_1: tl.constexpr,
    HIGH_2: tl.constexpr,
    LOW_0: tl.constexpr,
    LOW_1: tl.constexpr,
    LOW_2: tl.constexpr,
    SIZE_0: tl.constexpr,
    SIZE_1: tl.constexpr,
    SIZE_2: tl.constexpr,
    HIGHS: tl.constexpr,
    LOWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write the whole weight once. Programs: blocks of high digits, blocks of low digits, groups."""
    HIGH: tl.constexpr = HIGH_0 * HIGH_1 * HIGH_2
    LOW: tl.constexpr = LOW_0 * LOW_1 * LOW_2
    group = tl.program_id(2).to(tl.int64)
    high = tl.program_id(0) * HIGHS + tl.arange(0, HIGHS)
    low = tl.program_id(1) * LOWS + tl.arange(0, LOWS)
    tile = _tile(
        state + group * HIGH * INNER,
        matrix + group * INNER * LOW,
        high,
        high < HIGH,
        low,
        low < LOW,
        INNER,
        LOW,
        HIGHS,
        LOWS,
        BLOCK,
        PRECISION,
    )
    place, inside = _places(
        high, low, HIGH_0, HIGH_1, HIGH_2, LOW_0, LOW_1, LOW_2, SIZE_0, SIZE_1, SIZE_2
    )  # fmt: skip
    weight += group * SIZE_0 * SIZE_1 * SIZE_2
    tl.store(weight + place, tile.to(weight.dtype.element_ty), inside)


@triton.jit
def multiply(
    x,  # (batch, groups summed over * N_SIZE)
    state,
    matrix,
    bias,
    y,  # (parts of the sum, batch, groups made * M_SIZE)
    batch,
    x_row,
    x_column,
    INNER: tl.constexpr,
    HIGH: tl.constexpr,
    LOW: tl.constexpr,
    M_HIGH: tl.constexpr,
    M_LOW: tl.constexpr,
    M_SIZE: tl.constexpr,
    N_HIGH: tl.constexpr,
    N_LOW: tl.constexpr,
    N_SIZE: tl.constexpr,
    M_HIGH_STEP: tl.constexpr,
    M_LOW_STEP: tl.constexpr,
    N_HIGH_STEP: tl.constexpr,
    N_LOW_STEP: tl.constexpr,
    GROUPS_SUMMED: tl.constexpr,
    ROWS: tl.constexpr,
    M_HIGHS: tl.constexpr,
    M_LOWS: tl.constexpr,
    N_HIGHS: tl.constexpr,
    N_LOWS: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Multiply by the weight, whose tiles are made in registers as they are met.

    m is the axis that is made and n the one that is summed over: out and in for x W^T, in and out for dy W. Programs:
    blocks of m in each group made, blocks of the batch, parts of the sum.
    """
    M_HIGH_BLOCKS: tl.constexpr = (M_HIGH + M_HIGHS - 1) // M_HIGHS
    M_LOW_BLOCKS: tl.constexpr = (M_LOW + M_LOWS - 1) // M_LOWS
    N_HIGH_BLOCKS: tl.constexpr = (N_HIGH + N_HIGHS - 1) // N_HIGHS
    N_LOW_BLOCKS: tl.constexpr = (N_LOW + N_LOWS - 1) // N_LOWS
    block = tl.program_id(0)
    m_high_start = block % M_HIGH_BLOCKS * M_HIGHS
    m_low_start = block // M_HIGH_BLOCKS % M_LOW_BLOCKS * M_LOWS
    group_made = block // (M_HIGH_BLOCKS * M_LOW_BLOCKS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    split, splits = tl.program_id(2), tl.num_programs(2)

    # The tile's rows are pairs of high digits, its columns pairs of low ones.
    h = tl.arange(0, M_HIGHS * N_HIGHS)
    l = tl.arange(0, M_LOWS * N_LOWS)
    m_high, m_low = m_high_start + h // N_HIGHS, m_low_start + l // N_LOWS
    n = tl.arange(0, N_HIGHS * N_LOWS)
    total = tl.zeros((ROWS, M_HIGHS * M_LOWS), tl.float32)
    for step in range(split, GROUPS_SUMMED * N_LOW_BLOCKS * N_HIGH_BLOCKS, splits):
        n_high_start = step % N_HIGH_BLOCKS * N_HIGHS
        n_low_start = step // N_HIGH_BLOCKS % N_LOW_BLOCKS * N_LOWS
        group_summed = step // (N_HIGH_BLOCKS * N_LOW_BLOCKS)
        group = (group_made + group_summed).to(tl.int64)  # one of them is zero
        n_high, n_low = n_high_start + h % N_HIGHS, n_low_start + l % N_LOWS
        tile = _tile(
            state + group * HIGH * INNER,
            matrix + group * INNER * LOW,
            m_high * M_HIGH_STEP + n_high * N_HIGH_STEP,
            (m_high < M_HIGH) & (n_high < N_HIGH),
            m_low * M_LOW_STEP + n_low * N_LOW_STEP,
            (m_low < M_LOW) & (n_low < N_LOW),
            INNER,
            LOW,
            M_HIGHS * N_HIGHS,
            M_LOWS * N_LOWS,
            BLOCK,
            PRECISION,
        )
        tile = tl.permute(tl.reshape(tile, (M_HIGHS, N_HIGHS, M_LOWS, N_LOWS)), (1, 3, 0, 2))
        tile = tl.reshape(tile, (N_HIGHS * N_LOWS, M_HIGHS * M_LOWS))
        low = n_low_start + n % N_LOWS
        column = (n_high_start + n // N_LOWS) * N_LOW + low
        some = (row < batch)[:, None] & ((low < N_LOW) & (column < N_SIZE))[None, :]
        column += group_summed * N_SIZE
        entry = row[:, None].to(tl.int64) * x_row + column[None, :].to(tl.int64) * x_column
        values = tl.load(x + entry, some, 0.0)
        total = _dot(values, tile.to(values.dtype), total, PRECISION, WIDEN)

    m = tl.arange(0, M_HIGHS * M_LOWS)
    low = m_low_start + m % M_LOWS
    column = (m_high_start + m // M_LOWS) * M_LOW + low
    inside = (low < M_LOW) & (column < M_SIZE)
    column += group_made * M_SIZE
    if HAS_BIAS:
        total += tl.load(bias + column, inside, 0.0).to(tl.float32)[None, :]
    width = tl.num_programs(0) // (M_HIGH_BLOCKS * M_LOW_BLOCKS) * M_SIZE
    entry = (split.to(tl.int64) * batch + row[:, None]) * width + column[None, :]
    tl.store(y + entry, total.to(y.dtype.element_ty), (row < batch)[:, None] & inside[None, :])


@triton.jit
def _fold(
    tile,  # (HIGHS, LOWS): of the weight's gradient
    folded,  # (BLOCK, LOWS): of the matrix' gradient so far
    state,
    matrix,
    state_gradient,
    high,
    high_inside,
    low,
    low_inside,
    start,
    INNER: tl.constexpr,
    LOW: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Fold a tile of the weight's gradient into those of state and matrix: tile @ matrix^T, state^T @ tile."""
    s = start + tl.arange(0, BLOCK)
    some = s < INNER
    b = tl.load(matrix + low[:, None] + s[None, :] * LOW, low_inside[:, None] & some[None, :], 0.0)
    entry = high[:, None] * INNER + s[None, :]
    gradient = tl.dot(tile, b, input_precision=PRECISION)
    tl.store(state_gradient + entry, gradient, high_inside[:, None] & some[None, :])
    a = tl.load(state + high[None, :] * INNER + s[:, None], some[:, None] & high_inside[None, :], 0.0)
    return tl.dot(a, tile, folded, input_precision=PRECISION)


@triton.jit
def fold_weight(
    upstream,  # the weight's gradient, contiguous
    state,
    matrix,
    state_gradient,  # (blocks of low digits, groups, high, INNER)
    matrix_gradient,  # (chunks, groups, INNER, low)
    INNER: tl.constexpr,
    HIGH_0: tl.constexpr,
    HIGH_1: tl.constexpr,
    HIGH_2: tl.constexpr,
    LOW_0: tl.constexpr,
    LOW_1: tl.constexpr,
    LOW_2: tl.constexpr,
    SIZE_0: tl.constexpr,
    SIZE_1: tl.constexpr,
    SIZE_2: tl.constexpr,
    HIGHS: tl.constexpr,
    LOWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Fold the weight's gradient. Programs: chunks of the high digits, blocks of low digits and of s, groups."""
    HIGH: tl.constexpr = HIGH_0 * HIGH_1 * HIGH_2
    LOW: tl.constexpr = LOW_0 * LOW_1 * LOW_2
    LOW_BLOCKS: tl.constexpr = (LOW + LOWS - 1) // LOWS
    chunk, chunks, groups = tl.program_id(0), tl.num_programs(0), tl.num_programs(2)
    low_block = tl.program_id(1) % LOW_BLOCKS
    start = tl.program_id(1) // LOW_BLOCKS * BLOCK
    group = tl.program_id(2).to(tl.int64)
    upstream += group * SIZE_0 * SIZE_1 * SIZE_2
    low = low_block * LOWS + tl.arange(0, LOWS)
    folded = tl.zeros((BLOCK, LOWS), tl.float32)
    for block in range(chunk, (HIGH + HIGHS - 1) // HIGHS, chunks):
        high = block * HIGHS + tl.arange(0, HIGHS)
        place, inside = _places(
            high, low, HIGH_0, HIGH_1, HIGH_2, LOW_0, LOW_1, LOW_2, SIZE_0, SIZE_1, SIZE_2
        )  # fmt: skip
        folded = _fold(
            tl.load(upstream + place, inside, 0.0).to(tl.float32),
            folded,
            state + group * HIGH * INNER,
            matrix + group * INNER * LOW,
            state_gradient + (low_block * groups + group) * HIGH * INNER,
            high,
            high < HIGH,
            low,
            low < LOW,
            start,
            INNER,
            LOW,
            BLOCK,
            PRECISION,
        )
    s = start + tl.arange(0, BLOCK)
    entry = (chunk * groups + group) * INNER * LOW + s[:, None] * LOW + low[None, :]
    tl.store(matrix_gradient + entry, folded, (s < INNER)[:, None] & (low < LOW)[None, :])


@triton.jit
def fold_product(
    x,  # (batch, N_SIZE)
    upstream,  # (batch, groups * M_SIZE)
    state,
    matrix,
    state_gradient,  # (blocks of low digits, groups, high, INNER)
    matrix_gradient,  # (chunks, groups, INNER, low)
    batch,
    x_row,
    x_column,
    upstream_row,
    upstream_column,
    INNER: tl.constexpr,
    M_HIGH: tl.constexpr,
    M_LOW: tl.constexpr,
    M_SIZE: tl.constexpr,
    N_HIGH: tl.constexpr,
    N_LOW: tl.constexpr,
    N_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    M_HIGHS: tl.constexpr,
    M_LOWS: tl.constexpr,
    N_HIGHS: tl.constexpr,
    N_LOWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Fold dy^T x, the weight's gradient, tile by tile; m is the axis out, n is in.

    Programs: chunks of the high digits, blocks of low digits and of s, groups.
    """
    HIGH: tl.constexpr = M_HIGH * N_HIGH
    LOW: tl.constexpr = M_LOW * N_LOW
    N_HIGH_BLOCKS: tl.constexpr = (N_HIGH + N_HIGHS - 1) // N_HIGHS
    HIGH_BLOCKS: tl.constexpr = (M_HIGH + M_HIGHS - 1) // M_HIGHS * N_HIGH_BLOCKS
    N_LOW_BLOCKS: tl.constexpr = (N_LOW + N_LOWS - 1) // N_LOWS
    LOW_BLOCKS: tl.constexpr = (M_LOW + M_LOWS - 1) // M_LOWS * N_LOW_BLOCKS
    chunk, chunks, groups = tl.program_id(0), tl.num_programs(0), tl.num_programs(2)
    low_block = tl.program_id(1) % LOW_BLOCKS
    start = tl.program_id(1) // LOW_BLOCKS * BLOCK
    group = tl.program_id(2).to(tl.int64)
    m_low_start = low_block // N_LOW_BLOCKS * M_LOWS
    n_low_start = low_block % N_LOW_BLOCKS * N_LOWS

    h = tl.arange(0, M_HIGHS * N_HIGHS)
    l = tl.arange(0, M_LOWS * N_LOWS)
    m = tl.arange(0, M_HIGHS * M_LOWS)
    n = tl.arange(0, N_HIGHS * N_LOWS)
    m_low, n_low = m_low_start + l // N_LOWS, n_low_start + l % N_LOWS
    low, low_inside = m_low * N_LOW + n_low, (m_low < M_LOW) & (n_low < N_LOW)
    folded = tl.zeros((BLOCK, M_LOWS * N_LOWS), tl.float32)
    for block in range(chunk, HIGH_BLOCKS, chunks):
        m_high_start = block // N_HIGH_BLOCKS * M_HIGHS
        n_high_start = block % N_HIGH_BLOCKS * N_HIGHS
        m_column = (m_high_start + m // M_LOWS) * M_LOW + m_low_start + m % M_LOWS
        m_inside = (m_low_start + m % M_LOWS < M_LOW) & (m_column < M_SIZE)
        n_column = (n_high_start + n // N_LOWS) * N_LOW + n_low_start + n % N_LOWS
        n_inside = (n_low_start + n % N_LOWS < N_LOW) & (n_column < N_SIZE)
        m_entry = (group * M_SIZE + m_column) * upstream_column
        n_entry = n_column.to(tl.int64) * x_column
        tile = tl.zeros((M_HIGHS * M_LOWS, N_HIGHS * N_LOWS), tl.float32)
        for first in range(0, batch, ROWS):
            row = first + tl.arange(0, ROWS)
            some = row < batch
            at = row.to(tl.int64)
            dy = tl.load(
                upstream + m_entry[:, None] + at[None, :] * upstream_row, m_inside[:, None] & some[None, :], 0.0
            )
            values = tl.load(x + at[:, None] * x_row + n_entry[None, :], some[:, None] & n_inside[None, :], 0.0)
            tile = _dot(dy, values, tile, PRECISION, WIDEN)
        tile = tl.permute(tl.reshape(tile, (M_HIGHS, M_LOWS, N_HIGHS, N_LOWS)), (0, 2, 1, 3))
        m_high, n_high = m_high_start + h // N_HIGHS, n_high_start + h % N_HIGHS
        folded = _fold(
            tl.reshape(tile, (M_HIGHS * N_HIGHS, M_LOWS * N_LOWS)),
            folded,
            state + group * HIGH * INNER,
            matrix + group * INNER * LOW,
            state_gradient + (low_block * groups + group) * HIGH * INNER,
            m_high * N_HIGH + n_high,
            (m_high < M_HIGH) & (n_high < N_HIGH),
            low,
            low_inside,
            start,
            INNER,
            LOW,
            BLOCK,
            PRECISION,
        )
    s = start + tl.arange(0, BLOCK)
    entry = (chunk * groups + group) * INNER * LOW + s[:, None] * LOW + low[None, :]
    tl.store(matrix_gradient + entry, folded, (s < INNER)[:, None] & low_inside[None, :])
