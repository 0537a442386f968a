"""Which points an edit of the code changes; edits are made in copies of the tree."""

from __future__ import annotations

import ast
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from blast import architectures, datasets
from blast.benchmark.settings import settings_of
from blast.experiment.plan.config import read_config
from blast.experiment.plan.grid import expand
from blast.experiment.plan.paths import GridFolder
from blast.experiment.plan.point import Point
from blast.experiment.records import code_graph
from blast.experiment.records import fingerprint as fingerprint_module
from blast.experiment.records.code_cache import CodeCache
from blast.experiment.records.code_graph import Module, Name
from blast.experiment.records.fingerprint import (
    SPEED,
    TELLING,
    Fingerprints,
    entry_of,
    fingerprint,
    training_fingerprint,
)
from blast.experiment.run.worker import run_point
from blast.sparsity.config import SparsifyConfig
from blast.training.settings import TrainingSettings

ROOT = Path(__file__).resolve().parents[3]


def train_point(model: str, dataset: str, method: str = "dense") -> Point:
    training = TrainingSettings.from_dict({"steps": 4, "batch": 8, "length": 16, "learning_rate": 1e-3}).__dict__
    pruned = {}
    if method != "dense":
        sparsify = SparsifyConfig.from_method(
            "one_shot" if method == "one_shot" else "blast", sparsity=0.5, block=16, steps=4, update_every=1
        )
        pruned = {"sparsity": 0.5, "block": (16, 16), "sparsify": sparsify.to_dict(), "method": method}
    start = "parent" if method == "one_shot" else "scratch"
    return Point(
        id=f"{model}.{method}", grid="g", stage="train", architecture=model, dataset=dataset, training=training,
        start=start, parent=f"{model}.dense", **pruned,
    )  # fmt: skip


def benchmark_point(suite: str, model: str = "gpt2-nano") -> Point:
    settings = {"suite": suite, "tokens": [4], "dtype": "float32", "repeats": 2} | settings_of(suite)
    return Point(
        id=suite, grid="g", stage="benchmark", architecture=model, method="blast", sparsity=0.5, block=(16, 16),
        benchmark=settings,
    )  # fmt: skip


POINTS = {
    "dense": train_point("gpt2-nano", "pystdlib"),
    "blast": train_point("gpt2-nano", "pystdlib", "blast"),
    "one_shot": train_point("gpt2-nano", "pystdlib", "one_shot"),
    "llama": train_point("llama-nano", "pystdlib"),
    "vit": train_point("vit-nano", "digits"),
    "vit_blast": train_point("vit-nano", "digits", "blast"),
    "vit_mnist": train_point("vit-nano", "mnist"),
    "mlp": benchmark_point("mlp"),
    "kernels": benchmark_point("kernels"),
    "step": benchmark_point("training_step"),
}
TRAINED = {name for name, point in POINTS.items() if point.stage == "train"}
PRUNED = {"blast", "one_shot", "vit_blast"}
TASKS = ["pystdlib_heldout"]


def code_of(root: Path) -> Fingerprints:
    return Fingerprints({"blast": root / "src" / "blast", "blast_kernels": root / "kernels"})


def fingerprints(code: Fingerprints) -> dict[str, str]:
    return {name: code.of_point(point) for name, point in POINTS.items()} | {"language": code.of_language(TASKS)}


def copy_of_the_code(folder: Path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src" / "blast", folder / "src" / "blast", ignore=ignored)
    shutil.copytree(ROOT / "kernels", folder / "kernels", ignore=ignored)
    return folder


@pytest.fixture
def tree(tmp_path) -> Path:
    """A copy of the code."""
    return copy_of_the_code(tmp_path)


def changed(tree: Path, before: dict[str, str]) -> set[str]:
    return different(code_of(tree), before)


def different(code: Fingerprints, before: dict[str, str]) -> set[str]:
    return {name for name, value in fingerprints(code).items() if value != before[name]}


def edit(file: Path, function: str | None = None) -> None:
    """Adds a statement to a function, or to the first one of the file."""
    lines = file.read_text().splitlines()
    nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)]
    node = next(node for node in nodes if function in (None, node.name))
    # Behind the docstring, if there is one.
    at = node.body[1] if len(node.body) > 1 else node.body[0]
    lines.insert(at.lineno - 1, " " * at.col_offset + "_ = 'edited'")
    file.write_text("\n".join(lines) + "\n")


EDITS = {
    "src/blast/training/step.py": (None, TRAINED | {"step"}),
    "src/blast/training/loop.py": ("train", TRAINED),
    "src/blast/sparsity/schedule.py": (None, {"blast", "vit_blast", "step"}),
    "src/blast/sparsity/one_shot_calibrated.py": ("prune_once_", {"one_shot"}),
    "src/blast/sparsity/execution/switch.py": (None, {"blast", "vit_blast", "step"}),
    "src/blast/experiment/run/prune.py": ("_sparsity", PRUNED),
    "src/blast/experiment/run/train.py": ("run_dense_point", TRAINED - {"blast", "vit_blast"}),
    "src/blast/experiment/run/worker.py": ("set_up_torch", set(POINTS)),
    "src/blast/architectures/gpt2.py": ("build", {"dense", "blast", "one_shot", "step"}),
    "src/blast/datasets/digits.py": ("load", {"vit", "vit_blast"}),
    "src/blast/benchmark/mlp.py": ("measure", {"mlp"}),
    "src/blast/benchmark/kernels.py": ("measure", {"kernels"}),
    "src/blast/experiment/language/metrics.py": (None, set()),
    "src/blast/experiment/cli.py": (None, set()),
    "src/blast/experiment/tracking/importer.py": (None, set()),
    "src/blast/experiment/analysis/claims.py": (None, set()),
    "src/blast/experiment/records/fingerprint.py": (None, set()),
    "src/blast/experiment/plan/grid.py": (None, set()),
    # What a kernel computes, and how fast.
    "kernels/linear/reference.py": (None, TRAINED | {"mlp", "step"}),
    "kernels/mlp_inference/launch.py": (None, {"kernels"}),
    "kernels/cpu/launch.py": (None, TRAINED | {"mlp", "step", "kernels"}),
    "kernels/linear/triton_kernels.py": (None, {"mlp", "step"}),
    "kernels/mlp_training/launch.py": (None, {"step"}),
    "kernels/mlp_training/heuristics.py": (None, {"step"}),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> tuple[Path, Fingerprints]:
    """A copy of the code for one edit after the other, and what was analysed of it before: all of it takes seconds."""
    root = copy_of_the_code(tmp_path_factory.mktemp("shared"))
    return root, code_of(root)


@pytest.fixture(scope="module")
def installed(shared) -> Fingerprints:
    return shared[1]


@pytest.fixture(scope="module")
def before(installed) -> dict[str, str]:
    return fingerprints(installed)


@contextmanager
def edited(shared: tuple[Path, Fingerprints], file: str, function: str | None = None) -> Iterator[None]:
    """Edits a file of the shared copy; it alone is analysed again. All is put back at the end."""
    root, code = shared
    graph, old = code.code, (root / file).read_text()
    edit(root / file, function)
    kept = dict(graph._modules), dict(graph._texts)
    module = next(name for name, found in graph._modules.items() if found and found.file == root / file)
    graph._modules.pop(module)
    graph._texts = {name: text for name, text in graph._texts.items() if name.module != module}
    try:
        yield
    finally:
        (root / file).write_text(old)
        graph._modules, graph._texts = kept


def changed_by_edit(shared: tuple[Path, Fingerprints], before: dict[str, str], file: str, function: str | None) -> set:
    """The points whose fingerprints an edit changes."""
    with edited(shared, file, function):
        return {name for name, point in POINTS.items() if shared[1].of_point(point) != before[name]}


@pytest.mark.parametrize("file", EDITS)
def test_an_edit_changes_the_points_that_use_it_and_no_others(shared, before, file):
    function, wanted = EDITS[file]
    root, code = shared
    if not any(found and found.file == root / file for found in code.code._modules.values()):
        assert not wanted  # no point has it read at all
        return
    found = changed_by_edit(shared, before, file, function)
    if file.startswith("kernels/"):
        assert wanted <= found
        # Some kernels are reached by more suites than these; training is what must not follow speed.
        assert not (found - wanted) & TRAINED
    else:
        assert found == wanted


@pytest.mark.slow
def test_an_edit_of_any_module_that_a_point_uses_changes_its_fingerprint(shared, before):
    """Of each module that some point reaches, the first function that is reached."""
    root, code = shared
    reached = {name: code.reached(point) for name, point in POINTS.items()}
    everything = set().union(*reached.values())
    for module in sorted({name.module for name in everything}):
        body = code.code.module(module).definitions
        functions = [name for name, nodes in body.items() if isinstance(nodes[0], ast.FunctionDef) and name != "_"]
        first = next((name for name in functions if Name(module, name) in everything), None)
        if first:
            file = str(code.code.module(module).file.relative_to(root))
            found = changed_by_edit(shared, before, file, first)
            assert found == {name for name, names in reached.items() if Name(module, first) in names}, (module, first)


def test_an_edit_of_lm_evals_half_changes_its_stage_alone(shared, before):
    with edited(shared, "src/blast/experiment/language/metrics.py"):
        assert different(shared[1], before) == {"language"}


@pytest.mark.parametrize(
    ("file", "function", "found"),
    [
        ("src/blast/evaluation/scoring.py", "score_requests", set()),
        ("src/blast/experiment/run/measure.py", "measure", set()),
        ("src/blast/experiment/run/point_result.py", "evaluate_saved", set()),
        ("src/blast/experiment/run/train.py", "train_model", TRAINED),
        ("src/blast/sparsity/schedule.py", None, {"blast", "vit_blast"}),
    ],
)
def test_an_edit_of_the_evaluation_leaves_the_trained_model(shared, before, file, function, found):
    _, code = shared
    points = {name: POINTS[name] for name in TRAINED}
    training = {name: code.of_training(point) for name, point in points.items()}
    with edited(shared, file, function):
        assert {name for name, point in points.items() if code.of_training(point) != training[name]} == found
        assert {name for name, point in points.items() if code.of_point(point) != before[name]} >= (found or {"dense"})


def test_a_tuned_table_and_a_task_change_what_reads_them(shared, before):
    root, code = shared
    tasks = root / "src" / "blast" / "experiment" / "language" / "tasks"
    files = [next((root / "kernels" / "tuned").glob("*.json")), tasks / "piqa.yaml", tasks / f"{TASKS[0]}.yaml"]
    old = {file: file.read_text() for file in files}
    try:
        for file in files[:2]:
            file.write_text(old[file] + "\n")
        found = different(code, before)
        assert "kernels" in found
        assert not found & (TRAINED | {"language"})
        files[2].write_text("# edited\n")
        assert different(code, before) == found | {"language"}
    finally:
        for file, text in old.items():
            file.write_text(text)
    assert different(code, before) == set()


@pytest.mark.slow
def test_a_source_in_cpp_changes_what_runs_on_a_cpu(tree, before):
    file = tree / "kernels" / "cpu" / "tiles.h"
    file.write_text(file.read_text() + "// edited\n")
    assert changed(tree, before) == TRAINED | {"mlp", "step", "kernels", "language"}


@pytest.mark.slow
def test_comments_docstrings_and_the_order_of_imports_change_nothing(tree, before):
    for file in [*(tree / "src").rglob("*.py"), *(tree / "kernels").rglob("*.py")]:
        lines = file.read_text().splitlines()
        body = ast.parse(file.read_text()).body
        imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)][1:]
        ours = [node for node in imports if node.lineno == node.end_lineno]
        texts = [lines[node.lineno - 1] for node in ours]
        for node, text in zip(ours, reversed(texts), strict=True):
            lines[node.lineno - 1] = text
        text = "\n".join(["# A comment.", *lines, "# Another."]) + "\n"
        file.write_text(text.replace('"""', '"""Edited. ', 1))
    assert changed(tree, before) == set()


@pytest.mark.slow
def test_moved_and_renamed_files_change_nothing(tree, before):
    moves = {
        "blast.training.step": "blast.training.parts.one_step",
        "blast.sparsity.schedule": "blast.sparsity.rise",
        "blast.architectures.gpt2": "blast.architectures.generative",
        "blast.block_sparse.csr": "blast.layers.rows",
    }
    (tree / "src" / "blast" / "training" / "parts").mkdir()
    (tree / "src" / "blast" / "training" / "parts" / "__init__.py").touch()
    for old, new in moves.items():
        place = tree / "src" / (new.replace(".", "/") + ".py")
        (tree / "src" / (old.replace(".", "/") + ".py")).rename(place)
    for file in (tree / "src").rglob("*.py"):
        text = file.read_text()
        for old, new in moves.items():
            text = text.replace(f"from {old} import", f"from {new} import")
        file.write_text(text)
    assert changed(tree, before) == set()


def executed(point: Point, folder: GridFolder) -> set[Name]:
    """Top-level functions and classes of ours in which code ran while a point did."""
    homes = {str(ROOT / "src" / "blast"): "blast", str(ROOT / "kernels"): "blast_kernels"}
    found = set()

    def profile(frame, event, _argument):
        if event == "call":
            found.add((frame.f_code.co_filename, frame.f_code.co_qualname.split(".")[0]))

    sys.setprofile(profile)
    try:
        run_point(point, folder)
    finally:
        sys.setprofile(None)
    names = set()
    for file, name in found:
        for home, package in homes.items():
            file = str(Path(file).resolve())
            if file.startswith(home + "/") and not name.startswith("<"):
                parts = Path(file).relative_to(home).with_suffix("").parts
                names.add(Name(".".join([package, *(part for part in parts if part != "__init__")]), name))
    return names


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "vit_blast", "mlp"])
def test_everything_that_runs_is_in_the_fingerprint(tmp_path, name, installed):
    point = POINTS[name]
    run_point(point, GridFolder(tmp_path / "first"))  # imports what is imported lazily
    ran = executed(point, GridFolder(tmp_path / "second"))
    reached = installed.reached(point)
    # What names and starts points, and digests them.
    machinery = (
        "blast.experiment.plan", "blast.experiment.records", "blast.experiment.run.worker",
        "blast.experiment.run.evaluate",  # it begins `evaluate_saved`, which counts
        *TELLING,
    )  # fmt: skip
    digests = {Name("blast.files", "json_digest"), Name("blast.files", "canonical_json")}
    digests |= {Name("blast.settings", "plain"), Name("blast.settings", "_shown_fields")}
    missing = {found for found in ran - reached - digests if not found.module.startswith(machinery)}
    # `_` is a part of the operator that it is registered for.
    assert not {found for found in missing if not SPEED & set(found.module.split(".")) and found.name != "_"}


def test_modules_are_found_by_name_in_these_places_alone(installed):
    """A new place of that kind has to be taught to `Fingerprints`."""
    found = set()
    for point in POINTS.values():
        for name in installed.reached(point):
            text = installed.code.text(name).text
            if "import_module" in text or "__import__" in text:
                found.add(f"{name.module}.{name.name}")
    assert found == {
        "blast.architectures._found",
        "blast.architectures._builder",
        "blast.datasets._found",
        # Old import paths alone, which nothing here uses.
        "blast.moved_modules._Finder",
        "blast.experiment.run.benchmark.run_benchmark_point",
    }


def test_no_kernel_of_triton_decides_a_trained_model(installed):
    for point in POINTS.values():
        kernels = {name for name in installed.reached(point) if "triton.jit" in installed.code.text(name).text}
        assert bool(kernels) == (point.stage == "benchmark")


def test_dense_points_do_not_reach_the_pruning(installed):
    for name, point in POINTS.items():
        pruning = {
            found for found in installed.reached(point) if found.module.startswith("blast.sparsity.") and found.name
        }
        assert bool(pruning) == (name in PRUNED | {"mlp", "step"}), name


def test_the_family_of_every_architecture_is_found_by_its_text(installed):
    for name in architectures.names():
        assert installed.families(name) == [f"blast.architectures.{architectures.get(name).family}"]
    assert len(installed.families("unknown")) > 3


def test_every_point_of_the_config_has_its_fingerprint_and_no_file_is_read_twice(monkeypatch, tmp_path):
    plan = expand(read_config(ROOT / "config" / "config.yaml"))
    monkeypatch.setattr(fingerprint_module, "_known", {})
    monkeypatch.setenv("BLAST_CACHE", str(tmp_path))
    cache = CodeCache()
    monkeypatch.setattr(fingerprint_module, "_cache", lambda: cache)
    fingerprint_module._installed.cache_clear()
    read = []
    monkeypatch.setattr(code_graph, "Module", lambda name, *a, **k: read.append(name) or Module(name, *a, **k))
    values = {point.id: fingerprint(point) for point in plan.points.values()}
    for _ in range(20):
        assert {point.id: fingerprint(point) for point in plan.points.values()} == values
    assert len(read) == len(set(read)) > 50
    assert len(set(values.values())) > 5
    assert set(datasets.names()) >= {point.dataset for point in plan.points.values() if point.dataset}
    for point in plan.points.values():
        module, _, function = entry_of(point).partition(":")
        assert function in (ROOT / "src" / (module.replace(".", "/") + ".py")).read_text()


def test_the_kept_digests_are_read_once_in_a_process(monkeypatch):
    """A large grid asks for them at every point, and the file may have megabytes."""
    monkeypatch.setattr(fingerprint_module, "_known", {})
    opened = []

    class Kept:
        def __init__(self) -> None:
            opened.append(self)

        def get(self, key, make):
            return f"digest of the {key[0]}"

    monkeypatch.setattr(fingerprint_module, "CodeCache", Kept)
    fingerprint_module._cache.cache_clear()
    try:
        for point in POINTS.values():
            assert fingerprint(point) == "digest of the numbers"
            assert training_fingerprint(point) == "digest of the training"
    finally:
        fingerprint_module._cache.cache_clear()
    assert len(opened) == 1


def test_an_entry_that_does_not_exist_is_no_silent_gap(installed):
    with pytest.raises(LookupError, match=r"no blast\.experiment\.language\.stage\.made_up"):
        installed.code.reached([Name("blast.experiment.language.stage", "made_up")])
