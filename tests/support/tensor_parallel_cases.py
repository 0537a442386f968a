"""What each process runs in the tests of tensor parallelism."""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import transformers
from distributed_cases import refusal
from patience import PATIENCE
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.distributed.device_mesh import init_device_mesh

import blast
from blast.checkpoint.manifest import WEIGHTS
from blast.generation.session import Session
from blast.model.discovery import match_matrices
from blast.tensor_parallel import watch as watch_module
from blast.tensor_parallel.processes import Processes
from blast.tensor_parallel.watch import Watch

RANKS, VOCABULARY, HIDDEN, NEW = 2, 97, 160, 12
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": HIDDEN, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 16,
    "bos_token_id": 0, "eos_token_id": None,
}  # fmt: skip
# By name: what is built, what is pruned, and the block of a matrix by its last name.
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"config": {"attention_bias": True}},
    "llama, dense": {"targets": (), "fused": False},
    "llama, one dense layer, blocks of two forms": {
        "targets": ("*.layers.1.mlp.*",), "blocks": {"down_proj": (16, 32)},
    },
    "llama, attention too": {"targets": ("mlp", "attention"), "config": {"mlp_bias": True}, "fused": False},
    "qwen3, tied": {"family": "qwen3", "config": {"num_key_value_heads": 1, "tie_word_embeddings": True}},
    "gpt2": {"family": "gpt2", "targets": ("mlp", "attention")},
}  # fmt: skip


def built(family: str = "llama", config: dict[str, Any] | None = None, **_: Any) -> nn.Module:
    """A small model with weights so large that its tokens are far from ties."""
    torch.manual_seed(0)
    if family == "gpt2":
        sizes = {
            "vocab_size": VOCABULARY,
            "n_embd": 64,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 64,
            "n_inner": HIDDEN,
        }
        ends = {"bos_token_id": 0, "eos_token_id": None}
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **ends))
    else:
        kind = {"llama": "Llama", "qwen3": "Qwen3"}[family]
        made = getattr(transformers, f"{kind}Config")(**SIZES | (config or {}))
        model = getattr(transformers, f"{kind}ForCausalLM")(made)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model.eval()


def masks(model: nn.Module, targets: tuple[str, ...], blocks: dict[str, tuple[int, int]]) -> dict[str, Tensor]:
    """Random masks; the first hidden blocks are much fuller. Gate and up of the first layer share a mask."""
    generator = torch.Generator().manual_seed(1)
    found = {}
    for target in match_matrices(model, targets) if targets else []:
        block = blocks.get(target.name.rpartition(".")[2], (16, 16))
        rows, cols = target.shape[0] // block[0], target.shape[1] // block[1]
        live = torch.linspace(1, 0.1, rows)[:, None] if rows > cols else torch.linspace(1, 0.1, cols)
        found[target.name] = torch.rand(rows, cols, generator=generator) < live
    for name in found:
        if name.endswith("0.mlp.gate_proj"):
            found[name] = found[name.replace("gate_proj", "up_proj")]
    return found


def write_models(folder: Path) -> None:
    """Saves all models, sparse, each in a folder of its name."""
    for name, facts in MODELS.items():
        model = built(**facts)
        found = masks(model, facts.get("targets", ("mlp",)), facts.get("blocks", {}))
        blast.save(blast.to_sparse(model, found, drop=True), folder / name)


def prompt() -> Tensor:
    return torch.randint(VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(2))


def generated(model: Any, words: Tensor | None = None, **settings: Any) -> Tensor:
    return model.generate(prompt() if words is None else words, max_new_tokens=NEW, pad_token_id=0, **settings)


def joined(rank: int, folder: str, ranks: int = RANKS) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=PATIENCE))


def work(rank: int, folder: str) -> None:
    """Runs every case in one of two processes and saves what came out."""
    joined(rank, folder)
    out: dict[str, Any] = {
        name: answers(Path(folder) / name, rank, facts.get("fused", True)) for name, facts in MODELS.items()
    }
    out["mesh"] = meshed(Path(folder))
    half: Any = blast.load(Path(folder) / "llama", tensor_parallel=True).bfloat16()
    with torch.no_grad():
        out["half"] = half(prompt()).logits
    out["compiled"] = compiled(Path(folder) / "llama")
    out["refused"] = refusals(rank, Path(folder))
    out["late"] = too_late(rank)
    torch.save(out, Path(folder) / f"{rank}.pt")
    out["alone"] = left_alone(rank, Path(folder))
    torch.save(out, Path(folder) / f"{rank}.pt")
    os._exit(0)  # a group whose partner is gone cannot be destroyed


def answers(folder: Path, rank: int, fused: bool) -> dict[str, Any]:
    """What one model gives in two processes."""
    model: Any = blast.load(folder, tensor_parallel=True)
    with torch.no_grad():
        out = {"logits": model(prompt()).logits}
    out["weights"] = blast.model_bytes(model).weights
    out["tokens"] = generated(model, do_sample=False)
    if fused:
        blast.fuse(model)
        with torch.no_grad():
            out["fused logits"] = model(prompt()).logits
    out["fused tokens"] = generated(model, do_sample=False)
    out["fast tokens"] = generated(model, do_sample=False, custom_generate=blast.fast_decode)
    torch.manual_seed(rank)
    out["drawn"] = generated(model, do_sample=True)
    return out


def meshed(folder: Path) -> Tensor:
    mesh = init_device_mesh("cpu", (RANKS,), mesh_dim_names=("parts",))
    return generated(blast.load(folder / "llama", tensor_parallel=mesh["parts"]), do_sample=False)


def compiled(folder: Path) -> dict[str, Any]:
    """The tokens of a session with compiled layers, and how often code was compiled, of the part and of the whole."""
    out: dict[str, Any] = {"frames": {}}
    for kind in (True, False):
        model: Any = blast.fuse(blast.load(folder, tensor_parallel=kind).requires_grad_(False))
        counter = CompileCounter()
        with mock.patch.object(torch, "compile", partial(torch.compile, backend=counter)):
            session = Session(model, 2, 64, graphs=False, compiled="layers", static=True)
        session.start(prompt())
        for _ in range(NEW - 1):
            session.step()
        out["frames"][kind] = counter.frame_count
        out["tokens"] = session.tokens[:, : prompt().shape[1] + NEW].clone() if kind else out["tokens"]
        torch.compiler.reset()
    return out


def refusals(rank: int, folder: Path) -> dict[str, str | None]:
    """The sentence of each thing that two processes cannot do."""
    model: Any = blast.load(folder / "llama", tensor_parallel=True)
    other = folder / "other"
    if rank == 0:
        blast.save(built(config={"num_hidden_layers": 1}), other)
        three = {"num_attention_heads": 3, "num_key_value_heads": 3, "hidden_size": 48}
        blast.save(built(config=three), folder / "three heads")
    dist.barrier()
    own = folder / f"copy {rank}"
    blast.save(blast.load(folder / "llama"), own)
    if rank == 1:
        content = bytearray((own / WEIGHTS).read_bytes())
        content[-1] ^= 1
        (own / WEIGHTS).write_bytes(content)
    words = prompt()
    dense: Any = blast.load(folder / "llama, dense", tensor_parallel=True)

    def load(path: Path) -> Any:
        return refusal(lambda: blast.load(path, tensor_parallel=True))

    embeddings = torch.zeros(1, 2, 64, requires_grad=True)
    return {
        "different": load(folder / "llama" if rank else other),
        "missing in one": load(folder / ("nothing" if rank else "llama")),
        "altered in one": load(own),
        "heads": load(folder / "three heads"),
        "prompts": refusal(lambda: model.generate(words[:, rank:], max_new_tokens=2)),
        "settings": refusal(lambda: model.generate(words, max_new_tokens=2 + rank)),
        "save": refusal(lambda: blast.save(model, folder / f"part {rank}")),
        "save_pretrained": refusal(lambda: dense.save_pretrained(folder / f"part {rank}")),
        "training": refusal(lambda: model.train()(words)),
        "gradient": refusal(lambda: model.eval()(inputs_embeds=embeddings)),
    }


def too_late(rank: int) -> str | None:
    """The sentence of a process whose partner does not answer in time."""
    group = dist.new_group(list(range(RANKS)), timeout=timedelta(seconds=2))
    found = None
    if rank == 0:
        found = refusal(lambda: Processes(group, 0, RANKS).gather("here"))
    dist.barrier()
    return found


def left_alone(rank: int, folder: Path) -> str:
    """The sentence of the first process if the second one ends while both generate."""
    model: Any = blast.load(folder / "llama", tensor_parallel=True)
    if rank == 1:
        steps = iter(range(3))

        def end(*_: object) -> None:
            if next(steps, None) is None:
                os._exit(0)

        model.lm_head.register_forward_pre_hook(end)
    return refusal(lambda: generated(model, do_sample=False))


def watched(rank: int, folder: str) -> None:
    """Three processes watch one another: all leave once in peace, then the last one ends while the others wait."""
    joined(rank, folder, 3)
    watch_module.GRACE = 3.0
    watch = Watch(Processes(dist.group.WORLD, rank, 3))
    with watch.working():
        dist.barrier()
    if rank == 2:
        os._exit(0)
    sys.stderr = open(Path(folder) / f"{rank}.txt", "w")  # noqa: SIM115  (open until the process ends)
    with watch.working():
        time.sleep(PATIENCE)
    os._exit(3)


def lost_before(rank: int, folder: str) -> None:
    """One of two processes ends while there is nothing to do; the other one notices when there is."""
    joined(rank, folder, 2)
    watch = Watch(Processes(dist.group.WORLD, rank, 2))
    dist.barrier()
    if rank == 1:
        os._exit(0)
    while watch.lost is None:
        time.sleep(0.01)

    def work_on() -> None:
        with watch.working():
            pass

    (Path(folder) / "0.txt").write_text(refusal(work_on))
    os._exit(0)
