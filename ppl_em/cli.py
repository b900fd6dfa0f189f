"""The command ``ppl-em``: fit, explain, report, compare, demo.

What needs torch is imported inside the commands, so that ``ppl-em --help`` answers at once. A mistake of the
user's (`PplEmError`) is one line on stderr and exit status 2.
"""

from __future__ import annotations

import ast
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppl_em.errors import DataError, FileError, PplEmError, message

if TYPE_CHECKING:
    from ppl_em.model_file import ModelFile
    from ppl_em.result import FitResult

__all__ = ["app", "main"]

app = typer.Typer(
    name="ppl-em",
    help="Fit a Pyro program: exact EM where it admits it, and a plan that says so beforehand.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Method(StrEnum):
    """How to fit."""

    auto = "auto"
    em = "em"
    svi = "svi"


class Precision(StrEnum):
    """Floating-point type of the data and of parameters that the model makes by default."""

    float64 = "float64"
    float32 = "float32"


ModelArgument = Annotated[
    str,
    typer.Argument(metavar="MODEL.py[:function]", help="File that defines a Pyro program ('model' unless named)."),
]
DataOption = Annotated[
    Path | None,
    typer.Option(help="CSV (numeric columns become one matrix) or .npy; read by the file's load(path)."),
]
ColumnsOption = Annotated[str | None, typer.Option(help="Columns of the CSV to take, separated by commas.")]
ArgOption = Annotated[
    list[str] | None,
    typer.Option("--arg", metavar="NAME=VALUE", help="Keyword argument of the model; repeatable."),
]
MethodOption = Annotated[Method, typer.Option(help="auto: exact EM where possible.")]
PrecisionOption = Annotated[Precision, typer.Option(help="Floating-point type.")]
FittedArgument = Annotated[Path, typer.Argument(metavar="DIR", help="What 'fit' wrote with --out.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace existing outputs.")]


@app.command()
def fit(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(help="Directory for the outputs; made if need be.")],
    data: DataOption = None,
    columns: ColumnsOption = None,
    arg: ArgOption = None,
    method: MethodOption = Method.auto,
    restarts: Annotated[int | None, typer.Option(min=1, help="Number of starts (default: the method's).")] = None,
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.")] = 0,
    dtype: PrecisionOption = Precision.float64,
    force: ForceOption = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show progress.")] = False,
) -> None:
    """Fit a Pyro program to data; write plan, summary, result, netCDF file and picture to a directory."""
    from ppl_em import output

    directory = output.open_output(out, output.RESULT_NAMES, force=force)
    with _default_dtype(dtype):
        program, args, kwargs = _problem(model, data, columns, arg)
        import ppl_em

        result = ppl_em.fit(
            program.model,
            *args,
            guide=program.guide,
            method=method.value,
            restarts=restarts,
            model_kwargs=kwargs,
            seed=seed,
            progress=True if verbose else None,
        )
        directory.write_json(output.RUN, _run_record(program, data, columns, arg, method, seed, dtype))
        notes = output.write_result(result, directory)
    typer.echo(f"{result.plan}\n\n{result.summary().to_string()}\n\n{verdict(result)}")
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"written to {directory.path}/")


@app.command()
def explain(
    model: ModelArgument,
    data: DataOption = None,
    columns: ColumnsOption = None,
    arg: ArgOption = None,
    method: MethodOption = Method.auto,
    dtype: PrecisionOption = Precision.float64,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Print how a program would be fitted, without fitting it."""
    with _default_dtype(dtype):
        program, args, kwargs = _problem(model, data, columns, arg)
        import ppl_em

        plan = ppl_em.explain(program.model, *args, guide=program.guide, method=method.value, model_kwargs=kwargs)
    typer.echo(json.dumps(plan.to_dict(), indent=2, default=str) if as_json else str(plan))


@app.command()
def report(
    fitted: FittedArgument,
    out: Annotated[Path | None, typer.Option(help="The HTML file (default: DIR/report.html).")] = None,
    force: ForceOption = False,
) -> None:
    """Write the report of a fit: one HTML file."""
    target = fitted / "report.html" if out is None else out
    if target.exists() and not force:
        raise FileError(message("the report exists already", value=target, hint="--force to replace it"))
    from ppl_em import output

    with _default_dtype(Precision(output.read_run(fitted)["dtype"])):
        _reload(fitted, with_data=True).report(target)
    typer.echo(f"written to {target}")


@app.command()
def compare(
    fitted: Annotated[list[Path], typer.Argument(metavar="DIR...", help="What 'fit' wrote with --out.")],
) -> None:
    """Compare fits of the same data: objective, parameters, information criteria."""
    import ppl_em

    typer.echo(ppl_em.compare({str(path): _reload(path) for path in fitted}).to_string())


@app.command()
def demo() -> None:
    """Fit a mixture to the eruptions of Old Faithful; write picture, netCDF file and report to ppl-em-demo/."""
    with _default_dtype(Precision.float64):
        from ppl_em import demo as demonstration

        demonstration.run(Path.cwd(), typer.echo)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line and ends the process with status 0, or 2 for a mistake of the user's."""
    try:
        app(args=None if argv is None else list(argv), prog_name="ppl-em")
    except PplEmError as error:
        typer.echo(f"ppl-em: {' '.join(str(error).split())}", err=True)
        sys.exit(2)


def _problem(
    spec: str, data: Path | None, columns: str | None, arg: Sequence[str] | None
) -> tuple[ModelFile, tuple[Any, ...], dict[str, Any]]:
    """Reads the model file and the data: the program, its positional and its keyword arguments."""
    from ppl_em.data_file import read_arguments
    from ppl_em.model_file import read_model

    program = read_model(spec)
    names = None if columns is None else [name.strip() for name in columns.split(",")]
    return program, read_arguments(data, names, program.load), _keywords(arg or ())


def _keywords(assignments: Sequence[str]) -> dict[str, Any]:
    """Reads ``NAME=VALUE``; a value is a Python literal, or else text."""
    keywords: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name.isidentifier():
            raise DataError(message("not of the form NAME=VALUE", value=assignment, hint="--arg K=3"))
        try:
            keywords[name] = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            keywords[name] = text
    return keywords


def _run_record(
    program: ModelFile,
    data: Path | None,
    columns: str | None,
    arg: Sequence[str] | None,
    method: Method,
    seed: int,
    dtype: Precision,
) -> dict[str, Any]:
    """Returns what it takes to run the same fit again, as plain JSON."""
    return {
        "model": f"{program.path.resolve()}:{program.function}",
        "data": None if data is None else str(data.resolve()),
        "columns": columns,
        "arg": list(arg or ()),
        "method": method.value,
        "seed": seed,
        "dtype": dtype.value,
    }


def _reload(fitted: Path, *, with_data: bool = False) -> FitResult:
    """Loads what ``fit`` wrote, with the program it was fitted with, and its data where they are asked for."""
    from ppl_em import output
    from ppl_em.model_file import read_model

    record = output.read_run(fitted)
    program = read_model(record["model"])
    import ppl_em

    result = ppl_em.load(fitted / output.RESULT, program.model, guide=program.guide)
    if not with_data:
        return result
    data = None if record["data"] is None else Path(record["data"])
    _, args, kwargs = _problem(record["model"], data, record["columns"], record["arg"])
    return result.with_data(*args, **kwargs)


def verdict(result: FitResult) -> str:
    """Returns one line: the objective, how it was obtained, and whether the iterations converged."""
    how = "exact" if result.exact else "inexact"
    name = result.objective_name.replace("_", "-")
    return f"{name} {result.objective:.6f} ({how}) after {result.num_steps} steps: {result.status.value}"


@contextlib.contextmanager
def _default_dtype(dtype: Precision) -> Iterator[None]:
    """Sets torch's default dtype for the time of a command."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype.value))
    try:
        yield
    finally:
        torch.set_default_dtype(before)
