"""What gram_plan says before anything runs, against the compiler's own analysis: operations, memory, compile time."""

import functools
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import dense_layers, mlp, normal

import chordflow as cf

KINDS = {"full": cf.gram, "trace": cf.gram_trace, "blocks": cf.gram_blocks}


def convolutions(params, x):
    layout = ("NHWC", "HWIO", "NHWC")
    for kernel in params["kernels"]:
        x = jnp.tanh(jax.lax.conv_general_dilated(x[None], kernel, (2, 2), "SAME", dimension_numbers=layout)[0])
    return x.reshape(-1) @ params["head"]


def recurrent(params, xs):
    def step(h, x):
        return jnp.tanh(params["w"] @ h + params["u"] @ x), None

    return jax.lax.scan(step, jnp.zeros(48), xs)[0][:2]


def tokens(params, ids):
    x = params["words"][ids]
    for layer in params["layers"]:
        x = x + jnp.tanh(x @ layer["up"]) @ layer["down"]
    return (x[-1] @ params["words"].T)[:4]


# Sizes at which the parts that count are the layers' own, not the few bytes around them.
MODELS = {
    "narrow": (mlp, dense_layers(10, 128, 128, 128, 1), normal(600, 10)),
    "wide outputs": (mlp, dense_layers(64, 128, 128, 128, 6), normal(250, 64)),
    "convolutions": (
        convolutions,
        {"kernels": [normal(3, 3, 1, 8), normal(3, 3, 8, 16)], "head": normal(144, 6)},
        normal(60, 12, 12, 1),
    ),
    "scan": (recurrent, {"w": normal(48, 48), "u": normal(48, 4)}, normal(100, 12, 4)),
    "tokens": (
        tokens,
        {"words": normal(40, 24), "layers": [{"up": normal(24, 48), "down": normal(48, 24)}] * 2},
        jnp.asarray(np.random.default_rng(0).integers(0, 40, (40, 8))),
    ),
}
PAIRS = ("narrow", "wide outputs")


def compiled(call, fn, params, x):
    return jax.jit(functools.partial(call, fn)).lower(params, x).compile()


def peak_bytes(call, fn, params, x):
    memory = compiled(call, fn, params, x).memory_analysis()
    assert memory is not None
    return memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes


# XLA does not count what it computes inside one call of a library, as all of `blocks` can be.
@pytest.mark.parametrize("kind", ["full", "trace"])
@pytest.mark.parametrize("name", MODELS)
def test_peak_memory_is_within_a_quarter_of_the_compilers(name, kind):
    fn, params, x = MODELS[name]
    plan = cf.gram_plan(fn, params, x, kind=kind)
    assert plan.peak_bytes == pytest.approx(peak_bytes(KINDS[kind], fn, params, x), rel=0.25)


@pytest.mark.parametrize("kind", ["full", "trace"])
@pytest.mark.parametrize("name", PAIRS)
def test_peak_memory_is_hardly_more_than_the_result_and_what_layers_see(name, kind):
    fn, params, x = MODELS[name]
    sizes = [layer["w"].shape for layer in params]
    outputs = sizes[-1][1]
    floats = sum(d_in + outputs * d_out for d_in, d_out in sizes)  # one input and Q cotangents of each layer
    result = len(x) ** 2 * (outputs**2 if kind == "full" else 1)
    here = jax.tree.leaves((params, x))  # what the caller holds anyway
    assert peak_bytes(KINDS[kind], fn, params, x) <= sum(v.nbytes for v in here) + 1.5 * 8 * (result + len(x) * floats)


@pytest.mark.parametrize(
    ("name", "kind"), [*itertools.product(MODELS, ["full", "trace"]), *((n, "blocks") for n in PAIRS)]
)
def test_operations_are_within_a_quarter_of_the_compilers(name, kind, monkeypatch):
    fn, params, x = MODELS[name]
    x = x[:20]
    monkeypatch.setattr("chordflow.kernel.budget.TILE", 64)
    jax.clear_caches()
    planned = cf.gram_plan(fn, params, x, kind=kind).flops
    # A compiler's count takes the body of a loop once: unrolled, all of them are there.
    scan = jax.lax.scan
    monkeypatch.setattr(jax.lax, "scan", lambda *args, **options: scan(*args, **{**options, "unroll": True}))
    cost = compiled(KINDS[kind], fn, params, x).cost_analysis()
    assert cost is not None
    assert planned == pytest.approx(cost["flops"], rel=0.25)


def test_deep_networks_compile_within_seconds():
    params, x = dense_layers(10, 256, 256, 256, 256, 1), normal(1000, 10)
    start = time.process_time()  # a busy machine lengthens the day, not the work
    compiled(cf.gram, mlp, params, x)
    assert time.process_time() - start < 5
