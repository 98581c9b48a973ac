"""LoRA: adapters of low rank beside the layers of a frozen network. They alone are trained, averaged and kept."""

import math
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from ...distributed import fsdp
from ...frozen import FOLDER, KEY, PRECISIONS, Part, installed
from ...networks.base.matmuls import Conv2d, Linear

# Whose output is W·x + b and nothing more, so that W may be adapted; what derives from them may do more.
LAYERS = (nn.Linear, nn.Conv2d, Linear, Conv2d)
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "qkv", "query", "key_value", "out")  # of diffusers' networks, and ours
A, B = ".lora_A.default.weight", ".lora_B.default.weight"  # peft's names of a layer's adapter
NAME = "lora"  # of the module's attribute, and so of its frozen part


class Base(Part):
    """The weights of a network without its adapters, by the names that they have in the network alone.

    Args:
        source: the checkpoint that they came from, or the file in a run's checkpoints/frozen.
        live: of a checkpoint's, makes them of the network that has them.
    """

    def __init__(self, source: str, live: Callable[[], dict[str, Tensor]] | None = None) -> None:
        self._live = live
        super().__init__(source)

    def described(self, precision: str | None) -> dict[str, Any]:
        assert self._live is not None
        kinds = {x.dtype for x in self._live().values()}
        return {"kind": "base of lora", "precision": next((k for k, x in PRECISIONS.items() if x in kinds), "float32")}

    def checked(self, found: dict[str, Any]) -> dict[str, Any]:
        if found.get("kind") != "base of lora":
            raise ValueError(f"{self.source} holds a frozen part, but not the weights of a network: copy it again")
        return found

    def weights(self) -> dict[str, Tensor]:
        if self._live is not None:
            return self._live()
        self._verified = not self._tensors and self._verified
        self.verify()
        tensors, self._tensors, self._verified = self._tensors, {}, False  # read again where they are needed again
        return tensors


class Kept(nn.ModuleDict):
    """Adapters that stay in float32 where the network around them is turned into float16 or bfloat16."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Kept":
        return super()._apply(lambda x: _as_precise(fn(x), x), recurse)


class LoRA(nn.Module):
    """W + alpha/rank·B·A in the place of W, in the layers that are named: A (rank, in) and B (out, rank) are trained.

    B starts at zero, so that a run starts as the network that it adapts. Of a convolution A is one of rank channels,
    and B one of 1×1. They are float32 whatever the type of W. It needs the optional package peft,
    `pip install diffusion_lightning[lora]`.

    Paper: LoRA: low-rank adaptation of large language models. Hu et al., 2021, arXiv 2106.09685, equation 3.

    Args:
        rank: rows of A, at least 1 and at most the smaller side of each W.
        alpha: the adapters' strength, above 0; None is `rank`, so that their product counts as it is.
        targets: ends of the names of the layers, such as `to_q`; None is those of attention.
        dropout: share of the features that an adapter does not see in training, in [0, 1).

    Raises:
        ValueError: if a number is outside of its range.
    """

    alpha: Tensor

    def __init__(
        self,
        rank: int = 4,
        alpha: float | None = None,
        targets: Sequence[str] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        strength = float(rank if alpha is None else alpha)
        if rank < 1:
            raise ValueError(f"lora's rank is {rank}, but it is the number of rows of a matrix: give a rank ≥ 1")
        if not (strength > 0 and math.isfinite(strength)):
            raise ValueError(f"lora's alpha is {strength:g}, but it scales what is trained: give a number above 0")
        if not 0 <= dropout < 1:
            raise ValueError(f"lora's dropout is {dropout}, but it is a share: give a number in [0, 1)")
        self.rank, self.targets, self.dropout = rank, targets, dropout
        self.register_buffer("alpha", torch.tensor(strength))  # in each checkpoint beside what it scales
        self._base: Base | None = None
        self._source: str | None = None
        self._names: dict[str, str] = {}  # of the base's weights: alone, and beside adapters
        self._whole = False
        self._network: tuple[nn.Module, ...] = ()  # in a tuple: it is the module's part, not this one's

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LoRA":
        return super()._apply(lambda x: _as_precise(fn(x), x), recurse)

    @property
    def scale(self) -> float:
        """alpha/rank."""
        return float(self.alpha) / self.rank

    # The network, and its base's weights

    def join(self, module: nn.Module, network: nn.Module) -> None:
        """Give a module's network its adapters; all else of the module is frozen, and the network's own not kept.

        Raises:
            ValueError: if a target names no layer, or the rank is above a layer's.
        """
        peft = installed("lora", "peft", "lora")
        chosen, alone = self._chosen(network), list(network.state_dict())
        module.requires_grad_(False)
        config = peft.LoraConfig(
            r=self.rank, lora_alpha=float(self.alpha), lora_dropout=self.dropout, target_modules=chosen
        )
        peft.inject_adapter_in_model(config, network)
        for name in chosen:
            layer: Any = network.get_submodule(name)
            layer.lora_A, layer.lora_B = Kept(layer.lora_A.float()), Kept(layer.lora_B.float())
        adapted = {f"{name}.{kind}": f"{name}.base_layer.{kind}" for name in chosen for kind in ("weight", "bias")}
        self._names = {name: adapted.get(name, name) for name in alone}
        self._network = (network,)
        network.register_state_dict_post_hook(partial(self._left_out))  # a bound method takes no mark
        network.register_load_state_dict_pre_hook(self._completed)

    def _chosen(self, network: nn.Module) -> list[str]:
        layers = {name: part for name, part in network.named_modules() if type(part) in LAYERS and _plain(part)}
        wanted = ATTENTION if self.targets is None else tuple(self.targets)
        found = {end: [name for name in layers if f".{name}".endswith(f".{end}")] for end in wanted}
        missing = [end for end in wanted if not found[end]] if self.targets else [] if any(found.values()) else ["any"]
        if missing:
            ends = sorted({".".join(name.split(".")[-k:]) for name in layers for k in (1, 2)})
            near = get_close_matches(missing[0], ends, n=3, cutoff=0.4) or ends[:6]
            what = f"has {missing[0]}" if self.targets else "leaves out targets, which are those of attention"
            raise ValueError(
                f"lora {what}, but no linear layer or convolution of the {type(network).__name__} has such a name: "
                f"give ends of names such as {', '.join(near) or 'none, since it has no such layers'}"
            )
        chosen = sorted({name for names in found.values() for name in names})
        for name in chosen:
            shape: Any = layers[name].weight.shape
            most = min(shape[0], math.prod(shape[1:]))
            if self.rank > most:
                raise ValueError(
                    f"lora's rank is {self.rank}, but its target {name} is a matrix of {shape[0]} × "
                    f"{math.prod(shape[1:])}, of rank {most} at most: give a rank ≤ {most}, or targets without it"
                )
        return chosen

    def _left_out(self, network: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
        for name in () if self._whole else self._names.values():
            state.pop(prefix + name, None)

    def _completed(self, network: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
        """The base's weights may have the names that they have alone, or be left out, and then stay."""
        own = self._state()
        for name, x in own.items():
            given = state.pop(prefix + name, None)
            state.setdefault(prefix + self._names[name], x if given is None else given)

    def _state(self) -> dict[str, Tensor]:
        self._whole = True
        try:
            state = self._network[0].state_dict()
        finally:
            self._whole = False
        return {name: state[other] for name, other in self._names.items()}

    def unadapted(self, module: nn.Module, network: str = "denoiser.network.") -> dict[str, Tensor]:
        """The state of a module as it is without adapters."""
        rest = {name: x for name, x in module.state_dict().items() if not name.startswith((network, f"{NAME}."))}
        return rest | {network + name: x for name, x in self._state().items()}

    # What is adapted: the weights of a checkpoint, or of the file that an earlier part of the run wrote

    @property
    def frozen(self) -> Base | None:
        """The base, once there is one."""
        if self._base is None and self._source is not None:  # at a checkpoint, when it has the type that it trains in
            self._base = Base(self._source, self._state)
        return self._base

    def start(self, source: str) -> None:
        """From here on the network's weights are the base; `source` is where they came from."""
        self._base, self._source = None, source

    def go_on(self, checkpoint: dict[str, Any], path: str | Path) -> None:
        """Give the network the base of a checkpoint, from the file beside it.

        Raises:
            ValueError: if there is no such file, or the base or alpha are another.
        """
        self.check(checkpoint["state_dict"], path)
        base = base_of(checkpoint, path)
        if self._base is not None and self._base.hash == base.hash:
            return
        weights, own = base.weights(), self._state()
        shapes, theirs = ({name: x.shape for name, x in side.items()} for side in (own, weights))
        if shapes != theirs:
            stray = next(name for name in (*shapes, *theirs) if shapes.get(name) != theirs.get(name))
            raise ValueError(
                f"{base.file} is of another network than this run's, since its {stray} is "
                f"{list(theirs.get(stray, ())) or 'missing'}: give the configuration that {path} was trained with"
            )
        self._network[0].load_state_dict(weights, strict=False)
        self._base = base

    def check(self, state: dict[str, Tensor], path: str | Path) -> None:
        """Raise ValueError if the adapters of a checkpoint had another alpha."""
        theirs = state.get(f"{NAME}.alpha")
        if theirs is None or theirs.numel() != 1 or float(theirs) != float(self.alpha):
            said = "none" if theirs is None or theirs.numel() != 1 else f"{float(theirs):g}"
            raise ValueError(
                f"lora's alpha is {float(self.alpha):g}, but the adapters in {path} were trained with {said}: give the "
                "alpha that they were trained with"
            )

    def check_run(self, trainer: Trainer) -> None:
        """Raise ValueError if there is no base to adapt, or the strategy cuts weights that no file keeps."""
        if self._base is None and self._source is None:
            raise ValueError(
                "lora adapts trained weights, but this run starts from random ones: give the checkpoint of a model by "
                "--init_from, or in Python by diffusion_lightning.loading.start_from"
            )
        if fsdp.shards(trainer):
            raise ValueError(
                "lora trains adapters alone, which need no ModelParallelStrategy: set trainer.strategy to ddp"
            )


def base_of(checkpoint: dict[str, Any], path: str | Path) -> Base:
    """The base of a checkpoint's adapters, whose file lies beside it; raise ValueError if there is none."""
    name = checkpoint.get(KEY, {}).get(NAME)
    if name is None:
        raise ValueError(f"{path} has adapters, but does not name the weights that they adapt: use another checkpoint")
    file = Path(path).parent / FOLDER / f"{name}.safetensors"
    if not file.is_file():
        raise ValueError(
            f"{path} holds adapters of the weights in {file}, but that file is missing: copy it there from the run's "
            "checkpoints/frozen"
        )
    return Base(str(file))


def trained(module: Any) -> list[nn.Parameter]:
    """The parameters that an optimizer takes: of a module with LoRA its adapters, else all."""
    if (lora := getattr(module, NAME, None)) is None:
        return list(module.parameters())
    lora.check_run(module.trainer)
    return [p for p in module.parameters() if p.requires_grad]


def _plain(layer: Any) -> bool:
    """Whether a layer is a matrix at every place, without groups, gaps or another padding."""
    kept = [getattr(layer, name, usual) == usual for name, usual in (("groups", 1), ("padding_mode", "zeros"))]
    return all(kept) and set(getattr(layer, "dilation", (1,))) == {1}


def _as_precise(y: Tensor, x: Tensor) -> Tensor:
    """What a module's tensor x became, y, in no smaller type than x had."""
    smaller = y.is_floating_point() and y.element_size() < x.element_size()
    return x.to(y.device) if smaller else y
