"""The command `rcm-daemon`; everything heavy is imported by the command that needs it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from rcm_daemon import __version__
from rcm_daemon.bundle.execution import ProviderChoice, VariantChoice
from rcm_daemon.bundle_cli import app as bundle_app
from rcm_daemon.errors import ConfigurationError, RcmError
from rcm_daemon.keys_cli import KeyOption, KeysDirOption, ServerKeyOption, UnencryptedOption, keys_folder
from rcm_daemon.keys_cli import app as keys_app
from rcm_daemon.stack_options import (  # noqa: TC001 (typer reads the annotations)
    MaxValueOption,
    PitchOption,
    SeriesOption,
    ZStepOption,
)

app = typer.Typer(
    help="Live skin-strata labels and junction depths from reflectance confocal microscopy stacks. "
    "Research use only, not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(keys_app, name="keys")
app.add_typer(bundle_app, name="bundle")

BundleOption = Annotated[
    Path | None,
    typer.Option("--bundle", metavar="DIR", help="Model bundle; default: the one that comes along."),
]
ProviderOption = Annotated[ProviderChoice | None, typer.Option("--provider", help="Where the CNN runs.")]
VariantOption = Annotated[
    VariantChoice | None,
    typer.Option(
        "--variant",
        help="Form of the CNN; auto: the fastest here that the bundle holds. \\[default: fp32]",
    ),
]
EstimatorOption = Annotated[
    Literal["monotone", "paper"] | None,
    typer.Option(help="How boundaries are read: the bundle's posterior, or as the paper does."),
]


def main() -> None:
    """Run the command line; every known error is one sentence a fault and the exit code of its kind."""
    try:
        app()
    except ConfigurationError as error:
        for fault in error.faults:
            print(f"rcm-daemon: {fault}", file=sys.stderr)
        sys.exit(error.exit_code)
    except RcmError as error:
        print(f"rcm-daemon: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"rcm-daemon {__version__}")
        raise typer.Exit


@app.command()
def serve(
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="Settings in TOML.")] = None,
    slices_connect: Annotated[
        list[str] | None, typer.Option(metavar="EP", help="Endpoint of a controller; may be repeated.")
    ] = None,
    slices_socket: Annotated[str | None, typer.Option(metavar="sub|pull", help="How slices come.")] = None,
    ingest_bind: Annotated[
        str | None, typer.Option(metavar="EP", help="Where messages are taken and acknowledged.")
    ] = None,
    results_bind: Annotated[
        str | None, typer.Option(metavar="EP", help="Where results are published.")
    ] = None,
    control_bind: Annotated[
        str | None, typer.Option(metavar="EP", help="Where requests are answered.")
    ] = None,
    state_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="This daemon's own folder.")] = None,
    bundle: BundleOption = None,
    bundle_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Bundle folders that can be activated at run time.")
    ] = None,
    provider: Annotated[
        str | None,
        typer.Option(metavar="auto|cpu|openvino|cuda|tensorrt", help="Where the CNN runs."),
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(
            metavar="auto|fp32|int8|fp16",
            help="Form of the CNN; auto: the fastest here that the bundle holds.",
        ),
    ] = None,
    pseudonymise: Annotated[
        bool | None, typer.Option("--pseudonymise", help="Publish pseudonyms for stack and run ids.")
    ] = None,
    estimator: EstimatorOption = None,
) -> None:
    """Label slices as they come over ZeroMQ, until SIGTERM.

    Every setting can also stand in the file or in the environment as RCM_<NAME>; `rcm-daemon schema` lists
    them. Faulty settings are all listed, with exit code 78.
    """
    os.umask(os.umask(0o077) | 0o007)  # the state folder holds stack ids, which can be names
    from rcm_daemon.io.logs import start_logging
    from rcm_daemon.settings import load_settings

    given = {
        "slices_connect": slices_connect or None,
        "slices_socket": slices_socket,
        "ingest_bind": ingest_bind,
        "results_bind": results_bind,
        "control_bind": control_bind,
        "state_dir": state_dir,
        "bundle": bundle,
        "bundle_dir": bundle_dir,
        "provider": provider,
        "variant": variant,
        "estimator": estimator,
        "pseudonymise": pseudonymise,
    }
    settings = load_settings(config, given)
    start_logging(settings.log_level)
    from rcm_daemon.service import Service

    Service(settings, lambda: load_settings(config, given)).run()


@app.command()
def replay(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...", help="TIFF (ImageJ, OME, plain), folder of images or VivaStack folder."
        ),
    ],
    bundle: BundleOption = None,
    z_step_um: ZStepOption = None,
    pixel_size_um: PitchOption = None,
    series: SeriesOption = None,
    max_value: MaxValueOption = None,
    provider: ProviderOption = None,
    variant: VariantOption = None,
    estimator: EstimatorOption = None,
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE|-", help="Write a final message a stack as JSON lines."),
    ] = None,
    live_json: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a message a slice, as the daemon would publish."),
    ] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a row a slice.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw the stack.")] = None,
) -> None:
    """Label recorded stacks through the daemon's own pipeline."""
    from rcm_daemon.bundle.estimator import estimation_of
    from rcm_daemon.bundle.location import resolve_bundle
    from rcm_daemon.bundle.verify import load_verified
    from rcm_daemon.core.mosaic import MosaicRule
    from rcm_daemon.replay import open_for_replay
    from rcm_daemon.reporting import ReplayOutputs, replay_all

    outputs = ReplayOutputs(json_file, live_json, csv, plot)
    opened = load_verified(resolve_bundle(bundle))
    networks = open_for_replay(opened, provider or "auto", variant or "fp32")
    n_failed = replay_all(
        paths,
        networks,
        outputs,
        estimation=estimation_of(networks, estimator or "monotone", MosaicRule()),
        z_step_um=z_step_um,
        pixel_size_um=pixel_size_um,
        series=series,
        max_value=max_value,
    )
    if n_failed:
        raise typer.Exit(1)


@app.command()
def simulate(
    source: Annotated[str, typer.Argument(metavar="PATH|phantom", help="A recorded stack, or phantoms.")],
    bind: Annotated[
        str, typer.Option(metavar="EP", help="Where to publish slices.")
    ] = "tcp://127.0.0.1:6780",
    transport: Annotated[
        Literal["pub", "dealer"],
        typer.Option(help="Publish slices, or send each until the daemon has acknowledged it."),
    ] = "pub",
    connect: Annotated[
        str, typer.Option(metavar="EP", help="The daemon's acknowledged ingest, for --transport dealer.")
    ] = "tcp://127.0.0.1:6783",
    fps: Annotated[
        float, typer.Option(min=0.01, max=1000, help="Slices a second; with --follow-advice, at most.")
    ] = 10.0,
    stacks: Annotated[
        int, typer.Option(min=1, help="How many phantoms, or how often the recorded stack.")
    ] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first phantom; the next have the next.")] = 0,
    instrument: Annotated[str, typer.Option(help="Name of the instrument.")] = "microscope",
    size: Annotated[int, typer.Option(min=64, max=4096, help="Rows and columns of a phantom slice.")] = 1000,
    z_step_um: ZStepOption = None,
    pixel_size_um: PitchOption = None,
    series: SeriesOption = None,
    max_value: MaxValueOption = None,
    follow_advice: Annotated[
        bool, typer.Option("--follow-advice", help="Take each next phantom slice where the daemon advises.")
    ] = False,
    results_at: Annotated[
        str, typer.Option("--results", metavar="EP", help="The daemon's results, for --follow-advice.")
    ] = "tcp://127.0.0.1:6781",
    key: KeyOption = None,
    server_key: ServerKeyOption = "daemon",
    keys_dir: KeysDirOption = None,
    unencrypted: UnencryptedOption = False,
) -> None:
    """Be the microscope: send a recorded stack or phantoms, once somebody listens.

    With --key the connection is encrypted: only daemons whose key is allowed in the folder of keys may
    listen, and with --transport dealer only the one with the key --server-key is talked to.
    """
    from rcm_daemon.microscope import Place, simulate_phantoms, simulate_recorded

    acknowledged = transport == "dealer"
    endpoint = connect if acknowledged else bind
    place = Place(endpoint, instrument, keys_folder(keys_dir), key, acknowledged, server_key)
    advisor = results_at if follow_advice else None
    place.check(*([] if advisor is None else [advisor]), allow_unencrypted_remote=unencrypted)
    if source == "phantom":
        pitch_um = 0.5 if pixel_size_um is None else pixel_size_um
        simulate_phantoms(place, fps, stacks, seed, size, pitch_um, z_step_um, advisor)
    else:
        if follow_advice:
            raise ConfigurationError(["--follow-advice needs depths of choice: a phantom, no recorded stack"])
        simulate_recorded(Path(source), place, fps, stacks, z_step_um, pixel_size_um, series, max_value)


@app.command()
def demo(
    seed: Annotated[int, typer.Option(min=0, help="Which phantom.")] = 0,
    fps: Annotated[float, typer.Option(min=0.1, max=1000, help="Slices a second.")] = 10.0,
    plot: Annotated[Path, typer.Option(metavar="FILE.png", help="Where to draw the stack.")] = Path(
        "demo.png"
    ),
    bundle: BundleOption = None,
) -> None:
    """Run microscope, daemon and subscriber here: a live view, a picture, and the distance to the truth."""
    from rcm_daemon.demo import run_demo

    run_demo(seed, fps, plot, bundle)


@app.command()
def bench(
    bundle: BundleOption = None,
    provider: ProviderOption = None,
    variant: VariantOption = None,
    fps: Annotated[float, typer.Option(min=0.1, max=1000, help="Slices a second, gaps included.")] = 10.0,
    slices: Annotated[int, typer.Option(min=1, max=1000, help="Slices of each stack.")] = 100,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Stacks played at each pace.")] = 3,
    instruments: Annotated[
        int, typer.Option(min=1, max=16, help="How many send at once in the last part.")
    ] = 3,
    size: Annotated[int, typer.Option(min=64, max=4096, help="Rows and columns of a slice.")] = 1000,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="CNN.pt", help="Trained CNN to time in torch, where installed.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all figures as JSON.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw latency against stack length.")
    ] = None,
) -> None:
    """Measure the daemon against its bare CNN on this machine: latency, memory, start.

    A daemon, a publisher and a subscriber run here over TCP. The bare CNN, the transport alone, one process
    that checks and keeps nothing, OpenVINO and torch where they can be run, and the script that embeds the
    whole stack anew at every slice, are timed in turn with them.
    """
    from rcm_daemon.bench.report import write_report
    from rcm_daemon.bench.run import run_bench

    measured = run_bench(
        bundle,
        provider or "auto",
        variant or "fp32",
        fps=fps,
        n_slices=slices,
        n_rounds=rounds,
        n_instruments=instruments,
        side_px=size,
        checkpoint=checkpoint,
    )
    write_report(measured.fields(), json_file, plot)


@app.command()
def watch(
    endpoint: Annotated[
        str, typer.Argument(metavar="[EP]", help="Results of a daemon.")
    ] = "tcp://127.0.0.1:6781",
    key: KeyOption = None,
    server_key: ServerKeyOption = "daemon",
    keys_dir: KeysDirOption = None,
    unencrypted: UnencryptedOption = False,
) -> None:
    """Show what a running daemon publishes, live, until interrupted."""
    from rcm_daemon.io.curve import client_of, demand_curve
    from rcm_daemon.watch import watch_results

    curve = client_of(keys_folder(keys_dir), key, server_key) if key is not None else None
    demand_curve(endpoint, locked=curve is not None, allow_unencrypted_remote=unencrypted)
    watch_results(endpoint, curve)


@app.command()
def check(
    bundle: Annotated[
        Path | None, typer.Argument(metavar="[BUNDLE]", help="Folder; default: the one served.")
    ] = None,
    provider: ProviderOption = None,
    public_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Key the bundle must be signed with, PEM.")
    ] = None,
) -> None:
    """Verify a bundle: digests, dimensions, golden vectors on the provider at hand, signature if asked."""
    from rcm_daemon.bundle.check import check_bundle
    from rcm_daemon.bundle.location import resolve_bundle
    from rcm_daemon.bundle.signature import read_public_key

    key = read_public_key(public_key) if public_key is not None else None
    report = check_bundle(resolve_bundle(bundle), provider or "auto", key)
    for item in report.items:
        print(f"{'ok  ' if item.ok else 'FAIL'} {item.what}: {item.detail}")
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def stacks(
    state_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", envvar="RCM_STATE_DIR", help="The daemon's own folder.")
    ] = None,
    instrument: Annotated[str | None, typer.Option(help="Only stacks of this instrument.")] = None,
    stack_id: Annotated[
        str | None, typer.Option("--stack", metavar="ID", help="Only stacks of this id.")
    ] = None,
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE|-", help="Write the final message of each as JSON lines."),
    ] = None,
    csv: Annotated[str | None, typer.Option(metavar="FILE|-", help="Write a row a slice of each.")] = None,
) -> None:
    """List the stacks of a daemon's journal, or export their results; the daemon may be running."""
    from rcm_daemon.settings import default_state_dir
    from rcm_daemon.stacks import read_stacks, table, write_csv, write_json

    def is_wanted(of_instrument: str, of_id: str) -> bool:
        return of_instrument == (instrument or of_instrument) and of_id == (stack_id or of_id)

    found = read_stacks(state_dir or default_state_dir(), is_wanted)
    if json_file is not None:
        write_json(found, json_file)
    if csv is not None:
        write_csv(found, csv)
    if json_file is None and csv is None:
        print("\n".join(table(found)))


@app.command()
def schema(
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write one file a schema; default: print all.")
    ] = None,
) -> None:
    """Write the JSON Schemas of messages and settings."""
    from rcm_daemon.schemas import schemas, write_schemas

    if out is not None:
        write_schemas(out)
        return
    import json

    print(json.dumps(schemas(), indent=2))
