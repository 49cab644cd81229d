"""Misuse, and the text that users see. ``tests/goldens/messages.txt`` holds all texts.

An entry of ``SITUATIONS`` does something wrong. What it raises must be an error of this library
(or of torch, where torch refuses it before this library is asked). Its text must say what was
found, why that is a problem and what to do, so read the diff of the golden after a change.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, LattePipeline
from transformers import CLIPTextConfig, CLIPTextModel, GPT2Config, GPT2LMHeadModel

import pab_compile
from helpers.captured import SmallDiT
from helpers.golden import check_golden
from helpers.latte import tiny_latte
from pab_compile import PabError

SITUATIONS: dict[str, Callable[[], object]] = {}
TOKENS = torch.arange(5)[None]
EAGER = {"inner": "eager"}


def situation(name: str) -> Callable[[Callable[[], object]], Callable[[], object]]:
    def add(run: Callable[[], object]) -> Callable[[], object]:
        SITUATIONS[name] = run
        return run

    return add


def text_encoder() -> torch.nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    return CLIPTextModel(CLIPTextConfig(vocab_size=50, num_attention_heads=2, **sizes)).eval()


def language_model() -> torch.nn.Module:
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2)).eval()


def autoencoder() -> torch.nn.Module:
    down, up = ("DownEncoderBlock2D",), ("UpDecoderBlock2D",)
    return AutoencoderKL(3, 3, down, up, block_out_channels=(8,), norm_num_groups=4).eval()


def pipeline(**parts: Any) -> Any:
    usual = {"tokenizer": None, "text_encoder": None, "vae": None, "scheduler": DDIMScheduler()}
    return LattePipeline(**{**usual, "transformer": tiny_latte(1), **parts})


class Double(torch.nn.Module):
    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return latents * 2


class Pipeline:
    """A pipeline of one's own."""

    def __init__(self, **parts: Any) -> None:
        vars(self).update(parts)

    def encode(self, tokens: torch.Tensor) -> Any:
        return self.text_encoder(input_ids=tokens)  # type: ignore[attr-defined]

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        for timestep in torch.linspace(1, 0.1, 4):
            latents = self.transformer(latents, timestep.expand(2), torch.randn(2, 7, 4))  # type: ignore[attr-defined]
        return latents


def compiled(target: Any, options: Any = EAGER, **more: Any) -> Any:
    return torch.compile(target, backend="pab", options=options, **more)


def call(options: Any) -> object:
    """The first call of a model that is compiled with options."""
    return compiled(Double(), options)(torch.randn(2, 4, 3, 2, 5))


# What does not denoise is compiled.


@situation("a text encoder is compiled")
def _() -> object:
    return compiled(text_encoder())(input_ids=TOKENS)


@situation("the text encoder of a pipeline is compiled")
def _() -> object:
    pipe = Pipeline(text_encoder=text_encoder(), transformer=SmallDiT(1))
    pipe.text_encoder.compile(backend="pab", options=EAGER)  # type: ignore[attr-defined]
    return pipe.encode(TOKENS)


@situation("a language model is compiled")
def _() -> object:
    return compiled(language_model())(input_ids=TOKENS)


@situation("a language model generates")
def _() -> object:
    model: Any = language_model()
    model.compile(backend="pab", options=EAGER)
    return model.generate(TOKENS, max_new_tokens=2)


@situation("a method of an autoencoder is compiled")
def _() -> object:
    return compiled(autoencoder().decode)(torch.randn(1, 4, 4, 4))


@situation("a pipeline is compiled")
def _() -> object:
    pipe = Pipeline(transformer=SmallDiT(1).requires_grad_(False))
    return compiled(pipe)(torch.randn(2, 4, 3, 2, 5))


# enable, stats, explain, observe, precompile.

SITUATIONS |= {
    "enable: a text encoder": lambda: pab_compile.enable(text_encoder()),
    "enable: an autoencoder": lambda: pab_compile.enable(autoencoder()),
    "enable: the name of a model": lambda: pab_compile.enable("owner/model"),
    "enable: a class": lambda: pab_compile.enable(LattePipeline),
    "enable: a list": lambda: pab_compile.enable([SmallDiT(1)]),
    "enable: nothing": lambda: pab_compile.enable(None),
    "enable: a pipeline without a denoiser": lambda: pab_compile.enable(
        SimpleNamespace(vae=autoencoder())
    ),
    "enable: what is compiled already": lambda: pab_compile.enable(compiled(SmallDiT(1))),
    "enable: a misspelt level": lambda: pab_compile.enable(SmallDiT(1), "fasst"),
    "enable: a level and ranges": lambda: pab_compile.enable(
        SmallDiT(1), "fast", ranges={"spatial": 2}
    ),
    "enable: a preset as options": lambda: pab_compile.enable(SmallDiT(1), options="latte"),
    "stats: a pipeline of which nothing is compiled": lambda: pab_compile.stats(pipeline()),
    "stats: a text encoder": lambda: pab_compile.stats(text_encoder()),
    "stats: a handle": lambda: pab_compile.stats(pab_compile.enable(SmallDiT(1))),
    "stats: a name": lambda: pab_compile.stats("transformer"),
    "stats: a model that is not compiled": lambda: pab_compile.stats(SmallDiT(1)),
    "stats: a model that has not run": lambda: pab_compile.stats(compiled(SmallDiT(1))),
    "explain: nothing": lambda: pab_compile.explain(None),
    "explain: a pipeline of which nothing is compiled": lambda: pab_compile.explain(pipeline()),
    "explain: a pipeline with two denoisers": lambda: pab_compile.explain(
        Pipeline(transformer=SmallDiT(1), transformer_2=SmallDiT(1)), torch.randn(2, 4, 3, 2, 5)
    ),
    "observe: a pipeline": lambda: pab_compile.observe(pipeline()),
    "observe: a result": lambda: pab_compile.observe(None),  # type: ignore[arg-type]
    "observe: nothing ran": lambda: pab_compile.observe(lambda: None),
    "precompile: a pipeline": lambda: pab_compile.precompile(pipeline(), [{}]),
}


@situation("stats: a pipeline that has not run")
def _() -> object:
    pipe = pipeline()
    pab_compile.enable(pipe)
    return pab_compile.stats(pipe)


@situation("enable: twice")
def _() -> object:
    model = SmallDiT(1)
    pab_compile.enable(model)
    return pab_compile.enable(model)


@situation("a handle gets a plan that does not exist")
def _() -> object:
    return pab_compile.enable(SmallDiT(1)).set("linear33")


# Options and the control of steps.

OPTIONS: dict[str, Any] = {
    "a preset as options": "latte",
    "a level as options": "fast",
    "a word as options": "best",
    "a file that is not there": "plans/best.json",
    "JSON that is malformed": "{'ranges': 2}",
    "options in a list": ["ranges", "latte"],
    "a misspelt option": {"rangs": "latte"},
    "a kind as an option": {"spatial": 2},
    "a level among the options": {"level": "fast"},
    "an argument of torch.compile among the options": {"dynamic": True},
    "a level as ranges": {"ranges": "fast"},
    "a number as ranges": {"ranges": 2},
    "a fraction as a range": {"ranges": {"spatial": 0.5}},
    "a range of the output, with parts cached": {"ranges": {"output": 2}},
    "the cut output, without its range": {"cut": "output"},
    "percent as a window": {"window": (15.0, 85.0)},
    "a plan and ranges": {"plan": "plan.json", "ranges": "latte"},
    "a plan file that is not there": {"plan": "plan.json"},
    "a preset as a plan": {"plan": "linear3"},
    "a level as a plan": {"plan": "balanced"},
    "a misspelt inner compiler": {"inner": "inductr"},
    "long words as axes": {"axes": {"latents": "batch channels frames height width"}},
    "axes without spaces": {"axes": {"latents": "bcthw"}},
    "axes of an input that is not there": {"axes": {"latent": "b c t h w"}},
    "too few axes": {"axes": {"latents": "b c h w"}},
    "a misspelt role": {"axes": {"timestep": "Steps"}},
    "a word of one's own": {"axes": {"latents": "promt"}},
    "a role among axes": {"axes": {"latents": "b c step h w"}},
    "axes as a text": {"axes": "b c t h w"},
    "an amount without a unit": {"cache_budget": "8 big"},
    "a dtype that is none": {"cache_dtype": "fp8"},
    "ranks without processes": {"sequence_parallel": 2},
    "ranks that would choose, without processes": {"shard": "auto"},
}
SITUATIONS |= {
    f"options: {name}": (lambda options=options: call(options)) for name, options in OPTIONS.items()
}
SITUATIONS |= {
    "mode and options": lambda: compiled(SmallDiT(1), mode="max-autotune"),
    "generation: a number of steps": lambda: pab_compile.generation(50).__enter__(),  # type: ignore[arg-type]
    "generation: a text": lambda: pab_compile.generation("50, 40").__enter__(),  # type: ignore[arg-type]
    "generation: no steps": lambda: pab_compile.generation([]).__enter__(),
    "step: the timestep": lambda: pab_compile.step(981.0, 50).__enter__(),  # type: ignore[arg-type]
    "step: behind the last": lambda: pab_compile.step(50, 50).__enter__(),
    "tune: one prompt": lambda: pab_compile.tune(
        lambda *_: torch.zeros(1), ["a cat"], model=SmallDiT(1), num_steps=8, computed=4
    ),
}


def said(run: Callable[[], object]) -> str:
    """The error of a situation."""
    torch._dynamo.reset()
    try:
        with torch.no_grad():
            run()
    except (PabError, RuntimeError) as error:
        assert isinstance(error, PabError) or "mode or options" in str(error)
        return f"{type(error).__name__}: {error}"
    raise AssertionError("nothing was said")


def test_what_users_are_told() -> None:
    assert len(SITUATIONS) >= 60
    lines = [f"{name}\n  {said(run)}\n" for name, run in SITUATIONS.items()]
    check_golden("messages", "".join(lines))
