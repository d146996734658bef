"""Runs a training script unchanged, with the family registered in every package that it uses.

python -m sal_optim.run train.py --optim saladamw --optim_args protection=5
python -m sal_optim.run -m package.train --opt sallion
python -m sal_optim.run trl sft --optim saladamw ...
python -m sal_optim.run accelerate launch train.py --optim saladamw
python -m sal_optim.run torchrun --nproc_per_node 2 train.py --optim saladamw
"""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

from sal_optim.integrations import register

_USAGE = """usage: python -m sal_optim.run SCRIPT [ARGUMENTS ...]
       python -m sal_optim.run -m MODULE [ARGUMENTS ...]
       python -m sal_optim.run COMMAND [ARGUMENTS ...]"""


def main() -> None:
    """Register, and become the script or module; or start the command, and register in it."""
    arguments = sys.argv[1:]
    is_module = arguments[:1] == ["-m"]
    if is_module:
        arguments = arguments[1:]
    if arguments[:1] in (["-h"], ["--help"]):
        print(_USAGE)
        sys.exit(0)
    if not arguments or (not is_module and arguments[0].startswith("-")):
        sys.exit(_USAGE)
    script = arguments[0]
    # Every Python that is started from here on registers, such as the workers of a script.
    startup = str(Path(__file__).parent / "integrations" / "startup")
    paths = [startup, *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    if not is_module and not _is_python(Path(script)):
        command = _command(script)
        if command is None:
            sys.exit(
                f"{_USAGE}\nInvalid SCRIPT value: {script!r}; SCRIPT must be a file, or a COMMAND "
                "that is installed, such as trl, accelerate or torchrun"
            )
        sys.exit(_start([command, *arguments[1:]]))
    register()
    sys.argv = arguments
    if is_module:
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module(script, run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(script).resolve().parent))
        runpy.run_path(script, run_name="__main__")


def _is_python(path: Path) -> bool:
    """Whether a file is a script for Python: all but executables that say that they are none."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        first = file.readline(200)
    executable = os.access(path, os.X_OK) and (first[:2] == b"#!" or first[:4] == b"\x7fELF")
    return not executable or b"python" in first


def _command(name: str) -> str | None:
    """The path of a command, of this Python's environment before any other."""
    here = str(Path(sys.executable).parent)
    return shutil.which(name, path=os.pathsep.join([here, os.environ.get("PATH", os.defpath)]))


def _start(command: list[str]) -> int:
    """Run a command in the place of this one: what would stop this one stops the command."""
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "posix":
        os.execv(command[0], command)
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    main()
