"""WILDS' metrics against wilds and scikit-learn, and ImageNet's ResNets against torchvision."""

import types

import numpy as np
import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, recall_score
from torch import nn
from torchvision.models import resnet18
from wilds_writer import write_iwildcam

from plasticity_cl.errors import UserError
from plasticity_cl.metrics.wilds import WildsMetric, add_to_confusion, wilds_scores
from plasticity_cl.models.imagenet_resnet import load_weights, make_imagenet_resnet
from plasticity_cl.scenarios import IWildCam
from plasticity_cl.strategies import Finetune, LayerNormPlugin


def confusion_of(prediction, target, n_classes):
    confusion = torch.zeros(n_classes, n_classes, dtype=torch.int64)
    add_to_confusion(confusion, prediction, target)
    return confusion


@st.composite
def answers(draw):
    n_classes, n = draw(st.integers(2, 7)), draw(st.integers(1, 60))
    random = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    target = torch.randint(draw(st.integers(1, n_classes)), (n,), generator=random)
    return torch.randint(n_classes, (n,), generator=random), target, n_classes


@pytest.fixture(scope="module")
def scenario(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    write_iwildcam(root)
    return IWildCam(root, "time", n_experiences=4, size=8, cache=tmp_path_factory.mktemp("cache"))


@given(answers())
def test_on_the_classes_that_are_present_the_scores_are_those_of_wilds(scenario, drawn):
    prediction, target, n_classes = drawn
    theirs, _ = scenario.dataset.eval(prediction, target, None)
    ours = wilds_scores(confusion_of(prediction, target, n_classes))
    wanted = [theirs["acc_avg"], theirs["recall-macro_all"], theirs["F1-macro_all"]]
    assert [ours.accuracy, ours.macro_recall, ours.macro_f1] == pytest.approx(wanted, abs=1e-6)


@given(answers(), st.data())
def test_on_given_classes_they_are_scikit_learns_with_zero_where_undefined(drawn, data):
    prediction, target, n_classes = drawn
    classes = sorted(data.draw(st.sets(st.integers(0, n_classes - 1), min_size=1)))
    ours = wilds_scores(confusion_of(prediction, target, n_classes), torch.tensor(classes))
    options = {"labels": classes, "average": "macro", "zero_division": 0}
    assert ours.macro_recall == pytest.approx(recall_score(target, prediction, **options))
    assert ours.macro_f1 == pytest.approx(f1_score(target, prediction, **options))


@given(answers(), st.integers(1, 60))
def test_counts_do_not_depend_on_how_batches_were_cut(drawn, size):
    prediction, target, n_classes = drawn
    confusion = torch.zeros(n_classes, n_classes, dtype=torch.int64)
    for one, other in zip(prediction.split(size), target.split(size), strict=True):
        add_to_confusion(confusion, one, other)
    assert torch.equal(confusion, confusion_of(prediction, target, n_classes))
    assert int(confusion.sum()) == len(target)


def test_nothing_evaluated_is_no_number():
    scores = wilds_scores(torch.zeros(3, 3, dtype=torch.int64), torch.tensor([0, 1]))
    assert all(np.isnan(value) for value in vars(scores).values())


def test_the_plugin_scores_experiences_and_whole_streams(scenario):
    classes = {name: scenario.classes_in(name) for name in ("test", "ood")}
    metric = WildsMetric(classes, scenario.n_outputs)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, scenario.n_outputs))
    strategy = Finetune(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        train_mb_size=8,
        eval_mb_size=5,
        evaluator=EvaluationPlugin(metric, collect_all=True),
    )
    strategy.train(scenario.train_stream[0], eval_streams=[])
    strategy.train(scenario.train_stream[1], eval_streams=[])
    for stream in scenario.streams.values():
        strategy.eval(stream)
    strategy.eval(scenario.test_stream[1:2])
    emitted = strategy.evaluator.get_all_metrics()
    assert not [name for name in emitted if name.endswith("/train")]
    for stream in ("test", "ood"):
        outputs, targets = [], []
        for experience in getattr(scenario, f"{stream}_stream"):
            images, labels = experience.samples.batch(torch.arange(len(experience.dataset)))
            outputs.append(model(images).argmax(1))
            targets.append(labels)
            here = emitted[f"wilds/macro_f1/{stream}"]
            wanted = f1_score(labels, outputs[-1], labels=classes[stream], average="macro", zero_division=0)
            assert here[1][here[0].index(experience.current_experience)] == pytest.approx(wanted)
        theirs, _ = scenario.dataset.eval(torch.cat(outputs), torch.cat(targets), None)
        for name, key in (("accuracy", "acc_avg"), ("macro_recall", "recall-macro_all"), ("macro_f1", "F1-macro_all")):
            number, values = emitted[f"wilds/stream_{name}/{stream}"]
            assert number == [1], "a slice is no whole stream"
            assert values == pytest.approx([float(theirs[key])], abs=1e-6)


@pytest.mark.parametrize("classes", [torch.tensor([0, 3]), torch.tensor([], dtype=torch.int64)])
def test_classes_that_are_no_outputs_are_refused(classes):
    with pytest.raises(UserError, match="stream test must be one or more of 0 to 2"):
        WildsMetric({"test": classes}, 3)


# ResNets


def save(network, path):
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.parametrize("name", ["imagenet-resnet18", "imagenet-resnet50"])
@pytest.mark.parametrize("normalization", ["batch", "layer"])
def test_networks_have_the_normalisation_and_the_outputs_asked_for(name, normalization):
    before = torch.get_rng_state()
    network = make_imagenet_resnet(name, 7, normalization=normalization, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    kinds = {type(module).__name__ for module in network.modules() if "Norm" in type(module).__name__}
    assert kinds == {"BatchNorm2d" if normalization == "batch" else "GroupNorm"}
    assert network.eval()(torch.randn(2, 3, 64, 96)).shape == (2, 7)
    other = make_imagenet_resnet(name, 7, normalization="rms", seed=1)
    assert torch.equal(network.layer1[0].conv1.weight, other.layer1[0].conv1.weight)


def test_published_weights_are_loaded_and_a_head_that_fits_too(tmp_path):
    torch.manual_seed(5)
    published = resnet18(num_classes=7).eval()
    published.bn1.running_mean.uniform_()
    path = save(published, tmp_path / "weights.pth")
    images = torch.randn(2, 3, 64, 64)
    same = make_imagenet_resnet("imagenet-resnet18", 7, weights=path, seed=0).eval()
    assert torch.equal(same(images), published(images))
    other = make_imagenet_resnet("imagenet-resnet18", 3, weights=path, seed=0).eval()
    fresh = make_imagenet_resnet("imagenet-resnet18", 3, seed=0)
    assert torch.equal(other.fc.weight, fresh.fc.weight)
    other.fc = same.fc
    assert torch.equal(other(images), published(images))
    layer = make_imagenet_resnet("imagenet-resnet18", 7, normalization="layer", weights=path, seed=0)
    assert torch.equal(layer.layer2[0].conv1.weight, published.layer2[0].conv1.weight)


def test_layer_norm_can_be_inserted_beside_the_batch_norm(tmp_path):
    network = make_imagenet_resnet("imagenet-resnet18", 4, seed=0)
    strategy = types.SimpleNamespace(
        model=network, optimizer=torch.optim.SGD(network.parameters(), 0.1), device=torch.device("cpu")
    )
    LayerNormPlugin().change(strategy, torch.randn(1, 3, 64, 64), torch.zeros(1))
    norms = [module for module in strategy.model.modules() if isinstance(module, nn.GroupNorm)]
    assert len(norms) == 17, "one before each of the 17 ReLUs"
    assert strategy.model.eval()(torch.randn(2, 3, 64, 64)).shape == (2, 4)


def test_outputs_that_do_not_fit_end_no_evaluation_and_leave_no_old_score():
    def batch(target):
        return types.SimpleNamespace(
            experience=types.SimpleNamespace(
                origin_stream=types.SimpleNamespace(name="test", benchmark=None), current_experience=0
            ),
            device="cpu",
            mb_output={"logits": torch.eye(3)},
            mb_y=target,
        )

    metric = WildsMetric({"test": torch.arange(3)}, 3)
    metric.before_eval(batch(None))
    metric.before_eval_exp(batch(None))
    metric.after_eval_iteration(batch(torch.tensor([0, 1, 1])))
    assert int(metric._confusion.diagonal().sum()) == 2
    with pytest.warns(UserWarning, match="WildsMetric: no value .after_eval_iteration.: "):
        metric.after_eval_iteration(batch(torch.tensor([0, 1, 9])))
    assert metric.after_eval_exp(batch(None)) == []
    assert metric.result() == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file of weights"),
        (b"no weights", "is no file of weights"),
        ([1, 2], "holds no state dict"),
        ({"fc.weight": torch.zeros(1000, 512)}, r"does not have conv1\.weight"),
        ("imagenet-resnet50", "is of another network"),
        ("extra", r"it has extra\.weight"),
    ],
)
def test_files_that_are_no_weights_are_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "weights.pth"
    network = make_imagenet_resnet("imagenet-resnet18", 3, seed=0)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    if content == "imagenet-resnet50":
        save(make_imagenet_resnet(content, 3, seed=0), path)
    elif content == "extra":
        torch.save(network.state_dict() | {"extra.weight": torch.zeros(1)}, path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=message) as caught:
        load_weights(network, path)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("imagenet-resnet34", {}, "unknown network 'imagenet-resnet34'; did you mean imagenet-resnet"),
        ("imagenet-resnet18", {"normalization": "layr"}, "did you mean layer"),
        ("imagenet-resnet18", {"n_outputs": 0}, "n_outputs is 0"),
    ],
)
def test_mistakes_are_named(name, options, message):
    with pytest.raises(UserError, match=message):
        make_imagenet_resnet(name, **({"n_outputs": 3, "seed": 0} | options))
