"""Configuration of the documentation: ``sphinx-build -W -n docs docs/_build/html``."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

from imbmargin import __version__  # noqa: E402

project = "imbmargin"
author = "The imbmargin developers"
project_copyright = author
version = release = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "myst_parser",
    "sphinx_gallery.gen_gallery",
    "mathml",
    "method_table",
    "result_files",
    "short_names",
]
exclude_patterns = ["_build", "benchmark", "results/**", "gallery/*.ipynb"]
templates_path = ["_templates"]

# Single backticks in docstrings are names of Python objects where there is such an object.
default_role = "autolink"
autosummary_generate = True
autodoc_typehints = "none"  # numpydoc's Parameters hold the types.
numpydoc_show_class_members = False  # The class template lists them.
# numpydoc's checks, but for sections that not every object needs (ES01, EX01, SA01) and for style:
# symbols such as β begin a description, "as in X" stands for several parameters at once, in an
# order of its own, and a return value that the summary names has no second description.
numpydoc_validation_checks = {
    "all",
    *("ES01", "EX01", "SA01"),
    *("GL02", "PR03", "PR04", "PR08", "RT02", "RT03", "RT04", "SS02"),
}
numpydoc_validation_exclude = {
    # They take the parameters of a class that documents them, and add to them.
    r"(BBN|Distributed|MetaWeightNet|MetaSampler)Classifier$",
    # Methods that do what the interface of scikit-learn or torch says, and say so in a line.
    r"\.[A-Z]\w+\.\w+$",
}
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# The build needs no network, so names of other packages are not links.
nitpick_ignore_regex = [
    (r"py:obj", r"is_fitted|backbone_"),  # Attributes, described where they are.
    (r"py:.*", r"(sklearn|skorch|torch|torchvision|imblearn|numpy|matplotlib)\b.*"),
]

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "image_scrapers": ("matplotlib",),
    "remove_config_comments": True,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
}

html_theme = "pydata_sphinx_theme"
html_title = "imbmargin"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_sidebars = {page: [] for page in ("index", "install", "results", "changelog", "contributing")}
html_theme_options = {
    "logo": {"text": "imbmargin"},
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
}
