"""A run of a study: what it changes about the scale, and what it leaves behind."""

import dataclasses
import json

import pytest
import torch

from ddl.config import load_backbones, load_scale
from ddl.data.sequences import TokenSequences
from ddl.evaluation.document_losses import DocumentLosses
from ddl.evaluation.validation import validation_loss
from ddl.layout import Point
from ddl.model.run_files import load_model
from ddl.studies.points import train
from ddl.training.run import Run
from tests.helpers.tiny_run import tiny_scale, write_data

POINT = Point("small", "paper", "ddl-cc", 6, 1e-3, 0)


def test_a_point_differs_from_a_run_in_rate_floor_length_and_validations_only():
    scale = load_scale("laptop")
    changed = scale.at(Point("small", "paper", "baseline", 256, 1.6e-2, 0)).training
    assert changed.min_learning_rate == pytest.approx(2 * scale.training.min_learning_rate)
    assert (changed.steps, changed.warmup_steps, changed.val_interval) == (256, 16, 256)
    names = ("learning_rate", "min_learning_rate", "steps", "warmup_steps", "val_interval", "snapshots")
    assert dataclasses.replace(changed, **{name: getattr(scale.training, name) for name in names}) == scale.training


def test_a_backbone_changes_the_model_and_the_recipe_of_every_design():
    scale = load_scale("laptop")
    for slug, backbone in load_backbones().items():
        changed = scale.at(Point("small", slug, "ddl-cc", 256, 8e-3, 0))
        for design in ("baseline", "ddl-cc"):
            model = changed.model("small", design)
            assert {name: getattr(model, name) for name in backbone.model} == backbone.model
        assert {name: getattr(changed.recipe, name) for name in backbone.training} == backbone.training


def test_every_setting_of_a_point_is_part_of_its_fingerprint():
    scale = load_scale("laptop")
    one = Point("small", "paper", "baseline", 256, 8e-3, 0)
    others = (
        {"backbone": "normed-embedding"},
        {"backbone": "floor-0"},
        {"variant": "ddl-cc"},
        {"steps": 512},
        {"rate": 4e-3},
    )
    points = [one, *(dataclasses.replace(one, **change) for change in others)]
    found = [scale.at(point).fingerprint(point.size, point.variant) for point in points]
    assert len(set(found)) == len(points)


def test_a_point_has_a_folder_of_its_own():
    point = Point("small", "paper", "ddl-cc", 512, 8.0e-3, 0)
    assert point.folder == "points/small/paper/ddl-cc/steps512/lr0.008/seed0"


def test_the_row_holds_the_loss_on_the_whole_split_and_the_documents_add_up_to_it(tmp_path):
    scale, data = tiny_scale(), write_data(tmp_path / "data")
    assert train(scale, POINT, data, tmp_path / "point")
    row = json.loads((tmp_path / "point/point.json").read_text())
    split = TokenSequences(data, "val", scale.sequence_length)
    model = load_model(tmp_path / "point")
    expected, _ = validation_loss(model, split, scale.evaluation.batch_tokens, torch.float32, end_of_text=0)
    for name in ("val_loss", "repeated_loss", "new_loss"):
        assert row[name] == expected[name]
    assert (row["steps"], row["tokens"], row["learning_rate"], row["reason"]) == (6, 384, 1e-3, "")
    documents = DocumentLosses.load(tmp_path / "point/documents.safetensors")
    assert documents.tokens.sum() == len(split) * scale.sequence_length
    assert documents.losses.double().sum() / documents.tokens.sum() == pytest.approx(row["val_loss"], rel=1e-6)
    assert not (tmp_path / "point/checkpoints").exists()


def test_a_diverged_point_is_a_row_without_a_loss(tmp_path):
    data = write_data(tmp_path / "data")
    assert train(tiny_scale(), dataclasses.replace(POINT, rate=1e38), data, tmp_path / "point")
    row = json.loads((tmp_path / "point/point.json").read_text())
    assert row["val_loss"] is None
    assert row["reason"].startswith("diverged: step ")
    assert not (tmp_path / "point/documents.safetensors").exists()


def test_an_interrupted_point_continues_to_the_same_loss(tmp_path, monkeypatch):
    scale, data = tiny_scale(), write_data(tmp_path / "data")
    assert train(scale, POINT, data, tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(Run, "stops", lambda run, agreed: run.progress.step == 3)
        assert not train(scale, POINT, data, tmp_path / "parts")
    assert not (tmp_path / "parts/point.json").exists()
    assert train(scale, POINT, data, tmp_path / "parts")
    rows = [json.loads((tmp_path / name / "point.json").read_text()) for name in ("whole", "parts")]
    assert rows[0]["val_loss"] == rows[1]["val_loss"]
