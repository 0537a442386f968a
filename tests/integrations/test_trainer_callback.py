"""Pruning in the Trainer of transformers, against a loop of our own; saving and resuming through the Trainer's ways."""

from __future__ import annotations

import json

import accelerate
import pytest
import torch
import transformers
from torch import nn

import blast
from blast.errors import BlastError
from blast.integrations import SparsifyCallback

STEPS = 10
SETTINGS = {"sparsity": 0.5, "block": 8, "update_every": 2, "initial_sparsity": 0.25}
IDS = torch.arange(16) % 7
LENGTH = 64


def model() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, vocab_size=16, max_position_embeddings=32))


def data() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(16, (8,), generator=generator) for _ in range(LENGTH)]
    return [{"input_ids": row, "labels": row} for row in rows]


def arguments(folder, **options) -> transformers.TrainingArguments:
    defaults = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "learning_rate": 3e-3,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "logging_strategy": "no",
    }
    return transformers.TrainingArguments(str(folder), **{**defaults, **options})


def trainer(folder, callback, options=None, train=None, **of) -> transformers.Trainer:
    of = {"model": model(), "train_dataset": data() if train is None else train, **of}
    callbacks = callback if isinstance(callback, list) else [callback]
    return transformers.Trainer(args=arguments(folder, **(options or {})), callbacks=callbacks, **of)


def weights(of: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in of.state_dict().items()}


def assert_equal(ours, theirs) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("execution", ["masked", "sparse"])
def test_it_prunes_as_a_loop_of_our_own_with_accumulation_and_clipping(execution, tmp_path):
    same = [{"input_ids": IDS, "labels": IDS}] * LENGTH
    callback = SparsifyCallback(**SETTINGS, execution=execution)
    options = {"gradient_accumulation_steps": 2, "max_grad_norm": 0.05, "lr_scheduler_type": "constant"}
    ours = trainer(tmp_path, callback, options, train=same)
    ours.train()
    assert ours.args.max_grad_norm == 0.05
    assert callback.sparsifier.execution == "masked"
    assert callback.sparsifier.finished
    assert callback.sparsifier.sparsity_achieved == 0.5

    expected = model()
    optimizer = torch.optim.AdamW(expected.parameters(), lr=3e-3, weight_decay=0.0)
    sparsifier = blast.Sparsifier(expected, optimizer, blast.SparsifyConfig(**SETTINGS, steps=STEPS))
    for _ in range(STEPS):
        batch = IDS[None].expand(4, -1)
        expected(input_ids=batch, labels=batch).loss.backward()
        sparsifier.step()
        assert nn.utils.clip_grad_norm_(expected.parameters(), 0.05) > 0.05
        optimizer.step()
        optimizer.zero_grad()
    assert_equal(callback.sparsifier.masks, sparsifier.masks)
    for name, value in weights(ours.model).items():
        torch.testing.assert_close(value, expected.state_dict()[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("execution", "cut"), [("masked", 4), ("sparse", 5)])
def test_a_resumed_training_equals_a_whole_one_bit_for_bit(execution, cut, tmp_path):
    options = {"save_strategy": "steps", "save_steps": cut}
    whole = SparsifyCallback(**SETTINGS, execution=execution, grow="swap")
    first = trainer(tmp_path, whole, options)
    first.train()
    checkpoint = tmp_path / f"checkpoint-{cut}"
    stored = json.loads((checkpoint / "trainer_state.json").read_text())["stateful_callbacks"]["SparsifyCallback"]
    assert stored["attributes"]["saved"]["execution"] == execution
    # Stock tools open the checkpoint; dead blocks are zeros.
    opened = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    assert not [name for name, _ in opened.named_parameters() if name.endswith(".values")]

    rest = SparsifyCallback(**SETTINGS, execution=execution, grow="swap")
    second = trainer(tmp_path, rest, options)
    torch.rand(17)
    second.train(resume_from_checkpoint=str(checkpoint))
    assert rest.sparsifier.finished
    assert_equal(rest.sparsifier.masks, whole.sparsifier.masks)
    assert_equal(weights(second.model), weights(first.model))


def test_sparse_training_runs_sparse_between_checkpoints(tmp_path):
    seen = []

    class Watch(transformers.TrainerCallback):
        def on_optimizer_step(self, args, state, control, **_):
            seen.append(callback.sparsifier.execution)

    callback = SparsifyCallback(**SETTINGS, execution="sparse")
    options = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 2}
    ours = trainer(tmp_path, [callback, Watch()], options, eval_dataset=data()[:4])
    ours.train()
    assert seen == ["sparse"] * STEPS


@pytest.mark.parametrize("execution", ["masked", "sparse"])
def test_save_model_and_the_library_go_on_from_a_finished_training(execution, tmp_path):
    callback = SparsifyCallback(**SETTINGS, execution=execution)
    ours = trainer(tmp_path / "training", callback)
    ours.train()
    ours.save_model(str(tmp_path / "dense"))
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense").eval()
    blast.to_sparse(ours.model, callback.sparsifier.masks)
    blast.save(ours.model, tmp_path / "sparse")
    loaded = blast.load(tmp_path / "sparse").eval()
    ids = IDS[None]
    torch.testing.assert_close(loaded(ids).logits, opened(ids).logits, rtol=1e-4, atol=1e-5)
    assert loaded.generate(ids, max_new_tokens=3, do_sample=False).shape == (1, 19)


@pytest.mark.parametrize("execution", ["masked", pytest.param("sparse", marks=pytest.mark.slow)])
def test_the_best_model_has_the_final_masks(execution, tmp_path):
    callback = SparsifyCallback(**SETTINGS, execution=execution)
    options = {
        "save_strategy": "best",
        "eval_strategy": "steps",
        "eval_steps": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        # It gets worse from the first step on.
        "learning_rate": 0.03,
    }
    ours = trainer(tmp_path, callback, options, eval_dataset=data()[:8])
    ours.train()
    best = ours.state.best_global_step
    assert best > callback.sparsifier.config.final_step
    saved = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / f"checkpoint-{best}")
    assert_equal(weights(ours.model), weights(saved))
    blast.to_sparse(ours.model, callback.sparsifier.masks)  # raises if a dead block holds something


class StopAt(transformers.TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step == self.step
        return control


@pytest.mark.parametrize(
    ("best", "execution"), [(True, "masked"), (True, "sparse"), pytest.param(False, "masked", marks=pytest.mark.slow)]
)
def test_a_training_that_stops_early_is_trimmed_with_a_warning(best, execution, tmp_path):
    callback = SparsifyCallback(**SETTINGS, execution=execution)
    options = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    options |= {"load_best_model_at_end": best, "metric_for_best_model": "loss", "learning_rate": 0.03}
    ours = trainer(tmp_path, [StopAt(6), callback], options, eval_dataset=data()[:8])
    with pytest.warns(UserWarning, match="stopped at step 6, before its masks were final: .* to 0.500 without further"):
        ours.train()
    assert callback.sparsifier.sparsity_achieved == 0.5
    blast.to_sparse(ours.model, callback.sparsifier.masks)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("execution", "options"),
    [
        ("sparse", {"gradient_checkpointing": True}),
        ("sparse", {"bf16": True}),
        ("sparse", {"max_grad_norm": 0.0}),
        (
            "sparse",
            {"num_train_epochs": 1, "max_steps": -1, "save_strategy": "epoch"},
        ),
        pytest.param("masked", {"torch_compile": True, "torch_compile_backend": "eager"}, marks=pytest.mark.slow),
        pytest.param("sparse", {"torch_compile": True, "torch_compile_backend": "eager"}, marks=pytest.mark.slow),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_options_of_the_trainer_work(options, execution, tmp_path):
    callback = SparsifyCallback(**SETTINGS, execution=execution)
    ours = trainer(tmp_path, callback, options)
    ours.train()
    assert callback.sparsifier.finished
    assert callback.sparsifier.sparsity_achieved == 0.5
    blast.to_sparse(ours.model, callback.sparsifier.masks)


def test_a_second_training_prunes_anew(tmp_path):
    callback = SparsifyCallback(**SETTINGS, execution="sparse")
    ours = trainer(tmp_path, callback, {"max_steps": 4})
    ours.train()
    first = callback.sparsifier
    ours.train()
    assert callback.sparsifier is not first
    assert callback.sparsifier.finished
    blast.to_sparse(ours.model, callback.sparsifier.masks)


def test_callbacks_that_the_trainer_restores_go_on(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 4}
    trainer(tmp_path, whole := SparsifyCallback(**SETTINGS), options).train()
    options["restore_callback_states_from_checkpoint"] = True
    second = trainer(tmp_path, SparsifyCallback(sparsity=0.9, block=16), options)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    (restored,) = [c for c in second.callback_handler.callbacks if isinstance(c, SparsifyCallback)]
    assert_equal(restored.sparsifier.masks, whole.sparsifier.masks)


def test_a_method_can_be_named_and_mistakes_are_found_at_once():
    assert SparsifyCallback(method="rigl_swap", sparsity=0.5, block=8).config(steps=5).grow == "swap"
    with pytest.raises(BlastError, match="did you mean 'sparsity'"):
        SparsifyCallback(sparsty=0.5, block=8)
    with pytest.raises(BlastError, match="the training has not begun"):
        _ = SparsifyCallback(**SETTINGS).sparsifier


def test_more_steps_than_the_trainer_runs_are_refused(tmp_path):
    with pytest.raises(BlastError, match="steps is 20, but the Trainer runs 10 steps"):
        trainer(tmp_path, SparsifyCallback(**SETTINGS, steps=20)).train()


def test_a_checkpoint_of_a_training_without_the_callback_is_refused(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    trainer(tmp_path, [], options).train()
    with pytest.raises(BlastError, match="was not written by a training with this callback"):
        trainer(tmp_path, SparsifyCallback(**SETTINGS), options).train(resume_from_checkpoint=True)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    trainer(tmp_path, SparsifyCallback(**SETTINGS), options).train()
    with pytest.raises(BlastError, match=r"another config \(sparsity was 0.5 and is 0.75\)"):
        trainer(tmp_path, SparsifyCallback(**{**SETTINGS, "sparsity": 0.75}), options).train(
            resume_from_checkpoint=True
        )


def test_two_of_them_are_refused(tmp_path):
    both = [SparsifyCallback(**SETTINGS), SparsifyCallback(**SETTINGS, targets="attention")]
    with pytest.raises(BlastError, match="several callbacks of the class SparsifyCallback"):
        trainer(tmp_path, both).train()


@pytest.mark.parametrize(("kind", "name"), [("DEEPSPEED", "DeepSpeed"), ("FSDP", "FSDP")])
def test_ways_that_train_other_parameters_are_refused(kind, name, tmp_path):
    class State:
        distributed_type = accelerate.utils.DistributedType[kind]

    class Elsewhere(transformers.TrainerCallback):
        """Stands for an optimizer that accelerate has prepared for another way of training."""

        def on_train_begin(self, args, state, control, optimizer, **_):
            optimizer.accelerator_state = State()

    with pytest.raises(BlastError, match=f"does not work with {name}"):
        trainer(tmp_path, [Elsewhere(), SparsifyCallback(**SETTINGS)]).train()


def test_several_processes_stay_masked(tmp_path, monkeypatch):
    for name, value in (("world_size", 2), ("n_gpu", 2)):
        args = arguments(tmp_path)
        monkeypatch.setattr(type(args), name, property(lambda self, value=value: value))
        state = transformers.TrainerState(max_steps=STEPS)
        assert SparsifyCallback(**SETTINGS)._config_for(args, state).execution == "masked"
        with pytest.raises(BlastError, match="in one process on one GPU only"):
            SparsifyCallback(**SETTINGS, execution="sparse")._config_for(args, state)
        monkeypatch.undo()
