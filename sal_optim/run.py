"""Runs a training script unchanged, with the family registered in every package that it uses.

python -m sal_optim.run train.py --optim saladamw --optim_args protection=0.1
python -m sal_optim.run -m package.train --opt sallion
"""

import runpy
import sys
from pathlib import Path

from sal_optim.integrations import register

_USAGE = "usage: python -m sal_optim.run [-m] SCRIPT [ARGUMENTS ...]"


def main() -> None:
    """Register, and become the script."""
    arguments = sys.argv[1:]
    is_module = arguments[:1] == ["-m"]
    if is_module:
        arguments = arguments[1:]
    if not arguments or (not is_module and arguments[0].startswith("-")):
        sys.exit(_USAGE)
    script = arguments[0]
    if not is_module and not Path(script).is_file():
        sys.exit(f"{_USAGE}\nInvalid SCRIPT value: {script!r}; SCRIPT must be a file")
    register()
    sys.argv = arguments
    if is_module:
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module(script, run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(script).resolve().parent))
        runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
