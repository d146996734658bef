"""Streams: deterministic, paired between methods, and each what its name says."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from benchmarks.commands.continual import arguments
from benchmarks.commands.options import check_common
from benchmarks.data.errors import UserError
from benchmarks.data.sets import Dataset
from benchmarks.methods import METHODS
from benchmarks.runs.networks import mlp
from benchmarks.runs.plan import settings_for
from benchmarks.runs.runner import run
from benchmarks.streams import STREAMS
from benchmarks.streams.permuted import Fuzzy, FuzzyRandom
from benchmarks.streams.rotated import Rotated, rotate

NAMES = list(STREAMS)


def make(name: str, data: Dataset, **changes: Any) -> Any:
    return STREAMS[name](data, **{"seed": 3, "tasks": 3, "steps": 40, "batch": 32, **changes})


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_depends_on_its_place_alone(name: str, digits: Dataset) -> None:
    one, two = make(name, digits), make(name, digits)
    torch.manual_seed(0)
    last = one.batch(2, 39)
    torch.manual_seed(1)  # another method's draws in between
    for task in range(3):
        two.batch(task, 0)
    again = two.batch(2, 39)
    assert torch.equal(last.x, again.x)
    assert torch.equal(last.y, again.y)
    assert last.x.shape == (32, 64)


@pytest.mark.parametrize("name", NAMES)
def test_another_seed_is_another_stream(name: str, digits: Dataset) -> None:
    one, two = make(name, digits), make(name, digits, seed=4)
    assert not torch.equal(one.batch(0, 0).x, two.batch(0, 0).x)


@pytest.mark.parametrize("name", NAMES)
def test_test_sets_and_labels_fit_the_outputs(name: str, digits: Dataset) -> None:
    stream = make(name, digits)
    for task in range(3):
        test = stream.test(task)
        assert len(test.x) == len(test.y) > 0
        assert int(test.y.max()) < stream.outputs
        if test.mask is not None:
            assert test.mask[test.y].all()
            assert int(test.mask.sum()) == 2


def test_an_epoch_shows_every_example_once(digits: Dataset) -> None:
    stream = make("permuted", digits, steps=45, batch=32)
    drawn = torch.cat([stream.batch(0, step).x for step in range(45)])[:1437]
    assert torch.equal(drawn.sum(1).sort().values, stream.train(0).x.sum(1).sort().values)


def test_permuted_shuffles_pixels_and_keeps_labels(digits: Dataset) -> None:
    stream = make("permuted", digits)
    one, two = stream.test(0), stream.test(1)
    assert torch.equal(one.y, two.y)
    assert not torch.equal(one.x, two.x)
    assert torch.equal(one.x.sort(1).values, two.x.sort(1).values)


def test_fuzzy_mixes_the_next_task_in_linearly(digits: Dataset) -> None:
    stream = Fuzzy(digits, seed=0, tasks=3, steps=40, batch=100)
    assert [stream.mixed(0, step) for step in (0, 19, 20, 25, 30, 39)] == [0, 0, 0, 25, 50, 95]
    assert all(stream.mixed(2, step) == 0 for step in range(40))
    sharp = make("permuted", digits, seed=0, batch=100)
    mixed, pure, coming = stream.batch(0, 30), sharp.batch(0, 30), sharp.train(1)
    assert len(mixed.x) == 100
    assert torch.equal(mixed.x[:50], pure.x[:50])
    known = {row.numpy().tobytes() for row in coming.x}
    assert sum(row.numpy().tobytes() in known for row in mixed.x) == 50
    assert stream.changes() == [(20, 40), (60, 80)]


def test_fuzzy_random_interleaves_whole_batches_ever_more_of_the_next_task(
    digits: Dataset,
) -> None:
    stream = FuzzyRandom(digits, seed=0, tasks=3, steps=400, batch=100)
    counts = [stream.mixed(0, step) for step in range(400)]
    assert counts == [stream.mixed(0, step) for step in range(400)]
    assert set(counts) == {0, 100}
    assert not any(counts[:200])
    wanted = (1 / 8, 3 / 8, 5 / 8, 7 / 8)
    shares = [sum(counts[a : a + 50]) / 5000 for a in (200, 250, 300, 350)]
    assert all(abs(share - want) < 0.2 for share, want in zip(shares, wanted, strict=True))
    assert not any(stream.mixed(2, step) for step in range(400))
    alternations = sum(a != b for a, b in itertools.pairwise(counts))
    assert alternations > 20
    coming = {row.numpy().tobytes() for row in stream.train(1).x}
    place = counts.index(100)
    assert all(row.numpy().tobytes() in coming for row in stream.batch(0, place).x)


def test_label_permuted_renames_the_classes_of_the_same_images(digits: Dataset) -> None:
    stream = make("label-permuted", digits)
    one, two = stream.test(0), stream.test(1)
    assert torch.equal(one.x, two.x)
    pairs = set(zip(one.y.tolist(), two.y.tolist(), strict=True))
    assert len(pairs) == 10
    assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == 10
    assert any(a != b for a, b in pairs)


def test_long_streams_keep_their_length_on_small_data(digits: Dataset) -> None:
    args = arguments().parse_args([])
    check_common(args)
    tasks = {
        name: settings_for(METHODS["adam"], name, 0, digits, args, options={}).tasks
        for name in ("permuted", "long", "label-permuted")
    }
    assert tasks == {"permuted": 5, "long": 100, "label-permuted": 20}


def test_the_matrix_of_a_long_stream_is_full_where_the_tables_look(
    settings: Any, digits: Dataset
) -> None:
    run_settings = settings(stream="long", tasks=22, steps=2, every=1)
    result = run(run_settings, digits)
    whole = len(digits.test_y)
    assert len(result["matrix"]) == len(result["online"]) == 22
    last_and_own = [*result["matrix"][-1], *[result["matrix"][t][t] for t in range(22)]]
    assert all(abs(value * whole - round(value * whole)) < 1e-6 for value in last_and_own)
    quick = 2500 // 22
    assert all(abs(v * quick - round(v * quick)) < 1e-2 for v in result["matrix"][3][4:])
    # No close looks after switches: one look a step, and the last.
    assert len(result["curve_steps"]) == 45


@pytest.mark.parametrize("stream", ["permuted", "split-task"])
def test_a_conv_net_runs(settings: Any, digits: Dataset, stream: str) -> None:
    result = run(settings(net="conv", stream=stream, method="ewc", steps=4), digits)
    assert result["parameters"] == 160 + 4640 + 128 * 8 + 8 + 8 * 10 + 10
    assert len(result["matrix"]) == 2


def test_split_tasks_have_disjoint_pairs_of_classes(digits: Dataset) -> None:
    domain, task, whole = (
        make(f"split-{kind}", digits, tasks=5) for kind in ("domain", "task", "class")
    )
    pairs = [list(task.pair(t)) for t in range(5)]
    assert sorted(label for pair in pairs for label in pair) == list(range(10))
    for t, pair in enumerate(pairs):
        assert set(whole.test(t).y.tolist()) == set(pair)
        second = (whole.test(t).y == pair[1]).long()
        assert torch.equal(domain.test(t).y, second)
        assert domain.outputs == 2
    assert whole.test(0).mask is None


def test_natural_order_is_the_published_one(digits: Dataset) -> None:
    for seed in (0, 1):
        stream = make("split-task", digits, seed=seed, tasks=5, order="natural")
        assert [list(stream.pair(t)) for t in range(5)] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


def test_more_split_tasks_than_pairs_are_refused(digits: Dataset) -> None:
    with pytest.raises(UserError, match=r"--tasks: 6 .*allowed for split-task on digits: 1 to 5"):
        make("split-task", digits, tasks=6)


def test_rotation_is_exact_at_quarter_turns_and_keeps_ink() -> None:
    image = torch.rand(1, 8, 8)
    flat = image.flatten(1)
    assert torch.allclose(rotate(flat, 8, 0.0), flat)
    assert torch.allclose(rotate(flat, 8, 90.0), image.rot90(1, (1, 2)).flatten(1), atol=1e-6)
    assert torch.allclose(rotate(flat, 8, 180.0), flat.flip(1), atol=1e-6)
    blob = torch.zeros(1, 9, 9)
    blob[0, 3:6, 3:6] = 1
    turned = rotate(blob.flatten(1), 9, 37.0)
    assert abs(float(turned.sum()) - 9) < 0.5
    assert float(turned.max()) <= 1 + 1e-6


def test_rotations_spread_over_half_a_turn(digits: Dataset) -> None:
    stream = Rotated(digits, seed=0, tasks=5)
    assert [stream.angle(t) for t in range(5)] == [0, 36, 72, 108, 144]
    shuffled = Rotated(digits, seed=0, tasks=5, order="shuffled")
    assert sorted(shuffled.angle(t) for t in range(5)) == [0, 36, 72, 108, 144]


def test_rotated_needs_square_images(digits: Dataset) -> None:
    narrow = Dataset("strips", digits.train_x[:, :50], digits.train_y, digits.test_x[:, :50],
                     digits.test_y)  # fmt: skip
    with pytest.raises(UserError, match="no square images"):
        Rotated(narrow, seed=0).test(1)


def test_initial_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two, other = (mlp(6, (4,), 3, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(next(one.parameters()), next(other.parameters()))
