"""The options of the commands that Lightning's parser reads, as their short help and the shell's completion name them.

The parser takes all of Lightning's besides, and `--help_all` lists them. Stated here, since the parser itself needs
torch, whose import takes seconds; a test compares them with the parser's.
"""

from typing import NamedTuple


class Option(NamedTuple):
    """An option: its default as one writes it, empty if there is none, and what it does."""

    name: str
    default: str
    does: str


CHECKPOINT = "a checkpoint: its file, a run's folder (its last), FOLDER/best, or last, best of the newest run"
TRUST = Option("trust", "", "modules of your own classes, hub names and files of weights that the checkpoint may name")
SEED = Option("seed_everything", "", "the seed; the run's own if none is given")

TRAINER = (
    Option("trainer.max_steps", "-1", "steps of the optimizer; -1 is without end"),
    Option("trainer.default_root_dir", "runs/unnamed", "the run's folder, which holds all that it makes"),
    Option("trainer.accelerator", "auto", "cpu, gpu, …; auto takes what there is"),
    Option("trainer.devices", "auto", "how many, or which: 2, [0,3]"),
    Option("trainer.precision", "", "32-true, bf16-mixed, 16-mixed, …"),
    Option("trainer.val_check_interval", "", "validate every so many steps"),
    Option("trainer.accumulate_grad_batches", "1", "batches of one step"),
    Option("trainer.gradient_clip_val", "", "largest norm of the gradient"),
    Option("trainer.logger", "", "a logger's class, in fit Weights & Biases, offline; false is none but metrics.csv"),
    Option("trainer.fast_dev_run", "false", "a dry run of one step, which keeps nothing"),
)
OF_EVALUATION = tuple(
    option for option in TRAINER
    if option.name in ("trainer.accelerator", "trainer.devices", "trainer.precision", "trainer.logger")
)  # fmt: skip

FIT = (
    Option("config", "", "a YAML file, or a recipe by its name; a second one changes the first, options change both"),
    Option("print_config", "", "print the whole configuration and do nothing"),
    Option("ckpt_path", "", "go on from a checkpoint; last is this run's own, and starts if there is none"),
    Option("init_from", "", "start afresh from the averaged weights of a checkpoint"),
    Option("allow_changed", "", "a key that may differ from the checkpoint's configuration; may be repeated"),
    Option("seed_everything", "0", "the seed, of which every draw is a function"),
    Option("model", "", "the model's class; --model.KEY sets its arguments, --model.help CLASS lists them"),
    Option("data", "", "the data's class; --data.KEY sets its arguments, --data.help CLASS lists them"),
    Option("ema.decay", "0.9999", "of the averaged weights"),
    Option("ema.warmup", "false", "a smaller decay in the first steps"),
    Option("checkpoint.every_n_train_steps", "1000", "how often a checkpoint is written"),
    Option("checkpoint.keep", "1", "numbered checkpoints that are kept beside last and best"),
    Option("checkpoint.monitor", "", "the figure whose best value makes best.ckpt"),
    Option("checkpoint.mode", "min", "whether the best is the smallest or the largest: min, max"),
    Option("grid", "", "a grid of samples after every validation; --grid.KEY sets n, sampler, seed, guidance"),
    Option("metrics", "", "what samples are scored by, and how many; --metrics.KEY sets its arguments"),
    Option("chain", "", "some samples on their way from noise to image; --chain.KEY sets its arguments"),
    Option("reconstructions", "", "an autoencoder's of held-out images; --reconstructions.KEY sets its arguments"),
    Option("loss_by_timestep", "", "the loss in 10 bins of t; null is without, --loss_by_timestep.bins sets others"),
    Option("throughput", "", "images a second, the fraction of the device's peak; null is without"),
)  # fmt: skip
EVALUATE = (
    Option("ckpt_path", "", CHECKPOINT),
    TRUST,
    SEED,
    Option("model", "", "--model.KEY changes the checkpoint's own model"),
    Option("data", "", "--data CLASS or --data.KEY changes the checkpoint's own data"),
    Option("config", "", "a configuration in the place of the checkpoint's own, as in fit"),
)
PREDICT = (
    Option("ckpt_path", "", CHECKPOINT),
    Option("out", "", "a folder of pictures, one .npz file of all, or one picture of all: .png, .jpg, .webp"),
    Option("n", "", "how many samples; 64, or one of each of --prompts"),
    Option("seed", "0", "sample number i is a function of the seed and i"),
    Option("first", "0", "the first sample's number"),
    Option("y", "", "the class of all samples, by its number or name; none is each in turn"),
    Option("prompt", "", "the caption of all samples; none is those of held-out images in turn"),
    Option("prompts", "", "a file of captions, one a line, for the samples in turn"),
    Option("negative_prompt", "", "the caption that guidance leads away from; none is the null condition"),
    Option("sampler", "", "the reverse loop; the run's own of its grid of samples, else DDIM of 50 steps"),
    Option("guidance", "", "scale of classifier-free guidance, or ClassifierFree, AutoGuidance, ClassifierGuided"),
    Option("batch_size", "64", "samples made at once, per device"),
    TRUST,
)

ACTIONS = {  # of edit, as one writes them, and what they do
    "interpolate": ("A B", "images on the way from A to B, as their noises make them"),
    "inpaint": ("IMAGE --mask M", "what is white on the mask, drawn anew beside what is black"),
    "vary": ("IMAGE --strength S", "samples like the picture, from 0, itself, to 1, new ones"),
    "invert": ("IMAGE", "the noise that makes the picture, also as .npz, and the picture made again"),
    "denoise": ("IMAGE --sigma S", "the picture without its noise, of deviation S in pixels of [-1, 1]"),
    "film": ("", "samples on their way from noise to image: .webp, .gif, or .mp4 by ffmpeg"),
}
EDIT = (
    Option("out", "", "one picture of all: .png, .jpg, .webp; or a folder of pictures; a film's name"),
    Option("mask", "", "of inpaint: a picture of the same size, white for what is drawn anew"),
    Option("strength", "", "of vary: how much of the picture is given up, 0 … 1"),
    Option("sigma", "", "of denoise: the noise's deviation"),
    Option("n", "", "how many samples; 4, of a film 16"),
    Option("frames", "", "images of interpolate, 8, or of a film, 48"),
    Option("resample", "", "of inpaint: how often each step is taken, there and back; 10"),
    Option("device", "", "cpu, cuda, …; cuda where there is one"),
)
OF_DRAWING = (
    Option("y", "", "the class, by its number or name; none is the null condition, and in a film each in turn"),
    Option("prompt", "", "the caption; none is the null condition, and in a film those of held-out images in turn"),
    *(o for o in PREDICT if o.name in ("ckpt_path", "seed", "negative_prompt", "sampler", "guidance", "trust")),
)

PAGES: dict[str, tuple[tuple[Option, ...], tuple[Option, ...]]] = {  # its own, and of the trainer's
    "fit": (FIT, TRAINER),
    "validate": (EVALUATE, OF_EVALUATION),
    "test": (EVALUATE, OF_EVALUATION),
    "predict": (PREDICT, tuple(option for option in OF_EVALUATION if option.name != "trainer.logger")),
    "edit": (EDIT, OF_DRAWING),
}
WORDS = {"edit": ACTIONS}  # of commands that take one before all options


def page(command: str, does: str) -> str:
    """The short help of a command, at most 60 lines."""
    own, trainer = PAGES[command]
    width = max(len(option.name) for option in (*own, *trainer)) + 4
    words = WORDS.get(command, {})
    usage = f"usage: diffusion-lightning {command} {'ACTION ... ' if words else ''}[options]"
    lines = [usage, "", does, ""]
    if words:
        wide = max(len(f"{word} {of}") for word, (of, _) in words.items()) + 2
        lines += ["actions:", *(f"  {f'{word} {of}':<{wide}}{does}" for word, (of, does) in words.items()), ""]
    lines.append("options (default):")
    for group in (own, trainer):
        for name, default, does in group:
            lines.append(f"  {'--' + name:<{width}}{does}{f' ({default})' if default else ''}")
        lines.append("")
    more = "in full" if words else "Lightning's too"
    return "\n".join([*lines, f"diffusion-lightning {command} --help_all lists every option, {more}."])
