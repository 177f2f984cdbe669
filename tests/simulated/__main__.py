"""Run the tests for CUDA devices on a simulated one: ``python -m tests.simulated``.

It finds tensors that lie on another device than they are needed on. What is CUDA's own, such as
speed, asynchronous copies and half precision, it cannot show. With ``--without-float64`` the device
lacks what Apple's GPUs lack; the tests of float16 and of float64 rows then fail, which only CUDA
gets. The package and its tests are copied to a folder where they say "simulated" for "cuda".
Arguments go to pytest. A C++ compiler and ninja are needed.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.simulated.device import NAME

ROOT = Path(__file__).parent.parent.parent
WORDS = [
    (r"\btorch\.cuda\b", f"torch.{NAME}"),
    (r'"cuda(:\d)?"', rf'"{NAME}\1"'),
    (r"\.is_cuda\b", f".is_{NAME}"),
    (r"\.cuda\(\)", f'.to("{NAME}")'),
    (r"\bGradScaler\(\)", f'GradScaler("{NAME}")'),
    # The marker keeps its name.
    (rf'get_closest_marker\("{NAME}"\)', 'get_closest_marker("cuda")'),
]


def main() -> int:
    """Copy, and run pytest there."""
    with tempfile.TemporaryDirectory() as folder:
        for part in ("imbmargin", "tests"):
            shutil.copytree(ROOT / part, Path(folder, part))
        for path in Path(folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            for word, other in [] if path.parent.name == "simulated" else WORDS:
                text = re.sub(word, other, text)
            path.write_text(text, encoding="utf-8")
        for name in ("pyproject.toml", "README.md", "docs", "examples", ".ci"):
            os.symlink(ROOT / name, Path(folder, name))
        command = [sys.executable, "-m", "pytest", "--cuda", "-p", "tests.simulated.device"]
        environment = {**os.environ, "PYTHONPATH": folder}
        options = ["-p", "no:cacheprovider", *(sys.argv[1:] or ["tests"])]
        return subprocess.run([*command, *options], cwd=folder, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
