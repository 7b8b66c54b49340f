"""How far the estimates can be trusted: the figures against maps made by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.evaluate.calibration import calibration, outliers, table
from pipeline.evaluate.run import by_label, comparison, totals

SIDE = 24


def maps() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Estimated and true radius, E, blur: the left half is true 0.5 px, the right 4 px."""
    true = np.full((SIDE, SIDE), 0.5, np.float32)
    true[:, SIDE // 2 :] = 4.0
    radius = np.where(true < 1, 0.7, 3.0).astype(np.float32)
    blur = np.full((SIDE, SIDE, 3), 0.5, np.float32)
    blur[:4, :4, 1] = 1.0
    error = np.full_like(blur, -1 / 255)
    error[:4, :4] = 6 / 255
    error[:, SIDE // 2 - 2 : SIDE // 2 + 2] = 3 / 255
    return radius, true, error, blur


def test_places_are_those_of_true_outliers() -> None:
    _, true, _, blur = maps()
    true[0, 0] = 9  # an edge that is saturated counts once
    places = outliers(true, blur)
    assert places["saturated"].sum() == 16
    assert places["edges"][10].nonzero()[0].tolist() == [10, 11, 12, 13]
    assert sum(mask.astype(int) for mask in places.values()).tolist() == np.ones_like(true).tolist()


def test_figures_by_hand() -> None:
    found = calibration(*maps())
    assert found["radius_error_0_1"] == pytest.approx(0.2)
    assert found["radius_error_3_5"] == pytest.approx(1.0)
    assert found["radius_error_5_7"] is None
    assert found["e_saturated"] == pytest.approx(6.0)
    assert found["e_edges"] == pytest.approx(3.0)
    assert found["e_elsewhere"] == pytest.approx(1.0)


def test_table_means_only_images_that_have_such_pixels() -> None:
    rows = [{"name": "a", "e_edges": 1.0, "e_saturated": None}, {"e_edges": 4.0}, {"name": "c"}]
    edges = {"figure": "size of E", "where": "at occlusion edges", "unit": "8-bit steps"}
    assert table(rows) == [{**edges, "mean": 2.5, "images": 2}]
    assert table([{"name": "without truth"}]) == []


def test_images_without_the_truth_are_left_out_of_its_means() -> None:
    rows = [{"name": "a"}, {"name": "b", "psnr": 30.0, "radius_error": 1.0}, {"name": "c"}]
    rows.append({"name": "d", "psnr": 32.0})
    found = totals(rows)
    assert (found["psnr"], found["radius_error"], found["ssim"]) == (31.0, 1.0, None)
    assert found["psnr_interval"][0] <= 31.0 <= found["psnr_interval"][1]
    labels = by_label({"indoor": [1, 2], "outdoor": [3]}, rows)
    assert (labels["indoor"]["psnr"], labels["outdoor"]["psnr"]) == (30.0, None)


def test_an_infinite_psnr_has_no_mean_and_says_why() -> None:
    scores = {"ssim": 0.9, "ssim_blurred": 0.8, "mae": 0.1, "mae_blurred": 0.1, "psnr": 30.0}
    sound = {"name": "a", **scores, "psnr_blurred": 28.0, "gain": 2.0}
    equal = {"name": "b", **scores, "psnr_blurred": np.inf, "gain": -np.inf}
    found = totals([sound, equal])
    assert found["psnr"] == 30.0
    assert found["psnr_blurred"] is found["gain"] is None
    assert found["psnr_note"].startswith("b: pixels equal")
    json.dumps(found, allow_nan=False)
    assert "psnr_note" not in totals([sound, sound])
    assert comparison([sound, equal], [equal, equal])["psnr_difference"] == 0.0
    infinite = {**equal, "psnr": np.inf}
    assert comparison([sound, infinite], [sound, sound])["psnr_difference"] is None
    assert comparison([sound, infinite], [sound, infinite])["psnr_difference"] == 0.0
