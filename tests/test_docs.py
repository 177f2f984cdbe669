"""The pages' code runs, the notebooks run, and the reference has every public name."""

import ast
import importlib
import importlib.util
import json
import pkgutil
import re
import shlex
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest

import imbmargin
from imbmargin.benchmark.arguments import make_parser
from imbmargin.benchmark.cli import method_rows
from imbmargin.methods import METHODS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("[gi]*.md"), *DOCS.glob("guide/*.md")])
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))

# What stands behind the arguments of the estimators and of the command line; no user imports it.
INTERNAL = {
    *("benchmark", "checkpoint", "contract", "estimator", "parts", "randomness", "resume"),
    *(
        "description",
        "parameters",
        "portable",
        "stored",
        "steps",
        "data.cifar",
        "data.images",
        "data.imbalance",
        "data.inputs",
        "data.keel",
        "data.selection",
        "data.tables",
        "data.transfer",
    ),
}
ERRORS_ONLY = {"loop"}


def public_modules():
    """Yield the names of the public modules below imbmargin."""
    for info in pkgutil.walk_packages(imbmargin.__path__):
        names = [info.name]
        if info.ispkg:
            inner = pkgutil.iter_modules(importlib.import_module(f"imbmargin.{info.name}").__path__)
            # Of losses and modules the package itself is the public place.
            if info.name == "data":
                names += [f"data.{part.name}" for part in inner]
        for name in names:
            if not name.startswith("_") and name not in INTERNAL:
                yield name


def in_reference():
    """Yield what the reference page lists, as full names."""
    module = None
    for line in (DOCS / "reference.rst").read_text(encoding="utf-8").splitlines():
        if match := re.match(r"\.\. (?:current)?module:: (\S+)", line):
            module = match[1]
        elif match := re.fullmatch(r"   ([\w.]+)", line):
            yield f"{module}.{match[1]}"


def resolve(name):
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("name", ["", *sorted(set(public_modules()))])
def test_every_public_name_is_in_the_reference(name):
    listed = {id(resolve(entry)) for entry in in_reference()}
    module = importlib.import_module(f"imbmargin.{name}".rstrip("."))
    names = set(getattr(module, "__all__", ())) - {"__version__"}
    if name in ERRORS_ONLY:
        names = {entry for entry in names if entry.endswith("Error")}
    missing = sorted(entry for entry in names if id(getattr(module, entry)) not in listed)
    assert not missing, f"add {missing} of {module.__name__} to docs/reference.rst"


def test_the_reference_has_each_name_once():
    listed = list(in_reference())
    assert len(listed) == len(set(listed))
    assert len(listed) > 100


def test_the_method_table_has_every_method():
    assert [row[0] for row in method_rows()[1:]] == list(METHODS)


def blocks(page, language):
    """Return the blocks of a language, and the text block that follows each, or ""."""
    text = page.read_text(encoding="utf-8")
    pattern = rf"^```{language}\n(.*?)^```\n(?:\n```text\n(.*?)^```)?"
    return re.findall(pattern, text, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def no_windows():
    matplotlib.use("agg")
    yield
    plt.close("all")


@pytest.mark.usefixtures("no_windows")
@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem
)
def test_the_code_of_a_page_runs_and_its_errors_are_those_shown(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for code, error in blocks(page, "python"):
        if not error:
            exec(code, names)
            continue
        with pytest.raises(Exception) as caught:  # noqa: PT011 (its type and text are the block's)
            exec(code, names)
        shown = f"{caught.type.__name__}: {caught.value}"
        pattern = re.escape(error.strip()).replace(re.escape("..."), r"\d+")
        assert re.fullmatch(pattern, shown), shown


def test_code_that_a_test_cannot_run_is_python():
    found = [code for page in PAGES for code, _ in blocks(page, re.escape("{code-block} python"))]
    assert len(found) == 7
    for code in found:
        ast.parse(code)


def test_the_commands_of_the_pages_are_understood():
    lines = [
        line.split("#")[0].split("&&")[-1].strip()
        for page in PAGES
        for block, _ in blocks(page, "bash")
        for line in block.splitlines()
    ]
    commands = [shlex.split(line) for line in lines if line.startswith("imbmargin ")]
    assert len(commands) > 5
    for command in commands:
        make_parser().parse_args(command[1:])


@pytest.mark.usefixtures("no_windows")
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    cells = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    names = {"__name__": "notebook"}
    for code in cells:
        # A reader waits for a minute; here it is shown that every cell runs.
        exec(re.sub(r'(max_epochs"?( =|:)) \d+', r"\1 2", code), names)
    assert len(cells) > 5


def test_broken_links_anchors_and_images_of_a_site_are_found(tmp_path):
    spec = importlib.util.spec_from_file_location("check_site", DOCS / "check_site.py")
    check_site = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check_site)
    good = '<p id="here"><a href="#here">1</a><a href="b.html#there">2</a><a href="https://x">3</a>'
    bad = '<p id="there"><a href="a.html#gone">1</a><a href="c.html">2</a><img src="d.png">'
    (tmp_path / "a.html").write_text(good)
    (tmp_path / "b.html").write_text(bad)
    found = check_site.broken_links(tmp_path)
    assert found == [f"b.html -> {link}" for link in ("a.html#gone", "c.html", "d.png")]


def test_two_notebooks_without_output():
    assert len(NOTEBOOKS) == 2
    for notebook in NOTEBOOKS:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        assert not any(cell.get("outputs") for cell in cells)
