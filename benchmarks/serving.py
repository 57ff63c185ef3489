"""Requests per second of `unix-jax serve` with many clients, against one after another.

    python benchmarks/serving.py
    python benchmarks/serving.py --kind images --seconds 120

Two servers run on this machine: one with batches, and one that computes every request alone.
OpenAI's client asks them in turns: many clients at once ask either server, and a single one asks
the second. The requests are the held-out X-rays of the bundled data, or one text with a new seed
each. Needs the extras [serve] and [clean]. The clients share the machine with the servers.
"""

import argparse
import base64
import contextlib
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
from common import machine, print_table

from unix_jax.data.records import image_bytes
from unix_jax.data.sources import open_source

ROOT = Path(__file__).resolve().parents[1]


@contextlib.contextmanager
def server(checkpoint: str, sizes: list[int], window_ms: float) -> Iterator[openai.OpenAI]:
    """A client of a new server that has compiled its batch sizes."""
    command = [
        sys.executable, "-m", "unix_jax", "serve", "--checkpoint", checkpoint, "--model-name", "m",
        "--port", "0", "--window-ms", str(window_ms), "--batch-sizes", *map(str, sizes),
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert run.stdout is not None
        line = run.stdout.readline()
        if not line.startswith("Serving"):
            raise SystemExit("the server did not start")
        url = line.split()[3]
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=600) as client:
            yield client
    finally:
        run.terminate()
        run.wait()


def report_requests(client: openai.OpenAI) -> Callable[[int], object]:
    """Asks for the report of the i-th X-ray."""
    source = open_source(f"manifest:{ROOT / 'examples' / 'cxr'}", "test")
    files = [data for record in source if (data := image_bytes(record)) is not None]  # type: ignore[attr-defined]
    urls = [f"data:image/jpeg;base64,{base64.b64encode(data).decode()}" for data in files]

    def ask(i: int) -> object:
        image = {"type": "image_url", "image_url": {"url": urls[i % len(urls)]}}
        messages = [{"role": "user", "content": [image]}]
        return client.chat.completions.create(model="m", messages=messages)  # type: ignore[arg-type]

    return ask


def image_requests(client: openai.OpenAI) -> Callable[[int], object]:
    """Asks for an image with the i-th seed."""

    def ask(i: int) -> object:
        return client.images.generate(
            model="m", prompt="Large right pleural effusion.", extra_body={"seed": i}
        )

    return ask


def measured(
    ask: Callable[[int], object], clients: int, seconds: float
) -> tuple[float, list[float]]:
    """(requests per second, seconds of each request) of clients that ask without a pause."""
    times: list[float] = []
    errors: list[Exception] = []
    begin = time.perf_counter()
    end = begin + seconds

    def client(number: int) -> None:
        i = number
        while time.perf_counter() < end and not errors:
            start = time.perf_counter()
            try:
                ask(i)
            except Exception as error:
                errors.append(error)
            times.append(time.perf_counter() - start)
            i += clients

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return len(times) / (time.perf_counter() - begin), sorted(times)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default=str(ROOT / "examples" / "nano"))
    parser.add_argument("--kind", choices=("reports", "images"), default="reports")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60, help="of each side, in all rounds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--window-ms", type=float, default=10)
    arguments = parser.parse_args()
    requests = report_requests if arguments.kind == "reports" else image_requests
    seconds = arguments.seconds / arguments.rounds
    many = f"{arguments.clients} clients"
    with (
        server(arguments.checkpoint, arguments.batch_sizes, arguments.window_ms) as batched,
        server(arguments.checkpoint, [1], 0) as alone,
    ):
        sides = {
            f"{many}, batches": (requests(batched), arguments.clients),
            f"{many}, one request at a time": (requests(alone), arguments.clients),
            "1 client": (requests(alone), 1),
        }
        rates: dict[str, list[float]] = {name: [] for name in sides}
        times: dict[str, list[float]] = {name: [] for name in sides}
        for ask, clients in sides.values():
            measured(ask, clients, 1)  # connections, and what is compiled at first use
        for _ in range(arguments.rounds):
            for name, (ask, clients) in sides.items():
                rate, found = measured(ask, clients, seconds)
                rates[name].append(rate)
                times[name] += found
    print(machine())
    first = f"{many}, batches"
    rows = []
    for name in sides:
        ratios = sorted(a / b for a, b in zip(rates[first], rates[name], strict=True))
        quantiles = statistics.quantiles(times[name], n=20) if len(times[name]) > 1 else times[name]
        rows.append(
            [
                name,
                f"{len(times[name])}",
                f"{statistics.median(rates[name]):.2f}",
                f"{statistics.median(times[name]):.2f}",
                f"{quantiles[-1]:.2f}",
                f"{statistics.median(ratios):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})",
            ]
        )
    header = ["", "requests", "per second", "median s", "95 % below s", "batches are faster by"]
    print_table(f"{arguments.kind}, {arguments.seconds:g} s per side", header, rows)


if __name__ == "__main__":
    main()
