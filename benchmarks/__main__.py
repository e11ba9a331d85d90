"""The command line: ``python -m benchmarks {layers,unfold,engines,calls,training,builds,compare}``."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from .builds import add_build_options, measure_builds
from .calls import add_call_options, measure_calls
from .cases import FORMATS
from .compare import compare
from .engines import measure_engines
from .harness import Limits, run_cases
from .options import DEVICES, Defaults, add_options, select_cases, select_peers
from .peers import TORCH
from .problems import COLUMN_PASSES, CONVOLUTION_PASSES
from .report import Report
from .training import add_training_options, measure_training

INTERRUPTED = 130
WIDTH_WITHOUT_TERMINAL = 200


@dataclass(frozen=True)
class Measurement:
    """A subcommand that measures: its passes, and what it does on a device where the command line does not say."""

    help: str
    passes: tuple[str, ...]
    defaults: dict[str, Defaults]


# Of each kind of window one layer: short rows, strides, one tap, patches, dilation, many taps, a large result, and one
# and three spatial axes.
_WINDOWS = (
    "db_vgg_7",
    "r50_l1_3x3",
    "r50_l2_3x3s2",
    "r50_l3_3x3",
    "r50_l3_down",
    "mbv2_stem",
    "cnx_stem",
    "aspp_d6",
    "u3d_stem",
    "u3d_128_32",
    "wanvae_96_full",
    "whisper_conv2",
    "w2v2_posconv",
    "mamba_dw4",
)

_CUDA_DTYPES = ("bf16", "f16", "tf32", "f32", "f64")

MEASUREMENTS = {
    "layers": Measurement(
        "convolution and its gradients, layer by layer",
        CONVOLUTION_PASSES,
        {
            # What the targets are about (targets.py), in about ten minutes on two cores.
            "cpu": Defaults(("f32", "bf16", "f64"), FORMATS, sampled=("f64",), peers=(TORCH.name,), seconds=480.0),
            # cuDNN searches for its best algorithm anew in each case, so one layer of a family has to do.
            "cuda": Defaults(_CUDA_DTYPES, FORMATS, sampled=_CUDA_DTYPES, peers=(TORCH.name,), seconds=150.0),
        },
    ),
    "unfold": Measurement(
        "unfold and fold beside F.unfold and F.fold",
        COLUMN_PASSES,
        {
            "cpu": Defaults(("f32", "bf16", "f64"), FORMATS, _WINDOWS, seconds=150.0),
            "cuda": Defaults(("f32", "bf16"), FORMATS, _WINDOWS, peers=(TORCH.name,), seconds=30.0),
        },
    ),
    "engines": Measurement(
        "every engine of ours beside the one that is picked",
        CONVOLUTION_PASSES,
        dict.fromkeys(DEVICES, Defaults(("f32",), FORMATS, peers=(TORCH.name,), seconds=180.0)),
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand.

    Args:
        argv: The command line without the program's name; None is the process's own.

    Returns:
        The exit status: 1 if a case was wrong or failed, 130 after an interrupt, else 0.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    # The device first: what the other options are where the command line does not say depends on it.
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--device", choices=DEVICES, default=DEVICES[0])
    parser = _parser(first.parse_known_args(argv)[0].device)
    arguments = parser.parse_args(argv)
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH_WITHOUT_TERMINAL
    try:
        if arguments.command == "compare":
            return compare(arguments.old, arguments.new, console)
        if arguments.command == "calls":
            return measure_calls(arguments, argv, console)
        if arguments.command == "builds":
            return measure_builds(arguments, argv, console)
        if arguments.command == "training":
            return measure_training(arguments, argv, console)
        return _measure(arguments, argv, console)
    except (ValueError, OSError) as error:
        parser.error(str(error))


def _parser(device: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measures unfoldconv beside torch.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, measurement in MEASUREMENTS.items():
        add_options(commands.add_parser(name, help=measurement.help), measurement.passes, measurement.defaults[device])
    add_call_options(commands.add_parser("calls", help="what a call costs beside its arithmetic"))
    add_training_options(commands.add_parser("training", help="a training step of a converted network"))
    add_build_options(commands.add_parser("builds", help="how long it takes to build, from cold and after an edit"))
    comparison = commands.add_parser("compare", help="two results files side by side")
    comparison.add_argument("old", type=Path)
    comparison.add_argument("new", type=Path)
    return parser


def _measure(arguments: argparse.Namespace, argv: Sequence[str], console: Console) -> int:
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda must have a CUDA device and a torch built for it, but got neither or one only")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    cases, left_out = select_cases(arguments)
    if arguments.command == "engines":
        return measure_engines(cases, left_out, arguments, argv, console)
    settings = {"seconds": arguments.seconds, "rounds": arguments.rounds, "left_out": left_out}
    report = Report(console, arguments.command, argv, settings, cases[0].device)
    limits = Limits(arguments.rounds, arguments.seconds)
    interrupted = False
    try:
        report.show(run_cases(cases, select_peers(arguments, cases), limits, report), len(cases))
    except KeyboardInterrupt:
        interrupted = True
    status = report.finish(arguments.json)
    return INTERRUPTED if interrupted else status


if __name__ == "__main__":
    sys.exit(main())
