"""Many processes as one: who is in the world, and everything that passes between its ranks.

Every process started by torchrun runs the same program on its own rows. What they exchange are tensors: the gradients
of a step once, flat; logits of held-out rows; and what rank 0 read from disk, for only rank 0 touches the run folder.
Nothing is pickled. A single process is a world of one, which needs no process group and no extra package.

A rank that dies ends the job: the exchange that waits for it fails, and the others leave with `LostRankError`.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from dynabert.errors import DynabertError, FirstRankError, LostRankError, SettingError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TIMEOUT_S = 600.0
"""How long an exchange waits for the other ranks. A killed process is noticed at once, by its closed connection; this
is for one that hangs, or a machine that vanished. It must outlast what rank 0 does alone: writing a checkpoint."""

_ALIGNMENT = 64  # elements: every weight's gradient begins where vector loads like it


@dataclass(frozen=True)
class Shared:
    """What rank 0 has for all: a JSON value and tensors by name."""

    value: Any = None
    tensors: "dict[str, Tensor]" = field(default_factory=dict)


@dataclass(frozen=True)
class World:
    """The processes of a job, seen from one of them. `ALONE` is a world of one: every exchange is then free.

    :param rank: this process, from 0.
    :param size: how many there are.
    :param device: where this process computes, and where exchanged tensors are for the exchange.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def is_first(self) -> bool:
        """Whether this is the one rank that writes, prints and draws."""
        return self.rank == 0

    def sum(self, tensor: "Tensor") -> None:
        """Replace a tensor on this world's device by the sum of all ranks' tensors, in place, the same bits on each."""
        if self.size > 1:
            import torch.distributed as dist

            self._exchange(lambda: dist.all_reduce(tensor))

    def gather_rows(self, rows: "Tensor") -> "Tensor":
        """The rows of all ranks, one rank's after the other's, on every rank.

        :param rows: this rank's, shape (rows, ...); there may be none, and each rank may have another number of them.
        :return: shape (rows of all, ...), on the device of `rows`.
        """
        if self.size == 1:
            return rows
        import torch
        import torch.distributed as dist

        counts = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.size)]
        count = torch.tensor([len(rows)], device=self.device)
        self._exchange(lambda: dist.all_gather(counts, count))
        sizes = [int(count) for count in counts]
        # Collectives want one shape: shorter parts are filled up, and what was filled up is cut off again.
        mine = torch.zeros(max(sizes), *rows.shape[1:], dtype=rows.dtype, device=self.device)
        mine[: len(rows)] = rows
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        self._exchange(lambda: dist.all_gather(parts, mine))
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]).to(rows.device)

    def from_first(self, make: Callable[[], Shared]) -> Shared:
        """What rank 0 makes, on every rank. Only rank 0 calls `make`; the others wait for it.

        :param make: reads files, or decides something.
        :return: the value and the tensors, on the CPU on every rank but the first, where they are as `make` gave them.
        :raises DynabertError: on rank 0 whatever `make` raises.
        :raises FirstRankError: on the other ranks, if it raised a `DynabertError`; the exit code is that error's.
        """
        if self.size == 1:
            return make()
        made, failed = Shared(), None
        if self.is_first:
            try:
                made = make()
            except DynabertError as error:
                failed = error
        described = [[name, str(tensor.dtype), list(tensor.shape)] for name, tensor in made.tensors.items()]
        code = failed.exit_code if failed else 0
        head = self._share_text(json.dumps({"code": code, "value": made.value, "tensors": described}))
        if failed is not None:
            raise failed
        said = json.loads(head)
        if said["code"]:
            raise FirstRankError(said["code"])
        if self.is_first:
            for tensor in made.tensors.values():
                self._from_first(tensor)
            return made
        return Shared(said["value"], {name: self._receive(dtype, shape) for name, dtype, shape in said["tensors"]})

    def on_first(self, action: Callable[[], Any]) -> Any:  # noqa: ANN401 (any JSON value)
        """Done by rank 0 alone; its result, a JSON value, on every rank. Errors as `from_first`."""
        return self.from_first(lambda: Shared(action())).value

    def agree(self, what: str, value: str) -> None:
        """Check that all ranks hold the same text, for instance the fingerprint of what they are about to do.

        :raises SettingError: this rank's differs from rank 0's.
        """
        told = self.on_first(lambda: value)
        if told != value:
            raise SettingError(
                f"rank {self.rank} has other {what} than rank 0; give every process the same command, data and model"
            )

    def barrier(self) -> None:
        """Wait until every rank has come here."""
        import torch

        self.sum(torch.zeros(1, device=self.device))

    def _share_text(self, text: str) -> str:
        """Rank 0's text on every rank, as bytes in a tensor."""
        import torch

        data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        length = torch.tensor([len(data)])
        self._from_first(length)
        data = data if self.is_first else torch.empty(int(length), dtype=torch.uint8)
        self._from_first(data)
        return data.numpy().tobytes().decode()

    def _receive(self, dtype: str, shape: list[int]) -> "Tensor":
        import torch

        tensor = torch.empty(shape, dtype=getattr(torch, dtype.removeprefix("torch.")))
        self._from_first(tensor)
        return tensor

    def _from_first(self, tensor: "Tensor") -> None:
        """Replace a CPU tensor by rank 0's, in place; rank 0's may lie anywhere and stays as it is."""
        import torch.distributed as dist

        exchanged = tensor.to(self.device).contiguous()
        self._exchange(lambda: dist.broadcast(exchanged, src=0))
        if not self.is_first:
            tensor.copy_(exchanged)

    def _exchange(self, collective: Callable[[], object]) -> None:
        """The one place where a lost rank shows."""
        import torch

        try:
            collective()
        except RuntimeError as error:
            if isinstance(error, torch.distributed.DistError) or _LOST.search(str(error)):
                raise _lost(error) from error
            raise


ALONE = World()


def n_launched() -> int:
    """How many processes the launcher started; 1 without one."""
    return _environment("WORLD_SIZE", 1)


def launched_rank() -> int:
    """This process's rank by the launcher's word, before any process group exists; 0 without a launcher."""
    return _environment("RANK", 0) if n_launched() > 1 else 0


@contextmanager
def joined(device: str) -> Iterator[World]:
    """The world that the launcher started this process in, while the block runs.

    :param device: ``cpu`` or ``cuda``; on GPUs each process takes the one of its local rank.
    :return: a world of one where there is no launcher, or where it started one process.
    :raises SettingError: accelerate is not installed, a device with a number for several processes, or a process group
        of another size than was asked for.
    :raises LostRankError: the others cannot be reached.
    """
    asked = n_launched()
    if asked == 1:
        yield World(device=device)
        return
    if ":" in device:
        raise SettingError(f"device {device!r} names one GPU for {asked} processes; give cuda, and each takes its own")
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise SettingError(
            "several processes need accelerate; install it with: pip install 'dynabert[train]'"
        ) from error
    import torch.distributed as dist

    try:
        state = PartialState(cpu=device == "cpu", timeout=timedelta(seconds=TIMEOUT_S))
    except RuntimeError as error:
        raise _lost(error) from error
    found = dist.get_world_size() if dist.is_initialized() else 1
    if found != asked:
        raise SettingError(f"{asked} processes were asked for but {found} came together; start them with torchrun")
    try:
        yield World(dist.get_rank(), found, device if device == "cpu" else str(state.device))
    finally:
        # Also after an error: closed connections are what the other ranks notice.
        dist.destroy_process_group()
        PartialState._reset_state()


class Gradients:
    """The gradients of all weights in one flat tensor, so that ranks add them up in one exchange.

    Each weight's `.grad` is a view of it. Two more elements at the end carry a flag and the loss.

    :param parameters: of one data type, on one device.
    :param world: who adds up.
    :raises SettingError: weights of several data types.
    """

    def __init__(self, parameters: "Iterable[torch.nn.Parameter]", world: World) -> None:
        import torch

        self.parameters, self.world = list(parameters), world
        dtypes = {parameter.dtype for parameter in self.parameters}
        if len(dtypes) != 1:
            raise SettingError(f"weights of data types {sorted(map(str, dtypes))} cannot be trained together; use one")
        starts, end = [], 0
        for parameter in self.parameters:
            starts.append(end)
            end += -(-parameter.numel() // _ALIGNMENT) * _ALIGNMENT
        first = self.parameters[0]
        self.flat = torch.zeros(end + 2, dtype=first.dtype, device=first.device)
        self._views = [
            self.flat[start : start + parameter.numel()].view(parameter.shape)
            for start, parameter in zip(starts, self.parameters, strict=True)
        ]

    def zero(self) -> None:
        """Begin a step."""
        self.flat.zero_()
        for parameter, view in zip(self.parameters, self._views, strict=True):
            parameter.grad = view

    def reduce(self, *, flag: bool = False, loss: float = 0.0) -> tuple[bool, float]:
        """End a step: every rank then has the sum of all ranks' gradients, to the last bit.

        :param flag: something that this rank wants all to know, for instance that it was asked to stop.
        :param loss: of this rank's rows.
        :return: whether any rank raised its flag, and the loss of all rows; the same on each rank.
        """
        if self.world.size == 1:
            return flag, loss
        self.flat[-2], self.flat[-1] = float(flag), loss
        self.world.sum(self.flat)
        return bool(self.flat[-2] > 0), float(self.flat[-1])

    def release(self) -> None:
        """Take the gradients off the weights."""
        for parameter in self.parameters:
            parameter.grad = None


def _environment(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    try:
        return int(text or default)
    except ValueError:
        raise SettingError(f"{name}={text!r} in the environment is not a number; torchrun sets it") from None


_LOST = re.compile("gloo|NCCL|[Cc]onnection|[Tt]imed? ?out|[Ss]ocket|[Bb]roken pipe")
"""In the message of an exchange that fails because another process does; not in that of a bad index or full memory."""


def _lost(error: RuntimeError) -> LostRankError:
    reason = " ".join(str(error).split())[:200]
    return LostRankError(
        f"another process of this job is gone or hangs ({reason}); start the same command again: it goes on from its "
        "last checkpoint"
    )
