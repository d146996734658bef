"""``basin_map``: what a language model's generations do from each of a set of prompts.

Fluent, a loop, or a collapse onto few tokens, by repetition and entropy of what is generated. It
trains nothing. Whether the basin can be told before generation is a question for a classifier of
``hidden``, and is asked in ``benchmarks/companions/basins.py``; pictures are in ``basin_plot.py``.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sal_optim.companions.activations import Tap, layer_of, tensor_of, unwrapped
from sal_optim.companions.repetition import repetition_rate
from sal_optim.utils import checks
from sal_optim.utils.evaluating import evaluating

FLUENT, LOOP, COLLAPSE = BASINS = ("fluent", "loop", "collapse")
LOOPS, COLLAPSES = 0.2, 1.5 / math.log(64)
Generate = Callable[[Tensor, int], Tensor]


class BasinMap(NamedTuple):
    """By prompt, in their order."""

    basins: tuple[str, ...]  # of BASINS
    repetition: Tensor  # 1 - unique/total of the n-grams generated
    entropy: Tensor  # of the tokens generated, over its largest value, in [0, 1]
    lengths: Tensor  # of the prompts, in tokens
    surprise: Tensor  # mean cross-entropy of the prompt's own tokens, in nats: ln of its perplexity
    hidden: Tensor  # the layer's output at the prompt's last token, before generation
    generated: tuple[Tensor, ...]

    def table(self) -> dict[str, dict[str, float]]:
        """By basin: prompts, their share, and means of repetition and entropy."""
        found = {}
        for name in BASINS:
            own = torch.tensor([basin == name for basin in self.basins])
            count = int(own.sum())
            found[name] = {
                "prompts": float(count),
                "share": count / len(self.basins),
                "repetition": float(self.repetition[own].mean()),  # NaN of none
                "entropy": float(self.entropy[own].mean()),
            }
        return found


def basin_map(
    model: nn.Module,
    prompts: Sequence[Tensor],
    *,
    length: int = 64,
    layer: str | None = None,
    temperature: float = 0.0,
    context: int | None = None,
    n: int = 3,
    loop: float = LOOPS,
    collapse: float = COLLAPSES,
    generate: Generate | None = None,
    seed: int = 0,
) -> BasinMap:
    """Generate from each prompt and tell what the generation does.

    - *collapse*: the entropy of the tokens generated, over ln(tokens generated), is below
      ``collapse``. The default is 1.5 nats of 64 tokens.
    - *loop*: it is not, and more than ``loop`` of the n-grams repeat earlier ones.
    - *fluent*: neither.

    The model runs in ``eval()`` mode without gradients, and the mode of each module is put back.

    Args:
        model: takes tokens, batch by time, and puts out logits, batch by time by vocabulary: as a
            tensor, as ``.logits``, or first of a tuple. Prompts of one length share a batch.
        prompts: one or more vectors of tokens, each of 2 or more.
        length: tokens to generate, at least ``n``.
        layer: whose output at the last token of the prompt is kept, as ``hidden``. Default: the
            logits.
        temperature: of sampling; 0: the likeliest token.
        context: tokens at the end of the text that the model is given, at least 2. Default: all.
        n: length of the n-grams. Of characters, natural text repeats shorter ones.
        loop, collapse: thresholds, in [0, 1].
        generate: takes prompts of one length, batch by time, and ``length``, and returns what
            follows them. Default: a loop over tokens without a cache.
        seed: of sampling.
    """
    inner = unwrapped(model)
    if layer is not None:
        layer_of(model, layer)
    n = checks.whole("n", n, low=1)
    length = checks.whole("length", length, low=n)
    temperature = checks.number("temperature", temperature)
    loop = checks.number("loop", loop, high=1.0, high_open=False)
    collapse = checks.number("collapse", collapse, high=1.0, high_open=False)
    context = None if context is None else checks.whole("context", context, low=2)
    draw = torch.Generator().manual_seed(checks.whole("seed", seed, low=0))
    given = _prompts(prompts)
    if generate is not None:
        checks.function("generate", generate, "a function of prompts and length")
    groups: dict[int, list[int]] = {}
    for place, prompt in enumerate(given):
        groups.setdefault(len(prompt), []).append(place)
    rows: list[tuple[Tensor, Tensor, Tensor]] = [(torch.empty(0),) * 3] * len(given)
    with torch.no_grad(), evaluating(inner):
        for places in groups.values():
            batch = torch.stack([given[place] for place in places])
            # Not what torch.compile made of it: one that was traced before runs no new hook.
            surprise, hidden = _read(inner, batch, layer, context)
            if generate is None:
                made = _follow(model, batch, length, temperature, context, draw)
            else:
                made = generate(batch, length)
                _check_generated(made, len(batch), n)
            for row, place in enumerate(places):
                rows[place] = surprise[row].cpu(), hidden[row].float().cpu(), made[row].cpu()
    generated = tuple(row[2] for row in rows)
    repeated = torch.tensor([repetition_rate(text, n) for text in generated])
    entropy = torch.tensor([_entropy(text) for text in generated])
    basins = tuple(
        COLLAPSE if e < collapse else LOOP if r > loop else FLUENT
        for e, r in zip(entropy.tolist(), repeated.tolist(), strict=True)
    )
    lengths = torch.tensor([len(prompt) for prompt in given])
    surprises, features = (torch.stack([row[i] for row in rows]) for i in (0, 1))
    return BasinMap(basins, repeated, entropy, lengths, surprises, features, generated)


def _read(
    model: nn.Module, batch: Tensor, layer: str | None, context: int | None
) -> tuple[Tensor, Tensor]:
    """The surprise of each prompt, and what the layer puts out at its last token."""
    shown = batch if context is None else batch[:, -context:]
    tap = None if layer is None else Tap(model, model, layer, detach=True)
    try:
        logits = _logits(model(shown))
        caught = logits if tap is None else tap.caught
    finally:
        if tap is not None:
            tap.remove()
    if caught is None or caught.dim() != 3 or caught.shape[:2] != shown.shape:
        what = "nothing" if caught is None else f"shape {tuple(caught.shape)}"
        raise ValueError(
            f"Invalid layer value: {layer!r} puts out {what}; layer must put out batch by time by "
            "features"
        )
    each = nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), shown[:, 1:].flatten(), reduction="none"
    )
    return each.view(len(shown), -1).mean(1), caught[:, -1]


def _follow(
    model: nn.Module,
    batch: Tensor,
    length: int,
    temperature: float,
    context: int | None,
    draw: torch.Generator,
) -> Tensor:
    text = batch
    for _ in range(length):
        shown = text if context is None else text[:, -context:]
        logits = _logits(model(shown))[:, -1].float()
        if temperature == 0.0:
            token = logits.argmax(1, keepdim=True)
        else:
            chances = (logits / temperature).softmax(1).cpu()
            token = torch.multinomial(chances, 1, generator=draw).to(text.device)
        text = torch.cat([text, token], 1)
    return text[:, batch.shape[1] :]


def _entropy(tokens: Tensor) -> float:
    """-Σ p ln p of the tokens' shares, over ln of their number."""
    counts = torch.unique(tokens, return_counts=True)[1].double()
    shares = counts / counts.sum()
    return float(-(shares * shares.log()).sum() / max(math.log(len(tokens)), 1e-12))


def _logits(output: Any) -> Tensor:
    found = tensor_of(getattr(output, "logits", output))
    if found is None or found.dim() != 3:
        what = type(output).__name__ if found is None else f"tensor of shape {tuple(found.shape)}"
        raise TypeError(
            f"Invalid model value: it puts out a {what}; model must put out logits, batch by time "
            "by vocabulary"
        )
    return found


def _prompts(prompts: Any) -> list[Tensor]:
    allowed = "prompts must be one or more vectors of tokens, each of 2 or more"
    if not isinstance(prompts, Sequence) or isinstance(prompts, str):
        raise TypeError(f"Invalid prompts value: a {type(prompts).__name__}; {allowed}")
    if not prompts:
        raise ValueError(f"Invalid prompts value: none; {allowed}")
    for place, prompt in enumerate(prompts):
        if not isinstance(prompt, Tensor) or prompt.is_floating_point():
            raise TypeError(f"Invalid prompts value: {place} is no tensor of tokens; {allowed}")
        if prompt.dim() != 1 or len(prompt) < 2:
            raise ValueError(
                f"Invalid prompts value: {place} is of shape {tuple(prompt.shape)}; {allowed}"
            )
    return list(prompts)


def _check_generated(made: Any, count: int, n: int) -> None:
    tokens = isinstance(made, Tensor) and not made.is_floating_point() and made.dim() == 2
    if not tokens or len(made) != count or made.shape[1] < n:
        what = type(made).__name__
        if isinstance(made, Tensor):
            what = f"{tuple(made.shape)}, {made.dtype}"
        raise ValueError(
            f"Invalid generate value: it returned {what}; generate must return whole numbers, "
            f"{count} by {n} or more"
        )
