"""Which task a row belongs to, by pretrained features."""

from dataclasses import replace

import pytest
import torch

from models import adapted, bare_patchtst, filled, images, texts, tiny_bert, tiny_vit
from retain import sites
from retain.routing import class_means, features, nearest

ROWS = {"input_ids": torch.arange(12).view(2, 6), "attention_mask": torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]])}


def test_features_are_means_over_what_is_no_padding_and_know_nothing_of_the_adapter():
    model, fresh = filled(tiny_bert()), tiny_bert()
    found = features(model, sites(model), ROWS)
    before = [site.delta() for site in sites(model).values()]
    with torch.no_grad():
        hidden = fresh.get_base_model().bert.eval()(**ROWS).last_hidden_state
    torch.testing.assert_close(found, torch.stack([hidden[0].mean(0), hidden[1, :3].mean(0)]), rtol=1e-5, atol=1e-6)
    assert all(torch.equal(site.delta(), b) for site, b in zip(sites(model).values(), before, strict=True))


@pytest.mark.parametrize(("model", "rows"), [(tiny_bert, texts), (tiny_vit, images)])
def test_means_are_those_of_the_rows_of_each_label(model, rows):
    adapted, task = model(), rows("a", seed=0)
    means = class_means(adapted, sites(adapted), task, batch_size=3)
    batches = [dict(batch) for batch in task.train]
    labels = torch.cat([batch.pop("labels") for batch in batches])
    each = torch.cat([features(adapted, sites(adapted), batch) for batch in batches])
    expected = torch.stack([each[labels == label].mean(0) for label in sorted(set(labels.tolist()))])
    torch.testing.assert_close(means, expected, rtol=1e-5, atol=1e-6)


def test_features_of_a_window_are_means_over_its_patches():
    model, rows = adapted(bare_patchtst(num_input_channels=1), target_modules=["q_proj"]), torch.randn(3, 24, 1)
    found = features(model, sites(model), {"past_values": rows})
    with torch.no_grad():
        hidden = model.get_base_model().model.eval()(past_values=rows).last_hidden_state
    assert hidden.shape == (3, 1, 4, 16)
    torch.testing.assert_close(found, hidden[:, 0].mean(1), rtol=1e-5, atol=1e-6)


def test_numbers_have_one_mean():
    adapted, task = tiny_bert(), texts("a", sizes=(4, 3))
    rows = [batch | {"labels": torch.randn(len(batch["labels"]), 2)} for batch in task.train]
    inputs = [{k: x for k, x in batch.items() if k != "labels"} for batch in rows]
    each = torch.cat([features(adapted, sites(adapted), batch) for batch in inputs])
    torch.testing.assert_close(class_means(adapted, sites(adapted), replace(task, train=rows)), each.mean(0)[None])


def test_a_row_goes_to_the_task_with_the_nearest_mean_of_any_of_its_classes():
    means = {"left": torch.tensor([[-1.0, 0.0], [-9.0, 0.0]]), "right": torch.tensor([[2.0, 0.0]])}
    rows = torch.tensor([[0.4, 0.0], [0.6, 0.0], [-20.0, 1.0]])
    assert nearest(rows, means) == ["left", "right", "left"]
    with pytest.raises(ValueError, match="no task has class means"):
        nearest(rows, {})
