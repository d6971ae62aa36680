"""Train a classifier on an objective: `fit`, which knows no defence by name. Lightning runs the loop.

Every epoch starts from random numbers derived from (seed, epoch) and ends with a checkpoint, so that a training that
was killed at any moment resumes at the last finished epoch and ends in the same weights as one never stopped.
"""

import logging
import math
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
import torch.distributed
from jaxtyping import Float, Int
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from defendpp.data import Images, batches, digest
from defendpp.data.images import Augment
from defendpp.execution import EXECUTIONS, Execution, arrange, executed, fastest
from defendpp.networks import are_probabilities, evaluating, fingerprint, home
from defendpp.objective import Objective, Terms
from defendpp.progress import spoken

LearningRate = Callable[[float], float]
"""The learning rate after a number of epochs, which is a fraction within an epoch."""

Batch = tuple[Float[Tensor, "batch channel height width"], Int[Tensor, " batch"]]


@dataclass(frozen=True)
class Phase:
    """A number of epochs on some of the objective's terms."""

    epochs: int
    terms: str = ""
    """Only terms whose name starts with this are trained on; "" is all of them."""

    def has(self, term: str) -> bool:
        """Whether a term of this name is trained on."""
        return term.startswith(self.terms)


def joint(epochs: int) -> list[Phase]:
    """Joint learning (section 3.4): all terms in every epoch."""
    return [Phase(epochs)]


def alternating(cycles: int, *, auto_encoder_epochs: int, classifier_epochs: int, joint_epochs: int) -> list[Phase]:
    """Alternative learning (section 3.4): cycles of auto-encoder and classifier, then both.

    The paper trains two networks and copies the encoder's weights from one to the other and back. Here the shared
    blocks are one set of weights, so that training the terms in turn, each phase with fresh momentum, is that copying.
    """
    cycle = [Phase(auto_encoder_epochs, "reconstruction"), Phase(classifier_epochs, "classification")]
    return [phase for phase in [*cycle * cycles, Phase(joint_epochs)] if phase.epochs > 0]


def step_decay(initial: float, *, every: float, factor: float = 0.1) -> LearningRate:
    """The paper's schedule (section 4.1): times `factor` after every `every` epochs.

    Raises `ValueError` unless all three are above 0.
    """
    _check_above_zero(initial=initial, every=every, factor=factor)
    return lambda epoch: initial * factor ** (epoch // every)


def one_cycle(peak: float, *, epochs: float, warm_up: float = 0.25) -> LearningRate:
    """For short trainings: linearly from 0 up to `peak` in the first `warm_up` of the epochs, then linearly to 0.

    Raises `ValueError` unless peak and epochs are above 0 and `warm_up`, a share of the epochs, is above 0 and below 1.
    """
    _check_above_zero(peak=peak, epochs=epochs, warm_up=warm_up)
    if warm_up >= 1:
        raise ValueError(f"warm_up is a share of the epochs and must be below 1, not {warm_up}")

    def rate(epoch: float) -> float:
        done = epoch / epochs
        return peak * max(0.0, min(done / warm_up, (1 - done) / (1 - warm_up)))

    return rate


def _check_above_zero(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be above 0 and finite, not {value}")


class DivergedError(RuntimeError):
    """The loss is not finite any more."""


@dataclass(frozen=True)
class Fitted:
    """What a training came to. The accuracy is on the validation images, at the epoch whose weights were kept."""

    validation_accuracy: float
    validation_images: int
    epoch: int
    """The epoch whose weights were kept, counted from 1."""
    epochs: int
    seconds: float
    """Time spent in training and validation, over all resumptions."""
    execution: str
    """How steps were computed, see `defendpp.execution`."""
    threads: int | None = None
    """Of the processor, whose number decides how sums are rounded, and so the weights; none where it was no processor,
    or not one number from the first epoch to the last."""


def fit(
    classifier: nn.Module,
    objective: Objective,
    train: Images,
    validation: Images,
    *,
    phases: Sequence[Phase],
    learning_rate: LearningRate,
    folder: Path | str,
    batch_size: int = 256,
    optimizer: Literal["sgd", "adam"] = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    clip_norm: float | None = None,
    keep: Literal["best", "last"] = "best",
    augment: Augment | None = None,
    seed: int = 0,
    execution: Execution | Literal["auto"] = "auto",
    accelerator: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    progress: bool = True,
) -> Fitted:
    """Train `classifier` (and the objective's own modules) and leave both with the weights of one epoch.

    keep: the epoch, the "last" or the "best", which has the highest accuracy on the clean validation images, among
    equals the lowest cross-entropy. `folder` receives `checkpoints/last.ckpt` after each epoch, from which a second
    call with the same settings resumes (or, after the last epoch, reads the result; it warns where the classifier's
    starting weights were others), and logs for TensorBoard and as CSV, one version a start. Both modules end in eval
    mode; the global random state is left as found.

    optimizer: SGD with `momentum`, or Adam with its usual betas. execution: how steps are computed; "auto" measures
    which way is the fastest here, says so, and keeps to it when it resumes. devices, nodes: with more than one, each
    device on each node is a process with its share of every batch (Lightning's DDP, which starts the program again for
    each); batch_size stays that of all together. Losses are those of one process, save that each has its own random
    numbers (noise, augmentation, dropout) and batch statistics.

    Raises `ValueError` for settings, images and labels that cannot work and for a checkpoint of other settings,
    `DivergedError` where the loss is not finite, and `KeyboardInterrupt` when interrupted, after which the same call
    resumes.
    """
    folder = Path(folder)
    for split in (train, validation):
        if not isinstance(split, Images):
            raise TypeError(f"fit takes splits, as of dp.from_tensors(images, labels), not {type(split).__name__}")
    epochs = sum(phase.epochs for phase in phases)
    if epochs < 1 or any(phase.epochs < 0 for phase in phases):
        raise ValueError(f"training needs at least 1 epoch, not {epochs}")
    if batch_size < 2:
        raise ValueError(f"the batch size must be at least 2, because of batch normalisation, not {batch_size}")
    processes = devices * nodes
    if devices < 1 or nodes < 1 or batch_size % processes or min(len(train), batch_size) < 2 * processes:
        raise ValueError(
            f"a batch of {min(len(train), batch_size)} cannot be shared out equally, at least 2 images each, among "
            f"{devices} devices on each of {nodes} nodes"
        )
    if len(train) < 2 or len(validation) < processes:
        raise ValueError(f"training needs images to train on and to choose by, not {len(train)} and {len(validation)}")
    for what, named, known in (("optimizer", optimizer, ("sgd", "adam")), ("keep", keep, ("best", "last"))):
        if named not in known:
            raise ValueError(f"{what} must be {' or '.join(known)}, not {named!r}")
    if not any(learning_rate(epochs - 1 + i / 8) for i in range(8)):
        raise ValueError(
            f"the learning rate is 0 in all of epoch {epochs}, the last: is its schedule for fewer epochs?"
        )
    if execution not in ("auto", *EXECUTIONS):
        raise ValueError(f"execution must be auto or one of {', '.join(EXECUTIONS)}, not {execution!r}")
    _check_outputs(classifier, train, validation)
    checkpoints = folder / "checkpoints"
    last = checkpoints / "last.ckpt"
    if execution == "auto" and last.exists():
        execution = torch.load(last, map_location="cpu", weights_only=True)["settings"]["execution"]
    loop = _Loop(
        classifier,
        objective,
        train,
        validation,
        phases=phases,
        learning_rate=learning_rate,
        batch_size=min(batch_size, len(train)),
        optimizer=optimizer,
        momentum=momentum,
        weight_decay=weight_decay,
        keep=keep,
        augment=augment,
        seed=seed,
        execution=execution,
    )
    start = loop.start
    loop.settings = {
        "phases": [[phase.epochs, phase.terms] for phase in phases],
        "learning rates": [learning_rate(epochs * i / 16) for i in range(16)],
        "batch size": batch_size,
        "optimizer": optimizer,
        "momentum": momentum,
        "weight decay": weight_decay,
        "gradient norm": clip_norm,
        **({} if keep == "best" else {"keep": keep}),
        "augmentation": _describe(augment),
        "seed": seed,
        "objective": _describe(objective),
        "classifier": repr(classifier),
        "images": [digest(train), digest(validation)],
    }
    callbacks: list[Callback] = [
        ModelCheckpoint(checkpoints, filename="last", enable_version_counter=False, save_on_train_epoch_end=True)
    ]
    if progress and is_main_process():
        callbacks.append(_Bar(epochs, folder))
    partial_phases = any(phase.terms for phase in phases)  # in which some weights get no gradient
    version = len([*folder.glob("logs/version_*")])
    place = home(classifier)
    interrupt_handler = signal.getsignal(signal.SIGINT)
    every_device = range(torch.cuda.device_count())
    with warnings.catch_warnings(), _quiet(), torch.random.fork_rng(every_device):
        warnings.simplefilter("ignore")  # Lightning's advice on loaders and folders, which do not apply here
        trainer = _trainer(
            accelerator=accelerator,
            devices=devices,
            num_nodes=nodes,
            strategy="auto" if processes == 1 else "ddp_find_unused_parameters_true" if partial_phases else "ddp",
            use_distributed_sampler=False,
            max_epochs=epochs,
            reload_dataloaders_every_n_epochs=1,  # each epoch's loader knows its epoch, and so its order
            num_sanity_val_steps=0,
            gradient_clip_val=clip_norm,
            callbacks=callbacks,
            logger=[CSVLogger(folder, "logs", version), TensorBoardLogger(folder, "logs", version)],
            log_every_n_steps=20,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        try:
            trainer.fit(loop, ckpt_path=last if last.exists() else None, weights_only=True)
        except SystemExit as stopped:  # Lightning's answer to an interrupt, after which it also ignores the next one
            raise KeyboardInterrupt from stopped
        finally:
            if interrupt_handler is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, interrupt_handler)
    if loop.start != start:
        warnings.warn(
            f"{folder} holds a training that began with other weights than this classifier's: that one went on, or was "
            "read where it was finished; to train this one take another folder",
            stacklevel=2,
        )
    fitted = loop.finish()
    loop.to(place)  # Lightning leaves it on the CPU
    return fitted


def is_main_process() -> bool:
    """Whether this process writes and prints, and is not one of those started beside it for other devices."""
    ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in ranks)


def check_accelerator(name: str) -> None:
    """Raise `ValueError` where this machine has no such accelerator, as `fit` would."""
    with _quiet():
        _trainer(accelerator=name, logger=False, enable_checkpointing=False, enable_progress_bar=False)


def _check_outputs(classifier: nn.Module, train: Images, validation: Images) -> None:
    """Refuse, before any step, images that the classifier cannot take, and labels that it has no output for."""
    images, _ = train.batch(range(2))
    try:
        with evaluating(classifier):
            logits = classifier(images.to(home(classifier)))
    except RuntimeError as problem:
        why = str(problem).splitlines()[0]
        raise ValueError(f"the classifier cannot take images of shape {tuple(images.shape[1:])}: {why}") from problem
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"the classifier must give logits of shape (batch, classes), not {shape}")
    if are_probabilities(logits):
        raise ValueError("the classifier must give logits, not probabilities, in [0, 1] and adding up to 1")
    highest = max(int(split.labels.max()) for split in (train, validation))
    if highest >= logits.shape[1]:
        raise ValueError(f"the classifier has {logits.shape[1]} outputs, but there are labels up to {highest}")


def _trainer(**settings: Any) -> lightning.Trainer:
    try:
        return lightning.Trainer(**settings)
    except MisconfigurationException as problem:  # an accelerator that is unknown or not there
        raise ValueError(f"accelerator {settings['accelerator']!r} cannot be used here: {problem}") from problem


def _describe(part: Any) -> str:
    """What determines an objective or augmentation, without addresses in memory."""
    if isinstance(part, partial):
        settings = ", ".join(f"{name}={_describe(value)}" for name, value in sorted(part.keywords.items()))
        return f"{_describe(part.func)}({settings})"
    return part.__qualname__ if hasattr(part, "__qualname__") else repr(part)


class _Loop(lightning.LightningModule):
    """What happens in a step; Lightning does the rest."""

    def __init__(
        self,
        classifier: nn.Module,
        objective: Objective,
        train: Images,
        validation: Images,
        *,
        phases: Sequence[Phase],
        learning_rate: LearningRate,
        batch_size: int,
        optimizer: Literal["sgd", "adam"],
        momentum: float,
        weight_decay: float,
        keep: Literal["best", "last"],
        augment: Augment | None,
        seed: int,
        execution: Execution | Literal["auto"],
    ):
        super().__init__()
        self.classifier = classifier
        self.objective = objective  # registered as a submodule where it is one
        self.train_images = train
        self.validation_images = validation
        self.phases = [phase for phase in phases for _ in range(phase.epochs)]
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.steps = len(train) // batch_size  # a last small batch would unsettle batch normalisation
        self.optimizer = optimizer
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.keep = keep
        self.augment = augment
        self.seed = seed
        self.execution = execution
        self.measured: dict[Execution, float] = {}
        self.settings: dict[str, Any] = {}
        self.start = fingerprint(classifier)
        self.best: dict[str, Any] = {}
        self.correct = 0
        self.loss = 0.0
        self.seconds = 0.0
        self.threads: int | None = None

    def setup(self, stage: str) -> None:
        """Settle how steps are computed, before weights are handed to the optimizer and to other processes."""
        self.to(self.trainer.strategy.root_device)
        if self.execution == "auto":
            images, labels = self.train_images.batch(range(self.batch_size // self.trainer.world_size))
            batch = images.to(self.device), labels.to(self.device)
            steps = self.steps * len(self.phases)
            found = fastest(self.train(), self.objective, self.classifier, batch, steps=steps)
            self.execution, self.measured = self.trainer.strategy.broadcast(found)
        self.settings["execution"] = self.execution
        self.threads = torch.get_num_threads() if self.device.type == "cpu" else None
        arrange(self, self.execution)
        self.computed = executed(self.objective, self.execution)

    def configure_optimizers(self) -> Any:
        settings: dict[str, Any] = {"lr": 1.0, "weight_decay": self.weight_decay}
        optimizer: torch.optim.Optimizer
        if self.optimizer == "sgd":
            optimizer = torch.optim.SGD(self.parameters(), momentum=self.momentum, **settings)
        else:
            optimizer = torch.optim.Adam(self.parameters(), **settings)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.learning_rate(step / self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def train_dataloader(self) -> "_Epoch":
        key = (self.seed, self.current_epoch)
        return _Epoch(self.train_images, self.batch_size, self.steps, key, augment=self.augment, share=self._share())

    def val_dataloader(self) -> "_Epoch":
        rank, processes = self._share()
        mine = self.validation_images.select(torch.arange(rank, len(self.validation_images), processes))
        batch_size = self.batch_size // processes
        return _Epoch(mine, batch_size, math.ceil(len(mine) / batch_size), None)

    def _share(self) -> tuple[int, int]:
        """Which of how many processes this is."""
        return self.trainer.global_rank, self.trainer.world_size

    def on_train_epoch_start(self) -> None:
        self.train()
        self.started = time.monotonic()
        torch.manual_seed(_derive(self.seed, self.current_epoch) + self.trainer.global_rank)
        if self.current_epoch > 0 and self.phases[self.current_epoch] != self.phases[self.current_epoch - 1]:
            self.trainer.optimizers[0].state.clear()  # a phase starts with fresh momentum

    def training_step(self, batch: Any, _index: int) -> Tensor:
        images, labels = batch
        every = self.computed(self.classifier, images, labels)
        phase = self.phases[self.current_epoch]
        chosen = {name: term for name, term in every.items() if phase.has(name)}
        if not chosen:
            raise ValueError(f"no term of the objective ({', '.join(every)}) is one of {phase}")
        loss = torch.stack([*chosen.values()]).sum()
        if not torch.isfinite(loss):
            self._diverged(every)
        self.log_dict({"loss": loss, **chosen}, sync_dist=self.trainer.world_size > 1)
        return loss

    def _diverged(self, terms: Terms) -> None:
        values = ", ".join(f"{name} {term.item():g}" for name, term in terms.items())
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        raise DivergedError(
            f"the loss is not finite in epoch {self.current_epoch + 1} after {self.global_step} steps ({values}): "
            f"try a lower learning rate than {rate:g}, or clip the gradient's norm"
        )

    def on_validation_epoch_start(self) -> None:
        self.correct, self.loss = 0, 0.0
        self._agree()

    def _agree(self) -> None:
        """Give all processes the batch statistics of the first; their weights are equal already."""
        if self.trainer.world_size > 1:
            for buffer in self.buffers():
                torch.distributed.broadcast(buffer, 0)

    def validation_step(self, batch: Any, _index: int) -> None:
        images, labels = batch
        logits = self.classifier(images)
        self.correct += int((logits.argmax(1) == labels).sum())
        self.loss += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))

    def on_validation_epoch_end(self) -> None:
        sums = torch.tensor([self.correct, self.loss], dtype=torch.float64, device=self.device)
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(sums)
        self.correct, self.loss = int(sums[0]), float(sums[1])
        n = len(self.validation_images)
        self.log_dict({"validation_accuracy": self.correct / n, "validation_loss": self.loss / n}, rank_zero_only=True)

    def on_train_epoch_end(self) -> None:
        score = [self.correct, -self.loss if math.isfinite(self.loss) else -math.inf]
        if not self.best or score > self.best["score"] or self.keep == "last":
            weights = {name: tensor.detach().clone() for name, tensor in self.state_dict().items()}
            self.best = {"score": score, "epoch": self.current_epoch + 1, "weights": weights}
        self.seconds += time.monotonic() - self.started

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["settings"] = self.settings
        checkpoint["start"] = self.start
        checkpoint["best"] = self.best
        checkpoint["seconds"] = self.seconds
        checkpoint["threads"] = self.threads

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name, value in self.settings.items():
            if checkpoint["settings"].get(name) != value:
                raise ValueError(
                    f"the checkpoint to resume from has another setting of {name}: choose another folder, or remove it"
                )
        self.start = checkpoint.get("start", self.start)
        self.best = checkpoint["best"]
        self.seconds = checkpoint["seconds"]
        is_finished = checkpoint["epoch"] + 1 == len(self.phases)
        before = checkpoint.get("threads")
        self.threads = before if is_finished or before == self.threads else None

    def finish(self) -> Fitted:
        self.load_state_dict(self.best["weights"])
        arrange(self, "eager")
        self.eval()
        n = len(self.validation_images)
        accuracy = self.best["score"][0] / n
        epoch, epochs = self.best["epoch"], len(self.phases)
        return Fitted(accuracy, n, epoch, epochs, self.seconds, self.execution, self.threads)


class _Epoch:
    """One pass over a split, in an order of its own where `key` is given; what Lightning takes for a data loader."""

    def __init__(
        self,
        images: Images,
        batch_size: int,
        steps: int,
        key: tuple[int, int] | None,
        augment: Augment | None = None,
        share: tuple[int, int] = (0, 1),
    ):
        self.images = images
        self.batch_size = batch_size
        self.steps = steps
        self.key = key
        self.augment = augment
        self.share = share

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(_derive(*self.key)) if self.key is not None else None
        yield from batches(
            self.images,
            self.batch_size,
            generator=generator,
            augment=self.augment,
            drop_last=self.key is not None,
            share=self.share,
        )


def _derive(seed: int, epoch: int) -> int:
    """A seed for each (seed, epoch): far apart, so that neighbouring seeds share no epoch."""
    return (seed * 1_000_003 + epoch * 7_919 + 1) % 2**63


class _Bar(Callback):
    """One bar over the whole training, with the time left; in a log a line for each epoch."""

    def __init__(self, epochs: int, folder: Path):
        self.epochs = epochs
        self.folder = folder
        self.first, self.begun = 0, 0.0
        console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        done = checkpoint["epoch"] + 1
        said = (
            f"goes on after epoch {done} of {self.epochs}" if done < self.epochs else "was finished: its result is read"
        )
        print(f"the training in {self.folder} {said}", file=sys.stderr)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        total = self.epochs * int(trainer.num_training_batches)
        self.task = self.bar.add_task("training", total=total, completed=trainer.global_step, note="")
        self.bar.start()
        self.first, self.begun = trainer.current_epoch, time.monotonic()
        if pl_module.measured:
            tried = ", ".join(f"{name} {1000 * each:.0f} ms" for name, each in pl_module.measured.items())
            self.bar.console.print(f"computing steps {pl_module.execution} (forward and backward: {tried})")

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.bar.update(self.task, completed=trainer.global_step)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        loss, accuracy = (trainer.callback_metrics.get(name) for name in ("loss", "validation_accuracy"))
        note = f"loss {float(loss):.3f}" if loss is not None else ""
        note += f", validation {100 * float(accuracy):.2f} %" if accuracy is not None else ""
        self.bar.update(self.task, note=note)
        if self.bar.disable:
            done = trainer.current_epoch + 1
            left = (time.monotonic() - self.begun) / (done - self.first) * (self.epochs - done)
            print(f"epoch {done}/{self.epochs}: {note}, about {spoken(left)} left", file=sys.stderr, flush=True)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.bar.stop()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        self.bar.stop()


class _quiet:
    """Within this context Lightning reports errors only."""

    def __enter__(self) -> None:
        self.loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
        self.levels = [logger.level for logger in self.loggers]
        for logger in self.loggers:
            logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        for logger, level in zip(self.loggers, self.levels, strict=True):
            logger.setLevel(level)
