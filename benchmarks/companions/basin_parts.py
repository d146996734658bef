"""What the experiments with basins share: the small GPT, its texts, and what tells a basin.

The area under the curve is that of a logistic regression (scikit-learn) on held-out prompts.
"""

from __future__ import annotations

from functools import lru_cache
from statistics import fmean

import torch
from torch import Tensor

from benchmarks.companions.channels import domains as prose_and_code
from benchmarks.data.characters import corpus
from benchmarks.runs.gpt import GPT
from sal_optim.companions import BasinMap

FOLDS, REPEATS = 5, 4


class Shorter(GPT):
    """Takes texts of up to CONTEXT characters, not of exactly as many."""

    def forward(self, text: Tensor) -> Tensor:
        time = text.shape[1]
        x = self.token(text) + self.place(torch.arange(time, device=text.device))
        assert isinstance(self.mask, Tensor)
        for block in self.blocks:
            x = block(x, src_mask=self.mask[:time, :time], is_causal=True)
        logits: Tensor = self.head(self.norm(x))
        return logits


@lru_cache(maxsize=1)
def texts() -> dict[str, Tensor]:
    """What it learns and is asked about, and what it is fine-tuned on."""
    codes = corpus(600_000)
    ends = int(0.8 * len(codes)), int(0.9 * len(codes))
    other = prose_and_code()["code"][0]  # with its letters turned
    return {"train": codes[: ends[0]], "prompts": codes[ends[0] :], "other": other[:200_000]}


def area(features: Tensor, fluent: Tensor, seed: int) -> float | None:
    """Area under the curve of a logistic regression on held-out prompts, by cross-validation."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    labels = fluent.long().numpy()
    if min(labels.sum(), len(labels) - labels.sum()) < FOLDS:
        return None  # one basin has nearly all
    found = []
    for repeat in range(REPEATS):
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=1000 * seed + repeat)
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
        rows = features.double().reshape(len(labels), -1).numpy()
        scores = cross_val_predict(classifier, rows, labels, cv=folds, method="decision_function")
        found.append(float(roc_auc_score(labels, scores)))
    return fmean(found)


def shares(now: BasinMap, start: BasinMap) -> dict[str, float]:
    """Parts of the prompts by basin, and of those that have changed theirs."""
    changed = fmean(a != b for a, b in zip(now.basins, start.basins, strict=True))
    return {**{name: row["share"] for name, row in now.table().items()}, "changed": changed}


def areas(found: BasinMap, seed: int) -> dict[str, float | None]:
    """Of each thing that is known before generation."""
    fluent = torch.tensor([basin == "fluent" for basin in found.basins])
    shuffled = fluent[torch.randperm(len(fluent), generator=torch.Generator().manual_seed(seed))]
    return {
        "last hidden state": area(found.hidden, fluent, seed),
        "length": area(found.lengths.float(), fluent, seed),
        "perplexity": area(found.surprise, fluent, seed),
        "hidden state, shuffled labels": area(found.hidden, shuffled, seed),
    }
