"""A training step of rhofast's BYOL against those that one would write, or take from a library, on the same backbone.

    python -m benchmarks.training.step_vs_peers [--out benchmarks/results/NAME]

All begin with the same weights; that a step in float64 moves them alike is checked first. Then they take steps in turn.
benchmarks/README.md says what is measured and what is not.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from benchmarks.training.plain_step import PlainLARS, mlp
from benchmarks.training.step_vs_plain import (
    BASE,
    RATE,
    RHOFAST,
    Contender,
    Shape,
    add_options,
    check_same_step,
    console,
    make_pair,
    make_pixels,
    measure,
    optim_section,
    shape_of,
    tell,
)
from rhofast.models.activation_checkpointing import checkpoint_blocks
from rhofast.models.backbones import build_backbone

try:
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules.heads import BYOLPredictionHead, BYOLProjectionHead
    from lightly.models.utils import update_momentum
    from lightly.utils.lars import LARS
except ImportError as error:
    WITHOUT_LIGHTLY = f"lightly's parts are left out: {error} (pip install lightly)."
else:
    WITHOUT_LIGHTLY = ""

PACKAGES = ("torch", "accelerate", "lightly", "numpy")
METHOD, MOMENTUM = "byol", BASE["byol"]
WIDTH_OUT = 256  # of an embedding
SOLO, LIGHTLY, LAST = "solo-learn's way", "lightly's parts", ", channels last"
AGAIN = "rhofast, checkpoint_activations"


class Peer(nn.Module):
    """rhofast's backbone under heads of another make, and a copy of both that follows. `state_dict` names are
    rhofast's, but for what a head puts before its own."""

    def __init__(self, width: int, projection: Callable[..., nn.Module], predictor: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.backbone = build_backbone("slow_r50", {"width": width})
        self.projection = projection(self.backbone.num_features)
        self.predictor = predictor(WIDTH_OUT)
        self.momentum_backbone = copy.deepcopy(self.backbone).requires_grad_(requires_grad=False)
        self.momentum_projector = copy.deepcopy(self.projection).requires_grad_(requires_grad=False)

    def start_from(self, state: dict[str, Tensor]) -> None:
        self.load_state_dict({name: state[as_rhofast(name)] for name in self.state_dict()})

    def query(self, clip: Tensor) -> Tensor:
        return self.predictor(self.projection(self.backbone(clip)))

    @torch.no_grad()
    def key(self, clip: Tensor) -> Tensor:
        return self.momentum_projector(self.momentum_backbone(clip))


def as_rhofast(name: str) -> str:
    """lightly's heads keep their layers in `layers`."""
    return name.replace(".layers.", ".")


def solo_contender(shape: Shape, state: dict[str, Tensor], pixels: Tensor) -> Contender:
    """The order of solo-learn's BYOL: all clips through the network, then through the copy, a loss of every pair, one
    backward, the optimizer, and after it a loop over parameters that moves the copy."""

    def head(wide: int) -> nn.Module:
        return mlp(wide, shape.hidden, WIDTH_OUT, batch_norm=True)

    model = prepare(Peer(shape.width, head, head), state, pixels)
    optimizer = PlainLARS(model, decay=optim_section(METHOD).weight_decay, adapt=True)

    def step() -> Tensor:
        clips = pixels.unbind(dim=1)
        queries = [model.query(clip) for clip in clips]
        keys = [model.key(clip) for clip in clips]
        losses = [
            2 - 2 * F.cosine_similarity(queries[one], keys[other].detach(), dim=-1).mean()
            for one, other in itertools.permutations(range(len(clips)), 2)
        ]
        loss = sum(losses, torch.zeros((), device=pixels.device)) / (len(clips) - 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(RATE)
        with torch.no_grad():
            for mine, theirs in (
                (model.momentum_backbone, model.backbone),
                (model.momentum_projector, model.projection),
            ):
                for key, query in zip(mine.parameters(), theirs.parameters(), strict=True):
                    key.data = MOMENTUM * key.data + (1 - MOMENTUM) * query.data
        return loss.detach()

    return Contender(name=SOLO, step=step, model=model)


def lightly_contender(shape: Shape, state: dict[str, Tensor], pixels: Tensor) -> Contender:
    """lightly's heads, loss, moving average and LARS, in the order of its BYOL example."""

    def projection(wide: int) -> nn.Module:
        return BYOLProjectionHead(wide, shape.hidden, WIDTH_OUT)

    def predictor(wide: int) -> nn.Module:
        return BYOLPredictionHead(wide, shape.hidden, WIDTH_OUT)

    model = prepare(Peer(shape.width, projection, predictor), state, pixels)
    criterion = NegativeCosineSimilarity()
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [  # it does not adapt where there is no decay
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": optim_section(METHOD).weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = LARS(groups, lr=RATE, momentum=0.9, nesterov=True)

    def step() -> Tensor:
        update_momentum(model.backbone, model.momentum_backbone, m=MOMENTUM)
        update_momentum(model.projection, model.momentum_projector, m=MOMENTUM)
        clips = pixels.unbind(dim=1)
        queries = [model.query(clip) for clip in clips]
        keys = [model.key(clip) for clip in clips]
        losses = [criterion(queries[one], keys[other]) for one, other in itertools.permutations(range(len(clips)), 2)]
        # scaled as rhofast's: the sum over queries of -2 cos, the mean over keys
        loss = sum(losses, torch.zeros((), device=pixels.device)) * (2 / (len(clips) - 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Contender(name=LIGHTLY, step=step, model=model)


def prepare(model: Peer, state: dict[str, Tensor], pixels: Tensor) -> Peer:
    """With weights, type, device and layout of what it is to be fed."""
    last = pixels[:, 0].is_contiguous(memory_format=torch.channels_last_3d)
    model.to(pixels.device, pixels.dtype).start_from(state)
    return model.to(memory_format=torch.channels_last_3d) if last else model


def make_contenders(shape: Shape, accelerator: Accelerator, dtype: torch.dtype) -> list[Contender]:
    """All of them, with the same weights; the plain step comes first."""
    contenders = list(make_pair(METHOD, shape, accelerator, dtype, "fp32"))
    state = {name: value.clone() for name, value in contenders[1].model.state_dict().items()}
    again = make_pair(METHOD, shape, accelerator, dtype, "fp32")[1]
    checkpoint_blocks(again.model.backbone)
    contenders.append(Contender(name=AGAIN, step=again.step, model=again.model))
    last = make_pixels(shape, accelerator.device, dtype)
    makers = [solo_contender] if WITHOUT_LIGHTLY else [solo_contender, lightly_contender]
    for make in makers:
        contenders.append(make(shape, state, last.contiguous()))
        other = make(shape, state, last)
        contenders.append(Contender(name=other.name + LAST, step=other.step, model=other.model))
    return contenders


def check_all(accelerator: Accelerator) -> float:
    """The largest relative difference between the movements that a step of each gives to the trained network, in
    float64; of the plain step, two steps of everything. Exits where it is not rounding.

    (Peers may move the key network behind the optimizer, so that it differs from the second step on.)
    """
    worst = check_same_step(METHOD, accelerator)
    shape = Shape(batch_size=3, clips=3, frames=2, size=32, width=4, hidden=32)
    _, ours, *others = make_contenders(shape, accelerator, torch.float64)
    before = {name: value.clone() for name, value in ours.model.state_dict().items()}
    ours.step()
    after = ours.model.state_dict()
    for one in others:
        one.step()
        for theirs, value in one.model.state_dict().items():
            name = as_rhofast(theirs)
            if name.startswith("momentum_") or not value.is_floating_point() or name not in after:
                continue
            apart, moved = (value - after[name]).norm(), (after[name] - before[name]).norm()
            difference = float(apart / (moved + 1e-6 * value.norm() + 1e-9))
            if difference > 1e-6:
                raise SystemExit(f"{one.name}: not rhofast's step: {name} differs by {difference:.1e}")
            worst = max(worst, difference)
    return worst


def sentences(contenders: list[Contender]) -> list[str]:
    """rhofast's time of each peer's, round by round."""
    [ours] = [one for one in contenders if one.name == RHOFAST]
    shares = {
        one.name: statistics.median(a / b for a, b in zip(ours.seconds, one.seconds, strict=True))
        for one in contenders
        if one is not ours
    }
    told = ", ".join(f"{share:.2f} of {name}" for name, share in shares.items())
    return [f"rhofast's step takes {told} (medians over rounds).", *([WITHOUT_LIGHTLY] if WITHOUT_LIGHTLY else [])]


def main() -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_options(parser, gpu=gpu)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    accelerator = Accelerator(cpu=not gpu)
    difference = check_all(accelerator)
    if WITHOUT_LIGHTLY:
        console.print(WITHOUT_LIGHTLY)
    shape = shape_of(METHOD, options)
    contenders = make_contenders(shape, accelerator, torch.float32)
    run: dict[str, Any] = measure(METHOD, shape, contenders, options.rounds, accelerator, difference)
    tell([run], options, precision="fp32", packages=PACKAGES, notes=sentences(contenders))


if __name__ == "__main__":
    main()
