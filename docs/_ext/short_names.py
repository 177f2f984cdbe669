"""Docstrings name objects of other modules of the package as the code does: by their short name."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.util.nodes import make_refnode


def _resolve(app: Any, env: Any, node: Any, content: nodes.Element) -> nodes.Node | None:
    """Link a short name, if one object of the reference has it."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    found = {
        (entry.docname, entry.node_id)
        for name, entry in env.get_domain("py").objects.items()
        if name.endswith(f".{target}")
    }
    if len(found) != 1:
        return None
    page, anchor = found.pop()
    return make_refnode(app.builder, node["refdoc"], page, anchor, content, target)


def setup(app: Any) -> dict[str, bool]:
    """Register the step."""
    app.connect("missing-reference", _resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
