"""The check behind `make docs` finds faults in docstrings, and the links of the pages it builds."""

import importlib.util
import sys
from pathlib import Path

import pytest

BUILD = Path(__file__).parents[1] / "docs" / "api" / "build.py"


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("docs_build", BUILD)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Data classes look their module up.
    sys.modules["docs_build"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["docs_build"]


@pytest.fixture
def documented(build, tmp_path, monkeypatch):
    """``documented(source)``: a module of that source, as the reference has modules."""

    def make(source: str):
        (tmp_path / "sample_room.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "sample_room", raising=False)
        importlib.invalidate_caches()
        return {"sample_room": build.Module(build.face("sample_room"))}

    return make


FINE = '''
"""A room."""

__all__ = ["Lamp", "light"]


class Lamp:
    """A lamp of ``watts``, as ``light`` takes it; too many raise ``ValueError``."""

    def __init__(self, watts: int):
        self.watts = watts

    @property
    def bright(self) -> bool:
        """True for many ``Lamp.watts``."""
        return self.watts > 60

    def off(self) -> None:
        """Switch ``light()`` off, in ``firebox.runtime.Session`` style, as ``QuantizeLinear`` in ``model.json``."""


def light(lamp: Lamp) -> None:
    """Light a ``lamp``."""
'''


def test_documented_names_and_known_references_are_fine(build, documented):
    modules = documented(FINE)
    assert build.undocumented(modules) == []
    assert build.unknown_references(modules) == []


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('"""A room."""\n', "sample_room has no docstring"),
        ('    """Light a ``lamp``."""\n', "sample_room.light has no docstring"),
        ('        """True for many ``Lamp.watts``."""\n', "sample_room.Lamp.bright has no docstring"),
    ],
)
def test_a_missing_docstring_is_a_fault(build, documented, line, fault):
    source = FINE.replace(line, "    pass\n" if "lamp" in line else "")
    assert build.undocumented(documented(source)) == [fault]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("``lamp``", "``candle``"),
        ("``light()``", "``ignite()``"),
        ("``ValueError``", "``LampError``"),
        ("``firebox.runtime.Session``", "``firebox.runtime.Sessions``"),
        ("``Lamp.watts``", "``Lamp.volts``"),
    ],
)
def test_a_reference_to_nothing_is_a_fault(build, documented, old, new):
    (fault,) = build.unknown_references(documented(FINE.replace(old, new)))
    assert f"refers to ``{new.strip('`()')}``, which does not exist" in fault


def test_a_name_in_all_that_is_missing_is_an_error(documented):
    with pytest.raises(AttributeError, match="torch_"):
        documented(FINE.replace('"Lamp", "light"', '"Lamp", "torch_"'))


def test_broken_links_are_found(build, tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html#there"></a> <a href="#here"></a> <h1 id="here"></h1>')
    (tmp_path / "b.html").write_text('<h1 id="there"></h1> <a href="https://example.org/x"></a> <img src="c.png">')
    assert build.broken_links(tmp_path) == ["b.html links to c.png, which does not exist"]
    (tmp_path / "b.html").write_text("<script>x = '<a href=\"nowhere\">'</script>")
    assert build.broken_links(tmp_path) == ["a.html links to b.html#there: there is no such heading"]
