"""The suite `kernel_plans` without a GPU: it runs on the reference implementation with a fake clock."""

from __future__ import annotations

import pytest
import torch
from blast_kernels.mlp_inference import reference
from blast_kernels.mlp_inference.heuristics import KernelConfig

from blast.benchmark import kernel_plans
from blast.benchmark.inputs.mlp import MlpSize
from blast.benchmark.inputs.weights import sets_needed
from blast.benchmark.plans import compilation, products
from blast.benchmark.plans.compilation import Job
from blast.benchmark.settings import settings_of
from blast.benchmark.timing.interleaved import Timing
from blast.errors import BlastError
from blast.experiment.plan.config import read_config
from blast.experiment.plan.grid import expand
from blast.experiment.plan.point import Point
from blast.experiment.records.record import make_record
from blast.experiment.records.rows import record_rows
from blast.experiment.run.benchmark import run_benchmark_point

SETTINGS = {"tokens": [16, 300], "dtype": "float16", "repeats": 3, **settings_of("kernel_plans")}
SMALL = {
    True: MlpSize(128, 256, True, "silu", False, (32, 32), torch.float16),
    False: MlpSize(128, 256, False, "gelu", True, (32, 32), torch.float16),
}


def by_the_reference(x, values, row_list, bias, y, activation, gate, config, scales=None, chain=None, up=None):
    y.copy_(reference.product(x, values, row_list, bias, y.shape[1], activation, gate, up=up))


@pytest.fixture
def fake_gpu(monkeypatch):
    """The CPU instead of a GPU, with a fake clock: 1 ms for each 16 tokens of a config's tile."""

    def clock(rounds, repeats, seconds):
        tiles = {name: int(name.split(", ")[1]) / 16 for name in rounds}
        return {name: Timing(*[tile] * 3, repeats) for name, tile in tiles.items()}

    monkeypatch.setattr(kernel_plans, "this_gpu", lambda: (torch.device("cpu"), 10_000))
    monkeypatch.setattr(kernel_plans, "capture", lambda candidate: candidate.call(candidate.sets - 1))
    monkeypatch.setattr(kernel_plans, "time_in_turn", clock)
    monkeypatch.setattr(kernel_plans, "compile_all", lambda jobs: dict.fromkeys(jobs))
    monkeypatch.setattr(
        kernel_plans,
        "mlp_size",
        lambda name, block, dtype, down: SMALL["llama" in name]._replace(block=block, transposed_down=down != "same"),
    )
    monkeypatch.setattr(products.launch, "product", by_the_reference)


def measure(architecture="llama-nano", sparsity=0.5, **more):
    return kernel_plans.measure(architecture, sparsity, (32, 32), 0, SETTINGS | more)


def of(metrics, metric, part=None, tokens=None, **setting):
    return [
        entry
        for entry in metrics
        if entry["metric"] == metric
        and part in (None, entry["setting"]["part"])
        and tokens in (None, entry["tokens"])
        and all(entry["setting"].get(key) == value for key, value in setting.items())
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_gives_an_error_of_one_sentence():
    with pytest.raises(
        BlastError, match=r"'kernel_plans' needs a GPU and this machine has no CUDA GPU; .*blast job"
    ) as caught:
        measure("llama-3.2-1b")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("architecture", ["llama-nano", "gpt2-nano"])
def test_every_config_of_both_products_is_timed_and_the_chosen_one_is_marked(fake_gpu, architecture):
    metrics = measure(architecture, tied=[False, True])
    gated = architecture == "llama-nano"
    gates = {(entry["setting"]["part"], entry["setting"]["gate"]) for entry in metrics}
    assert gates == ({("front", "untied"), ("front", "tied")} if gated else {("front", "none")}) | {("down", "none")}
    assert {entry.get("tied") for entry in of(metrics, "latency", "front")} == ({False, True} if gated else {None})
    assert {entry.get("tied") for entry in of(metrics, "latency", "down")} == {None}
    for part in ("front", "down"):
        for tokens in (16, 300):
            timed = of(metrics, "latency", part, tokens)
            configs = [(tuple(entry["setting"]["plan"]), entry.get("tied")) for entry in timed]
            assert len(configs) == len(set(configs)) > 3
            ways = 2 if part == "front" and gated else 1
            assert len(of(metrics, "latency", part, tokens, picked=True)) == ways
            assert len(of(metrics, "latency", part, tokens, rules=True)) == ways
            assert all(0 <= entry["setting"]["error"] < 2e-3 for entry in timed)


def test_pick_cost_is_the_time_of_the_chosen_config_over_the_best_minus_one(fake_gpu):
    metrics = measure()
    costs = of(metrics, "pick_cost")
    assert len(costs) == 2 * 2 * 2
    for entry in costs:
        facts = entry["setting"]
        timed = of(metrics, "latency", facts["part"], entry["tokens"])
        times = {tuple(one["setting"]["plan"]): one["value"] for one in timed}
        assert entry["value"] == pytest.approx(times[tuple(facts["plan"])] / min(times.values()) - 1)
        assert times[tuple(facts["best"])] == min(times.values())
    assert {entry["setting"]["by"] for entry in costs} == {"rules", "table"}


def test_a_config_that_is_wrong_raises_or_does_not_compile_has_an_entry_with_the_cause(fake_gpu, monkeypatch):
    def odd(x, values, row_list, bias, y, activation, gate, config, scales=None, chain=None, up=None):
        if config.stages == 6:
            raise ValueError("it does not fit\nand more")
        by_the_reference(x, values, row_list, bias, y, activation, gate, config, up=up)
        if config.stages == 3:
            y[:, -1] = float("nan")

    def compiled(jobs):
        return {job: "OutOfResources: too much" if job.config.k == 128 else None for job in jobs}

    monkeypatch.setattr(products.launch, "product", odd)
    monkeypatch.setattr(kernel_plans, "compile_all", compiled)
    metrics = measure("gpt2-nano", tokens=[16])
    causes = {3: set(), 4: set(), 6: set()}
    for entry in of(metrics, "latency", k=None):
        config = KernelConfig(*entry["setting"]["plan"])
        if config.k == 128:
            assert entry["setting"]["cause"] == "OutOfResources: too much"
        else:
            causes[config.stages].add(entry["setting"].get("cause"))
        assert (entry["value"] is None) == (entry.get("status") == "failed") == ("cause" in entry["setting"])
    assert causes[6] == {"ValueError: it does not fit"}
    assert causes[3] == {"its output is off by inf from the float32 reference (bound 2e-03)"}
    assert causes[4] == {None}
    lost = [entry for entry in of(metrics, "pick_cost") if KernelConfig(*entry["setting"]["plan"]).k == 128]
    assert lost
    assert all(entry["status"] == "failed" and entry["value"] is None for entry in lost)


def test_blocks_of_the_down_projection_can_be_transposed(fake_gpu):
    metrics = kernel_plans.measure("llama-nano", 0.5, (32, 64), 0, SETTINGS | {"down_block": "transposed"})
    blocks = {(entry["setting"]["part"], *entry["setting"]["block"]) for entry in metrics}
    assert blocks == {("front", 32, 64), ("down", 64, 32)}
    assert all(entry["setting"]["error"] < 2e-3 for entry in of(metrics, "latency"))


def test_a_point_out_of_time_has_an_entry_for_each_product_left(fake_gpu):
    metrics = measure(seconds=0.0)
    assert [(entry["setting"]["part"], entry["tokens"], entry["status"]) for entry in metrics] == [
        (part, tokens, "not run") for part in ("front", "down") for tokens in (16, 300)
    ]


def test_all_sets_together_exceed_the_cache_and_are_in_separate_memory():
    cache = 1_000_000
    generator = torch.Generator().manual_seed(0)
    for product in products.products_of(SMALL[True], 0.5, False, generator, cache):
        values, up, _ = product.sets[0]
        size = values.nbytes + (0 if up is None else up.nbytes)
        count = min(products.MOST_SETS, sets_needed(size, cache))
        assert len(product.sets) == count > products.MASKS
        assert len({values.data_ptr() for values, *_ in product.sets}) == count
        masks = {tuple(row_list.flatten().tolist()) for *_, row_list in product.sets}
        assert len(masks) == products.MASKS


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("tied", [False, True])
def test_the_reference_of_a_product_agrees_with_the_kernel_reference(gated, tied):
    generator = torch.Generator().manual_seed(1)
    size = SMALL[gated]._replace(dtype=torch.float32)
    for product in products.products_of(size, 0.5, tied and gated, generator, 1):
        x = product.input(7, generator)
        arguments = (product.bias, product.out_features, product.activation, product.gate)
        values, up, row_list = product.sets[0]
        out = reference.product(x, values, row_list, *arguments, up=up)
        torch.testing.assert_close(out, product.expected(x), rtol=1e-4, atol=1e-5)


def test_the_counters_of_a_split_down_projection_are_zeroed_once_a_round(fake_gpu, monkeypatch):
    seen = []

    def counting(x, values, row_list, bias, y, activation, gate, config, scales=None, chain=None, up=None):
        assert (chain.counters == 0).all()
        chain.counters.add_(1)
        seen.append(chain.counters.data_ptr())

    monkeypatch.setattr(products.launch, "product", counting)
    generator = torch.Generator().manual_seed(0)
    _front, down = products.products_of(SMALL[True], 0.5, False, generator, 200_000)
    x = down.input(16, generator)
    call = down.call(KernelConfig("tiles", 64, 32, 32, 4, 4, split=2), x, x.new_empty(16, down.out_features))
    for _ in range(2):
        for number in range(len(down.sets)):
            call(number)
    assert len(set(seen)) == len(down.sets) > 1
    assert all(place % 16 == 0 for place in seen)


def test_a_compile_error_gives_its_first_line_and_a_process_without_device_gives_none(monkeypatch):
    job = Job(KernelConfig("tiles", 64, 32, 32, 4, 4), "none", "none", False, (32, 32), torch.float16)

    def launch(job):
        raise RuntimeError("no such layout\nand more")

    monkeypatch.setattr(compilation, "_launch", launch)
    monkeypatch.setattr(compilation, "_lost", False)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert compilation.compile_one(job) == "RuntimeError: no such layout"

    def lost():
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    assert compilation.compile_one(job) == "RuntimeError: no such layout"
    assert compilation.compile_one(job) is None


def test_a_point_of_the_suite_becomes_rows(fake_gpu):
    point = Point(
        id="kernel_plans-llama-nano.float16.s50.b32.seed0", grid="invented", stage="benchmark",
        architecture="llama-nano", method="blast", sparsity=0.5, block=(32, 32),
        benchmark=SETTINGS | {"suite": "kernel_plans"},
    )  # fmt: skip
    run = {"hardware": "imaginary-gpu", "gpu": "Imaginary", "started": "2026-11-23T10:00:00+00:00"}
    rows = record_rows(make_record(point, status="ok", result=run_benchmark_point(point, None), run=run))
    assert {row["metric"] for row in rows} == {"latency", "pick_cost"}
    assert {row["suite"] for row in rows} == {"kernel_plans"}


def test_the_h100_config_has_the_points_for_the_tuned_table(request):
    config = request.config.rootpath / "config" / "h100.yaml"
    points = expand(read_config(config), config).points.values()
    configs = [point for point in points if (point.benchmark or {}).get("suite") == "kernel_plans"]
    assert len(configs) == 66
    square, other = {(128, 128), (64, 64), (32, 32)}, {(32, 128), (64, 128), (128, 32), (128, 64)}
    assert {tuple(point.block) for point in configs} == square | other
