"""Where a GPU would wait for ever: processes notice by their sockets that another one ended."""

from __future__ import annotations

import pytest
import torch
from ranks import run_ranks
from tensor_parallel_cases import lost_before, watched


@pytest.mark.slow
def test_processes_that_wait_for_one_that_ended_say_so_and_end(tmp_path):
    """Also those that are connected with the first process alone."""
    with pytest.raises(torch.multiprocessing.ProcessExitedException) as raised:
        run_ranks(watched, str(tmp_path), ranks=3)
    assert raised.value.exit_code == 1
    for rank in range(2):
        expected = f"blast: process {rank} of 3 waited for process 2, which ended; look at its messages, and start all"
        assert (tmp_path / f"{rank}.txt").read_text().startswith(expected)


def test_a_process_that_ended_before_is_named_when_the_others_want_to_go_on(tmp_path):
    run_ranks(lost_before, str(tmp_path), ranks=2)
    assert (tmp_path / "0.txt").read_text().startswith("process 0 of 2 waited for process 1, which ended; look at its")
