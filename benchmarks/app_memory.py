"""Memory of the web page's process after many varied requests.

    python benchmarks/app_memory.py
    python benchmarks/app_memory.py --requests 200 --programs 32

The requests are the page's own actions on the bundled model, without a browser: images of every
size, solver, renormalisation, guidance and number of steps, and reports of every length, with and
without sampling. The script prints the resident memory after every 20 requests.
"""

import argparse
import os
import random
import time
from pathlib import Path

import psutil
from common import machine

from unix_jax.app.actions import Stop
from unix_jax.app.choices import Limits
from unix_jax.app.image_actions import ImageActions
from unix_jax.app.image_models import image_model
from unix_jax.app.report_actions import ReportActions
from unix_jax.inference.pipeline import UniXPipeline
from unix_jax.inference.programs import ProgramBudget
from unix_jax.inference.sampling import RENORMS, SOLVERS
from unix_jax.web.shapes import image_sides

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default=str(ROOT / "examples" / "nano"))
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--programs", type=int, default=Limits.programs)
    arguments = parser.parse_args()
    pipe = UniXPipeline.from_pretrained(arguments.checkpoint)
    budget = ProgramBudget(arguments.programs)
    shared = {"limits": Limits(), "unchanged": None, "programs": budget, "empty": ""}
    actions = ImageActions(images=image_model(pipe, Limits()), **shared)
    reports = ReportActions(pipe=pipe, **shared)
    xray = next(iter(sorted((ROOT / "examples").glob("*.jpg")))).read_bytes()
    chosen = random.Random(0)
    sides, process = image_sides(pipe.config), psutil.Process(os.getpid())
    shapes, begin, largest = set(), time.monotonic(), 0.0

    def resident() -> float:
        return process.memory_info().rss / 2**20

    print(machine())
    print(f"at the start: {resident():.0f} MB")
    session = ()
    for i in range(1, arguments.requests + 1):
        if chosen.random() < 0.5:
            choices = ("x " * chosen.choice((1, 40)), chosen.choice((16, 100, 200, 400)),
                       chosen.choice((0.0, 1.0)), 1.0, i)  # fmt: skip
            shapes.add(("report", len(choices[0]), choices[1], choices[2]))
            read = list(reports.read_upload(Stop(), xray))[-1][0]
            *_, state = reports.write_report(Stop(), session, read, *choices)
            session = state[2]
        else:
            steps, guidance = chosen.choice((2, 3)), chosen.choice((1.0, 2.0))
            common = (chosen.choice(sides), 3.0, chosen.choice(RENORMS), chosen.choice(SOLVERS))
            shapes.add(("image", guidance > 1, *common))
            *_, state = actions.generate(Stop(), session, "effusion", i, steps, guidance, *common)
            session = state[1]
        if "Done" not in state[-1]:
            raise SystemExit(f"request {i} failed: {state[-1]}")
        largest = max(largest, resident())
        if i % 20 == 0:
            seconds = time.monotonic() - begin
            print(
                f"after {i} requests, {len(shapes)} different: {resident():.0f} MB, at most "
                f"{largest:.0f} MB; programs freed {budget.freed} times; {seconds:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
