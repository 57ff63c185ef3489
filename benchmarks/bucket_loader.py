"""Samples per second of the data loader from a bucket, against the same files on local disk.

    python benchmarks/bucket_loader.py
    python benchmarks/bucket_loader.py --latency 0.05 --threads 4

X-rays with noise as a detector's are written as `unix-jax data write --max-side` stores them. A
server on loopback, a process of its own, answers as Google Cloud Storage does, after the latency.
Both ways take turns. Per round, the ratio is that of the samples per second, bucket to local; the
CPU seconds are those of the loader's process, which pays for the requests.

Needs the extras `gcs` and `train`.
"""

import dataclasses
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from common import machine, print_table
from PIL import Image

ROOT = Path(__file__).parent.parent
XRAY = ROOT / "examples" / "nih_0823b2557d1225f4.jpg"
TINY = ROOT / "tests" / "golden" / "tiny" / "checkpoint"


@dataclasses.dataclass
class Arguments:
    """Images and effort."""

    images: int = 256
    side: int = 1024
    """Longest side of the images."""
    latency: float = 0.02
    """Seconds before each answer."""
    threads: int = 1
    """Of the loader; the server needs cores, too."""
    rows: int = 8
    rounds: int = 5


def serve(folder: str, latency: float, port: Any) -> None:
    """Objects of a bucket that are files in a folder; runs until the process is ended."""
    import asyncio
    import urllib.parse

    from aiohttp import web

    contents = {file.name: file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()}

    def described(path: str) -> dict[str, Any]:
        size = len(contents[path.rpartition("/")[2]])
        return {"kind": "storage#object", "name": path, "size": str(size), "bucket": "bucket"}

    async def answer(request: web.Request) -> web.Response:
        await asyncio.sleep(latency)
        path = urllib.parse.unquote(request.raw_path.partition("?")[0].rpartition("/o/")[2])
        name = path.rpartition("/")[2]
        if request.path.endswith("/o"):
            start = request.query.get("prefix", "")
            items = [described(f"data/{n}") for n in contents if f"data/{n}".startswith(start)]
            return web.json_response({"items": items})
        if name not in contents:
            return web.json_response({}, status=404)
        if "alt=media" not in request.query_string and "/download/" not in request.path:
            return web.json_response(described(path))
        return web.Response(body=contents[name])

    async def run() -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server: Any = site._server
        port.value = server.sockets[0].getsockname()[1]
        await asyncio.Event().wait()

    asyncio.run(run())


def write_images(folder: Path, count: int, side: int) -> None:
    """A manifest and JPEG files."""
    picture = Image.open(XRAY).convert("L").resize((side, side))
    pixels, rng = np.asarray(picture, np.float32), np.random.default_rng(0)
    lines = []
    for number in range(count):
        noisy = np.clip(pixels + rng.normal(0, 3, pixels.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{number}.jpg", quality=95)
        lines.append(json.dumps({"image": f"{number}.jpg", "findings": "Clear lungs."}) + "\n")
    (folder / "manifest.jsonl").write_text("".join(lines))


def epochs(source: str, a: Arguments) -> Callable[[], int]:
    """Reads all samples once; returns their number."""
    from unix_jax.checkpoints.load import load_config
    from unix_jax.data.config import DataConfig
    from unix_jax.data.loader import Loader
    from unix_jax.data.samples import record_samples
    from unix_jax.data.sources import open_source
    from unix_jax.preprocessing.text import Tokenizer

    config, _ = load_config(TINY)
    # The published model's image; the text does not matter here.
    config = dataclasses.replace(
        config, vision=dataclasses.replace(config.vision, image_size=384, patch_size=16)
    )
    tokenizer = Tokenizer.from_directory(TINY, config.special_tokens)
    data = DataConfig(
        source=source, rows=a.rows, und_tokens=1024, vit_images=1, threads=a.threads, epochs=1
    )
    samples = record_samples(open_source(source), tokenizer, config, data)

    def run() -> int:
        return sum(info.samples for _, info in Loader(samples, config, data))

    return run


def main(a: Arguments) -> None:
    print(machine())
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "data"
        folder.mkdir()
        write_images(folder, a.images, a.side)
        context = multiprocessing.get_context("spawn")
        port = context.Value("i", 0)
        server = context.Process(target=serve, args=(str(folder), a.latency, port), daemon=True)
        server.start()
        while not port.value:
            time.sleep(0.05)
        os.environ |= {
            "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port.value}",
            "UNIX_JAX_CACHE": str(Path(place) / "cache"),
        }
        runs = {
            "local files": epochs(f"manifest:{folder}", a),
            "bucket": epochs("manifest:gs://bucket/data", a),
        }
        wall: dict[str, list[float]] = {name: [] for name in runs}
        cpu: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(a.rounds + 1):
            for name, run in runs.items():
                begin = time.perf_counter(), time.process_time()
                assert run() == a.images
                if turn:  # the first one warms up
                    wall[name].append((time.perf_counter() - begin[0]) / a.images)
                    cpu[name].append((time.process_time() - begin[1]) / a.images)
        server.terminate()

    def compared(seconds: dict[str, list[float]], name: str) -> str:
        found = sorted(
            x / y for x, y in zip(seconds["local files"], seconds[name], strict=True)
        )  # fmt: skip
        return f"{statistics.median(found):.3f} ({found[0]:.3f} to {found[-1]:.3f})"

    rows = [
        [
            name,
            f"{1 / statistics.median(wall[name]):.0f}",
            compared(wall, name),
            f"{statistics.median(cpu[name]) * 1000:.2f}",
            compared(cpu, name),
        ]
        for name in runs
    ]
    print_table(
        f"{a.images} JPEG files, longest side {a.side}, {1000 * a.latency:.0f} ms before an answer",
        ["", "samples/s", "ratio (spread)", "CPU ms per sample", "ratio (spread)"],
        rows,
    )


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
