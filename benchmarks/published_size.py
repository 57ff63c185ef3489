"""Memory and time of the model at its published size on this machine.

    python benchmarks/published_size.py

Writes a random model of the published shapes (bf16, 6.4 GB, removed afterwards), then in a fresh
process loads it as it is, writes 8 tokens for an X-ray and runs 2 Euler steps at 256 x 256, and
prints the time of each part and the peak resident memory.
"""

import dataclasses
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro
from common import machine
from conversion import config_of, write_source

EXAMPLE = Path(__file__).parent.parent / "examples" / "nih_0823b2557d1225f4.jpg"


@dataclasses.dataclass
class Arguments:
    """What to run."""

    layers: int | None = None
    """Layers of the decoder and the vision tower; the published number by default."""
    new_tokens: int = 8
    steps: int = 2
    """Euler steps."""
    size: int = 256
    """Side of the image in pixels."""
    checkpoint: str | None = None
    """Used instead of a random model; also passes the checkpoint to the fresh process."""


def measure(a: Arguments) -> None:
    """Loads and runs in this process."""
    from unix_jax import UniXPipeline

    begin = time.perf_counter()

    def lap(what: str) -> None:
        nonlocal begin
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        elapsed = time.perf_counter() - begin
        print(f"{what:34s} {elapsed:8.1f} s   peak {peak:5.1f} GiB", flush=True)
        begin = time.perf_counter()

    assert a.checkpoint is not None
    pipe = UniXPipeline.from_pretrained(a.checkpoint, compilation_cache=False)
    lap("load")
    prompt = [5, 6, 7, 8, 9, 10, 11, 12]
    for attempt in ("compile and run", "run"):
        ids = pipe.generate_report_ids([str(EXAMPLE)], prompts=prompt, max_new_tokens=a.new_tokens)
        lap(f"report, {len(ids[0])} tokens, {attempt}")
    for attempt in ("compile and run", "run"):
        image = pipe.generate_image(
            prompt, height=a.size, width=a.size, num_inference_steps=a.steps, output_type="np"
        )
        lap(f"image, {a.steps} steps, {attempt}")
    print(f"image {image.shape}, values {image.min():.2f} to {image.max():.2f}")


def main(a: Arguments) -> None:
    if a.checkpoint is not None:
        measure(a)
        return
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "source"
        write_source(source, config_of(a.layers))
        options = [
            f"--{field.name.replace('_', '-')}={getattr(a, field.name)}"
            for field in dataclasses.fields(a)
            if getattr(a, field.name) is not None
        ]
        # A fresh process, so that the peak is that of loading and running alone.
        command = [sys.executable, __file__, *options, f"--checkpoint={source}"]
        sys.exit(subprocess.run(command).returncode)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
