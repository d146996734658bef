"""The launcher: scripts, modules, and commands that start other Pythons."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integrations.runs import EXAMPLES, needs, run

SCRIPT = """
import sys
from transformers import Trainer
from transformers.training_args import OptimizerNames
print("found", OptimizerNames("sallion"), sys.argv[1:])
"""
TRAINER = str(EXAMPLES / "transformers_trainer.py")
OPTIM = ["--optim", "saladamw", "--max_steps", "2", "--use_cpu", "--report_to", "none",
         "--output_dir", "out", "--save_strategy", "no", "--logging_steps", "1"]  # fmt: skip


def launched(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sal_optim.run", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
        check=False,
    )


def test_it_says_what_it_wants(tmp_path: Path) -> None:
    for arguments in ([], ["--optim"], ["missing.py"], ["no-such-command", "sft"]):
        done = launched(*arguments, folder=tmp_path)
        assert done.returncode == 1
        assert "usage: python -m sal_optim.run" in done.stderr
    assert "'no-such-command'; SCRIPT must be a file, or a COMMAND" in done.stderr
    done = launched("--help", folder=tmp_path)
    assert not done.returncode
    assert done.stdout.startswith("usage: ")


def test_an_executable_that_is_no_python_is_a_command(tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    script.write_text('#!/bin/sh\necho "$1 $PYTHONPATH"\n')
    script.chmod(0o755)
    assert launched(str(script), "hello", folder=tmp_path).stdout.startswith("hello")


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("transformers", ["script.py"]),
        ("transformers", ["-m", "script"]),
        ("torch", ["torchrun", "--nproc_per_node", "1", "script.py"]),
    ],
)
def test_a_script_in_any_way(package: str, command: list[str], tmp_path: Path) -> None:
    needs(package)
    needs("transformers")
    (tmp_path / "script.py").write_text(SCRIPT)
    shown = run(["-m", "sal_optim.run", *command, "--epochs", "2"], tmp_path)
    assert "found OptimizerNames.SALLION ['--epochs', '2']" in shown


def test_accelerate_launch(tmp_path: Path) -> None:
    needs("accelerate")
    needs("transformers")
    shown = run(["-m", "sal_optim.run", "accelerate", "launch", "--cpu", TRAINER, *OPTIM], tmp_path)
    assert "sal/protected" in shown
    assert "nothing is protected yet" in shown


def test_trl_sft(tmp_path: Path) -> None:
    """A model and a data set that are made here: nothing is fetched."""
    needs("trl")
    run([str(Path(__file__).parent / "small_model.py"), "model"], tmp_path)
    command = ["trl", "sft", "--model_name_or_path", "model", "--dataset_name", "data"]
    shown = run(["-m", "sal_optim.run", *command, *OPTIM], tmp_path)
    assert "sal/protected" in shown


def test_a_failing_command_fails(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text("raise SystemExit(3)")
    done = subprocess.run(
        [sys.executable, "-m", "sal_optim.run", "torchrun", "--nproc_per_node", "1", "fails.py"],
        capture_output=True,
        timeout=120,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode != 0


def test_what_stops_the_launcher_stops_the_command(tmp_path: Path) -> None:
    """A job that was cancelled left its training running."""
    needs("transformers")
    (tmp_path / "script.py").write_text("import time; print('begun', flush=True); time.sleep(200)")
    command = ["torchrun", "--nproc_per_node", "1", "script.py"]
    running = subprocess.Popen(
        [sys.executable, "-m", "sal_optim.run", *command],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert running.stdout is not None
    assert running.stdout.readline() == "begun\n"
    running.terminate()
    assert running.stdout.read() == "", "nothing holds the pipe any more"
    assert running.wait(60) != 0


def test_a_script_that_starts_processes(tmp_path: Path) -> None:
    needs("transformers")
    (tmp_path / "script.py").write_text(
        "import multiprocessing\n"
        "def work():\n"
        "    from transformers.training_args import OptimizerNames\n"
        "    print('found', OptimizerNames('sallion'), flush=True)\n"
        "if __name__ == '__main__':\n"
        "    worker = multiprocessing.get_context('spawn').Process(target=work)\n"
        "    worker.start(); worker.join()\n"
    )
    shown = run(["-m", "sal_optim.run", "script.py"], tmp_path)
    assert "found OptimizerNames.SALLION" in shown
