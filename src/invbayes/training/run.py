"""A training under way: one step after the other, and a file to go on from."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from invbayes._checks import check_instance
from invbayes.errors import RunawayWarning, TrainingDiverged
from invbayes.networks.iresnet import InvertibleResNet
from invbayes.training.checkpoint import mark_of, read, write
from invbayes.training.objectives import Objective, plain_loss
from invbayes.training.samplers import Sampler

CHECKS = 20  # held-out losses in a training
Callback = Callable[[int, float, InvertibleResNet], Any]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class _Loss(nn.Module):
    """The loss as a module; objectives call methods of the network, which a wrapped one has not."""

    def __init__(self, net: InvertibleResNet, objective: Objective) -> None:
        super().__init__()
        self.net, self.objective = net, objective

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.objective(self.net, x, z)


class Run:
    """A training under way: what it needs to make a step, and to go on after an interruption."""

    def __init__(
        self,
        net: InvertibleResNet,
        objective: Objective,
        sampler: Sampler,
        generator: torch.Generator | None,
        optimizer: MakeOptimizer,
        options: tuple[int, int, float, float],
    ) -> None:
        self.net, self.objective, self.sampler, self.generator = net, objective, sampler, generator
        self.options = options
        steps, self.batch, warmup, average = options
        self.parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
        if not self.parameters:
            raise ValueError("net must have a parameter that requires a gradient, got none")
        self.rank, self.processes = _place()
        self.loss = _Loss(net, objective)
        if self.processes > 1:  # before the average copies the parameters: all get the first's
            self.loss = DistributedDataParallel(self.loss)
        self.stepper = _made(optimizer, self.parameters)
        self.mark = mark_of(options, objective, sampler, generator, self.stepper)
        rate = partial(_step_size, steps=steps, warm=int(warmup * steps))
        self.schedule = LambdaLR(self.stepper, rate)
        self.averaged = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(average))
        self.losses: list[Tensor] = []
        self.held_out: list[tuple[int, float]] = []
        self.best: dict[str, Any] | None = None
        self.warned, self.moving, self.seconds = False, False, 0.0
        self.started = self.saved = time.perf_counter()
        self.before = self._randomness()

    def step(self) -> None:
        """One step of the optimiser."""
        self.stepper.zero_grad()
        x, z = _pair(self.sampler(self.batch, self.generator))
        loss = self.loss(self._share(x), self._share(z))
        _check_loss(loss)
        loss.backward()
        loss = self._mean(loss)
        _check_finite(loss, self.parameters, len(self.losses))
        self.moving = True  # from here to the end of the step nothing of it can be saved
        self.stepper.step()
        self.schedule.step()
        self.averaged.update_parameters(self.net)
        self.losses.append(loss)
        self.before, self.moving = self._randomness(), False
        self._watch(x)

    def check(self, held_out: tuple[Tensor, Tensor] | None, patience: int | None) -> bool:
        """The held-out loss of the average, where it is due; whether to stop."""
        made, steps = len(self.losses), self.options[0]
        due = made * CHECKS // steps > (made - 1) * CHECKS // steps
        if held_out is None or not made or not due:
            return False
        if not self.held_out or self.held_out[-1][0] < made:
            loss = self._mean(plain_loss(self.objective, self.averaged.module, *held_out)).item()
            if not math.isfinite(loss):
                raise ValueError(f"held_out must have a finite loss, got {loss}; is there a NaN?")
            self.moving = True
            self.held_out.append((made, loss))
            if loss == min(lowest for _, lowest in self.held_out):
                self.best = _copied(self.averaged.module.state_dict())
            self.before, self.moving = self._randomness(), False  # the loss may draw numbers
        lowest = min(range(len(self.held_out)), key=lambda i: self.held_out[i][1])
        return patience is not None and len(self.held_out) - 1 - lowest >= patience

    def tell(self, callback: Callback) -> Any:
        """Call back; the answer. What the callback draws belongs to the training."""
        stop = callback(len(self.losses) - 1, self.losses[-1].item(), self.averaged.module)
        self.before = self._randomness()
        return stop

    def finish(self, *, keep_best: bool) -> None:
        """Give the network its average."""
        best = self.best if keep_best and self.best is not None else None
        self.net.load_state_dict(best or self.averaged.module.state_dict())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state as it was before the step under way; a step half made is not written."""
        if self.moving or self.rank:
            return
        content = {name: getattr(self, name) for name in ("mark", "held_out", "best", "before")}
        content |= {name: getattr(self, name).state_dict() for name in self._PARTS}
        write(path, content | {"losses": self.history(), "seconds": self.elapsed()})
        self.saved = time.perf_counter()

    def save_after(self, error: BaseException, path: str | os.PathLike[str]) -> None:
        """Save because of an error, which is what the caller has to hear of in any case."""
        try:
            self.save(path)
        except Exception as failure:
            error.add_note(f"The checkpoint could not be written: {failure}")

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on from a file; after an error the network is as it was."""
        content, first = read(path, self.mark), _copied(self.net.state_dict())
        try:
            self._restore(content)
        except Exception as error:
            self.net.load_state_dict(first)
            raise ValueError(f"checkpoint must be of this training, got {path}: {error}") from error

    def _restore(self, content: dict[str, Any]) -> None:
        for name in self._PARTS:
            getattr(self, name).load_state_dict(content[name])
        for name in ("held_out", "best", "seconds"):
            setattr(self, name, content[name])
        self.losses = list(content["losses"].to(self.parameters[0].device))
        if hasattr(self.sampler, "load_state_dict"):
            self.sampler.load_state_dict(content["before"]["sampler"])
        if self.generator is not None:
            self.generator.set_state(content["before"]["generator"])
        self.before = self._randomness()

    _PARTS = ("net", "averaged", "stepper", "schedule")

    def history(self) -> Tensor:
        """The losses so far, shape ``(steps,)``."""
        return torch.stack(self.losses) if self.losses else torch.zeros(0)

    def elapsed(self) -> float:
        """Seconds, those before an interruption included."""
        return self.seconds + time.perf_counter() - self.started

    def _share(self, samples: Tensor) -> Tensor:
        """The rows of this process; equal shares, so that the mean of their means is that of all."""
        if self.processes == 1:
            return samples
        if len(samples) % self.processes:
            raise ValueError(
                f"batch must give the {self.processes} processes equally many samples, but "
                f"{len(samples)} came"
            )
        return samples.tensor_split(self.processes)[self.rank]

    def _mean(self, loss: Tensor) -> Tensor:
        """The mean over the processes, so that all of them record, and decide, the same."""
        mean = loss.detach() / self.processes
        if self.processes > 1:
            distributed.all_reduce(mean)
        return mean

    def _randomness(self) -> dict[str, Any]:
        """Where the generator and a sampler with a place of its own stand."""
        state = getattr(self.sampler, "state_dict", lambda: None)()
        own = None if self.generator is None else self.generator.get_state()
        return {"generator": own, "sampler": state}

    @torch.no_grad()
    def _watch(self, x: Tensor) -> None:
        """Ask the objective, now and then, whether the samples can carry it."""
        watch = getattr(self.objective, "watch", None)
        if watch is None or self.warned or len(self.losses) % 25 != 1:
            return
        message = watch(self.net, x)
        if message:
            self.warned = True
            warnings.warn(message, RunawayWarning, stacklevel=5)  # the caller of train


def _place() -> tuple[int, int]:
    """The number of this process, and how many there are."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def _made(optimizer: MakeOptimizer, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    stepper = optimizer(parameters)
    check_instance("optimizer(parameters)", stepper, torch.optim.Optimizer)
    if any("lr" not in group for group in stepper.param_groups):
        raise ValueError(
            f"optimizer must have a step size lr, which the schedule changes; "
            f"{type(stepper).__name__} has none"
        )
    if isinstance(stepper, torch.optim.LBFGS):
        raise ValueError("optimizer must step without a closure; LBFGS needs one")
    return stepper


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {k: value.clone() if isinstance(value, Tensor) else value for k, value in state.items()}


def _step_size(step: int, steps: int, warm: int) -> float:
    """The factor of the step size: up to one in ``warm`` steps, then down to zero."""
    if step < warm:
        return (step + 1) / (warm + 1)
    return (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2


def _pair(samples: object) -> tuple[Tensor, Tensor]:
    if not isinstance(samples, (tuple, list)) or len(samples) != 2:
        raise ValueError(f"sampler must give a pair, x and z, got {type(samples).__name__}")
    return samples[0], samples[1]


def _check_loss(loss: Tensor) -> None:
    if not isinstance(loss, Tensor) or loss.ndim or not loss.requires_grad:
        came = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(
            f"objective must return a number with a gradient, a 0-d tensor, got {came}; is "
            "gradient tracking off?"
        )


def _check_finite(loss: Tensor, parameters: list[nn.Parameter], step: int) -> None:
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not torch.isfinite(loss + nn.utils.get_total_norm(grads)):
        raise TrainingDiverged(
            f"the loss or its gradient is not finite at step {step} (loss {loss.item():.3g}); try a "
            f"smaller step size, a longer warm-up, or look for NaN in the samples",
            step=step,
        )
