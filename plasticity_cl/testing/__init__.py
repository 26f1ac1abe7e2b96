"""Checks of parts, ours and yours: what every part promises, so that runs with it can be trusted and repeated.

A part is named as everywhere, by its name in a catalogue or by its dotted path, with options or without; or it is given
as the class or function that makes it. Each check raises an ``AssertionError`` whose one line names the first promise
that is broken, and says by how much; it returns nothing. In a test of your own::

    from plasticity_cl.testing import check_intervention


    def test_my_plugin_keeps_its_promises():
        check_intervention("my_package.module.MyPlugin:strength=3")
        check_intervention(lambda seed: MyPlugin(strength=3.0, seed=seed), off=lambda: MyPlugin(strength=0.0))

A function is called with those of the arguments that it has which a run fills in: ``seed`` for an intervention,
``input_shape``, ``n_outputs`` and ``seed`` for a network, ``params`` for an optimizer, ``source`` and ``seed`` for a
scenario, ``data_root`` and ``download`` for a source, ``n_workers`` for an executor.

All is small, on the bundled digits and on the CPU: a check takes a second or two. The caller's random generators stay
as they were.
"""

from plasticity_cl.testing.executors import check_executor
from plasticity_cl.testing.interventions import check_intervention
from plasticity_cl.testing.metrics import check_metric
from plasticity_cl.testing.networks import check_model, check_optimizer
from plasticity_cl.testing.streams import check_scenario, check_source

__all__ = [
    "check_executor",
    "check_intervention",
    "check_metric",
    "check_model",
    "check_optimizer",
    "check_scenario",
    "check_source",
]
