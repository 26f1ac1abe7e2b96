"""How the documentation is built: ``make docs``, from the pages here and the docstrings, without a network."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

import plasticity_cl

logger = logging.getLogger(__name__)
project = "plasticity-cl"
author = "The plasticity-cl maintainers"
copyright = author
version = release = plasticity_cl.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "plasticity-cl"
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
myst_heading_anchors = 4
# Highlighted as text where a block says so by saying nothing.
highlight_language = "none"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Emitted", "notes_style")]

API = Path(__file__).parent / "api"


def public_names(package: ModuleType) -> list[tuple[str, str]]:
    """Module and name of all that a package offers: what ``__all__`` lists, or else all that its files define."""
    if hasattr(package, "__all__"):
        return [(package.__name__, name) for name in package.__all__]
    files = [package]
    if hasattr(package, "__path__"):
        files = [
            importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)
        ]
    return [
        (file.__name__, name)
        for file in files
        for name, value in vars(file).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == file.__name__
    ]


def write_pages(app: Any) -> None:
    """One page a package, with everything that it offers: a new name is on its page without being listed anywhere."""
    API.mkdir(exist_ok=True)
    wanted = set()
    for module in pkgutil.iter_modules(plasticity_cl.__path__, "plasticity_cl."):
        name = module.name.rpartition(".")[2]
        if name.startswith("_"):
            continue
        package = importlib.import_module(module.name)
        blocks = [f"# {module.name}", f"```{{eval-rst}}\n.. module:: {module.name}\n```", package.__doc__ or ""]
        for where, what in public_names(package):
            value = getattr(importlib.import_module(where), what)
            kind = "class" if inspect.isclass(value) else "function" if inspect.isfunction(value) else "data"
            shown = "\n   :no-value:" if kind == "data" else ""  # a table of its own is not to be read as a value
            blocks.append(f"```{{eval-rst}}\n.. auto{kind}:: {where}.{what}{shown}\n```")
        page, text = API / f"{name}.md", "\n\n".join(blocks) + "\n"
        wanted.add(page)
        if not page.is_file() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")
    for page in set(API.glob("*.md")) - wanted:
        page.unlink()


@functools.cache
def modules_of_ours() -> list[ModuleType]:
    """The package and all of its modules."""
    found = pkgutil.walk_packages(plasticity_cl.__path__, "plasticity_cl.")
    names = (module.name for module in found if not module.name.endswith("__main__"))
    return [plasticity_cl, *map(importlib.import_module, names)]


def objects_called(target: str) -> list[Any]:
    """The objects of ours that a reference may mean: by their full name, by their file's, or by the name alone."""
    owner, _, name = target.rpartition(".")
    found = [vars(m)[name] for m in modules_of_ours() if name in vars(m) and f"{m.__name__}.{name}".endswith(target)]
    found += [m for m in modules_of_ours() if m.__name__ == target]
    if not found and owner:
        found = [getattr(value, name) for value in objects_called(owner) if hasattr(value, name)]
    return found


def describe_constant(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Put what stands below a constant in its own file, and not what its type says of itself."""
    if what == "data":
        key = ("", name.rpartition(".")[2])
        found = (ModuleAnalyzer.for_module(m.__name__).find_attr_docs().get(key) for m in modules_of_ours())
        lines[:] = next(filter(None, found), [])


def prepare_docstring(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Check that what a docstring refers to exists, and keep bars and stars of formulas from being read as markup."""
    if what == "data":
        lines.clear()
    for number in range(len(lines) - 1, 0, -1):  # a block that is set in ends with a blank line
        if lines[number - 1].startswith(" ") and lines[number].lstrip() == lines[number] != "":
            lines.insert(number, "")
    for number, line in enumerate(lines):
        for target in re.findall(r":(?:class|func|meth|mod|data|attr):`~?([\w.]+)`", line):
            # The bare name of a method may stand in the docstring of its class and in those of its fellows.
            if not any(map(objects_called, (target, f"{name}.{target}", f"{name.rpartition('.')[0]}.{target}"))):
                logger.warning("%s refers to %s, which does not exist", name, target)
        pieces = re.split(r"(``.*?``|`[^`]+`|(?<![\w*])\*\w[^*]*\*(?![\w*]))", line)
        lines[number] = "".join(piece if k % 2 else re.sub(r"([|*])", r"\\\1", piece) for k, piece in enumerate(pieces))


pages: dict[int, tuple[str, Any]] = {}
"""Name and place of every object on a page, by the object's identity."""


def follow(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Lead a reference in a docstring to the page of its object; what is on no page is shown without a link.

    Docstrings name objects by their file, or within it by the name alone; pages have them by their package. Types in
    signatures are of other packages, too.
    """
    if node.get("refdomain") != "py":
        return None
    if not pages:
        for full, entry in env.get_domain("py").objects.items():
            pages.update({id(value): (full, entry) for value in objects_called(full)})
    for value in objects_called(node["reftarget"]):
        if id(value) in pages:
            full, entry = pages[id(value)]
            return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, full)
    return content


def setup(app: Any) -> None:
    """Hook in what is above."""
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-process-docstring", prepare_docstring, priority=400)  # before sections are read
    app.connect("autodoc-process-docstring", describe_constant, priority=600)  # and this after it
    app.connect("missing-reference", follow)
