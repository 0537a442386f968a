"""Every command and every example of the docs is tried by a test, or `documentation_blocks.txt` says why not."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from patience import PATIENCE

import blast
from blast.experiment import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "config/README.md",
    *(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md")),
]
LISTED = "tests/documentation_blocks.txt"
# Each block of the pages: the page, the beginning of its first line, and the test that executes it.
BLOCKS = [tuple(line.split(" | ")) for line in (ROOT / LISTED).read_text().splitlines() if not line.startswith("#")]


def blocks(page: str, kinds: str = "sh|python") -> list[str]:
    """The blocks of a page, in their order."""
    return re.findall(rf"^```(?:{kinds})\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def test_every_block_of_the_docs_is_executed_by_a_test_or_named_with_the_reason():
    left = list(BLOCKS)
    for page in PAGES:
        for block in blocks(page):
            found = [entry for entry in left if entry[0] == page and block.startswith(entry[1])]
            assert found, (
                f"{page}: no test executes the block that begins with '{block.splitlines()[0]}'; name it in {LISTED}"
            )
            left.remove(found[0])
    assert left == []


def test_the_tests_that_execute_blocks_exist():
    for page, first, test in BLOCKS:
        if not test.startswith("not run: "):
            file, _, name = test.partition("::")
            assert f"def {name}(" in (ROOT / file).read_text(), (page, first)


def commands(verb: str) -> Iterator[list[str]]:
    """The commands of all blocks that begin with a verb of `blast`, in words."""
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.splitlines():
                line = line.split("  #")[0]
                if re.match(rf"(python -m )?blast {verb}\b", line):
                    yield re.findall(r'"[^"]*"|\S+', line)[line.startswith("python") * 2 + 1 :]


VERBS = sorted({line.split()[1] for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()
                if line.startswith("blast ")})  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_the_verbs_of_a_block_take_its_options(verb):
    """The command is read to its end and not carried out: the tests of the verb do that, on small models."""
    given = [[word.strip('"') for word in words] for words in commands(verb)]
    assert given
    for words in given:
        assert callable(cli.parser().parse_args(words).run)


def test_the_programs_of_your_own_model_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "LICENSE", "my-text.txt")
    names: dict = {}
    torch.manual_seed(0)
    for block in blocks("docs/own_model.md", "python"):
        exec(block.replace("STEPS = 200", "STEPS = 10").replace("update_every=5", "update_every=1"), names)
    printed = capsys.readouterr().out
    assert "80% of the MLP blocks are empty" in printed
    assert "You may" in printed
    dense, sparse = map(int, re.search(r"bytes of the MLPs: dense (\d+), sparse (\d+)", printed).groups())
    assert sparse < 0.25 * dense
    for folder in ("my-sparse-model", "my-sparse-model-of-the-trainer"):
        masks = blast.masks_of(blast.load(folder))
        assert all(abs(mask.float().mean() - 0.2) < 0.02 for mask in masks.values())


@pytest.fixture(scope="module")
def sparse_folder(tmp_path_factory):
    """A small sparse Llama with a tokenizer of bytes, in the folder `my-sparse-model`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("served") / "my-sparse-model"
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    plain = Tokenizer(models.BPE(vocab=letters, merges=[]))
    plain.pre_tokenizer, plain.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, vocab_size=256, eos_token_id=None))
    matrices = {name: part.weight for name, part in model.named_modules() if name.endswith("_proj") and ".mlp." in name}
    masks = {name: torch.rand(weight.shape[0] // 16, weight.shape[1] // 16) < 0.5 for name, weight in matrices.items()}
    blast.to_sparse(model, masks, drop=True)
    blast.save(model, folder, processing_class=transformers.PreTrainedTokenizerFast(tokenizer_object=plain))
    return folder


def test_a_checkpoint_of_the_library_page_opens_in_four_ways(sparse_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = [each for each in blocks("docs/library.md", "python") if each.startswith('blast.save(model, "sparse"')]
    tokenizer = transformers.AutoTokenizer.from_pretrained(sparse_folder)
    names = {"blast": blast, "transformers": transformers, "model": blast.load(sparse_folder), "tokenizer": tokenizer}
    exec(block, names)
    dense = transformers.AutoModelForCausalLM.from_pretrained("dense")
    ids = torch.tensor([[5, 6, 7]])
    assert torch.allclose(dense(ids).logits, names["model"](ids).logits, atol=1e-5)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def answered(server: list[str], asks: str, folder: Path, log: Path) -> str:
    """What the commands `asks` print once a server answers; it is stopped then."""
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    surroundings = {key: value for key, value in surroundings.items() if not key.lower().endswith("_proxy")}
    with log.open("w") as file:
        process = subprocess.Popen(server, cwd=folder, env=surroundings, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            done = subprocess.run(["sh", "-ec", asks], capture_output=True, text=True, env=surroundings, check=False)
            if done.returncode == 0:
                return done.stdout
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
    finally:
        process.terminate()
        process.wait(PATIENCE)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_a_sparse_model_is_served(sparse_folder, tmp_path):
    port = str(free_port())
    serve, ask = (block.strip().replace("8000", port) for block in blocks("docs/serve.md", "sh")[:2])
    words = serve.replace("python examples", f"{sys.executable} {ROOT}/examples").split()
    printed = answered(words, ask.replace("curl ", "curl --fail --silent "), sparse_folder.parent, tmp_path / "log")
    assert '"id":"my-sparse-model"' in printed
    assert '"completion_tokens":20' in printed
    assert '"finish_reason":"length"' in printed


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_an_exported_model_is_served_by_transformers(sparse_folder, tmp_path):
    pytest.importorskip("openai", reason='needs pip install "transformers[serving]"')
    port, place = str(free_port()), sparse_folder.parent
    export, serve = (block.strip().replace("8000", port) for block in blocks("docs/serve.md", "sh")[2:])
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run(
        ["sh", "-ec", export.replace("python ", f"'{sys.executable}' ")], cwd=place, env=surroundings, check=True
    )
    words = [sys.executable, "-m", "transformers.cli.transformers", *serve.split()[1:], "--device", "cpu"]
    body = '{"model": "my-dense-model", "prompt": "def main(", "max_tokens": 4}'
    ask = f"curl --fail --silent http://localhost:{port}/v1/completions -H 'Content-Type: application/json' -d '{body}'"
    assert '"text_completion"' in answered(words, ask, place, tmp_path / "log")
