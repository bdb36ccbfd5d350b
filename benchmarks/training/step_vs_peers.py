"""Compare a training step of rhofast's BYOL with steps made from parts of other libraries, on the same backbone.

    python -m benchmarks.training.step_vs_peers [--out benchmarks/results/NAME]

All start from the same weights. It is checked first that one step in float64 changes them alike; then the contenders
run steps in rotating order. benchmarks/README.md explains what is measured and what is not.
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
    publish,
    shape_of,
)
from rhofast.models.activation_checkpointing import checkpoint_blocks
from rhofast.models.backbones import build_backbone

try:
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules.heads import BYOLPredictionHead, BYOLProjectionHead
    from lightly.models.utils import update_momentum
    from lightly.utils.lars import LARS
except ImportError as error:
    WITHOUT_LIGHTLY = f"lightly is not measured: {error} (pip install lightly)."
else:
    WITHOUT_LIGHTLY = ""

PACKAGES = ("torch", "accelerate", "lightly", "numpy")
METHOD, MOMENTUM = "byol", BASE["byol"]
WIDTH_OUT = 256  # width of an embedding
SOLO, LIGHTLY, LAST = "as in solo-learn", "with lightly", ", channels last"
AGAIN = "rhofast, checkpoint_activations"


class Peer(nn.Module):
    """rhofast's backbone with heads of another library, and the momentum network of both.

    `state_dict` names are rhofast's, except for the prefix of lightly's heads.
    """

    def __init__(self, width: int, projector: Callable[..., nn.Module], predictor: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.backbone = build_backbone("slow_r50", {"width": width})
        self.projector = projector(self.backbone.num_features)
        self.predictor = predictor(WIDTH_OUT)
        self.momentum_backbone = copy.deepcopy(self.backbone).requires_grad_(requires_grad=False)
        self.momentum_projector = copy.deepcopy(self.projector).requires_grad_(requires_grad=False)

    def start_from(self, state: dict[str, Tensor]) -> None:
        """Load the weights of a rhofast method."""
        self.load_state_dict({name: state[as_rhofast(name)] for name in self.state_dict()})

    def query(self, clip: Tensor) -> Tensor:
        """Return the predictions of a clip."""
        return self.predictor(self.projector(self.backbone(clip)))

    @torch.no_grad()
    def key(self, clip: Tensor) -> Tensor:
        """Return the targets of a clip."""
        return self.momentum_projector(self.momentum_backbone(clip))


def as_rhofast(name: str) -> str:
    """Return rhofast's name of an entry; lightly's heads keep their layers in `layers`."""
    return name.replace(".layers.", ".")


def solo_contender(shape: Shape, state: dict[str, Tensor], pixels: Tensor) -> Contender:
    """Return a step in the order of solo-learn's BYOL.

    All clips go through the network, then through the momentum network; a loss per pair, one backward pass, the
    optimizer, and then a loop over parameters that updates the momentum network.
    """

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
                (model.momentum_projector, model.projector),
            ):
                for key, query in zip(mine.parameters(), theirs.parameters(), strict=True):
                    key.data = MOMENTUM * key.data + (1 - MOMENTUM) * query.data
        return loss.detach()

    return Contender(name=SOLO, step=step, model=model)


def lightly_contender(shape: Shape, state: dict[str, Tensor], pixels: Tensor) -> Contender:
    """Return a step with lightly's heads, loss, moving average and LARS, in the order of its BYOL example."""

    def projector(wide: int) -> nn.Module:
        return BYOLProjectionHead(wide, shape.hidden, WIDTH_OUT)

    def predictor(wide: int) -> nn.Module:
        return BYOLPredictionHead(wide, shape.hidden, WIDTH_OUT)

    model = prepare(Peer(shape.width, projector, predictor), state, pixels)
    criterion = NegativeCosineSimilarity()
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [  # lightly's LARS does not adapt where there is no decay
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": optim_section(METHOD).weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = LARS(groups, lr=RATE, momentum=0.9, nesterov=True)

    def step() -> Tensor:
        update_momentum(model.backbone, model.momentum_backbone, m=MOMENTUM)
        update_momentum(model.projector, model.momentum_projector, m=MOMENTUM)
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
    """Load the weights into a model, and give it the type, device and layout of its input."""
    last = pixels[:, 0].is_contiguous(memory_format=torch.channels_last_3d)
    model.to(pixels.device, pixels.dtype).start_from(state)
    return model.to(memory_format=torch.channels_last_3d) if last else model


def make_contenders(shape: Shape, accelerator: Accelerator, dtype: torch.dtype) -> list[Contender]:
    """Return all contenders, with the same weights; the plain step is the first."""
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
    """Compare one step of each peer in float64 with rhofast's: the changes of the trained weights and statistics.

    The plain step is compared by check_same_step. Peers may update the momentum network after the optimizer, so it
    differs from the second step on. Exits if a difference is larger than rounding.

    Returns:
        The largest relative difference.
    """
    shape = Shape(batch_size=3, clips=3, frames=2, size=32, width=4, hidden=32)
    worst = check_same_step(METHOD, make_pair(METHOD, shape, accelerator, torch.float64, "fp32"))
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
                raise SystemExit(f"{one.name}: the step differs from rhofast's: {name} by {difference:.1e}")
            worst = max(worst, difference)
    return worst


def sentences(contenders: list[Contender]) -> list[str]:
    """Return a sentence with rhofast's time relative to each peer's, and one on missing packages."""
    [ours] = [one for one in contenders if one.name == RHOFAST]
    shares = {
        one.name: statistics.median(a / b for a, b in zip(ours.seconds, one.seconds, strict=True))
        for one in contenders
        if one is not ours
    }
    times = ", ".join(f"{share:.2f} of the time of {name!r}" for name, share in shares.items())
    return [
        f"rhofast's step takes {times} (medians over rounds).",
        *([WITHOUT_LIGHTLY] if WITHOUT_LIGHTLY else []),
    ]


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
    publish([run], options, precision="fp32", packages=PACKAGES, notes=sentences(contenders))


if __name__ == "__main__":
    main()
