"""Writes a tiny causal language model with its tokenizer, and a data set of text beside it.

python tests/integrations/small_model.py model
"""

import inspect
import json
import sys
import textwrap
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast


def main() -> None:
    texts = [part for part in inspect.getsource(textwrap).split("\n\n") if part.strip()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=300, special_tokens=["<end>"], initial_alphabet=letters),
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")
    config = GPT2Config(
        vocab_size=tokenizer.get_vocab_size(), n_positions=1024, n_embd=32, n_layer=2, n_head=2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(sys.argv[1])
    fast.save_pretrained(sys.argv[1])
    Path("data").mkdir()
    lines = (json.dumps({"text": text}) for text in texts)
    Path("data/train.jsonl").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
