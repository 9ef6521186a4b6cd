"""What cuobjdump says of a module: resources and instructions of each kernel, as blocks between jumps."""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property

Test = Callable[["Block"], bool]

SHAPES = {"0": "square", "1": "narrow", "2": "medium"}  # enum Shape of schedule.h
ARITHMETICS = {
    "TensorFloat<decoct::cuda::Single>": "Tf32",
    "TensorFloat<decoct::cuda::Triple>": "Tf32x3",
    "Bfloat16": "Bfloat16",
    "Scalar<double>": "Float64",
    "Differences": "Differences",
}
# What a kernel's last argument, a truth value, means; by the start of its name.
MEANINGS = {"norm_": ("kept", "again"), "gradient": ("second", "first"), "": ("gaussian", "others")}


class Unreadable(Exception):
    """A tool's output is not what is known of it."""


def short_name(demangled: str) -> str:
    """Of `void decoct::cuda::fused_kernel<decoct::cuda::Bfloat16, 64, true>(...)`:
    `fused<Bfloat16, 64, gaussian>`.
    """
    match = re.search(r"decoct::cuda::(\w+)_kernel<(.*?)>\(", demangled)
    if not match:
        raise Unreadable(f"not a kernel of decoct: {demangled}")
    arguments = match[2]
    for long, short in ARITHMETICS.items():
        arguments = arguments.replace(f"decoct::cuda::{long}", short)
    arguments = re.sub(r"\(decoct::cuda::Shape\)(\d)", lambda m: SHAPES.get(m[1], m[1]), arguments)
    ops = ("value", "grad", "second")
    arguments = re.sub(r"\(decoct::CharacteristicOp\)(\d)", lambda m: ops[int(m[1])], arguments)
    yes, no = next((words for start, words in MEANINGS.items() if match[1].startswith(start)))
    arguments = arguments.replace(" true", f" {yes}").replace(" false", f" {no}")
    arguments = arguments.replace("decoct::cuda::", "")
    return f"{match[1]}<{arguments.strip()}>"


@dataclass(frozen=True)
class Instruction:
    address: int
    text: str  # with its predicate

    @cached_property
    def predicated(self) -> bool:
        return self.text.startswith("@")

    @cached_property
    def code(self) -> str:
        """The operation with its suffixes, `LDG.E.128`."""
        words = self.text.split()
        return words[1] if self.predicated else words[0]

    @cached_property
    def name(self) -> str:
        return self.code.split(".")[0]

    @cached_property
    def target(self) -> int | None:
        """Where a jump goes."""
        if self.name not in ("BRA", "CALL"):
            return None
        match = re.search(r"0x([0-9a-f]+)\s*$", self.text)
        return int(match[1], 16) if match else None

    @property
    def ends_block(self) -> bool:
        return self.name in ("BRA", "CALL", "EXIT", "RET", "BRX", "BRXU", "JMP", "JMX")

    @property
    def falls_through(self) -> bool:
        """Whether the next instruction may follow. An unpredicated CALL.REL.NOINC is a plain jump here."""
        if not self.ends_block or self.predicated:
            return True
        return self.name == "BRA" and ("BRA.DIV" in self.code or "BRA.CONV" in self.code or self.conditional)

    @property
    def conditional(self) -> bool:
        """`BRA P5, 0x10` and `BRA.U !UP0, 0x10`."""
        return re.search(r"BRA\S*\s+!?U?P\d", self.text) is not None


def count(instructions: Iterable[Instruction], pattern: str) -> int:
    """Instructions whose operation, suffixes included, matches the whole of `pattern`."""
    return sum(re.fullmatch(pattern, i.code) is not None for i in instructions)


@dataclass
class Block:
    """Instructions that run one after another; `following`: numbers of the blocks that may come next."""

    number: int
    instructions: list[Instruction]
    following: list[int] = field(default_factory=list)

    def count(self, pattern: str) -> int:
        return count(self.instructions, pattern)


@dataclass
class Kernel:
    mangled: str
    name: str = ""
    registers: int = 0
    stack: int = 0
    local: int = 0
    shared: int = 0  # static; from sm_90 on the KiB that the driver keeps is in it
    instructions: list[Instruction] = field(default_factory=list)

    def count(self, pattern: str) -> int:
        return count(self.instructions, pattern)

    @property
    def bytes(self) -> int:
        return 16 * len(self.instructions)

    @cached_property
    def blocks(self) -> list[Block]:
        targets = {i.target for i in self.instructions}
        blocks: list[Block] = []
        start = True
        for instruction in self.instructions:
            if start or instruction.address in targets:
                blocks.append(Block(len(blocks), []))
            blocks[-1].instructions.append(instruction)
            start = instruction.ends_block
        numbers = {b.instructions[0].address: b.number for b in blocks}
        for block in blocks:
            last = block.instructions[-1]
            if last.target in numbers:
                block.following.append(numbers[last.target])
            if last.falls_through and block.number + 1 < len(blocks):
                block.following.append(block.number + 1)
        return blocks

    def shortest(self, start: int, stops: list[Test]) -> list[Block] | None:
        """The way of fewest instructions from the end of block `start` through a block that passes each test.

        The tests come in turn; one block may pass several. The result has the last stop but not the start.
        """
        queue = [(0, start, 0, -1)]  # instructions, block, tests passed, entry it came from
        came: list[tuple[int, int]] = []
        seen = set()
        while queue:
            length, number, passed, before = heapq.heappop(queue)
            if (number, passed) in seen:
                continue
            seen.add((number, passed))
            came.append((number, before))
            if passed == len(stops):
                way = []
                at = len(came) - 1
                while came[at][1] >= 0:
                    way.append(self.blocks[came[at][0]])
                    at = came[at][1]
                return way[::-1]
            own = len(came) - 1
            for following in self.blocks[number].following:
                block, reached = self.blocks[following], passed
                while reached < len(stops) and stops[reached](block):
                    reached += 1
                heapq.heappush(queue, (length + len(block.instructions), following, reached, own))
        return None


def parse_resources(text: str) -> dict[str, Kernel]:
    """The output of `cuobjdump -res-usage -arch sm_NN`, by mangled name."""
    kernels = {}
    for name, line in re.findall(r"Function (\S+?):\s*\n\s*(REG:.*)", text):
        numbers = {key: int(value) for key, value in re.findall(r"\b([A-Z]+):(\d+)", line)}
        try:
            kernels[name] = Kernel(
                name,
                registers=numbers["REG"],
                stack=numbers["STACK"],
                local=numbers["LOCAL"],
                shared=numbers["SHARED"],
            )
        except KeyError as missing:
            raise Unreadable(f"cuobjdump -res-usage of {name} lacks {missing}: {line}") from None
    return kernels


def parse_code(text: str) -> dict[str, list[Instruction]]:
    """The output of `cuobjdump -sass -arch sm_NN`, by mangled name."""
    code: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in text.splitlines():
        if match := re.match(r"\s+Function : (\S+)", line):
            current = code.setdefault(match[1], [])
        elif match := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(\S.*?)\s*;", line):
            current.append(Instruction(int(match[1], 16), match[2]))
    for instructions in code.values():
        while instructions and instructions[-1].name == "NOP":  # fills the last line of code
            instructions.pop()
    return code


def parse_module(resources: str, code: str, demangle: Callable[[list[str]], list[str]]) -> list[Kernel]:
    kernels = parse_resources(resources)
    instructions = parse_code(code)
    if set(kernels) != set(instructions):
        odd = sorted(set(kernels) ^ set(instructions))
        raise Unreadable(f"resources and code are of other functions: {', '.join(odd)}")
    for kernel, demangled in zip(kernels.values(), demangle(list(kernels)), strict=True):
        kernel.name = short_name(demangled)
        kernel.instructions = instructions[kernel.mangled]
    return sorted(kernels.values(), key=lambda k: k.name)
