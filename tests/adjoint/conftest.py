"""What the adjoint's tests share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

import pytest
import torch


@pytest.fixture
def no_autograd(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Make everything that differentiates by itself raise."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("the adjoint is to need no automatic differentiation")

    with monkeypatch.context() as patch:
        for place, names in (
            (torch.autograd, ("grad", "backward")),
            (torch.Tensor, ("backward",)),
            (torch.autograd.functional, ("vjp", "jvp", "jacobian")),
            (torch.func, ("vjp", "grad", "jvp", "jacrev", "jacfwd", "linearize")),
        ):
            for name in names:
                patch.setattr(place, name, refuse)
        yield patch
