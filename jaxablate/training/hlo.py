"""What a compiled program does on one device, read off its text (XLA's HLO): kernels, collectives, products, traffic.

XLA's own cost analysis counts the body of a loop once; here it counts as often as it runs, where the text says so.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Mapping

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
               "collective-broadcast")
"""Kinds of communication between devices, by their names in HLO."""

_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier", "partition-id",
         "replica-id", "add-dependency", "domain"}
"""Operations that run nothing, as do the second halves of asynchronous ones."""
_BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collectives:
    """Communication of one kind in a step of one device."""

    count: int
    """How often it starts; arrays that are combined into one exchange count once."""
    bytes: int
    """Bytes of the whole arrays: what a gather or a reduction leaves, what a scatter takes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What one device does in a run of the program."""

    kernels: int = 0
    """Instructions that run: fusions, library calls, copies, collectives. On a GPU each is a launch or more."""
    flops: int = 0
    """Floating-point operations of matrix products and convolutions, as the compiler has left them. Those inside of
    custom kernels count where a TPU's Pallas kernel has a ``cost_estimate``."""
    traffic: int = 0
    """Bytes that these instructions read and write in the device's memory, what stays on the chip between them apart.
    """
    collectives: Mapping[str, Collectives] = dataclasses.field(default_factory=dict)
    """By kind. A TPU's fusion of an all-reduce with a slice of it is a reduce-scatter."""
    unknown_loops: int = 0
    """Loops whose number of turns the text does not tell; they count once."""

    def __add__(self, other: "Work") -> "Work":
        kinds = {kind: Collectives(count=sum(c.count for c in found), bytes=sum(c.bytes for c in found))
                 for kind in COLLECTIVES
                 if (found := [w.collectives[kind] for w in (self, other) if kind in w.collectives])}
        return Work(kernels=self.kernels + other.kernels, flops=self.flops + other.flops,
                    traffic=self.traffic + other.traffic, collectives=kinds,
                    unknown_loops=self.unknown_loops + other.unknown_loops)

    def __mul__(self, times: int) -> "Work":
        kinds = {kind: Collectives(count=c.count * times, bytes=c.bytes * times)
                 for kind, c in self.collectives.items()}
        return Work(kernels=self.kernels * times, flops=self.flops * times, traffic=self.traffic * times,
                    collectives=kinds, unknown_loops=self.unknown_loops)


def work(text: str) -> Work:
    """What a program does from its text, ``compiled.as_text()`` of JAX: the parts of it that are one device's."""
    entry, computations = _parsed(text)
    return _Program(computations).of(entry)


@dataclasses.dataclass(frozen=True)
class _Array:
    type: str
    shape: tuple[int, ...]
    on_chip: bool
    """Whether the layout places it in a memory of the chip, not in the device's main one."""

    @property
    def bytes(self) -> int:
        bits = _BITS.get(self.type) if self.type in _BITS else int(re.sub(r"^\D+(\d+).*", r"\1", self.type))
        return math.prod(self.shape) * (bits or 0) // 8


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    arrays: tuple[_Array, ...]
    """Its result, a tuple's parts one after another."""
    operation: str
    inside: str
    """Its operands as text; of a parameter its number."""
    rest: str
    """Attributes as text."""
    is_root: bool

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        return tuple(re.findall(r"%([\w.\-]+)", self.inside))

    @property
    def bytes(self) -> int:
        return sum(array.bytes for array in self.arrays)

    def attribute(self, name: str) -> str | None:
        found = re.search(rf"\b{name}=\{{?%?([\w.\-]+)", self.rest)
        return found[1] if found else None

    def numbers(self, name: str) -> list[int]:
        found = re.search(rf"\b{name}=\{{([\d,]*)\}}", self.rest)
        return [int(n) for n in found[1].split(",") if n] if found else []


_Computation = Mapping[str, _Instruction]


def _parsed(text: str) -> tuple[str, Mapping[str, _Computation]]:
    """Name of the entry, and the instructions of each computation by name."""
    computations: dict[str, dict[str, _Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if not line.startswith(" "):
            head = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
            if head and not line.startswith("HloModule"):
                current = computations.setdefault(head[2], {})
                entry = head[2] if head[1] else entry
        elif current is not None and (instruction := _instruction(line.strip())):
            current[instruction.name] = instruction
    return entry, computations


def _instruction(line: str) -> _Instruction | None:
    head = re.match(r"(ROOT )?%?([\w.\-]+) = ", line)
    if not head:
        return None
    kind, rest = _first_part(line[head.end():])
    operation, bracket, rest = rest.strip().partition("(")
    if not bracket:
        return None
    inside, rest = _first_part("(" + rest)
    return _Instruction(head[2], tuple(_arrays(kind)), operation, inside[1:-1], rest, bool(head[1]))


def _first_part(text: str) -> tuple[str, str]:
    """Up to the bracket that closes the first one, or else to the first blank; and what follows."""
    if not text.startswith("("):
        head, _, rest = text.partition(" ")
        return head, rest
    depth = 0
    for found in re.finditer(r"[()]", text):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return text[:found.end()], text[found.end():]
    return text, ""


def _arrays(kind: str) -> Iterable[_Array]:
    for found in re.finditer(r"(\w+)\[([\d,<=]*)\](\{[^}]*\})?", kind):
        shape = tuple(int(n.lstrip("<=")) for n in found[2].split(",") if n)
        yield _Array(found[1], shape, bool(re.search(r"S\([1-9]", found[3] or "")))


class _Program:
    """Computations of a program, of which each is looked at once."""

    def __init__(self, computations: Mapping[str, _Computation]):
        self._computations = computations
        self.of = functools.cache(self._of)

    def _of(self, name: str) -> Work:
        """Work of one run of a computation."""
        computation = self._computations.get(name, {})
        total, seen = Work(), set()
        for instruction in computation.values():
            total += self._of_one(instruction, computation, seen)
        return total

    def _of_one(self, instruction: _Instruction, computation: _Computation, seen: set[str]) -> Work:
        operation = instruction.operation
        if operation == "while":
            body, turns = self.of(instruction.attribute("body") or ""), self._turns(instruction, computation)
            return body + Work(unknown_loops=1) if turns is None else body * turns
        if operation == "conditional":
            names = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
            branches = (re.findall(r"%([\w.\-]+)", names[1]) if names else
                        [instruction.attribute(f"{which}_computation") or "" for which in ("true", "false")])
            return max((self.of(branch) for branch in branches), key=lambda w: (w.flops, w.kernels, w.traffic))
        if operation in ("call", "async-start"):
            return self.of(instruction.attribute("to_apply") or instruction.attribute("calls") or "")
        if operation in _FREE or operation.endswith(("-done", "-update")) or "AllocateBuffer" in instruction.rest:
            return Work()
        inner = self._computations.get(instruction.attribute("calls") or "", {}) if operation == "fusion" else {}
        flops = _flops(instruction, computation) + sum(_flops(x, inner) for x in inner.values())
        return Work(kernels=1, flops=flops, traffic=_traffic(instruction, computation, inner),
                    collectives=_communication(instruction, computation, inner, seen))

    def _turns(self, loop: _Instruction, computation: _Computation) -> int | None:
        """How often a loop runs: by the compiler's note, or where a number is counted up by one to below a constant."""
        noted = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.rest)
        if noted:
            return int(noted[1])
        condition = self._computations.get(loop.attribute("condition") or "", {})
        test = next((x for x in condition.values() if x.is_root), None)
        if test is None or test.operation != "compare" or test.attribute("direction") != "LT":
            return None
        counter, limit = (condition.get(name) for name in test.operands)
        state = computation.get(loop.operands[0])
        if not counter or counter.operation != "get-tuple-element" or not limit or limit.operation != "constant":
            return None
        first = computation.get(state.operands[int(counter.attribute("index") or 0)]) if state else None
        while first and first.operation == "copy":
            first = computation.get(first.operands[0])
        begin = int(first.inside) if first and first.operation == "constant" else 0
        return max(0, int(limit.inside) - begin)


def _communication(instruction: _Instruction, computation: _Computation, inner: _Computation, seen: set[str]
                   ) -> dict[str, Collectives]:
    """A collective itself, or those inside of a fusion; parts of one exchange, which share a channel, count once."""
    found: dict[str, Collectives] = {}
    for x, within in [(instruction, computation), *((x, inner) for x in inner.values())]:
        kind = x.operation.removesuffix("-start")
        channel = x.attribute("channel_id")
        if kind not in COLLECTIVES or (inner and channel is not None and channel in seen):
            continue
        seen.add(channel or x.name)
        taken = sum(within[name].bytes for name in x.operands if name in within)
        left = x.bytes - (taken if x.operation == f"{kind}-start" != "all-reduce-start" else 0)
        if inner and kind == "all-reduce" and "all-reduce-scatter" in (instruction.attribute("calls") or ""):
            kind = "reduce-scatter"
        before = found.get(kind, Collectives(count=0, bytes=0))
        found[kind] = Collectives(count=before.count + 1, bytes=before.bytes + max(taken, left))
    return found


def _flops(x: _Instruction, computation: _Computation) -> int:
    """Floating-point operations of a matrix product or convolution: two for each pair of numbers multiplied."""
    if x.operation == "custom-call":  # a Pallas kernel of a TPU, where it says what it costs
        said = re.search(r'"cost_estimate":\s*\{"flops":"?(\d+)', x.rest)
        return int(said[1]) if said else 0
    if x.operation not in ("dot", "convolution") or any(name not in computation for name in x.operands[:2]):
        return 0
    left, right = (computation[name].arrays[0].shape for name in x.operands[:2])
    if x.operation == "dot":
        contracted = math.prod(left[i] for i in x.numbers("lhs_contracting_dims"))
        return 2 * math.prod(x.arrays[0].shape) * contracted
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", x.rest)
    if not labels:
        return 0
    window = dict(re.findall(r"(\w+)=([\w\-]+)", (re.search(r"window=\{([^}]*)\}", x.rest) or ["", ""])[1]))
    inputs, kernel, out = ((dict(zip(names, shape, strict=False))) for names, shape in
                           zip(labels.groups(), (left, right, x.arrays[0].shape), strict=True))
    pairs = out["b"] * out["f"] * kernel["i"]
    for axis in sorted(name for name in kernel if name.isdigit()):
        pairs *= _meetings(inputs[axis], kernel[axis], out[axis], window, int(axis))
    return 2 * pairs


def _meetings(size: int, kernel: int, out: int, window: Mapping[str, str], axis: int) -> int:
    """Pairs of a position of the result and one of the kernel, along one axis, that meet a number and no padding."""

    def of(name: str, default: str) -> str:
        return window[name].split("x")[axis] if name in window else default

    stride, low = int(of("stride", "1")), int(of("pad", "0_0").split("_")[0])
    spread, reach = int(of("lhs_dilate", "1")), int(of("rhs_dilate", "1"))
    last, pairs = (size - 1) * spread, 0
    for first in (k * reach - low for k in range(kernel)):
        skipped = max(0, -(first // stride))  # results before the first number
        places = range(first + skipped * stride, min(first + out * stride, last + 1), stride)
        pairs += len(places) if spread == 1 else sum(place % spread == 0 for place in places)
    return pairs


def _traffic(x: _Instruction, computation: _Computation, inner: _Computation) -> int:
    """Bytes read and written in the device's memory: of an array that is only sliced or updated in part, that part."""
    if x.operation.endswith("-start") and x.operation != "all-reduce-start":
        return sum(array.bytes for array in x.arrays if not array.on_chip)  # its type has operand and result
    body = inner or computation
    parameters = {int(p.inside): p.name for p in inner.values() if p.operation == "parameter"}
    read = 0
    for place, operand in enumerate(computation[name] for name in x.operands if name in computation):
        whole = sum(array.bytes for array in operand.arrays if not array.on_chip)
        uses = _uses(inner, parameters.get(place, "")) if inner else [(x, place)]
        read += min(whole, sum(_read(user, at, whole) for user, at in uses))
    root = next((y for y in inner.values() if y.is_root), x) if inner else x
    makers = [body[name] for name in root.operands] if root.operation == "tuple" else [root]
    written = 0
    for array, maker in zip(x.arrays, makers if len(makers) == len(x.arrays) else [x] * len(x.arrays), strict=True):
        while maker.operation == "bitcast" and maker.operands[0] in body:
            maker = body[maker.operands[0]]
        made = body.get(maker.operands[1]) if maker.operation == "dynamic-update-slice" else None
        written += 0 if array.on_chip else array.bytes if made is None else made.bytes
    return read + written


def _uses(inner: _Computation, name: str) -> list[tuple[_Instruction, int]]:
    """Instructions of a fusion that take an array, and as which operand; what only renames it is looked through."""
    found = []
    for user in inner.values():
        for place, operand in enumerate(user.operands):
            if operand == name:
                found += _uses(inner, user.name) if user.operation == "bitcast" else [(user, place)]
    return found


def _read(user: _Instruction, place: int, whole: int) -> int:
    """Bytes that an instruction reads of an operand of so many."""
    if place == 0 and user.operation in ("dynamic-slice", "slice", "gather"):
        return user.bytes
    return 0 if place == 0 and user.operation == "dynamic-update-slice" else whole
