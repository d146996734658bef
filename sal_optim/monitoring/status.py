"""One line for the start of a run: what is protected, or that nothing is yet, and why."""

from sal_optim.monitoring.lookup import required_protection


def protection_line(optimizer: object) -> str:
    """What is protected at this moment, in one line; a TypeError where nothing protects."""
    protection = required_protection(optimizer)
    controller = protection.controller
    groups = controller.groups
    count = sum(len(group["params"]) for group in groups)
    held = [param for param, group, _ in controller.held() if group["protection"] > 0.0]
    found = protection.diagnostics()
    if held:
        return (
            f"sal_optim: {len(held)} of {count} parameter tensors are protected, by "
            f"{found['consolidations']:.0f} consolidations; {found['mean_gate']:.0%} of a gradient "
            f"is let through; the weights are {found['drift']:.1%} from the anchor"
        )
    if not count:
        return "sal_optim: nothing is protected, as the optimizer has no parameters"
    if all(group["protection"] == 0.0 for group in groups):
        return "sal_optim: nothing is protected, as protection is 0"
    every = groups[0]["consolidate_every"]
    clock = {"auto": "after 60 steps, ", None: ""}.get(every, f"after {every} steps, ")
    return (
        f"sal_optim: nothing is protected yet; the first consolidation comes {clock}at a detected "
        "change of the data or by consolidate(); observe() or load_importance() protects earlier"
    )
