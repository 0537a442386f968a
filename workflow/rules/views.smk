# Tables and figures: drawn from records alone.

VIEWS = {path.stem: path for path in Path("paper_figures").glob("*.py")}
TABLES = [name for name, path in VIEWS.items() if "\ndef rows(" in path.read_text()]
FIGURES = [name for name, path in VIEWS.items() if "\ndef draw(" in path.read_text()]
PICTURES = [f"{CONFIG.figures}/{name}.{kind}" for name in FIGURES for kind in ("pdf", "png")]
PRINTED = [f"{CONFIG.figures}/{name}.{kind}" for name in TABLES for kind in ("csv", "md", "tex")]
RECORDED = Path("results/recorded")
# Files that every view reads, besides its own script.
SHARED = ["paper_figures/_style.py", "paper_figures/_write.py", "config/paper_values.csv"]


def inputs_of_views(wildcards):
    """All records of the grid. If only views are asked for: the records that exist, and nothing is run."""
    asked = set(workflow.dag_settings.targets)
    if asked and asked <= {*PICTURES, *PRINTED, "tables", "figures"}:
        local = [*FOLDER.root.glob("records/*.json"), *FOLDER.root.glob("language/*.json")]
    else:
        local = all_stamps() + [FOLDER.root / "plan.json"]
    return local + sorted(RECORDED.glob("*/*.csv"))


def caption_of(wildcards):
    """The caption of a view in the report; read here because Snakemake allows no wildcard in `caption`."""
    file = Path("workflow/report") / f"{wildcards.name}.rst"
    return file.read_text() if file.is_file() else ""


rule figure:
    """One figure of the paper, as PDF and PNG."""
    input:
        inputs_of_views,
        SHARED,
        script="paper_figures/{name}.py",
    output:
        pdf=f"{CONFIG.figures}/{{name}}.pdf",
        png=report(
            f"{CONFIG.figures}/{{name}}.png",
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
        "{PYTHON} workflow/scripts/figure.py {wildcards.name} --grid-dir {FOLDER.root} --recorded {RECORDED} --out-dir {CONFIG.figures}"


rule table:
    """One table of the paper, as CSV, Markdown and LaTeX."""
    input:
        inputs_of_views,
        SHARED,
        script="paper_figures/{name}.py",
    output:
        csv=report(
            f"{CONFIG.figures}/{{name}}.csv",
            caption="../report/_view.rst",
            category="Tables",
            labels={"table": "{name}"},
        ),
        md=f"{CONFIG.figures}/{{name}}.md",
        tex=f"{CONFIG.figures}/{{name}}.tex",
    wildcard_constraints:
        name="|".join(TABLES),
    resources:
        slots=1,
    params:
        caption=caption_of,
    shell:
        "{PYTHON} workflow/scripts/paper_table.py {wildcards.name} --grid-dir {FOLDER.root} --recorded {RECORDED} --out-dir {CONFIG.figures}"


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
        plan=FOLDER.root / "plan.json",
    output:
        FOLDER.root / "verdict.txt",
    shell:
        "{PYTHON} -m blast verdict --grid-dir {FOLDER.root} --out {output}"
