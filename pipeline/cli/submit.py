"""`era submit`."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.common import JsonFlag, run_verb, show_summary
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.submit import Command, KubernetesOptions, Outcome, RayOptions

VERBS = ("preprocess", "train", "tune", "evaluate", "restore")


def register(app: typer.Typer) -> None:
    """Add the verb."""
    settings = {"ignore_unknown_options": True}  # they belong to the submitted verb
    app.command("submit", context_settings=settings)(submit)


def submit(
    context: typer.Context,
    words: Annotated[
        list[str], typer.Argument(metavar="VERB [ARGUMENTS]...", help=f"{', '.join(VERBS)}.")
    ],
    address: Annotated[str, typer.Option(help="A Ray cluster's job server, http://...")] = "",
    working_dir: Annotated[
        str, typer.Option(help="With --address: a folder that travels with the job.")
    ] = "",
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="With --address: an environment variable to pass on."),
    ] = None,
    kubernetes: Annotated[
        bool, typer.Option("--kubernetes", help="Run as a RayJob, through kubectl.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --kubernetes: only print the manifest.")
    ] = False,
    overlay: Annotated[
        str,
        typer.Option(
            help="With --kubernetes: base, local, gpu, spot, kueue, or a kustomization's folder."
        ),
    ] = "",
    image: Annotated[str, typer.Option(help="With --kubernetes: the image.")] = "",
    name: Annotated[str, typer.Option(help="With --kubernetes: the RayJob's name.")] = "",
    namespace: Annotated[str, typer.Option(help="With --kubernetes (default: era).")] = "",
    kube_context: Annotated[
        str, typer.Option("--context", help="With --kubernetes: kubectl's context.")
    ] = "",
    cpu: Annotated[str, typer.Option(help="With --kubernetes: processors of a worker's pod.")] = "",
    memory: Annotated[
        str, typer.Option(help="With --kubernetes: memory of a worker's pod, such as 48Gi.")
    ] = "",
    gpus_per_pod: Annotated[
        int, typer.Option(min=0, help="With --kubernetes: GPUs, and so workers, of each pod.")
    ] = 0,
    shared: Annotated[
        bool, typer.Option("--shared", help="Local paths name one file system on every node.")
    ] = False,
    stop_on_exit: Annotated[
        bool,
        typer.Option("--stop-on-exit", help="Ctrl-C stops the job too; otherwise it continues."),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Run another verb on a Ray cluster or on Kubernetes; ends with its exit code.

    The same command again follows a job that still runs, and continues one that failed.

    Example: era submit train --config tiny run.root=s3://bucket/runs ... --address http://...
    """
    from pipeline.submit import KubernetesOptions, RayOptions

    verb, arguments = words[0], words[1:]
    if verb in VERBS:
        values = _parse(context, verb, arguments)
    ray = RayOptions(address, working_dir, env or (), stop_on_exit, as_json)
    pods = KubernetesOptions(
        overlay, image, name, namespace or "era", kube_context, cpu, memory, gpus_per_pod
    )
    given = {
        "--overlay": overlay,
        "--image": image,
        "--name": name,
        "--namespace": namespace,
        "--context": kube_context,
        "--cpu": cpu,
        "--memory": memory,
        "--gpus-per-pod": gpus_per_pod,
    }
    code = 0

    def work() -> dict[str, Any]:
        nonlocal code
        if verb not in VERBS:
            raise UserError(f"submit {verb}: expected one of {', '.join(VERBS)}")
        _check_place(address, kubernetes, dry_run, [k for k, v in given.items() if v])
        if kubernetes and (working_dir or env):
            raise UserError(
                "--working-dir and --env go with --address; on Kubernetes the code is the image's, "
                "and the environment comes from the secrets era-s3 and era-wandb"
            )
        command = _command(verb, arguments, values, shared)
        if dry_run:
            manifest = _render(command, pods)
            return manifest if as_json else {"manifest": manifest}
        outcome = _run(command, ray, pods, kubernetes)
        code = outcome.exit_code
        return _summary(command, outcome, as_json)

    run_verb(work, _show, as_json)
    raise typer.Exit(code)


def _parse(context: typer.Context, verb: str, arguments: list[str]) -> dict[str, Any]:
    """The verb's own options, as its own command line would read them, errors included."""
    root: Any = context.find_root().command
    inner = root.commands[verb].make_context(f"era {verb}", list(arguments))
    return dict(inner.params)


def _check_place(address: str, kubernetes: bool, dry_run: bool, given: list[str]) -> None:
    if bool(address) == kubernetes:
        raise UserError("give one of --address http://... (a Ray cluster) and --kubernetes")
    if address and (dry_run or given):
        raise UserError(
            f"{', '.join(given) or '--dry-run'}: goes with --kubernetes only (options of the "
            "verb's own that have such a name go behind --)"
        )


def _command(verb: str, arguments: list[str], values: dict[str, Any], shared: bool) -> Command:
    from pipeline.config import load_train_config
    from pipeline.submit import training_command, urls_command
    from pipeline.submit.command import inline_config

    overrides = values.get("overrides") or []
    if verb == "train":
        config = load_train_config(values["config"], overrides)
        if _is_file(values["config"]):
            arguments = ["--config", inline_config(config)]
        return training_command(verb, arguments, config, 1, shared)
    if verb == "tune":
        from pipeline.config.yaml_text import inline
        from pipeline.tune.config import load_sweep
        from pipeline.tune.trial import trial_count

        sweep = load_sweep(values["config"], overrides)
        if _is_file(values["config"]) or _is_file(sweep.config):
            sent = replace(sweep, config=inline_config(sweep.training()), overrides=[])
            arguments = ["--config", inline(asdict(sent))]
            arguments += ["--resume-failed"] if values.get("resume_failed") else []
        trials = trial_count(sweep)
        at_once = min(sweep.concurrent or trials, trials)
        return training_command(verb, arguments, sweep.training(), at_once, shared)
    return urls_command(verb, arguments, values, shared)


def _is_file(name: str) -> bool:
    """Whether the name is a file of this machine rather than a packaged configuration."""
    return not name.startswith("{") and (
        name.endswith((".yaml", ".yml")) or "/" in name or Path(name).is_file()
    )


def _run(command: Command, ray: RayOptions, pods: KubernetesOptions, kubernetes: bool) -> Outcome:
    from pipeline.submit import recorded_result, submit_to_kubernetes, submit_to_ray

    def write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()

    if not kubernetes:
        return submit_to_ray(command, ray, write)
    sent = command
    if ray.as_json:
        sent = replace(command, arguments=(*command.arguments, "--json"))
    # A sweep may have failed trials to start again.
    known = partial(recorded_result, command) if command.verb == "train" else lambda: None
    rayjob = _render(sent, pods)
    return submit_to_kubernetes(rayjob, write, ray.stop_on_exit, pods.context, finished=known)


def _render(command: Command, pods: KubernetesOptions) -> dict[str, Any]:
    from pipeline.submit import render

    return render(command, pods)


def _summary(command: Command, outcome: Outcome, as_json: bool) -> dict[str, Any]:
    """How the job ended; with --json also what it printed itself, or left with its run."""
    from pipeline.submit import recorded_result

    summary: dict[str, Any] = {
        "job": outcome.job,
        "state": outcome.state,
        "exit_code": outcome.exit_code,
    }
    if outcome.message:
        summary["message"] = " ".join(outcome.message.split())
    if as_json:
        lines = [line for line in outcome.log.splitlines() if line.startswith("{")]
        result = outcome.result or (_printed(lines[-1]) if lines else None)
        if result is None and outcome.exit_code == 0:
            result = recorded_result(command)
        summary["result"] = result
    return summary


def _printed(line: str) -> dict[str, Any] | None:
    """The JSON object that a job printed; None for anything else."""
    from pydantic import JsonValue

    from pipeline.border import BadInput, parse_json, validated

    where = "the job's result"
    try:
        values = parse_json(line.encode("utf-8", "surrogatepass"), where, nan_is_null=True)
        return validated(dict[str, JsonValue], values, where)
    except BadInput:
        return None


def _show(summary: dict[str, Any]) -> None:
    if "manifest" in summary:
        import yaml

        print(yaml.safe_dump(summary["manifest"], sort_keys=False), end="")
    else:
        show_summary(summary)
