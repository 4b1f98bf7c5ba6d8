"""Suites hand out whole splits; tables are cut as their config says."""

from typing import Any

import pytest
import torch

from repro.data.tables.bundled import digits, table
from repro.data.tables.suite import Suite
from repro.errors import UserError


def suite() -> Suite:
    return Suite(
        {
            "wine": table("wine", task="classification"),
            "diabetes": table("diabetes", task="regression"),
        }
    )


def test_an_epoch_is_one_batch_of_everything():
    data = suite()
    data.setup()
    loader = data.train_dataloader()
    assert len(loader) == 1
    batch: Any
    for _ in range(2):
        (batch,) = list(loader)
        assert batch.keys() == {"wine", "diabetes"}
        assert torch.equal(batch["wine"][0], data.sets["wine"].splits["train"][0])
    loader.load_state_dict(loader.state_dict())
    assert [len(list(loader)) for _ in range(2)] == [0, 1]  # that epoch is over, the next is not
    assert data.whole("test")["diabetes"][1].shape == (89, 1)


def test_the_fingerprint_covers_every_set():
    print_of_both = suite().fingerprint()
    assert print_of_both["name"] == "wine+diabetes"
    assert print_of_both["sizes"]["test"] == 36 + 89
    alone = Suite({"wine": table("wine", task="classification")}).fingerprint()
    assert alone["sha256"] != print_of_both["sha256"]


def test_no_set_is_refused():
    with pytest.raises(UserError, match="at least one data set"):
        Suite({})


def test_another_split_cuts_in_another_way_and_the_first_stays():
    first, again, other = (
        table("wine", task="classification", split=split).splits["test"][0] for split in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    larger = digits(task="classification", test_size=0.3, val_size=0.2)
    assert [len(larger.splits[name][0]) for name in ("train", "val", "test")] == [1005, 252, 540]
