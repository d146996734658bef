"""`python -m benchmarks COMMAND`: finds the command's module and runs its main().

Each command is a module of its own, imported only when it is asked for.
"""

from __future__ import annotations

import importlib
import sys

from benchmarks.data.errors import UserError, require_choice

# command -> (module, what --help says)
COMMANDS = {
    "companions": (
        "benchmarks.commands.companions",
        "experiments with self-models, spectra, budgets, residuals and shift",
    ),
    "continual": (
        "benchmarks.commands.continual",
        "compare forgetting on streams of tasks (make bench)",
    ),
    "crosscheck": (
        "benchmarks.commands.crosscheck",
        "our baselines beside Avalanche's, on the same batches",
    ),
    "external": (
        "benchmarks.commands.external",
        "harnesses that others wrote, given our optimizers",
    ),
    "finetune": (
        "benchmarks.commands.finetune",
        "a pretrained language model learns a text: what it still knows",
    ),
    "lora": ("benchmarks.commands.lora", "texts in turn through LoRA adapters of PEFT"),
    "memory": ("benchmarks.commands.memory", "bytes a parameter, kept and at the peak of a step"),
    "ordinary": ("benchmarks.commands.ordinary", "on one distribution, does SAL lose anything?"),
    "report": (
        "benchmarks.commands.report",
        "one HTML page of all results, with figures and intervals",
    ),
    "speed": ("benchmarks.commands.speed", "time of a step, beside torch's and other packages'"),
    "tune": (
        "benchmarks.commands.tune",
        "choose learning rates and options, the same trials for each method",
    ),
}


def usage() -> str:
    lines = [f"  {name:<12} {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: python -m benchmarks COMMAND [options]",
            "",
            "commands:",
            *lines,
            "",
            "python -m benchmarks COMMAND --help lists its options, with examples.",
        ]
    )


def main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    try:
        require_choice("COMMAND", argv[0], COMMANDS)
        module = importlib.import_module(COMMANDS[argv[0]][0])
        status: int = module.main(argv[1:])
        return status
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; runs that were finished are on record", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
