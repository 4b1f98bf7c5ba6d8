import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from repro.errors import UserError
from repro.models import LSTMLanguageModel

VOCAB, BATCH, TIME = 11, 3, 8


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(VOCAB, (BATCH, TIME), generator=torch.Generator().manual_seed(0))


def small_model(**arguments: object) -> LSTMLanguageModel:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB,
        "embedding": 5,
        "hidden": 6,
        "layers": 2,
        "init_range": 0.5,
    }
    return LSTMLanguageModel(**(sizes | arguments))


def test_the_large_treebank_model_has_66_million_parameters() -> None:
    with torch.device("meta"):
        model = LSTMLanguageModel(10_000, embedding=1500, hidden=1500, layers=2)
    embedding = 10_000 * 1500
    # Four gates, each with an input and a recurrent matrix. PyTorch (as cuDNN) keeps two bias
    # vectors for each gate where the paper's equation has one: 12,000 more than the paper.
    layer = 4 * (1500 * 1500 + 1500 * 1500 + 2 * 1500)
    decoder = 1500 * 10_000 + 10_000
    assert sum(p.numel() for p in model.parameters()) == embedding + 2 * layer + decoder
    assert embedding + 2 * layer + decoder == 66_034_000


def test_equals_the_recursion_by_hand(tokens: Tensor) -> None:
    model = small_model()
    inputs = [model.embedding.weight[tokens[:, t]] for t in range(TIME)]
    for layer in range(2):
        W, U, b, c = (
            getattr(model.lstm, f"{name}_l{layer}")
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        hidden = cell = torch.zeros(BATCH, 6)
        outputs = []
        for x in inputs:
            i, f, g, o = (x @ W.T + hidden @ U.T + b + c).chunk(4, dim=1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
            outputs.append(hidden)
        inputs = outputs
    by_hand = torch.stack(inputs, dim=1) @ model.decoder.weight.T + model.decoder.bias
    torch.testing.assert_close(model(tokens), by_hand)


def test_carried_state_equals_one_long_sequence(tokens: Tensor) -> None:
    whole = small_model()(tokens)
    model = small_model(stateful=True)
    torch.testing.assert_close(torch.cat([model(tokens[:, :3]), model(tokens[:, 3:])], 1), whole)
    model.reset_state()
    torch.testing.assert_close(model(tokens), whole)


def test_without_stateful_every_call_starts_anew(tokens: Tensor) -> None:
    model = small_model()
    assert torch.equal(model(tokens), model(tokens))


def test_gradients_stop_where_the_state_was_carried(tokens: Tensor) -> None:
    model = small_model(stateful=True)
    first, second = tokens.clamp(max=5)[:, :4], torch.full((BATCH, 4), 7)
    model(first).sum().backward()
    model.zero_grad()
    model(second).sum().backward()  # a second backward through the first call would raise
    gradient = model.embedding.weight.grad
    assert gradient is not None
    rows = gradient.abs().sum(1).nonzero().flatten()
    assert rows.tolist() == [7]


def test_validation_in_the_midst_of_an_epoch_disturbs_nothing(tokens: Tensor) -> None:
    undisturbed, disturbed = small_model(stateful=True), small_model(stateful=True)
    undisturbed(tokens)
    disturbed(tokens)
    disturbed.eval()
    disturbed.reset_state()
    disturbed(tokens[:1])
    disturbed.train()
    assert torch.equal(undisturbed(tokens), disturbed(tokens))


def test_the_memory_is_no_part_of_the_checkpoint(tokens: Tensor) -> None:
    model = small_model(stateful=True)
    before = copy.deepcopy(model.state_dict())
    model(tokens)
    assert model.state_dict().keys() == before.keys()
    assert not dict(model.named_buffers())


def test_a_pass_resumes_from_its_memory(tokens: Tensor) -> None:
    killed = small_model(stateful=True)
    killed(tokens)
    resumed = small_model(stateful=True)
    resumed.memory = copy.deepcopy(killed.memory)
    assert torch.equal(resumed(tokens), killed(tokens))


def test_advance_hands_out_a_state_that_gradients_pass(tokens: Tensor) -> None:
    model = small_model()
    logits, state = model.advance(tokens[:, :3])
    rest, _ = model.advance(tokens[:, 3:], state)
    torch.testing.assert_close(torch.cat([logits, rest], 1), model(tokens))
    assert state[0].shape == (2, BATCH, 6)
    assert state[0].requires_grad


def test_another_number_of_rows_cannot_continue(tokens: Tensor) -> None:
    model = small_model(stateful=True)
    model(tokens)
    with pytest.raises(UserError, match="a batch of 2 rows cannot continue one of 3"):
        model(tokens[:2])


def test_tied_weights_are_one_tensor(tokens: Tensor) -> None:
    model = small_model(embedding=6, tied=True)
    assert model.decoder.weight is model.embedding.weight
    assert model.decoder.weight.data_ptr() == model.embedding.weight.data_ptr()
    untied = small_model(embedding=6)
    saved = sum(p.numel() for p in untied.parameters()) - sum(p.numel() for p in model.parameters())
    assert saved == VOCAB * 6


@pytest.mark.parametrize("tied", [False, True])
def test_gradient_reaches_every_parameter(tokens: Tensor, tied: bool) -> None:
    model = small_model(embedding=6, tied=tied, dropout=0.2)
    model(tokens).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_dropout_acts_on_a_single_layer_and_only_in_training(
    tokens: Tensor, recwarn: pytest.WarningsRecorder
) -> None:
    model = small_model(layers=1, dropout=0.5)
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))
    assert len(recwarn) == 0


def test_parameters_start_within_the_range() -> None:
    model = small_model(hidden=50, init_range=0.04)
    values = torch.cat([p.flatten() for p in model.parameters()])
    assert 0.0399 < values.abs().max() <= 0.04


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"hidden": -5}, "hidden is a whole number of at least 1, not -5"),
        ({"layers": 0}, "layers is a whole number"),
        ({"vocab_size": 0}, "vocab_size is a whole number"),
        ({"dropout": 1.5}, r"dropout lies in \[0, 1\)"),
        ({"tied": True}, "need embedding = hidden, got 5 and 6"),
    ],
)
def test_bad_arguments_are_one_clear_line(arguments: dict, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as error:
        small_model(**arguments)
    assert "\n" not in str(error.value)
