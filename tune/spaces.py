"""The search space: which settings a trial may draw, and which of them exist beside which.

What may be combined comes from the validity table in config.py: a model, a loss or an augmentation that is added there
is drawn here without a change. A setting is drawn only where it means something: `loss.gp_weight` beside wgan-gp,
`loss.r1_interval` beside a penalty, `model.blocks` in a model that has it. No Ray and no Optuna in here.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from medgan import config as configs
from medgan import values as written
from medgan.config import AXES, PRESETS, Config, ConfigError, Refused, flatten

Value = Any
Settings = dict[str, Value]
"""Dotted settings: what a trial adds to the defaults."""


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: tuple[Value, ...]

    def __str__(self) -> str:
        return ",".join(map(str, self.values))

    def draw(self, random: np.random.Generator) -> Value:
        return self.values[random.integers(len(self.values))]

    def admits(self, value: Value) -> bool:
        return value in self.values


@dataclass(frozen=True)
class Range:
    """A number from low to high, evenly spread on its scale: log or linear; whole numbers where both ends are int."""

    low: float
    high: float
    scale: str = "log"

    def __str__(self) -> str:
        return f"{self.low}..{self.high}:{self.scale}"

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def draw(self, random: np.random.Generator) -> float:
        low, high = (math.log(v) if self.scale == "log" else v for v in (self.low, self.high))
        value = random.uniform(low, high)
        value = math.exp(value) if self.scale == "log" else value
        return self.clip(value)

    def admits(self, value: float) -> bool:
        return self.low <= value <= self.high

    def clip(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        return round(value) if self.whole else float(value)


Domain = Choice | Range
Ask = Callable[[str, Domain], Value]
"""Who draws: (name, domain) -> value. A name has one domain, wherever it is asked for."""
Cell = Mapping[str, str]


@dataclass(frozen=True)
class Knob:
    """A setting with its domain. It is drawn in cells for which `when` holds, of models that have it."""

    key: str
    domain: Domain
    when: Callable[[Cell], bool] = lambda cell: True


def _penalised(*names: str) -> Callable[[Cell], bool]:
    return lambda cell: bool(set(cell["penalty"].split("+")) & set(names))


KNOBS: tuple[Knob, ...] = (
    Knob("optim.lr_g", Range(1e-4, 5e-3)),
    Knob("optim.lr_d", Range(1e-4, 5e-3)),
    Knob("optim.beta1", Choice((0.0, 0.5))),
    Knob("optim.beta2", Choice((0.9, 0.99, 0.999))),
    Knob("global_batch", Choice((16, 32, 64))),
    Knob("model.width", Choice((16, 32, 64))),
    Knob("model.blocks", Choice((1, 2))),
    # Good weights go with the square of the resolution (0.0002 * R^2 / batch in stylegan2-ada): three decades hold
    # what 32x32 and 256x256 want.
    Knob("loss.r1_gamma", Range(0.01, 10.0), _penalised("r1")),
    Knob("loss.r2_gamma", Range(0.01, 10.0), _penalised("r2")),
    Knob("loss.r1_interval", Choice((1, 4, 16)), _penalised("r1", "r2")),
    Knob("loss.gp_weight", Range(1.0, 30.0), _penalised("gp")),
    Knob("loss.critic_steps", Choice((1, 2, 5)), lambda cell: cell["loss.name"] == "wgan-gp"),
    Knob("loss.path_weight", Range(0.2, 4.0), lambda cell: cell["path length"] == "weighted"),
    Knob("model.style_mixing", Choice((0.0, 0.9))),
    Knob("augment.p", Range(0.1, 0.8, "linear"), lambda cell: cell["augment.name"] == "ramp"),
    Knob("augment.target", Range(0.2, 0.8, "linear"), lambda cell: cell["augment.name"] == "ada"),
    Knob("augment.kimg", Range(10.0, 500.0), lambda cell: cell["augment.name"] in ("ada", "ramp")),
    Knob("ema.half_life_kimg", Range(0.5, 50.0)),
    Knob("data.balance", Choice((0.0, 0.5, 1.0)), lambda cell: cell["condition"] == "class"),
)

EVOLVING = ("optim.lr_g", "optim.lr_d", "loss.r1_gamma", "loss.r2_gamma", "augment.p", "augment.target")
"""What population based training changes while a trial trains, where the trial has it."""

GIVEN = ("condition", "privacy")
"""Axes that DATA decides, or who asks for the search."""
DERIVED = ("penalty", "path length")
"""Axes that are no setting but follow from weights: see `_weights`."""
SAME_FOR_ALL = ("seed", "total_images", "precision", "evaluate.", "checkpoint.", "tracking.", "data.resolution")
"""Trials that differ in these could not be compared: they may be fixed, not searched."""


@lru_cache
def keys_of(model: str) -> frozenset[str]:
    """Every dotted setting that a config with this model has."""
    return frozenset(flatten(configs.Config(model=_variants()[model]()).dump()))


@lru_cache
def _variants() -> dict[str, type[configs.ConvModel]]:
    return {variant.model_fields["name"].default: variant for variant in configs.MODELS}


def _weights(cell: Cell) -> dict[str, bool]:
    """The weights that derived axes are about, and whether a cell has each of them."""
    taken = cell["penalty"].split("+")
    gammas = {f"loss.{name}_gamma": name in taken for name in ("r1", "r2")}
    return {**gammas, "loss.path_weight": cell["path length"] == "weighted"}


@dataclass(frozen=True)
class Space:
    """What trials may draw for a DATA with or without classes.

    narrowed: domains that replace those of KNOBS, or values of an axis, or further settings to draw; fixed: settings
    that every trial has.
    """

    labelled: bool = True
    narrowed: Mapping[str, Domain] = field(default_factory=dict)
    fixed: Mapping[str, Value] = field(default_factory=dict)
    only: frozenset[str] | None = None
    """Settings that are drawn; the others stay as in the model's preset. None: all."""

    @cached_property
    def cells(self) -> list[dict[str, str]]:
        """The allowed cells of the validity table that are left."""
        wanted = {
            "condition": "class" if self.labelled else "none",
            "privacy": "dp" if self.fixed.get("privacy.dp.epsilon") else "none",
        }
        return [cell for cell, reason in configs.cells() if reason is None and self._agrees(cell, wanted)]

    def _agrees(self, cell: Cell, wanted: Mapping[str, str]) -> bool:
        if any(cell[axis] != value for axis, value in wanted.items()):
            return False
        for axis in AXES:
            if axis in self.fixed and cell[axis] != self.fixed[axis]:
                return False
            domain = self.narrowed.get(axis)
            if isinstance(domain, Choice) and cell[axis] not in domain.values:
                return False
        weights = ((self.fixed[key], has) for key, has in _weights(cell).items() if key in self.fixed)
        return all((weight != 0) == has for weight, has in weights)

    def settings(self, ask: Ask) -> Settings:
        """One trial's dotted settings, drawn by `ask`: first the cell, axis by axis, then what exists in it."""
        cell = self._cell(ask)
        model = cell["model.name"]
        keys = keys_of(model)
        drawn: Settings = dict(PRESETS.get(model, {}))
        drawn |= {axis: value for axis, value in cell.items() if axis in keys}
        drawn |= {key: 0.0 for key, has in _weights(cell).items() if not has}
        for knob in self.knobs:
            if knob.key in keys and knob.when(cell) and knob.key not in self.fixed:
                drawn[knob.key] = ask(knob.key, knob.domain)
        return drawn | {key: value for key, value in self.fixed.items() if key in keys}

    def _cell(self, ask: Ask) -> dict[str, str]:
        """An allowed cell. Where earlier choices leave fewer values of an axis, the name that is asked for says so:
        a sampler wants the same choices whenever it hears the same name."""
        left = self.cells
        whole = {axis: _values(left, axis) for axis in AXES}
        for axis in AXES:
            values = _values(left, axis)
            if len(values) > 1:
                name = axis if values == whole[axis] else f"{axis} of {'|'.join(values)}"
                value = ask(name, Choice(values))
                left = [cell for cell in left if cell[axis] == value]
        return left[0]

    @property
    def knobs(self) -> tuple[Knob, ...]:
        """KNOBS as narrowed, and what was named besides."""
        known = {knob.key for knob in KNOBS}
        own = [Knob(k.key, self.narrowed.get(k.key, k.domain), k.when) for k in KNOBS]
        more = [Knob(key, domain) for key, domain in self.narrowed.items() if key not in {*known, *AXES}]
        return tuple(knob for knob in (*own, *more) if self.only is None or knob.key in self.only)

    def random(self, random: np.random.Generator) -> Settings:
        """Settings drawn independently."""
        return self.settings(lambda name, domain: domain.draw(random))

    def config(self, settings: Settings) -> Config:
        """The config of settings: as jobs/train.py would make it of them. Raises ConfigError."""
        return configs.load(overrides={**settings, "data.classes": ["a", "b"] if self.labelled else []})

    def for_population(self) -> Space:
        """The space of population based training: one cell, that of the model's preset where it is left, and of the
        knobs the ranges of EVOLVING and those that were named.

        Raises Refused where trials could differ in architecture: weights pass from one to another.
        """
        models = _values(self.cells, "model.name")
        if len(models) > 1:
            raise Refused(
                f"--algorithm pbt: weights pass from trial to trial, so that all need one architecture: "
                f"--space model.name={models[0]}"
            )
        preset = configs.cell_of(self.config({"model.name": models[0], **PRESETS.get(models[0], {})}))
        cell = preset if preset in self.cells else self.cells[0]
        ranges = {k.key for k in self.knobs if isinstance(k.domain, Range)}
        only = frozenset(key for key in ranges if key in EVOLVING or key in self.narrowed)
        return Space(
            self.labelled, {**self.narrowed, **{axis: Choice((cell[axis],)) for axis in AXES}}, self.fixed, only
        )

    def ranges(self) -> dict[str, Range]:
        """The ranges that every trial draws from, where there is one cell."""
        found: dict[str, Range] = {}

        def note(name: str, domain: Domain) -> Value:
            if isinstance(domain, Range):
                found[name] = domain
                return domain.low
            return domain.values[0]

        self.settings(note)
        return found


def _values(cells: Iterable[Cell], axis: str) -> tuple[str, ...]:
    """The values of an axis that some of the cells have, in the table's order."""
    present = {cell[axis] for cell in cells}
    return tuple(value for value in AXES[axis] if value in present)


def space(labelled: bool, narrowings: Sequence[str] = (), fixed: Mapping[str, Value] | None = None) -> Space:
    """The space of a DATA, narrowed by `--space` and with `--set` fixed.

    A narrowing is `key=a,b,c` (choices), `key=1e-4..1e-2` (a range, on a log scale where both ends are above 0;
    `:linear` or `:log` says which), or the name of a YAML file that maps keys to a value, a list, or
    {low, high, scale}. A range has whole numbers where the setting is one. Raises Refused, naming key, value and what
    is allowed.
    """
    narrowed = {name: _checked(name, domain) for name, domain in _given(narrowings)}
    for key in fixed or {}:
        if key not in configs.known_keys():
            near = difflib.get_close_matches(key, configs.known_keys(), n=1)
            raise Refused(f"--set {key}: unknown key" + (f"; did you mean {near[0]}?" if near else ""))
    made = Space(labelled, narrowed, dict(fixed or {}))
    if not made.cells:
        raise Refused(f"--space: nothing is left that may be combined; {_why_empty(made)}")
    random = np.random.default_rng(0)
    for _ in range(200):
        settings = made.random(random)
        try:
            made.config(settings)
        except ConfigError as error:
            raise Refused(f"the search would draw a config that cannot be used: {error}") from None
    for key in narrowed:
        models = _values(made.cells, "model.name")
        if key not in AXES and not any(key in keys_of(model) for model in models):
            raise Refused(f"--space {key}: none of {', '.join(models)} has it")
        if key in made.fixed:
            raise Refused(f"--space {key}: --set {key}={made.fixed[key]} fixes it; leave one of them out")
    return made


def _given(narrowings: Sequence[str]) -> list[tuple[str, Domain]]:
    """(key, domain) of every narrowing, those in files among them. Raises Refused, also where a key comes twice."""
    found: list[tuple[str, Domain]] = []
    for text in narrowings:
        key, equals, values = text.partition("=")
        found += [(key.strip(), _parse(key, values))] if equals else _from_yaml(text).items()
    keys = [key for key, _ in found]
    for key in keys:
        if keys.count(key) > 1:
            raise Refused(f"--space {key}: given twice; name all its values once, such as {key}=A,B")
    return found


def spelled(narrowings: Sequence[str]) -> tuple[str, ...]:
    """Narrowings as text that says what a file says, sorted by key: what identifies a search."""
    return tuple(sorted(f"{key}={domain}" for key, domain in _given(narrowings)))


def check_batches(space: Space, data: str, rows: int, workers: int) -> None:
    """Refuse a space that may draw a global batch of more images than train has, or of too few for so many workers."""
    from medgan.data.loader import rank_rows  # torch takes seconds to import

    random = np.random.default_rng(0)
    fits, reasons = set(), dict[int, str]()
    for _ in range(500):
        config = space.config(space.random(random))
        fits.add(config.global_batch)
        if config.global_batch > rows:
            reasons[config.global_batch] = f"--data {data}: train has {rows} images, too few for global_batch="
            reasons[config.global_batch] += str(config.global_batch)
        try:
            rank_rows(config, 0, workers)
        except ValueError as error:
            reasons[config.global_batch] = f"--workers-per-trial {workers}: {error}"
    left = ",".join(map(str, sorted(fits - reasons.keys())))
    for reason in reasons.values():
        raise Refused(reason + (f"; leave it out: --space global_batch={left}" if left else ""))


def describe(space: Space) -> str:
    """The space in words: what is combined, then each setting with its domain and where it exists."""
    lines = [f"{len(space.cells)} combinations of"]
    for axis in AXES:
        lines.append(f"  {axis:<22}{', '.join(_values(space.cells, axis))}")
    lines.append("and of each, where it means something,")
    for knob in space.knobs:
        places = [c for c in space.cells if knob.key in keys_of(c["model.name"]) and knob.when(c)]
        if places and knob.key not in space.fixed:
            domain = knob.domain
            shown = (
                ", ".join(map(str, domain.values))
                if isinstance(domain, Choice)
                else f"{domain.low:g} to {domain.high:g} ({domain.scale})"
            )
            everywhere = "" if len(places) == len(space.cells) else f"  in {len(places)} of them"
            lines.append(f"  {knob.key:<22}{shown}{everywhere}")
    lines += [f"  {key:<22}{value} (fixed)" for key, value in space.fixed.items()]
    return "\n".join(lines)


def _checked(key: str, domain: Domain) -> Domain:
    known = {*configs.known_keys(), *AXES} - set(GIVEN)
    if key not in known:
        near = difflib.get_close_matches(key, sorted(known), n=1)
        raise Refused(f"--space {key}: unknown key" + (f"; did you mean {near[0]}?" if near else ""))
    if key.startswith(SAME_FOR_ALL):
        raise Refused(f"--space {key}: trials that differ in it cannot be compared; --set fixes it for all")
    if key in AXES:
        wrong = [value for value in domain.values if value not in AXES[key]] if isinstance(domain, Choice) else [key]
        if wrong:
            raise Refused(f"--space {key}={wrong[0]}: choose from {', '.join(AXES[key])}")
    if isinstance(domain, Range):
        kind = _kind(key)
        if kind is None:
            raise Refused(
                f"--space {key}={domain.low}..{domain.high}: it is no number; name the values, as in {key}=A,B"
            )
        if (kind(domain.low), kind(domain.high)) != (domain.low, domain.high):
            raise Refused(f"--space {key}={domain.low}..{domain.high}: it is a whole number, and so must both ends be")
        return Range(kind(domain.low), kind(domain.high), domain.scale)
    return domain


def _kind(key: str) -> type[int] | type[float] | None:
    """int or float, as a setting is; None where it is no number."""
    kinds = configs.kinds_of(key)
    return int if int in kinds else float if float in kinds else None


def _parse(key: str, text: str) -> Domain:
    low, dots, rest = text.partition("..")
    if not dots:
        return _choice(key, text.split(","))
    high, _, scale = rest.partition(":")
    return _range(key, low, high, scale or None)


def _choice(key: str, texts: Sequence[Any]) -> Choice:
    return Choice(tuple(configs.read(key.strip(), text.strip() if isinstance(text, str) else text) for text in texts))


def _range(key: str, first: Any, last: Any, scale: str | None) -> Range:
    """first, last: text."""
    low, high = written.number(str(first)), written.number(str(last))
    if low is None or high is None or not math.isfinite(high - low) or low >= high:
        raise Refused(f"--space {key}={first}..{last}: a range goes from a number to a larger one")
    scale = scale or ("log" if low > 0 else "linear")
    if scale not in ("log", "linear") or (scale == "log" and low <= 0):
        raise Refused(f"--space {key}={low}..{high}:{scale}: the scale is log (above 0) or linear")
    return Range(low, high, scale)


def _from_yaml(name: str) -> dict[str, Domain]:
    try:
        with open(name, "rb") as file:
            tree = configs.parse_yaml(file.read(), f"--space {name}", written.AsWritten)
    except OSError as error:
        raise Refused(f"--space {name}: neither key=values nor a file that can be read ({error.strerror})") from None
    found: dict[str, Domain] = {}
    for key, value in _keys(tree).items():
        if isinstance(value, dict):
            if not {"low", "high"} <= value.keys() <= {"low", "high", "scale"}:
                raise Refused(f"--space {name}: {key} must have low and high, and may have scale")
            found[key] = _range(key, value["low"], value["high"], value.get("scale"))
        else:
            found[key] = _choice(key, value if isinstance(value, list) else [value])
    return found


def _keys(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of nested or dotted YAML; a mapping with `low` is a value."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, dict) and not {"low", "high"} & value.keys()
        found |= _keys(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return found


def _why_empty(made: Space) -> str:
    """The reason that the table gives for a cell that was asked for."""
    wanted = {"condition": "class" if made.labelled else "none"}
    for cell, reason in configs.cells():
        if reason is not None and made._agrees(cell, wanted):
            return reason
    return "its values contradict each other"
