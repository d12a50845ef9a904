import pytest
import torch

from influence_masking import MaskingOptions
from modules import Baseline, Caches, FullFineTuning, Influence
from modules.caches import FeatureCache
from modules.features import Features, extract


def fit(module, data, trainer, **options):
    trainer(max_epochs=3, **options).fit(module, datamodule=data)
    return module


def baseline(tiny_qwen, caches=None):
    module = Baseline(backbone=tiny_qwen, num_labels=7, learning_rate=1e-2)
    module.caches = caches or module.caches
    return module


def test_rows_are_found_in_any_order():
    batches = [{"row": torch.tensor(rows)} for rows in ([5, 9], [2, -1])]  # -1: no row
    features = extract(lambda batch: batch["row"][:, None].float(), batches, torch.device("cpu"), bar=False)
    assert features.of(torch.tensor([9, 2, 2])).tolist() == [[9.0], [2.0], [2.0]]


def test_a_frozen_backbone_encodes_each_row_once_in_all_epochs(tiny_qwen, docstrings, trainer, backbone_calls):
    module = baseline(tiny_qwen)
    calls = backbone_calls(module)
    fit(module, docstrings(), trainer)
    assert sum(calls) == 100  # train and dev


def test_arms_with_the_same_frozen_backbone_share_what_it_encoded(tiny_qwen, docstrings, trainer, backbone_calls):
    caches = Caches()
    fit(baseline(tiny_qwen, caches=caches), docstrings(), trainer)
    second = baseline(tiny_qwen, caches=caches)
    calls = backbone_calls(second)
    fit(second, docstrings(), trainer)
    assert calls == []
    trainer().validate(second, datamodule=docstrings(), verbose=False)
    assert sum(calls) == 50  # eval, which was not there
    third = baseline(tiny_qwen, caches=caches)
    calls = backbone_calls(third)
    fit(third, docstrings(train_on="head_init"), trainer)
    assert sum(calls) == 50


def test_sharing_does_not_change_a_bit(tiny_qwen, docstrings, trainer):
    caches = Caches()
    alone = fit(baseline(tiny_qwen, caches=caches), docstrings(), trainer)
    after = fit(baseline(tiny_qwen, caches=caches), docstrings(), trainer)
    assert torch.equal(alone.head.weight, after.head.weight)


def test_evaluation_is_that_of_the_whole_model_to_the_bit(tiny_qwen, docstrings, trainer, monkeypatch, with_head):
    data, module, found = docstrings(), with_head(baseline(tiny_qwen)), []
    step = Baseline.validation_step
    monkeypatch.setattr(Baseline, "validation_step", lambda self, batch, batch_idx: found.append(step(self, batch, 0)))
    trainer().validate(module, datamodule=data, verbose=False)
    module.eval()
    for batch, output in zip(data.ordered_dataloader("eval"), found, strict=True):
        with torch.no_grad():
            assert torch.equal(module(batch["input_ids"], batch["attention_mask"]), output["logits"])


def test_training_is_that_of_the_whole_model(tiny_qwen, docstrings, trainer, monkeypatch):
    quick = fit(baseline(tiny_qwen), docstrings(), trainer)
    monkeypatch.setattr(Baseline, "_frozen_features", lambda *_: None)
    slow = fit(baseline(tiny_qwen), docstrings(), trainer)
    torch.testing.assert_close(quick.head.weight, slow.head.weight, rtol=1e-4, atol=1e-6)


def test_a_backbone_that_trains_is_never_taken_for_the_one_before(tiny_qwen, docstrings, trainer, backbone_calls):
    module = FullFineTuning(backbone=tiny_qwen, num_labels=7)
    calls = backbone_calls(module)
    fit(module, docstrings(), trainer)
    assert sum(calls) == 50 + 3 * 100  # its new head is conditioned on the training rows


@pytest.mark.parametrize("limit", [{"fast_dev_run": True}, {"limit_val_batches": 1}])
def test_a_part_of_the_rows_is_not_worth_all_of_them(limit, tiny_qwen, docstrings, trainer, backbone_calls):
    module = baseline(tiny_qwen)
    calls = backbone_calls(module)
    data = docstrings()
    trainer(**limit).validate(module, datamodule=data, verbose=False)
    assert calls == [len(next(iter(data.val_dataloader()))["row"])]


def test_masks_have_features_of_their_own(tiny_qwen, docstrings, trainer, with_head):
    heads, caches = [], Caches()
    for tail in ("lowest", "highest"):
        module = Influence(
            backbone=tiny_qwen, num_labels=7, masking=MaskingOptions(0.3, tail=tail, num_samples=None), tune="head"
        )
        module.caches = caches
        fit(with_head(module), docstrings(), trainer)
        heads.append(module.head.weight)
        trainer().validate(module, datamodule=docstrings(), verbose=False)
    assert not torch.equal(*heads)


def test_the_backbones_used_last_are_kept():
    cache, made = FeatureCache(backbones=2), []

    def get(backbone):
        return cache.get(
            backbone,
            "dev",
            lambda: made.append(backbone) or Features(torch.zeros(1, dtype=torch.long), torch.ones(1, 1)),
        )

    for backbone in ("a", "b", "a", "c", "a", "b"):
        get(backbone)
    assert made == ["a", "b", "c", "b"]
