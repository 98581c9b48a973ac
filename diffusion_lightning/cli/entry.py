"""The command `diffusion-lightning`: finds who does what the words ask for, and says in one sentence what is wrong.

Torch and Lightning, which take seconds, are imported with what does the work, once the words are understood.
"""

import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any

from ..distributed import preemption, threads
from ..files import expanded_word
from . import completion, options, output, recipes
from .commands import COMMANDS, page, read
from .errors import fail, meant, of_the_system, raised_in

PACKAGE = __package__.partition(".")[0]

# What torch's default_collate says of pictures that are no tensors, or of several sizes.
UNFIT = (
    r"default_collate: batch must contain [^\n]*|stack expects each tensor to be equal size[^\n]*"
    r"|each element in list of batch should be of equal size"
)

# Warnings that say nothing to the user: data in memory want no workers, logging counts optimizer steps and not an
# epoch's batches, tests call `main` with arguments, samples have numbers of their own, and one is for Lightning's own
# authors.
NOISE = (
    ".*does not have many workers.*",
    ".*smaller than the logging interval.*",
    "LightningCLI's args parameter.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*Couldn't infer the batch indices.*",
)


def main(args: Sequence[str] | None = None) -> None:
    """The command line, or a list of its words."""
    output.begin()
    try:
        with preemption.listening():
            _answer([expanded_word(word) for word in (sys.argv[1:] if args is None else args)])
        output.end()
    except preemption.Preempted as stop:
        raise SystemExit(preemption.leave(stop)) from None
    except OSError as error:
        fail("; ".join(filter(None, (of_the_system(error), preemption.kept()))))
    except Exception as error:
        if (sentence := _explained(error)) is None:
            raise
        fail(sentence)


def _answer(words: list[str]) -> None:
    name = words[0] if words else None
    if name in options.PAGES and {"-h", "--help"} & set(words):
        print(options.page(name, COMMANDS[name].does))
    elif name in options.PAGES and "--help_all" in words:
        _work(COMMANDS[name].file, [name, "--help"])
    elif name in COMMANDS:
        _work(COMMANDS[name].file, read(recipes.resolved(words)))
    elif name in ("-h", "--help"):
        print(page())
    elif name == "--print_completion":
        print(completion.script("".join(words[1:2])))
    elif name == "--version":
        print(PACKAGE, version(PACKAGE))
    elif name is not None and name.startswith("-"):  # Lightning takes options before the subcommand too
        _work("fit", words)
    else:
        wrong = "no subcommand is given" if name is None else f"there is no subcommand {name}{meant(name, COMMANDS)}"
        fail(f"{wrong}: give one of {', '.join(COMMANDS)}; --help says what they do", 2)


def _work(file: str, given: Any) -> None:
    """Imports a file of this folder and lets its `main` do the work."""
    threads.settle()  # before the import, which loads torch
    work = import_module(f".{file}", __package__)
    # After the imports: Lightning's sets the levels of its loggers, and a user's file must not pass for a library.
    for logger in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    # A compiler's error is the sentence that ends the command, and no hundred lines on the code that it was given.
    if "TORCH_LOGS" not in os.environ:
        logging.getLogger("torch._inductor.scheduler").setLevel(logging.CRITICAL + 1)
    # Lightning's advice to use srun is for jobs, not for whoever sits before a cluster.
    for harmless in (*NOISE, *([] if preemption.name() else [".*`srun` command is available.*"])):
        warnings.filterwarnings("ignore", harmless)
    _search_here_last()
    work.main(given)


def _search_here_last() -> None:
    """A user's class in a file beside the config is found here, but no file here passes for a library.

    Unless PYTHONPATH names this folder: that is the user's word.
    """
    here = os.getcwd()
    if here not in map(os.path.abspath, filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))):
        sys.path[:] = [*(place for place in sys.path if place not in ("", here)), here]


def _explained(error: Exception) -> str | None:
    """A sentence for the user where this package wrote one, or Lightning did of its settings; else None."""
    if isinstance(error, UnicodeEncodeError):  # of a file's name: what files hold is UTF-8
        return (
            f"{error.object!a} cannot be the name of a file in this locale, whose encoding is {error.encoding}: "
            "set LC_ALL to C.UTF-8, or PYTHONUTF8 to 1"
        )
    if isinstance(error, ValueError):
        return str(error) if raised_in(error) == PACKAGE else None
    # Not above: they take seconds, and can say nothing of what went wrong before the work was imported.
    from lightning.pytorch.utilities.exceptions import MisconfigurationException
    from torch._dynamo.exc import BackendCompilerFailed

    from ..distributed import timeouts

    if (unfit := re.search(UNFIT, str(error))) is not None:
        return (
            f"a loader cannot put its images together in a batch ({unfit[0]}): let the data set give tensors of one "
            "shape, such as by a transform"
        )

    if isinstance(error, BackendCompilerFailed):
        reason = str(error).strip().splitlines()[0]
        return f"torch.compile could make no code of the network ({reason}): set model.init_args.compile to false"
    return str(error) if isinstance(error, MisconfigurationException) else timeouts.lost(error)
