"""Models that go through everything: one of odd layers and sizes, a small vision transformer, a user's file."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import adntn
from adntn import CompressionReport, GeneratorConfig


class OddModel(nn.Module):
    """Reads tokens and a small volume: every family of layers, no biases, sizes that are powers of nothing."""

    vocabulary, width = 333, 18

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(self.vocabulary, self.width)
        self.conv1 = nn.Conv1d(self.width, self.width, 3, padding=2, dilation=2, groups=3, bias=False)
        self.rnn = nn.LSTM(self.width, 11, batch_first=True, bias=False)
        self.up = nn.Linear(11, self.width, bias=False)
        self.attention = nn.MultiheadAttention(self.width, 2, batch_first=True, bias=False)
        self.norm = nn.LayerNorm(self.width)
        self.conv2 = nn.Conv2d(3, 14, 3, padding=2, dilation=2, bias=False)
        self.unpool = nn.ConvTranspose2d(14, 5, 2, stride=2, bias=False)
        self.conv3 = nn.Conv3d(1, 7, (2, 3, 3), padding=(0, 1, 1), bias=False)
        self.fuse = nn.Linear(17, 333, bias=False)
        self.mix = nn.Linear(333, self.width)
        self.head = nn.Linear(self.width, self.vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor, image: Tensor) -> Tensor:
        """Return logits, shape ``(batch, tokens, vocabulary)``, of tokens and an image ``(batch, 3, 8, 8)``."""
        x = self.embedding(tokens)
        x = x + self.conv1(x.mT).mT
        x = x + self.up(self.rnn(x)[0])
        x = x + self.attention(x, x, x, need_weights=False)[0]
        maps = self.unpool(F.gelu(self.conv2(image)))
        volume = self.conv3(image.unsqueeze(1)).mean((2, 3, 4))
        pooled = torch.cat([maps.mean((2, 3)), maps.amax((2, 3)), volume], 1)
        seen: Tensor = self.mix(F.gelu(self.fuse(pooled)))
        logits: Tensor = self.head(self.norm(x + seen.unsqueeze(1)))
        return logits

    def inputs(self, batch: int = 2, seed: int = 1) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(self.vocabulary, (batch, 6), generator=generator)
        return tokens, torch.randn(batch, 3, 8, 8, generator=generator)

    def compress(self, config: GeneratorConfig | None = None) -> CompressionReport:
        """Replace everything that can be."""
        return adntn.compress_(self, config, targets=["re:.*", r"re:rnn\.weight_.*"])


class Attention(nn.Module):
    """Self-attention of separate projections, as most transformers have it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:  # shape: (batch, tokens, width) -> the same
        q, k, v = (p(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        result: Tensor = self.out_proj(seen)
        return result


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


class VisionTransformer(nn.Module):
    """Patches of 4x4 of a 16x16 image, two blocks, ten classes."""

    def __init__(self, width: int = 24, heads: int = 2, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.place = nn.Parameter(0.02 * torch.randn(1, 17, width))
        self.summary = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:  # shape: (batch, 3, 16, 16) -> (batch, 10)
        patches = self.patches(image).flatten(2).mT
        x = torch.cat([self.summary.expand(len(patches), -1, -1), patches], 1) + self.place
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x[:, 0]))
        return logits

    def inputs(self, batch: int = 2, seed: int = 1) -> tuple[Tensor, ...]:
        return (torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(seed)),)

    def compress(self, config: GeneratorConfig | None = None) -> CompressionReport:
        """Replace everything but the head; each attention's q, k and v are three views of one generator (Eq. 6)."""
        return adntn.compress_(self, config, ignore=["head"], shared=[("q_proj", "k_proj", "v_proj")])


MODELS: dict[str, type[OddModel] | type[VisionTransformer]] = {"odd": OddModel, "vit": VisionTransformer}
CONFIGS = {
    "default": GeneratorConfig(),
    "mera, paired, prelu": GeneratorConfig(topology="mera", order="paired", activation="prelu", latent_order=2),
}

#: A user's file: the rows of an image as a series.
SERIES = """
from torch import nn

class Series(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(8, 24, 3, padding=1)
        self.down = nn.Conv1d(24, 16, 2, stride=2)
        self.up = nn.ConvTranspose1d(16, 16, 2, stride=2)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.rnn = nn.LSTM(16, 16, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, image):
        x = self.conv(image[:, 0]).relu()
        x = self.up(self.down(x).relu()).mT
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.rnn(x)[0][:, -1])

def build():
    return Series()
"""
