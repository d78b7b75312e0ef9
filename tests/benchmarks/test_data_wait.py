# SPDX-License-Identifier: Apache-2.0
import data_wait
import pytest

from diffusers_mdm.training.recipe.loading import load_recipe


def test_later_reports_weigh_as_much_as_their_time():
    reports = [(10, "a", 1.0, 0.5), (20, "a", 10.0, 0.0), (40, "a", 20 / 3, 0.4), (50, "b", 5.0, 0.1)]
    reports.append((60, "b", 5.0, 0.3))
    rows = [
        {"images": images, "stage": stage, "images_per_second": speed, "data_wait_share": share}
        for images, stage, speed, share in reports
    ]
    first, second = data_wait.shares_of_stages(rows)
    assert (first.stage, first.first) == ("a", 0.5)
    assert first.later == pytest.approx(0.3)  # nothing of 1 s, two fifths of 3 s
    assert first.images_per_second == pytest.approx(30 / 4)
    assert (second.stage, second.first, second.later) == ("b", pytest.approx(0.1), pytest.approx(0.3))


def test_too_few_steps_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 5 steps"):
        data_wait.train_briefly(load_recipe(data_wait.EMOJI_RECIPE), tmp_path, steps=4, num_workers=0)


def test_command_trains_each_stage(tiny_recipe_file, capsys):
    data_wait.main(["--recipe", str(tiny_recipe_file), "--steps", "5"])
    lines = capsys.readouterr().out.splitlines()[-2:]
    for line, stage in zip(lines, ("inner", "outer"), strict=True):
        assert line.startswith(f"{stage}: ")
        assert 0 <= float(line.split("%")[0].removeprefix(f"{stage}: ")) <= 100
