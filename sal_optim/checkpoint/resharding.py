"""A checkpoint of other blocks: where matrices are cut otherwise, importance begins anew.

Importance of a sharded matrix is of its blocks, see ``sharding/stacked.py``. Where a checkpoint was
made on a number of processes that cuts a matrix into other blocks, all of it goes on but that.
``load_importance`` brings that too, see ``checkpoint_folder.py``.
"""

from typing import Any

from torch import Tensor

from sal_optim.importance import State, code_of
from sal_optim.protection.block import Group, kind_of_param, prepare
from sal_optim.utils import checks
from sal_optim.utils.warning import warn

# Names of importance and of what is gathered for it.
IMPORTANCE_STATE = ("pending", "evidence", "left_", "right_")


def of_own_layout(where: str, param: Tensor, group: Group, state: dict[str, Any]) -> dict[str, Any]:
    """A parameter's saved state, without importance that is of other blocks than its own."""
    saved = checks.number(f"'layout' in {where}", state.get("layout", 0.0))
    gathered = state.get("evidence_weight", 0.0) or state.get("pending_steps", 0.0)
    if not gathered or saved == code_of(kind_of_param(param, group)):
        return state
    # The same text for all, so that it is shown once.
    warn(
        "the checkpoint cuts sharded matrices into other blocks than this number of processes "
        "does; the importance of those matrices begins anew, all else goes on; "
        "load_importance(optimizer, FOLDER, model) then brings it from the checkpoint, "
        "and save_importance() writes a file for any number of processes"
    )
    begun: State = {}
    kept = {n: v for n, v in state.items() if not n.startswith(IMPORTANCE_STATE)}
    prepare(param, begun, group, kind_of_param(param, group))
    return {**begun, **kept, "evidence_weight": 0.0, "pending_steps": 0.0, "layout": 0.0}
