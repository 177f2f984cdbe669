"""Result files beside the pages: links to their folders lead to a list of what is there."""

from __future__ import annotations

import html
import os
import re
import shutil
from pathlib import Path
from typing import Any

FOLDERS = ("benchmark", "results", "speed")
_SKIPPED = shutil.ignore_patterns("report.html")


def _link_folders(app: Any, page: str, source: list[str]) -> None:
    """Write links to folders as `folder:` addresses, which `myst_url_schemes` resolves."""
    here = Path(app.srcdir, page).parent

    def rewrite(match: re.Match[str]) -> str:
        target = match[1]
        return f"](folder:{target})" if (here / target).is_dir() else match[0]

    source[0] = re.sub(r"\]\(([\w./-]+)\)", rewrite, source[0])


def _copy_folders(app: Any, error: Exception | None) -> None:
    if error is not None or app.builder.format != "html":
        return
    for name in FOLDERS:
        shutil.copytree(
            Path(app.srcdir, name), Path(app.outdir, name), dirs_exist_ok=True, ignore=_SKIPPED
        )
        for folder, folders, files in os.walk(Path(app.outdir, name)):
            names = [f"{inner}/index.html" for inner in sorted(folders)]
            names += [file for file in sorted(files) if file != "index.html"]
            title = Path(folder).relative_to(app.outdir).as_posix()
            Path(folder, "index.html").write_text(_list_page(title, names), encoding="utf-8")


def _list_page(title: str, names: list[str]) -> str:
    shown = [html.escape(name) for name in names]
    items = "\n".join(
        f'<li><a href="{name}">{name.removesuffix("/index.html")}</a></li>' for name in shown
    )
    title = html.escape(title)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{title}</title>\n<h1>{title}</h1>\n<ul>\n{items}\n</ul>\n</html>\n"
    )


def setup(app: Any) -> dict[str, bool]:
    """Register the two steps."""
    app.config.myst_url_schemes |= {"folder": {"url": "{{path}}/index.html"}}
    app.connect("source-read", _link_folders)
    app.connect("build-finished", _copy_folders)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
