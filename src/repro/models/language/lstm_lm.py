"""LSTM language model: Zaremba et al. 2014, "Recurrent neural network regularization"."""

from __future__ import annotations

from torch import Tensor, nn

from repro.errors import UserError
from repro.knobs import Count, Fraction, checked

State = tuple[Tensor, Tensor]


class LSTMLanguageModel(nn.Module):
    """Embedding, stacked LSTM, linear decoder; dropout on every connection but the recurrent ones.

    Maps token ids of shape (batch, time), int64, to logits of the next token, of shape
    (batch, time, vocab_size).

    Truncated backpropagation through time: with ``stateful=True`` each call goes on from where
    the last one ended, row by row, and gradients stop at the border between the two. So batch t+1
    must continue batch t in every row, and `reset_state` is due wherever the text starts anew (at
    every epoch). Training and evaluation each remember their own state: a validation in the midst
    of an epoch disturbs nothing. A loop that evaluates a batch twice or in parts needs
    ``stateful=False``, or carries the state itself with `advance`.

    The states stand in ``memory``, by the value of ``training``. They belong to a pass through the
    text and not to the model, so they are no buffers: they are not in ``state_dict``, and the
    processes of data-parallel training do not overwrite each other's. Whoever resumes in the midst
    of an epoch saves and restores ``memory`` too.

    Args:
        vocab_size: number of distinct tokens.
        embedding: size of a token's embedding.
        hidden: size of the hidden and of the cell state of each layer.
        layers: number of stacked LSTM layers.
        dropout: rate on the embedding, between layers, and before the decoder.
        tied: decode with the embedding matrix (Press and Wolf 2017); needs embedding = hidden.
        stateful: remember the state from call to call.
        init_range: every parameter starts uniform in [-init_range, init_range].

    Raises:
        UserError: a size below 1, a rate outside [0, 1), or tied weights of different sizes.
    """

    @checked
    def __init__(
        self,
        vocab_size: Count,
        embedding: Count = 64,
        hidden: Count = 128,
        layers: Count = 1,
        dropout: Fraction = 0.0,
        tied: bool = False,
        stateful: bool = False,
        init_range: float = 0.1,
    ) -> None:
        super().__init__()
        if tied and embedding != hidden:
            raise UserError(
                f"lstm: tied weights need embedding = hidden, got {embedding} and {hidden}."
            )

        self.embedding = nn.Embedding(vocab_size, embedding)
        self.lstm = nn.LSTM(
            embedding,
            hidden,
            layers,
            dropout=dropout if layers > 1 else 0.0,  # PyTorch warns where there is no "between"
            batch_first=True,
        )
        self.decoder = nn.Linear(hidden, vocab_size)
        self.dropout = nn.Dropout(dropout)
        if tied:
            self.decoder.weight = self.embedding.weight
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -init_range, init_range)

        self.stateful = stateful
        self.memory: dict[bool, State] = {}

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Maps token ids (batch, time) to logits (batch, time, vocab_size).

        Raises:
            UserError: the model is stateful and the batch has another number of rows than the
                one it should continue.
        """
        state = self.memory.get(self.training)
        if state is not None and state[0].shape[1] != len(tokens_BT):
            raise UserError(
                f"lstm: a batch of {len(tokens_BT)} rows cannot continue one of"
                f" {state[0].shape[1]}; keep the batch size, or call reset_state()."
            )
        logits_BTV, (hidden_LBH, cell_LBH) = self.advance(tokens_BT, state)
        if self.stateful:
            self.memory[self.training] = (hidden_LBH.detach(), cell_LBH.detach())
        return logits_BTV

    def advance(self, tokens_BT: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Reads tokens from a given state and remembers nothing.

        Args:
            tokens_BT: token ids (batch, time).
            state: hidden and cell state, each (layers, batch, hidden); zeros if None.

        Returns:
            Logits (batch, time, vocab_size), and the state after the last token, still attached
            to the graph.
        """
        embedded_BTE = self.dropout(self.embedding(tokens_BT))
        output_BTH, state = self.lstm(embedded_BTE, state)
        return self.decoder(self.dropout(output_BTH)), state

    def reset_state(self) -> None:
        """Forgets the state of the current mode (training or evaluation): the text starts anew."""
        self.memory.pop(self.training, None)
