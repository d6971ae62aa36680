"""Peak memory and time of evaluating 1,000, 10,000 and 60,000 images; write records for docs/performance.md.

    python benchmarks/scale.py                        # on an idle machine, with `pip install -e .`

Every size runs in a process of its own, which holds the same 60,000 random images of 28x28 (47 MB) and evaluates some
of them: a network clean and under FGSM, adversarial set and records written. Peak memory is the largest resident set of
the process, with Python, torch and the images.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import RESULTS, machine, write

SIZES = (1_000, 10_000, 60_000)


def evaluate(n: int, folder: Path) -> dict[str, float]:
    """Evaluate `n` images in this process; seconds and peak memory in MB."""
    import torch

    from defendpp import adversarial_sets, evaluation, networks, threats
    from defendpp.data import Images, InMemory

    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (max(SIZES), 1, 28, 28), generator=generator, dtype=torch.uint8)
    rows = torch.arange(n)
    split = Images(InMemory(pixels), rows, rows % 10, rows)
    torch.manual_seed(0)
    classifier = networks.build("resnet18", classes=10, channels=1, image_size=28, width=16)
    network = adversarial_sets.network("random", classifier)
    started = time.perf_counter()
    records = evaluation.evaluate([network], [threats.fgsm(0.2)], split, folder, data="random images")
    seconds = time.perf_counter() - started
    assert len(records) == 2 * n
    return {"seconds": seconds, "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, help="evaluate so many images in this process, and print the figures")
    arguments = parser.parse_args()
    if arguments.images is not None:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(evaluate(arguments.images, Path(folder))))
        return
    made: dict[int, list[dict[str, float]]] = {n: [] for n in SIZES}
    for number in range(arguments.rounds):
        for n in SIZES:
            command = [sys.executable, __file__, "--images", str(n)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            made[n].append(json.loads(done.stdout))
            print(f"round {number + 1}/{arguments.rounds}  {n} images", made[n][-1], flush=True)
    content = {
        **machine(),
        "rounds": arguments.rounds,
        "sizes": [
            {
                "images": n,
                "seconds": [round(each["seconds"], 2) for each in measured],
                "peak MB": [round(each["peak MB"], 1) for each in measured],
                "peak to 1,000 images": [
                    round(each["peak MB"] / first["peak MB"], 4)
                    for each, first in zip(measured, made[SIZES[0]], strict=True)
                ],
                "microseconds an image": round(1e6 * statistics.median(each["seconds"] for each in measured) / n, 1),
            }
            for n, measured in made.items()
        ],
    }
    write(content, RESULTS / "scale.json")


if __name__ == "__main__":
    main()
