"""Lets torchvision for CUDA be imported beside torch for CPU: two operators that nothing here uses.

On the path of the processes that tests start; Python imports a file of this name by itself.
"""

import importlib.util

if importlib.util.find_spec("torchvision") and importlib.util.find_spec("torch"):
    import torch

    if not torch.cuda.is_available() and not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor")
