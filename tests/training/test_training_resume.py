"""A run goes on from its saved state in either execution state, or says in one sentence why it cannot."""

from __future__ import annotations

import io

import pytest
import torch
from switch_cases import STEPS, sparsify, steps

from blast.errors import BlastError
from blast.training.checkpoint import TrainingState
from blast.training.history import History
from blast.training.loop import train
from blast.training.settings import TrainingSettings


def saved_state(sparsifier) -> dict:
    buffer = io.BytesIO()
    parts = {
        "model": sparsifier.model.state_dict(),
        "optimizer": sparsifier.optimizer.state_dict(),
        "sparsifier": sparsifier.state_dict(),
    }
    torch.save(parts, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def taken_up(saved: dict, **settings):
    sparsifier = sparsify("llama-nano", **settings)
    sparsifier.load_state_dict(saved["sparsifier"])
    sparsifier.model.load_state_dict(saved["model"])
    sparsifier.optimizer.load_state_dict(saved["optimizer"])
    return sparsifier


SWITCHING = {"execution": "sparse", "break_even": 0.55}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("cut", "state"), [(2, "masked"), (7, "sparse"), (8, "sparse"), (11, "sparse")])
def test_a_resumed_run_equals_an_undisturbed_one_bit_for_bit(cut, state, tied):
    settings = {**SWITCHING, "tie_gate_up": tied}
    whole = sparsify("llama-nano", **settings)
    expected = steps(whole)
    first = sparsify("llama-nano", **settings)
    losses = steps(first, cut)
    assert first.execution == state
    second = taken_up(saved_state(first), **settings)
    assert second.execution == state
    losses += steps(second)
    assert losses == expected
    ours, theirs = second.model.state_dict(), whole.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert second.execution == whole.execution == "sparse"


def test_a_run_that_starts_sparse_takes_up_other_masks():
    settings = {"execution": "sparse", "grow": "swap"}
    whole = sparsify("llama-nano", **settings)
    expected = steps(whole)
    first = sparsify("llama-nano", **settings)
    losses = steps(first, 5)
    second = taken_up(saved_state(first), **settings)
    assert losses + steps(second) == expected


def test_a_masked_state_is_taken_up_by_a_sparsifier_that_starts_sparse():
    first = sparsify("llama-nano", execution="sparse")
    first.to_masked()
    losses = steps(first, 1)
    first.to_masked()
    saved = saved_state(first)
    assert any(name.endswith("up_proj.weight") for name in saved["model"])
    second = taken_up(saved, execution="sparse")
    assert second.execution == "masked"
    third = sparsify("llama-nano", execution="masked")
    expected = steps(third, 3)
    torch.testing.assert_close(torch.tensor(losses + steps(second, 3)), torch.tensor(expected), rtol=2e-5, atol=0)


def test_another_block_or_number_of_processes_is_refused():
    saved = sparsify("llama-nano", **SWITCHING).state_dict()
    with pytest.raises(BlastError, match=r"another config \(block was \[32, 32\] and is \[16, 16\]\)"):
        sparsify("llama-nano", **SWITCHING, block=16).load_state_dict(saved)
    with pytest.raises(BlastError, match="from 4 processes and this run has 1; resume with the same number"):
        sparsify("llama-nano", **SWITCHING).load_state_dict({**saved, "world_size": 4})


def test_the_sparse_state_survives_the_end_of_the_run(tmp_path):
    import blast

    ours = sparsify("llama-nano", **SWITCHING)
    steps(ours, STEPS)
    tokens = torch.arange(24)[None]
    ours.model.eval()
    expected = ours.model(tokens).logits
    blast.save(blast.to_sparse(ours.model, ours.masks), tmp_path / "model")
    torch.testing.assert_close(blast.load(tmp_path / "model")(tokens).logits, expected)
    torch.testing.assert_close(blast.fuse(blast.load(tmp_path / "model"))(tokens).logits, expected)
    torch.testing.assert_close(blast.to_dense(ours.model)(tokens).logits, expected)


class KilledError(Exception):
    """Ends a run between two steps."""


@pytest.mark.parametrize("cut", [3, 8, 10])
def test_the_training_loop_goes_on_from_its_file_in_either_state(tmp_path, cut):
    def trained(state_file, stop_at=None):
        def batch_at(step):
            if step == stop_at:
                raise KilledError
            tokens = torch.randint(8, (2, 24), generator=torch.Generator().manual_seed(step))
            return tokens, tokens

        ours = sparsify("llama-nano", **SWITCHING)
        history = train(
            ours.model,
            TrainingSettings(steps=STEPS, batch=2, learning_rate=2e-3, checkpoint_seconds=0, evaluate_every=4),
            batch_at=batch_at,
            loss_of=lambda model, batch: model(input_ids=batch[0], labels=batch[1]).loss,
            evaluate=lambda model: model(input_ids=torch.arange(24)[None]).logits.square().mean().item(),
            optimizer=ours.optimizer,
            sparsifier=ours,
            state_file=state_file,
            say=lambda line: None,
        )
        return ours, history

    whole, expected = trained(None)
    with pytest.raises(KilledError):
        trained(tmp_path / "state.pt", stop_at=cut)
    ours, history = trained(tmp_path / "state.pt")
    assert history.curves == expected.curves
    assert len(history.curves["train_loss"]["step"]) == STEPS
    # Its clock went on too.
    assert history.seconds["step"] == expected.seconds["step"] == expected.curves["validation_loss"]["step"]
    assert 0 < history.seconds["value"][0] < history.seconds["value"][-1] == history.spent["value"]
    state = whole.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in ours.model.state_dict().items())


def truncated(file):
    file.write_bytes(file.read_bytes()[:-100])


def one_byte_changed(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def empty(file):
    file.write_bytes(b"")


def another_format(file):
    file.write_text("no state")


def a_folder(file):
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("damage", [truncated, one_byte_changed, empty, another_format, a_folder])
def test_a_damaged_state_is_not_used_and_the_run_begins_anew(tmp_path, damage):
    def state_of(seed, file):
        torch.manual_seed(seed)
        model = torch.nn.Linear(64, 64)
        return TrainingState(file, "key"), model, torch.optim.AdamW(model.parameters())

    file = tmp_path / "state.pt"
    state, model, optimizer = state_of(0, file)
    state.save(7, model, optimizer, None, History())
    state, model, optimizer = state_of(1, file)
    assert state.restore(model, optimizer, None, History()) == 7
    damage(file)
    state, model, optimizer = state_of(1, file)
    before = model.weight.clone()
    assert state.restore(model, optimizer, None, History()) == 0
    assert "starting anew." in state.discarded
    assert torch.equal(model.weight, before)
    state.save(3, model, optimizer, None, History())
    assert state.restore(model, optimizer, None, History()) == 3
