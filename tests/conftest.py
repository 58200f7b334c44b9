import math
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

# Before they are loaded, here and in the processes that tests start.
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import numpy as np
import pytest
import torch
from commands import Ran, run_here
from filelock import FileLock
from hypothesis import HealthCheck, settings
from PIL import Image

from firebox.runtime.commands import console

# Files whose tests take longest, longest first: what begins last on one worker should not keep the other waiting.
_LONGEST = (
    "fit_command",
    "qat",
    "tracing",
    "resuming",
    "fitting",
    "planning",
    "interruption",
    "export",
    "command_line",
    "comparators",
    "training",
    "real_images",
    "distributed",
    "blame",
    "report",
    "precisions",
    "formats",
    "fake_quantization",
    "tiling",
    "network",
    "hostile_files",
)

_NO_DATA = "FIREBOX_DATA is not set"

# Everyone tries the same examples, however long they take; `make test-random` tries others.
settings.register_profile(
    "fixed",
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("random", settings.get_profile("fixed"), derandomize=False)
settings.load_profile("fixed")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data that FIREBOX_DATA names; tests that need it are skipped without."""
    folder = os.environ.get("FIREBOX_DATA")
    if not folder:
        pytest.skip(_NO_DATA)
    return Path(folder)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory) -> None:
    """Tests leave nothing in the user's cache, and find nothing there."""
    os.environ["FIREBOX_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The networks are small, and tests run beside each other: threads would only wait for their turn."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def quiet() -> None:
    """Where a machine is slow, no lines about progress stand among those that tests read."""
    console._LOG_INTERVAL = math.inf


def _seed() -> None:
    """The generators that libraries share begin anew: no test draws what depends on which ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup() -> None:
    """Fixtures of a module or of the session draw the same, whichever test asks for them first."""
    _seed()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    _seed()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The smoke test first: it says in seconds whether anything works at all. Then the files that take longest."""
    places = {f"test_{name}.py": place for place, name in enumerate(("smoke", *_LONGEST))}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """Where nothing works, nothing else is tried."""
    report = yield
    if report.failed and item.path.name == "test_smoke.py":
        item.session.shouldfail = "the smoke test failed: nothing else is worth a try"
    return report


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Workers take whole files, in the order of above: what a file builds for its tests is built once."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


def pytest_terminal_summary(terminalreporter) -> None:
    """How much was not tested for want of real data, and how to get it tested."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if _NO_DATA in str(report.longrepr)]
    if skipped:
        terminalreporter.write_line(
            f"{len(skipped)} tests skipped: they need real data; set FIREBOX_DATA to a folder of it (docs/data.md)"
        )


@pytest.fixture(scope="session")
def command() -> Callable[..., Ran]:
    """The command line: ``command("plan", model, "--json")``."""
    return run_here


@pytest.fixture(scope="session")
def noise(tmp_path_factory) -> Path:
    """Three class folders of four coloured images each."""
    folder = tmp_path_factory.mktemp("noise")
    random = np.random.default_rng(0)
    for label in range(3):
        parent = folder / f"class{label}"
        parent.mkdir()
        for index in range(4):
            pixels = random.integers(60 * label, 60 * label + 120, (40, 48, 3), np.uint8)
            Image.fromarray(pixels).save(parent / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def once(tmp_path_factory, request) -> Callable[[str, Callable[[Path], object]], Path]:
    """``once(name, fill)``: a folder that the first worker to need it fills, and that is there for the others."""
    shared = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        # Each worker has its own within that of the run.
        shared = shared.parent

    def folder(name: str, fill: Callable[[Path], object]) -> Path:
        place, filled = shared / name, shared / f"{name}.filled"
        with FileLock(shared / f"{name}.lock"):
            if not filled.exists():
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir()
                fill(place)
                filled.touch()
        return place

    return folder


@pytest.fixture(scope="session")
def exported(once, noise) -> Path:
    """squeezenet_micro with random weights as its four files, and as the same with uint8 input in ``uint8/``."""

    def fill(folder: Path) -> None:
        from firebox.export import ExportConfig, Tolerance, export
        from firebox.model_zoo import load_network
        from firebox.runtime import open_images

        network = load_network("squeezenet_micro", random_init=True, num_classes=3, input_size=(24, 24))
        anything = Tolerance(float_error=1e-3, sqnr_db=-100, agreement=0, formats_agreement=0)
        for out, input_type in ((folder, "int8"), (folder / "uint8", "uint8")):
            export(
                network.module,
                out,
                preprocessing=network.preprocessing,
                images=open_images(noise),
                classes=("class0", "class1", "class2"),
                name="micro",
                config=ExportConfig(calibration_images=4, input_type=input_type, tolerance=anything),
                quiet=True,
            )

    return once("exported", fill)


@pytest.fixture
def arena_head(capfd) -> Callable[[bytes], int]:
    """Bytes that tflite-micro takes for activations and scratch, in a run of its own allocator on the file."""

    def measure(model: bytes) -> int:
        from tflite_micro.python.tflite_micro import runtime

        interpreter = runtime.Interpreter.from_bytes(model, arena_size=8 * 1024**2)
        capfd.readouterr()
        interpreter.print_allocations()
        # The library writes to the file descriptor, past Python.
        found = re.search(r"Arena allocation head (\d+) bytes", "".join(capfd.readouterr()))
        assert found is not None
        return int(found[1])

    return measure
