"""Instructions per pair and the share of the bound that they allow, from the code of each kernel.

A throughput model. The work of one warp is cut into parts, each found in the code by what it holds, and each
part's instructions are taken as often as the tile shapes say:

    scores    HMMA blocks before the exponential, as many as M N k / 8 products need (k / 16 in bfloat16)
    copies    LDGSTS blocks of the main loop, as many as the tile has 16-byte pieces for a thread
    step      the rest of one turn of the loop: barrier, counters
    profile   the way of fewest instructions from the scores through the exponential and back to the loop:
              that of one bandwidth and of no near pair; in the score kernel it passes the stores of weights
    product   HMMA blocks after the exponential: weights times points

Of several blocks of a part (unrolled loop and remainder) the one of fewest instructions for its kind counts;
of copies the one that has most of them, for that is how many a thread makes at a time. The small kernels'
part is the shortest way round from an exponential to itself with enough additions for the dimension.
Kernels in float64, those of other profiles and Hessian-vector products are left out.

The kernels of gradient matching, for float32 whose positions or rows lie side by side:

    outer     one step of 32 positions ("pairs": entries of the result): the blocks that load 16 numbers of
              each operand, the products, the look-up of positions, which the first warp does for all, stores
    list      rows of a distance that warps take ("pairs": numbers): the unrolled loops that add up and that
              write one side's gradient
    norm      the value, pooled by 2 x 2, and the gradient where a group is kept in shared memory ("pairs":
              numbers): loads of four at a time, sums, and what is written

Every instruction takes one issue slot of its partition (a quarter of a multiprocessor) and cycles of its
pipe; the time is that of the busiest pipe, all parts together, as if other warps always covered a wait. So
the model ignores latency, dependences, too few warps, bank conflicts, caches, instruction fetch (some kernels
have more than 128 KiB), ragged tiles, and the start and end of a block. It is an upper limit of the share.

Cycles of a warp's instruction in one partition, from the throughput table of the CUDA C++ Programming Guide
(16 lanes of a partition: 2 cycles) and, for the tensor cores, from the data sheets:

    HMMA.1688.F32.TF32, HMMA.16816.F32.BF16
          sm_80  8      A100 156 TFLOP/s = 108 SM x 4 x 1.41 GHz x 2 x 128; an HMMA has 16 x 8 x 8 products
          sm_90  6.45   H100 494.7 TFLOP/s = 132 SM x 4 x 1.83 GHz x 2 x 256 would be 4; that mma.sync reaches
                        62 % of it is taken for granted here, not measured
    MUFU  8             16 lanes a multiprocessor and cycle
    FP32  2 on sm_80, 1 on sm_90      FADD, FMUL, FFMA, and IMAD with them
    ALU   2             other integers, comparisons, selections, and what rounding to TF32 is made of
    memory              shared memory and L1, one path of 128 bytes a cycle for four partitions: 4 for each
                        128 bytes. LDSM.x4 and LDGSTS.128 take four times that

The bound is the one that the kernels state at their heads, at the data sheet's peaks: D products a pair, in
the fused kernel twice (3xTF32: three for one), in the small kernel three FP32 instructions for each of D
dimensions, or one exponential, whichever takes longest; of a list or a norm the bytes of a number that is
read and written, at the data sheet's 2.04 TB/s (A100 of 80 GB) and 3.35 TB/s (H100). On H100 no kernel with
mma.sync comes beyond 0.62 of it where products bound.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

from sass import Block, Instruction, Kernel, Test, Unreadable, count

HMMA_TF32, HMMA_BF16 = r"HMMA\.1688\.F32\.TF32", r"HMMA\.16816\.F32\.BF16"
HMMA = {"Tf32": HMMA_TF32, "Tf32x3": HMMA_TF32, "Bfloat16": HMMA_BF16}
HMMA_DEPTH = {"Tf32": 8, "Tf32x3": 8, "Bfloat16": 16}
PEAK_CYCLES = {80: 8.0, 90: 4.0}  # of an HMMA at the data sheet's rate
HMMA_CYCLES = {80: 8.0, 90: 4 / 0.62}  # as mma.sync issues them
FP32_CYCLES = {80: 2, 90: 1}
FP64_CYCLES = {80: 4, 90: 2}
# Bytes of memory a cycle of one partition.
MEMORY_BYTES = {80: 2039e9 / (108 * 4 * 1.41e9), 90: 3350e9 / (132 * 4 * 1.83e9)}
EXP = r"MUFU\.EX2"
COPY = r"LDGSTS\.E(\.\w+)*\.128(\.\w+)*"
ALU = {
    *("FSETP", "FSEL", "FMNMX", "ISETP", "IADD3", "IMNMX", "LEA", "LOP3", "PLOP3", "PRMT", "SEL", "SHF"),
    *("MOV", "F2FP", "FCHK", "P2R", "R2P", "VIADD", "VIMNMX", "IABS"),
}
STEP_BYTES, COPY_BYTES = 128, 16  # of a row at a time in the score and product kernels; of a copy
THREADS, WARPS = 128, 4

# Rows, columns, and a warp's share of them in parts of 16 x 8 (score.cuh, fused.cuh).
SCORE_TILES = {"square": (64, 64, 2, 4), "narrow": (16, 128, 1, 4), "medium": (32, 64, 1, 4)}


def fused_tile(width: int) -> tuple[int, int, int, int]:
    columns = 64 if width <= 128 else 32
    return 32, columns, 1, columns // 16


@dataclass(frozen=True)
class Prediction:
    dim: int
    instructions: float  # of a thread for one pair
    cycles: dict[str, float]  # of each pipe in one partition, for 32 pairs
    bound: float
    bound_by: str

    @property
    def busiest(self) -> str:
        return max(self.cycles, key=lambda pipe: self.cycles[pipe])

    @property
    def share(self) -> float:
        return self.bound / self.cycles[self.busiest]


def wavefronts(instruction: Instruction, broadcast: bool) -> int:
    """Turns of 128 bytes that a warp's access takes; with `broadcast` all lanes read the same few words."""
    name, code = instruction.name, instruction.code
    if name == "LDSM" or (name == "LDGSTS" and ".128" in code):
        return 4
    if name not in ("LDS", "STS", "LDG", "STG", "ATOMS") or instruction.text.startswith("@!PT"):
        return 0
    return 1 if broadcast else 4 if ".128" in code else 2 if ".64" in code else 1


def cycles_of(instructions: Iterable[Instruction], capability: int, broadcast: bool) -> dict[str, float]:
    """Issue slots and cycles of each pipe for one warp."""
    cycles: dict[str, float] = defaultdict(float)
    for instruction in instructions:
        name = instruction.name
        cycles["issue"] += 1
        cycles["memory"] += 4 * wavefronts(instruction, broadcast)
        if name == "HMMA":
            cycles["HMMA"] += HMMA_CYCLES[capability]
        elif name == "MUFU":
            cycles["MUFU"] += 8
        elif name in ("FADD", "FMUL", "FFMA", "IMAD"):
            cycles["FP32"] += FP32_CYCLES[capability]
        elif name in ("DADD", "DMUL", "DFMA", "DSETP"):
            cycles["FP64"] += FP64_CYCLES[capability]
        elif name in ALU:
            cycles["ALU"] += 2
    return cycles


class Parts:
    """Adds up parts of a warp's work, given how often each is done."""

    def __init__(self, capability: int, broadcast: bool = False) -> None:
        self.capability, self.broadcast = capability, broadcast
        self.total: dict[str, float] = defaultdict(float)

    def add(self, instructions: Iterable[Instruction], times: float) -> None:
        for pipe, cycles in cycles_of(instructions, self.capability, self.broadcast).items():
            self.total[pipe] += cycles * times

    def prediction(
        self,
        dim: int,
        pairs: float,
        exponentials: int,
        products: float = 0,
        additions: float = 0,
        bytes_moved: float = 0,
    ) -> Prediction:
        """`pairs` of the warp; what the bound has for 32 pairs, `products` in HMMAs, `additions` in FFMAs."""
        cycles = {pipe: value * 32 / pairs for pipe, value in self.total.items()}
        if bytes_moved:
            cycles["DRAM"] = bytes_moved / MEMORY_BYTES[self.capability]
        bounds = {
            "HMMA": products * PEAK_CYCLES[self.capability],
            "FP32": additions * FP32_CYCLES[self.capability],
            "MUFU": exponentials * 8.0,
            "DRAM": cycles.get("DRAM", 0.0),
        }
        bound_by = max(bounds, key=lambda pipe: bounds[pipe])
        return Prediction(dim, cycles["issue"], cycles, bounds[bound_by], bound_by)


def leanest(blocks: Iterable[Block], pattern: str) -> Block | None:
    """The block with the fewest instructions for each that matches."""
    found = [b for b in blocks if b.count(pattern)]
    return min(found, key=lambda b: len(b.instructions) / b.count(pattern), default=None)


def has(pattern: str, least: int = 1) -> Test:
    return lambda block: block.count(pattern) >= least


def is_block(wanted: Block) -> Test:
    return lambda block: block is wanted


def is_loop(block: Block) -> bool:
    return block.number in block.following


def arguments_of(kernel: Kernel) -> list[str]:
    return kernel.name.partition("<")[2].rstrip(">").split(", ")


def predict_small(kernel: Kernel, capability: int, dim: int) -> Prediction | None:
    width = int(arguments_of(kernel)[2])
    turns = []
    for start in kernel.blocks:
        if start.count(EXP) and (way := kernel.shortest(start.number, [is_block(start)])):
            turn = [i for block in way for i in block.instructions]
            exponentials = count(turn, EXP)
            # A difference and the step of a gradient for each column, and no loop over bandwidths inside.
            whole = sum(b.count(EXP) > 0 for b in way) == 1
            if whole and count(turn, "FADD.*|FFMA.*") >= 2 * width * exponentials:
                turns.append((len(turn) / exponentials, exponentials, turn))
    if not turns:
        return None
    _, exponentials, turn = min(turns, key=lambda t: t[0])
    parts = Parts(capability, broadcast=True)
    parts.add(turn, 1)
    return parts.prediction(dim, 32 * exponentials, 1, additions=3 * dim)


@dataclass(frozen=True)
class Loop:
    """The parts of a kernel's main loop."""

    scores: Block
    copies: Block
    step: list[Block]
    product: Block | None = None
    profile: tuple[Block, ...] = ()


def find_loop(kernel: Kernel, hmma: str, kind: str) -> Loop | None:
    blocks = kernel.blocks
    exponentials = [b.number for b in blocks if b.count(EXP)]
    # A product has exponentials for near pairs only.
    first = exponentials[0] if exponentials and kind != "product" else len(blocks)
    scores = leanest(blocks[:first], hmma)
    if scores is None:
        return None
    inside = [b for b in blocks if b.count(COPY) and kernel.shortest(scores.number, [is_block(b)])]
    copies = max(inside, key=lambda b: (b.count(COPY), -len(b.instructions)), default=None)
    back = kernel.shortest(scores.number, [is_block(scores)])
    if copies is None or back is None:
        return None
    step = [b for b in back if not b.count("HMMA.*")]
    if kind == "product":
        return Loop(scores, copies, step)
    product = leanest(blocks[first:], hmma) if kind == "fused" else None
    stops = [has(EXP)] + ([has(r"STG\.E(\.64)?", 4)] if kind == "score" else [])
    if kind == "fused":
        if product is None:
            return None
        stops.append(is_block(product))
    stops.append(is_block(scores))
    way = kernel.shortest(scores.number, stops)
    if way is None:
        return None
    return Loop(scores, copies, step, product, tuple(b for b in way if not b.count("HMMA.*")))


def predict_tensor(kernel: Kernel, capability: int, dim: int) -> Prediction | None:
    """Score, fused and product kernels on the tensor cores."""
    kind, arguments = kernel.name.partition("<")[0], arguments_of(kernel)
    arithmetic = arguments[0]
    loop = find_loop(kernel, HMMA[arithmetic], kind)
    if loop is None:
        return None
    tile = fused_tile(int(arguments[1])) if kind == "fused" else SCORE_TILES[arguments[1]]
    rows, columns, m, n = tile
    triple = 3 if arithmetic == "Tf32x3" else 1
    depth = HMMA_DEPTH[arithmetic]
    size = 32 // depth  # bytes of a number
    step = STEP_BYTES // size
    parts = Parts(capability)

    def add(block: Block, pattern: str, times: float) -> None:
        parts.add(block.instructions, times / block.count(pattern))

    def add_copies(elements: int) -> None:
        if loop.copies is not loop.scores:  # else they are counted with it
            add(loop.copies, COPY, elements * size / COPY_BYTES / THREADS)

    ideal = 32 / 128 * dim / depth * triple  # of a warp for 32 pairs; an HMMA has 16 x 8
    if kind == "product":  # for one step: `rows` x `step` pairs, `columns` of the result
        add(loop.scores, HMMA[arithmetic], m * n * step / depth * triple)
        add_copies((rows + columns) * step)
        parts.add((i for b in loop.step for i in b.instructions), 1)
        tiles = ceil(dim / columns)
        return parts.prediction(dim, rows * step / WARPS / tiles, 0, products=ideal)
    pairs = m * n * 128
    steps = 1 if kind == "fused" else ceil(dim / step)
    width = int(arguments[1]) if kind == "fused" else steps * step
    add(loop.scores, HMMA[arithmetic], m * n * width / depth * triple)
    add_copies((columns if kind == "fused" else rows + columns) * width)
    if kind == "score":
        parts.add((i for b in loop.step for i in b.instructions), steps - 1)
    parts.add((i for b in loop.profile for i in b.instructions), 1)
    if loop.product:
        add(loop.product, HMMA[arithmetic], m * n * 8 / depth * width / 8 * triple)
    return parts.prediction(dim, pairs, 1, products=ideal * (2 if kind == "fused" else 1))


FLOAT_LOAD = r"LDG\.E(\.CONSTANT)?"
OUTER_STEP, OUTER_NUMBERS = 32, 16  # positions of a step; numbers of each operand that a thread loads for it
LIST_UNROLLED, LIST_BYTES = 4, 12  # numbers of a loop's turn; bytes of a number in memory


def loading(kernel: Kernel, first: int, numbers: int) -> list[Block]:
    """Blocks from one on, in the order of the code, that load so many numbers."""
    found, loaded = [], 0
    for block in kernel.blocks[first:]:
        if loaded < numbers and block.count(FLOAT_LOAD):
            found.append(block)
            loaded += block.count(FLOAT_LOAD)
    return found


def predict_outer(kernel: Kernel, capability: int, dim: int) -> Prediction | None:
    arithmetic = arguments_of(kernel)[0]
    scores = leanest(kernel.blocks, HMMA[arithmetic])
    if scores is None:
        return None

    def inside(block: Block) -> bool:
        return kernel.shortest(scores.number, [is_block(block), is_block(scores)]) is not None

    turn = [block for block in kernel.blocks if inside(block)]
    loads = [block for block in turn if block.count(FLOAT_LOAD) >= 4]
    weighted = [block for block in loads if block.count("FMUL") >= 4]
    plain = [block for block in loads if not block.count("FMUL")]
    lookups = [block for block in turn if block.count(r"I2F.*") and block.count("LDG.*")]
    stores = [block for block in turn if block.count("STS.*") >= 8]
    if not (weighted and plain and len(lookups) == 1 and len(stores) == 4):
        return None
    # Of two layouts, whose code stands one behind the other, the second. Both store in as many steps.
    operands = [loading(kernel, blocks[-1].number, OUTER_NUMBERS) for blocks in (weighted, plain)]
    wanted = [*lookups, stores[0], stores[2], *operands[0], *operands[1], scores]
    way = kernel.shortest(scores.number, [is_block(block) for block in wanted])
    if way is None:
        return None
    _, _, m, n = SCORE_TILES["square"]
    ideal = m * n * OUTER_STEP / HMMA_DEPTH[arithmetic] * (3 if arithmetic == "Tf32x3" else 1)
    parts = Parts(capability)
    parts.add((i for block in way for i in block.instructions if block is not scores), 1)
    parts.add(scores.instructions, ideal / scores.count(HMMA[arithmetic]))
    return parts.prediction(dim, m * n * 128, 0, products=ideal * 32 / (m * n * 128))


def predict_list(kernel: Kernel, capability: int, dim: int) -> Prediction | None:
    loops: dict[bool, list[Block]] = {}  # by whether it writes; the first of each is that of rows
    for start in kernel.blocks:
        way = kernel.shortest(start.number, [is_block(start)]) if start.count(FLOAT_LOAD) == 2 else None
        loads = [block for block in way or [] if block.count(FLOAT_LOAD)]
        if len(loads) != LIST_UNROLLED:
            continue
        loads = [start, *loads[:-1]]
        stops = [test for block in loads[1:] for test in (has("STG.*"), is_block(block))]
        writing = kernel.shortest(start.number, [*stops, has("STG.*"), is_block(start)])
        loops.setdefault(writing is not None, writing or way or [])
    if len(loops) != 2:
        return None
    parts = Parts(capability)
    parts.add((i for way in loops.values() for block in way for i in block.instructions), 1)
    return parts.prediction(dim, 32 * LIST_UNROLLED, 0, bytes_moved=32 * LIST_BYTES)


FLOAT_STORE = r"STG\.E"
NORM_BYTES = {"norm_value": 4 * 1.25, "norm_grad": 4 * 2.25}  # of a number, a quarter of which the result has


def predict_norm(kernel: Kernel, capability: int, dim: int) -> Prediction | None:
    kind, blocks = kernel.name.partition("<")[0], kernel.blocks
    parts = Parts(capability)

    def add(way: list[Block] | None, numbers: float) -> bool:
        parts.add((i for block in way or [] for i in block.instructions), 1 / numbers)
        return way is not None

    def round_of(blocks_or_tests: list[Block | Test]) -> list[Block] | None:
        tests = [is_block(part) if isinstance(part, Block) else part for part in blocks_or_tests]
        first = blocks_or_tests[0]
        return kernel.shortest(first.number, [*tests[1:], tests[0]]) if isinstance(first, Block) else None

    # Four numbers from memory to shared memory, with what is made of each.
    quads = [b for b in blocks if b.count(r"LDG\.E\.128.*") == 1 and round_of([b])]
    alone = [b for b in blocks if b.count("LDS.*") and is_loop(b)]
    if not quads or not alone:
        return None
    kept = [b for b in blocks[quads[0].number :] if b.count("STS.*") and round_of([quads[0], b])]
    # Of the fourth number the load stands behind a jump table, where no way is known.
    within = blocks[kept[0].number : kept[-1].number + 1]
    touched = [b for b in within if b.count(f"{FLOAT_LOAD}|STS.*") and round_of([quads[0], b])]
    sums = max(alone, key=lambda b: b.count("LDS.*"))
    each = 1 if kind == "norm_value" else 2  # numbers in shared memory for one of the image
    found = add(round_of([quads[0], *touched]), 4) and add([sums], sums.count("LDS.*") / each)
    # What is written: a window of four numbers, column by column, or four numbers one by one.
    if kind == "norm_value":
        columns = [b for b in blocks if b.count("LDS.*") == 1 and b.count(FLOAT_LOAD) == 2 and round_of([b])]
        found &= len(columns) >= 2 and add(round_of([*columns[:2], *columns[:2], has(FLOAT_STORE)]), 4)
    else:
        starts = [b for b in blocks if b.count("LDS.*") == 2 and b.count(FLOAT_LOAD) == 1 and round_of([b])]
        last = starts[-4:]
        found &= len(last) == 4 and add(round_of([p for b in last for p in (b, has(FLOAT_STORE))]), 4)
    return parts.prediction(dim, 32, 0, bytes_moved=32 * NORM_BYTES[kind]) if found else None


def dimensions(kernel: Kernel) -> list[int]:
    """Those for which the model is asked; none where it does not reach."""
    kind, arguments = kernel.name.partition("<")[0], arguments_of(kernel)
    if kind == "small" and arguments[:2] == ["float", "gaussian"]:
        width = int(arguments[2])
        return [3 if width == 4 else width - 1]
    if kind == "outer" and arguments[0] in HMMA:
        return [OUTER_STEP]
    if kernel.name in (
        "gradient_first<float, float, first>",
        "norm_value<float, kept>",
        "norm_grad<float, kept>",
    ):
        return [1024]
    if arguments[0] in HMMA and kind in ("score", "fused", "product") and arguments[-1] != "others":
        return [int(arguments[1])] if kind == "fused" else [64, 512]
    return []


def predictions(kernel: Kernel, capability: int) -> list[Prediction]:
    kind = kernel.name.partition("<")[0]
    special = {
        "small": predict_small,
        "outer": predict_outer,
        "gradient_first": predict_list,
        "norm_value": predict_norm,
        "norm_grad": predict_norm,
    }
    predict = special.get(kind, predict_tensor)
    found = [predict(kernel, capability, dim) for dim in dimensions(kernel)]
    if None in found:
        raise Unreadable(f"{kernel.name} on sm_{capability}: no main loop found; see throughput.py")
    return [p for p in found if p]
