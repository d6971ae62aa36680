"""The figures' arrays against closed forms, and what is drawn against the arrays."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.fft
import torch
from examples import small_network
from matplotlib.axes import Axes
from matplotlib.patches import StepPatch
from torch import Tensor, nn

from defendpp import figure_data, figures, intervals, threats
from defendpp.frequency import rebuild
from defendpp.objective import Defend, defend

SHAPE = (1, 28, 28)


def images(n: int = 3, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(1))


def modes(*networks: nn.Module) -> list[bool]:
    return [module.training for network in networks for module in network.modules()]


class Hand(Defend):
    """Rebuilds images by a function instead of a decoder."""

    def __init__(self, rebuilt: Any) -> None:
        nn.Module.__init__(self)
        self.rebuilt = rebuilt

    def classify_and_rebuild(self, classifier: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        return classifier(images), [self.rebuilt(images)]


class TestFrequencies:
    @pytest.mark.parametrize(("size", "scales"), [((28, 28), 3), ((32, 32), 3), ((29, 15), 2)])
    def test_maps_are_those_of_scipy_and_the_pyramid_rebuilds_the_image(
        self, size: tuple[int, int], scales: int
    ) -> None:
        image = images(1, (3, *size))[0]
        arrays = figure_data.frequencies(image, None if size == (28, 28) else scales)
        assert len(arrays) == 4 * scales
        assert {array.dtype.name for array in arrays.values()} == {"float16"}
        full = scipy.fft.dctn(image.double().mean(0).numpy(), norm="ortho")
        for m in range(scales):
            height, width = arrays[f"low_pass_map_{m}"].shape
            assert arrays[f"low_pass_{m}"].shape == (3, height, width)
            kept = full[:height, :width] * np.sqrt(height * width / (size[0] * size[1]))
            band = kept.copy()
            if m < scales - 1:
                smaller = arrays[f"low_pass_map_{m + 1}"].shape
                band[: smaller[0], : smaller[1]] = 0
            for name, expected in (("low_pass", kept), ("pyramid", band)):
                magnitude = np.log10(np.maximum(np.abs(expected), 1e-3))
                np.testing.assert_allclose(arrays[f"{name}_map_{m}"], magnitude, rtol=1e-3, atol=1e-3)
        pyramid = [torch.from_numpy(arrays[f"pyramid_{m}"]).float()[None] for m in range(scales)]
        torch.testing.assert_close(rebuild(pyramid)[0], image, atol=3e-3, rtol=0)
        np.testing.assert_array_equal(arrays["low_pass_0"], image.half().numpy())

    def test_an_image_of_bytes_is_refused(self) -> None:
        with pytest.raises(ValueError, match="must lie in \\[0, 1\\], but its values go from 0 to 255"):
            figure_data.frequencies(torch.tensor([[[0.0, 255.0]]]))


class TestExamples:
    ATTACKS = (threats.fgsm(0.1), threats.pgd(0.1, steps=3), threats.ddn(steps=8))

    def test_are_what_the_attacks_make(self) -> None:
        model, clean = small_network(), images()
        model[0].eval()
        found, state = modes(model), torch.get_rng_state()
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        labels = torch.tensor([3, 1, 4])
        arrays = figure_data.examples(model, clean, labels, self.ATTACKS, seed=5)
        assert modes(model) == found
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())
        assert arrays["attack"].tolist() == ["fgsm 0.1", "pgd 0.1", "ddn"]
        np.testing.assert_array_equal(arrays["label"], labels)
        model.eval()
        for j, attack in enumerate(self.ATTACKS):
            random = {"generator": torch.Generator().manual_seed(5)} if attack.is_random else {}
            made = attack.run(model, clean, labels, **random).images
            change = made.double() - clean.double()
            np.testing.assert_allclose(arrays["l2"][j], change.square().sum((1, 2, 3)).sqrt(), rtol=1e-6)
            np.testing.assert_allclose(arrays["linf"][j], change.abs().amax((1, 2, 3)), rtol=1e-6)
            np.testing.assert_array_equal(arrays["prediction"][j], model(made).argmax(1))
            assert arrays["adversarial"].dtype == np.uint8
            assert np.abs(arrays["adversarial"][j] / 255 - made.numpy()).max() <= 0.5001 / 255
        np.testing.assert_array_equal(arrays["clean_prediction"], model(clean).argmax(1))
        assert np.abs(arrays["clean"] / 255 - clean.numpy()).max() <= 0.5001 / 255

    def test_nothing_to_show_is_refused(self) -> None:
        with pytest.raises(ValueError, match="not 3 images and 0 attacks"):
            figure_data.examples(small_network(), images(), torch.zeros(3, dtype=torch.int64), [])
        with pytest.raises(ValueError, match="not 0 images and 1 attacks"):
            figure_data.examples(small_network(), images(0), torch.zeros(0, dtype=torch.int64), self.ATTACKS[:1])


class TestReconstructions:
    def test_are_the_decoder_s_and_the_modes_stay(self) -> None:
        classifier = small_network()
        objective = defend(classifier, SHAPE, noise=0.5)
        classifier[1].eval()
        objective.auto_encoder.decoder.eval()
        clean, adversarial = images(), images().flip(3)
        found = modes(classifier, objective)
        state = {name: value.clone() for name, value in classifier.state_dict().items()}
        arrays = figure_data.reconstructions(classifier, objective, clean, adversarial)
        assert modes(classifier, objective) == found
        assert len(set(found)) == 2
        assert all(torch.equal(value, state[name]) for name, value in classifier.state_dict().items())
        classifier.eval()
        objective.eval()
        for name, seen in (("clean", clean), ("adversarial", adversarial)):
            rebuilt = objective.classify_and_rebuild(classifier, seen)[1][0].detach().clamp(0, 1)
            assert np.abs(arrays[name] / 255 - seen.numpy()).max() <= 0.5001 / 255
            assert np.abs(arrays[f"{name}_reconstruction"] / 255 - rebuilt.numpy()).max() <= 0.5001 / 255


class TestRemoval:
    @pytest.mark.parametrize("left", [0.0, 0.25, 0.5, 0.75, 1.0])
    def test_r_of_a_filter_that_leaves_a_share_of_the_perturbation(self, left: float) -> None:
        clean = torch.full((4, *SHAPE), 0.5)
        adversarial = clean + 0.25 * (images(4) - 0.5)
        objective = Hand(lambda seen: 0.5 + left * (seen - 0.5))
        arrays = figure_data.removal(small_network(), objective, [(clean, adversarial)])
        assert {array.dtype.name for array in arrays.values()} == {"float32"}
        distance = (adversarial - clean).double().square().sum((1, 2, 3)).sqrt().numpy()
        np.testing.assert_allclose(arrays["distance"], distance, rtol=1e-5)
        np.testing.assert_allclose(arrays["D_rc"], left * distance, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(arrays["D_ra"], (1 - left) * distance, rtol=1e-5, atol=1e-6)
        if left < 1:
            np.testing.assert_allclose(arrays["R"], left / (1 - left), rtol=1e-5, atol=1e-6)

    def test_an_auto_encoder_that_copies_and_an_attack_that_did_nothing(self) -> None:
        clean = images(2)
        adversarial = torch.stack([clean[0], 1 - clean[1]])
        arrays = figure_data.removal(small_network(), Hand(lambda seen: seen.clone()), [(clean, adversarial)])
        assert arrays["R"].tolist() == [1, np.inf]
        assert (arrays["distance"] > 0).tolist() == [False, True]

    def test_a_black_picture_seems_to_remove_what_brightens(self) -> None:
        """Why R < 1 alone is no proof, as the docstring says."""
        clean = 0.5 * images(2)
        arrays = figure_data.removal(small_network(), Hand(torch.zeros_like), [(clean, clean + 0.1)])
        assert (arrays["R"] < 1).all()
        assert (arrays["D_rc"] > arrays["distance"]).all()

    def test_reconstructions_are_clipped(self) -> None:
        white = torch.ones(1, *SHAPE)
        arrays = figure_data.removal(small_network(), Hand(lambda seen: seen + 3), [(white, white - 0.5)])
        assert arrays["D_rc"].tolist() == [0]

    def test_pieces_are_read_one_by_one_in_the_callers_own_modes(self) -> None:
        classifier = small_network()
        objective = defend(classifier, SHAPE)
        clean, adversarial = images(5), images(5).flip(3)
        whole = figure_data.removal(classifier, objective, [(clean, adversarial)])

        def pieces() -> Iterator[tuple[Tensor, Tensor]]:
            for rows in (slice(0, 2), slice(2, 5)):
                assert classifier.training
                assert torch.is_grad_enabled()
                assert not torch.is_inference_mode_enabled()
                yield clean[rows], adversarial[rows]

        parts = figure_data.removal(classifier, objective, pieces())
        for name, values in whole.items():
            np.testing.assert_allclose(parts[name], values, rtol=1e-5)
        assert all(modes(classifier, objective))

    def test_bad_pieces(self) -> None:
        with pytest.raises(ValueError, match="the pieces hold none"):
            figure_data.removal(small_network(), Hand(torch.zeros_like), [])
        with pytest.raises(ValueError, match=r"one shape, not \(2, 1, 28, 28\) and \(3, 1, 28, 28\)"):
            figure_data.removal(small_network(), Hand(torch.zeros_like), [(images(2), images(3))])


def drawn(axes: Axes) -> Any:
    (image,) = axes.get_images()
    return np.asarray(image.get_array())


def points_of(line: Any) -> list[list[float]]:
    return [np.asarray(each).tolist() for each in (line.get_xdata(), line.get_ydata())]


def curve(values: list[float], n: int = 50) -> pd.DataFrame:
    points = [intervals.accuracy(np.arange(n) < round(value * n)) for value in values]
    return pd.DataFrame(
        [(0.1 * (i + 1), point.value, point.low, point.high, point.n) for i, point in enumerate(points)],
        columns=["budget", "value", "low", "high", "n"],
    )


def removal(ratio: list[float], to_clean: float = 1.0, distance: float = 2.0) -> dict[str, Any]:
    values = np.array(ratio, np.float32)
    return {"R": values, "D_rc": np.full_like(values, to_clean), "distance": np.full_like(values, distance)}


def shown_examples(n: int = 2, channels: int = 3) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    return {
        "clean": generator.integers(0, 256, (n, channels, 6, 5), dtype=np.uint8),
        "adversarial": generator.integers(0, 256, (2, n, channels, 6, 5), dtype=np.uint8),
        "label": np.arange(n),
        "clean_prediction": np.zeros(n, np.int64),
        "prediction": np.array([np.arange(n), np.arange(n) + 1]),
        "l2": np.array([[0.125] * n, [2.5] * n], np.float32),
        "linf": np.array([[0.0625] * n, [1.0] * n], np.float32),
        "attack": np.array(["fgsm 0.1", "ddn"]),
    }


class TestFigure2:
    def test_draws_every_level(self) -> None:
        gray, colour = (figure_data.frequencies(images(1, (c, 28, 28))[0]) for c in (1, 3))
        figure = figures.figure2({"gray $1": gray, "colour": colour}, title="T $2")
        *axes, bar = figure.axes
        assert len(axes) == 4 * 6
        assert bar.get_ylabel().endswith("|DCT|")
        grid = np.array(axes).reshape(4, 6)
        strongest = max(np.abs(gray[f"pyramid_{m}"]).max() for m in range(2)).astype(float)
        for m in range(3):
            np.testing.assert_array_equal(drawn(grid[0, m]), gray[f"low_pass_{m}"][0].clip(0, 1))
            np.testing.assert_array_equal(drawn(grid[0, 3 + m]), np.moveaxis(colour[f"low_pass_{m}"], 0, -1).clip(0, 1))
            np.testing.assert_array_equal(drawn(grid[1, m]), gray[f"low_pass_map_{m}"])
            np.testing.assert_array_equal(drawn(grid[3, m]), gray[f"pyramid_map_{m}"])
        for m in range(2):
            band = gray[f"pyramid_{m}"][0].astype(float)
            np.testing.assert_allclose(drawn(grid[2, m]), 0.5 + band / (2 * strongest), atol=1e-3)
        np.testing.assert_array_equal(drawn(grid[2, 2]), gray["pyramid_2"][0].clip(0, 1))
        assert len({axes.get_images()[0].get_clim() for axes in grid[[1, 3]].ravel()}) == 1
        assert grid[0, 0].get_title(loc="left") == r"gray \$1"
        assert figure.get_suptitle() == r"T \$2"

    def test_bad_arrays(self) -> None:
        with pytest.raises(ValueError, match="at least one image"):
            figures.figure2({})
        arrays = figure_data.frequencies(images(1)[0])
        del arrays["pyramid_2"]
        with pytest.raises(
            ValueError, match=r"'x': .* not 3 of low_pass, 3 of low_pass_map, 2 of pyramid, 3 of pyramid_map"
        ):
            figures.figure2({"x": arrays})


class TestFigure5:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_a_row_per_image_and_a_column_per_attack(self, channels: int) -> None:
        arrays = shown_examples(channels=channels)
        figure = figures.figure5(arrays, title="white-box on x", classes=("cat", "dog", "$"))
        grid = np.array(figure.axes).reshape(2, 3)
        for i in range(2):
            for j, picture in enumerate((arrays["clean"][i], *arrays["adversarial"][:, i])):
                expected = np.moveaxis(picture, 0, -1) if channels == 3 else picture[0]
                np.testing.assert_array_equal(drawn(grid[i, j]), expected / 255)
        assert [axes.get_title() for axes in grid[0]] == ["Clean", "FGSM 0.1", "DDN"]
        assert [axes.get_xlabel() for axes in grid[1]] == [
            "cat ✗",
            "dog ✓\nL2 0.12, L∞ 0.06",
            "\\$ ✗\nL2 2.50, L∞ 1.00",
        ]
        assert figure.get_suptitle() == "white-box on x"
        assert figures.figure5(arrays).axes[0].get_xlabel() == "0 ✓"

    def test_bad_arrays(self) -> None:
        arrays = shown_examples()
        with pytest.raises(ValueError, match=r"l2 must be of 2 attacks on 2 images, not of \(2, 1\)"):
            figures.figure5({**arrays, "l2": arrays["l2"][:, :1]})
        with pytest.raises(ValueError, match="the arrays have no 'attack', only 'clean'"):
            figures.figure5({"clean": arrays["clean"], "adversarial": arrays["adversarial"]})


class TestFigure6:
    def test_curves_bands_points_and_notes(self) -> None:
        a, b, other = curve([0.9, 0.5, 0.1]), curve([0.8, 0.3, 0.0], 1200), curve([0.7, 0.6, 0.5])
        points = pd.DataFrame({"budget": [0.2], "value": [0.32]})
        figure = figures.figure6(
            {"b": b, "c": other}, {"a": a, "b": b}, source="a", reported={"a": points}, chance=0.25
        )
        transfer, white = figure.axes
        assert transfer.get_title() == "Transfer: made on “a”\nn = 50 to 1,200"
        assert white.get_title().startswith("White-box")
        for axes, expected in ((transfer, {"b": b, "c": other}), (white, {"a": a, "b": b})):
            lines = {str(line.get_label()): line for line in axes.get_lines()}
            for name, each in expected.items():
                assert points_of(lines[name]) == [each["budget"].tolist(), (100 * each["value"]).tolist()]
            for band, each in zip(axes.collections, expected.values(), strict=True):
                corners = set(map(tuple, np.asarray(band.get_paths()[0].vertices).tolist()))
                for bound in ("low", "high"):
                    assert corners >= set(zip(each["budget"], 100 * each[bound], strict=True))
            assert points_of(lines["a, as the paper reports"]) == [[0.2], [32]]
            xs, ys = zip(*map(points_of, axes.get_lines()), strict=True)
            assert xs.count([0.5, 0.5]) == ys.count([25, 25]) == 1
            assert any("Carlini et al. 2019" in text.get_text() for text in axes.texts)
        looks = {
            name: {(line.get_color(), line.get_linestyle(), line.get_marker()) for axes in figure.axes
                   for line in axes.get_lines() if line.get_label() == name} for name in "abc"
        }  # fmt: skip
        assert {len(each) for each in looks.values()} == {1}
        assert len(set.union(*looks.values())) == 3
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "c", "a, as the paper reports"]

    def test_a_panel_without_curves_says_so(self) -> None:
        figure = figures.figure6({}, {"a": curve([0.5])}, source="a")
        assert [axes.get_title().splitlines()[1] for axes in figure.axes] == ["not measured", "n = 50"]

    def test_bad_curves(self) -> None:
        good = curve([0.5, 0.2])
        with pytest.raises(ValueError, match="both panels are empty"):
            figures.figure6({}, {}, source="a")
        with pytest.raises(ValueError, match="the curve of 'x' is empty"):
            figures.figure6({"x": good.iloc[:0]}, {}, source="a")
        with pytest.raises(ValueError, match="'x' has no 'n'"):
            figures.figure6({}, {"x": good.drop(columns="n")}, source="a")
        with pytest.raises(ValueError, match="'x' must have 0 <= low <= value <= high <= 1"):
            figures.figure6({}, {"x": good.assign(value=50.0)}, source="a")
        with pytest.raises(ValueError, match="'y' must have 0 <= low"):
            figures.figure6({}, {"x": good}, source="a", reported={"y": good.assign(value=31.94)})


class TestFigure7:
    def test_four_rows(self) -> None:
        keys = ("clean", "clean_reconstruction", "adversarial", "adversarial_reconstruction")
        generator = np.random.default_rng(0)
        arrays = {key: generator.integers(0, 256, (3, 1, 6, 5), dtype=np.uint8) for key in keys}
        figure = figures.figure7(arrays)
        grid = np.array(figure.axes).reshape(4, 3)
        for line, key in zip(grid, keys, strict=True):
            for axes, picture in zip(line, arrays[key], strict=True):
                np.testing.assert_array_equal(drawn(axes), picture[0] / 255)
        with pytest.raises(ValueError, match=r"adversarial must be of the shape of clean, \(3, 1, 6, 5\), not \(2,"):
            figures.figure7({**arrays, "adversarial": arrays["adversarial"][:2]})
        with pytest.raises(ValueError, match="at least one, not 4 rows of 0"):
            figures.figure7({key: array[:0] for key, array in arrays.items()})


class TestFigure8:
    def test_shares_are_drawn_in_per_cent(self) -> None:
        ratio = [0.0, 0.51, 0.52, 0.98, 1.0, 1.31, 5.0, np.inf]
        moved = removal(ratio)
        moved["distance"][-2:] = (0.5, 2)
        moved["D_rc"][0] = 2
        still = {key: np.append(array, 0) for key, array in removal([0.5] * 4).items()}
        figure = figures.figure8({"a$": moved, "b": still})
        (axes,) = figure.axes
        outlines = [patch for patch in axes.patches if isinstance(patch, StepPatch) and patch.get_label()]
        named = [patch for patch in outlines if not str(patch.get_label()).startswith("_")]
        shares, edges, _ = named[0].get_data()
        assert 1.0 in edges
        assert shares.sum() == pytest.approx(100)
        expected = {0.0: 1, 0.5: 2, 0.975: 1, 1.0: 1, 1.3: 1, 1.975: 2}
        found = {round(float(left), 3): share * 8 / 100 for left, share in zip(edges, shares, strict=False) if share}
        assert found == pytest.approx(expected)
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert labels[0] == r"a\$: R < 1 for 50.0 %, $D_{rc}$ < distance for 75.0 %, n = 8"
        assert labels[1] == "b: R < 1 for 100.0 %, $D_{rc}$ < distance for 100.0 %, n = 4 of 5"
        assert [points_of(line)[0] for line in axes.get_lines()] == [[1, 1]]

    def test_bad_arrays(self) -> None:
        with pytest.raises(ValueError, match="at least one network"):
            figures.figure8({})
        with pytest.raises(ValueError, match="'x': the attack changed none of 2 images"):
            figures.figure8({"x": removal([1, 1], distance=0)})
        with pytest.raises(ValueError, match="'x': R, D_rc and distance must be of as many images"):
            figures.figure8({"x": {**removal([1, 1]), "D_rc": np.ones(3)}})
        with pytest.raises(ValueError, match="the arrays have no 'D_rc'"):
            figures.figure8({"x": {"R": np.ones(2)}})


class TestSave:
    @pytest.mark.parametrize("ending", ["svg", "png"])
    def test_the_same_figure_gives_the_same_bytes(self, tmp_path: Path, ending: str) -> None:
        def figure() -> Any:
            return figures.figure6({"b": curve([0.9, 0.2])}, {}, source="a", title="T")

        first, second, third = (tmp_path / f"{name}.{ending}" for name in ("first", "second", "third"))
        same = figure()
        figures.save(same, first)
        figures.save(same, second)
        other = figure()
        figures.save(other, tmp_path / f"other.{'svg' if ending == 'png' else 'png'}")
        figures.save(other, third)
        assert first.read_bytes() == second.read_bytes() == third.read_bytes()
        assert first.read_bytes().startswith(b"\x89PNG" if ending == "png" else b"<?xml")
        assert not re.search(rb"<dc:date>|Matplotlib v", first.read_bytes())
        assert len(list(tmp_path.iterdir())) == 4

    def test_other_endings(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"saved as .svg or .png, not as 'x.pdf'"):
            figures.save(figures.figure8({"a": removal([1])}), tmp_path / "x.pdf")
        assert not list(tmp_path.iterdir())


def test_stored_arrays_are_drawn_without_torch(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "8.npz", **removal([0.5, 1.5]))
    code = """
import sys
import numpy as np
from defendpp import figures
with np.load(sys.argv[1]) as arrays:
    figures.save(figures.figure8({"a": arrays}), sys.argv[2])
assert not {"torch", "matplotlib.pyplot"} & set(sys.modules), "imported"
"""
    subprocess.run([sys.executable, "-c", code, tmp_path / "8.npz", tmp_path / "8.png"], check=True)
    assert (tmp_path / "8.png").stat().st_size > 1000
