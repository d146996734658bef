"""`finetune --model smollm2` with a tiny model in the place of the real one."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.finetune import smollm2, trainer
from benchmarks.finetune.facts import FACTS, INSTRUCTIONS

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
    monkeypatch.setattr(trainer, "loaded", lambda: made)
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


def test_every_way_is_trained_recorded_and_read_back(
    tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [way.name for way in trainer.WAYS]
    if importlib.util.find_spec("peft") is None:
        names.remove("lora")
    command = ["finetune", "--model", "smollm2", "--steps", "4", "--batch", "2"]
    command += ["--sequences", "3", "--out", str(tmp_path), "--methods", *names]
    before = [p.detach().clone() for p in tiny[0].parameters()]
    assert main(command) == 0
    assert all(p.equal(old) for p, old in zip(tiny[0].parameters(), before, strict=True))
    records = sorted((tmp_path / "smollm2").glob("*-4x2-3-*.json"))
    assert len(records) == len(names)
    for path in records:
        found = json.loads(path.read_text())
        assert found["steps"] == [0, 1, 2, 4]
        assert all(math.isfinite(x) for losses in found["losses"] for x in losses.values())
        assert found["losses"][-1]["new"] != found["losses"][0]["new"]
        if "sal-" in path.name:
            # Nearly exact sides of 16, 32 and 129, of which 128 directions are kept.
            assert found["bytes_per_parameter"] > 20
            assert found["seconds_observing"] > 0
        if "lora" not in path.name:
            last = found["losses"][-1]["new"]
            kept = [found["kept"][share]["new"] for share in ("0.75", "0.5", "0.25")]
            assert len({last, *kept}) == 4
    written = [path.stat().st_mtime_ns for path in (tmp_path / "trainer").glob("*")]
    assert not written, "no checkpoints"
    capsys.readouterr()
    assert main(command) == 0
    assert "at 1:" not in capsys.readouterr().out, "nothing is trained again"
