"""The threshold of steps that read nothing: its state on the device, as a CUDA graph needs it.

A replayed graph runs no Python. So each captured step judges its norm on the device, decides there
whether evidence is gathered, and leaves a confirmed change standing until the host, outside the
graph, sees it in a copy that it did not wait for, and consolidates. This file knows of the
threshold's state and of devices; what is captured when is decided elsewhere.
"""

from typing import Any

import torch
from torch import Tensor

from sal_optim.threshold import (
    ThresholdState,
    judge_norm,
    new_threshold,
    record_norm,
)


class DeviceThreshold:
    """The threshold's state as one vector, which keeps its place in memory."""

    def __init__(self, state: ThresholdState, device: torch.device) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._vector = torch.empty(len(state), dtype=dtype, device=device)
        self._sent: Tensor | None = None
        self._arrives: Any = None
        self.write(state)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self._vector.device

    def values(self) -> dict[str, Tensor]:
        """Each number, as a view of the vector."""
        return dict(zip(new_threshold(), self._vector.unbind(), strict=True))

    def listen(
        self,
        norm: Tensor,
        known: Tensor,
        due: Tensor,
        *,
        tau0: float,
        alpha: float,
        beta: float,
        observing: bool,
    ) -> Tensor:
        """Take in the norm of one step, and say whether evidence is gathered from it, a 0-dim bool.

        Args:
            norm: of all gradients, 0-dim.
            known: whether it tells anything; where it does not, nothing changes.
            due: whether evidence is gathered if the step is ordinary.
            tau0, alpha, beta: settings of the threshold.
            observing: whether every step is ordinary.
        """
        norm, state = norm.to(self._vector.dtype), self.values()
        live, entering = known & (state["unheard"] == 0.0), norm
        confirmed = surprising = torch.zeros_like(known)
        if not observing:
            found = judge_norm(state, norm, tau0=tau0, alpha=alpha)
            confirmed, surprising = found.confirmed, found.surprising
            entering = torch.as_tensor(found.bounded)
        record_norm(state, entering, beta=beta)
        gathers = live & due & surprising.logical_not()
        state["pending_steps"] = state["pending_steps"] + gathers
        # A norm that confirms a change is left for the host to judge; until then all stands still.
        left = self.values()
        left["unheard"] = norm
        after = torch.where(confirmed, _joined(left), _joined(state))
        self._vector.copy_(torch.where(live, after, self._vector))
        return gathers

    def send(self) -> None:
        """Begin a copy to the host, without a wait."""
        self._sent, self._arrives = to_host(self._vector)

    def arrived(self) -> ThresholdState | None:
        """The state as it was last sent; None if it never was."""
        if self._sent is None:
            return None
        if self._arrives is not None:
            self._arrives.synchronize()
        return _named(self._sent)

    def read(self) -> ThresholdState:
        """The state as it is, for which the device is waited for."""
        return _named(self._vector)

    def write(self, state: ThresholdState) -> None:
        """Set the state, in place; forget what was sent before."""
        values = [state[name] for name in new_threshold()]
        self._vector.copy_(torch.tensor(values, dtype=torch.float64))
        self._sent = self._arrives = None


def to_host(value: Tensor) -> tuple[Tensor, Any]:
    """A copy on the host that nobody waits for, and the event of its arrival."""
    if value.device.type != "cuda":
        return value.to("cpu", non_blocking=True).clone(), None
    host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
    host.copy_(value, non_blocking=True)
    arrives = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrives.record(torch.cuda.current_stream(value.device))
    return host, arrives


def _joined(state: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(state.values()))


def _named(vector: Tensor) -> ThresholdState:
    return dict(zip(new_threshold(), vector.tolist(), strict=True))
