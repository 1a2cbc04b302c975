"""The nonlinearities between the levels of a generator (paper, Section 4.1, Eqs. 22-27).

An activation is named by a short text, so that a config stays a plain value: ``"elu"``, ``"tanh"``, or with
options ``"sine(omega=3)"``. Every level has its own module, so that a learnable one learns *per level*, and
per group where a generator has groups. :func:`register_activation` adds one of the user's to the table.
"""

from __future__ import annotations

from adntn.activations.functions import (
    ELU,
    GELU,
    SIREN,
    Identity,
    PReLU,
    Rational,
    ReLU,
    SiLU,
    Sine,
    Swish,
    Tanh,
)
from adntn.activations.registry import (
    ACTIVATIONS,
    ActivationKind,
    canonical,
    gain,
    hidden_bound,
    make_activation,
    parameter_shapes,
    register_activation,
    reset,
)
from adntn.activations.running import derivative, parameter_gradients, run

__all__ = [
    "ACTIVATIONS",
    "ELU",
    "GELU",
    "SIREN",
    "ActivationKind",
    "Identity",
    "PReLU",
    "Rational",
    "ReLU",
    "SiLU",
    "Sine",
    "Swish",
    "Tanh",
    "canonical",
    "derivative",
    "gain",
    "hidden_bound",
    "make_activation",
    "parameter_gradients",
    "parameter_shapes",
    "register_activation",
    "reset",
    "run",
]
