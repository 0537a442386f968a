"""What a process says when another one is gone: the cause, without the address in a source and without advice."""

from __future__ import annotations

import pytest

from blast.tensor_parallel.processes import LostProcessError, Processes


@pytest.mark.fault(
    fault="One of several inference processes dies.",
    topic="Signals and processes",
    happens="The others stop, each with one sentence.",
    reads=(
        "process … of … waited for another one that ended or did not answer in time (…); look at "
        "the messages of the others, and start all of them again."
    ),
    lost="nothing",
)
@pytest.mark.parametrize(("error", "reason"), [
    (RuntimeError("[/src/gloo/pair.cc:534] Connection closed by peer [1.2.3.4]:80. Try again.\nsecond line"),
     "(Connection closed by peer [1.2.3.4]:80)"),
    (ValueError("the group is gone"), "(the group is gone)"),
    (RuntimeError(""), "(RuntimeError)"),
    (RuntimeError("x" * 500), f"({'x' * 160})"),
])  # fmt: skip
def test_the_first_sentence_of_the_backend_is_the_reason(error, reason, reads):
    def collective() -> None:
        raise error

    with pytest.raises(LostProcessError) as raised:
        Processes(None, 1, 3)._call(collective)
    said = str(raised.value)
    assert said.startswith(f"process 1 of 3 waited for another one that ended or did not answer in time {reason}; look")
    assert "\n" not in said
    reads(said)


def test_other_errors_are_not_taken_for_a_lost_process():
    def collective() -> None:
        raise KeyError("a mistake of ours")

    with pytest.raises(KeyError):
        Processes(None, 0, 2)._call(collective)
