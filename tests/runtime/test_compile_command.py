"""The command ``compile``: the files it writes, what a C program gets from them, and what it refuses."""

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from strategies import GraphBuilder, in_any_8_bits
from waiting import CEILING

from firebox.export import write_tflite
from firebox.runtime import Session
from firebox.runtime.compile import compile_c
from firebox.runtime.contract import KEY
from firebox.runtime.errors import FormatError, UnsupportedError, UsageError
from firebox.runtime.graph import Graph, Quantization, ops

needs_compiler = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
STRICT = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror")


def compiled(folder: Path, main: str, *flags: str, compiler: str = "gcc") -> Path:
    """A program from the C files in a folder and a main file."""
    (folder / "main.c").write_text(main)
    program = folder / "program"
    command = [compiler, *flags, *map(str, folder.glob("*.c")), "-o", str(program)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=CEILING, check=False)
    assert ran.returncode == 0, ran.stderr
    return program


def output_of(program: Path, data: bytes = b"") -> bytes:
    return subprocess.run([program], input=data, capture_output=True, timeout=CEILING, check=True).stdout


@pytest.fixture(scope="module")
def model(exported) -> Path:
    return exported / "model.int8.tflite"


@needs_compiler
@pytest.mark.parametrize("output", ["int8", "float"])
def test_the_self_test_passes_on_every_instruction_set_of_this_machine(command, model, tmp_path, output):
    ran = command("compile", model, "--output", output, "-o", tmp_path / "net.c")
    assert ran.code == 0, ran.err
    main = """
#include <stdio.h>
#include "net.h"
int main(void) { return printf("%s", micro_isa()) < 1 || micro_self_test(); }
"""
    program = compiled(tmp_path, main, "-O0", "-DFIREBOX_TEST", *STRICT)
    assert output_of(program)
    # A wrong byte of the expected output is noticed.
    code = (tmp_path / "net.c").read_text()
    at = code.index("fb_test_output")
    word = code.index("0x", at)
    (tmp_path / "net.c").write_text(code[:word] + "0x7" + code[word + 3 :])
    program = compiled(tmp_path, main, "-O0", "-DFIREBOX_TEST")
    assert subprocess.run([program], capture_output=True, timeout=CEILING, check=False).returncode == 1


@needs_compiler
@pytest.mark.parametrize("sram", [None, "12KiB"])
def test_all_ways_to_run_give_the_integers_of_litert(command, model, tmp_path, sram):
    budget = ("--sram", sram) if sram else ()
    for way in ("rows", "whole"):
        out = tmp_path / f"{way}.c"
        ran = command("compile", model, "--isa", "plain", "--input", way, "--name", way, "-o", out, *budget)
        assert ran.code == 0, ran.err
    main = """
#include <stdio.h>
#include <string.h>
#include "rows.h"
#include "whole.h"
static signed char in[ROWS_INPUT_BYTES], out[6][ROWS_OUTPUT_BYTES], early[ROWS_OUTPUT_BYTES];
static long long one[ROWS_ARENA_BYTES / 8 + 2], other[WHOLE_ARENA_BYTES / 8 + 2];
int main(void) {
  while (fread(in, sizeof in, 1, stdin) == 1) {
    rows_run(in, out[0]);
    rows_begin();
    rows_row(in);
    rows_end(early); /* an image that is cut off is no error */
    rows_begin();
    for (int y = 0; y < ROWS_ROWS; y++) rows_row(in + y * ROWS_ROW_BYTES);
    rows_end(out[1]);
    memset(one, 0x55, sizeof one);
    memset(other, 0xaa, sizeof other);
    rows_begin_in(one);
    for (int y = 0; y < ROWS_ROWS; y++) rows_row_in(one, in + y * ROWS_ROW_BYTES);
    rows_end_in(one, out[2]);
    whole_run(in, out[3]);
    memcpy(whole_input(), in, sizeof in);
    whole_invoke(out[4]);
    whole_run_in(other, in, out[5]);
    fwrite(out, sizeof out, 1, stdout);
  }
  return 0;
}
"""
    program = compiled(tmp_path, main, "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover", *STRICT)
    with Session(model, "litert") as session:
        inputs = np.random.default_rng(1).integers(-128, 128, (3, *session.input_shape[1:])).astype(np.int8)
        expected = np.stack([session.run(x[None]).reshape(-1) for x in inputs])
    found = np.frombuffer(output_of(program, inputs.tobytes()), np.int8).reshape(3, 6, -1)
    np.testing.assert_array_equal(found, np.repeat(expected[:, None], 6, axis=1))


@needs_compiler
def test_the_header_is_also_cplusplus(command, model, tmp_path):
    assert command("compile", model, "-o", tmp_path / "net.c").code == 0
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    strict = ("-std=c++11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-x", "c++")
    subprocess.run(["g++", *strict, str(tmp_path / "net.h")], timeout=CEILING, check=True)


def test_equal_models_give_equal_bytes(model, exported):
    first, second = compile_c(model), compile_c(model.read_bytes())
    assert (first.code, first.header) == (second.code, second.header)
    assert compile_c(exported / "model.int8.onnx").plan.arena_bytes == first.plan.arena_bytes


def test_json_and_the_files_that_a_folder_gets(command, model, tmp_path):
    ran = command("compile", model, "--sram", "16KiB", "--reserve", "2KiB", "-o", tmp_path / "new" / "folder", "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == ["micro.c", "micro.h"]
    assert found["files"] == [str(tmp_path / "new" / "folder" / name) for name in ("micro.c", "micro.h")]
    assert found["arena_bytes"] + 2048 <= 16384
    assert (found["verdict"]["fits"], found["verdict"]["reserve_bytes"]) == (True, 2048)
    assert f"#define MICRO_ARENA_BYTES {found['arena_bytes']}" in (tmp_path / "new" / "folder" / "micro.h").read_text()


HOSTILE = (
    '"quote\\"',
    "line\nbreak",
    "*/ int x; /*",
    "??/ trigraph ??'",
    "%s%n",
    "Ünïcödé ☃",
    "tab\there\0nul",
    "</script>",
)


@needs_compiler
def test_class_names_cannot_break_out_of_their_strings(model, tmp_path):
    with Session(model) as session:
        contract = session.contract
    graph = _graph_with_classes(len(HOSTILE))
    data = write_tflite(graph, {KEY: _contract_for(contract, graph, HOSTILE).to_bytes()})
    source = compile_c(data, isa="plain", name="hostile")
    for name, text in source.files().items():
        (tmp_path / name).write_text(text)
    main = """
#include <stdio.h>
#include "hostile.h"
int main(void) {
  for (int i = 0; i < HOSTILE_CLASSES; i++) printf("%s%c", hostile_classes[i], 1);
  return 0;
}
"""
    found = output_of(compiled(tmp_path, main, *STRICT)).split(b"\x01")[:-1]
    assert found == [name.partition("\0")[0].encode() for name in HOSTILE]


def _graph_with_classes(count: int):
    build = GraphBuilder((1, 4, 4, 3))
    x = build.add(ops.GlobalAveragePool, build.conv("input", count, (3, 3)))
    return in_any_8_bits(build.graph(build.add(ops.Reshape, x, shape=(1, count))))


def _contract_for(contract, graph, classes):
    source, target = (graph.tensors[name] for name in (graph.inputs[0], graph.outputs[0]))
    specs = {
        key: replace(
            getattr(contract, key),
            dtype=tensor.dtype,
            shape=tensor.shape,
            scale=tensor.quantization.scale[0],
            zero_point=tensor.quantization.zero_point,
        )
        for key, tensor in (("input", source), ("output", target))
    }
    preprocessing = replace(contract.preprocessing, size=(4, 4), resize=None)
    return replace(contract, classes=classes, class_ids=(), golden=None, preprocessing=preprocessing, **specs)


@pytest.mark.parametrize(
    ("file", "arguments", "code", "message"),
    [
        ("model.float32.tflite", (), 1, "C is generated for int8 graphs: export the model with --precision int8"),
        ("nothing.tflite", (), 2, "nothing.tflite"),
        ("model.int8.tflite", ("--isa", "z80"), 2, "z80"),
        ("model.int8.tflite", ("--name", "1st"), 2, "name '1st' is not a C identifier"),
        ("model.int8.tflite", ("--name", "fb"), 2, "name 'fb' is reserved"),
        ("model.int8.tflite", ("--sram", "2KiB"), 3, "micro does not fit 2.0 KiB: the smallest arena is"),
        ("model.int8.tflite", ("--sram", "2KiB", "--input", "whole"), 3, "deliver the input by rows"),
        ("model.int8.tflite", ("-o", "net.txt"), 2, "ends in .txt; use NAME.c"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(command, exported, tmp_path, file, arguments, code, message):
    arguments = [tmp_path / a if a == "net.txt" else a for a in arguments]
    out = () if "-o" in arguments else ("-o", tmp_path / "net.c")
    ran = command("compile", exported / file, *out, *arguments)
    assert ran.code == code
    assert message in ran.err
    assert ran.out == ""
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_is_one_line(command, model, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    ran = command("compile", model, "-o", tmp_path / "file" / "net.c")
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "cannot write" in ran.err


def test_flash_that_does_not_suffice_writes_nothing(command, model, tmp_path):
    ran = command("compile", model, "--sram", "64KiB", "--flash", "20KiB", "-o", tmp_path / "net.c")
    assert ran.code == 3
    assert "flash" in ran.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ['a"b.c', "a\nb.c", "a\\b.c", "what??!.c", os.fsdecode(b"\xff.c")])
def test_a_file_name_that_no_include_can_hold(command, model, tmp_path, name):
    ran = command("compile", model, "--isa", "plain", "-o", tmp_path / name)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "cannot stand in an #include" in ran.err
    assert list(tmp_path.iterdir()) == []


def _quantized(scale: float | None = None, zero_point: int | None = None) -> Graph:
    """A convolution and a sum, whose sum has other numbers."""
    build = GraphBuilder((1, 4, 4, 3))
    x = build.conv("input", 4)
    graph = in_any_8_bits(build.graph(build.add(ops.Add, x, x)))
    tensor = graph.tensors[graph.outputs[0]]
    assert tensor.quantization is not None
    scales = tensor.quantization.scale if scale is None else (scale,)
    found = Quantization(scales, tensor.quantization.zero_point if zero_point is None else zero_point)
    tensors = {**graph.tensors, tensor.name: replace(tensor, quantization=found)}
    return replace(graph, tensors=tensors)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"scale": 1e-45}, "has the scale 1e-45; C is generated for scales from 1e-16 to 1e"),
        ({"scale": 3e38}, "has the scale 3e"),
        ({"scale": float("nan")}, "has the scale nan"),
        ({"zero_point": 128}, "has the zero point 128, which int8 does not hold"),
        ({"zero_point": -(2**63)}, "has the zero point -9223372036854775808"),
    ],
)
def test_numbers_that_do_not_fit_c_are_refused(numbers, message):
    with pytest.raises(UnsupportedError, match=message):
        compile_c(_quantized(**numbers))


def test_weights_and_biases_beyond_float32_are_refused():
    graph = _quantized()
    conv = graph.ops[0]
    weight, bias = (graph.tensors[name] for name in conv.inputs[1:])
    wide = replace(weight, quantization=Quantization((3e38,)))
    with pytest.raises(UnsupportedError, match=r"has weights with the scale 3e\+38, beyond float32"):
        compile_c(replace(graph, tensors={**graph.tensors, wide.name: wide}))
    real = replace(bias, dtype="float32", quantization=None, data=np.ones(4, np.float32))
    tiny = replace(weight, quantization=Quantization((1e-45,)))
    with pytest.raises(UnsupportedError, match="has a bias beyond 32 bits"):
        compile_c(replace(graph, tensors={**graph.tensors, real.name: real, tiny.name: tiny}))


def test_a_contract_that_is_no_text_is_refused(exported):
    data = (exported / "model.int8.onnx").read_bytes()
    at = data.index(b'"classes"')
    with pytest.raises(FormatError, match=r"the file.s contract is damaged: .{1,200}$"):
        compile_c(data[:at] + b"\xff" + data[at + 1 :])


@pytest.mark.parametrize(
    "shape, message",
    [
        ((2, 4, 4, 3), r"'input' has shape \(2, 4, 4, 3\); C is generated for a batch of 1"),
        ((1, 40_000, 1, 1), r"shape \(1, 40000, 1, 1\); C is generated for at most 32,767 rows and columns; use a"),
    ],
)
def test_an_unsupported_network_is_named(shape: tuple[int, ...], message: str):
    build = GraphBuilder(shape)
    graph = in_any_8_bits(build.graph(build.conv("input", 4)))
    with pytest.raises(UnsupportedError, match=message):
        compile_c(graph)


def test_float_output_is_finer_than_int8(model):
    """Half of the classes that int8 loses are ties of its output; sums before the rounding have none."""
    source = compile_c(model, output="float")
    assert "#define MICRO_OUTPUT_SCALE" not in source.header
    assert "void micro_run(const int8_t *in, float *out);" in source.header


def test_names_of_instruction_sets(model):
    with pytest.raises(UsageError, match="instruction set 'mmx' is not one of auto, x86, arm64, "):
        compile_c(model, isa="mmx")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-o", "net.c", "--threads", "2"), "C in one file runs in one thread; leave --threads out"),
        (("-o", "net.so", "--isa", "plain"), "net.so takes no --isa; leave it out"),
        (("-o", "net.so", "--sram", "64KiB"), "net.so takes no memory budget; leave it out"),
        (("-o", "net.so", "--threads", "0"), "threads is 0"),
        (("-o", "net.so", "--project", "web"), "net.so is the name of a file; --project web writes a folder"),
    ],
)
def test_options_that_contradict_the_file_are_refused(command, model, tmp_path, arguments, message):
    ran = command("compile", model, *arguments, cwd=tmp_path)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert message in ran.err
    assert list(tmp_path.iterdir()) == []
