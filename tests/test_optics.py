"""What `era synthesize` renders against optics done by hand, in linear light."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.images import read_image, to_float, write_png
from pipeline.synthesize import synthesize
from pipeline.synthesize.photos import BUNDLED, Photo, load_photos
from pipeline.synthesize.render import Rendered, render
from pipeline.synthesize.scene import Scene, Surface, draw_scene
from pipeline.synthesize.write import make_pair

Field = np.ndarray[Any, Any]
SIZE = 64, 72
DARK = 1e-9  # the gain of a sensor without noise


def texture(seed: int = 0) -> Field:
    """Linear light from 0.05 to 0.85, smooth over some three pixels."""
    noise = np.random.default_rng(seed).random((*SIZE, 3), np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 1.5)
    return 0.05 + 0.8 * (smooth - smooth.min()) / (smooth.max() - smooth.min())


def surface(
    light: Field, radius: float | Field, coverage: Field | None = None, psf: str = "disk"
) -> Surface:
    whole = np.ones(light.shape[:2], np.float32)
    return Surface(light, whole if coverage is None else coverage, whole * np.float32(radius), psf)


def shown(*surfaces: Surface, gain: float = DARK) -> Rendered:
    return render(Scene(list(surfaces), gain), np.random.default_rng(0))


def linear(image: Field) -> Field:
    return np.asarray(image.astype(np.float64) ** 2.2)


def through_disk(image: Field, radius: float) -> Field:
    """Convolution with a disk: its share of each pixel, counted on a grid of 20 x 20."""
    reach, fine = int(radius) + 2, 20
    at = (np.arange((2 * reach + 1) * fine) + 0.5) / fine - reach - 0.5
    inside = (np.hypot(at[:, None], at[None]) <= radius).astype(np.float64)
    kernel = inside.reshape(2 * reach + 1, fine, 2 * reach + 1, fine).sum((1, 3))
    kernel /= kernel.sum()
    return cv2.filter2D(image.astype(np.float64), -1, kernel, borderType=cv2.BORDER_REFLECT)


@pytest.mark.parametrize("radius", [1.5, 4.0, -6.0])
def test_a_plane_is_convolved_with_the_disk_of_its_radius_map(radius: float) -> None:
    light = texture()
    found = shown(surface(light, radius))
    assert (found.radius == abs(radius)).all()
    np.testing.assert_allclose(linear(found.sharp), light, atol=1e-5)
    expected = through_disk(light, float(found.radius[0, 0]))
    np.testing.assert_allclose(linear(found.blur), expected, atol=2e-3)
    assert np.abs(expected - light).max() > 0.05


@pytest.mark.parametrize("psf", ["disk", "rim", "gaussian"])
@pytest.mark.parametrize("radius", [2.0, 3.25, 6.0])
def test_a_point_spreads_over_its_radius(psf: str, radius: float) -> None:
    """Mean squared distance: r^2 / 2 for a disk and a Gaussian of r / 2, more with a bright rim."""
    light = np.zeros((41, 41, 3), np.float32)
    light[20, 20] = 1
    spread = linear(shown(surface(light, radius, psf=psf)).blur)[..., 0]
    y, x = np.mgrid[-20:21, -20:21]
    assert spread.sum() == pytest.approx(1, abs=0.01)
    moment = (spread * (x**2 + y**2)).sum() / spread.sum()
    factor = {"disk": 0.5, "rim": 0.574, "gaussian": 0.5}[psf]
    pixel = 1 / 6  # of a pixel's own area
    assert moment == pytest.approx(factor * radius**2 + pixel, rel=0.06)


@pytest.mark.parametrize("ends", [(2, 5), (-2, -5), (-6, 6)])
def test_slices_of_one_surface_leave_no_seam(ends: tuple[int, int]) -> None:
    """Even light stays even under any depth."""
    ramp = np.broadcast_to(np.linspace(*ends, SIZE[1], dtype=np.float32), SIZE)
    found = shown(surface(np.full((*SIZE, 3), 0.4, np.float32), ramp))
    np.testing.assert_allclose(linear(found.blur), 0.4, atol=1e-4)
    np.testing.assert_allclose(found.radius, np.abs(ramp))


@pytest.mark.parametrize("ends", [(2, 5), (-2, -5)])
def test_a_ramp_is_blurred_as_by_the_disk_of_each_place(ends: tuple[int, int]) -> None:
    ramp = np.broadcast_to(np.linspace(*ends, SIZE[1], dtype=np.float32), SIZE)
    light = texture()
    found = linear(shown(surface(light, ramp)).blur)
    for column in (8, 20, 36, 52, 64):
        errors = [
            np.abs(found - through_disk(light, factor * abs(float(ramp[0, column]))))[:, column]
            for factor in (1, 1.5, 0.6)
        ]
        right, larger, smaller = (float(error.mean()) for error in errors)
        assert right < 0.01
        assert right < 0.5 * min(larger, smaller)


@pytest.mark.parametrize(("near", "far"), [(4.0, 0.0), (0.0, 4.0), (-5.0, 2.0)])
def test_an_edge_lets_the_background_through_as_a_lens_does(near: float, far: float) -> None:
    """Light = blurred(coverage x near) + (1 - blurred coverage) x blurred(far)."""
    behind, before = texture(1), texture(2)
    coverage = np.zeros(SIZE, np.float32)
    coverage[:, :30] = 1
    found = shown(surface(behind, far), surface(before, near, coverage))
    disk = lambda image, r: through_disk(image, r) if r else image  # noqa: E731
    share = disk(coverage, abs(near))[..., None]
    expected = disk(coverage[..., None] * before, abs(near)) + (1 - share) * disk(behind, abs(far))
    np.testing.assert_allclose(linear(found.blur), expected, atol=2e-3)
    np.testing.assert_allclose(linear(found.sharp)[:, :30], before[:, :30], atol=1e-5)
    np.testing.assert_allclose(linear(found.sharp)[:, 30:], behind[:, 30:], atol=1e-5)
    assert (found.radius[:, :30] == abs(near)).all()
    assert (found.radius[:, 30:] == abs(far)).all()


@pytest.mark.parametrize("level", [0.001, 0.05, 0.5])
def test_noise_is_that_of_a_sensor(level: float) -> None:
    """Variance (gain x 1e-4)^2 of reading, and gain x light / 50,000 of the electrons' count."""
    gain = 1.5
    found = shown(surface(np.full((200, 200, 3), level, np.float32), 0.0), gain=gain)
    light = linear(found.blur)
    assert light.mean() == pytest.approx(level, rel=0.01)
    assert light.var() == pytest.approx((gain * 1e-4) ** 2 + gain * level / 50_000, rel=0.03)
    assert linear(found.sharp).std() < 1e-6 * level  # the ground truth has none


# Scenes


def scenes(photos: list[Photo], count: int, size: tuple[int, int] = (96, 80)) -> list[Scene]:
    return [draw_scene(np.random.default_rng(n), photos, size, 7.0) for n in range(count)]


def test_a_cut_out_is_nearer_than_what_it_covers() -> None:
    """The signed radius falls with nearness, for one focus and one lens."""
    cut_outs = 0
    for scene in scenes(load_photos("bundled", (96, 80))["train"], 60):
        behind = scene.surfaces[0].radius
        for cut_out in scene.surfaces[1:]:
            covers = cut_out.coverage > 0.5
            assert (cut_out.radius[covers] <= behind[covers] + 1e-4).all()
            behind = np.where(covers, cut_out.radius, behind)
            cut_outs += 1
        assert np.abs(behind).max() <= 7.0 + 1e-4
    assert 40 < cut_outs < 80  # none, one or two of a scene


def test_a_known_depth_is_used() -> None:
    """A quarter of the scenes takes it: the radius then falls with the inverse depth."""
    depth = texture(3)[..., 0]
    coded = Photo.of("coded", np.repeat(depth[..., None], 3, axis=2), depth)  # light shows depth
    for photo, least, most in ((coded, 8, 32), (Photo.of("plain", coded.light), 0, 0)):
        found = 0
        for scene in scenes([photo], 80, (48, 56)):
            light, radius = scene.surfaces[0].light[..., 0], scene.surfaces[0].radius
            if radius.std() > 0:
                found += np.corrcoef(light.ravel(), radius.ravel())[0, 1] < -0.999
        assert least <= found <= most


def test_bundled_disparity_is_the_inverse_depth() -> None:
    photos = load_photos("bundled", (48, 48))
    assert {split: tuple(p.name for p in found) for split, found in photos.items()} == BUNDLED
    left, right = photos["test"]
    assert right.inverse_depth is None and left.inverse_depth is not None
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    disparity = np.load(folder / "motorcycle_disp.npz")["arr_0"]
    known = np.isfinite(disparity) & (disparity > 0)
    ratio = left.inverse_depth[known] / disparity[known]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)
    assert left.inverse_depth.max() == pytest.approx(1)
    assert left.inverse_depth[~known].min() > 0  # gaps are filled from beside


def test_each_split_shows_its_own_photographs(tmp_path: Path) -> None:
    """Ten even photographs, each of its own grey: the greys of a split tell where it drew from."""
    greys = [20 * n + 30 for n in range(10)]
    for n, grey in enumerate(greys):
        write_png(str(tmp_path / "in" / f"{n}.png"), np.full((60, 60, 3), grey, np.uint8))
    synthesize(str(tmp_path / "in"), str(tmp_path / "out"), 40, 0, (48, 48))
    seen: dict[str, set[int]] = {}
    for split in ("train", "val", "test"):
        seen[split] = set()
        for path in (tmp_path / "out" / f"{split}_c" / "target").iterdir():
            image = np.rint(to_float(read_image(str(path)))[..., 0] * 255).astype(int)
            seen[split] |= {g for g in np.unique(image) if (image == g).mean() > 0.2}
    assert seen["test"] == {greys[0], greys[5]}
    assert seen["val"] == {greys[1], greys[6]}
    assert seen["train"] == set(greys) - seen["test"] - seen["val"]


def test_radius_files_hold_256ths_of_pixels(tmp_path: Path) -> None:
    synthesize("bundled", str(tmp_path), 3, 0, (48, 40))
    photos = load_photos("bundled", (40, 48))["test"]
    expected = make_pair(photos, "test", 0, 0, (40, 48), 7.0)
    path = next((tmp_path / "test_c" / "radius").iterdir())
    stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert stored.dtype == np.uint16
    np.testing.assert_allclose(stored / 256, expected.radius, atol=1 / 500)
    assert expected.radius.max() > 1
