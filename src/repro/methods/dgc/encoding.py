"""How many bytes a sparse message takes, and what its format does to the values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from repro.knobs import check_choice
from repro.methods.dgc.selection import Picks

_LONGEST_RUN = 65535


@dataclass(frozen=True)
class Encoding:
    """A declared wire format. Bytes are counted under it whatever the transport really uses.

    Attributes:
        name: as written in a config.
        value_bytes: bytes per value; dense tensors use as many per entry.
        index_bytes: bytes per position (or per run length).
        run_length: whether positions are runs of zeros, which then have a greatest length.
    """

    name: str
    value_bytes: int
    index_bytes: int
    run_length: bool = False

    def sparse_bytes(self, picks: Picks, numel: int) -> int | Tensor:
        """Returns the bytes of all rows' messages about one tensor of ``numel`` entries.

        A 16-bit run holds at most 65535 zeros. A longer gap of z zeros needs ``z // 65536`` extra
        entries of value 0, each of which bridges 65536 positions. They are counted exactly; only
        tensors of more than 65536 entries can need any. The result is a tensor in that case, so
        that counting never waits for the device.
        """
        entry = self.value_bytes + self.index_bytes
        known = entry * sum(picks.counts)
        if not self.run_length or numel <= _LONGEST_RUN + 1:
            return known
        sorted_KM = picks.index.sort(dim=1).values
        before_first = sorted_KM.new_full((len(picks.counts), 1), -1)
        zeros_KM = sorted_KM.diff(dim=1, prepend=before_first) - 1
        # Padding repeats a position: its "gap" of -1 must not count.
        extra = zeros_KM.clamp_(min=0).div_(_LONGEST_RUN + 1, rounding_mode="floor").sum()
        return known + entry * extra

    def rounded(self, values: Tensor) -> Tensor:
        """Returns the values as they arrive.

        Only 2-byte values change: they pass through fp16 and back, in dense and in sparse
        messages. As in the authors' code the rounding error is lost, not fed back: the memory of
        a sent entry is reset to zero.
        """
        return values.to(torch.float16).to(values.dtype) if self.value_bytes == 2 else values


ENCODINGS = {
    encoding.name: encoding
    for encoding in (
        Encoding("paper_6B", value_bytes=4, index_bytes=2, run_length=True),
        Encoding("fp32_int64", value_bytes=4, index_bytes=8),
        Encoding("fp16_int32", value_bytes=2, index_bytes=4),
    )
}


def make_encoding(name: str) -> Encoding:
    """Returns the encoding of that name."""
    check_choice("make_encoding", "encoding", name, ENCODINGS)
    return ENCODINGS[name]
