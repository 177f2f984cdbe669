"""The directive ``method-table``: the methods as `imbmargin methods` prints them."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from imbmargin.benchmark.cli import method_rows


class MethodTable(SphinxDirective):
    """A table with a row for each entry of `imbmargin.methods.METHODS`."""

    def run(self) -> list[nodes.Node]:
        """Make the table."""
        header, *rows = method_rows()
        group = nodes.tgroup(cols=len(header))
        group += [nodes.colspec(colwidth=1) for _ in header]
        group += nodes.thead("", _row(header, literal=0))
        group += nodes.tbody("", *[_row(cells, literal=2) for cells in rows])
        return [nodes.table("", group, classes=["method-table"])]


def _row(cells: list[str], literal: int) -> nodes.row:
    """Make a row; the first cells are code."""
    row = nodes.row()
    for i, text in enumerate(cells):
        shown = nodes.literal(text, text) if i < literal else nodes.Text(text)
        row += nodes.entry("", nodes.paragraph("", "", shown))
    return row


def setup(app: Any) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("method-table", MethodTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
