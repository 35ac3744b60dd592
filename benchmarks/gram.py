"""What does a Gram matrix cost, against a dense Jacobian, against per-leaf contraction, and against its own plan?

    OPENBLAS_NUM_THREADS=1 python benchmarks/gram.py [--smoke] [--float32] [--only SECTION ...] [--out FILE.json]

Times are seconds after compilation; competitors run interleaved with the engine, and both medians and minima are
recorded. The rate counts 2N²(d_in + Q²d_out) operations for each layer, without what symmetry saves, and is
compared with a plain product of two (NQ, NQ) matrices in the same run.
"""

import argparse
import functools
import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from environment import describe
from gram_models import cnn, cnn_params, dense_layers, mlp, normal, rnn, rnn_params, zoo

import chordflow as cf
from chordflow.kernel.trace import find_uses

ROOT = Path(__file__).resolve().parents[1]
KINDS = {"full": cf.gram, "trace": cf.gram_trace}
MANY_TILES = 100
"""Unrolling more to count their operations takes minutes of compilation."""

# --- competitors ----------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=0)
def dense_gram(fn, params, inputs):
    """vmap(jacrev), then JJᵀ."""
    jac = jax.vmap(lambda x: jax.jacrev(lambda params: fn(params, x))(params))(inputs)
    leaves = jax.tree.leaves(jac)
    D = jnp.concatenate([leaf.reshape(leaf.shape[0] * leaf.shape[1], -1) for leaf in leaves], axis=1)
    return D @ D.T


@functools.partial(jax.jit, static_argnums=0)
def per_leaf_gram(fn, params, inputs):
    """vmap(jacrev), then each leaf's part times its transpose, added up."""
    jac = jax.vmap(lambda x: jax.jacrev(lambda params: fn(params, x))(params))(inputs)
    parts = [leaf.reshape(leaf.shape[0] * leaf.shape[1], -1) for leaf in jax.tree.leaves(jac)]
    return functools.reduce(jnp.add, [part @ part.T for part in parts])


def netket_kernel(fn):
    """netket's kernel routine, where it is installed."""
    from netket.jax._ntk import empirical_ntk_by_jacobian  # pyright: ignore[reportMissingImports]

    def apply(params, inputs):
        return jax.vmap(lambda x: fn(params, x))(inputs)

    kernel = empirical_ntk_by_jacobian(apply, trace_axes=(), vmap_axes=0)
    return jax.jit(lambda params, inputs: kernel(inputs, None, params))


# --- measuring ------------------------------------------------------------------------------------------------


def seconds(runs, repeats):
    """Interleaved times of several thunks: {name: {first_call, median, min}}; short ones in a row, up to 50 ms."""

    def once(run, calls=1):
        start = time.perf_counter()
        for _ in range(calls):
            jax.block_until_ready(run())
        return (time.perf_counter() - start) / calls

    times = {name: [] for name in runs}
    first = {name: once(run) for name, run in runs.items()}
    calls = {name: min(50, 1 + int(0.05 / once(run))) if first[name] < 10 else 1 for name, run in runs.items()}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(once(run, calls[name]))
    return {
        name: {"first_call": first[name], "median": statistics.median(t), "min": min(t)} for name, t in times.items()
    }


def speed(sizes, num, repeats):
    """An MLP against dense and per-leaf Jacobians, and against the rate of a plain matrix product."""
    params, x = dense_layers(*sizes), normal(num, sizes[0], seed=9) * np.sqrt(num)
    n = num * sizes[-1]
    A = normal(n, n)
    product = jax.jit(lambda A: A @ A)
    own = seconds({"gram": lambda: cf.gram(mlp, params, x), "product": lambda: product(A)}, repeats)
    calls = {"gram": cf.gram, "dense": dense_gram, "per_leaf": per_leaf_gram}
    beside = seconds({k: lambda f=f: f(mlp, params, x) for k, f in calls.items()}, 1)  # rivals take minutes
    G = np.asarray(cf.gram(mlp, params, x)).reshape(n, n)
    expected = np.asarray(dense_gram(mlp, params, x))
    work = sum(2 * num**2 * (a + sizes[-1] ** 2 * b) for a, b in itertools.pairwise(sizes))
    rate, product_rate = work / own["gram"]["median"], 2 * n**3 / own["product"]["median"]
    return {
        "sizes": sizes,
        "num_samples": num,
        "seconds": own,
        "seconds_beside_rivals": beside,
        "times_faster_than_dense": beside["dense"]["min"] / own["gram"]["median"],
        "times_faster_than_per_leaf": beside["per_leaf"]["min"] / own["gram"]["median"],
        "gigaflops": rate / 1e9,
        "gigaflops_of_a_matrix_product": product_rate / 1e9,
        "fraction_of_a_matrix_product": rate / product_rate,
        "largest_relative_difference": float(np.max(np.abs(G - expected)) / np.max(np.abs(expected))),
    }


def against_rivals(name, fn, params, x, *, repeats):
    """Any model against both Jacobians."""
    compiled = jax.jit(functools.partial(cf.gram, fn))  # as its rivals are; a bare call adds 0.3 ms of checks
    runs = {
        "gram": lambda: compiled(params, x),
        "gram_called_bare": lambda: cf.gram(fn, params, x),
        "dense": lambda: dense_gram(fn, params, x),
        "per_leaf": lambda: per_leaf_gram(fn, params, x),
    }
    times = seconds(runs, repeats)
    best = min(times["dense"]["median"], times["per_leaf"]["median"])
    difference = np.asarray(compiled(params, x)).reshape(dense_gram(fn, params, x).shape) - dense_gram(fn, params, x)
    return {
        "model": name,
        "num_samples": len(x),
        "seconds": times,
        "relative_to_the_better": times["gram"]["median"] / best,
        "largest_relative_difference": float(np.max(np.abs(difference)) / np.max(np.abs(dense_gram(fn, params, x)))),
        "rules": cf.gram_plan(fn, params, x).rules,
    }


def against_netket(sizes, num):
    """An MLP against netket's routine, whose import sets a mesh for all that follows."""
    params, x = dense_layers(*sizes), normal(num, sizes[0])
    kernel = netket_kernel(mlp)
    times = seconds({"gram": lambda: cf.gram(mlp, params, x), "netket": lambda: kernel(params, x)}, 2)
    G = np.asarray(cf.gram(mlp, params, x))
    other = np.einsum("nmqr->nqmr", np.asarray(kernel(params, x)).reshape(num, num, sizes[-1], sizes[-1]))
    return {
        "sizes": sizes,
        "num_samples": num,
        "seconds": times,
        "times_faster_than_netket": times["netket"]["median"] / times["gram"]["median"],
        "largest_relative_difference": float(np.max(np.abs(G - other)) / np.max(np.abs(G))),
    }


def planned(name, fn, params, x, kind):
    """The plan against the compiler's own analysis, and memory against what has to be there."""
    run, plan = functools.partial(KINDS[kind], fn), cf.gram_plan(fn, params, x, kind=kind)
    start = time.perf_counter()
    program = jax.jit(run).lower(params, x).compile()
    compile_seconds = time.perf_counter() - start
    memory = program.memory_analysis()
    assert memory is not None
    arguments = memory.argument_size_in_bytes
    peak = arguments + memory.output_size_in_bytes + memory.temp_size_in_bytes
    inputs, cotangents, columns = seen(fn, params, x)
    per_side = -(-len(x) // plan.step)
    few = per_side * (per_side + 1) // 2 <= MANY_TILES
    flops = unrolled_flops(run, params, x) if few else None
    return {
        "model": name,
        "kind": kind,
        "num_samples": len(x),
        "compile_seconds": compile_seconds,
        "plan": {"flops": plan.flops, "peak_bytes": plan.peak_bytes, "step": plan.step, "blocked": plan.blocked},
        "compiler": {"flops": flops, "peak_bytes": peak},
        "bytes": {
            "arguments": arguments,
            "result": plan.result_bytes,
            "layer_inputs": inputs,
            "cotangents": cotangents,
            "columns": columns,
        },
        "flops_of_plan_over_compiler": plan.flops / flops if flops else None,
        "peak_of_plan_over_compiler": plan.peak_bytes / peak,
        # What is there anyway, parameters and samples, left out.
        "peak_over_result_inputs_cotangents": (peak - arguments) / (plan.result_bytes + inputs + cotangents),
        "peak_over_the_same_and_columns": (peak - arguments) / (plan.result_bytes + inputs + cotangents + columns),
    }


def plan_cases(big, smoke):
    """(name, function, parameters, samples, kind) of the deep MLPs and of the other models."""
    mlps = [*big, ((784, 256, 256, 10), 20 if smoke else 600)]
    cases = [(sizes, num, kind) for sizes, num in mlps for kind in KINDS]
    cases += [] if smoke else [((784, 256, 256, 10), 3000, "trace")]
    named = [("-".join(map(str, s)), mlp, dense_layers(*s), normal(num, s[0]), kind) for s, num, kind in cases]
    return named + [(*case, "full") for case in zoo(smoke)]


def seen(fn, params, x):
    """Bytes of all layers' inputs and cotangents, and of D for leaves that are contracted by columns."""
    leaves, tree = jax.tree.flatten(params)
    sample = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
    traced = find_uses(lambda leaves, sample: fn(jax.tree.unflatten(tree, leaves), sample), leaves, sample)
    taps = [jnp.zeros(s.shape, s.dtype) for s in traced.structs]
    _, records = jax.eval_shape(lambda leaves, sample: traced.run(leaves, sample, taps), leaves, sample)
    q, size = traced.out.shape[0], traced.out.dtype.itemsize
    inputs = sum(r.size * r.dtype.itemsize for r in records if r is not None)
    plans = cf.gram_plan(fn, params, x).leaves
    by_columns = sum(leaf.size for leaf, plan in zip(leaves, plans, strict=True) if "pairs" not in plan.rule)
    cotangents = q * sum(s.size * s.dtype.itemsize for s in traced.structs)
    return len(x) * inputs, len(x) * cotangents, len(x) * q * by_columns * size


def unrolled_flops(run, params, x):
    """The compiler's count of operations; it takes the body of a loop once, so that loops are unrolled."""
    scan = jax.lax.scan
    jax.lax.scan = lambda *args, **options: scan(*args, **{**options, "unroll": True})
    jax.clear_caches()
    try:
        cost = jax.jit(run).lower(params, x).compile().cost_analysis()
    finally:
        jax.lax.scan = scan
        jax.clear_caches()
    return (cost or {}).get("flops")


def crossover(smoke, repeats):
    """Engine over per-leaf contraction as positions grow: convolutions by image side, scans by length."""
    sides, lengths = ((4,), (2,)) if smoke else ((4, 8, 16, 24), (2, 8, 32, 128))
    rows = [("convolution", side, cnn, cnn_params(side, 8), normal(20, side, side, 1)) for side in sides]
    rows += [("scan", length, rnn, rnn_params(48), normal(40, length, 4)) for length in lengths]
    out = []
    for kind, size, fn, params, x in rows:
        runs = {"gram": jax.jit(functools.partial(cf.gram, fn)), "per_leaf": functools.partial(per_leaf_gram, fn)}
        times = seconds({name: functools.partial(run, params, x) for name, run in runs.items()}, repeats)
        out.append({"kind": kind, "size": size, "seconds": times, "rules": cf.gram_plan(fn, params, x).rules})
    return out


def curves(smoke, repeats):
    """Time and memory against width and number of samples, for the plot."""
    widths = [16, 32] if smoke else [32, 64, 128, 256, 512]
    nums = [16, 32] if smoke else [125, 250, 500, 1000, 2000]
    places = [("width", width, nums[1]) for width in widths] + [("samples", widths[-3:][0], num) for num in nums]
    rows = []
    for axis, width, num in places:
        params, x = dense_layers(10, width, width, width, 1), normal(num, 10)
        calls = {"gram": cf.gram, "dense": dense_gram, "per_leaf": per_leaf_gram}
        runs = {name: functools.partial(call, mlp) for name, call in calls.items()}
        times = seconds({name: functools.partial(run, params, x) for name, run in runs.items()}, repeats)
        peaks = {name: peak_bytes(run, params, x) for name, run in runs.items()}
        rows.append({"axis": axis, "width": width, "num_samples": num, "seconds": times, "peak_bytes": peaks})
    return rows


def peak_bytes(run, params, x):
    """Arguments, result and temporaries of the compiled program."""
    memory = jax.jit(run).lower(params, x).compile().memory_analysis()
    assert memory is not None
    return memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes


def peak_memory(kind, num):
    """Peak resident memory of a fresh process that computes one large matrix."""
    code = (
        "import resource, sys, jax; jax.config.update('jax_enable_x64', True); sys.path.insert(0, 'benchmarks'); "
        "import gram as g, chordflow as cf, time; "
        f"p, x = g.dense_layers(784, 256, 256, 10), g.normal({num}, 784); "
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; start = time.perf_counter(); "
        f"jax.block_until_ready(cf.{kind}(g.mlp, p, x)); "
        "print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter() - start)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    before, after, elapsed = (float(v) for v in done.stdout.split())
    return {
        "call": kind,
        "num_samples": num,
        "peak_gib": after / 2**20,
        "gib_before": before / 2**20,
        "seconds_with_compilation": elapsed,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--out", type=Path, help="where the JSON record goes (default: standard output)")
    parser.add_argument("--only", nargs="+", metavar="SECTION", help="measure some sections again, as zoo or netket")
    parser.add_argument("--float32", action="store_true", help="single precision throughout")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", not args.float32)
    repeats = 2 if args.smoke else 7
    big = [((10, 256, 256, 256, 256, 1), 1000), ((64, 256, 256, 256, 10), 300)]
    large = [("gram_trace", 3000), ("gram", 600)]
    if args.smoke:
        big, large = [((10, 16, 1), 20), ((8, 16, 4), 10)], [("gram", 10)]
    dtype = "float32" if args.float32 else "float64"
    result: dict[str, Any] = {"environment": describe() | {"dtype": dtype}, "load_at_start": {}}
    if args.only and args.out and args.out.exists():
        result = json.loads(args.out.read_text(encoding="utf-8")) | {"environment": result["environment"]}
    sections = {
        "memory": lambda: [peak_memory(kind, num) for kind, num in large],
        "speed": lambda: [speed(sizes, num, repeats) for sizes, num in big],
        "zoo": lambda: [against_rivals(*case, repeats=repeats) for case in zoo(args.smoke)],
        "plan": lambda: [planned(*case) for case in plan_cases(big, args.smoke)],
        "crossover": lambda: crossover(args.smoke, min(repeats, 5)),
        "curves": lambda: curves(args.smoke, min(repeats, 5)),
    }
    if importlib.util.find_spec("netket"):
        sections["netket"] = lambda: [against_netket(*big[0])]
    if unknown := set(args.only or ()) - set(sections):
        parser.error(f"--only {' '.join(unknown)}: expected some of {', '.join(sections)}")
    for name in args.only or sections:
        result["load_at_start"][name] = round(os.getloadavg()[0], 1)
        result[name] = sections[name]()
        if args.out:  # after each section, so that a long run is not lost
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if not args.out:
        print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
