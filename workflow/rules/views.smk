# Tables and figures: drawn from records alone.

VIEWS = {path.stem: path for path in (ROOT / "paper_figures" / "views").glob("*.py")}
TABLES = [name for name, path in VIEWS.items() if "\ndef rows(" in path.read_text()]
FIGURES = [name for name, path in VIEWS.items() if "\ndef draw(" in path.read_text()]
if not TABLES or not FIGURES:
    raise refusal(f"{ROOT / 'paper_figures' / 'views'}: holds no figures or no tables; restore this folder from git.")
PICTURES = [str(DRAWN / f"{name}.{kind}") for name in FIGURES for kind in ("pdf", "png")]
PRINTED = [str(DRAWN / f"{name}.{kind}") for name in TABLES for kind in ("csv", "md", "tex")]
RECORDED = ROOT / "results" / "recorded"
# Files that every view reads, besides its own.
SHARED = [path for name, path in sorted(VIEWS.items()) if name.startswith("_")]
SHARED += [ROOT / "config" / name for name in ("paper_values.csv", "gpu_prices.csv")]


def inputs_of_views(wildcards):
    """All records of the grid, and files of the view. If only views are asked for, nothing is run."""
    asked = set(workflow.dag_settings.targets)
    if asked and asked <= {*PICTURES, *PRINTED, "tables", "figures"}:
        local = [*FOLDER.root.glob("records/*.json"), *FOLDER.root.glob("language/*.json")]
    else:
        local = all_stamps() + [FOLDER.plan]
    return local + sorted(RECORDED.glob("*/*.csv")) + [*SHARED, VIEWS[wildcards.name]]


def caption_of(wildcards):
    """The caption of a view in the report; read here because Snakemake allows no wildcard in `caption`."""
    file = ROOT / "workflow" / "report" / f"{wildcards.name}.rst"
    return file.read_text() if file.is_file() else ""


rule figure:
    """One figure of the paper, as PDF and PNG."""
    input:
        inputs_of_views,
    output:
        pdf=str(DRAWN / "{name}.pdf"),
        png=report(
            str(DRAWN / "{name}.png"),
            caption="../report/_view.rst",
            category="Figures",
            labels={"figure": "{name}"},
        ),
    wildcard_constraints:
        name="|".join(FIGURES),
    resources:
        slots=1,
    params:
        caption=caption_of,
    shell:
        "{PYTHON:q} {SCRIPTS:q}/figure.py {wildcards.name:q} --grid-dir {FOLDER.root:q} --recorded {RECORDED:q} --out-dir={DRAWN:q}"


rule table:
    """One table of the paper, as CSV, Markdown and LaTeX."""
    input:
        inputs_of_views,
    output:
        csv=report(
            str(DRAWN / "{name}.csv"),
            caption="../report/_view.rst",
            category="Tables",
            labels={"table": "{name}"},
        ),
        md=str(DRAWN / "{name}.md"),
        tex=str(DRAWN / "{name}.tex"),
    wildcard_constraints:
        name="|".join(TABLES),
    resources:
        slots=1,
    params:
        caption=caption_of,
    shell:
        "{PYTHON:q} {SCRIPTS:q}/paper_table.py {wildcards.name:q} --grid-dir {FOLDER.root:q} --recorded {RECORDED:q} --out-dir={DRAWN:q}"


rule figures:
    """All figures."""
    input:
        PICTURES,


rule tables:
    """All tables."""
    input:
        PRINTED,


rule verdict:
    """Lists what failed and moves it aside, so that the next run redoes exactly that."""
    input:
        all_stamps(),
        stamps("mlflow"),
        PICTURES,
        PRINTED,
        plan=FOLDER.plan,
    output:
        FOLDER.root / "verdict.txt",
    shell:
        "{BLAST:q} verdict --grid-dir {FOLDER.root:q} --out {output:q}"
