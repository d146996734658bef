"""Old paths of modules are the modules of the new paths, and say so once."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings

import pytest

import sal_optim
from sal_optim._moved import MOVED, PUBLIC, REMOVAL

# Paths that docs and users' scripts have.
OLD = {
    "sal_optim.monitors.spectral": "sal_optim.companions.spectral",
    "sal_optim.objectives.self_model": "sal_optim.companions.self_model",
}
OLD |= {f"sal_optim.{old}": f"sal_optim.{new}" for old, new in MOVED.items()}


def in_a_new_process(code: str) -> str:
    command = [sys.executable, "-W", "always::FutureWarning", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("old", OLD)
def test_it_is_the_same_module(old: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        found = importlib.import_module(old)
    assert found is importlib.import_module(OLD[old])
    assert found.__name__ == found.__spec__.name == OLD[old]


def test_an_import_warns_at_the_line_that_has_it() -> None:
    told = in_a_new_process("\nfrom sal_optim.objectives.self_model import SelfModel\n")
    assert told.count("FutureWarning") == 1
    expected = (
        f"sal_optim.objectives is now sal_optim.companions; the old path is removed in {REMOVAL}"
    )
    assert f"<string>:2: FutureWarning: {expected}" in told


@pytest.mark.parametrize("name", sorted(set(MOVED) - PUBLIC))
def test_an_attribute_warns_at_the_line_that_has_it(name: str) -> None:
    told = in_a_new_process(f"import sal_optim\nprint(sal_optim.{name}.__name__)\n")
    assert told.count("FutureWarning") == 1
    assert f"<string>:2: FutureWarning: sal_optim.{name} is now" in told
    assert told.startswith(f"sal_optim.{MOVED[name]}\n")


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_short_names_stay_and_warn_of_nothing(name: str) -> None:
    """As attributes and as modules, each before the other."""
    assert name in sal_optim.__all__
    look, load = f"print(sal_optim.{name}.__name__)", f"import sal_optim.{name}"
    for code in (f"import sal_optim; {look}; {load}", f"{load}; {look}"):
        assert in_a_new_process(code) == f"sal_optim.{MOVED[name]}\n"


def test_new_paths_and_public_names_warn_of_nothing() -> None:
    code = "import sal_optim\n"
    for name in ("companions.drift", "monitoring.plot", "monitoring.report", "monitoring.writers"):
        code += f"import sal_optim.{name}\n"
    code += "from sal_optim import LiveView, plot, report\n"
    assert in_a_new_process(code) == ""
    assert in_a_new_process("import sal_optim; sal_optim.plot, sal_optim.companions.Drift") == ""


def test_what_is_not_there_is_not_found_at_an_old_path_either() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        with pytest.raises(ModuleNotFoundError, match=r"sal_optim\.monitors\.other"):
            importlib.import_module("sal_optim.monitors.other")
