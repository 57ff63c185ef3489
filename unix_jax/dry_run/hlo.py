"""Work of one device in a compiled program, counted from the program's text.

XLA's own cost analysis counts the body of a loop once, however often it runs, and the layers here
are a loop. Therefore the computations are traversed from the entry, and the work of a loop's body
is multiplied by its number of iterations. Of the branches of a conditional, the longest counts.

The compiler writes what its cost model expects beside each instruction of the schedule, in cycles
(`estimated_cycles`). Their sum is XLA's own estimate of the step. Kernels and collectives have
none.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

from unix_jax.dry_run.hlo_text import Computation, Instruction, Shape, parse

COLLECTIVES = (
    "all-gather",
    "reduce-scatter",
    "all-reduce",
    "all-to-all",
    "collective-permute",
)
# What the runtime of several slices does with the data that a program sends to the host.
_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')

# Nothing moves in memory for these, or what they call moves it.
_FREE = frozenset(
    {
        "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
        "call", "after-all", "iota", "partition-id", "replica-id", "opt-barrier", "async-start",
        "async-update", "async-done",
    }
)  # fmt: skip


@dataclasses.dataclass
class Work:
    """Of one device in one run of the program.

    flops: of matrix products, convolutions and kernels, including recomputation.
    hbm_bytes: read from and written to the device's memory.
    collectives: kind -> (count, bytes that the device sends around a ring).
    between_slices: the same of the part that leaves a slice, through the network of the hosts.
    cycles: what XLA's cost model expects for the instructions that it estimates; 0 if it estimates
    none, as for a CPU.
    kernel_flops: the part of `flops` that is in kernels, which have no cycles.
    waiting_bytes: sent by collectives that nothing runs beside, which have no cycles either.
    silent: kernel -> number of runs, of kernels that state no cost and are not known here.
    """

    flops: float = 0.0
    hbm_bytes: float = 0.0
    collectives: dict[str, tuple[int, float]] = dataclasses.field(default_factory=dict)
    between_slices: dict[str, tuple[int, float]] = dataclasses.field(default_factory=dict)
    cycles: float = 0.0
    kernel_flops: float = 0.0
    waiting_bytes: float = 0.0
    silent: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def sent_bytes(self) -> float:
        """Within a slice."""
        return sum(sent for _, sent in self.collectives.values())

    @property
    def slice_bytes(self) -> float:
        """To other slices."""
        return sum(sent for _, sent in self.between_slices.values())


def analyse(text: str, devices: int, slices: int = 1) -> Work:
    """The work of a compiled program.

    Args:
      text: of an optimised module, from `compiled.as_text()`.
      devices: that run it together.
      slices: that the devices belong to.

    Raises:
      HloError: the text is not of the known form.
    """
    walk = None
    try:
        computations, entry = parse(text)
        walk = _Walk(computations, devices, slices)
        walk.visit(entry, 1, fused=False, beside=False)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, StopIteration,
            TypeError, ValueError) as error:  # fmt: skip
        at = "" if walk is None or walk.current is None else f", in {walk.current[:120]!r}"
        raise HloError(f"{type(error).__name__}: {error}{at}") from error
    work = walk.work
    for kind, between, times, sent in walk.collectives.values():
        totals = work.between_slices if between else work.collectives
        count, total = totals.get(kind, (0, 0.0))
        totals[kind] = (count + times, total + sent * times)
    return work


class HloError(Exception):
    """The text of a program that this module cannot read: XLA changes its form without notice."""


# ---------------------------------------------------------------------------------------- walk


class _Walk:
    """Sums the work of computations, each multiplied by its number of runs."""

    def __init__(self, computations: dict[str, Computation], devices: int, slices: int) -> None:
        self.computations, self.devices, self.slices = computations, devices, slices
        self.work = Work()
        # By channel: a TPU's program names one collective in every fusion that it runs beside.
        # (kind, whether it is between slices, number of runs, bytes sent in each)
        self.collectives: dict[str, tuple[str, bool, int, float]] = {}
        self.current: str | None = None

    def visit(self, name: str, times: int, *, fused: bool, beside: bool) -> None:
        """Args: fused, beside: within a fusion, and within what runs beside other instructions."""
        computation = self.computations[name]
        for instruction in computation.values():
            opcode = instruction.opcode
            self.current = f"{instruction.name} = {opcode}{instruction.attributes}"
            if opcode in ("dot", "convolution"):
                self.work.flops += times * _product_flops(instruction, computation)
            elif opcode == "custom-call":
                self._add_kernel(instruction, computation, times)
            elif (kind := opcode.removesuffix("-start")) in COLLECTIVES:
                channel = re.search(r"channel_id=(\d+)", instruction.attributes)
                # `ppermute` gives all its collectives one channel; each start is one.
                if channel is None or kind != opcode:
                    key = f"{name}/{instruction.name}"
                else:
                    key = channel.group(1)
                size = _operand_bytes(instruction, computation)
                sent = size * _ring(kind, _group_size(instruction.attributes, self.devices))
                self._count(key, kind, False, times, sent)
                if kind == opcode and not fused and not beside:
                    self.work.waiting_bytes += times * sent
            elif opcode == "send" and (found := _TRANSFER.search(instruction.attributes)):
                kind = found.group(1).lower().replace("_", "-")
                size = _operand_bytes(instruction, computation)
                sent = size * _ring(kind, self.slices)
                self._count(f"{name}/{instruction.name}", kind, True, times, sent)
            if not fused:
                self.work.hbm_bytes += times * self._moved(instruction, computation)
                self.work.cycles += times * _cycles(instruction)
            for called, runs, inside in self._calls(instruction, computation):
                aside = beside or opcode == "async-start"
                self.visit(called, times * runs, fused=fused or inside, beside=aside)

    def _add_kernel(self, kernel: Instruction, computation: Computation, times: int) -> None:
        done = _kernel_flops(kernel, computation)
        if done is None:
            name = re.sub(r"[.\d]+$", "", kernel.name)
            self.work.silent[name] = self.work.silent.get(name, 0) + times
            return
        self.work.flops += times * done
        self.work.kernel_flops += times * done

    def _count(self, key: str, kind: str, between: bool, times: int, sent: float) -> None:
        before = self.collectives.get(key)
        runs = times if before is None else max(times, before[2])
        self.collectives[key] = (kind, between, runs, sent)

    def _calls(
        self, instruction: Instruction, computation: Computation
    ) -> Iterator[tuple[str, int, bool]]:
        """(computation, number of runs, whether it is fused) of each called computation."""
        opcode = instruction.opcode
        if opcode == "while":
            body = instruction.called("body")
            assert body is not None
            yield body, self._iterations(instruction, computation), False
        elif opcode == "conditional":
            listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
            names = re.findall(r"%([\w.\-]+)", listed.group(1)) if listed else []
            for attribute in ("true_computation", "false_computation"):
                names += [n for n in [instruction.called(attribute)] if n is not None]
            if names:
                yield max(names, key=self._length), 1, False
        elif opcode in ("fusion", "call", "async-start"):
            called = instruction.called("calls") or instruction.called("to_apply")
            if called is not None:
                yield called, 1, opcode == "fusion"

    def _length(self, name: str) -> tuple[float, float, float]:
        """Of one run of a computation, to compare it with others."""
        walk = _Walk(self.computations, self.devices, self.slices)
        walk.visit(name, 1, fused=False, beside=False)
        return walk.work.cycles, walk.work.flops, walk.work.hbm_bytes

    def _iterations(self, loop: Instruction, computation: Computation) -> int:
        """Iterations of a loop that counts up to a constant; 1 if unknown."""
        known = re.search(r'known_trip_count\\*":\{\\*"n\\*":\\*"(\d+)', loop.attributes)
        if known:
            return int(known.group(1))
        condition = self.computations[loop.called("condition") or ""]
        body = self.computations[loop.called("body") or ""]
        root = next(i for i in condition.values() if i.is_root)
        compare = next((i for i in condition.values() if i.opcode == "compare"), root)
        found = [_linear(name, condition) for name in root.operands]
        bounds = [offset for index, offset in found if index is None and offset is not None]
        counters = [index for index, _ in found if index is not None]
        if not bounds or not counters:
            return 1
        step_name = next(i for i in body.values() if i.is_root).operands[counters[0]]
        index, step = _linear(step_name, body)
        initial = computation.get(loop.operands[0])
        start = 0
        if initial is not None and initial.opcode == "tuple":
            start = _linear(initial.operands[counters[0]], computation)[1] or 0
        if index != counters[0] or not step:
            step = 1
        inclusive = "direction=LE" in compare.attributes or "direction=GE" in compare.attributes
        return max(-(-(bounds[0] - start + inclusive) // step), 1)

    def _moved(self, instruction: Instruction, computation: Computation) -> float:
        """Bytes of HBM that an instruction reads and writes."""
        opcode = instruction.opcode
        if opcode in _FREE or opcode.endswith("-done"):
            return 0
        operands = [computation[name] for name in instruction.operands if name in computation]
        if opcode == "custom-call":
            if _SPLASH.match(instruction.name):
                return _hbm(instruction.shapes) + sum(_hbm(o.shapes) for o in operands)
            return _estimate(instruction, "bytes_accessed") or 0
        if opcode in ("dynamic-slice", "slice", "gather"):
            return 2 * _hbm(instruction.shapes)
        if opcode == "send":
            return sum(_hbm(o.shapes) for o in operands)
        if opcode == "slice-start":
            return min(_hbm(operands[0].shapes), max(s.bytes for s in instruction.shapes[1:]))
        if opcode == "dynamic-update-slice":
            return 2 * _hbm(operands[1].shapes)
        if opcode.endswith("-start"):
            # (source, destination, ...) or the reverse: what is moved is named on both sides.
            return sum(_hbm(o.shapes) for o in operands) + (
                0 if len(instruction.shapes) < 2 else _destination(instruction, operands)
            )
        if opcode == "fusion":
            fused = self.computations[instruction.called("calls") or ""]
            return _fusion_bytes(fused, operands, instruction)
        return _hbm(instruction.shapes) + sum(_hbm(o.shapes) for o in operands)


def _hbm(shapes: tuple[Shape, ...]) -> int:
    return sum(shape.bytes for shape in shapes if shape.in_hbm)


def _destination(instruction: Instruction, operands: list[Instruction]) -> int:
    sources = [shape for operand in operands for shape in operand.shapes]
    others = list(instruction.shapes)
    for source in sources:
        if source in others:
            others.remove(source)
    return _hbm(tuple(others))


def _fusion_bytes(
    fused: Computation, operands: list[Instruction], instruction: Instruction
) -> float:
    """Inputs and outputs of a fusion; only the used part of arrays that it slices or updates.

    A TPU's program passes the buffers of a collective through every fusion that runs at the same
    time, as additional inputs and outputs: they do not count.
    """
    root = next(i for i in fused.values() if i.is_root)
    passing = ("parameter", "tuple", *COLLECTIVES) if root.opcode == "tuple" else ()
    users: dict[str, list[Instruction]] = {}
    for inner in fused.values():
        for name in inner.operands:
            users.setdefault(name, []).append(inner)
    total = 0
    for inner in fused.values():
        if inner.opcode != "parameter":
            continue
        if passing and all(user.opcode in passing for user in users.get(inner.name, [])):
            continue
        operand = operands[int(inner.arguments)] if int(inner.arguments) < len(operands) else inner
        total += min(_hbm(operand.shapes), _read(inner, users, fused))
    outputs = [fused[n] for n in root.operands] if root.opcode == "tuple" else [root]
    for output, shape in zip(outputs, instruction.shapes, strict=False):
        if output.opcode in passing:
            continue
        written = shape.bytes
        while output.opcode in ("bitcast", "copy") and output.operands[0] in fused:
            output = fused[output.operands[0]]
        if output.opcode == "dynamic-update-slice":
            written = sum(s.bytes for s in fused[output.operands[1]].shapes)
        total += written if shape.in_hbm else 0
    return total


def _read(parameter: Instruction, users: dict[str, list[Instruction]], fused: Computation) -> int:
    """Bytes of a fusion's parameter that are used."""
    total = 0
    for user in users.get(parameter.name, []):
        if user.opcode in ("dynamic-slice", "slice", "gather"):
            total += sum(s.bytes for s in user.shapes)
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == parameter.name:
            total += sum(s.bytes for s in fused[user.operands[1]].shapes)
        elif user.opcode == "bitcast":
            total += _read(user, users, fused)
        else:
            return sum(s.bytes for s in parameter.shapes)
    return total


def _linear(name: str, computation: Computation) -> tuple[int | None, int | None]:
    """(index, offset) of a value that is element `index` of the parameter plus `offset`.

    A constant has no index; what is neither has no offset.
    """
    instruction = computation.get(name)
    if instruction is None:
        return None, None
    opcode = instruction.opcode
    if opcode == "constant":
        value = re.fullmatch(r"-?\d+", instruction.arguments)
        return None, int(value.group()) if value else None
    if opcode == "get-tuple-element":
        source = computation.get(instruction.operands[0])
        index = re.search(r"index=(\d+)", instruction.attributes)
        if index and source is not None and source.opcode == "parameter":
            return int(index.group(1)), 0
    if opcode in ("copy", "bitcast", "convert", "copy-start", "copy-done"):
        return _linear(instruction.operands[0], computation)
    if opcode == "add":
        (left, a), (right, b) = (_linear(n, computation) for n in instruction.operands)
        if a is not None and b is not None and (left is None or right is None):
            return left if right is None else right, a + b
    return None, None


# ----------------------------------------------------------------------------------- arithmetic


# JAX's splash attention states no cost. Matrix products of each of its kernels: forward, for the
# gradients of keys and values (and with one more, of queries: the only output with an axis more),
# and for those of queries alone.
_SPLASH = re.compile(r"splash_m[hq]a_(fwd|dkv|dq)")
_SPLASH_PRODUCTS = {"fwd": 2, "dkv": 4, "dq": 3}
_FLOATS = ("bf16", "f16", "f32")


def _kernel_flops(kernel: Instruction, computation: Computation) -> float | None:
    """FLOPs of a custom call: 0 if it is no kernel, None if it is one that says nothing."""
    stated = _estimate(kernel, "flops")
    if stated is not None or 'custom_call_target="tpu_custom_call"' not in kernel.attributes:
        return stated or 0.0
    splash = _SPLASH.match(kernel.name)
    if splash is None:
        return None
    # Queries [B, N, T, H], then keys [B, K, S, H], padded to blocks; without B if there is one row.
    # All blocks count: those that a mask leaves out are few in rows in slots.
    arrays = [computation[name].shapes[0] for name in kernel.operands if name in computation]
    query, key = [x.sizes for x in arrays if x.kind in _FLOATS and len(x.sizes) >= 3][:2]
    fused = splash[1] == "dkv" and any(len(x.sizes) > len(query) for x in kernel.shapes)
    products = _SPLASH_PRODUCTS[splash[1]] + fused
    return 2.0 * products * math.prod(query) * key[-2]


def _estimate(kernel: Instruction, name: str) -> float | None:
    """A kernel's own estimate (Pallas: `cost_estimate`), if it has one."""
    found = re.search(rf'"cost_estimate":\{{[^}}]*"{name}":"(\d+)"', kernel.attributes)
    return float(found.group(1)) if found else None


def _cycles(instruction: Instruction) -> float:
    """What XLA's cost model expects of a scheduled instruction; 0 if it says nothing."""
    found = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
    return float(found.group(1)) if found else 0.0


def _product_flops(instruction: Instruction, computation: Computation) -> float:
    left, right = (computation[name].shapes[0].sizes for name in instruction.operands[:2])
    out = instruction.shapes[0].sizes
    if instruction.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        axes = [int(a) for a in contracted.group(1).split(",") if a] if contracted else []
        return 2.0 * math.prod(out) * math.prod(left[a] for a in axes)
    return _convolution_flops(left, right, out, instruction.attributes)


def _convolution_flops(
    left: tuple[int, ...], right: tuple[int, ...], out: tuple[int, ...], attributes: str
) -> float:
    """Products of a convolution, excluding those with padding and the gaps of dilation.

    A TPU's program writes batched matrix products as convolutions that are mostly gaps.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    assert labels is not None
    of_left, of_right, of_out = labels.groups()
    window = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(part.split("=") for part in window.group(1).split()) if window else {}
    spatial = sorted(c for c in of_out if c.isdigit())

    def numbers(name: str, default: str) -> list[str]:
        return fields[name].split("x") if name in fields else [default] * len(spatial)

    stride, gaps = numbers("stride", "1"), numbers("lhs_dilate", "1")
    pads, spread = numbers("pad", "0_0"), numbers("rhs_dilate", "1")
    places = 1.0
    for i, label in enumerate(spatial):
        size = left[of_left.index(label)]
        # An output and a kernel place meet an input, a gap, or padding.
        at = np.arange(out[of_out.index(label)])[:, None] * int(stride[i])
        at = at + np.arange(right[of_right.index(label)])[None] * int(spread[i])
        at = at - int(pads[i].split("_")[0])
        inside = (at >= 0) & (at <= (size - 1) * int(gaps[i])) & (at % int(gaps[i]) == 0)
        places *= int(inside.sum())
    features = right[of_right.index("i")]
    groups = re.search(r"batch_group_count=(\d+)", attributes)
    batch = left[of_left.index("b")] // (int(groups.group(1)) if groups else 1)
    return 2.0 * places * batch * features * out[of_out.index("f")]


def _operand_bytes(instruction: Instruction, computation: Computation) -> int:
    return sum(
        shape.bytes
        for name in instruction.operands
        if name in computation
        for shape in computation[name].shapes
    )


def _ring(kind: str, group: int) -> float:
    """Bytes that a member of a group sends around its ring, per byte of its operands."""
    others = (group - 1) / group
    return {
        "all-gather": group - 1,
        "reduce-scatter": others,
        "all-reduce": 2 * others,
        "all-to-all": others,
    }.get(kind, 1)


def _group_size(attributes: str, devices: int) -> int:
    """Devices of one replica group, in any of the three ways to write groups."""
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes)
    if iota:
        return int(iota.group(1))
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes)
    if mesh:
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh.group(1))}
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh.group(2))
        return math.prod(int(part) if part else sizes[name] for name, part in axes)
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    return len(listed.group(1).split(",")) if listed else devices
