"""One C99 file and its header: the network, its contract, and a self-test.

The file needs no library but ``memcpy``, ``memset`` and ``memcmp``, and allocates nothing. Equal models and options
give equal bytes.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ..contract import Contract, read_contract
from ..errors import UnsupportedError, UsageError
from ..files import read_file, sha256
from ..formats.read import read_graph
from ..graph import Graph
from ..graph.reference import run_reference
from ..memory.account import MemoryLine
from ..memory.compiled import flash_bytes, plan_compiled
from ..memory.rows import Input, RowPlan
from ..memory.rows.check import check_plan
from ..memory.rows.graph import MOST_ROWS, quantization_of, real_output
from ..memory.tasks import TaskPlan, plan_tasks
from ..memory.verdict import Budget, FlashDemand, Verdict, as_budget
from .convolutions import stack_bytes
from .emitter import api, engines, output_type
from .engine import comment, words
from .isa import Family, families

# Networks with more multiply-accumulates get no self-test: its expected output is computed in numpy.
TESTED_MACS = 3_000_000_000
Output = Literal["int8", "float"]
# The prefix of everything inside the file.
_OWN = "fb"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


@dataclass(frozen=True)
class CSource:
    """Generated C: the text of ``<name>.c`` and ``<name>.h``, and the row plan that it follows.

    The plan is that of the ``tasks`` if several threads are to run it.
    """

    name: str
    code: str
    header: str
    plan: RowPlan
    tasks: TaskPlan | None = None
    output: Output = "int8"

    @property
    def kind(self) -> str:
        """The C type of the output."""
        return output_type(self.output == "float")

    @property
    def arena_bytes(self) -> int:
        """RAM of one inference, without stack."""
        return self.plan.arena_bytes

    @property
    def flash(self) -> FlashDemand:
        """Weights and tables, and an estimate of the code on a microcontroller."""
        return FlashDemand(flash_bytes(self.plan.graph), "weights and code")

    def files(self, stem: str | None = None) -> dict[str, str]:
        """The texts by file name; ``stem`` replaces the name, which then only begins the names in C.

        Raises ``UsageError`` for a stem that cannot stand in an ``#include``.
        """
        stem = stem or self.name
        # Two question marks begin a trigraph in C99.
        if not stem.isprintable() or any(mark in stem for mark in ('"', "\\", "??")):
            raise UsageError(f"the file name {stem!r} cannot stand in an #include; use letters, digits, _ and -")
        include = f'#include "{self.name}.h"\n'
        return {f"{stem}.c": self.code.replace(include, f'#include "{stem}.h"\n', 1), f"{stem}.h": self.header}

    def account(self) -> tuple[MemoryLine, ...]:
        """The memory of the compiled network: RAM and flash."""
        return (
            MemoryLine("arena", self.arena_bytes, "planned"),
            MemoryLine("stack, estimated for a 32-bit microcontroller", stack_bytes(self.plan), "planned"),
            MemoryLine(f"flash ({self.flash.about})", self.flash.nbytes, "planned"),
        )

    def verdict(self, budget: Budget | int) -> Verdict:
        """The verdict on a budget, whose reserve must hold the stack."""
        return Verdict(as_budget(budget), self.arena_bytes, total_bytes=self.arena_bytes, flash=self.flash)


def compile_c(
    model: str | Path | bytes | Graph,
    *,
    input: Input = "rows",
    isa: str = "auto",
    sram_bytes: int | None = None,
    output: Output = "int8",
    name: str | None = None,
    threads: int = 1,
    self_test: bool = True,
) -> CSource:
    """Generate C from an int8 ``.onnx`` or ``.tflite`` file (path or bytes) or graph.

    ``input`` says whether the caller delivers the input by rows, or whole, in the arena. ``isa`` chooses instruction
    sets (``families``). The arena fits ``sram_bytes``, if that is given; the fastest plan that does is taken. A
    ``float`` output has the sums before the last rounding to int8. ``name`` begins all public names, by default the
    model's own. With several ``threads`` the arena suits a library that runs parts of the network at the same time; the
    C itself is that of one thread. Without ``self_test`` the file has no test image with its output, whose computation
    takes as long as all the rest.

    Raises ``UsageError`` for an unknown option or a name that is not a C identifier, ``FormatError`` for a file that
    cannot be read, ``UnsupportedError`` for a network that is not int8 or has an operation without kernel,
    ``BudgetError`` if no plan fits, and ``PlanError`` instead of wrong C if a plan contradicts itself.
    """
    chosen = families(isa)
    data = None if isinstance(model, Graph) else model if isinstance(model, bytes) else read_file(model)
    graph = model if isinstance(model, Graph) else read_graph(model)
    contract = read_contract(data) if data is not None else None
    prefix = _identifier(name, contract.name if contract else graph.name)
    plan = plan_compiled(graph, input=input, sram_bytes=sram_bytes, real_output=output == "float")
    _check_rows(plan)
    check_plan(plan)
    tasks = plan_tasks(plan, threads) if threads > 1 else None
    plan = tasks.plan if tasks else plan
    hash_ = sha256(data) if data is not None else ""
    writer = _Writer(graph, plan, contract, chosen, prefix, output, hash_, self_test)
    return CSource(prefix, writer.code(), writer.header(), plan, tasks, output)


def _check_rows(plan: RowPlan) -> None:
    """Raise ``UnsupportedError`` if rows and padding are more than the state counts."""
    most = max((group.steps for group in plan.groups), default=0)
    if most > MOST_ROWS:
        raise UnsupportedError(
            f"{plan.graph.name} has {most:,} rows with padding; C is generated for at most {MOST_ROWS:,}"
        )


def _identifier(name: str | None, found: str) -> str:
    """The prefix of public names: as given, or made from the model's name."""
    if name is not None:
        if name == _OWN:
            raise UsageError(f"name {name!r} is reserved for the functions inside the file; choose another")
        if not _NAME.fullmatch(name):
            raise UsageError(f"name {name!r} is not a C identifier of at most 64 characters; use letters, digits and _")
        return name
    made = re.sub(r"[^A-Za-z0-9_]", "_", found)[:64]
    return made if _NAME.fullmatch(made) and made != _OWN else f"m_{made}"[:64]


@dataclass(frozen=True)
class _Writer:
    """Writes both files of a plan. ``graph`` is the model's own graph, and ``sha256`` its file's, or empty."""

    graph: Graph
    plan: RowPlan
    contract: Contract | None
    families: Sequence[Family]
    prefix: str
    output: Output
    sha256: str
    has_test: bool

    @property
    def macro(self) -> str:
        return self.prefix.upper()

    @property
    def kind(self) -> str:
        """The C type of the output."""
        return output_type(self.output == "float")

    def code(self) -> str:
        """The text of the C file."""
        parts = [
            f"/* {self.title()}; generated by firebox. Do not edit. */",
            f'#include "{self.prefix}.h"',
            "#include <stdint.h>\n#include <string.h>",
            _configuration(self.families),
            engines(self.plan, self.families),
            *api(self.plan, self.prefix, self.output == "float"),
            *self.static_arena(),
            *self.class_names(),
            *(self.self_test() if self.has_test else ()),
        ]
        return "\n".join(parts) + "\n"

    def title(self) -> str:
        """What the file is, in a comment."""
        macs = self.plan.graph.macs / 1e6
        return f"{comment(self.graph.name)}: {macs:,.1f} M multiply-accumulates, arena {self.plan.arena_bytes} bytes"

    def header(self) -> str:
        """The text of the header."""
        m = self.macro
        lines = [f"/* {self.title()}; generated by firebox. Do not edit. */", f"#ifndef {m}_H\n#define {m}_H"]
        lines += ["#include <stdint.h>", '#ifdef __cplusplus\nextern "C" {\n#endif', *self.sizes(), *self.numbers()]
        lines += [*self.declarations(), "#ifdef __cplusplus\n}\n#endif", "#endif"]
        return "\n".join(lines) + "\n"

    def sizes(self) -> Iterator[str]:
        """Macros of shapes and memory."""
        _, height, width, channels = self.plan.graph.tensors[self.plan.graph.inputs[0]].shape
        _, rows, columns, classes = self.plan.graph.tensors[self.plan.graph.outputs[0]].shape
        yield f"/* The input: rows of pixels, channels last, int8. The output: {self.kind}. */"
        values = {
            "HEIGHT": height,
            "WIDTH": width,
            "CHANNELS": channels,
            "ROWS": height,
            "ROW_BYTES": width * channels,
            "INPUT_BYTES": height * width * channels,
            "OUTPUTS": rows * columns * classes,
            "OUTPUT_BYTES": rows * columns * classes * (4 if self.output == "float" else 1),
            "ARENA_BYTES": self.plan.arena_bytes,
        }
        for name, value in values.items():
            yield f"#define {self.macro}_{name} {value}"

    def numbers(self) -> Iterator[str]:
        """Macros of the quantization and, from the contract, of the preprocessing."""
        m = self.macro
        ends = [("INPUT", self.plan.graph.inputs[0]), ("OUTPUT", self.plan.graph.outputs[0])]
        for kind, name in ends[: 1 if self.output == "float" else 2]:
            found = quantization_of(self.plan.graph, name)
            yield f"/* real {kind.lower()} = {m}_{kind}_SCALE * (integer - {m}_{kind}_ZERO_POINT) */"
            yield f"#define {m}_{kind}_SCALE {float(np.float32(found.scale[0])).hex()}f"
            yield f"#define {m}_{kind}_ZERO_POINT ({found.zero_point})"
        if self.sha256:
            yield f'#define {m}_MODEL_SHA256 "{self.sha256}"'
        contract = self.contract
        if contract is None:
            return
        if contract.checkpoint_sha256:
            yield f"#define {m}_CHECKPOINT_SHA256 {c_string(contract.checkpoint_sha256)}"
        yield f"#define {m}_CLASSES {len(contract.classes)}"
        yield "/* Preprocessing, as in training: resize, crop, (pixel / 255 - mean) / std; as JSON and as numbers. */"
        yield f"#define {m}_PREPROCESSING {c_string(_json(contract))}"
        for kind in ("mean", "std"):
            numbers = ", ".join(f"{float(np.float32(v)).hex()}f" for v in getattr(contract.preprocessing, kind))
            yield f"#define {m}_{kind.upper()} {{{numbers}}}"

    def declarations(self) -> Iterator[str]:
        """The functions, each with its comment."""
        p, m = self.prefix, self.macro
        yield "/* Runs the network. The arena is one of the file's own: only one thread may use these functions. */"
        yield f"void {p}_run(const int8_t *in, {self.kind} *out);"
        if self.plan.input == "whole":
            yield f"/* Where the input of {p}_invoke belongs, {m}_INPUT_BYTES; running overwrites it. */"
            yield f"int8_t *{p}_input(void);\nvoid {p}_invoke({self.kind} *out);"
        else:
            yield f"/* For cameras that deliver rows: begin, {m}_ROWS times row with {m}_ROW_BYTES bytes, end. */"
            yield f"void {p}_begin(void);\nvoid {p}_row(const int8_t *row);\nvoid {p}_end({self.kind} *out);"
        yield f"/* The same in an arena of the caller's: {m}_ARENA_BYTES bytes, aligned to 16. */"
        yield f"void {p}_run_in(void *arena, const int8_t *in, {self.kind} *out);"
        if self.plan.input == "whole":
            yield f"int8_t *{p}_input_in(void *arena);\nvoid {p}_invoke_in(void *arena, {self.kind} *out);"
        else:
            yield f"void {p}_begin_in(void *arena);\nvoid {p}_row_in(void *arena, const int8_t *row);"
            yield f"void {p}_end_in(void *arena, {self.kind} *out);"
        yield f"/* Name of the instruction set that runs on this processor. */\nconst char *{p}_isa(void);"
        if self.contract is not None:
            yield "/* Names of the classes, unless the file is compiled with FIREBOX_NO_CLASSES. */"
            yield f"extern const char *const {p}_classes[{m}_CLASSES];"
        yield "/* With FIREBOX_TEST: 0 if a test image gives the expected integers. */"
        yield f"int {p}_self_test(void);"

    def static_arena(self) -> Iterator[str]:
        """The functions on an arena of the file's own."""
        p = self.prefix
        yield "#ifndef FIREBOX_NO_ARENA"
        yield f"static fb_t fb_arena[{self.plan.arena_bytes}] __attribute__((aligned(16)));"
        yield f"void {p}_run(const int8_t *in, {self.kind} *out) {{ {p}_run_in(fb_arena, in, out); }}"
        if self.plan.input == "whole":
            yield f"int8_t *{p}_input(void) {{ return {p}_input_in(fb_arena); }}"
            yield f"void {p}_invoke({self.kind} *out) {{ {p}_invoke_in(fb_arena, out); }}"
        else:
            yield f"void {p}_begin(void) {{ {p}_begin_in(fb_arena); }}"
            yield f"void {p}_row(const int8_t *row) {{ {p}_row_in(fb_arena, row); }}"
            yield f"void {p}_end({self.kind} *out) {{ {p}_end_in(fb_arena, out); }}"
        yield "#endif"

    def class_names(self) -> Iterator[str]:
        """The class names as C strings."""
        if self.contract is None:
            return
        names = ",\n".join(f"  {c_string(name)}" for name in self.contract.classes)
        yield f"#ifndef FIREBOX_NO_CLASSES\nconst char *const {self.prefix}_classes[] = {{\n{names}}};\n#endif"

    def self_test(self) -> Iterator[str]:
        """A test image with its expected output, under a macro."""
        if self.graph.macs > TESTED_MACS:
            yield "#ifdef FIREBOX_TEST\n#error no self-test: the network has too many multiply-accumulates\n#endif"
            return
        x = self.test_input()
        inputs, expected = _as_int8(x), expected_output(self.graph, self.plan, x, self.output)
        p, m = self.prefix, self.macro
        yield "#if defined(FIREBOX_TEST) && !defined(FIREBOX_NO_ARENA)"
        yield words("fb_test_input", inputs)
        yield words("fb_test_output", expected)
        yield f"int {p}_self_test(void) {{"
        yield f"  static {self.kind} out[{m}_OUTPUTS];"
        yield f"  {p}_run((const int8_t *)fb_test_input, out);"
        yield f"  return memcmp(out, fb_test_output, {m}_OUTPUT_BYTES) != 0;\n}}\n#endif"

    def test_input(self) -> np.ndarray:
        """The golden image of the contract in the integers of the input, or random integers."""
        tensor = self.graph.tensors[self.graph.inputs[0]]
        if self.contract is not None and self.contract.golden is not None:
            reals = self.contract.preprocessing.normalize(self.contract.golden.pixels)[None]
            found = self.graph.input_values(reals)
            if found.shape == tensor.shape and found.dtype == tensor.dtype:
                return found
        limits = np.iinfo(tensor.dtype)
        return (
            np.random.default_rng(0).integers(limits.min, limits.max, tensor.shape, endpoint=True).astype(tensor.dtype)
        )


def expected_output(graph: Graph, plan: RowPlan, x: np.ndarray, output: Output) -> np.ndarray:
    """The output of the compiled network for an input in the graph's own type, by the reference in numpy."""
    values = run_reference(graph, x)
    if output == "int8":
        return _as_int8(values[graph.outputs[0]])
    return real_output(plan.graph, {name: _as_int8(value) for name, value in values.items()})


def _configuration(chosen: Sequence[Family]) -> str:
    """Types and macros that everything else uses; how activations are stored depends on the processor."""
    lines = []
    for number, family in enumerate(chosen):
        lines.append(f"#{'elif' if number else 'if'} {family.condition}")
        lines.append(f"#define FB_SHIFT {0 if family.signed else 128}")
    lines.append(f"#else\n#error this file was generated for {' and '.join(family.name for family in chosen)}\n#endif")
    return "\n".join(lines) + _PRELUDE


# A fused multiply-add rounds once where the reference rounds twice.
_PRELUDE = """
#if defined(__FAST_MATH__)
#error compile without -ffast-math, which changes the integers
#endif
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif
#if FB_SHIFT
typedef uint8_t fb_t; /* an activation, stored as the int8 value plus FB_SHIFT */
#else
typedef int8_t fb_t;
#endif
#define FB_INLINE static inline __attribute__((always_inline, unused))
#define FB_NOINLINE __attribute__((noinline, unused))
#define FB_TABLE(kind, name, count) static const kind name[count] __attribute__((aligned(64)))
#ifndef FB_TIMER /* measures the time of one operation, up to the end of the block */
#define FB_TIMER(operation)
#endif
FB_INLINE int32_t fb_load4(const void *p) {
  int32_t value;
  memcpy(&value, p, 4);
  return value;
}"""


def c_string(text: str) -> str:
    """A C string literal of one line: whatever is not plain ASCII becomes octal."""
    plain = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 _-.,;:()[]{}+=<>|&%$#@!~^'*")
    return '"' + "".join(chr(b) if chr(b) in plain else f"\\{b:03o}" for b in text.encode("utf-8", "replace")) + '"'


def _json(contract: Contract) -> str:
    import json

    return json.dumps(contract.preprocessing.to_json(), sort_keys=True, separators=(",", ":"))


def _as_int8(values: np.ndarray) -> np.ndarray:
    return (values.astype(np.int16) - 128).astype(np.int8) if values.dtype == np.uint8 else values
