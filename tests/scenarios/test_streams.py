"""Streams: what each experience holds, that it depends on seed and number alone, and what it costs."""

import hashlib
import inspect
import resource

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plasticity_cl.errors import UserError
from plasticity_cl.parts.signature import load
from plasticity_cl.scenarios import (
    ClassIncremental,
    InputPermutation,
    LabelPermutation,
    LabelReset,
    NoisyStart,
    Source,
    TargetShift,
    load_source,
)
from plasticity_cl.scenarios.catalogue import SCENARIOS, make_scenario
from plasticity_cl.scenarios.label_reset import redraw_labels
from plasticity_cl.scenarios.target_shift import target_means
from plasticity_cl.seeding import generator

DIGITS = load_source("digits")


IN_MEMORY = [name for name in SCENARIOS if SCENARIOS.signature(name).takes == {"Source"}]


def tiny(n=60, n_classes=6, test=24, seed=0, uint8=False):
    """A small source whose image i is recognisable by its first pixel."""
    random = torch.Generator().manual_seed(seed)
    images = torch.rand(n + test, 1, 3, 3, generator=random)
    labels = torch.arange(n + test) % n_classes
    if uint8:
        images = (images * 255).to(torch.uint8)
    else:
        images[:, 0, 0, 0] = torch.arange(n + test)
    return Source(
        name="tiny",
        train_inputs=images[:n],
        train_labels=labels[:n],
        test_inputs=images[n:],
        test_labels=labels[n:],
        n_classes=n_classes,
        mean=(0.5,) if uint8 else (),
        std=(0.25,) if uint8 else (),
    )


def content(experience):
    return experience.samples.batch(torch.arange(len(experience.dataset)))


MAKERS = [
    LabelReset,
    LabelPermutation,
    InputPermutation,
    ClassIncremental,
    NoisyStart,
    lambda source, n, **options: TargetShift(source, n, n_samples=None, **options),
    lambda source, n, **options: TargetShift(source, n, n_samples=None, targets="sine", **options),
]


@given(st.sampled_from(MAKERS), st.integers(1, 6), st.integers(0, 2**31), st.randoms(use_true_random=False))
def test_any_order_of_access_gives_the_same_data(make, length, seed, random):
    source = tiny()
    in_order = [content(e) for stream in make(source, length, seed=seed).streams.values() for e in stream]
    streams = make(source, length, seed=seed).streams.values()
    places = [(stream, k) for stream in streams for k in range(length)]
    shuffled = random.sample(places, len(places))
    found = {(stream.name, k): content(stream[k]) for stream, k in shuffled}
    for (stream, k), (inputs, targets) in zip(places, in_order, strict=True):
        assert torch.equal(inputs, found[stream.name, k][0])
        assert torch.equal(targets, found[stream.name, k][1])


@given(st.sampled_from(MAKERS), st.integers(1, 6), st.booleans())
def test_every_experience_holds_each_of_its_samples_once_and_items_equal_batches(make, length, uint8):
    scenario = make(tiny(uint8=uint8), length)
    for stream in scenario.streams.values():
        assert len(stream) == length
        for number, experience in enumerate(stream):
            assert experience.current_experience == number
            assert experience.origin_stream.name == stream.name
            inputs, targets = content(experience)
            assert inputs.dtype == torch.float32
            for i in (0, len(targets) - 1):
                item, target = experience.dataset[i]
                assert torch.equal(item, inputs[i])
                assert torch.equal(target, targets[i])
            if not uint8:
                shown = inputs.flatten(1).amax(1).sort().values
                assert len(shown.unique()) == len(shown)


def test_the_classes_of_a_class_incremental_stream_are_a_partition():
    for length in (1, 4, 6):
        scenario = ClassIncremental(tiny(), length, seed=3)
        for stream in scenario.streams.values():
            classes = [c for experience in stream for c in experience.classes_in_this_experience]
            assert sorted(classes) == list(range(6))
        rows = torch.cat([content(e)[0][:, 0, 0, 0] for e in scenario.train_stream])
        assert torch.equal(rows.sort().values, torch.arange(60.0))


@given(st.integers(1, 300), st.integers(2, 9), st.floats(0.01, 1.0), st.integers(0, 2**31))
def test_label_reset_draws_exactly_the_requested_fraction(n, n_classes, fraction, seed):
    labels = torch.arange(n) % n_classes
    new, redrawn = redraw_labels(labels, n_classes, fraction, generator(seed))
    assert len(redrawn.unique()) == len(redrawn) == round(fraction * n)
    kept = torch.ones(n, dtype=torch.bool)
    kept[redrawn] = False
    assert torch.equal(new[kept], labels[kept])
    assert new.min() >= 0
    assert new.max() < n_classes


def test_redrawn_labels_are_uniform_and_independent_of_the_true_ones():
    labels = torch.arange(100_000) % 10
    new, _ = redraw_labels(labels, 10, 1.0, generator(0))
    counts = torch.stack([torch.bincount(new[labels == c], minlength=10) for c in range(10)])
    assert (counts / 10_000 - 0.1).abs().max() < 0.015
    assert abs(float((new == labels).float().mean()) - 0.1) < 0.005


def test_label_reset_keeps_the_true_labels_for_testing():
    scenario = LabelReset(tiny(), 3)
    assert torch.equal(content(scenario.test_stream[2])[1], tiny().test_labels)


@given(st.integers(0, 2**31), st.integers(0, 5))
def test_permutations_invert(seed, k):
    source = tiny()
    labels = content(LabelPermutation(source, 6, seed=seed).train_stream[k])[1]
    renaming = {int(a): int(b) for a, b in zip(source.train_labels, labels, strict=True)}
    assert sorted(renaming) == sorted(renaming.values()) == list(range(6))
    inverse = torch.tensor([{new: old for old, new in renaming.items()}[c] for c in range(6)])
    assert torch.equal(inverse[labels], source.train_labels)

    experience = InputPermutation(source, 6, seed=seed).train_stream[k]
    order = experience.samples.permutation
    assert torch.equal(order.sort().values, torch.arange(9))
    assert torch.equal(content(experience)[0].flatten(1)[:, order.argsort()], source.train_inputs.flatten(1))
    test_order = InputPermutation(source, 6, seed=seed).test_stream[k].samples.permutation
    assert torch.equal(order, test_order)


@given(
    st.sampled_from(["noise", "sine", "label"]),
    st.floats(-1e3, 1e3),
    st.floats(0.1, 10.0),
    st.integers(0, 2**31),
)
def test_target_mean_and_standard_deviation_are_what_was_asked_for(targets, mean, std, seed):
    scenario = TargetShift(tiny(), 3, schedule=[0.0, mean, -mean], std=std, targets=targets, n_samples=None, seed=seed)
    for expected, experience in zip([0.0, mean, -mean], scenario.train_stream, strict=True):
        y = content(experience)[1].double()
        assert y.shape == (60, 1)
        assert float(y.mean()) == pytest.approx(expected, abs=1e-4 + 1e-6 * abs(mean))
        assert float(y.std(correction=0)) == pytest.approx(std, rel=1e-3)


def test_named_schedules():
    assert target_means("constant", 3, 7.0, 0) == [7, 7, 7]
    assert target_means("alternating", 4, 7.0, 0) == [0, 7, 0, 7]
    assert target_means("growing", 3, 8.0, 0) == [0, 4, 8]
    assert target_means("growing", 1, 8.0, 0) == [0]
    walk = target_means("random-walk", 400, 100.0, 1)
    assert walk[0] == 0
    assert np.std(np.diff(walk)) == pytest.approx(100 / 20, rel=0.15)


@given(
    st.sampled_from(["noise", "sine", "label"]),
    st.sampled_from(["constant", "alternating", "growing", "random-walk"]),
    st.sampled_from([0.0, 3.0, 100.0, -1e4]),
    st.integers(0, 2**31),
)
def test_the_twin_of_a_target_shift_has_the_same_images_and_the_same_targets_but_for_the_mean(
    targets, schedule, mean, seed
):
    options = {"schedule": schedule, "mean": mean, "targets": targets, "std": 2.0, "n_samples": None}
    shifted, twin = (
        make_scenario("target-shift", tiny(), n_experiences=4, seed=seed, **options | of_twin)
        for of_twin in ({}, SCENARIOS.facts("target-shift")["twin"])
    )
    means = target_means(schedule, 4, mean, seed)
    for stream in ("train", "test"):
        for mean_k, here, there in zip(means, shifted.streams[stream], twin.streams[stream], strict=True):
            (x, y), (twin_x, twin_y) = content(here), content(there)
            assert torch.equal(x, twin_x)
            assert torch.allclose(y.double() - mean_k, twin_y.double(), rtol=0, atol=1e-6 * (1 + abs(mean_k)))
            if mean_k == 0:
                assert torch.equal(y, twin_y)


def test_sine_targets_are_sines_of_a_high_frequency():
    # Over a source of many samples, sin of a wild phase has mean 0, variance 1/2 and an arcsine distribution.
    y = content(TargetShift(DIGITS, 1, schedule="constant", mean=0.0, targets="sine", n_samples=1000).train_stream[0])[
        1
    ]
    assert float((y.abs() > 1.0).float().mean()) == pytest.approx(0.5, abs=0.05)
    assert float(y.abs().max()) < 1.5


def test_a_noisy_start_is_noise_until_the_clean_experiences():
    source, scenario = tiny(), NoisyStart(tiny(), 6, noisy=4)
    for k in range(6):
        assert torch.equal(content(scenario.train_stream[k])[1], source.train_labels) == (k >= 4)
        assert torch.equal(content(scenario.test_stream[k])[1], source.test_labels) == (k >= 4)


def test_streams_slice_like_avalanches():
    stream = LabelReset(tiny(), 10).train_stream
    assert [e.current_experience for e in stream[2:9:3]] == [2, 5, 8]
    assert stream[-1].current_experience == 9
    assert stream[4:6][-1].current_experience == 5
    for wrong in (10, -11):
        with pytest.raises(IndexError):
            stream[wrong]


def digest(scenario):
    sha = hashlib.sha256()
    for stream in scenario.streams.values():
        for experience in stream:
            inputs, targets = content(experience)
            sha.update(inputs.numpy().tobytes())
            sha.update(targets.numpy().tobytes())
    return sha.hexdigest()[:16]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: LabelReset(DIGITS, 3, fraction=0.5), "label-reset"),
        (lambda: LabelPermutation(DIGITS, 3), "label-permutation"),
        (lambda: InputPermutation(DIGITS, 3), "input-permutation"),
        (lambda: ClassIncremental(DIGITS), "class-incremental"),
        (lambda: TargetShift(DIGITS), "target-shift-noise"),
        (lambda: TargetShift(DIGITS, targets="sine", schedule="random-walk"), "target-shift-sine"),
        (lambda: TargetShift(DIGITS, targets="label", schedule="growing"), "target-shift-label"),
        (lambda: NoisyStart(DIGITS, 4), "noisy-start"),
    ],
)
def test_a_seed_gives_the_same_stream_on_any_machine(make, expected):
    assert digest(make()) == DIGESTS[expected]


DIGESTS = {
    "label-reset": "edeec18d6da900c1",
    "label-permutation": "fc349c51a70685dd",
    "input-permutation": "e4f72c3f9a6b1572",
    "class-incremental": "9fb2ed447b61d7be",
    "target-shift-noise": "b758cf78851e2eae",
    "target-shift-sine": "81c7382faeba4da5",
    "target-shift-label": "334605fdd2f1c637",
    "noisy-start": "007ccc884732db90",
}


def test_five_hundred_experiences_of_sixty_thousand_samples_cost_next_to_nothing():
    images = torch.zeros(60_000, 1, 2, 2, dtype=torch.uint8)
    labels = torch.arange(60_000) % 10
    source = Source(
        name="large",
        train_inputs=images,
        train_labels=labels,
        test_inputs=images[:100],
        test_labels=labels[:100],
        n_classes=10,
        mean=(0.5,),
        std=(0.5,),
    )
    stream = LabelReset(source, 500).train_stream
    for _ in stream[:50]:
        pass
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for experience in stream:
        assert len(experience.dataset) == 60_000
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 500 < 20


def test_forgetting_counts_unless_an_image_gets_another_target_later():
    for name in IN_MEMORY:
        scenario = make_scenario(name, DIGITS, n_experiences=4, n_samples=100)
        targets = {}
        for experience in scenario.train_stream:
            for image, target in zip(*content(experience), strict=True):
                targets.setdefault(image.numpy().tobytes(), set()).add(target.item())
        assert scenario.forgetting_counts == all(len(of_image) == 1 for of_image in targets.values()), name


def test_the_catalogue_says_what_is_true_of_each_scenario():
    for name in IN_MEMORY:
        options, facts = SCENARIOS.options(name), SCENARIOS.facts(name)
        parameters = inspect.signature(load(SCENARIOS.entry(name).path)).parameters
        assert set(parameters) - {"source", "seed"} == set(options)
        assert all(parameters[option].default == argument.default for option, argument in options.items())
        scenario = make_scenario(name, DIGITS)
        assert scenario.name == name
        assert scenario.exchangeable == facts.get("exchangeable", False)
        assert scenario.task == facts.get("task", "classification")
        assert set(facts.get("twin", ())) <= set(options)
        assert len(scenario.train_stream) == options["n_experiences"].default


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_scenario("label-rest", DIGITS), "unknown scenario 'label-rest'; did you mean label-reset"),
        (
            lambda: make_scenario("label-reset", DIGITS, schedule="growing"),
            "unknown option of scenario label-reset 'schedule'",
        ),
        (lambda: LabelReset(DIGITS, 0), "n_experiences is 0"),
        (lambda: LabelReset(DIGITS, fraction=1.5), "fraction is 1.5"),
        (lambda: LabelReset(DIGITS, n_samples=5000), "digits has 1437 training samples"),
        (lambda: ClassIncremental(DIGITS, 11), "digits has 10 classes"),
        (lambda: TargetShift(DIGITS, schedule="alternate"), "did you mean alternating"),
        (lambda: TargetShift(DIGITS, schedule=[1.0]), "lists 1 target means for 8 experiences"),
        (lambda: TargetShift(DIGITS, std=0), "std is 0"),
        (lambda: TargetShift(DIGITS, targets="labels"), "did you mean label"),
        (lambda: NoisyStart(DIGITS, 5, noisy=5), "noisy is 5"),
        (lambda: LabelReset(DIGITS, n_samples=0), "n_samples is 0"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()
