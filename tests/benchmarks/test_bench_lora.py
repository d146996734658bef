"""`python -m benchmarks lora`: texts in turn through LoRA adapters of PEFT."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.commands.lora import rows
from benchmarks.finetune import adapters
from benchmarks.finetune.adapters import TOLD, WAYS, Setting, in_four_bits, run
from benchmarks.finetune.network import GPT

SHORT = Setting("adamw", 3e-3, 0, "prose", ("code", "prose"), ("", ""), steps=20, pretrain=2)


@pytest.mark.parametrize("way", WAYS)
def test_each_way_learns_each_text(way: str, tmp_path: Path) -> None:
    """The first text at once; what a run says is what it says again."""
    pytest.importorskip("peft")
    setting = Setting(**{**SHORT.plain(), "way": way})
    losses = run(setting, tmp_path)["losses"]
    assert len(losses) == 3
    assert all(len(looks) == 3 for looks in losses)
    assert losses[1][0] < losses[0][0] - 0.1
    assert losses[2][1] < losses[1][1]
    assert losses == run(setting, tmp_path)["losses"]


def test_sal_is_not_adamw(tmp_path: Path) -> None:
    """From the first consolidation on, which is in the first text here."""
    pytest.importorskip("peft")
    plain = {**SHORT.plain(), "steps": 70}
    ends = {
        way: run(Setting(**{**plain, "way": way}), tmp_path)["losses"][-1]
        for way in ("adamw", "sal-adamw", "sal-adamw-told")
    }
    assert len({tuple(end) for end in ends.values()}) == 3


def test_o_lora_keeps_adapters_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first adapter is left as it was, and the second has other inputs."""
    pytest.importorskip("peft")
    shared = {}
    for weight in (0.0, adapters.APART):
        monkeypatch.setattr(adapters, "APART", weight)
        torch.manual_seed(0)
        texts = [torch.randint(32, 126, (2000,)) for _ in range(2)]
        draw = torch.Generator().manual_seed(0)
        first: dict[str, torch.Tensor] = {}
        for place, model in enumerate(WAYS["o-lora"](GPT(), SHORT, texts, draw)):
            own = {n: p for n, p in model.named_parameters() if ".0.weight" in n and "lora_" in n}
            if place == 0:
                first = {name: param.detach().clone() for name, param in own.items()}
            else:
                assert first
                assert all(torch.equal(first[name], param) for name, param in own.items())
                shared[weight] = sum(
                    float((layer.lora_A["0"].weight @ layer.lora_A["1"].weight.T).square().sum())
                    for layer in model.modules()
                    if hasattr(layer, "lora_A")
                )
    assert shared[adapters.APART] < 0.1 * shared[0.0]


def test_four_bits_say_nearly_the_same() -> None:
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    network, text = GPT(), torch.randint(32, 126, (2, 64))
    before = network(text)
    in_four_bits(network)
    assert network.blocks[0].up.weight.dtype == torch.uint8
    after = network(text)
    assert not torch.equal(before, after)
    torch.testing.assert_close(before, after, atol=0.5, rtol=0.0)


def test_rows_are_means_over_texts_and_seeds() -> None:
    plan = [
        Setting(way, 1e-3, seed, "prose", ("a", "b"), ("", "", ""))
        for way in ("adamw", "o-lora")
        for seed in (0, 1)
    ]
    before, after = [3.0, 3.0, 1.0], [2.0, 2.5, 1.5]
    results = [
        {"losses": [before, after, [end + seed, 2.0, 2.0]]}
        for end, seed in ((2.5, 0), (2.5, 1), (2.0, 0), (2.0, 1))
    ]
    made = rows(plan, results)
    assert made[0][:4] == ("before", "", "", "3.000 ± 0.000")
    # The end of the two texts: (2.5 + 2) / 2 and (3.5 + 2) / 2.
    assert made[1][:4] == ("adamw", "no", "0.001", "2.500 ± 0.354")
    assert made[1][4:7] == ("2.000 ± 0.000", "2.000 ± 0.000", "2.000 ± 0.000")
    assert made[2][0:2] == ("o-lora", "given")
    assert made[2][7] == "**-0.250 [-0.250, -0.250]**"
    assert set(TOLD) < set(WAYS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--domains", "code", "--methods", "lora"], "--methods"),
        (["--domains", "code", "--rank", "0"], "--rank"),
        (["--domains", "code", "--data-dir", "/nowhere"], "--data-dir"),
        (["--domains", "code", "--seeds", "0"], "--seeds"),
    ],
)
def test_bad_input_is_named(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lora", *arguments, "--out", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
