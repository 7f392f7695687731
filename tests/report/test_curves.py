"""Figures of training: validation beside training, with titles and units."""

import numpy as np
import pandas as pd

from ichkit.stages.report.curves import draw_along, draw_training


def curves_of(figure):
    return [line.get_ydata().tolist() for line in figure.axes[0].lines if len(line.get_ydata())]


def test_training_curves_show_the_validation_loss_and_the_held_out_loss_where_there_is_one():
    epoch = np.arange(1, 4)
    history = pd.DataFrame({"epoch": epoch, "loss": [0.9, 0.5, 0.4]})
    plain = draw_training({0: history}, {})
    assert curves_of(plain) == [[0.9, 0.5, 0.4]]
    assert (plain.axes[0].get_xlabel(), plain.axes[0].get_ylabel()) == ("epoch", "training loss (nats)")
    with_both = draw_training(
        {0: history.assign(validation_loss=[0.8, 0.6, 0.7])},
        {0: pd.DataFrame({"epoch": epoch, "loss": [1.0, 0.7, 0.6]})},
    )
    assert curves_of(with_both) == [[0.9, 0.5, 0.4], [0.8, 0.6, 0.7], [1.0, 0.7, 0.6]]
    labels = [text.get_text() for text in with_both.axes[0].get_legend().get_texts()]
    assert labels == ["fold 0", "validation", "held-out (display only)"]
    assert with_both.axes[0].get_ylabel() == "loss (nats)"


def test_a_study_before_and_after_the_second_stage_has_marks_on_both_axes_and_names_its_lines():
    places, values = np.array([0.25, 0.75]), np.array([0.1, 0.9])
    (axes,) = draw_along(places, values > 0.5, {"net": values, "stack": values}, {0.25: "0", 0.75: "1"}).axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["0", "0.5", "1"]
    assert axes.get_ylabel() == "probability"
    assert all(line.get_markersize() > 0 for line in [*axes.get_xticklines(), *axes.get_yticklines()])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["net", "stack"]
