"""Reading a gradient once: a kernel takes its sum of squares in the loop that updates.

Inductor joins a reduction to the elementwise loop that comes before it, but puts the writes of what
a kernel changes in place last of all. Where this version of torch has no such hook, the reduction
is a loop of its own: as right, and a pass over memory longer.
"""

from functools import cache
from typing import Any

import torch


@cache
def options() -> dict[str, Any]:
    """For ``torch.compile``. The compiler is imported here, since that takes a second."""
    try:
        from torch._inductor.custom_graph_pass import CustomGraphPass
    except ImportError:  # a private module
        return {}

    class SumsLast(CustomGraphPass):
        """Put sums that nothing but the caller waits for behind the writes."""

        def __call__(self, graph: torch.fx.Graph) -> None:
            sums = (torch.ops.aten.sum.default, torch.ops.aten.sum.dim_IntList)
            behind = next(iter(reversed(graph.nodes)))  # the output
            moved = {behind}
            for node in reversed(list(graph.nodes)):
                if node.target in sums and moved.issuperset(node.users):
                    behind.prepend(node)
                    moved.add(node)
                    behind = node

        def uuid(self) -> str:
            """By which the compiler's cache knows this pass."""
            return "sal_optim: sums last, 2"

    return {"post_grad_custom_post_pass": SumsLast()}
