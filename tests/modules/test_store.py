import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch

from influence_masking import MaskingOptions
from modules import Baseline, Influence, TensorStore
from modules.store import ABANDONED_SECONDS, weights_digest

CONTENT = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([7])}, {"loss": 0.1 + 0.2, "name": "x"}


def get(store, key="k", content=CONTENT):
    """Return what a store returns, and whether it had to be made."""
    made = []
    tensors, known = store.get(key, lambda: made.append(1) or content)
    return {name: tensor.tolist() for name, tensor in tensors.items()}, known, bool(made)


def listed(content):
    return {name: tensor.tolist() for name, tensor in content[0].items()}, content[1]


def test_a_result_is_made_once_for_each_key_and_read_as_it_was(tmp_path):
    for key in ("k", "another"):
        assert get(TensorStore(tmp_path / "new" / "folder"), key) == (*listed(CONTENT), True)
        assert get(TensorStore(tmp_path / "new" / "folder"), key) == (*listed(CONTENT), False)


@pytest.mark.parametrize("damage", ["empty", "half", "a bit", "another key"])
def test_a_damaged_file_is_made_again(damage, tmp_path, recwarn):
    get(TensorStore(tmp_path))
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    changed = {
        "empty": b"",
        "half": whole[: len(whole) // 2],
        "a bit": whole[:-1] + bytes([whole[-1] ^ 1]),
        "another key": whole.replace(b'"k/', b'"j/'),
    }
    path.write_bytes(changed[damage])
    assert get(TensorStore(tmp_path))[-1]
    assert any(str(path) in str(warning.message) for warning in recwarn)
    assert not get(TensorStore(tmp_path))[-1]


def test_the_results_that_were_not_used_for_longest_are_removed(tmp_path):
    one = {"a": torch.zeros(1000)}, {}
    get(TensorStore(tmp_path / "measured"), "longest", one)
    (measured,) = (tmp_path / "measured").iterdir()
    tmp_path = tmp_path / "store"
    store = TensorStore(tmp_path, limit=3 * measured.stat().st_size)
    for age, key in enumerate(("third", "second", "first")):
        get(store, key, one)
        (newest,) = (path for path in tmp_path.iterdir() if time.time() - path.stat().st_mtime < 50)
        os.utime(newest, (time.time() - 1000 + age,) * 2)
    assert not get(store, "third", one)[-1]  # used again
    get(store, "new", one)
    assert [get(store, key, one)[-1] for key in ("third", "first", "new", "second")] == [False, False, False, True]


def test_what_is_larger_than_all_files_may_be_is_not_kept(tmp_path):
    store = TensorStore(tmp_path, limit=10)
    assert get(store)[-1]
    assert get(store)[-1]


def test_an_unfinished_file_goes_only_when_it_has_no_writer_any_more(tmp_path):
    fresh, old = (tmp_path / f".{name}.safetensors.0" for name in ("fresh", "old"))
    for path in (fresh, old):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * ABANDONED_SECONDS,) * 2)
    get(TensorStore(tmp_path))
    assert (fresh.exists(), old.exists()) == (True, False)


def test_a_folder_that_cannot_be_written_costs_no_run(tmp_path, recwarn):
    (tmp_path / "file").write_text("")
    assert get(TensorStore(tmp_path / "file"))[:2] == listed(CONTENT)
    assert any("cannot keep results for later runs" in str(warning.message) for warning in recwarn)


def write_and_read(folder):
    store, right = TensorStore(folder, limit=20_000), True
    for turn in range(40):
        key = str(turn % 7)
        tensors, _ = store.get(key, lambda key=key: ({"a": torch.full((1000,), float(key))}, {}))
        right &= bool((tensors["a"] == float(key)).all())
    return right


def test_two_processes_that_write_and_remove_read_only_whole_results(tmp_path):
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        assert all(pool.map(write_and_read, [tmp_path, tmp_path]))


def test_the_digest_is_of_every_bit_of_the_weights():
    layer = torch.nn.Linear(100, 100)
    before = weights_digest(layer)
    layer.weight.data[37, 41] += 1e-6
    assert weights_digest(layer) != before
    layer.weight.data = layer.weight.data.to(torch.bfloat16)
    assert len({before, weights_digest(layer), weights_digest(layer.to(torch.float32))}) == 3


def test_a_later_process_encodes_nothing_and_finds_the_same_head(
    tiny_qwen, docstrings, trainer, backbone_calls, tmp_path
):
    heads = []
    for expected in (True, False):
        module = Baseline(backbone=tiny_qwen, num_labels=7)  # with caches of its own, as in another process
        module.store = TensorStore(tmp_path / "store")
        calls = backbone_calls(module)
        trainer(max_epochs=1).fit(module, datamodule=docstrings())
        trainer().validate(module, datamodule=docstrings(), verbose=False)
        assert bool(calls) == expected
        heads.append(module.head.weight)
    assert torch.equal(*heads)


def test_features_of_other_weights_are_never_taken(tiny_qwen, docstrings, trainer, backbone_calls, tmp_path):
    for changed in (0.0, 1e-6):
        module = Baseline(backbone=tiny_qwen, num_labels=7)
        module.backbone.layers[0].mlp.up_proj.weight.data[3, 5] += changed
        module.store = TensorStore(tmp_path / "store")
        calls = backbone_calls(module)
        trainer(max_epochs=1).fit(module, datamodule=docstrings())
        assert calls


def test_a_later_process_takes_no_gradient_and_makes_the_same_mask(tiny_qwen, docstrings, trainer, tmp_path, with_head):
    maskings = []
    for tail in ("lowest", "lowest", "highest"):
        masking = MaskingOptions(tail=tail, num_samples=None)
        module = with_head(Influence(backbone=tiny_qwen, num_labels=7, masking=masking))
        module.store = TensorStore(tmp_path / "store")
        trainer(max_epochs=0).fit(module, datamodule=docstrings())
        maskings.append(module.masking)
    first, again, other = maskings
    assert [masking.gradient_shared for masking in maskings] == [False, True, True]
    assert first.gradient_seconds == again.gradient_seconds > 0
    for name in ("loss_before", "predicted_change", "measured_change"):
        assert getattr(first, name) == getattr(again, name)
    assert first.mask.digest == again.mask.digest != other.mask.digest
