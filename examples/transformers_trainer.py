"""A tiny GPT on Python's own documentation strings, by transformers' unmodified Trainer.

python -m sal_optim.run examples/transformers_trainer.py --output_dir out \
    --optim saladamw --optim_args protection=10.0 --max_steps 60 --report_to tensorboard
"""

import inspect
import textwrap

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)

CONTEXT = 64


def blocks() -> list[dict[str, torch.Tensor]]:
    """Bytes of a module of the standard library, in blocks."""
    text = inspect.getsource(textwrap).encode()
    rows = torch.tensor(list(text[: len(text) // CONTEXT * CONTEXT])).view(-1, CONTEXT)
    return [{"input_ids": row, "labels": row} for row in rows]


def main() -> None:
    (arguments,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
    set_seed(arguments.seed)
    config = GPT2Config(
        vocab_size=256, n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=2, bos_token_id=0
    )
    trainer = Trainer(model=GPT2LMHeadModel(config), args=arguments, train_dataset=blocks())
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)


if __name__ == "__main__":
    main()
