"""``compare``: seconds and quality of several plans, from real generations."""

from __future__ import annotations

import inspect
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from pab_compile.denoisers import is_pipeline
from pab_compile.errors import OptionError
from pab_compile.live.enable import enable
from pab_compile.live.handle import Handle
from pab_compile.plans.levels import LEVELS
from pab_compile.report.compare_page import Compared
from pab_compile.report.comparison import Comparison

from .measures import LPIPS, Measure, checked_measures, lpips_for, scores
from .score import Score, psnr
from .ssim import ssim_of_shown
from .timing import timed

WITHOUT = "without reuse"


def compare(
    generate: Any,
    prompts: Sequence[Any],
    plans: Sequence[Any] = tuple(LEVELS),
    *,
    model: Any = None,
    num_steps: int = 30,
    frames: Callable[[Any], Any] | None = None,
    options: Mapping[str, Any] | None = None,
    measures: Mapping[str, Measure] | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Generate all prompts without reuse and with every plan.

    The first generation of a plan compiles and is not timed. Without reuse, stock ``torch.compile``
    runs.

    Args:
        generate: a pipeline of diffusers, or a function ``generate(prompt, num_steps)`` that runs
            one generation and returns its result. Each prompt must have the same noise every time.
        prompts: what it is called with.
        plans: what ``Handle.set`` takes: levels, presets, plan files, results of ``tune``.
        model: the pipeline or module that the function uses. It is compiled meanwhile, and as
            before at the end. None if ``generate`` is the pipeline.
        num_steps: of a generation.
        frames: what pages show of a result: frames, or the path of a video.
        options: further options of the backend.
        measures: name -> a function ``measure(video, reference)`` that returns a number. It gets
            what ``frames`` gives, or else the results.
        tell: is called with what is done now.

    Raises:
        OptionError: a plan or an option is none, or there is nothing to compare.
    """
    if is_pipeline(generate) and model is None:
        model, generate = generate, calling(generate)
    if model is None or not callable(generate):
        raise OptionError(
            "compare needs what denoises: compare(pipe, prompts, plans), or compare(generate, "
            "prompts, plans, model=...) with the pipeline or module that generate uses."
        )
    if not prompts or not plans or isinstance(prompts, str) or isinstance(plans, str):
        raise OptionError("compare needs a list of at least one prompt, and one of plans.")
    known = checked_measures(measures)
    handle = enable(model, **(options or {}))
    try:
        with torch.no_grad():
            return _measured(handle, generate, prompts, plans, num_steps, frames, known, tell)
    finally:
        handle.disable()


def calling(pipe: Any) -> Callable[[Any, int], Any]:
    """A function that runs one generation of a pipeline of diffusers, with the same noise."""

    def generate(prompt: Any, num_steps: int) -> Any:
        known = inspect.signature(pipe.__call__).parameters
        noise = torch.Generator().manual_seed(0)
        wanted = {"num_inference_steps": num_steps, "generator": noise, "output_type": "latent"}
        result = pipe(prompt, **{name: value for name, value in wanted.items() if name in known})
        return result[0] if isinstance(result, tuple) else next(iter(result.values()))

    return generate


def _measured(
    handle: Handle,
    generate: Callable[[Any, int], Any],
    prompts: Sequence[Any],
    plans: Sequence[Any],
    num_steps: int,
    frames: Callable[[Any], Any] | None,
    measures: Mapping[str, Measure],
    tell: Callable[[str], None],
) -> Comparison:
    for plan in plans:
        handle.set(plan)  # a wrong one is an error before anything runs

    def run() -> tuple[list[Any], float]:
        generate(prompts[0], num_steps)
        runs = [timed(lambda p=prompt: generate(p, num_steps)) for prompt in prompts]
        return [result for result, _ in runs], statistics.median(seconds for _, seconds in runs)

    with handle.disabled(exact=True):
        tell(WITHOUT)
        references, without = run()
    shown = [None if frames is None else frames(one) for one in references]
    lpips, why = lpips_for(shown[0])
    measures = dict(measures) if lpips is None else {LPIPS: lpips, **measures}
    films, rows = {WITHOUT: shown[0]}, []
    for plan in plans:
        handle.set(plan)
        tell(f"plan {handle.plan}")
        results, seconds = run()
        stats = list(handle.stats().values())
        score, similar = _score(results, references, frames)
        videos = [None if frames is None else frames(one) for one in results]
        pairs = list(zip(_or(videos, results), _or(shown, references), strict=True))
        rows.append(
            Compared(
                plan=handle.plan,
                seconds=seconds,
                speed=without / seconds,
                psnr=None if score is None else score.mean,
                psnr_half_width=score.half_width if score and len(results) > 1 else None,
                ssim=similar,
                reused=statistics.fmean(one.reused_share for one in stats),
                cache_bytes=sum(one.peak_cache_bytes for one in stats),
                options=dict(stats[0].options),
                measures=scores(measures, pairs),
            )
        )
        films[handle.plan] = videos[0]
    films = {name: video for name, video in films.items() if video is not None}
    notes = (why,) if why else ()
    return Comparison(tuple(rows), without, len(prompts), num_steps, films, notes)


def _or(videos: Sequence[Any], results: Sequence[Any]) -> list[Any]:
    """What measures get: videos, or else the results."""
    pairs = zip(videos, results, strict=True)
    return [result if video is None else video for video, result in pairs]


def _score(
    results: Sequence[Any], references: Sequence[Any], frames: Callable[[Any], Any] | None
) -> tuple[Score | None, float | None]:
    """PSNR and SSIM, as far as the results are tensors, and pictures."""
    if not all(isinstance(one, torch.Tensor) for one in (*results, *references)):
        return None, None
    pairs = list(zip(results, references, strict=True))
    similar = [value for a, b in pairs if (value := ssim_of_shown(frames, a, b)) is not None]
    score = Score.of([psnr(a.float(), b.float()) for a, b in pairs])
    return score, statistics.fmean(similar) if similar else None
