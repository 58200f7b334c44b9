import math
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

# Set before the libraries load, here and in the processes that tests start.
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import numpy as np
import pytest
import torch
from commands import Ran, run_here
from filelock import FileLock
from hypothesis import HealthCheck, settings
from PIL import Image

from firebox.runtime.commands import console

# Test files by duration, longest first, so that no worker starts a long file last while the other waits.
_LONGEST = (
    "fit_command",
    "compile_networks",
    "qat",
    "trace",
    "extending",
    "resuming",
    "fitting",
    "planning",
    "interruption",
    "export",
    "command_line",
    "baselines",
    "native",
    "training",
    "real_images",
    "package",
    "examples",
    "distributed",
    "blame",
    "report",
    "precisions",
    "formats",
    "fake_quantize",
    "tiling",
    "network",
    "hostile_files",
)

_NO_DATA = "FIREBOX_DATA is not set"

# Fixed examples for everyone, without a deadline; `make test-random` draws new ones.
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
    """Folder of real data, named by FIREBOX_DATA; tests that need it are skipped without it."""
    folder = os.environ.get("FIREBOX_DATA")
    if not folder:
        pytest.skip(_NO_DATA)
    return Path(folder)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory) -> None:
    """An empty cache for this run, separate from the user's."""
    os.environ["FIREBOX_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """One thread per process: the networks are small, and test processes run in parallel."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def quiet() -> None:
    """No progress lines in the output that tests read, even on a slow machine."""
    console._LOG_INTERVAL = math.inf


def _seed() -> None:
    """Reset the shared generators, so that no test depends on the tests before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup() -> None:
    """Module and session fixtures draw the same values, whichever test requests them first."""
    _seed()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    _seed()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the smoke test first, because it fails within seconds if nothing works; then the longest files."""
    places = {f"test_{name}.py": place for place, name in enumerate(("smoke", *_LONGEST))}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """Stop the session when the smoke test fails."""
    report = yield
    if report.failed and item.path.name == "test_smoke.py":
        item.session.shouldfail = "the smoke test failed; the other tests are not run"
    return report


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Give workers whole files, in the order above, so that the fixtures of a file are built once."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


def pytest_terminal_summary(terminalreporter) -> None:
    """Report the tests that were skipped for lack of real data, and how to run them."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if _NO_DATA in str(report.longrepr)]
    if skipped:
        terminalreporter.write_line(
            f"{len(skipped)} tests skipped: they need real data; set FIREBOX_DATA to its folder (docs/data.md)"
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
    """``once(name, fill)``: a folder shared by all workers; the first worker that needs it fills it."""
    shared = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        # Each worker has its own folder inside the run's.
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
    """The four exported files of squeezenet_micro with random weights; with uint8 input in ``uint8/``."""

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
            )

    return once("exported", fill)


@pytest.fixture
def arena_head(capfd) -> Callable[[bytes], int]:
    """Bytes of activations and scratch that tflite-micro's own allocator takes for a file."""

    def measure(model: bytes) -> int:
        from tflite_micro.python.tflite_micro import runtime

        interpreter = runtime.Interpreter.from_bytes(model, arena_size=8 * 1024**2)
        capfd.readouterr()
        interpreter.print_allocations()
        # The library writes to the file descriptor directly.
        found = re.search(r"Arena allocation head (\d+) bytes", "".join(capfd.readouterr()))
        assert found is not None
        return int(found[1])

    return measure
