"""A run's figures as text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rcm_daemon.display.latency_picture import draw_latency
from rcm_daemon.errors import RcmError

if TYPE_CHECKING:
    from pathlib import Path

SUMMARY_COLUMNS = ("p50_ms", "p95_ms", "p99_ms", "max_ms", "first_ms", "n")


def write_report(fields: dict[str, Any], json_file: Path | None, plot: Path | None) -> None:
    """Print what `Measured.fields` holds; write it and draw it where that is asked for.

    Raises
    ------
    RcmError
        A file cannot be written.
    """
    print("\n".join(report_lines(fields)))
    if json_file is not None:
        try:
            json_file.write_text(json.dumps(fields, indent=2) + "\n")
        except OSError as error:
            raise RcmError(f"{json_file} cannot be written ({error.strerror})") from error
    if plot is not None:
        pace = f"at {fields['options']['fps']:g} slices a second"
        names = {
            "end_to_end": f"daemon, end to end, {pace}",
            "script": "script that embeds and labels the whole stack anew",
        }
        curves = {names[key]: pairs for key, pairs in fields["by_stack_length"].items() if pairs}
        levels = {f"bare CNN, {pace}": fields["at_frame_rate"]["bare"]["p50_ms"]}
        bundle = f"{fields['bundle']['name']} {fields['bundle']['version']}"
        title = f"{bundle}, {fields['variant']}, {fields['provider']}, {fields['machine']['cpu']}"
        draw_latency(curves, levels, title, plot)


def report_lines(fields: dict[str, Any]) -> list[str]:
    """Say what `Measured.fields` holds."""
    machine, options, bundle = fields["machine"], fields["options"], fields["bundle"]
    side = options["side_px"]
    load = " ".join(f"{load:.1f}" for load in machine["load_average"])
    lines = [
        f"{machine['cpu']}, {machine['n_cores_allowed']} of {machine['n_cores']} cores, load {load}"
        + (f", {machine['gpu']}" if machine["gpu"] else ""),
        ", ".join(f"{name} {version}" for name, version in fields["versions"].items()),
        f"{bundle['name']} {bundle['version']} ({bundle['digest'][:12]}) on {fields['provider']}, "
        f"{fields['variant']}, {fields['n_threads']} thread{'s' * (fields['n_threads'] != 1)}; "
        f"{options['n_rounds']} x {options['n_slices']} slices of {side} x {side}",
    ]
    for key, title in (("at_frame_rate", "at the frame rate"), ("back_to_back", "back to back")):
        lines += ["", *_pace(fields[key], f"{title}, {fields[key]['fps']:.1f} slices a second")]
    hot = fields["bare_over_and_over"]
    lines += ["", f"{'bare, over and over, p50 ms':44}{hot['p50_ms']:9.2f}"]
    if (beyond := "end to end - this, p50 ms") in hot:
        title = "end to end at the frame rate - that, p50 ms"
        lines += [f"{title:44}{hot[beyond]:9.2f}"]
    if together := fields["together"]:
        n = options["n_instruments"]
        title = f"{n} instrument{'s' * (n != 1)} at {options['fps']:g} a second each"
        lines += ["", *_table({"end_to_end": together["end_to_end"]}, title)]
        lines += [f"{'lost':44}{together['n_lost']:9d}"]
    if script := fields["script"]:
        lines += [
            "",
            f"the script that embeds all slices anew, at {script['n_slices']} slices: "
            f"{script['p50_ms']:.0f} ms, {script['script / end to end, p50']:.1f} x end to end; "
            f"answers differ by {script['largest_difference']:.1g} at most",
        ]
    if archive := fields["archive"]:
        rates = ", ".join(f"{name} {fps:.1f}" for name, fps in archive["slices_per_s"].items())
        lines += ["", f"recorded stacks, slices a second: {rates}"]
        lines += [f"{name:44}{ratio:9.2f}" for name, ratio in archive["ratios"].items()]
    if fields["lightness"]:
        lines += ["", *_lightness(fields["lightness"])]
    return lines + [f"note: {note}" for note in fields["notes"]]


def _pace(pace: dict[str, Any], title: str) -> list[str]:
    rows = {name: found for name, found in pace.items() if isinstance(found, dict) and "p50_ms" in found}
    rows |= {f"  {part.removesuffix('_ms')}": found for part, found in pace.get("parts", {}).items()}
    return _table(rows, title) + [f"{name:44}{ratio:9.2f}" for name, ratio in pace["ratios"].items()]


def _table(rows: dict[str, dict[str, Any]], title: str) -> list[str]:
    lines = [f"{title:44}" + "".join(f"{column.removesuffix('_ms'):>9}" for column in SUMMARY_COLUMNS)]
    for name, row in rows.items():
        *times, n = (row[column] for column in SUMMARY_COLUMNS)
        lines.append(f"{name.replace('_', ' '):44}" + "".join(f"{ms:9.2f}" for ms in times) + f"{n:9d}")
    return lines


def _lightness(light: dict[str, Any]) -> list[str]:
    return [
        f"start to READY {light['start_to_ready_s']:.2f} s; resident {light['resident_mb']:.0f} MB, all "
        f"processes together, {light['resident_shared_once_mb']:.0f} with shared pages counted once; "
        f"idle {100 * light['idle_cpu_share']:.2f} % of a core",
        f"rcm-daemon --help {light['help_s']:.2f} s; import of the daemon {light['import_s']:.2f} s; "
        f"installed {light['installed_mb']:.0f} MB",
    ]
