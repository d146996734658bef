"""Several texts one after the other through LoRA adapters of PEFT, on the small GPT.

Nobody tells AdamW and SALAdamW that the text changes; SALAdamW may hear the training loss, as
Lightning's and fastai's callbacks tell it. The other ways are told: SALAdamW that consolidates
where a text ends; an adapter a text whose input directions are kept apart from those before
(O-LoRA, Wang et al. 2023, arXiv 2310.14152); and an adapter a text from the same network, averaged
in the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.data.characters import next_loss, windows
from benchmarks.finetune.network import GPT, held_out, pretrained, spread_windows
from benchmarks.finetune.run import schedule
from benchmarks.finetune.texts import load
from sal_optim import SALAdamW

Split = Literal["validation", "test"]
LAYERS = ("query", "key", "value", "out", "up", "down")
APART = 0.5  # the weight of O-LoRA's penalty, the sum of squares of its paper; not tuned
DIVERGED = 100.0  # the loss of a run that is no number any more
HELD_OUT = 64  # sequences of each text that a look measures


@dataclass(frozen=True)
class Setting:
    """Everything that decides a run's result."""

    way: str
    lr: float
    seed: int
    old: str
    texts: tuple[str, ...]
    fingerprints: tuple[str, ...]
    steps: int = 150
    batch: int = 8
    rank: int = 8
    pretrain: int = 400
    split: Split = "test"
    four_bits: bool = False  # of the network's own weights

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def run(setting: Setting, folder: Path, data_dir: str | None = None) -> dict[str, Any]:
    """The loss on each text, the old one last: before, and after each text."""
    torch.set_num_threads(1)
    network = pretrained(load(setting.old, data_dir), setting.pretrain, setting.seed, folder)
    torch.manual_seed(setting.seed)
    if setting.four_bits:
        in_four_bits(network)
    texts = [load(name, data_dir) for name in (*setting.texts, setting.old)]
    looked_at = [spread_windows(getattr(text, setting.split), HELD_OUT) for text in texts]
    losses = [[held_out(network, part) for part in looked_at]]
    draw = torch.Generator().manual_seed(setting.seed)
    for model in WAYS[setting.way](network, setting, [text.train for text in texts[:-1]], draw):
        looks = [held_out(model, part) for part in looked_at]
        losses.append([loss if math.isfinite(loss) else DIVERGED for loss in looks])
    return {"losses": losses}


def _one(
    make: Callable[..., Any], *, told: bool = False, hears: bool = False
) -> Callable[..., Iterator[nn.Module]]:
    """One adapter and one optimizer for all texts.

    Args:
        make: the optimizer's class.
        told: whether it consolidates where a text ends.
        hears: whether it is told the loss of each step.
    """

    def trained(
        network: GPT, setting: Setting, texts: list[Tensor], draw: torch.Generator
    ) -> Iterator[nn.Module]:
        model = _with_adapter(network, setting)
        optimizer = make(_trained(model), lr=setting.lr)
        for text in texts:
            _learn(model, optimizer, text, setting, draw, hears=hears)
            if told:
                optimizer.consolidate()
            yield model

    return trained


def _apart(
    network: GPT, setting: Setting, texts: list[Tensor], draw: torch.Generator
) -> Iterator[nn.Module]:
    """O-LoRA: all adapters at work, the last one trained, its inputs apart from the others'."""
    for model, place, text in _with_one_each(network, setting, texts):
        model.base_model.set_adapter([str(index) for index in range(place + 1)])
        own = [f".{place}.weight" in name for name, _ in model.named_parameters()]
        for (name, param), mine in zip(model.named_parameters(), own, strict=True):
            param.requires_grad_("lora_" in name and mine)
        inputs = [
            [layer.lora_A[str(index)].weight for index in range(place + 1)]
            for layer in model.modules()
            if hasattr(layer, "lora_A")
        ]
        optimizer = torch.optim.AdamW(_trained(model), lr=setting.lr)

        def penalty(inputs: list[list[Tensor]] = inputs) -> Tensor:
            shared = [(old @ now.T).square().sum() for *olds, now in inputs for old in olds]
            return APART * torch.stack(shared).sum() if shared else torch.zeros(())

        _learn(model, optimizer, text, setting, draw, penalty)
        yield model


def _averaged(
    network: GPT, setting: Setting, texts: list[Tensor], draw: torch.Generator
) -> Iterator[nn.Module]:
    """An adapter a text, each from the network itself; the mean of their changes."""
    for model, place, text in _with_one_each(network, setting, texts):
        model.set_adapter(str(place))
        optimizer = torch.optim.AdamW(_trained(model), lr=setting.lr)
        _learn(model, optimizer, text, setting, draw)
        names, mean = [str(index) for index in range(place + 1)], f"mean{place}"
        shares = [1.0 / len(names)] * len(names)
        model.add_weighted_adapter(names, shares, mean, combination_type="cat")
        model.set_adapter(mean)
        yield model
        model.delete_adapter(mean)


WAYS: dict[str, Callable[..., Iterator[nn.Module]]] = {
    "adamw": _one(torch.optim.AdamW),
    "sal-adamw": _one(SALAdamW),
    "sal-adamw-loss": _one(SALAdamW, hears=True),
    "sal-adamw-told": _one(SALAdamW, told=True),
    "o-lora": _apart,
    "averaged": _averaged,
}
TOLD = ("sal-adamw-told", "o-lora", "averaged")  # where one text ends


def _learn(
    model: nn.Module,
    optimizer: Any,
    text: Tensor,
    setting: Setting,
    draw: torch.Generator,
    penalty: Callable[[], Tensor] | None = None,
    *,
    hears: bool = False,
) -> None:
    for step in range(setting.steps):
        optimizer.param_groups[0]["lr"] = setting.lr * schedule(step, setting.steps)
        optimizer.zero_grad()
        loss = next_loss(model, windows(text, setting.batch, draw))
        if penalty is not None:
            loss = loss + penalty()
        loss.backward()  # type: ignore[no-untyped-call]
        if hears:
            optimizer.tell(loss=loss.detach())
        optimizer.step()


def _with_adapter(network: GPT, setting: Setting) -> Any:
    from peft import get_peft_model

    wrapped: Any = network
    return get_peft_model(wrapped, _config(setting), adapter_name="0")


def _with_one_each(
    network: GPT, setting: Setting, texts: list[Tensor]
) -> Iterator[tuple[Any, int, Tensor]]:
    """The network with one adapter more for each text."""
    model = _with_adapter(network, setting)
    for place, text in enumerate(texts):
        if place:
            model.add_adapter(str(place), _config(setting))
        yield model, place, text


def _config(setting: Setting) -> Any:
    from peft import LoraConfig

    rank = setting.rank
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(LAYERS))


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [param for param in model.parameters() if param.requires_grad]


def in_four_bits(network: GPT) -> None:
    """The linear layers of the blocks in bitsandbytes' normal floats of four bits (QLoRA)."""
    from bitsandbytes.nn import Linear4bit

    for block in network.blocks:
        for name in LAYERS:
            old = getattr(block, name)
            new = Linear4bit(
                old.in_features, old.out_features, quant_type="nf4", compute_dtype=torch.float32
            )
            new.load_state_dict(old.state_dict())
            setattr(block, name, new.to("cpu"))  # which quantizes
    network.is_loaded_in_4bit = True  # type: ignore[assignment]  # PEFT asks for it
