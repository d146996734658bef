"""Names for ``--optim`` of transformers' TrainingArguments, a closed enumeration.

What a name builds is in ``transformers.py``, which needs the Trainer; command lines are parsed
before that is imported.
"""

from sal_optim.integrations import OPTIMIZERS


def register() -> None:
    """Add a member for each of the family, where it is missing."""
    from transformers.training_args import OptimizerNames

    for name in OPTIMIZERS:
        if name not in OptimizerNames._value2member_map_:
            member = str.__new__(OptimizerNames, name)
            member._name_, member._value_ = name.upper(), name
            OptimizerNames._member_names_.append(name.upper())
            OptimizerNames._member_map_[name.upper()] = member
            OptimizerNames._value2member_map_[name] = member
