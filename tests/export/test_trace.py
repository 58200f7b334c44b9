"""Tracing torch modules: equal outputs, names of modules, and refusals with the module's name."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from firebox.export import trace, write_onnx, write_tflite
from firebox.runtime import Graph, Session
from firebox.runtime.errors import UnsupportedError
from firebox.runtime.graph import Op, ops


class Fire(nn.Module):
    def __init__(self, channels: int, bypass: bool):
        super().__init__()
        self.squeeze = nn.Conv2d(channels, 2, 1)
        self.left = nn.Conv2d(2, channels // 2, 1)
        self.right = nn.Conv2d(2, channels - channels // 2, 3, padding=1)
        self.bypass = bypass

    def forward(self, x):
        squeezed = torch.relu(self.squeeze(x))
        y = torch.cat([self.left(squeezed).relu(), self.right(squeezed).relu()], 1)
        return x + y if self.bypass else y


@st.composite
def modules(draw) -> tuple[nn.Module, tuple[int, int, int, int]]:
    """Random stacks of layers common in networks for small devices, with an input shape."""
    channels, rows, columns = draw(st.integers(2, 4)), draw(st.integers(9, 16)), draw(st.integers(9, 16))
    shape = (1, channels, rows, columns)
    layers: list[nn.Module] = []
    kinds = ["conv", "grouped", "dilated", "norm", "max", "average", "fire", "bypass", "relu6", "dropout"]
    for kind in draw(st.lists(st.sampled_from(kinds), min_size=3, max_size=6)):
        stride, padding = draw(st.integers(1, 2)), draw(st.integers(0, 1))
        if kind == "conv":
            out = draw(st.integers(2, 6))
            kernel = draw(st.sampled_from([1, 2, 3, (1, 3)]))
            layers.append(nn.Conv2d(channels, out, kernel, stride, bias=draw(st.booleans())))
            channels = out
        elif kind == "grouped":
            layers.append(nn.Conv2d(channels, channels * 2, 3, stride, 1, groups=channels))
            channels *= 2
        elif kind == "dilated":
            layers.append(nn.Conv2d(channels, channels, 2, dilation=2, padding=padding))
        elif kind == "norm":
            layers.append(nn.BatchNorm2d(channels))
        elif kind == "max":
            layers.append(nn.MaxPool2d(draw(st.integers(2, 3)), stride, padding, ceil_mode=draw(st.booleans())))
        elif kind == "average":
            layers.append(nn.AvgPool2d(2, stride, ceil_mode=draw(st.booleans())))
        elif kind in ("fire", "bypass"):
            layers.append(Fire(channels, kind == "bypass"))
        else:
            layers.append(nn.ReLU6() if kind == "relu6" else nn.Dropout(0.5))
        size = nn.Sequential(*layers).eval()(torch.zeros(shape)).shape[2:]
        if min(size) < 4:
            break
    flat = channels * size[0] * size[1]
    ends: dict[str, list[nn.Module]] = {
        "pool": [nn.Conv2d(channels, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()],
        "linear": [nn.Flatten(), nn.Linear(flat, 5)],
        "softmax": [nn.Flatten(), nn.Dropout(0.1), nn.Linear(flat, 6), nn.ReLU(), nn.Linear(6, 5), nn.Softmax(1)],
    }
    return nn.Sequential(*layers, *ends[draw(st.sampled_from(sorted(ends)))]), shape


def shaken(module: nn.Module) -> nn.Module:
    """Random batch norm parameters and statistics, as after training, that let signals pass."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for values in (part.weight, part.running_var):
                nn.init.uniform_(values, 0.5, 2)
            for values in (part.bias, part.running_mean):
                nn.init.normal_(values)
    return module


def run_everywhere(graph: Graph, x: torch.Tensor) -> dict[str, np.ndarray]:
    image = x.numpy()
    nhwc = np.ascontiguousarray(image.transpose(0, 2, 3, 1))
    found = {"onnxruntime": Session(write_onnx(graph)).run(image)}
    tflite = write_tflite(graph)
    for backend in ("litert", "tflite-runtime"):
        y = Session(tflite, backend).run(nhwc)
        found[backend] = y.transpose(0, 3, 1, 2) if y.ndim == 4 else y
    return found


def assert_traced(module: nn.Module, shape: tuple[int, int, int, int]) -> Graph:
    graph = trace(module, shape)
    x = torch.randn(shape)
    with torch.inference_mode():
        expected = module.eval()(x).numpy()
    for backend, found in run_everywhere(graph, x).items():
        np.testing.assert_allclose(found, expected, atol=1e-4, err_msg=backend)
    return graph


@settings(max_examples=8)
@given(modules())
def test_torch_and_three_runtimes_agree(drawn):
    module, shape = drawn
    torch.manual_seed(0)
    assert_traced(shaken(module), shape)


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (nn.MaxPool2d(3, 2, ceil_mode=True), 12),
        (nn.MaxPool2d(3, 2, ceil_mode=True), 13),
        (nn.MaxPool2d(2, 3, ceil_mode=True), 11),
        (nn.AvgPool2d(3, 2, padding=1, count_include_pad=False), 13),
        (nn.AvgPool2d(3, 2, ceil_mode=True), 13),
        (nn.Conv2d(3, 4, 5, 2, padding=(2, 1)), 12),
        (nn.Conv2d(3, 6, 3, padding="same", dilation=2, groups=3), 12),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=2)), 12),
        (nn.Sequential(nn.ZeroPad2d((0, 1, 2, 0)), nn.Conv2d(3, 4, 3)), 12),
        (nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), 12),
    ],
    ids=lambda value: str(value).replace("\n", "") if isinstance(value, nn.Module) else str(value),
)
def test_layers_in_difficult_shapes(layer, size):
    torch.manual_seed(0)
    assert_traced(shaken(nn.Sequential(layer, nn.Conv2d(_channels(layer, size), 4, 1))), (1, 3, size, size))


def _channels(layer: nn.Module, size: int) -> int:
    return layer.eval()(torch.zeros(1, 3, size, size)).shape[1]


def test_batch_norm_is_folded_into_the_preceding_convolution():
    torch.manual_seed(0)
    module = shaken(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()))
    graph = trace(module, (1, 3, 8, 8))
    assert [(type(op), op.activation) for op in graph.ops] == [(ops.Conv, "relu")]
    norm, conv = module[1], module[0]
    factor = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
    weight = (conv.weight * factor[:, None, None, None]).detach().numpy().transpose(0, 2, 3, 1)
    bias = (norm.bias - norm.running_mean * factor).detach().numpy()
    np.testing.assert_allclose(graph.tensors[graph.ops[0].inputs[1]].real(), weight, rtol=1e-5)
    np.testing.assert_allclose(graph.tensors[graph.ops[0].inputs[2]].real(), bias, atol=1e-6)


def test_batch_norm_after_a_shared_convolution_is_kept():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            y = self.conv(x)
            return torch.cat([y, self.norm(y)], 1)

    graph = assert_traced(shaken(Both()), (1, 3, 6, 6))
    assert len(graph.ops) == 3


def test_operations_are_named_after_their_modules():
    module = nn.Sequential()
    module.add_module("stem", nn.Conv2d(3, 4, 3))
    module.add_module("act", nn.ReLU())
    module.add_module("fire", Fire(4, bypass=True))
    module.add_module("head", nn.Conv2d(4, 2, 1))
    names = [op.name for op in trace(module, (1, 3, 8, 8), "small").ops]
    assert names == ["stem", "fire.squeeze", "fire.left", "fire.right", "fire/cat", "fire/add", "output"]


@pytest.mark.parametrize("shared", [nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.BatchNorm2d(3)])
def test_a_module_used_twice_is_two_operations(shared):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared, self.head = shared, nn.Conv2d(3, 2, 1)

        def forward(self, x):
            return self.head(torch.relu(self.shared(torch.relu(self.shared(x)))))

    torch.manual_seed(0)
    graph = assert_traced(shaken(Twice()), (1, 3, 8, 8))
    from firebox.runtime import read_graph

    for data in (write_onnx(graph), write_tflite(graph)):
        again = read_graph(data)
        x = torch.randn(1, 3, 8, 8)
        for found, expected in zip(run_everywhere(again, x).values(), run_everywhere(graph, x).values(), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-5)


class Inside(nn.Module):
    def __init__(self, layer: nn.Module):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), layer, nn.Conv2d(4, 2, 1))

    def forward(self, x):
        return self.features(x)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (nn.GELU(), r"Gelu \(GELU at 'features.1'\)|\(GELU at 'features.1'\)"),
        (nn.Hardswish(), r"HardSwish \(Hardswish at 'features.1'\)"),
        (nn.Sigmoid(), r"Sigmoid \(Sigmoid at 'features.1'\)"),
        (nn.ReflectionPad2d(1), r"Pad \(ReflectionPad2d at 'features.1'\)"),
        (nn.Softmax(2), r"Softmax \(Softmax at 'features.1'\) along axis 2"),
        (nn.Hardtanh(-1, 1), r"\(Hardtanh at 'features.1'\) between -1.0 and 1.0"),
        (nn.MaxPool2d(2, dilation=2), r"MaxPool \(MaxPool2d at 'features.1'\) with dilation"),
        (nn.PReLU(4), r"\(PReLU at 'features.1'\)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_an_unknown_operation_is_named_with_its_module(layer, said):
    with pytest.raises(UnsupportedError, match=said):
        trace(Inside(layer), (1, 3, 12, 12))


def test_untraceable_modules_end_in_one_line():
    class Choosing(nn.Module):
        def forward(self, x):
            return x * 2 if x.sum() > 0 else x

    for module, shape in ((Choosing(), (1, 3, 8, 8)), (nn.Conv2d(3, 4, 9), (1, 3, 4, 4))):
        with pytest.raises(UnsupportedError, match=f"{type(module).__name__} cannot be traced") as error:
            trace(module, shape)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("training", [True, False])
def test_a_module_keeps_its_mode_and_state(training):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train(training)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trace(module, (1, 3, 8, 8))
    assert all(part.training == training for part in module.modules())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    with pytest.raises(UnsupportedError):
        trace(module.append(nn.GELU()), (1, 3, 8, 8))
    assert module.training == training


def test_a_frozen_part_stays_frozen():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4).eval(), nn.ReLU()).train()
    module[1].eval()
    trace(module, (1, 3, 8, 8))
    assert module[0].training
    assert not module[1].training


def test_padding_that_counts_becomes_a_separate_operation():
    graph = trace(nn.AvgPool2d(3, 2, padding=1), (1, 3, 8, 8))
    kinds: list[type[Op]] = [type(op) for op in graph.ops]
    assert kinds == [ops.Pad, ops.AveragePool]
    with pytest.raises(UnsupportedError, match="ceil_mode is not supported"):
        trace(nn.AvgPool2d(3, 2, padding=1, ceil_mode=True), (1, 3, 8, 8))
