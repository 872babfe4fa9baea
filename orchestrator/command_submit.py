"""The command `submit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.command_guard import complain, print_json
from orchestrator.options import Config, DataOption, FreshOption, JsonOption, SetOption, StoreOption

Address = Annotated[str | None, typer.Option(help="Dashboard address. (default: $RAY_API_SERVER_ADDRESS)")]
Wait = Annotated[bool, typer.Option(help="Follow the log and end with the job's outcome.")]
WorkingDir = Annotated[
    Path | None,
    typer.Option("--working-dir", help="Folder with code of your own to send along; .rayignore is heeded."),
]
DriverCpus = Annotated[
    float,
    typer.Option("--driver-cpus", min=0, help="Cores for the job's own process; 0: on the head."),
]
DriverLabels = Annotated[
    list[str] | None,
    typer.Option("--driver-label", metavar="KEY=VALUE", help="Label of its node; may be repeated."),
]
Retries = Annotated[
    int,
    typer.Option("--retries", min=0, help="More attempts if the cluster loses the job or kills its process."),
]


def submit(
    config: Config,
    address: Address = None,
    store: StoreOption = None,
    overrides: SetOption = None,
    data: DataOption = None,
    wait: Wait = True,
    fresh: FreshOption = False,
    working_dir: WorkingDir = None,
    driver_cpus: DriverCpus = 0,
    driver_label: DriverLabels = None,
    retries: Retries = 2,
    as_json: JsonOption = False,
) -> None:
    """Run a run file as a job on a Ray cluster."""
    from orchestrator.errors import ClusterError, InputError
    from orchestrator.pipeline.run import read_config
    from orchestrator.submit import Driver, submit_run

    pairs = [text.partition("=") for text in driver_label or []]
    if not all(name and equals for name, equals, _ in pairs):
        raise typer.BadParameter("needs KEY=VALUE", param_hint="--driver-label")
    run = read_config(config, overrides or [], data)
    result = submit_run(
        run,
        address=address,
        store=store,
        wait=wait,
        fresh=fresh,
        working_dir=working_dir,
        driver=Driver(driver_cpus, {name: value for name, _, value in pairs}),
        retries=retries,
    )
    if as_json:
        print_json(result)
    else:
        typer.echo(f"{result['submission_id']}: {result['status']}")
    if result["status"] == "RUNNING":
        raise typer.Exit(130)
    if result["status"] not in ("SUCCEEDED", "SUBMITTED"):
        kind = InputError if result["exit_code"] == InputError.exit_code else ClusterError
        how = f"the job ended as {result['status']}", result["reason"]
        fix = f"'ray job logs {result['submission_id']}' shows its log; submitted again it goes on"
        raise complain(kind(*how, fix), as_json=False)  # the result is the one JSON document
