"""`python -m benchmarks finetune`: a pretrained language model learns B; what is left of A?

Texts in `texts.py`, the small network in `network.py`, ways to fine-tune in `methods/`, one run in
`run.py`, what is made of runs in `analysis.py` and `report.py`, a real model in `smollm2.py`, which
`trainer.py` trains and `trainer_tables.py` shows.
"""
