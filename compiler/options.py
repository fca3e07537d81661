"""The options that describe a training step, shared by the commands that compile one.

This module is read by every start of the command, so it imports nothing but click.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Literal

import click
from click.core import ParameterSource

DTYPES = ("float64", "float32", "bfloat16", "float16")
LEARNING_RATE = {"sgd": 0.01, "adam": 0.001, "adamw": 0.001}
"""Used when --lr is not given: the defaults that PyTorch users know."""
WEIGHT_DECAY = {"sgd": 0.0, "adam": 0.0, "adamw": 0.01}


@dataclass(frozen=True)
class Settings:
    """What the command line says about the step; `assumed` is what it did not say."""

    target: str
    batch: int | None
    dtype: str
    optimizer: Literal["sgd", "adam", "adamw"]
    lr: float
    momentum: float
    weight_decay: float
    nesterov: bool
    loss: Literal["ce", "mse"] | None
    freeze: tuple[str, ...]
    dropout: bool
    seed: int
    norm: Literal["exact", "group", "ghost"]
    serialize: Literal["none", "fused", "full", "mbs1", "mbs2", "best", "auto"]
    recompute: Literal["none", "cheap", "layers", "auto"]
    macs_per_byte: float | None
    """None: what `layers` usually pays."""
    rows: Literal["auto", "off"]
    objective: Literal["time", "traffic", "energy"] | None
    """None: there is nothing to choose."""
    budget: float | None
    mapper: Literal["exact", "heuristic"]
    interleave: Literal["auto", "off", "tile", "element"]
    gradients: bool
    from_mapping: Path | None
    assumed: tuple[str, ...]


def _settings(values: dict[str, Any]) -> Settings:
    """Take the step's options out of `values`; raises UsageError when they contradict."""
    assumed = _assumed()
    taken = {name: values.pop(name) for name in Settings.__dataclass_fields__ if name in values}
    kind = taken["optimizer"]
    if kind != "sgd" and (taken["momentum"] or taken["nesterov"]):
        option = "--nesterov" if taken["nesterov"] else "--momentum"
        raise click.UsageError(
            f"{option} belongs to sgd, and the optimizer is {kind}, which has moments of its own; "
            f"leave out {option}, or use --optimizer sgd"
        )
    if taken["nesterov"] and not taken["momentum"]:
        raise click.UsageError(
            "--nesterov changes how momentum is applied, and --momentum is 0; "
            "add for instance --momentum 0.9, or leave out --nesterov"
        )
    if taken["lr"] is None:
        taken["lr"] = LEARNING_RATE[kind]
        assumed.append(f"learning rate {taken['lr']:g} (--lr)")
    if taken["weight_decay"] is None:
        taken["weight_decay"] = WEIGHT_DECAY[kind]
        assumed.append(f"weight decay {taken['weight_decay']:g} (--weight-decay)")
    assumed += _to_choose(taken)
    if taken["macs_per_byte"] is not None and taken["recompute"] not in ("layers", "auto"):
        raise click.UsageError(
            "--macs-per-byte is what --recompute layers pays, and --recompute is "
            f"{taken['recompute']}; add --recompute layers, or leave out --macs-per-byte"
        )
    if any(not pattern for pattern in taken["freeze"]):
        raise click.UsageError("--freeze got an empty pattern; give one such as 'features.*'")
    taken.setdefault("target", "")  # of a command that involves no machine
    taken.setdefault("mapper", "exact")
    taken.setdefault("interleave", "off")
    taken.setdefault("gradients", True)
    taken.setdefault("from_mapping", None)
    return Settings(**taken, assumed=tuple(assumed))


def _to_choose(taken: dict[str, Any]) -> list[str]:
    """Settle what a search chooses: with --objective, whatever of the schedule was not given."""
    given = click.get_current_context().get_parameter_source
    asked = taken["objective"] is not None
    for name in ("serialize", "recompute"):
        if asked and given(name) is ParameterSource.DEFAULT:
            taken[name] = "auto"
    if "auto" not in (taken["serialize"], taken["recompute"]):
        for option in ("objective", "budget"):
            if taken[option] is not None:
                raise click.UsageError(
                    f"--{option} is for a search, and there is nothing left to choose; "
                    + (
                        "leave out --serialize or --recompute, or give auto to one"
                        if asked
                        else "add --objective time, traffic or energy"
                    )
                )
        return []
    taken["objective"] = taken["objective"] or "time"
    return [] if asked else ["objective time (--objective)"]


def _assumed() -> list[str]:
    """A sentence for each option that took its default and shapes the result."""
    context = click.get_current_context()
    sentences = []
    for name, words in (
        ("target", "machine {} (--target)"),
        ("dtype", "precision {} (--dtype)"),
        ("optimizer", "optimizer {} (--optimizer)"),
        ("momentum", "momentum {:g} (--momentum)"),
    ):
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            continue
        if name == "momentum" and context.params["optimizer"] != "sgd":
            continue
        sentences.append(words.format(context.params[name]))
    if not context.params["dropout"]:
        sentences.append("Dropout, if any, left out (--dropout keeps it)")
    return sentences


def _finite(value: float | None) -> None:
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number")


def _positive(_: click.Context, __: click.Parameter, value: float | None) -> float | None:
    _finite(value)
    if value is not None and value <= 0:
        raise click.BadParameter(f"{value:g} is not above 0; common values are 0.1 to 0.0001")
    return value


def _price(_: click.Context, __: click.Parameter, value: float | None) -> float | None:
    _finite(value)
    if value is not None and value <= 0:
        raise click.BadParameter(f"{value:g} is not above 0; common values are 20 to 100")
    return value


def _seconds(_: click.Context, __: click.Parameter, value: float | None) -> float | None:
    _finite(value)
    if value is not None and value < 0:
        raise click.BadParameter(f"{value:g} is below 0; a common value is 60")
    return value


def _not_negative(_: click.Context, __: click.Parameter, value: float | None) -> float | None:
    _finite(value)
    if value is not None and value < 0:
        raise click.BadParameter(f"{value:g} is below 0; common values are 0 to 0.1")
    return value


def _fraction(_: click.Context, __: click.Parameter, value: float) -> float:
    _finite(value)
    if not 0 <= value < 1:
        raise click.BadParameter(f"{value:g} is not from 0 to below 1; the common value is 0.9")
    return value


def _precision(default: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(
        "--dtype",
        type=click.Choice(DTYPES),
        default=default,
        show_default=True,
        help="Precision of data and weights; the 16-bit ones accumulate in float32.",
    )


_TARGET = click.option(
    "--target",
    default="wavecore",
    metavar="NAME|FILE.yaml",
    show_default=True,
    help="Machine to compile for; `ccnn targets` lists the shipped ones.",
)

_BATCH = click.option(
    "--batch",
    type=click.IntRange(min=1),
    metavar="N",
    help="Samples in the mini-batch.  [default: the model's own, 1 where it is open]",
)

_SCHEDULE = (
    click.option(
        "--norm",
        type=click.Choice(("exact", "group", "ghost")),
        default="exact",
        show_default=True,
        help="Keep batch norms, or replace them by group norms of 16 channels or by norms over 4 "
        "samples, which work sample by sample but compute something else.",
    ),
    click.option(
        "--serialize",
        type=click.Choice(("none", "fused", "full", "mbs1", "mbs2", "best", "auto")),
        default="none",
        show_default=True,
        help="Send runs of layers through the buffer a sub-batch at a time; none is the "
        "conventional schedule, fused each layer with the vector work around it, auto what turns "
        "out best.",
    ),
    click.option(
        "--recompute",
        type=click.Choice(("none", "cheap", "layers", "auto")),
        default="none",
        show_default=True,
        help="Make norms and activations (or whole layers) anew in the backward pass instead of "
        "keeping them; auto: what turns out best.",
    ),
    click.option(
        "--macs-per-byte",
        type=float,
        metavar="MACS",
        callback=_price,
        help="What --recompute layers pays: multiply-accumulates for a byte that need not be "
        "kept.  [default: 50]",
    ),
    click.option(
        "--rows",
        type=click.Choice(("auto", "off")),
        default="auto",
        show_default=True,
        help="Let --serialize best go through images by bands of rows where one sample does not "
        "fit.",
    ),
    click.option(
        "--gradients/--no-gradients",
        default=True,
        show_default=True,
        help="Whether gradients of parameters are results. If not, those that an update takes "
        "on chip, as it does wherever --serialize is not none, are never written.",
    ),
    click.option(
        "--objective",
        type=click.Choice(("time", "traffic", "energy")),
        help="Try schedules and keep the best: --serialize and --recompute are chosen unless they "
        "are given. Products are cut for the array by it, too.",
    ),
    click.option(
        "--budget",
        type=float,
        metavar="SECONDS",
        callback=_seconds,
        help="Start no more tries after this time; there is always a program.  [default: no end]",
    ),
)

_ARRAY = (
    click.option(
        "--mapper",
        type=click.Choice(("exact", "heuristic")),
        default="exact",
        show_default=True,
        help="How products are cut for the array: as proven best, or by FlexSA's rule.",
    ),
    click.option(
        "--interleave",
        type=click.Choice(("auto", "off", "tile", "element")),
        default="off",
        show_default=True,
        help="Let both gradients of a layer share one sweep over dY: where it pays, nowhere, or "
        "wherever it fits, by tiles in the buffer or by elements in an array that can.",
    ),
    click.option(
        "--from-mapping",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Take the tilings and cuts in this mapping.txt; what it lacks is mapped anew.",
    ),
)

_TRAINING = (
    click.option(
        "--optimizer",
        type=click.Choice(tuple(LEARNING_RATE)),
        default="sgd",
        show_default=True,
        help="What updates the parameters.",
    ),
    click.option(
        "--lr",
        type=float,
        callback=_positive,
        help="Learning rate.  [default: 0.01 for sgd, 0.001 for adam and adamw]",
    ),
    click.option(
        "--momentum",
        type=float,
        default=0.0,
        callback=_fraction,
        show_default=True,
        help="Momentum of sgd, from 0 to below 1.",
    ),
    click.option(
        "--weight-decay",
        type=float,
        callback=_not_negative,
        help="Weight decay.  [default: 0.01 for adamw, else 0]",
    ),
    click.option("--nesterov", is_flag=True, help="Nesterov momentum; needs --momentum."),
    click.option(
        "--loss",
        type=click.Choice(("ce", "mse")),
        help="Cross-entropy or mean squared error.  [default: the model's own loss, else ce]",
    ),
    click.option(
        "--freeze",
        multiple=True,
        metavar="PATTERN",
        help="Do not train parameters whose name matches, as in 'features.*'; repeatable.",
    ),
    click.option(
        "--dropout", is_flag=True, help="Keep Dropout and other random layers active, with --seed."
    ),
    click.option(
        "--seed",
        type=click.IntRange(0, 2**31 - 1),
        default=0,
        show_default=True,
        help="For random weights of models that carry none, dropout and random data.",
    ),
)


def step_options(
    dtype: str, machine: bool = True
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that adds the options of a step and passes them on as `settings`.

    Without a `machine` there is no --target, and the settings' target is ''.
    """
    options = (_BATCH, _precision(dtype), *_TRAINING, *_SCHEDULE)
    if machine:
        options = (_TARGET, *options, *_ARRAY)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def gathered(**values: Any) -> Any:
            return function(settings=_settings(values), **values)

        decorated: Callable[..., Any] = gathered
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


def loudness(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add -q and -v, passed on as `quiet` and `verbose`."""

    @wraps(function)
    def checked(**values: Any) -> Any:
        if values["quiet"] and values["verbose"]:
            raise click.UsageError("-q and -v contradict each other; leave out one")
        return function(**values)

    quiet = click.option("-q", "--quiet", is_flag=True, help="No progress, no summary.")
    loud = click.option("-v", "--verbose", is_flag=True, help="Show all; tracebacks of bugs.")
    return quiet(loud(checked))


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
cache_option = click.option(
    "--no-cache",
    is_flag=True,
    envvar="CCNN_NO_CACHE",
    help="Work anew, whatever an earlier run left in the cache.",
)
"""Passed on as `no_cache`; see compiler/cache.py."""
