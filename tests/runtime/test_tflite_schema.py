"""Slots and codes of our TFLite schema, compared with the reader that TensorFlow generates from its own."""

import inspect
import re
import struct

import numpy as np
import pytest
from strategies import GraphBuilder

from firebox.export import write_tflite
from firebox.runtime.formats.tflite_schema import (
    ACTIVATIONS,
    BUILTINS,
    PADDINGS,
    SCALARS,
    TABLES,
    TENSOR_TYPES,
    read_model,
)

schema = pytest.importorskip("tflite_micro.tensorflow.lite.micro.python.schema_py_generated")

# Fields whose name is shorter in firebox.
RENAMED = {
    "activation": "fused_activation_function",
    "dilation_w": "dilation_w_factor",
    "dilation_h": "dilation_h_factor",
    "options": "builtin_options",
}
SOURCE = inspect.getsource(schema)


def generated_name(field: str) -> str:
    return "".join(part.capitalize() for part in RENAMED.get(field, field).split("_"))


def slots(table: str) -> dict[str, tuple[int, str]]:
    """Slot and default of each field, from the source of the generated builder."""
    call = rf"^def {table}Add(\w+)\(.*?\n? *builder\.Prepend\w+Slot\((\d+), .*, (\S+)\)$"
    return {name: (int(slot), default) for name, slot, default in re.findall(call, SOURCE, re.MULTILINE)}


@pytest.mark.parametrize("table", [name for name, fields in TABLES.items() if fields])
def test_fields_have_the_slots_and_defaults_of_the_schema(table):
    expected = slots(table)
    for field in TABLES[table]:
        name = generated_name(field.name)
        if field.type == "union":
            assert (expected[f"{name}Type"][0], expected[name][0]) == (field.slot, field.slot + 1)
        else:
            slot, default = expected[name]
            assert slot == field.slot, field.name
            assert field.type not in SCALARS or float(default) == field.default, field.name


def codes(kind: type) -> dict[str, int]:
    return {name: value for name, value in vars(kind).items() if isinstance(value, int)}


def test_codes_are_those_of_the_schema():
    operators, options = codes(schema.BuiltinOperator), codes(schema.BuiltinOptions)
    for name, builtin in BUILTINS.items():
        assert builtin.code == operators[name], name
        assert builtin.options_code == (options[builtin.options] if builtin.options else 0), name
    types = codes(schema.TensorType)
    assert {name: types[name.upper()] for name in TENSOR_TYPES} == TENSOR_TYPES
    assert codes(schema.Padding) == PADDINGS
    activations = codes(schema.ActivationFunctionType)
    assert {name: activations[name.upper()] for name in ACTIVATIONS} == ACTIVATIONS


def test_the_generated_reader_and_ours_agree_on_a_written_file():
    build = GraphBuilder((1, 6, 6, 3))
    x = build.conv("input", 4, (3, 3), stride=(2, 1), dilation=(1, 1), activation="relu6")
    data = write_tflite(build.graph(build.linear(x, 5)), {"note": b"hello"})
    official = schema.ModelT.InitFromPackedBuf(data, 0)
    ours = read_model(data)
    assert official.version == ours["version"] == 3
    assert len(official.buffers) == len(ours["buffers"])
    for theirs, found in zip(official.buffers, ours["buffers"], strict=True):
        np.testing.assert_array_equal(theirs.data if theirs.data is not None else [], found["data"])
    graph, (found,) = official.subgraphs[0], ours["subgraphs"]
    assert [tensor.name.decode() for tensor in graph.tensors] == [tensor["name"] for tensor in found["tensors"]]
    assert [list(tensor.shape) for tensor in graph.tensors] == [tensor["shape"] for tensor in found["tensors"]]
    options = graph.operators[0].builtinOptions
    assert (options.strideH, options.strideW, options.fusedActivationFunction) == (2, 1, ACTIVATIONS["relu6"])
    assert found["operators"][0]["options"]["stride_h"] == 2
    assert official.metadata[0].name == b"note"


def test_scalars_have_the_width_of_their_names():
    for name, code in SCALARS.items():
        assert struct.calcsize("<" + code) * 8 == int(name[1:])
