"""The command line of the speed comparison."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

from tests.speed import boosting, images, losses, methods, prediction, search, tables
from tests.speed.measure import as_table, write_json, write_page

CASES = {
    "tables": tables.run,
    "images": images.run,
    "losses": losses.run,
    "prediction": prediction.run,
    "search": search.run,
    "methods": methods.run,
    "boosting": boosting.run,
}


def main(argv: list[str] | None = None) -> None:
    """Run the cases, print their tables and write their files."""
    parser = argparse.ArgumentParser(prog="python -m tests.speed", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; or all")
    parser.add_argument("--rounds", type=int, help="rounds of each comparison")
    parser.add_argument("--threads", type=int, help="threads of torch and of BLAS; default: theirs")
    parser.add_argument("--out", type=Path, default=Path("build/speed"), help="folder of the files")
    parser.add_argument("--page", type=Path, help="page whose tables are written anew, from --out")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run at all?")
    options = parser.parse_args(argv)
    unknown = set(options.cases) - CASES.keys()
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    if options.threads:
        torch.set_num_threads(options.threads)
    with threadpool_limits(options.threads):
        for case in options.cases or CASES:
            results = []
            for result in CASES[case](options.rounds, options.quick, options.device):
                results.append(result)
                print(as_table(result), flush=True)
            print(f"\nwritten to {write_json(options.out, case, results)}", flush=True)
    if options.page:
        write_page(options.page, [options.out / f"{case}.json" for case in CASES])


if __name__ == "__main__":
    main()
