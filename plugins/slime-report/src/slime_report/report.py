"""What a report says, as data: made from run directories, written as the JSON twin, and shown by
`slime_report.page`. No number is computed here.

Rollouts are counted from 1, as the console does: `step` 0 is what was measured before training.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

SCHEMA = 1
State = Literal["finished", "stopped", "failed", "crashed", "running"]
Why = Literal["best", "worst", "largest_difference", "same_prompt", "random"]


@dataclass(frozen=True)
class Resumed:
    """The run went on from a checkpoint.

    Attributes:
        step: rollouts that were done then.
        at: when, as ISO 8601.
    """

    step: int
    at: str


@dataclass(frozen=True)
class Score:
    """One number that says how good the model is, over the run.

    Attributes:
        n: over how many samples `last` is a mean, 0 where that is unknown.
        low, high: a 95 % interval of `last`; None where it cannot be computed.
    """

    metric: str
    first: float
    best: float
    best_step: int
    last: float
    n: int
    low: float | None
    high: float | None
    higher_is_better: bool


@dataclass(frozen=True)
class Alarm:
    """Something that is wrong, or probably is.

    Attributes:
        id: names the kind of alarm, such as "truncated"; docs/read-a-run.md has a paragraph for each.
        text: a sentence that says what was seen, the threshold and what to do.
        step: the rollout where it begins.
        chart: the id of the chart that shows it.
        sample: the id of a sample that shows it.
    """

    id: str
    text: str
    threshold: float | None
    value: float | None
    step: int | None
    chart: str | None = None
    sample: str | None = None


@dataclass(frozen=True)
class Series:
    """The values of a metric.

    Attributes:
        x: steps, ascending.
        y: None where the number was NaN or infinite.
        low, high: a band around `y` (p10 and p90, or a 95 % interval, as the chart's `about` says).
        points: how many there were before thinning.
    """

    x: list[int]
    y: list[float | None]
    low: list[float | None] | None
    high: list[float | None] | None
    points: int


@dataclass(frozen=True)
class Chart:
    """Metrics that are drawn in one picture. `about` is one sentence on what it shows and what a good one looks like."""

    id: str
    title: str
    unit: str
    kind: Literal["line", "stacked"]
    metrics: list[str]
    about: str


@dataclass(frozen=True)
class Phase:
    """Where time went: seconds of a phase over the whole run, and their share of all of it."""

    phase: str
    seconds: float
    share: float


@dataclass(frozen=True)
class Picture:
    """An image that a recorded sample shows.

    Attributes:
        size: width and height in pixels; None where it could not be decoded.
        bytes: as it is encoded.
        tokens: its first token in the sample, counted from 0, and the one behind its last; None where that is unknown.
        pieces: the same among the `pieces` of the sample; None where they are left out.
        blank: whether all of its pixels have the same colour.
        pixels: identifies what it shows.
        png: a small PNG of it in base64; None where it is left out.
    """

    size: tuple[int, int] | None
    bytes: int
    tokens: tuple[int, int] | None
    pieces: tuple[int, int] | None
    blank: bool
    pixels: str
    png: str | None


@dataclass(frozen=True)
class SampleRow:
    """One sample that the run recorded.

    Attributes:
        id: unique in the run.
        step: the rollout that it was trained in.
        prompt: identifies the prompt: the same for all samples of the same prompt, early and late.
        source: the row that it comes from, as "file:row"; "" where that is unknown.
        dataset: the evaluation set that it is an answer to; None for a sample that was trained on. An answer is one piece of text, not
            one for each token.
        group, index: its numbers in the run.
        status: completed, truncated, aborted, failed, or pending for those that nobody generated (SFT).
        length: tokens of the response.
        why: why it was kept.
        label: what the reward compares with, as text.
        pieces: the text of every token, prompt and response.
        prompt_tokens: how many of them are the prompt.
        mask: of the response: 1 where the token is trained.
        advantage, log_prob, difference, entropy: of the response tokens; None where the run has none. `log_prob` is the
            trainer's, else the engine's; `difference` is the trainer's minus the engine's; an entry is None where a token has none.
        images: what it shows, in the order of their tokens.
    """

    id: str
    step: int
    prompt: str
    source: str
    dataset: str | None
    group: int | None
    index: int | None
    reward: float | None
    status: str
    length: int
    why: list[Why]
    label: str | None
    pieces: list[str]
    mask: list[int]
    prompt_tokens: int
    advantage: list[float | None] | None
    log_prob: list[float | None] | None
    difference: list[float | None] | None
    entropy: list[float | None] | None
    images: list[Picture] = field(default_factory=list)


@dataclass(frozen=True)
class Samples:
    """The samples in the report: `kept` of the `of` that the run trained on."""

    kept: int
    of: int
    rows: list[SampleRow]


@dataclass(frozen=True)
class Prompt:
    """A prompt that was tried `n` times, always or never with success; `text` is the beginning of what it asks."""

    prompt: str
    n: int
    text: str


@dataclass(frozen=True)
class Groups:
    """How the groups of a run were solved.

    Attributes:
        solved: how many groups had which share of solved samples: 0, (0, 1/4], (1/4, 1/2], (1/2, 3/4], (3/4, 1), 1.
        never, always: prompts of which no sample, or every one, was solved; those tried most often first.
        groups: how many groups these are.
        threshold: a sample is solved when its reward is above this; None without groups.
    """

    solved: list[int]
    never: list[Prompt]
    always: list[Prompt]
    groups: int
    threshold: float | None


@dataclass(frozen=True)
class Loss:
    """Data that was not trained as it stood: why, how much, and in words what that means."""

    reason: str
    count: int
    what: str


@dataclass(frozen=True)
class Argument:
    """An option of the run, and where its value came from."""

    option: str
    value: str
    source: str


@dataclass(frozen=True)
class Plugin:
    """A component or plugin of the run."""

    name: str
    version: str
    distribution: str


@dataclass(frozen=True)
class Provenance:
    """What the run was made of."""

    arguments: list[Argument] = field(default_factory=list)
    plugins: list[Plugin] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, str] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        verdict: one sentence: how it ended, and from which score to which.
        started_at: ISO 8601; "" if unknown.
        seconds: from its first start to its last sign of life.
        done, total: rollouts that are trained, and that were asked for (None: unknown).
        alarms: most serious first; none is a healthy run.
        missing: one sentence for everything that the report would show and the run has not.
    """

    name: str
    path: str
    command: str
    state: State
    verdict: str
    started_at: str
    seconds: float
    done: int
    total: int | None
    resumed: list[Resumed]
    scores: list[Score]
    alarms: list[Alarm]
    series: dict[str, Series]
    charts: list[Chart]
    time: list[Phase]
    samples: Samples
    groups: Groups
    losses: list[Loss]
    provenance: Provenance
    missing: list[str]


@dataclass(frozen=True)
class Difference:
    """An option in which the runs differ; `values` has one entry for each run."""

    option: str
    values: list[str]


@dataclass(frozen=True)
class Report:
    """A report on one or several runs."""

    made_at: str
    slime: str
    runs: list[Run]
    differences: list[Difference] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """This report as plain JSON data."""
        return {"schema": SCHEMA, **asdict(self)}

    def twin(self) -> str:
        """The text of the JSON twin: one line, without NaN, escaped to ASCII."""
        return json.dumps(self.to_json(), allow_nan=False, separators=(",", ":"))
