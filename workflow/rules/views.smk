# Tables and figures: drawn from records alone.


def only_views():
    """Whether only views are asked for: then nothing is run, and they show the records that there are."""
    asked = set(workflow.dag_settings.targets)
    return bool(asked) and asked <= {*PICTURES, *PRINTED, "tables", "figures"}


rule view_keys:
    """What each view shows now, as digests: a view is drawn again when they are others."""
    input:
        planned(),
        lambda wildcards: [] if only_views() else all_stamps(),
    output:
        FOLDER.view_keys(TODO.run),
    resources:
        slots=1,
    shell:
        "{PYTHON:q} {SCRIPTS:q}/view_keys.py --grid-dir {FOLDER.root:q} --recorded {RECORDED:q} --out-dir={DRAWN:q} --out {output:q}"


def keys_of_view(wildcards):
    """Of a view that is drawn again, what it shows: a file of this run. Another view needs nothing."""
    if wildcards.name not in {*TODO.views, *(() if only_views() else TODO.later_views)}:
        return []
    run_for(VIEWS[wildcards.name].files)
    return [FOLDER.view_keys(TODO.run)]


def caption_of(wildcards):
    """The caption of a view in the report; read here because Snakemake allows no wildcard in `caption`."""
    file = ROOT / "workflow" / "report" / f"{wildcards.name}.rst"
    return file.read_text() if file.is_file() else ""


VIEW_KEYS = FOLDER.view_keys(TODO.run)
DRAW = "{wildcards.name:q} --grid-dir {FOLDER.root:q} --recorded {RECORDED:q} --out-dir={DRAWN:q} --keys {VIEW_KEYS:q}"


rule figure:
    """One figure of the paper, as PDF and PNG."""
    input:
        keys_of_view,
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
        "{PYTHON:q} {SCRIPTS:q}/figure.py " + DRAW


rule table:
    """One table of the paper, as CSV, Markdown and LaTeX."""
    input:
        keys_of_view,
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
        "{PYTHON:q} {SCRIPTS:q}/paper_table.py " + DRAW


rule figures:
    """All figures."""
    input:
        PICTURES,


rule tables:
    """All tables."""
    input:
        PRINTED,


def inputs_of_verdict(wildcards):
    """All that is made in this run."""
    if TODO.changes_results:
        run_for([FOLDER.verdict])
    return planned() + prepared(PLAN.datasets) + all_stamps() + stamps(TODO.mlflow)


rule verdict:
    """Lists what failed and moves it aside, so that the next run redoes exactly that."""
    input:
        inputs_of_verdict,
        # A view that is drawn again changes no verdict.
        ancient(PICTURES),
        ancient(PRINTED),
    output:
        FOLDER.verdict,
    shell:
        "{BLAST:q} verdict --grid-dir {FOLDER.root:q} --out {output:q}"
