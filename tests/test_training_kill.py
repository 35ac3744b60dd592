"""A fit that is killed in the middle and restarted ends with the same parameters, bit for bit."""

import pickle
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import chordflow as cf

SCRIPT = """
import os, pickle, sys
import jax
jax.config.update("jax_enable_x64", True)
import chordflow as cf

equation = cf.physics.heat_1d(num=6, num_test=5)
params = cf.physics.small_normal(jax.random.key(1), (2, 6, 1))

def keep(state):
    with open(sys.argv[1] + ".part", "wb") as file:
        pickle.dump(state, file)
    os.replace(sys.argv[1] + ".part", sys.argv[1])

cf.fit(equation.problem, params, max_steps=100000, callback=keep)
"""


@pytest.mark.slow
def test_a_killed_fit_goes_on_from_its_last_state(tmp_path):
    saved = tmp_path / "state.pickle"
    with subprocess.Popen([sys.executable, "-c", SCRIPT, str(saved)]) as process:
        deadline = time.monotonic() + 300
        while not (saved.exists() and int(pickle.loads(saved.read_bytes()).num_steps) >= 3):
            assert process.poll() is None, "the fit ended by itself"
            assert time.monotonic() < deadline, "no third step within five minutes"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    state = pickle.loads(saved.read_bytes())
    reached = int(state.num_steps)
    equation = cf.physics.heat_1d(num=6, num_test=5)
    params = cf.physics.small_normal(jax.random.key(1), (2, 6, 1))
    whole = cf.fit(equation.problem, params, max_steps=reached + 3)
    rest = cf.fit(equation.problem, params, max_steps=reached + 3, state=state)
    assert np.array_equal(rest.state.theta, whole.state.theta)
    assert float(rest.cost) == float(whole.cost)
