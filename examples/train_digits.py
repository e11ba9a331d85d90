"""Trains one small CNN twice, on unfoldconv's layers and on torch.nn's, and shows that the two agree.

    python examples/train_digits.py [--epochs 30] [--output build/digits.png]

The data are the 1797 handwritten digits (8x8 pixels) that scikit-learn ships, so nothing is downloaded. Both networks
start from the same weights and see the same batches, every image shifted by up to one pixel. The program exits with
status 1 unless

* both classify more than 97 % of the held-out digits correctly;
* in float64, the two loss curves of the first epoch agree to ``FLOAT64_TOLERANCE``;
* in float32, they never lie further apart than ``TWIN_FACTOR`` times the gap between torch.nn and its *twin*: torch.nn
  once more, from weights changed by one rounding error. Training amplifies rounding errors, by how much depends on the
  data and the learning rate, and the twin measures just that.

The picture shows the loss curves, the filters that the first layer learned, and one digit as the matrix of its patches.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import unfoldconv as uc

ACCURACY_FLOOR = 0.97
# One step sums at most a few thousand products, each rounded to 2**-53; the 40 steps of an epoch amplify the error by
# a few hundred. A wrong or missing gradient term changes the loss by more than 1e-3 in the same time.
FLOAT64_TOLERANCE = 1e-9
# The twin is disturbed once, at the start; layers that add in another order round differently in every step.
TWIN_FACTOR = 30.0

BATCH_SIZE = 32
PEAK_LEARNING_RATE = 0.05
MOMENTUM = 0.9

Batch = tuple[Tensor, Tensor]  # images (N, 1, 8, 8), labels (N,)


@dataclass
class Digits:
    """Images of shape (N, 1, 8, 8) with values from 0 to 1, and labels of shape (N,)."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


@dataclass
class Run:
    """One network with its optimiser and what was recorded of it."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)
    epoch_seconds: list[float] = field(default_factory=list)


def load_data(seed: int) -> Digits:
    """Three quarters of the digits to train on and the rest to test with, each class in proportion."""
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images / 16.0, labels, test_size=0.25, stratify=labels, random_state=seed)
    train_images, test_images = (torch.tensor(part, dtype=torch.float32).view(-1, 1, 8, 8) for part in split[:2])
    train_labels, test_labels = (torch.tensor(part, dtype=torch.int64) for part in split[2:])
    return Digits(train_images, train_labels, test_images, test_labels)


def make_model(layers: ModuleType) -> nn.Sequential:
    """The network, with the convolutions of ``layers``: ``torch.nn`` or ``unfoldconv``.

    SiLU, because it is smooth: at the kink of a ReLU one rounding error can flip a gradient, and after a few hundred
    steps two correct implementations would have parted.
    """
    return nn.Sequential(
        layers.Conv2d(1, 16, kernel_size=3, padding="same"),
        nn.SiLU(),
        layers.Conv2d(16, 32, kernel_size=3, stride=2, padding=1),
        nn.SiLU(),
        layers.Conv2d(32, 64, kernel_size=3, padding=1, groups=2),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, 10),
    )


def initial_weights() -> dict[str, Tensor]:
    """Weights whose activations neither grow nor fade from layer to layer, so that learning starts at once."""
    model = make_model(nn)
    for module in model:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return model.state_dict()


def start_run(
    name: str,
    layers: ModuleType,
    weights: dict[str, Tensor],
    dtype: torch.dtype,
    wrap: Callable[[nn.Sequential], nn.Module] = lambda model: model,
) -> Run:
    """A network of `layers` with these weights, before its first step. `wrap` may change what is trained."""
    network = make_model(layers).to(dtype)
    network.load_state_dict(weights)
    model = wrap(network)
    return Run(name, model, torch.optim.SGD(model.parameters(), lr=PEAK_LEARNING_RATE, momentum=MOMENTUM))


def disturbed(weights: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Every weight, changed by at most one unit in the last place, up or down at random."""
    result = {}
    for name, value in weights.items():
        infinity = torch.full_like(value, torch.inf)
        up = torch.rand(value.shape, generator=generator) < 0.5
        result[name] = torch.nextafter(value, torch.where(up, infinity, -infinity))
    return result


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Every image of (N, 1, 8, 8), moved by -1, 0 or 1 pixel along each axis at random."""
    count, _, height, width = images.shape
    row, column = torch.randint(0, 3, (2, count, 1, 1), generator=generator)
    rows, columns = row + torch.arange(height)[:, None], column + torch.arange(width)
    return F.pad(images, (1, 1, 1, 1))[torch.arange(count)[:, None, None], 0, rows, columns].unsqueeze(1)


def epoch_batches(data: Digits, generator: torch.Generator) -> list[Batch]:
    """The training images in random order and randomly shifted, with their labels."""
    order = torch.randperm(len(data.train_labels), generator=generator)
    images, labels = shifted(data.train_images[order], generator), data.train_labels[order]
    return list(zip(images.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True))


def train_step(run: Run, images: Tensor, labels: Tensor, learning_rate: float, count: float) -> None:
    """One step on the sum of the images' losses, divided by `count`; records it."""
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate
    dtype = next(run.model.parameters()).dtype
    loss = F.cross_entropy(run.model(images.to(dtype)), labels, reduction="sum") / count
    run.optimizer.zero_grad()
    loss.backward()
    run.optimizer.step()
    run.losses.append(loss.item())


def train_epoch(run: Run, batches: list[Batch], learning_rates: Iterator[float]) -> None:
    """One step per batch; records the losses and the time."""
    start = time.perf_counter()
    for images, labels in batches:
        train_step(run, images, labels, next(learning_rates), len(labels))
    run.epoch_seconds.append(time.perf_counter() - start)


@torch.no_grad()
def accuracy(model: nn.Module, data: Digits) -> float:
    """The share of the test images that are classified correctly."""
    predictions = model(data.test_images).argmax(dim=1)
    return (predictions == data.test_labels).double().mean().item()


def one_cycle(step: int, steps: int) -> float:
    """Learning rate of a step: a linear warm-up over the first fifth, then linear decay to zero."""
    warm_up = max(steps // 5, 1)
    return PEAK_LEARNING_RATE * min((step + 1) / warm_up, (steps - step) / max(steps - warm_up, 1))


def largest_difference(first: Run, second: Run) -> float:
    """Over all steps, between the losses of two runs."""
    return max(abs(a - b) for a, b in zip(first.losses, second.losses, strict=True))


def train(runs: list[Run], data: Digits, epochs: int, seed: int, progress: Progress) -> None:
    """Trains all runs on the same batches, one epoch of each in turn so that they share whatever slows the machine."""
    task = progress.add_task("", total=epochs * len(runs), status="")
    generator = torch.Generator().manual_seed(seed)
    steps_per_epoch = -(-len(data.train_labels) // BATCH_SIZE)
    for epoch in range(epochs):
        batches = epoch_batches(data, generator)
        steps = range(epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch)
        for run in runs:
            progress.update(task, description=run.name)
            train_epoch(run, batches, (one_cycle(step, epochs * steps_per_epoch) for step in steps))
            progress.update(task, advance=1, status=f"epoch {epoch + 1}  loss {run.losses[-1]:.4f}")
    progress.update(task, description="trained")


def report(checks: Sequence[tuple[str, bool]], console: Console) -> None:
    """A line for each check: what it says, and whether it holds."""
    for sentence, holds in checks:
        console.print(
            f"[green]ok[/]    {sentence}" if holds else f"[red]FAILS[/] {sentence}", highlight=False, soft_wrap=True
        )


# --- the picture -------------------------------------------------------------------------------------------------

INK, OURS, THEIRS, TWIN, RIM = "#2b2d42", "#d1495b", "#8fb8de", "#9a9a9a", "#d5d9e6"
STYLE = {
    "font.size": 9, "axes.titlesize": 10, "axes.titlelocation": "left", "axes.titlecolor": INK, "axes.edgecolor": INK,
    "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "legend.frameon": False,
}  # fmt: skip


def per_epoch(values: list[float], epochs: int) -> Tensor:
    """(steps,) -> (epochs, steps per epoch)."""
    return torch.tensor(values, dtype=torch.float64).view(epochs, -1)


def draw_losses(axes: Axes, torch_run: Run, our_run: Run) -> None:
    """The mean loss of each epoch."""
    epochs = len(our_run.epoch_seconds)
    for run, style in (
        (torch_run, {"color": THEIRS, "linewidth": 7, "solid_capstyle": "round"}),
        (our_run, {"color": OURS, "linewidth": 1.5, "marker": ".", "markersize": 5}),
    ):
        axes.semilogy(range(1, epochs + 1), per_epoch(run.losses, epochs).mean(1).numpy(), label=run.name, **style)
    axes.set(title="Two trainings, one loss curve", ylabel="mean training loss")
    axes.tick_params(labelbottom=False)
    axes.legend()


def draw_gaps(axes: Axes, torch_run: Run, our_run: Run, twin: Run) -> None:
    """How far the losses of each epoch lie apart at most."""
    epochs = len(our_run.epoch_seconds)
    reference = per_epoch(torch_run.losses, epochs)
    for run, color, label in (
        (twin, TWIN, "torch.nn, its weights changed by one rounding"),
        (our_run, OURS, our_run.name),
    ):
        gaps = (per_epoch(run.losses, epochs) - reference).abs().amax(1)
        axes.semilogy(
            range(1, epochs + 1), gaps.clamp(min=1e-9).numpy(), color=color, marker=".", markersize=5, label=label
        )
    axes.set(ylim=(None, 100 * axes.get_ylim()[1]), ylabel="largest gap\nto torch.nn", xlabel="epoch")
    axes.legend(loc="upper left", ncols=2)


def bare(axes: Axes) -> Axes:
    """Axes of an image: a thin frame and no ticks."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color(RIM)
    return axes


def draw_filters(figure: Figure, area: SubplotSpec, weight: Tensor) -> None:
    """weight: (16, 1, 3, 3)."""
    grid = area.subgridspec(4, 4, wspace=0.1, hspace=0.1)
    bound = weight.abs().max().item()
    for index, kernel in enumerate(weight[:, 0]):
        axes = bare(figure.add_subplot(grid[index // 4, index % 4]))
        axes.imshow(kernel.numpy(), cmap="RdBu_r", vmin=-bound, vmax=bound)
        if index == 0:
            axes.set_title("The 16 filters of the first layer")


def draw_patches(figure: Figure, area: SubplotSpec, image: Tensor, label: int) -> None:
    """image: (1, 8, 8). Left the digit, in the middle its 64 patches where they were taken, right unfold's matrix."""
    columns = uc.unfold(image, kernel_size=3, padding=1)  # (9, 64)
    left, middle, right = (figure.add_subplot(cell) for cell in area.subgridspec(1, 3, width_ratios=(1, 1, 2.7)))
    colors = matplotlib.colormaps["gray_r"].with_extremes(bad=RIM)
    bare(left).imshow(image[0].numpy(), cmap=colors)
    left.set_title(f"A {label} of the test set ...")
    # (9, 64) -> (position's row, tap's row, position's column, tap's column), with a rim of one pixel between patches
    tiles = torch.full((8, 4, 8, 4), torch.nan)
    tiles[:, :3, :, :3] = columns.view(3, 3, 8, 8).permute(2, 0, 3, 1)
    bare(middle).imshow(tiles.reshape(32, 32)[:-1, :-1].numpy(), cmap=colors)
    middle.set_title("... its 64 patches of 3x3 ...")
    right.imshow(columns.numpy(), cmap=colors, aspect="auto")
    right.set(title="... and the same as a matrix: uc.unfold(image, kernel_size=3, padding=1)", yticks=range(9))
    right.set(xlabel="position: one column for each patch", ylabel="tap")


def draw(path: Path, torch_run: Run, our_run: Run, twin: Run, data: Digits) -> None:
    """The whole picture, written to `path` as PNG."""
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(12, 7.4), dpi=150)
        upper, lower = figure.add_gridspec(
            2, 1, height_ratios=(2, 1), hspace=0.26, left=0.07, right=0.985, top=0.95, bottom=0.07
        )
        curves, filters = upper.subgridspec(1, 2, width_ratios=(1.75, 1), wspace=0.06)
        losses, gaps = curves.subgridspec(2, 1, height_ratios=(1.7, 1), hspace=0.08)
        loss_axes = figure.add_subplot(losses)
        draw_losses(loss_axes, torch_run, our_run)
        draw_gaps(figure.add_subplot(gaps, sharex=loss_axes), torch_run, our_run, twin)
        draw_filters(figure, filters, next(our_run.model.parameters()).detach())
        draw_patches(figure, lower, data.test_images[0], int(data.test_labels[0]))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        plt.close(figure)


# --- the program -------------------------------------------------------------------------------------------------


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=30, help="passes over the 1347 training images (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the weights and the batches (default: 0)")
    parser.add_argument("--output", type=Path, default=Path("build/digits.png"), help="default: build/digits.png")
    parser.add_argument("--no-check", action="store_true", help="exit with status 0 whatever the figures are")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Trains, prints, checks and draws; returns the exit status."""
    options = parse_arguments(arguments)
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)  # the images are so small that threads would spend their time waiting for each other
    console = Console()
    data = load_data(options.seed)
    weights = initial_weights()
    generator = torch.Generator().manual_seed(options.seed)

    double_runs = [start_run(layers.__name__, layers, weights, torch.float64) for layers in (nn, uc)]
    torch_run = start_run("torch.nn", nn, weights, torch.float32)
    our_run = start_run("unfoldconv", uc, weights, torch.float32)
    twin = start_run("twin of torch.nn", nn, disturbed(weights, generator), torch.float32)
    with Progress(
        TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[status]}"), console=console,
    ) as progress:  # fmt: skip
        train(double_runs, data, 1, options.seed, progress)
        train([torch_run, our_run, twin], data, options.epochs, options.seed, progress)

    table = Table("layers", "test accuracy", "last loss", "seconds per epoch", title="Handwritten digits, float32")
    for run in (torch_run, our_run):
        seconds = statistics.median(run.epoch_seconds)
        table.add_row(run.name, f"{accuracy(run.model, data):.2%}", f"{run.losses[-1]:.6f}", f"{seconds:.3f}")
    console.print(table)

    double_gap = largest_difference(*double_runs)
    single_gap = largest_difference(torch_run, our_run)
    single_bound = TWIN_FACTOR * largest_difference(torch_run, twin)
    lowest = min(accuracy(run.model, data) for run in (torch_run, our_run))
    checks = (
        (f"lowest test accuracy {lowest:.2%}, must exceed {ACCURACY_FLOOR:.0%}", lowest > ACCURACY_FLOOR),
        (f"float64 losses, 1 epoch: max difference {double_gap:.1e}, bound {FLOAT64_TOLERANCE:.0e}",
         double_gap <= FLOAT64_TOLERANCE),
        (f"float32 losses, {options.epochs} epochs: max difference {single_gap:.1e}, "
         f"bound {single_bound:.1e} ({TWIN_FACTOR:.0f} x that of the twin)", single_gap <= single_bound),
    )  # fmt: skip
    report(checks, console)
    draw(options.output, torch_run, our_run, twin, data)
    console.print(f"picture: {options.output}", highlight=False, soft_wrap=True)
    return 0 if options.no_check or all(holds for _, holds in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
