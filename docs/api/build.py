"""Build the documentation as local HTML: the Markdown pages, and the API reference from the docstrings.

    python docs/api/build.py [FOLDER]        (default: build/docs; open its index.html)

A fault is an error: a public name without a docstring, a name in double backticks that does not exist, a link to a
missing file or heading, a warning. The reference covers the public faces: ``firebox``, its packages that list their
names in ``__all__``, and ``firebox.runtime.errors``.
"""

import argparse
import ast
import builtins
import html
import importlib
import inspect
import pkgutil
import re
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

import pdoc
import pdoc.render_helpers
from jinja2 import pass_context
from markupsafe import Markup
from pdoc.doc import Class, Function, Module, Variable

ROOT = Path(__file__).parents[2]
# Modules without a curated ``__all__`` whose public names are documented too.
WHOLE_MODULES = ("firebox", "firebox.runtime.errors")
_FIRST_PAGES = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")
# A name or a dotted name in double backticks, called or not; not the name of a file, nor one that is made of digits.
_REFERENCE = re.compile(
    r"``(?![\w.]+\.(?:csv|fbz|html|json|md|onnx|py|tflite|toml|txt)``)(?!\w*\d{4})"
    r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(?:\(\))?``"
)
_LINK = re.compile(r'(?<=\s)(href|src)="([^"]+)"')
# Names of other projects that docstrings refer to.
_ELSEWHERE = {"GraphNodeData", "GreedyMemoryPlanner"}
_SCRIPT = re.compile(r"<script.*?</script>", re.DOTALL)


def main() -> None:
    """Build everything, and list the faults on stderr with exit code 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=ROOT / "build" / "docs")
    out: Path = parser.parse_args().out
    faults = build(out)
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    print(f"{out / 'index.html'}: {len(faults)} faults" if faults else out / "index.html")
    sys.exit(bool(faults))


def build(out: Path) -> list[str]:
    """Write the pages into ``out`` and return the faults."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        names = documented()
        _define_types()
        modules = {name: Module(face(name)) for name in names}
        faults = [*undocumented(modules), *unknown_references(modules)]
        pages = markdown_pages()
        _configure(pages, modules)
        shutil.rmtree(out, ignore_errors=True)
        for name, module in modules.items():
            _write(out / api_page(name), pdoc.render.html_module(module, modules))
        _write(out / "search.js", pdoc.render.search_index(modules))
        faults += _write_markdown(out, pages)
    return [*(f"{warning.category.__name__}: {warning.message}" for warning in caught), *faults, *broken_links(out)]


# ----- The reference -----


def documented() -> list[str]:
    """Names of the modules that the reference covers."""
    names = set(WHOLE_MODULES)
    for room in ("runtime", "export", "model_zoo"):
        package = importlib.import_module(f"firebox.{room}")
        inner = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        packages = [package.__name__, *(module.name for module in inner if module.ispkg)]
        for name in packages:
            module = importlib.import_module(name)
            public = getattr(module, "__all__", ())
            if public:
                names.add(name)
            names |= {f"{name}.{inner}" for inner in public if isinstance(getattr(module, inner, None), ModuleType)}
    return sorted(names)


def face(name: str) -> ModuleType:
    """A module with all its public names imported, those that load on first use included."""
    module = importlib.import_module(name)
    for public in getattr(module, "__all__", ()):
        module.__dict__[public] = getattr(module, public)
    return module


def _define_types() -> None:
    """Run the imports behind ``TYPE_CHECKING`` and the type aliases in quotes, which annotations refer to."""
    modules = [module for name, module in sorted(sys.modules.items()) if name.partition(".")[0] == "firebox"]
    # Twice, because modules import each other's aliases.
    for module in (*modules, *modules):
        for node in ast.parse(inspect.getsource(module)).body:
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                exec(compile(ast.Module(node.body, type_ignores=[]), module.__file__ or "", "exec"), vars(module))
            elif isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "TypeAlias":
                name, value = ast.unparse(node.target), vars(module)[ast.unparse(node.target)]
                if isinstance(value, str):
                    vars(module)[name] = eval(value, vars(module))  # noqa: S307


def public_members(modules: Mapping[str, Module]) -> Iterator[tuple[str, str, Any]]:
    """Full name, docstring and value of functions, classes, and the methods and properties of the classes."""
    for module in modules.values():
        for member in module.members.values():
            if not isinstance(member, Function | Class) or member.name.startswith("_"):
                continue
            yield f"{module.modulename}.{member.qualname}", member.docstring, member.obj
            for inner in member.own_members if isinstance(member, Class) else ():
                value = inspect.getattr_static(member.obj, inner.name, None)
                is_property = isinstance(value, property | cached_property)
                # The class describes its fields, some of which have functions as defaults.
                is_field = inner.name in getattr(member.obj, "__annotations__", {})
                if not inner.name.startswith("_") and not is_field and (isinstance(inner, Function) or is_property):
                    yield f"{module.modulename}.{inner.qualname}", inner.docstring, value


def undocumented(modules: Mapping[str, Module]) -> list[str]:
    """Public names without a docstring."""
    names = [(name, module.docstring) for name, module in modules.items()]
    names += [(name, docstring) for name, docstring, _ in public_members(modules)]
    return [f"{name} has no docstring" for name, docstring in names if not docstring]


def unknown_references(modules: Mapping[str, Module]) -> list[str]:
    """References in the docstrings to names that do not exist.

    A reference is a name or a dotted name, called or not, in double backticks. Its parts must be words of the code next
    to the docstring (such as parameters), or be defined somewhere in firebox, in Python, in ONNX or as a program.
    """
    own = [module for name, module in sys.modules.items() if name.partition(".")[0] == "firebox"]
    known = _ELSEWHERE.union(dir(builtins), *map(_definitions, own))
    known |= {script.name for script in entry_points(group="console_scripts")}
    faults = []
    docstrings = [(name, module.docstring, module.obj) for name, module in modules.items()]
    docstrings += public_members(modules)
    for where, text, value in docstrings:
        for reference in _REFERENCE.findall(text):
            # Single letters, and capitals in a dotted name, stand for something else.
            words = {
                word for word in reference.split(".") if len(word) > 1 and not ("." in reference and word.isupper())
            }
            if not (_imports(reference) or known | _words(_home(value)) >= words):
                faults.append(f"{where} refers to ``{reference}``, which does not exist")
    return faults


def _home(value: Any) -> ModuleType | None:
    """The module that defines a value."""
    if isinstance(value, ModuleType):
        return value
    if isinstance(value, property | cached_property | staticmethod | classmethod):
        value = getattr(value, "fget", None) or getattr(value, "func", None) or getattr(value, "__func__", None)
    return sys.modules.get(getattr(inspect.unwrap(value), "__module__", None) or "") if callable(value) else None


@cache
def _code(module: ModuleType) -> list[ast.AST]:
    """The nodes of a module's code without docstrings."""
    tree = ast.parse(inspect.getsource(module))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return list(ast.walk(tree))


@cache
def _words(module: ModuleType | None) -> set[str]:
    """All words in the names and strings of a module's code."""
    nodes = _code(module) if module else []
    values = [value for node in nodes for _, value in ast.iter_fields(node) if isinstance(value, str)]
    return set(re.findall(r"\w+", " ".join(values)))


def _definitions(module: ModuleType) -> set[str]:
    """Functions, classes, fields and strings of a module's code, and its own names."""
    found = {*vars(module), *module.__name__.split(".")}
    for node in _code(module):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            found.add(node.value)
    return found


def _imports(reference: str) -> bool:
    """True for a dotted name of firebox that exists, and for the name of an ONNX operator."""
    import onnx

    if not reference.startswith("firebox."):
        return onnx.defs.has(reference)
    module, _, name = reference.rpartition(".")
    try:
        return hasattr(importlib.import_module(module), name) or bool(importlib.import_module(reference))
    except ImportError:
        return False


def api_page(name: str) -> str:
    """The file of a module, relative to the folder of all pages."""
    return f"{name.replace('.', '/')}.html"


# ----- The pages in Markdown -----


@dataclass
class Page:
    """A Markdown file: its path in the repository, its title and its HTML."""

    source: Path
    title: str
    body: str = field(repr=False)

    @property
    def file(self) -> str:
        """The page's file, relative to the folder of all pages."""
        return "index.html" if self.source == Path("README.md") else str(self.source.with_suffix(".html"))


def markdown_pages() -> list[Page]:
    """README and the other first pages, then those in docs/ and examples/."""
    others = sorted(path for folder in ("docs", "examples") for path in (ROOT / folder).rglob("*.md"))
    pages = []
    for name in (*_FIRST_PAGES, *(str(path.relative_to(ROOT)) for path in others)):
        text = (ROOT / name).read_text(encoding="utf-8")
        title = re.search(r"^# (.+)$", text, re.MULTILINE)
        body = pdoc.render_helpers.to_html(text)
        pages.append(Page(Path(name), title[1].replace("`", "") if title else name, str(body)))
    return pages


def _write_markdown(out: Path, pages: list[Page]) -> list[str]:
    """Write the pages with the files that they show or link to; return links to files that are missing."""
    faults = []
    files = {page.source: page.file for page in pages}
    template = pdoc.render.env.get_template("page.html.jinja2")
    for page in pages:

        def rewritten(match: re.Match[str], page: Page = page) -> str:
            attribute, url = match[1], html.unescape(match[2])
            parts = urlsplit(url)
            if parts.scheme or parts.netloc or not parts.path:
                return match[0]
            target = Path(*_normal((page.source.parent / unquote(parts.path)).parts))
            if target in files:
                found = files[target]
            elif (ROOT / target).is_file():
                found = str(target)
                (out / target).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / target, out / target)
            elif (ROOT / target).is_dir():
                return ""
            else:
                faults.append(f"{page.source} links to {url}, which does not exist")
                return match[0]
            up = "../" * (len(Path(page.file).parts) - 1)
            return f'{attribute}="{up}{found}{"#" + parts.fragment if parts.fragment else ""}"'

        body = _LINK.sub(rewritten, page.body)
        up = "../" * (len(Path(page.file).parts) - 1)
        _write(out / page.file, template.render(title=page.title, body=Markup(body), page=page, up=up))
    return faults


def _normal(parts: tuple[str, ...]) -> list[str]:
    """Path parts without ``..``."""
    found: list[str] = []
    for part in parts:
        found = found[:-1] if part == ".." else [*found, part]
    return found


def broken_links(out: Path) -> list[str]:
    """Links within the built pages to files or headings that are missing."""
    texts = {path: path.read_text(encoding="utf-8") for path in out.rglob("*.html")}
    anchors = {path: set(re.findall(r'\sid="([^"]+)"', text)) for path, text in texts.items()}
    faults = []
    for path, text in texts.items():
        for _, url in _LINK.findall(_SCRIPT.sub("", text)):
            parts = urlsplit(html.unescape(url))
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                faults.append(f"{path.relative_to(out)} links to {url}, which does not exist")
            elif parts.fragment and target in anchors and unquote(parts.fragment) not in anchors[target]:
                faults.append(f"{path.relative_to(out)} links to {url}: there is no such heading")
    return sorted(set(faults))


# ----- Rendering -----


def _configure(pages: list[Page], modules: Mapping[str, Module]) -> None:
    """Set pdoc's options; link names in double backticks also when they are documented on another page."""
    pdoc.render.configure(docformat="markdown", show_source=False, template_directory=Path(__file__).parent)
    environment = pdoc.render.env
    environment.globals.update(pages=pages, api_pages={name: api_page(name) for name in modules})
    homes: dict[str, str] = {}
    for name in sorted(modules, key=lambda name: name.count(".")):
        for member in modules[name].members.values():
            if not isinstance(member, Variable | Module):
                homes.setdefault(member.name, name)

    @pass_context
    def linkify(context: Any, code: str, namespace: str = "", shorten: bool = True) -> Markup:
        linked = pdoc.render_helpers.linkify(context, code, namespace, shorten)
        current = context["module"].modulename

        def link(match: re.Match[str]) -> str:
            home = homes.get(match[1])
            if home is None:
                return match[0]
            target = "" if home == current else "../" * current.count(".") + api_page(home)
            return f'<code><a href="{target}#{match[1]}">{match[1]}{match[2]}</a></code>'

        return Markup(re.sub(r"<code>(\w+)((?:\(\))?)</code>", link, linked))

    environment.filters["linkify"] = linkify


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
