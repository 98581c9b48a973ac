"""The subcommands of `diffusion-lightning`, and the words that they take.

Nothing here imports more than Python's own, so that help and mistakes are answered at once.
"""

from argparse import Namespace
from collections.abc import Callable
from typing import Any, NamedTuple

from .errors import Arguments

# The extractors' short names, for `score --extractor`; any other is given by its class path.
EXTRACTORS = {
    "inception": "diffusion_lightning.extractors.InceptionV3",
    "digits": "diffusion_lightning.extractors.DigitsNet",
    "mnist": "diffusion_lightning.extractors.MNISTNet",
}
ORDERS = ("name", "state", "steps", "last", "best", "age", "size")  # of `runs --sort`: those of runs.py
STATES = ("training", "finished", "stopped", "killed")  # of `runs --state`: those of report/run.py
FORMATS = ("pipeline", "weights", "lora", "program")  # of `export --format`: those of interop/export.py


def _score(parser: Arguments, words: list[str]) -> Namespace:
    parser.epilog = """GENERATED and REFERENCE are each a folder of pictures, an .npz of images (arr_0, bytes of shape
        N, H, W, C), or an .npz of statistics (mu, sigma), as pytorch-fid and guided-diffusion's evaluator have them.
        The reference should be the whole training set, as it is. What is made of it is kept in the user's cache,
        $DIFFUSION_LIGHTNING_CACHE."""
    parser.add_argument("generated", metavar="GENERATED", help="the images to score")
    parser.add_argument("reference", metavar="REFERENCE", help="the real ones")
    names = ", ".join(EXTRACTORS)
    parser.add_argument("--extractor", default="inception", help=f"{names}, or a class by its path; inception")
    parser.add_argument("--weights", help="file of Inception's weights; else torch's cache or a download")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32",
                        help="in which Inception computes; float32, as for published figures")  # fmt: skip
    parser.add_argument("--few", action="store_true", help="allow no more images than features; the value is marked")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too, the distance first")
    parser.add_argument("--save", metavar="FILE", help="write the reference's mu and sigma there, an .npz")
    parser.add_argument("--pairs", metavar="FILE", help="a picture of the samples nearest to reference images")
    parser.add_argument("--kid_subsets", type=int, default=100, help="subsets of KID; 100")
    parser.add_argument("--kid_subset_size", type=int, help="images in each; 1000, or all where there are fewer")
    parser.add_argument("--kept", type=int, default=10_000, help="images a side for KID, precision, recall; 10000")
    parser.add_argument("--batch_size", type=int, default=64, help="images at once; 64")
    parser.add_argument("--device", help="cpu, cuda, …; cuda where there is one")
    return parser.parse_args(words)


def _export(parser: Arguments, words: list[str]) -> Namespace:
    parser.add_argument("ckpt", help="the checkpoint")
    _trust(parser)
    parser.add_argument("dir", help="the folder to write; it must be empty, or not exist")
    parser.add_argument("--format", choices=FORMATS, nargs="+", default=["pipeline"],
                        help="one or several; pipeline where none is given")  # fmt: skip
    return parser.parse_args(words)


def _import(parser: Arguments, words: list[str]) -> Namespace:
    parser.epilog = "Options of fit, such as --model.init_args.network.init_args.heads 4, change what --config says."
    parser.add_argument("source", help="a folder of diffusers, or a .pt or .safetensors file of improved-diffusion, "
                        "guided-diffusion or DiT")  # fmt: skip
    parser.add_argument("ckpt", help="the checkpoint to write, a .ckpt file")
    parser.add_argument("--config", help="the configuration whose model it is; needed where the source has none")
    parser.add_argument("--new_attention_order", action="store_true",
                        help="guided-diffusion's flag of this name, set for ImageNet 64×64")  # fmt: skip
    given, options = parser.parse_known_args(words)
    given.options = options
    return given


def _selftest(parser: Arguments, words: list[str]) -> Namespace:
    parser.add_argument("--device", help="such as cpu, cuda or cuda:1; the accelerator where there is one")
    return parser.parse_args(words)


def _trust(parser: Arguments) -> None:
    parser.add_argument("--trust", nargs="+", default=[], metavar="NAME", help="modules of your own classes, hub names "
                        "or files of weights that the checkpoint may name")  # fmt: skip


def _recipes(parser: Arguments, words: list[str]) -> Namespace:
    parser.add_argument("name", nargs="?", metavar="NAME", help="the recipe to print; all are listed if none is given")
    return parser.parse_args(words)


def _average(parser: Arguments, words: list[str]) -> Namespace:
    parser.epilog = """The run was trained with --trainer.callbacks+ PowerEMA, whose snapshots lie in RUN/averages. A
        sweep writes sweep.csv and sweep.png there; one that was stopped goes on when it is started again."""
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument("--sigma_rel", type=float, help="the average's relative deviation, below 0.2887")
    parser.add_argument("--out", metavar="CKPT", help="the checkpoint to write")
    parser.add_argument("--sweep", action="store_true",
                        help="score averages of many lengths by the run's own metrics, as validate does")  # fmt: skip
    parser.add_argument("--lengths", type=float, nargs="+", metavar="SIGMA_REL",
                        help="those of the sweep; some eleven, of all that there are")  # fmt: skip
    parser.add_argument("--n", type=int, help="samples of each in the sweep; as many as the run's metrics take")
    parser.add_argument("--step", type=int, help="the step at which averages end; the last snapshot's")
    _trust(parser)
    given = parser.parse_args(words)
    if given.sweep == (given.out is not None):
        both = "both are given" if given.sweep else "neither is given"
        parser.error(f"--out CKPT writes one average and --sweep scores many, but {both}: give one of the two")
    if given.sweep == (given.sigma_rel is not None):
        parser.error("--sigma_rel is the length of the one average that --out writes: give both, or --sweep alone")
    if not given.sweep and (given.lengths or given.n is not None):
        parser.error("--lengths and --n are of a sweep, but --out writes one average: leave them out, or give --sweep")
    return given


def _cache(parser: Arguments, words: list[str]) -> Namespace:
    parser.epilog = """Decoded pictures and references of metrics lie in $DIFFUSION_LIGHTNING_CACHE, else in
        diffusion_lightning in the system's folder for caches. What is removed is made again when it is needed."""
    parser.add_argument("--clear", action="store_true", help="remove all of it")
    return parser.parse_args(words)


def _report(parser: Arguments, words: list[str]) -> Namespace:
    parser.epilog = """The page needs no network and no script. It can be made of a run that is still training, or that
        was killed; fit and test write it too, into the run's folder, unless --report false is given."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder; several are compared")
    parser.add_argument("--out", metavar="FILE", help="the page; RUN/report.html, or report.html here of several")
    parser.add_argument("--png", metavar="DIR", help="write the charts there as pictures; without --out, these alone")
    return parser.parse_args(words)


def _runs(parser: Arguments, words: list[str]) -> Namespace:
    parser.epilog = """A run is training, finished, stopped or killed. Its figure is the one by which its best
        checkpoint is chosen, else its first metric."""
    parser.add_argument("folder", nargs="?", default="runs", metavar="FOLDER", help="where they lie; runs")
    parser.add_argument("--sort", choices=ORDERS, default="age", help="by what, the newest or best first; age")
    parser.add_argument("--reverse", action="store_true", help="in the other direction")
    parser.add_argument("--state", choices=STATES, nargs="+", help="those in one of these states alone")
    parser.add_argument("--name", metavar="PATTERN", help="those of such a path alone, such as 'digits*'")
    parser.add_argument("--metric", metavar="KEY", help="the figure to show, such as val/loss")
    return parser.parse_args(words)


def _app(parser: Arguments, words: list[str]) -> Namespace:
    parser.epilog = "Only this machine reaches the page, unless --host says otherwise; there is no password."
    parser.add_argument("ckpts", nargs="+", metavar="CKPT", help="a checkpoint, or several to compare")
    parser.add_argument("--device", help="such as cpu, cuda or cuda:1; the accelerator where there is one")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at; 127.0.0.1, this machine alone")
    parser.add_argument("--port", type=int, help="7860, or the next one that is free")
    _trust(parser)
    return parser.parse_args(words)


class Command(NamedTuple):
    """A subcommand: what it does, the file whose `main` does it, and who reads its words; None is that file."""

    does: str
    file: str
    takes: Callable[[Arguments, list[str]], Namespace] | None = None


COMMANDS = {
    "fit": Command("Train a model, or go on with its training.", "fit"),
    "validate": Command("Work out a checkpoint's loss and metrics on the validation images.", "evaluate"),
    "test": Command("Work out a checkpoint's bits/dim and metrics on the test images.", "evaluate"),
    "predict": Command("Draw samples from a checkpoint's averaged model.", "predict"),
    "edit": Command("Change pictures with a checkpoint's model, or explain how it makes them.", "edit"),
    "score": Command("Score generated images against real ones, without a model.", "score", _score),
    "export": Command("Write a checkpoint's averaged model for others.", "export", _export),
    "import": Command(
        "Write another project's checkpoint as one that load, predict, validate and fit --init_from take.",
        "import_",
        _import,
    ),
    "average": Command("Make an average of a run's weights of any length.", "average", _average),
    "app": Command("Play with checkpoints on a local web page.", "app", _app),
    "recipes": Command("List the configs that come with the package, or print one.", "recipes", _recipes),
    "report": Command("Write a page of a run's figures and pictures, or of several runs.", "report", _report),
    "runs": Command("List the runs below a folder.", "runs", _runs),
    "cache": Command("List what is kept for later runs, or remove it.", "cache", _cache),
    "selftest": Command(
        "Work out figures whose answer is known on this machine, in under a minute.", "selftest", _selftest
    ),
}

PAGE = """usage: diffusion-lightning SUBCOMMAND ...

{subcommands}

SUBCOMMAND --help says what it takes, --version which version this is. To complete words by the tab key:
eval "$(diffusion-lightning --print_completion bash)", or zsh."""


def read(words: list[str]) -> Any:
    """What the `main` of a subcommand is called with: the options that it was given, or its words where it reads them.

    Args:
        words: the subcommand's name, and what follows.

    Raises:
        ValueError: where they are not the words that it takes.
    """
    command = COMMANDS[words[0]]
    if command.takes is None:
        return words
    return command.takes(Arguments(prog=f"diffusion-lightning {words[0]}", description=command.does), words[1:])


def page() -> str:
    """The page of `--help`."""
    lines = [f"  {name:<10} {command.does}" for name, command in COMMANDS.items()]
    return PAGE.format(subcommands="\n".join(lines))
