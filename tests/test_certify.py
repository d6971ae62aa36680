"""Randomised smoothing against a classifier whose smoothed form is known exactly: a plane."""

from math import isclose

import pytest
import torch
from scipy.stats import binomtest, norm
from torch import Tensor, nn

from defendpp.certify import ABSTAINED, certified_radius, certify, lower_bound


class Plane(nn.Module):
    """Class 1 on one side of the plane w x = b, class 0 on the other; smoothing leaves it as it is."""

    def __init__(self, normal: Tensor, offset: float) -> None:
        super().__init__()
        self.normal, self.offset = normal, offset
        self.seen = 0

    def distance(self, images: Tensor) -> Tensor:
        along: Tensor = images.flatten(1) @ self.normal
        distance: Tensor = (along - self.offset) / self.normal.norm()
        return distance

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        side = self.distance(images)
        return torch.stack([-side, side], 1)


@pytest.fixture
def plane() -> Plane:
    return Plane(torch.randn(3 * 4 * 4, generator=torch.Generator().manual_seed(0)), 0.0)


def images_at(plane: Plane, distances: list[float]) -> Tensor:
    unit = plane.normal / plane.normal.norm()
    return torch.stack([distance * unit for distance in distances]).view(-1, 3, 4, 4)


def test_the_radius_of_a_plane_is_the_distance_less_what_few_samples_cost(plane: Plane) -> None:
    distances = [0.2, 0.3, 0.5, -0.4]
    found = certify(plane, images_at(plane, distances), sigma=0.5, samples=20_000)
    assert found.prediction.tolist() == [1, 1, 1, 0]
    for radius, distance in zip(found.radius.tolist(), distances, strict=True):
        assert 0.9 * abs(distance) - 0.01 < radius <= abs(distance)


def test_the_radius_is_that_of_the_formula(plane: Plane) -> None:
    """With the counts that the generator gives, redone by hand."""
    (image,) = images_at(plane, [0.2])
    found = certify(
        plane,
        image[None],
        sigma=0.25,
        samples=1000,
        selection=10,
        alpha=0.01,
        generator=torch.Generator().manual_seed(3),
    )
    noise = torch.Generator().manual_seed(3)
    torch.randn(10, 3, 4, 4, generator=noise)
    hits = 0
    for size in (10, 90, 500, 400):
        hits += int((plane.distance(image + 0.25 * torch.randn(size, 3, 4, 4, generator=noise)) > 0).sum())
    low = binomtest(hits, 1000).proportion_ci(0.98, method="exact").low  # one side of 98 % is 99 %
    assert isclose(float(found.radius[0]), 0.25 * norm.ppf(low), rel_tol=1e-5)
    assert found.samples.tolist() == [1010]


@pytest.mark.parametrize(("hits", "n", "alpha"), [(1, 10, 0.05), (990, 1000, 0.001), (1000, 1000, 0.001)])
def test_the_bound_is_scipys(hits: int, n: int, alpha: float) -> None:
    exact = binomtest(hits, n).proportion_ci(1 - 2 * alpha, method="exact").low
    assert isclose(lower_bound(hits, n, alpha), exact, rel_tol=1e-9)


def test_no_hit_is_no_bound() -> None:
    assert lower_bound(0, 100, 0.001) == 0
    assert certified_radius(0.0, 1.0) == 0
    assert certified_radius(0.5, 1.0) == 0


def test_it_abstains_on_the_boundary_and_spends_little_there() -> None:
    """Three classes with equal shares: after a hundredth of the samples it is clear that none exceeds one half."""

    class Thirds(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.rand(len(images), 3, generator=self.generator)

        generator = torch.Generator().manual_seed(0)

    found = certify(Thirds(), torch.zeros(5, 1, 2, 2), sigma=0.1, samples=20_000)
    assert found.prediction.tolist() == [ABSTAINED] * 5
    assert found.radius.tolist() == [0.0] * 5
    assert found.samples.tolist() == [100 + 200] * 5  # a third is 5 standard errors from a half


def test_no_attack_within_the_radius_beats_the_certificate(plane: Plane) -> None:
    """The strongest change there is, straight to the plane, just inside the radius: the smoothed class stays."""
    images = images_at(plane, [0.05, 0.2, 0.6, -0.3])
    found = certify(plane, images, sigma=0.5, samples=5000)
    step = (
        -torch.tensor([1.0, 1, 1, -1])[:, None] * (plane.normal / plane.normal.norm()) * found.radius[:, None] * 0.999
    )
    attacked = images + step.view_as(images)
    certified = found.prediction != ABSTAINED
    assert certified.sum() >= 3
    smoothed = (plane.distance(attacked) > 0).long()  # of a plane smoothing changes nothing
    assert torch.equal(smoothed[certified], found.prediction[certified])


def test_the_failure_probability_is_kept(plane: Plane) -> None:
    """Many certificates of one image: at most about alpha of them claim more than the truth."""
    image = images_at(plane, [0.1]).expand(2000, 3, 4, 4)
    found = certify(plane, image, sigma=0.5, samples=100, selection=1, alpha=0.1, batch_size=200)
    wrong = ((found.prediction == 1) & (found.radius > 0.1)) | (found.prediction == 0)
    assert binomtest(int(wrong.sum()), 2000, 0.1, alternative="greater").pvalue > 0.001
    assert wrong.any()  # the bound is not vacuous


def test_modes_are_left_as_found_and_the_same_seed_gives_the_same() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 3)).train()
    model[2].eval()
    images = torch.rand(2, 1, 2, 2)
    first, second = (certify(model, images, sigma=0.3, samples=50) for _ in range(2))
    assert [module.training for module in model] == [True, True, False]
    assert torch.equal(first.radius, second.radius)
    assert len(certify(model, images[:0], sigma=0.3).radius) == 0


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"sigma": 0.0}, "sigma must be a standard deviation above 0, not 0.0"),
        ({"sigma": 0.1, "alpha": 1.0}, "alpha must be a probability between 0 and 1, not 1.0"),
        ({"sigma": 0.1, "samples": 0}, "samples must be at least 1, not 0"),
    ],
)
def test_what_makes_no_sense_is_refused(plane: Plane, wrong: dict[str, float], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        certify(plane, images_at(plane, [0.1]), **wrong)  # type: ignore[arg-type]
    assert plane.seen == 0
