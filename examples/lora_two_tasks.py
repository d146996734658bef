"""A small GPT, then two data sets one after the other through one LoRA adapter of PEFT.

python examples/lora_two_tasks.py --optimizer saladamw
python examples/lora_two_tasks.py --optimizer adamw
"""

import argparse
import codecs
import inspect
import json
import statistics
import textwrap
from types import ModuleType

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import sal_optim
from sal_optim import SALAdamW

CONTEXT, BATCH = 64, 8


def text_of(module: ModuleType, change: str = "none") -> Tensor:
    """Bytes of a module of the standard library in rows; ``change`` makes other text of it."""
    text = inspect.getsource(module)
    text = {"swapcase": text.swapcase(), "rot13": codecs.encode(text, "rot13")}.get(change, text)
    rows = torch.tensor(list(text.encode()))
    rows = 255 - rows if change == "inverted" else rows
    return rows[: len(rows) // CONTEXT * CONTEXT].view(-1, CONTEXT)


def train(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, rows: Tensor, steps: int
) -> None:
    model.train()
    for _ in range(steps):
        batch = rows[torch.randint(0, len(rows), (BATCH,))]
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()


@torch.no_grad()
def loss(model: torch.nn.Module, rows: Tensor) -> float:
    model.eval()
    return float(model(input_ids=rows[:64], labels=rows[:64]).loss)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--optimizer", choices=["adamw", "saladamw"], default="saladamw")
    changes = ["inverted", "rot13", "swapcase"]
    parser.add_argument("--new", choices=changes, default="inverted", help="the second data set")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", action="store_true", help="print what is held, by tensor")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    config = GPT2Config(
        vocab_size=256, n_positions=CONTEXT, n_embd=64, n_layer=2, n_head=2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    base = GPT2LMHeadModel(config)
    general = text_of(statistics)
    train(base, torch.optim.AdamW(base.parameters(), lr=2e-3), general, arguments.steps)

    adapter = LoraConfig(r=8, lora_alpha=16, target_modules=["c_attn", "c_proj", "c_fc"])
    model = get_peft_model(base, adapter)
    trained = [param for param in model.parameters() if param.requires_grad]
    cls = SALAdamW if arguments.optimizer == "saladamw" else torch.optim.AdamW
    optimizer = cls(trained, lr=arguments.lr)
    old, new = text_of(textwrap), text_of(json.decoder, arguments.new)
    for rows in (old, new):  # nothing says that the data changes
        train(model, optimizer, rows, arguments.steps)
        print(f"{cls.__name__}: old {loss(model, old):.2f}, new {loss(model, new):.2f}")
    if arguments.report and cls is SALAdamW:
        sal_optim.report(optimizer, model)


if __name__ == "__main__":
    main()
