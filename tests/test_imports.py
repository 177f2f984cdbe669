"""Imports run one way, and importing the package stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import imbmargin

ROOT = Path(imbmargin.__file__).parent

# A module may import from the layers before its own, and from its own.
LAYERS = [
    {
        "_version",
        "_epochs",
        "_figure",
        "_hardware",
        "_memory",
        "_optimizers",
        "_tangents",
        "weights",
        "metrics",
        "data.imbalance",
        "data.selection",
        "randomness",
    },
    {"losses", "modules", "data", "samplers", "datasets"},
    {"parts", "callbacks", "checkpoint", "portable", "description"},
    {"parameters"},
    {"contract", "resume"},
    {"stored"},
    {"loop"},
    {"steps"},
    {"estimator"},
    {
        "_paired",
        "pretraining",
        "meta",
        "meta_sampler",
        "bbn",
        "_wrapper",
        "posthoc",
        "prior",
        "two_stage",
        "distributed",
    },
    {"methods", "_batched", "search", "persistence", "export"},
    {"benchmark"},
]
ANYWHERE = {"plotting": {"metrics", "_figure"}}


def layer_of(name):
    for level, names in enumerate(LAYERS):
        if name in names or (level != 0 and name.split(".")[0] in names):
            return level
    raise AssertionError(f"{name} has no layer: add it to LAYERS")


def imports_of(path):
    """Yield the modules of this package that a file imports, as dotted names without it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by the full name"
            if node.module == "imbmargin":
                yield from (alias.name for alias in node.names)
            elif node.module and node.module.startswith("imbmargin."):
                yield node.module.removeprefix("imbmargin.")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("imbmargin."):
                    yield alias.name.removeprefix("imbmargin.")


FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    own = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for name in imports_of(path):
        if own in ANYWHERE:
            assert name.split(".")[0] in ANYWHERE[own], f"{own} imports {name}"
        elif name in ANYWHERE:
            assert layer_of(own) == len(LAYERS) - 1, f"{own} imports {name}"
        else:
            assert layer_of(name) <= layer_of(own), f"{own} imports {name}"


def test_losses_never_import_skorch_or_scikit_learn():
    for path in (ROOT / "losses").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in getattr(node, "names", [])]
            names.append(getattr(node, "module", None) or "")
            assert not any(name.startswith(("skorch", "sklearn")) for name in names), path


@pytest.mark.parametrize(
    "package", ["accelerate", "matplotlib", "onnx", "polars", "skops", "torchvision"]
)
def test_importing_the_package_leaves_out(package):
    code = f"import imbmargin, sys; sys.exit({package!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_exist_and_are_documented():
    for name in imbmargin.__all__:
        value = getattr(imbmargin, name)
        assert name.isupper() or name == "__version__" or value.__doc__, name
