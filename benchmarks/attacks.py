"""Time our attacks beside those of Foolbox, torchattacks and ART; write records for docs/performance.md.

    make benchmarks                  # on an idle machine: makes the environments, then runs this file

The gradient unit is the time of one plain eager PyTorch forward and input-gradient pass over the same batch in eval
mode. Every library gets the same network, images (test images that the network gets right, as one batch), threads and
number of steps, in a process of its own (`peers.py`). One round measures everything once, in an order of its own; the
figures are the median and the range over the rounds of time / (steps x unit), the unit taken directly before and after,
because the speed of a shared machine changes from minute to minute. A library that is not installed is left out, and
the record says so. A network that the record holds is not measured again.

The network's weights are frozen. Ours does that by itself; of the others some compute the gradient of trainable weights
too, so each is measured once more with them ("trainable").
"""

import argparse
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from common import NETWORKS, RESULTS, machine, trained, write
from torch import Tensor, fx, nn

from defendpp.data import load

ROOT = Path(__file__).resolve().parent.parent
OURS = "defendpp"
LIBRARIES = ("defendpp, prepared", "defendpp, eager", "Foolbox", "torchattacks", "ART")
EPSILON = 0.2  # of BIM and PGD
SLOW_ROUNDS = 2  # for attacks that cost many times their steps


class Peer:
    """A library at work on one network, in a process of its own.

    offer: "version" and "attacks" (of each, "settings" and whether it is "slow"), or why it is "absent".
    """

    def __init__(self, library: str, python: Path, folder: Path) -> None:
        self.library, self.folder = library, folder
        script = Path(__file__).with_name("peers.py")
        command = [str(each) for each in (python, script, library, folder, torch.get_num_threads())]
        self.process: subprocess.Popen[str] | None = None
        try:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        except OSError as problem:
            self.offer: dict[str, Any] = {"absent": str(problem)}
        else:
            answer = self._answer()
            self.offer = {"absent": answer["error"]} if "error" in answer else answer

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process:
            self.process.communicate()  # closes its input, which ends it

    def attack(self, name: str, *, trainable: bool) -> dict[str, Any]:
        """The "ratio", the "passes" and the adversarial "images" of one attack, or its "error"."""
        assert self.process
        assert self.process.stdin
        try:
            print(json.dumps({"attack": name, "trainable": trainable}), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            return {"error": "its process has ended"}
        answer = self._answer()
        return answer if "error" in answer else {**answer, "images": torch.load(self.folder / f"{self.library}.pt")}

    def _answer(self) -> dict[str, Any]:
        assert self.process
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            return {"error": f"its process ended with status {self.process.wait()}"}
        answer: dict[str, Any] = json.loads(line)
        return answer


def graph(model: nn.Module) -> fx.GraphModule:
    """The same operations as a graph, which loads without the package that the network was written in."""
    traced = fx.symbolic_trace(model)
    for node in traced.graph.nodes:
        node.type = None  # shapes in signatures cannot be stored
    traced.recompile()
    return traced


def measure(
    peers: Sequence[Peer], model: nn.Module, images: Tensor, labels: Tensor, rounds: int
) -> list[dict[str, Any]]:
    """One row a library and attack: ratios, passes, share of images flipped, median L2; or why it failed."""
    rows: dict[tuple[str, str, bool], dict[str, Any]] = {}
    order = random.Random(0)
    for peer in peers:
        if "absent" in peer.offer and peer.library.startswith(OURS):
            raise RuntimeError(f"our own attacks do not run: {peer.offer['absent']}")
    work = [
        (peer, attack, trainable)
        for peer in peers
        for attack in peer.offer.get("attacks", {})
        for trainable in ([False] if peer.library.startswith(OURS) else [False, True])
    ]
    for number in range(rounds):
        for peer, attack, trainable in order.sample(work, len(work)):
            about = peer.offer["attacks"][attack]
            row = rows.setdefault(
                (attack, peer.library, trainable),
                {"attack": attack, "library": peer.library, "settings": about["settings"], "trainable": trainable}
                | {"ratios": []},
            )
            if "error" in row or (about["slow"] and (trainable or number >= SLOW_ROUNDS)):
                continue
            made = peer.attack(attack, trainable=trainable)
            if "error" in made:
                row["error"] = made["error"]
            else:
                row["ratios"].append(round(made["ratio"], 4))
                row |= {"passes": made["passes"], **judged(model, images, labels, made["images"], attack)}
            said = f"failed: {made['error']}" if "error" in made else f"{made['ratio']:6.2f}"
            weights = "trainable" if trainable else "frozen"
            print(f"round {number + 1}/{rounds}  {attack:18s} {peer.library:18s} {weights:9s} {said}", flush=True)
    for row in rows.values():
        row["median"] = statistics.median(row["ratios"]) if row["ratios"] else None
    return [row for row in rows.values() if row["ratios"] or "error" in row]


@torch.no_grad()
def judged(model: nn.Module, images: Tensor, labels: Tensor, adversarial: Tensor, attack: str) -> dict[str, Any]:
    """The share that the network itself gets wrong, of images in [0, 1] and within the budget; median L2 to get there.

    An image that is not flipped counts as infinitely far, so that a library gains nothing by giving up on far ones.
    """
    offset = (adversarial - images).flatten(1)
    allowed = ((adversarial >= 0) & (adversarial <= 1)).flatten(1).all(1)  # false for nan too
    if attack.startswith(("BIM", "PGD")):
        allowed &= offset.abs().amax(1) <= EPSILON + 1e-6
    flipped = allowed & (model(adversarial).argmax(1) != labels)
    median = statistics.median(offset.norm(dim=1).where(flipped, torch.inf).tolist())
    return {"flipped": flipped.float().mean().item(), "median L2": median if math.isfinite(median) else None}


def check_same(present: dict[str, Any], about: dict[str, Any], path: Path) -> None:
    """Raise ValueError where a record that would be added to was made under other circumstances."""
    for key, value in about.items():
        if present.get(key) != value:
            raise ValueError(f"{path} was made with {key} {present.get(key)}, not {value}: --again measures all anew")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--networks", type=Path, default=NETWORKS, help="folder for the networks")
    parser.add_argument("--output", type=Path, default=RESULTS / "attacks.json")
    parser.add_argument(
        "--torchattacks-python",
        type=Path,
        default=ROOT / ".venv" / "torchattacks" / "bin" / "python",
        help="Python of an environment with torch and torchattacks",
    )
    parser.add_argument("--again", action="store_true", help="measure anew, and replace the record")
    arguments = parser.parse_args()
    path: Path = arguments.output
    made = json.loads(path.read_text()) if path.exists() and not arguments.again else {}
    test = load("mnist-5k").test
    every = test.take(len(test)).batch(range(len(test)))  # in random order
    for name in ("undefended", "noise 0.5"):
        if name in made.get("networks", {}):
            print(f"{name}: is in {path}; --again measures it anew")
            continue
        model = trained(name, arguments.networks).classifier.requires_grad_(False)
        with torch.no_grad():
            right = (model(every[0]).argmax(1) == every[1]).nonzero()[: arguments.images, 0]
        images, labels = every[0][right], every[1][right]
        with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
            torch.save((graph(model), images, labels), Path(folder) / "given.pt")
            peers = []
            for library in LIBRARIES:
                python = arguments.torchattacks_python if library == "torchattacks" else Path(sys.executable)
                peers.append(running.enter_context(Peer(library, python, Path(folder))))
            about = {
                **machine(),
                "images": len(images),
                "rounds": arguments.rounds,
                "libraries": {
                    peer.library: peer.offer.get("version") or f"absent: {peer.offer['absent']}" for peer in peers
                },
            }
            print(json.dumps(about, indent=1), flush=True)
            if made:
                check_same(made, about, path)
            rows = measure(peers, model, images, labels, arguments.rounds)
        made = {**about, "networks": {**made.get("networks", {}), name: rows}}
        write(made, path)


if __name__ == "__main__":
    main()
