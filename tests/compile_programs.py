"""Compiles the Triton programs for GPUs that need not be there, with the sizes that the operators choose.

Prints a line for each: its name, what it is compiled for, the shared memory it needs. Run by test_kernels_triton.py.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from adntn import Generator, GeneratorConfig
from adntn.execution import tiles
from adntn.execution.kernels import ops, programs

TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}
CAPABILITIES = (80, 90)
SHARED_MEMORY = 99 * 1024  # bytes that a program can have on small devices of these generations


class Compiled:
    """Stands in for a program: a launch compiles it and does nothing else."""

    def __init__(self, program: Any) -> None:
        self.program = program

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self.compile

    def compile(self, *args: Any, num_warps: int = 4, **options: Any) -> None:
        given = dict(zip(self.program.arg_names, args, strict=False)) | options
        signature: dict[str, str] = {}
        constants: dict[tuple[int, ...], Any] = {}
        for parameter in self.program.params:
            value = given[parameter.name]
            if isinstance(value, Tensor):
                signature[parameter.name] = TYPES[value.dtype]
            elif parameter.is_constexpr:
                signature[parameter.name], constants[(parameter.num,)] = "constexpr", value
            else:
                signature[parameter.name] = "i32"
        for capability in CAPABILITIES:
            source = ASTSource(self.program, signature, constants)
            made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": num_warps})
            assert made.metadata.shared <= SHARED_MEMORY, f"{self.program.__name__} needs {made.metadata.shared} bytes"
            sys.stdout.write(f"{self.program.__name__} sm_{capability} {made.metadata.shared}\n")


def main() -> None:
    for name in programs.__all__:
        setattr(programs, name, Compiled(getattr(programs, name)))
    # float32 in one order and bfloat16 in another: each is seconds.
    for dtype, options in ((torch.float32, {"topology": "mera"}), (torch.bfloat16, {"radix": 3, "groups": 3})):
        gen = Generator((1026, 512), GeneratorConfig(order="paired", **options))  # type: ignore[arg-type]
        layout = tiles.layout(gen).numbers()
        with torch.no_grad():
            state, matrix = tiles.make(gen)
        x, y = torch.zeros(128, 512, dtype=dtype), torch.zeros(128, 1026, dtype=dtype)
        ops.weight(state, matrix, layout, dtype)
        ops.weight_gradients(torch.zeros(gen.shape, dtype=dtype), state, matrix, layout)
        ops.product(x, state, matrix, torch.zeros(1026, dtype=dtype), layout, False)
        ops.product(y, state, matrix, None, layout, True)
        ops.product_gradients(x, y, state, matrix, layout)


if __name__ == "__main__":
    main()
