"""The commands `release`, `weights`, `canary` and `status`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from orchestrator.command_guard import print_json
from orchestrator.options import JsonOption, StoreOption

Name = Annotated[str, typer.Argument(help="Ref of the served ensemble, like digits/mix.")]
Url = Annotated[
    str | None,
    typer.Option("--url", help="Of a running server; its key is $ORCHESTRATOR_KEY. (default: store alone)"),
]
SHORT = 12


def release(
    action: Annotated[Literal["list", "diff", "promote", "rollback"], typer.Argument(help="What to do.")],
    name: Name,
    one: Annotated[
        str | None,
        typer.Argument(metavar="RELEASE", help="Digest or its beginning. (promote: of NAME as it is now)"),
    ] = None,
    other: Annotated[
        str | None, typer.Argument(metavar="OTHER", help="diff: the second one. (default: live)")
    ] = None,
    spec: Annotated[
        str | None, typer.Option("--spec", help="promote: make the release of this ensemble's ref.")
    ] = None,
    url: Url = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """List, compare, promote and roll back what a served name runs."""
    from orchestrator.config.release import Promote, Rollback
    from orchestrator.pipeline import releasing

    if other is not None and action != "diff":
        raise typer.BadParameter("goes with diff", param_hint="OTHER")
    if spec is not None and (action != "promote" or one is not None):
        raise typer.BadParameter("goes with promote, instead of a release", param_hint="--spec")
    if action == "list":
        _show(releasing.listed(name, store=store), as_json)
    elif action == "diff":
        if one is None:
            raise typer.BadParameter("diff needs one", param_hint="RELEASE")
        document = releasing.differences(name, one, other, store=store)
        _show(document if as_json else document["changed"], as_json)
    elif action == "promote":
        body = Promote(release=one) if one is not None else Promote(spec=spec or name)
        _show(releasing.promote(name, body, store=store, url=url), as_json)
    else:
        _show(releasing.rollback(name, Rollback(release=one), store=store, url=url), as_json)


def weights(
    action: Annotated[Literal["set", "rollback"], typer.Argument(help="What to do.")],
    name: Name,
    values: Annotated[
        list[float] | None, typer.Argument(help="set: one for each member, in the order of the tree.")
    ] = None,
    thresholds: Annotated[
        bool, typer.Option("--thresholds", help="The numbers are a cascade's thresholds.")
    ] = False,
    url: Url = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set the weights or thresholds of a served name as a new weight epoch, or go back."""
    from orchestrator.config.load import validate
    from orchestrator.config.release import Reweight, Rollback
    from orchestrator.pipeline import releasing

    if (action == "set") != bool(values):
        wanted = "numbers" if action == "set" else "none"
        raise typer.BadParameter(f"'{action}' takes {wanted}", param_hint="VALUES")
    if action == "rollback":
        _show(releasing.rollback(name, Rollback(), store=store, url=url), as_json)
        return
    body = validate(Reweight, {"thresholds" if thresholds else "weights": values}, "orchestrator weights")
    _show(releasing.reweigh(name, body, store=store, url=url), as_json)


def canary(
    name: Name,
    candidate: Annotated[
        str | None,
        typer.Argument(metavar="RELEASE", help="Digest or its beginning, or the ref of an ensemble."),
    ] = None,
    share: Annotated[float, typer.Option(min=0.0001, max=1, help="Of the requests.")] = 0.05,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="The live release answers; the candidate is only compared.")
    ] = False,
    min_agreement: Annotated[
        float, typer.Option(min=0, max=0.9999, help="Below this share of agreeing rows it is switched off.")
    ] = 0.95,
    stop: Annotated[bool, typer.Option("--stop", help="End it.")] = False,
    url: Url = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Try a release on a share of the requests beside the live one."""
    from orchestrator.pipeline import releasing

    if stop == (candidate is not None):
        raise typer.BadParameter("give a release, or --stop", param_hint="RELEASE")
    if candidate is None:
        _show(releasing.stop_trying(name, store=store, url=url), as_json)
        return
    options = {"share": share, "shadow": shadow, "min_agreement": min_agreement}
    _show(releasing.try_out(name, candidate, options, store=store, url=url), as_json)


def status(
    url: Annotated[str, typer.Argument(help="Of the server.")] = "http://127.0.0.1:8000",
    as_json: JsonOption = False,
) -> None:
    """What a server serves, its weight epochs and its health; its key is $ORCHESTRATOR_KEY."""
    from orchestrator.pipeline import releasing

    document = releasing.status(url)
    if as_json:
        print_json(document)
    else:
        for model in document["models"]:
            ready = "ready" if model["ready"] else f"not ready: {model['problem']}"
            typer.echo(f"{model['name']} {model['version']} ({model['kind']}): {ready}")
            epoch = "-" if model["weight_epoch"] is None else f"{model['weight_epoch']:.0f}"
            answered = f"answers {model['answers']:,.0f}, degraded {model['degraded']:,.0f}"
            typer.echo(f"  weight epoch {epoch}, {answered}, members {', '.join(model['members'])}")
            for replica in (model["releases"] or {}).get("replicas", ()):
                running = f"  {replica['replica']}: release {replica['live'][:SHORT]}"
                typer.echo(f"{running} {replica['problem']}".rstrip())
    raise typer.Exit(0 if all(model["ready"] for model in document["models"]) else 1)


def _show(document: Any, as_json: bool) -> None:
    if as_json:
        print_json(document)
    elif isinstance(document, list):
        for row in document:
            epoch = "-" if row["weight_epoch"] is None else row["weight_epoch"]
            tail = row["problem"] or ("live" if row["live"] else "")
            typer.echo(
                f"{row['entry']:>4}  {row['release'][:SHORT]}  epoch {epoch:<4} {row['kind']:<12} "
                f"{row['promoted_at']}  {tail}".rstrip()
            )
    else:
        for key, value in document.items():
            typer.echo(f"{key}: {value}")
