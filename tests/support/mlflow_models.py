"""Small sparse models with a record, for the tests of models in MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from mlflow_grid import write_point

import blast
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records.record import make_record
from blast.files import file_digest, write_json
from blast.layers.block_linear import BlockLinear


def write_checkpoint(folder: GridFolder, name: str, model: torch.nn.Module, tokenizer: object = None) -> Path:
    """The record of a point, and its checkpoint."""
    written = write_point(folder, name)
    place = folder.work(name) / "checkpoint"
    blast.save(model, place, processing_class=tokenizer)
    digest = file_digest(place / "blast.safetensors")
    written["result"]["artifacts"]["checkpoint"] = {"path": "checkpoint", "digest": digest}
    point = Point.from_dict(written["point"])
    record = make_record(point, status="ok", result=written["result"], run=written["run"], log=written["log"])
    write_json(folder.record(name), record)
    return place


def language_model() -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=400, n_positions=64)
    masks = {f"transformer.h.0.mlp.{name}": torch.eye(2, dtype=torch.bool) for name in ("c_fc", "c_proj")}
    return blast.to_sparse(transformers.GPT2LMHeadModel(config).eval(), masks, drop=True)


def image_model() -> torch.nn.Module:
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    model = VisionTransformer(
        image_size=8, patch_size=4, num_layers=1, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=10
    ).eval()
    mask = torch.eye(2, dtype=torch.bool)
    masks = {f"encoder.layers.encoder_layer_0.mlp.{number}": mask for number in (0, 3)}
    return blast.to_sparse(model, masks, drop=True)


def is_sparse(model: Any) -> bool:
    return any(isinstance(module, BlockLinear) for module in model.unwrap_python_model().model.modules())
