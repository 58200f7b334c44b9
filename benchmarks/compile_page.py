"""The page docs/compile.md: its text, and tables of the figures in ``results/compile.json``."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import web
from common import table

KEPT = Path(__file__).resolve().parent / "results" / "compile.json"
PARTS = ("memory", "identity", "zoo", "accuracy", "times", "devices", "speed", "threads")
Kept = dict[str, dict[str, Any]]
Row = Mapping[str, Any]

_WEB_EXAMPLE = """```js
import { Network } from "./NAME.js";

const network = await Network.load();
network.classify(imageData); // [{ label, index, score }, ...]
await network.selfTest(); // true: the expected bits on this engine
```"""

_EXAMPLE = """\
```sh
firebox compile model.int8.tflite --name net -o model.c     # writes model.c and model.h
```

```c
#include "model.h"

static int8_t row[NET_ROW_BYTES], logits[NET_OUTPUTS];

int classify(void) {
  int best = 0;
  net_begin();
  for (int y = 0; y < NET_ROWS; y++) { camera_row(row, y); net_row(row); }
  net_end(logits);
  for (int i = 1; i < NET_OUTPUTS; i++) if (logits[i] > logits[best]) best = i;
  return best;   /* net_classes[best] is its name */
}
```"""

_CALLS = (
    ("`net_run(in, out)`", "both", "one inference of an image in the caller's memory"),
    ("`net_begin()`, `net_row(row)`, `net_end(out)`", "`--input rows`", "an image that arrives row by row"),
    ("`net_input()`, `net_invoke(out)`", "`--input whole`", "the address in the arena where the image belongs; one "
     "inference, which overwrites it"),
    ("the same names with `_in`", "both", "the same in an arena that the caller passes: one arena for each thread"),
    ("`net_isa()`", "both", "the name of the instruction set that was chosen"),
    ("`net_self_test()`", "both", "with `-DFIREBOX_TEST`: 0 if a test image gives the expected integers"),
)  # fmt: skip

_FIGURE = """\
```
input, 3 rows          conv1 + pool1                    squeeze, 3 rows        expand + concat, a strip
┌──────────────┐       ┌───────────┐  maxima            ┌──────────────┐       ┌────────┐
│ row 4        │       │ conv1:    │  so far            │ row 0        │ 1x1   │ expand │
│ row 5        │ ────► │ one strip │ ──────► one row ─► │ row 1        │ ────► │ 1x1 3x3│ ─► next squeeze ─► ...
│ row 6 ◄ new  │ 3x3   │ of a row  │   max              │ row 2 ◄ new  │ 3x3   │        │
└──────────────┘       └───────────┘                    └──────────────┘       └────────┘
row 7 overwrites row 4                                  row 3 overwrites row 0             ... ─► sums of each class
```"""

_MEMORY = (
    ("ring", "the last rows of a tensor: as many as the windows of its readers need, row *r* in slot *r* modulo the "
     "number of slots"),
    ("strip", "some columns of one row, which all readers take before the next columns are computed: the outputs of "
     "a Fire module's expand layers, and their concatenation, never exist as whole rows if the budget is small"),
    ("running maxima", "one row of a max pool, updated by each row of its input"),
    ("sums", "one number for each channel, for the global average at the end"),
    ("whole input", "only with `--input whole`: its rows die one by one, and other tensors take their place"),
)  # fmt: skip

_OPTIONS = (
    ("`--input`", "`rows`, `whole`", "how the image arrives; `rows` needs less RAM, `whole` allows DMA into the arena"),
    ("`--isa`", "`auto`, `x86`, `arm64`, `wasm`, `cortex-m`, `plain`, or one instruction set", "which processors the "
     "file is for; a file for one kind is smaller and compiles faster"),
    ("`--output`", "`int8`, `float`", "`float` has the real numbers before the last rounding, so that no two classes "
     "are tied"),
    ("`--sram`, `--reserve`, `--flash`, `--device`", "sizes, or a device", "the budget: the fastest plan that fits is "
     "taken, with exit code 3 if none does; the reserve must hold the stack"),
    ("`--name`", "a C identifier", "the prefix of all public names"),
)  # fmt: skip

_SETS = (
    ("`amx`", "x86-64 with AMX (int8 matrix registers)"),
    ("`avx512vnni`", "x86-64 with AVX-512 VNNI"),
    ("`avxvnni`", "x86-64 with AVX-VNNI, 256 bits"),
    ("`avx2`", "x86-64 with AVX2, without VNNI"),
    ("`neondot`", "arm64 with the dot product (Cortex-A55, A76 and later)"),
    ("`neon`", "every arm64 (Cortex-A53, A72)"),
    ("`wasmsimd`", "WebAssembly with SIMD128"),
    ("`plain`", "C99 for everything else; it uses the DSP instructions of Cortex-M4, M7, M33 and M55"),
)

_REFUSED = (
    ("float32, float16, dynamic and 16-bit files", "only 8-bit activations have kernels: export with "
     "`--precision int8`"),
    ("several inputs or outputs, or a batch", "the functions take one image and give one output"),
    ("tensors of more than four axes", "rows and columns are images"),
    ("a budget that no plan fits", "exit code 3; the message names the smallest arena and its largest buffers"),
)  # fmt: skip


def read_kept(path: Path = KEPT) -> Kept:
    """The figures of each part that was measured: ``measured`` says by what, ``rows`` are the figures."""
    return json.loads(path.read_text()) if path.is_file() else {}


def page(kept: Kept) -> list[str]:
    """The whole page: explanations, then the parts that have figures."""
    parts = list(_explained())
    measured = ""
    for name, write in _SECTIONS.items():
        if kept.get(name, {}).get("rows"):
            title, *rest = write(kept[name]["rows"])
            # The surroundings of a table are those of the table before it, unless the page says otherwise.
            said = [] if kept[name]["measured"] == measured else [kept[name]["measured"]]
            measured = kept[name]["measured"]
            parts += [title, *said, *rest]
    return [*parts, *_last()]


def _explained() -> Iterator[str]:
    yield "# Compiled C"
    yield "This page is generated by\n\n```sh\npython benchmarks/compile.py\n```"
    yield (
        "Parts are measured again with `--only`, for example `--only speed` on a quiet machine; the figures are kept "
        "in `benchmarks/results/compile.json`."
    )
    yield (
        "`firebox compile MODEL` turns an int8 `.onnx` or `.tflite` file into one C file and its header. The file "
        "*is* the network: its weights, its kernels, and the order in which they run. It needs a C compiler and no "
        "library, allocates nothing, and keeps all data in one arena whose size is known before it is compiled. "
        "Copy both files into a firmware, an application or a WebAssembly module."
    )
    yield "## An example"
    yield _EXAMPLE
    yield (
        "`camera_row` is yours: it delivers one row of pixels, channels last, as int8. The header has all that this "
        "needs as macros: the size of a row, the scales and zero points, the mean and standard deviation of the "
        "preprocessing, and the hash of the model."
    )
    yield table(("function", "input", "what it does"), _CALLS, names=3)
    yield "## Rows or the whole image"
    yield (
        "With `--input rows` (the default) the network computes whatever each new row makes possible, so the image "
        "never exists in memory. Only the few input rows that the first convolution still needs are kept. With "
        "`--input whole` the image lies in the arena, at `net_input()`. It needs more RAM, but a camera can write "
        "there by itself. Both give the same integers, and neither computes anything twice: 0 % extra "
        "multiply-accumulates."
    )
    yield "## How memory is planned"
    yield (
        "Runtimes compute one layer after the other, and keep the whole input and output of a layer. In SqueezeNet "
        "1.1 at 224x224 pixels that is about one MiB. Compiled C computes all layers at once, row by row: as soon as "
        "three rows of a tensor exist, the next 3x3 convolution computes one row, and the oldest of the three is "
        "overwritten."
    )
    yield _FIGURE
    yield table(("buffer", "what it holds"), _MEMORY, names=2)
    yield (
        "The order of all steps depends on the shapes alone, not on the image. The planner simulates it once, learns "
        "from which step to which step every row of every buffer lives, and packs them into the arena so that bytes "
        "are shared by rows that never live at the same time. On random networks the tests repeat the schedule with an "
        "owner for every byte, so that no row is read that was not written or is already overwritten. "
        "Smaller strips make the arena smaller and the code a little slower: without a budget, strips are whole rows, "
        "and with one, the widest strips that fit are taken."
    )
    yield "## Options"
    yield table(("option", "values", "effect"), _OPTIONS, names=3)
    yield "## Guarantees"
    yield (
        "The C gives the integers of the reference, of LiteRT (XNNPACK) and of onnxruntime (as firebox's sessions "
        "run it), on every instruction set, with every compiler and at every optimization level: sums of products "
        "are exact integers, and each is multiplied by one float32 number and rounded half to even. What holds for "
        "each operation, and why, is in the [table of guarantees](processors.md#guarantees-by-operation); compiled C "
        "is one more column of it that equals the reference, softmax included. The file forbids fused multiplications "
        "and additions by itself, and refuses to be compiled with `-ffast-math`."
    )
    yield "## Instruction sets"
    yield (
        "A file for `auto` or `x86` has several and chooses at the first call, so it needs no `-march` option. "
        "The tables below say which of them ran on a machine and which under an emulator."
    )
    yield table(("instruction set", "processors"), _SETS, names=2)
    yield "## What is refused"
    yield table(("model", "reason"), _REFUSED, names=2)
    yield (
        "Every other operation that firebox exports can be compiled: convolutions with groups, strides and dilation, "
        "depthwise ones, fully connected layers, pools, sums, concatenations along any axis, padding, slices, "
        "reshapes, transposes, activations and softmax."
    )


def _memory(rows: Sequence[Row]) -> Iterator[str]:
    yield "## Memory"
    yield (
        "All RAM of a linked program, in bytes: the arena, the output, one row of input if it arrives by rows, all "
        "other data, and the stack, whose depth is read from paint. The program runs on an emulated Cortex-M7 whose "
        "linker script gives it no more RAM than the column *ran in* says, and 2 real images give the reference's "
        "integers. It also holds the expected output for the comparison. *tflite-micro* is the smallest arena that "
        "`firebox fit` finds, with the extra multiply-accumulates that it takes, and in brackets that of the file as "
        "exported; its stack and data are not included. Compiled C takes no extra multiply-accumulates. Networks "
        "whose weights are *random* exist without published weights; memory does not depend on weights. mobilenet_v2, "
        "resnet8 (of MLPerf Tiny) and densenet22 are no SqueezeNets."
    )
    cells = []
    for row in rows:
        least, extra = row.get("tflm_least_bytes"), row.get("tflm_extra_macs")
        best = f"{least:,} at {extra:+.1%} ({row['tflm_bytes']:,})" if least and row["tflm_bytes"] else "not run"
        for way, title in (("rows", "by rows"), ("whole", "whole")):
            found = row[way]
            ran = found.get("ran_in_bytes")
            cells.append(
                (
                    row["network"],
                    row["weights"],
                    title,
                    f"{found['arena_bytes']:,}",
                    f"{found['stack_bytes']:,}" if "stack_bytes" in found else "",
                    f"{found['total_bytes']:,}" if "total_bytes" in found else "",
                    f"{ran:,}" if ran else "not run",
                    f"{found.get('equal', 0)} of {found.get('images', 0)}",
                    f"{found['flash_bytes']:,}" if "flash_bytes" in found else "",
                    best,
                )
            )
    columns = (
        "network", "weights", "input", "arena", "stack", "all RAM", "ran in", "identical images", "code and weights",
        "tflite-micro's arena",
    )  # fmt: skip
    yield table(columns, cells, names=3)


def _identity(rows: Sequence[Row]) -> Iterator[str]:
    yield "## Identity"
    yield (
        "The share of logits that are identical to those of the reference, of LiteRT with XNNPACK, and of onnxruntime "
        "in firebox's sessions, on real images. The input arrives by rows and whole, except on the boards and with "
        "plain C (by rows); the lower share is shown. *Runs* is the instruction set that the program reports. ASan and "
        "UBSan are gcc's and clang's sanitizers, which stop a program at the first invalid access or undefined "
        "operation."
    )
    cells = []
    for row in rows:
        shares = [
            min(value for key, value in row.items() if key.startswith(f"{name}_"))
            for name in ("reference", "litert", "onnxruntime")
        ]
        cells.append((row["network"], row["way"], row["runs"], str(row["images"]), *map(_share, shares)))
    columns = ("network", "instruction set and compiler", "runs", "images", "reference", "LiteRT", "onnxruntime")
    yield table(columns, cells, names=3)


def _zoo(rows: Sequence[Row]) -> Iterator[str]:
    yield "## Every network of the zoo"
    yield (
        "The share of identical outputs on 2 images (1 for networks of over 10 M parameters), gcc `-O3`. ImageNet "
        "networks take a small input where they allow one. *Random* weights are drawn and calibrated with 8 images. "
        "*auto* is the best instruction set of this machine."
    )
    cells = []
    for row in rows:
        size = f"{row['side']}x{row['side']}"
        if "refused" in row:
            cells.append((row["network"], size, "", "", row["refused"], ""))
            continue
        references = [
            "/".join(map(_share, row[name].values())) if name in row else "" for name in ("reference", "litert")
        ]
        cells.append(
            (row["network"], size, row["weights"], "plain/auto" if len(row["litert"]) > 1 else "plain", *references)
        )
    yield table(("network", "input size", "weights", "built for", "reference", "LiteRT"), cells, names=4)


def _accuracy(rows: Sequence[Row]) -> Iterator[str]:
    yield "## Accuracy of a float output"
    yield (
        "Agreement: the share of images with torch's class. The images calibrated nothing: of the ImageNet images all "
        "but the 100 drawn for calibration, of CIFAR-10 2,000 training images. *Ties* are images whose two best "
        "classes have the same output, so that their order says nothing. C with an int8 output has LiteRT's integers; "
        "a float output is computed from the same sums, before their last rounding."
    )
    cells = [
        (row["network"], f"{row['images']:,}", name, f"{100 * value:.2f}", str(row["ties"][name]))
        for row in rows
        for name, value in row["agreement"].items()
    ]
    yield table(("network", "images compared", "output", "agreement, %", "ties"), cells, names=3)


def _times(rows: Sequence[Row]) -> Iterator[str]:
    yield "## Time to compile"
    compiled = next(row for row in rows if row["what"] == "compile")
    yield (
        "Processor time, the shortest of several runs. The C file of SqueezeNet 1.1 for "
        f"`{compiled['isa']}` has {compiled['characters'] / 1e6:.1f} M characters. gcc's time is that of a shared "
        "library with `-O3`."
    )
    cells = [
        ("generate the C of SqueezeNet 1.1", f"{compiled['generate']:.2f}", ""),
        ("compile it by gcc", f"{compiled['gcc']:.2f}", ""),
    ]
    plans = [row for row in rows if row["what"] == "plan"]
    for before, row in zip([None, *plans], plans, strict=False):
        ratio = f"{row['seconds'] / before['seconds']:.1f}" if before else ""
        cells.append((f"plan a network of {row['operations']:,} operations", f"{row['seconds']:.2f}", ratio))
    yield table(("work", "seconds", "times the line above"), cells)
    native = [row for row in rows if row["what"] == "native"]
    if native:
        yield "The backend `native` compiles a file once per machine, and opens the library afterwards."
        yield table(("step of the backend", "ms"), [(row["step"], f"{row['ms']:.3f}") for row in native])


def _devices(rows: Sequence[Row]) -> Iterator[str]:
    yield "## Which network fits which microcontroller"
    yield (
        "The verdicts of `firebox devices MODEL`: RAM with the device's reserve, and flash. *C* fits as compiled C "
        "only; *both* fits with tflite-micro as well; an empty cell does not fit. A network that fits none is left "
        "out, and so are tflite-micro's code and the firmware's own."
    )
    names = list(dict.fromkeys(device for row in rows for device in row["fits"]))
    cells = []
    for row in rows:
        found = [_verdict(row["fits"][name]) for name in names]
        if any(found):
            cells.append((row["network"], *found))
    yield table(("network", *names), cells)
    none = [row["network"] for row in rows if not any(_verdict(row["fits"][name]) for name in names)]
    if none:
        yield f"They fit none of them: {'; '.join(none)}; alexnet; vgg16."


def _verdict(fits: Mapping[str, bool | None]) -> str:
    if fits.get("c"):
        return "both" if fits.get("tflm") else "C"
    return "tflite-micro" if fits.get("tflm") else ""


def _speed(rows: Sequence[Row]) -> Iterator[str]:
    yield "## Speed"
    yield (
        "Milliseconds of processor time of one inference on one thread: the median, and the shortest, of turns in "
        "random order. "
        "Each runtime has a process of its own, so that none disturbs another's settings; each turn warms the caches, "
        "then measures. *Of C* is the median divided by the best median of C. *AMX* says whether the process asked "
        "the system for the matrix registers, without which it cannot use them. OpenVINO reports the kernels of its "
        "convolutions; "
        "*without AMX* is `ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI`."
    )
    cells = []
    for row in rows:
        best = min(one["median_ms"] for one in row["runtimes"] if one["name"].startswith("C,"))
        for one in row["runtimes"]:
            cells.append(
                (
                    row["network"],
                    one["name"],
                    one.get("uses", ""),
                    "yes" if one["amx"] else "no",
                    f"{one['median_ms']:.3f}",
                    f"{one['min_ms']:.3f}",
                    f"{one['median_ms'] / best:.2f}",
                )
            )
    yield table(("network", "runtime", "kernels", "AMX", "ms (median)", "ms (shortest)", "of C"), cells, names=4)


def _threads(rows: Sequence[Row]) -> Iterator[str]:
    yield "### Two threads"
    yield (
        "Elapsed milliseconds of `Session.run`, the shortest and the median of turns in random order, with one and "
        "two threads. The machine has two cores, and whatever else runs there takes part of the second one."
    )
    cells = []
    for row in rows:
        found = {one["name"]: one for one in row["runtimes"]}
        for backend in dict.fromkeys(name.partition(",")[0] for name in found):
            one, two = (found[f"{backend}, {count}"] for count in (1, 2))
            best = min(other["min_ms"] for name, other in found.items() if name.endswith(", 2"))
            times = [f"{value[key]:.3f}" for value in (one, two) for key in ("min_ms", "median_ms")]
            cells.append((row["network"], backend, *times, f"{two['min_ms'] / best:.2f}"))
    columns = ("network", "backend", "1 thread, shortest", "median", "2 threads, shortest", "median", "of the best")
    yield table(columns, cells, names=2)


def _last() -> Iterator[str]:
    yield "## On this machine"
    yield (
        "`firebox compile model.int8.tflite -o model.so` compiles the file for the machine at hand, and measures it "
        'beside the installed runtimes; with `--threads 2` it runs on two threads. `Session("model.so")` opens it, '
        '`Session("model.int8.tflite", backend="native")` compiles by itself, once, and `backend="auto"` takes a '
        "library that was measured to be faster. Libraries lie in the cache folder, by the hashes of model, generator, "
        "compiler and flags. A library that was not built on this machine is never loaded, and plain C is refused: "
        "it is slow on a processor with vector instructions."
    )
    yield "## In the browser"
    yield (
        "`firebox compile model.int8.tflite --project web -o demo` writes a folder: `NAME.wasm`, the network with its "
        "weights, which imports nothing; `NAME.js` with types; and `index.html`, a page that opens from a file and "
        "needs no network. clang and lld are enough: `apt-get install clang lld`."
    )
    yield _WEB_EXAMPLE
    yield (
        "Images are resized, cropped, normalized and quantized in the integers of training (Pillow 13). The output is "
        "float by default; `--output int8` gives LiteRT's integers. The `.wasm` needs 128-bit SIMD (Chrome 91, "
        "Firefox 89, Safari 16.4)."
    )
    if web.KEPT.exists():
        yield "The figures below are written by `python benchmarks/web.py`."
        yield from web.fragment()
    yield "## Not there yet"
    yield (
        "Weights are stored as they are, one byte each: coded weights, which would be smaller in flash, are not "
        "implemented. Projects for particular boards are not written either; the C file has no dependencies, so that "
        "it can be added to any project. Cortex-M55 runs plain C without its vector instructions."
    )


def _share(value: float) -> str:
    return "100%" if value == 1 else f"{value:.2%}"


_SECTIONS: Mapping[str, Callable[[Sequence[Row]], Iterator[str]]] = {
    "memory": _memory,
    "identity": _identity,
    "zoo": _zoo,
    "accuracy": _accuracy,
    "speed": _speed,
    "threads": _threads,
    "times": _times,
    "devices": _devices,
}
