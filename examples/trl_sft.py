"""A tiny GPT fine-tuned by TRL's unmodified SFTTrainer, on text and a tokenizer made here.

python -m sal_optim.run examples/trl_sft.py --output_dir out \
    --optim saladamw --optim_args protection=10.0 --max_steps 60

Without a GPU add --use_cpu.
"""

import inspect
import textwrap

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    HfArgumentParser,
    PreTrainedTokenizerFast,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

CONTEXT, END = 64, "<end>"


def main() -> None:
    (arguments,) = HfArgumentParser(SFTConfig).parse_args_into_dataclasses()
    arguments.max_length = CONTEXT
    set_seed(arguments.seed)
    texts = [part for part in inspect.getsource(textwrap).split("\n\n") if part.strip()]
    letters = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=300, special_tokens=[END], initial_alphabet=letters),
    )
    config = GPT2Config(
        vocab_size=tokenizer.get_vocab_size(),
        n_positions=CONTEXT,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    trainer = SFTTrainer(
        model=GPT2LMHeadModel(config),
        args=arguments,
        train_dataset=Dataset.from_dict({"text": texts}),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, eos_token=END, pad_token=END
        ),
    )
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)


if __name__ == "__main__":
    main()
