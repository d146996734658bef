"""Names of a model's parameters and buffers, as they are without what is around the model."""

from collections.abc import Iterable

# What torch and Lightning's Fabric put into names when they wrap a module.
_WRAPPERS = {
    "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"
}  # fmt: skip


def unwrapped(names: Iterable[str]) -> list[str]:
    """Names as they are without torch.compile, FSDP, DataParallel and Fabric around a model."""
    found = [".".join(part for part in n.split(".") if part not in _WRAPPERS) for n in names]
    if found and all(name.startswith("module.") for name in found):
        found = [name.removeprefix("module.") for name in found]
    return found
