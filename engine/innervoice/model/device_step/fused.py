"""FusedLogits: the logits of rows that are contexts of one reply, before they are combined."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from innervoice_kernels.sampling.cursor import Draws
from innervoice_kernels.sampling.cursor_columns import MaskColumn
from innervoice_kernels.sampling.sample_pick import Offers


@dataclass(frozen=True)
class FusedLogits:
    """Memory for B rows: offers.logits hold those of every id, by the masks all_ids, and stats are as `fuse` has them."""

    offers: Offers
    all_ids: Draws
    stats: Tensor  # [B, 2] float32

    @classmethod
    def allocate(cls, max_rows: int, vocabulary: int, device: torch.device) -> FusedLogits:
        """For so many rows."""
        all_ids = Draws.allocate(max_rows, device)
        all_ids.mask.fill_(0)
        all_ids.mask[:, MaskColumn.EXTRA0 : MaskColumn.TOP_K] = -1
        all_ids.mask[:, MaskColumn.SET] = -1
        all_ids.mask[:, MaskColumn.HIGH0] = vocabulary
        all_ids.scale.copy_(torch.tensor([0.0, 1.0], dtype=torch.float32, device=device))
        all_ids.key.fill_(0)
        stats = torch.empty(max_rows, 2, dtype=torch.float32, device=device)
        return cls(Offers.allocate(max_rows, vocabulary, 1, device), all_ids, stats)

    def first(self, num_rows: int) -> FusedLogits:
        """The first rows, in the same memory."""
        return FusedLogits(
            self.offers.first(num_rows, 1), self.all_ids.first(num_rows), self.stats[:num_rows]
        )
