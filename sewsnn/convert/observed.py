"""Whether somebody observes the operators of torch, so that SpikingJelly's own code must run."""

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack


def operators_are_observed() -> bool:
    """Returns whether a mode that observes torch's operators is active, for example an operator counter.

    Such a mode (SpikingJelly and torch have some) knows SpikingJelly's operators, but not sewsnn's. Tracers have modes
    of their own and do not count.
    """
    if not torch._C._len_torch_dispatch_stack():
        return False
    return any(not mode.is_infra_mode() for mode in _get_current_dispatch_mode_stack())
