"""GPUs that a model needs for inference, and what they cost an hour, dense and sparse; computed."""

from __future__ import annotations

import math

import pandas as pd

from blast.architectures.gpus_needed import MOST_GPUS, USABLE
from blast.experiment.analysis import gpu_cost
from paper_figures.views import _memory as of_suite
from paper_figures.views import _style as style

TITLE = "GPUs and cost of inference"
CATEGORY = "Inference"
SUITES = ("memory",)
PER_MEMORY = tuple(f"{what}_{memory}" for memory in gpu_cost.MEMORIES for what in ("gpus", "dollars"))
COLUMNS = (
    "model", "sparsity", "batch", "context", "weights_gb", "index_gb", "kv_cache_gb", "total_gb", "measured_gb",
    "measured", *PER_MEMORY, "known",
)  # fmt: skip
KEY = ("model", "sparsity", "batch", "context")
SHOWN_KEY = ("model", "sparsity", "batch × context")
GIGABYTE = 1e9
COMPUTED = "computed"


def rows(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each model, thing served and sparsity. `weights_gb` holds the indices; `total_gb` is on one GPU."""
    found, prices, lines = of_suite.memory_rows(table), gpu_cost.read_gpu_prices(), []
    for model in gpu_cost.MODELS:
        for serving in gpu_cost.SERVINGS:
            for sparsity in gpu_cost.SPARSITIES:
                memory = gpu_cost.computed_memory(model, sparsity, serving)
                peak = of_suite.measured(found, model, sparsity, serving, gpu_cost.BLOCK, "prefill_peak_bytes")
                line = {
                    "model": model,
                    "sparsity": sparsity,
                    "batch": serving.batch,
                    "context": serving.context,
                    "weights_gb": memory.weights / GIGABYTE,
                    "index_gb": (memory.index + memory.row_lists) / GIGABYTE,
                    "kv_cache_gb": memory.kv_cache / GIGABYTE,
                    "total_gb": memory.total / GIGABYTE,
                    "measured_gb": peak / GIGABYTE,
                    "measured": "not run" if math.isnan(peak) else "ok",
                    "known": COMPUTED,
                }
                for gb in gpu_cost.MEMORIES:
                    need = gpu_cost.need(model, sparsity, serving, gb, prices)
                    line[f"gpus_{gb}"], line[f"dollars_{gb}"] = need.gpus, need.dollars
                lines.append(line)
    frame = pd.DataFrame(lines, columns=list(COLUMNS))
    return frame.astype({f"gpus_{gb}": "Int64" for gb in gpu_cost.MEMORIES})


def printed(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows as they are printed."""
    lines = []
    for row in frame.to_dict("records"):
        line = {
            "model": style.model_label(row["model"]),
            "sparsity": f"{100 * row['sparsity']:g} %" if row["sparsity"] else "dense",
            "batch × context": f"{row['batch']} × {row['context']}",
            "weights (GB)": f"{row['weights_gb']:.4g}",
            "of them indices (GB)": f"{row['index_gb']:.2g}" if row["index_gb"] else "–",
            "keys, values (GB)": f"{row['kv_cache_gb']:.3g}",
            "all (GB)": f"{row['total_gb']:.4g}",
            "measured (GB)": f"{row['measured_gb']:.4g}" if row["measured"] == "ok" else row["measured"],
        }
        for gb in gpu_cost.MEMORIES:
            gpus, dollars = row[f"gpus_{gb}"], row[f"dollars_{gb}"]
            price = "" if pd.isna(dollars) else f" (${dollars:.2f})"
            line[f"GPUs of {gb} GB"] = f"more than {MOST_GPUS}" if pd.isna(gpus) else f"{gpus}{price}"
        lines.append(line | {"GPUs, cost and bytes": row["known"]})
    return pd.DataFrame(lines)


def remarks(frame: pd.DataFrame) -> list[str]:
    """How the numbers came about."""
    prices = gpu_cost.read_gpu_prices()
    said = []
    for gb in gpu_cost.MEMORIES:
        price = gpu_cost.lowest_price(prices, gb)
        said.append(
            f"no price of a GPU of {gb} GB is known"
            if price is None
            else f"{price.gpu} ${price.dollars_per_hour:.2f} ({price.source}, {price.date})"
        )
    return [
        f"Computed from the sizes of the models: bfloat16, block {gpu_cost.BLOCK}, indices included. Nothing here was "
        "run on several GPUs. Speed is not part of it.",
        f"GPUs: the fewest that hold everything in {USABLE:.0%} of their memory, by tensor parallelism. Their number "
        "divides the query heads and the block columns of the MLP; it divides the heads of the cache, or is a multiple "
        "of them.",
        "Dollars are for an hour of all GPUs, at the lowest price in config/gpu_prices.csv, on demand: "
        f"{'; '.join(said)}. Each price was read in a public copy of the price list.",
    ]
