"""The paper's adjoint equations, written out: gradients of every parameter without autograd.

:mod:`.equations` has one function for each equation, on one level; :mod:`.plans` is how they are run, with cores merged
as on the way forward; :mod:`.readout` and :mod:`.reverse` run a whole generator backwards; :mod:`.function` lets the
backward pass of torch do so, with ``Generator(..., backward="adjoint")``.

- :func:`pre_activation_adjoint`: Eqs. 51 and 63, the state's adjoint times the activation's derivative
- :func:`state_adjoint`: Eqs. 52, 57, 64 and 65, the network run backwards
- :func:`core_gradient`: Eq. 53, a core's contracted environment
- :func:`gate_gradient`: Eq. 58, a disentangler's
- :func:`weight_adjoint`: all of them, from the weight to the root
"""

from __future__ import annotations

from adntn.adjoint.equations import core_gradient, gate_gradient, pre_activation_adjoint, state_adjoint
from adntn.adjoint.reverse import Reverse, weight_adjoint

__all__ = ["Reverse", "core_gradient", "gate_gradient", "pre_activation_adjoint", "state_adjoint", "weight_adjoint"]
