"""The grammar of parts: whatever can be said reads back as the same, and whatever cannot is answered in one line."""

import subprocess
import sys
import typing
from typing import Annotated, Literal, Union, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plasticity_cl.errors import UserError
from plasticity_cl.metrics.catalogue import METRICS, read_diagnostics, write_diagnostics
from plasticity_cl.models.catalogue import MODELS
from plasticity_cl.parts import Catalogue, grammar, values
from plasticity_cl.parts.signature import REQUIRED
from plasticity_cl.scenarios.catalogue import SCENARIOS, SOURCES, check_source
from plasticity_cl.strategies.catalogue import COMPONENTS, normalise, read_strategy
from plasticity_cl.training.catalogue import OPTIMIZERS

CATALOGUES = {"scenario": SCENARIOS, "source": SOURCES, "network": MODELS, "optimizer": OPTIMIZERS}
CATALOGUES |= {"strategy": COMPONENTS, "diagnostic": METRICS}
NAMES = [(catalogue, name) for catalogue in CATALOGUES.values() for name in catalogue]
LETTERS = st.from_regex(r"[a-z]{1,8}(\.[a-z]{2})?", fullmatch=True).filter(lambda word: word not in ("none", "nan"))
WORDS = st.text("abcXYZ019 ._-/%,+@=:", min_size=1).map(str.strip).filter(bool)


def of_type(of):
    """Values that an option of a type can have."""
    if of in (values.File, values.Folder):
        return st.just(__file__ if of is values.File else "/")
    if of is values.Range:
        low = st.floats(-1e9, 1e9)
        return st.tuples(low, st.floats(1e-3, 1e9)).map(lambda ends: (ends[0], ends[0] + ends[1]))
    if get_origin(of) is Annotated:
        base, limit = get_args(of)
        return of_type(base).map(abs).filter(limit.holds)
    if get_origin(of) in (Union, typing.Union):
        return st.one_of([of_type(option) for option in get_args(of)])
    if get_origin(of) is Literal:
        return st.sampled_from(get_args(of))
    if get_origin(of) is tuple:
        inner = [item for item in get_args(of) if item is not ...]
        if ... in get_args(of):
            return st.lists(of_type(inner[0]), min_size=2, max_size=4).map(tuple)
        return st.tuples(*map(of_type, inner))
    return {
        int: st.integers(-(10**20), 10**20),
        float: st.floats(allow_nan=False, allow_infinity=False).map(lambda value: value + 0.0),
        bool: st.booleans(),
        type(None): st.none(),
    }.get(
        of, st.from_regex(r"[a-z]{1,8}(\.[a-z]{2})?", fullmatch=True).filter(lambda word: word not in ("none", "nan"))
    )


@st.composite
def parts(draw):
    """A part of a catalogue and values of some of its options."""
    catalogue, name = draw(st.sampled_from(NAMES))
    options = catalogue.options(name)
    needed = [option for option, argument in options.items() if argument.default is REQUIRED]
    chosen = draw(st.lists(st.sampled_from(sorted(options)), unique=True)) if options else []
    return catalogue, name, {option: draw(of_type(options[option].type)) for option in {*needed, *chosen}}


@given(parts())
def test_text_table_and_values_say_the_same(part):
    catalogue, name, options = part
    chosen = catalogue.read({"name": name, **options})
    assert chosen.name == name
    assert {option: chosen.options[option] for option in options} == options
    again = catalogue.read(chosen.text)
    assert again == chosen
    assert list(chosen.options) == [option for option in catalogue.options(name) if option in chosen.options]
    longer = ",".join(f"{o}={grammar.escape(values.write(v))}" for o, v in chosen.options.items())
    assert catalogue.read(f" {name.upper()}:{longer}" if longer else name) == chosen


@given(st.dictionaries(st.from_regex("[a-z_]{1,5}", fullmatch=True), WORDS, min_size=1), st.booleans())
def test_no_sign_of_a_value_is_taken_for_the_grammars(options, alone):
    if alone:
        options = dict([next(iter(options.items()))])
    text = grammar.write("name", options, next(iter(options)) if alone else None)
    assert grammar.split(text) == [text]
    assert grammar.split(text, "@") == [text]
    read = grammar.read("part", text)
    assert dict(read.options) == ({"": next(iter(options.values()))} if alone else options)


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("target-shift:schedule=alternating,mean=100", "target-shift:schedule=alternating,mean=100"),
        ("Target-Shift: mean = 1e2 , n-experiences=4", "target-shift:n_experiences=4,mean=100"),
        ("target-shift:schedule=0/100/0", "target-shift:schedule=0/100/0"),
        ("label-reset=7", "label-reset:n_experiences=7"),
        ("label-reset", "label-reset"),
        ("iwildcam:size=32/48,cache=false", "iwildcam:size=32/48,cache=false"),
    ],
)
def test_one_spelling_for_every_scenario(given, canonical):
    assert SCENARIOS.read(given).text == canonical


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("l2@optimizer=adam:lr=3e-4", "l2=0.001@optimizer=adam:lr=0.0003"),
        ("L2=1E-3 @ batch-size=16 @ epochs=10", "l2=0.001@epochs=10@batch_size=16"),
        ("finetune@model=mlp=256", "finetune@model=mlp:width=256"),
        ("lwf:temperature=4", "lwf:alpha=1,temperature=4"),
        ({"name": "l2", "strength": 0.5, "optimizer": {"name": "sgd", "lr": 1}}, "l2=0.5@optimizer=sgd:lr=1"),
        ({"strategy": ["ewc", {"name": "l2", "strength": 2}], "epochs": 3}, "l2=2+ewc=100@epochs=3"),
        ({"strategy": "finetune", "epochs": 3}, "finetune@epochs=3"),
    ],
)
def test_one_spelling_for_every_strategy(given, canonical):
    assert normalise(given) == canonical
    assert normalise(canonical) == canonical
    assert str(read_strategy(canonical)) == canonical


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("all", "all"),
        ("light", "light"),
        ("none", "none"),
        ("LIGHT + curvature", "units+features+norms+targets+kernel+curvature"),
        ("units:every=5", "units:every=5"),
        ("units:every=5+light", "units:every=5+features+norms+targets+kernel"),
        (["none", {"name": "kernel", "size": 32}], "kernel:size=32"),
        ("kernel+targets+norms+features+units", "light"),
    ],
)
def test_one_spelling_for_every_choice_of_diagnostics(given, canonical):
    assert write_diagnostics(given) == canonical
    assert read_diagnostics(canonical) == read_diagnostics(given)


@pytest.mark.parametrize(
    ("read", "given", "message"),
    [
        (SCENARIOS.read, "", "scenario '' has no name"),
        (SCENARIOS.read, "=3", "has no name"),
        (SCENARIOS.read, "label-reset:0.5", "'0.5' is no option; write option=value, joined by commas"),
        (SCENARIOS.read, "label-reset:fraction=0.5,fraction=1", "gives fraction twice"),
        (SCENARIOS.read, "label-reset:seed=3", "unknown option of scenario label-reset 'seed'"),
        (SCENARIOS.read, "label-reset:n_samples=1.5", "n_samples is 1.5: it must be a whole number of 1 or more"),
        (SCENARIOS.read, "target-shift:schedule=sometimes", "unknown schedule 'sometimes'; known: alternating"),
        (
            SCENARIOS.read,
            {"fraction": 1},
            "a scenario given as a table needs a name",
        ),
        (SOURCES.read, "digits:size=3", "source digits has no option size: it has none"),
        (SOURCES.read, "digits=3", "source digits takes no value; write digits alone"),
        (SOURCES.read, "image-folder=/nowhere/at/all", "folder is /nowhere/at/all: it must be a folder that is there"),
        (OPTIMIZERS.read, "adam:betas=0.9", "betas is 0.9: it must be 2 values"),
        (OPTIMIZERS.read, "adam:fused=true", "unknown option of optimizer adam 'fused'"),
        (OPTIMIZERS.read, "adam:amsgrad=maybe", "amsgrad is maybe: it must be true or false"),
        (read_strategy, "l2@epochs=1@epochs=2", "gives one of its settings twice"),
        (read_strategy, "l2@lr=1", "unknown setting in strategy 'l2@lr=1': 'lr'; known: batch_size, epochs"),
        (read_strategy, {"strategy": "l2", "strength": 3}, "unknown key of a strategy 'strength'"),
        (read_diagnostics, "units+units", "diagnostics name units twice"),
        (read_diagnostics, "lite", "unknown choice of diagnostics 'lite'; did you mean light"),
    ],
    ids=lambda value: str(value) if isinstance(value, str | dict) else "",
)
def test_mistakes_are_answered_in_one_line(read, given, message):
    with pytest.raises(UserError) as caught:
        read(given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_scenarios_and_sources_fit_by_their_types():
    check_source("label-reset", "digits")
    check_source("iwildcam", "camera-traps")
    with pytest.raises(UserError, match="iwildcam is not made of digits: its sources are wilds, camera-traps"):
        check_source("iwildcam", "digits")


def test_help_and_answers_import_nothing_heavy():
    program = (
        "import sys\n"
        "from plasticity_cl.listing import list_all, list_options\n"
        "list_all(); [list_options(name) for name in 'target-shift adam l2 mlp units npz processes'.split()]\n"
        "sys.exit(', '.join({'torch', 'avalanche', 'numpy'} & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_part_of_an_installed_package_never_takes_the_place_of_ours():
    catalogue = Catalogue("source", "sources", dict(SOURCES))
    assert not set(catalogue.others) & set(SOURCES)
