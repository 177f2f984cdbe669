"""The README's code runs, and its numbers are those that were measured."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imbmargin.benchmark.arguments import make_parser
from imbmargin.methods import METHODS, TABLE1
from tests.speed.__main__ import CASES
from tests.speed.measure import MARK, as_page

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_code_runs_in_the_order_of_the_page(tmp_path, monkeypatch, capsys):
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(6):
            pixels = np.full((16, 16, 3), 255 * (name == "dog"), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in blocks("python"):
        # A user waits for 200 epochs; here it is shown that the call is right.
        exec(code.replace("max_epochs=200", "max_epochs=3"), names)
    assert names["search"].best_score_ > 0.8
    assert capsys.readouterr().out.count("0.") == 2


def test_the_number_of_methods():
    assert f"and for {len(METHODS) - len(TABLE1)} methods" in README.replace("\n", " ")


def test_the_commands_are_understood():
    lines = [line for block in blocks("bash") for line in block.splitlines() if line]
    commands = [
        command.split("#")[0].split("&&")[-1].split()
        for command in lines
        if "imbmargin " in command.split("#")[0]
    ]
    assert len(commands) == 5
    for command in commands:
        assert command[0] == "imbmargin"
        make_parser().parse_args(command[1:])


@pytest.mark.parametrize("heading", ["digits", "breast_cancer"])
def test_the_tables_are_those_of_the_report(heading):
    report = (ROOT / "docs" / "benchmark" / "report.md").read_text(encoding="utf-8")
    section = report.split(f"## {heading}")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert len(rows) == 11
    assert "\n".join(rows) in README


@pytest.mark.parametrize(("name", "folder"), [("speed", "speed"), ("speed_gpu", "speed/cuda")])
def test_the_tables_of_a_speed_page_are_those_of_its_files(name, folder):
    page = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    files = [ROOT / "docs" / folder / f"{case}.json" for case in CASES]
    assert any(path.exists() for path in files)
    assert page.partition(MARK)[2].strip() == as_page(files).strip()


def test_files_that_are_linked_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
