"""Any network R times over: independent restarts trained at once through `torch.func.vmap`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from repro.errors import UserError
from repro.knobs import Count, checked


class Restarts(nn.Module):
    """R independent copies of a network, each with its own initial weights.

    Maps x (B, ...) to the stacked outputs (R, B, ...). Parameters are stacked along a leading
    dimension R, so a loss summed over R and any elementwise optimizer train every copy as if it
    were alone. Dropout differs between copies.

    Args:
        members: R.
        network: builds one copy with fresh random weights.

    Raises:
        UserError: fewer than one member, or a network with buffers (batch norm).
    """

    @checked
    def __init__(self, members: Count, network: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.members = members
        copies = [network() for _ in range(members)]
        stacked, buffers = stack_module_state(copies)
        if buffers:
            raise UserError(
                f"restarts: {type(copies[0]).__name__} keeps running state ({next(iter(buffers))}),"
                " which cannot be stacked."
            )
        self._paths = list(stacked)  # parameter names may not contain dots
        self.stacked = nn.ParameterList(nn.Parameter(stacked[path].detach()) for path in stacked)
        # In a list, so that the weights of this copy, which only lends its code, do not count.
        self._code = [copies[0].to("meta")]

    def forward(self, x: Tensor) -> Tensor:
        """Returns the outputs of all copies, (R, B, ...)."""
        network = self._code[0].train(self.training)

        def one(state: Mapping[str, Tensor]) -> Tensor:
            output: Tensor = functional_call(network, dict(state), (x,))
            return output

        outputs: Tensor = vmap(one, randomness="different")(dict(self._named()))
        return outputs

    def start_epoch(self, epoch: int) -> None:
        """Passes the zero-based epoch on to a network that wants to know it."""
        tell = getattr(self._code[0], "start_epoch", None)
        if tell is not None:
            tell(epoch)

    def state_of(self, member: int) -> dict[str, Tensor]:
        """The parameters of one copy, named as in the network."""
        return {name: stacked[member].detach() for name, stacked in self._named()}

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        return zip(self._paths, self.stacked, strict=True)
