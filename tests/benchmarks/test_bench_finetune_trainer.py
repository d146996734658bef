"""`finetune --model smollm2` with a tiny model in the place of the real one."""

from __future__ import annotations

import importlib.util
import json
import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.finetune import sequence, smollm2, trainer
from benchmarks.finetune.facts import FACTS, INSTRUCTIONS
from benchmarks.finetune.methods import METHODS

pytest.importorskip("transformers")
pytest.importorskip("accelerate")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A Llama of one block over characters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = {chr(code): code for code in range(128)}
    inner = Tokenizer(models.WordLevel({**letters, "<s>": 128}, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", unk_token="?")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=129, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, bos_token_id=128, eos_token_id=None,
    )  # fmt: skip
    made = LlamaForCausalLM(config), tokenizer
    for module in (trainer, sequence):
        monkeypatch.setattr(module, "loaded", lambda: made)
    return made


def test_questions_are_scored_by_likelihood(tiny: Any) -> None:
    model, tokenizer = tiny
    for questions, chat in ((FACTS, False), (INSTRUCTIONS, True)):
        assert 0 <= smollm2.known(model, tokenizer, questions, chat) <= 1
    # A model that has been taught one right answer prefers it.
    question = FACTS[0]
    row = torch.tensor([tokenizer(question.prompt + question.answers[0])["input_ids"]])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        smollm2.token_loss(model, row).backward()
        optimizer.step()
    assert smollm2.known(model, tokenizer, [question], chat=False) == 1


COMMAND = ["finetune", "--model", "smollm2", "--batch", "2", "--sequences", "3"]


def test_every_way_is_trained_recorded_and_read_back(
    tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ways = [w for w in trainer.WAYS if w.method != "lora" or importlib.util.find_spec("peft")]
    names = {way.method: None for way in ways}
    command = [*COMMAND, "--steps", "4", "--out", str(tmp_path), "--methods", *names]
    before = [p.detach().clone() for p in tiny[0].parameters()]
    assert main(command) == 0
    assert all(p.equal(old) for p, old in zip(tiny[0].parameters(), before, strict=True))
    records = sorted((tmp_path / "smollm2").glob("*-4x2-3-fp32.json"))
    assert len(records) == len(ways)
    for path in records:
        found = json.loads(path.read_text())
        assert found["steps"] == [0, 1, 2, 3, 4]
        assert all(math.isfinite(x) for losses in found["losses"] for x in losses.values())
        assert found["losses"][-1]["new"] != found["losses"][0]["new"]
        assert len(found["knowledge"]) == len(found["examples"]) == 2
        assert found["distance"] > 0
        if path.name.startswith(("sal-restore", "sal-kronecker")):
            # Nearly exact sides of 16, 32 and 129, of which 64 directions are kept.
            assert found["bytes_per_parameter"] > 20
            assert found["seconds_observing"] > 0
        ours = "sal-" in path.name
        assert found.get("kept", {}).keys() == (
            set() if "lora" in path.name else {"average", "restore"} if ours else {"average"}
        )
        for kept in found.get("kept", {}).values():
            assert len({found["losses"][-1]["new"], *(k["new"] for k in kept)}) > 1
        if ours:
            assert found["kept"]["average"] != found["kept"]["restore"]
    assert not list((tmp_path / "trainer").glob("*")), "no checkpoints are left"
    text = (tmp_path / "smollm2-code.md").read_text()
    assert all(way.label in text for way in ways)
    assert (tmp_path / "smollm2-code.png").stat().st_size > 10_000
    capsys.readouterr()
    assert main(command) == 0
    assert " at 1:" not in capsys.readouterr().out, "nothing is trained again"


def test_a_changed_package_has_its_ways_trained_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What others came to stays on record."""
    args = Namespace(steps=4, batch=2, sequences=3, bf16=False, new="code")
    found = [{way.method: trainer.key(way, args) for way in trainer.WAYS}]
    monkeypatch.setattr(trainer, "package_sources", lambda: (Path(__file__),))
    found.append({way.method: trainer.key(way, args) for way in trainer.WAYS})
    changed = {name for name in found[0] if found[0][name] != found[1][name]}
    assert changed == {name for name in found[0] if METHODS[name].is_sal}


@pytest.mark.parametrize("method", ["adamw", "sal-restore", "ewc"])
def test_a_stopped_run_goes_on_where_it_was(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    way = next(way for way in trainer.WAYS if way.method == method)
    monkeypatch.setattr(trainer, "WAYS", (way,))
    command = [*COMMAND, "--steps", "8", "--no-figures"]
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    losses, seen = smollm2.Measure.losses, []

    def stopping(self: Any, model: Any) -> Any:
        seen.append(1)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return losses(self, model)

    monkeypatch.setattr(smollm2.Measure, "losses", stopping)
    stopped = [*command, "--out", str(tmp_path / "stopped")]
    assert main(stopped) != 0
    assert list((tmp_path / "stopped" / "trainer").glob("*/checkpoint-*"))
    assert main(stopped) == 0
    whole, gone_on = (
        json.loads(next((tmp_path / name / "smollm2").glob(f"{method}*.json")).read_text())
        for name in ("whole", "stopped")
    )
    assert whole["steps"] == gone_on["steps"]
    for one, other in zip(whole["losses"], gone_on["losses"], strict=True):
        assert one == pytest.approx(other, rel=1e-6)
    assert whole["kept"].keys() == gone_on["kept"].keys()
    for name, kept in whole["kept"].items():
        for one, other in zip(kept, gone_on["kept"][name], strict=True):
            assert one == pytest.approx(other, rel=1e-5)


def test_texts_in_turn(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each way through a Trainer for each text; one that was stopped goes on after the last."""
    command = ["finetune", "--domains", "code", "prose", "--steps", "3", "--batch", "4"]
    command += ["--methods", *{way.name: None for way in sequence.WAYS}]
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    found = {path.name: json.loads(path.read_text()) for path in _of(tmp_path / "whole")}
    assert len(found) == 1 + len(sequence.WAYS)
    for name, run in found.items():
        assert len(run) == (1 if name.startswith("before") else 3)
        assert all(math.isfinite(value) for after in run for value in after.values())
    (plain,) = (run for name, run in found.items() if name.startswith("adamw_0.0003"))
    (held,) = (run for name, run in found.items() if name.startswith("sal-adamw_0.0003"))
    peers = [
        next(run for name, run in found.items() if name.startswith(method))
        for method in ("wise-ft", "fapm", "ewc", "l2-sp")
    ]
    for after in (1, 2):
        assert len({run[after]["code"] for run in (plain, held, *peers)}) == 6
    assert all(run[0] == plain[0] for run in (held, *peers))
    assert not [path for path in (tmp_path / "whole" / "sequence").iterdir() if path.is_dir()]

    train, begun = sequence._trained, []

    def stopping(*args: Any) -> None:
        begun.append(args[:1])
        if len(begun) == 4:  # the second text of the second way, which is handed importance on
            raise KeyboardInterrupt
        train(*args)

    monkeypatch.setattr(sequence, "_trained", stopping)
    stopped = [*command, "--out", str(tmp_path / "stopped")]
    assert main(stopped) != 0
    assert main(stopped) == 0
    assert len(begun) == 2 * len(sequence.WAYS) + 1, "what was done is not done again"
    for path in _of(tmp_path / "stopped"):
        for one, other in zip(json.loads(path.read_text()), found[path.name], strict=True):
            assert one == pytest.approx(other, rel=1e-5)
    assert "sal-adamw 0.0003" in capsys.readouterr().out


def _of(folder: Path) -> list[Path]:
    return sorted((folder / "sequence").glob("*.json"))
