"""What stands behind ``testbed:NAME``: a model and the task it comes with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import torch

from planish.data import Tensors, Text
from planish.errors import ArtifactError
from planish.source import Source, describe_folder
from planish.tasks import Classification, LanguageModelling, NodeClassification, SkeletonAction

from . import corpus, digits, graph, lm, nets, skeleton

BETWEEN = "\x00"


def language_model() -> Source:
    """The language model, with training text for calibration and held-out text for evaluation."""
    task = LanguageModelling(
        evaluation=_text(corpus.heldout_documents()), calibration=_text(corpus.train_documents())
    )
    return Source("testbed:lm", describe_folder(lm.folder()), task=task)


def digit_images() -> Source:
    """`nets.DigitsCNN`, trained when asked for, on 8x8 images."""
    data = digits.load()
    (train_x, train_y), (test_x, test_y) = data.tensors(data.train_mask), data.tensors(data.test_mask)
    torch.manual_seed(0)
    net = nets.DigitsCNN()
    nets.fit_digits(net, data)
    values = {"train_x": train_x, "train_y": train_y, "test_x": test_x, "test_y": test_y}
    return Source(
        "testbed:digits", module=net, task=Classification(data=Tensors(values=values), input="input")
    )


def node_graph() -> Source:
    """`nets.GCN`, trained when asked for, on a graph with planted communities."""
    data = graph.generate()
    torch.manual_seed(0)
    net = nets.GCN(data.features.shape[1], int(data.labels.max()) + 1)
    nets.fit_graph(net, data)
    values = {
        "x": data.features,
        "edge_index": data.edge_index,
        "y": data.labels,
        "train_mask": data.train_mask,
        "val_mask": data.validation_mask,
        "test_mask": data.test_mask,
    }
    return Source("testbed:graph", module=net, task=NodeClassification(data=Tensors(values=values)))


def skeleton_actions() -> Source:
    """`nets.STGCN`, trained when asked for, on synthetic skeleton clips."""
    data = skeleton.generate()
    (train_x, train_y), (test_x, test_y) = data.tensors(data.train_mask), data.tensors(data.test_mask)
    torch.manual_seed(0)
    net = nets.STGCN(torch.from_numpy(data.edges), int(data.labels.max()) + 1)
    nets.fit_skeleton(net, data)
    values = {"train_x": train_x, "train_y": train_y, "test_x": test_x, "test_y": test_y}
    task = SkeletonAction(data=Tensors(values=values), input="clips", batch=32)
    return Source("testbed:skeleton", module=net, task=task)


SOURCES: dict[str, Callable[[], Source]] = {
    "lm": language_model,
    "digits": digit_images,
    "graph": node_graph,
    "skeleton": skeleton_actions,
}


@functools.cache
def open_source(name: str) -> Source:
    """The source of that name.

    Networks are trained on one thread from a fixed seed, so that the same machine gives the same model again.

    Raises ArtifactError for an unknown name.
    """
    if name not in SOURCES:
        raise ArtifactError(f"source 'testbed:{name}': the testbed has {', '.join(SOURCES)}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            return SOURCES[name]()
    finally:
        torch.set_num_threads(threads)


def _text(documents: Iterable[corpus.Document]) -> Text:
    """Each document after an end-of-text token, as in training."""
    joined = BETWEEN.join(document.text for document in documents)
    return Text(text=joined, separator=BETWEEN, before=lm.END_OF_TEXT)
