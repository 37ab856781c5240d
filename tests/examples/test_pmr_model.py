"""The classifier: its shapes, its halves, and that it knows nothing of the surgery."""

import inspect

import model as pmr_model
import torch
from data import CLASSES, Split
from measure import evaluate
from model import factory


def test_outputs_and_halves():
    model, inputs = factory()
    joint, gray, colored = model.eval()(*inputs)
    assert joint.shape == gray.shape == colored.shape == (4, CLASSES)
    torch.testing.assert_close(gray + colored, joint)


def test_each_half_depends_on_its_own_branch_only():
    model, (gray, colored) = factory()
    model.eval()
    _, before_gray, before_colored = model(gray, colored)
    _, after_gray, after_colored = model(gray.flip(0), colored)
    assert not torch.allclose(before_gray, after_gray)
    assert torch.equal(before_colored, after_colored)


def test_latents_have_96_channels():
    model, (gray, colored) = factory()
    assert model.gray_branch(gray).shape == model.colored_branch(colored).shape == (4, 96)


def test_model_file_never_mentions_regbn():
    assert "regbn" not in inspect.getsource(pmr_model).lower()


def test_parameters_are_named_by_modality():
    assert list(inspect.signature(pmr_model.TwoBranchClassifier.forward).parameters) == ["self", "gray", "colored"]


def test_evaluate_measures_the_whole_split(small_data):
    """Against the plain computation over all digits at once."""
    model, _ = factory()
    split = small_data.test
    measured = evaluate(model, split, "test", 7, torch.device("cpu"))
    assert model.training
    model.eval()
    with torch.no_grad():
        outputs = model(split.gray.float() / 255, split.colored.float() / 255)
    for m, logits in zip(measured, outputs, strict=True):
        assert (m.epoch, m.split) == (7, "test")
        assert abs(m.loss - torch.nn.functional.cross_entropy(logits, split.labels).item()) < 1e-5
        assert m.accuracy == (logits.argmax(1) == split.labels).sum().item() / len(split)
    assert [m.modality for m in measured] == ["joint", "gray", "colored"]


def test_evaluate_does_not_depend_on_its_batches(small_data, monkeypatch):
    model, _ = factory()
    split: Split = small_data.test
    whole = evaluate(model, split, "test", 0, torch.device("cpu"))
    monkeypatch.setattr("measure._BATCH", 7)
    parts = evaluate(model, split, "test", 0, torch.device("cpu"))
    for a, b in zip(whole, parts, strict=True):
        assert a.accuracy == b.accuracy
        assert abs(a.loss - b.loss) < 1e-5
