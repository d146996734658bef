"""SelfModel: what it learns, what it does to the model, and that its hooks go."""

from __future__ import annotations

import copy
import gc
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sal_optim import SALAdam
from sal_optim.companions import SelfModel


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def batch(samples: int = 16) -> Tensor:
    return torch.randn(samples, 6, generator=torch.Generator().manual_seed(1))


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_the_loss_is_the_formula_and_its_target_is_cut_from_the_graph() -> None:
    model = network()
    own = SelfModel(model, "1", weight=3.0)
    x = batch()
    model(x)
    own.loss().backward()
    found = [model[0].weight.grad.clone(), own.head.weight.grad.clone()]
    model.zero_grad()
    own.zero_grad()
    a = torch.relu(model[0](x))
    expected = 3.0 * (own.head(a) - a.detach()).square().mean()
    expected.backward()
    assert own.loss().item() == pytest.approx(expected.item())
    torch.testing.assert_close(found, [model[0].weight.grad, own.head.weight.grad])
    assert model[2].weight.grad is None


def test_without_detach_the_target_has_a_gradient() -> None:
    grads = []
    for detach in (True, False):
        model = network()
        own = SelfModel(model, "1", 1.0, detach)
        model(batch())
        own.loss().backward()
        grads.append(model[0].weight.grad)
    assert not torch.allclose(*grads)


def test_a_source_that_is_another_layer() -> None:
    model = network()
    own = SelfModel(model, "0", 1.0, source="2")
    assert (own.head.in_features, own.head.out_features) == (3, 8)
    model(batch())
    own.loss().backward()
    assert model[2].weight.grad.abs().sum() > 0  # through the head


def test_the_head_learns_and_r2_tells_so() -> None:
    model = network()
    own = SelfModel(model, "1", 1.0)
    optimizer = SALAdam([*model.parameters(), *own.parameters()], lr=0.02)
    model(batch())
    before, first = own.r2(), own.loss().item()
    for _ in range(150):
        optimizer.zero_grad()
        model(batch())
        own.loss().backward()
        optimizer.step()
    model(batch())
    assert before < 0.5 < 0.9 < own.r2() <= 1.0
    assert own.loss().item() < 0.1 * first
    assert own.diagnostics()["self_model_r2"] == own.r2()
    assert own.diagnostics()["self_model_loss"] == pytest.approx(own.loss().item())


def test_r2_against_known_values() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    own = SelfModel(model, "0", 1.0)
    nn.init.zeros_(own.head.weight)
    x = torch.tensor([[1.0, 0.0], [-1.0, 2.0], [0.0, 1.0]])
    a = model(x)
    with torch.no_grad():
        own.head.bias.copy_(a.mean(0))
    assert own.r2() == pytest.approx(0.0, abs=1e-6)  # as good as the mean
    with torch.no_grad():
        own.head.weight.copy_(torch.eye(2))
        own.head.bias.zero_()
    assert own.r2() == pytest.approx(1.0)
    model(x[:1].expand(3, 2))
    assert own.r2() == 0.0


def test_the_model_and_its_state_dict_are_as_before() -> None:
    model = network()
    expected, keys = model(batch()), list(model.state_dict())
    own = SelfModel(model, "1", 1.0)
    assert torch.equal(model(batch()), expected)
    assert list(model.state_dict()) == keys
    assert list(own.state_dict()) == ["head.weight", "head.bias"]
    again = SelfModel(model, "1", 1.0)
    again.load_state_dict(own.state_dict())
    model(batch())
    assert again.loss().item() == own.loss().item()


def test_removal() -> None:
    model = network()
    own = SelfModel(model, "1", 1.0, source="0")
    assert hooks(model) == 2
    model(batch())
    own.remove()
    own.remove()
    assert hooks(model) == 0
    with pytest.raises(RuntimeError, match="was removed"):
        own.loss()


def test_the_hook_does_not_outlive_its_object() -> None:
    model = network()
    own = SelfModel(model, "1", 1.0)
    model(batch())
    del own
    gc.collect()
    assert hooks(model) == 0


def test_a_copy_of_the_model_is_not_watched() -> None:
    model = network()
    own = SelfModel(model, "1", 1.0)
    model(batch())
    expected = own.loss().item()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other(10 * batch())
        assert own.loss().item() == expected
    file = io.BytesIO()
    torch.save(model, file)  # whole
    with pytest.raises(TypeError, match=r"copied or pickled.*state_dict"):
        copy.deepcopy(own)


def test_no_weight_no_work() -> None:
    model = network()
    own = SelfModel(model, "1", 0.0)
    loss = own.loss()
    assert loss.item() == 0.0
    assert not loss.requires_grad


def test_autocast() -> None:
    model = network()
    own = SelfModel(model, "1", 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(batch()).dtype == torch.bfloat16
        loss = own.loss()
    assert loss.dtype == torch.float32
    loss.backward()
    assert torch.isfinite(model[0].weight.grad).all()
    assert own.head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("whole", [True, False])
def test_compiled(whole: bool) -> None:
    """Made before the model is traced; the hook is in the graph, with no break of it."""
    torch._dynamo.reset()
    plain, model = network(), network()
    expected = SelfModel(plain, "1", 2.0)
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    own = SelfModel(compiled if whole else model, "1", 2.0)
    own.load_state_dict(expected.state_dict())
    for scale in (1.0, 2.0):
        plain(scale * batch())
        compiled(scale * batch())
        expected.loss().backward()
        own.loss().backward()
        assert own.loss().item() == pytest.approx(expected.loss().item())
    torch.testing.assert_close(model[0].weight.grad, plain[0].weight.grad)
    own.remove()
    compiled(batch())
    assert own._target.caught is None


def test_sequences_and_images() -> None:
    conv = nn.Sequential(nn.Conv2d(1, 4, 3))
    own = SelfModel(conv, "0", 1.0)
    conv(torch.randn(2, 1, 6, 6))
    assert own.loss().ndim == 0
    attention = nn.Sequential(nn.MultiheadAttention(4, 1))
    own = SelfModel(attention, "0", 1.0, features=4)  # puts out a tuple
    h = torch.randn(5, 2, 4)
    attention[0](h, h, h)
    assert own.loss().item() > 0.0


def test_widths() -> None:
    """What a layer tells, or the one before it in a sequence, but not across a Flatten."""
    model = nn.Sequential(nn.Embedding(9, 4), nn.LayerNorm(4), nn.GELU(), nn.Flatten(), nn.ReLU())
    assert [SelfModel(model, name, 1.0).head.out_features for name in "012"] == [4, 4, 4]
    with pytest.raises(ValueError, match=r"features.*'4'.*ReLU"):
        SelfModel(model, "4", 1.0)


def test_layers_of_other_batches_and_outputs() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Unflatten(1, (2, 4)), nn.Linear(4, 3))
    own = SelfModel(model, "0", 1.0, source="2")
    model(batch())
    with pytest.raises(ValueError, match=r"16 and 32 samples"):
        own.loss()
    SelfModel(model, "1", 1.0, features=4)  # gone at once, and its hook with it
    lost = SelfModel(nn.Sequential(whole := Whole()), "0", 1.0, features=4)
    with pytest.raises(TypeError, match=r"layer '0' put out a Tensor.*floating"):
        whole(batch())
    assert not lost._removed


class Whole(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.long()


def test_what_is_refused() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"layer.*'hidden'.*one of '0', '1', '2'"):
        SelfModel(model, "hidden", 1.0)
    with pytest.raises(ValueError, match=r"source.*'out'.*one of '0'"):
        SelfModel(model, "0", 1.0, source="out")
    with pytest.raises(TypeError, match=r"layer.*0.*one of '0'"):
        SelfModel(model, 0, 1.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"model.*a list.*torch\.nn\.Module"):
        SelfModel([], "0", 1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"weight.*-1.*\[0, inf\)"):
        SelfModel(model, "0", -1.0)
    with pytest.raises(ValueError, match=r"detach.*'no'.*True or False"):
        SelfModel(model, "0", 1.0, "no")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"features.*None.*'0'.*Identity"):
        SelfModel(nn.Sequential(nn.Identity()), "0", 1.0)
    with pytest.raises(ValueError, match=r"features.*0.*>= 1"):
        SelfModel(model, "0", 1.0, features=0)
    with pytest.raises(ValueError, match=r"features.*\(1, 2, 3\).*a pair"):
        SelfModel(model, "0", 1.0, features=(1, 2, 3))  # type: ignore[arg-type]
    assert hooks(model) == 0
    own = SelfModel(model, "0", 1.0, features=5)
    with pytest.raises(RuntimeError, match="no forward pass"):
        own.loss()
    model(batch())
    with pytest.raises(ValueError, match=r"shape \(16, 8\).*5 features"):
        own.loss()
