"""The projector MLP, normalization, and the measure of collapse."""

import math

import pytest
import torch
from torch import nn

from rhofast.models.methods.heads import MLP, embedding_spread, full_precision, normalize
from tests.helpers.reference import VECTORS, needs_vectors, part, tensors


@pytest.mark.parametrize(
    ("batch_norm", "kinds"),
    [
        (False, [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]),
        (True, [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]),
    ],
)
def test_layers_and_biases_are_the_released_ones(batch_norm: bool, kinds: list[type]) -> None:
    mlp = MLP(6, 8, 3, layers=3, batch_norm=batch_norm)
    assert [type(module) for module in mlp] == kinds
    biases = [module.bias is not None for module in mlp if isinstance(module, nn.Linear)]
    assert biases == ([False, False, True] if batch_norm else [True, True, True])
    assert mlp(torch.zeros(2, 6)).shape == (2, 3)


@needs_vectors
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
def test_projections_are_those_of_the_reference(dtype: torch.dtype, within: float) -> None:
    """Compare the projections of every backbone among the vectors, from its stored features."""
    files = [path.stem for path in VECTORS.glob("backbone_r*.safetensors")]
    assert files
    for file in files:
        vectors = tensors(file, dtype)
        weights = part(vectors, "state/head.projection.projection.")
        hidden, wide = weights["0.weight"].shape
        mlp = MLP(wide, hidden, len(weights["4.bias"]), layers=3, batch_norm=False).to(dtype)
        mlp.load_state_dict(weights)
        for mode in ("eval", "train"):
            projected = mlp(vectors[f"{mode}/pool5"])
            assert torch.allclose(projected, vectors[f"{mode}/proj"], rtol=within, atol=within), (file, mode)


def test_weights_start_uniform_and_biases_at_zero() -> None:
    torch.manual_seed(0)
    first = MLP(300, 400, 3, layers=2, batch_norm=False)[0]
    bound = math.sqrt(3 / 300)
    assert float(first.weight.detach().abs().max()) == pytest.approx(bound, rel=1e-3)
    assert float(first.weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=1e-2)
    assert not first.bias.any()


def test_rows_have_unit_length_without_an_epsilon() -> None:
    assert torch.allclose(normalize(torch.tensor([[3e-9, 4e-9]])), torch.tensor([[0.6, 0.8]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_normalized_in_single(dtype: torch.dtype) -> None:
    unit = normalize(torch.full((1, 4), 1000.0, dtype=dtype))  # its squares overflow in float16
    assert unit.dtype == torch.float32 and torch.allclose(unit, torch.full((1, 4), 0.5))


def test_similarities_are_not_rounded_under_autocast() -> None:
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ x.T).dtype == torch.bfloat16
        with full_precision(x):
            assert (x @ x.T).dtype == torch.float32


def test_the_spread_of_collapsed_embeddings_is_near_zero() -> None:
    assert float(embedding_spread(torch.ones(16, 64))) == pytest.approx(0, abs=1e-6)
    spread = torch.randn(512, 64, generator=torch.Generator().manual_seed(0))
    assert float(embedding_spread(spread)) == pytest.approx(1, abs=0.05)
