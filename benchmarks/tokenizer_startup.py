"""Start-up and memory of two readers of tokenizer.json: `tokenizers` alone, and `AutoTokenizer`.

    python benchmarks/tokenizer_startup.py DIRECTORY

Each reader runs in a process of its own, in turns: import, load, encode one sentence. Needs
transformers (the extra [torch]). It prints seconds (median and range) and the largest memory.
"""

import argparse
import statistics
import subprocess
import sys

RUN = """
import resource, sys, time
start = time.perf_counter()
{load}
assert encode("No acute finding.")
seconds = time.perf_counter() - start
print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
LOAD = {
    "tokenizers": """
import tokenizers
backend = tokenizers.Tokenizer.from_file(sys.argv[1] + "/tokenizer.json")
encode = lambda text: backend.encode(text, add_special_tokens=False).ids
""",
    "AutoTokenizer": """
from transformers import AutoTokenizer
backend = AutoTokenizer.from_pretrained(sys.argv[1])
encode = lambda text: backend.encode(text, add_special_tokens=False)
""",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", help="with tokenizer.json")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in LOAD}
    for _ in range(arguments.repeats):
        for name, load in LOAD.items():
            done = subprocess.run(
                [sys.executable, "-c", RUN.format(load=load), arguments.directory],
                capture_output=True,
                text=True,
                check=True,
            )
            seconds, megabytes = map(float, done.stdout.split())
            found[name].append((seconds, megabytes))
    for name, rows in found.items():
        times = sorted(seconds for seconds, _ in rows)
        print(
            f"{name}: {statistics.median(times):.2f} s ({times[0]:.2f} to {times[-1]:.2f}), "
            f"{max(megabytes for _, megabytes in rows):.0f} MB"
        )


if __name__ == "__main__":
    main()
