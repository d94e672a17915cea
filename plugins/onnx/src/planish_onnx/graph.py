"""Passes on an exported graph (`onnx_ir.Model`): simplify, lay out weights, forget the machine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript import optimizer, rewriter

from planish_onnx import __version__

CONSTANT = "constant."
"""Start of the names of tensors that are no weights: shapes, axes, rotary frequencies."""

_RULES = [
    rule for rule in getattr(rewriter, "_DEFAULT_REWRITE_RULES", ()) if rule.name != "SlicesSplit"
] or None
"""onnxscript's rules but the one that reads the whole graph at every node; None, its own list, should that go away."""


def simplify(model: ir.Model) -> None:
    """Fold what is constant, drop what is unused; weights keep their names and are never copied.

    This is onnxscript's optimiser without three of its steps. One takes time that grows with the square of the graph, to
    join two Slices into a Split. The others: it would fold `Transpose(weight)` into a second,
    nameless tensor, which stores a tied embedding twice; and it would merge weights that happen to be equal.
    """
    passes.InlinePass()(model)
    for _ in range(2):
        optimizer.fold_constants_ir(model, should_fold=_should_fold)
        rewriter.rewrite(model, _RULES)
        passes.RemoveUnusedNodesPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.OutputFixPass()(model)
    passes.NameFixPass()(model)


def _should_fold(node: ir.Node) -> bool | None:
    """False forbids the folding of a node, None leaves it to the optimiser."""
    return False if node.op_type == "Transpose" else None


def transposed_weights(model: ir.Model) -> Iterator[ir.Node]:
    """Nodes `Transpose(weight)` that swap the two axes of a stored matrix."""
    for node in list(model.graph):
        if node.op_type != "Transpose" or node.inputs[0] is None:
            continue
        weight = node.inputs[0]
        if weight.is_initializer() and weight.shape is not None and len(weight.shape) == 2:
            yield node


def store_transposed(model: ir.Model) -> None:
    """Store each matrix in the orientation in which the graph multiplies by it.

    torch keeps a linear layer's weight as (out, in) and MatMul wants (in, out). A matrix that is also read as it
    is (an embedding tied to the output head) stays (out, in), with its Transpose in the graph: stored once; ONNX
    Runtime folds the Transpose when it loads the model.
    """
    for node in transposed_weights(model):
        weight = node.inputs[0]
        assert weight is not None
        if all(user.op_type == "Transpose" for user, _ in weight.uses()) and not weight.is_graph_output():
            tensor = weight.const_value
            assert tensor is not None
            for user, _ in list(weight.uses()):
                remove(user, weight)
            weight.const_value = transpose(tensor)
            weight.shape = weight.const_value.shape


def transpose(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    """The (columns, rows) copy of a matrix, made when it is written, so that no two are in memory at once."""
    rows, columns = tensor.shape.numpy()
    return ir.LazyTensor(
        lambda: ir.Tensor(tensor.numpy().T.copy(), dtype=tensor.dtype, name=tensor.name),
        dtype=tensor.dtype,
        shape=ir.Shape([columns, rows]),
        name=tensor.name,
    )


def remove(node: ir.Node, replacement: ir.Value) -> None:
    """Take a one-output node out of its graph; its users read `replacement` instead."""
    node.outputs[0].replace_all_uses_with(replacement)
    assert node.graph is not None
    node.graph.remove(node, safe=True)


def name_tensors(model: ir.Model, prefix: str, first_names: Mapping[str, str]) -> None:
    """Weights drop `prefix` and read as in the torch model; everything else becomes `constant.N`.

    Args:
        first_names: name of a weight -> the name it goes by (they differ for tied weights). A tensor that is not among
            them is no weight: it follows from the model's code, like shapes and rotary frequencies.
    """
    tensors = list(model.graph.initializers.values())
    model.graph.initializers.clear()
    constants = 0
    for value in tensors:
        assert value.name is not None
        name = first_names.get(value.name.removeprefix(prefix)) if value.name.startswith(prefix) else None
        if name is None:
            name, constants = f"{CONSTANT}{constants}", constants + 1
        value.name = name
        model.graph.initializers.add(value)


def forget_origin(model: ir.Model, dims: Mapping[str, Mapping[int, str]] | None = None) -> None:
    """Strip what differs from run to run or tells about the machine: stack traces, sources, generated dimension names.

    Args:
        dims: input name -> axis -> name of the dimension, for the axes that vary; None keeps the names it has.
    """
    passes.ClearMetadataAndDocStringPass()(model)
    model.doc_string = None
    model.graph.name = "planish"
    model.producer_name, model.producer_version = "planish-onnx", __version__
    for holder in _holders(model):
        holder.metadata_props.clear()
        holder.meta.clear()
        holder.doc_string = None
    if dims is not None:
        _name_dims(model, dims)
    outputs = set(model.graph.outputs)
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value not in outputs:  # runtimes infer these again
                value.shape = value.type = None


def _name_dims(model: ir.Model, dims: Mapping[str, Mapping[int, str]]) -> None:
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        assert value.shape is not None
        for axis, name in dims.get(value.name or "", {}).items():
            names[str(value.shape[axis])] = name
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None:
            value.shape = ir.Shape([d if isinstance(d, int) else names.get(str(d)) for d in value.shape])


def _holders(model: ir.Model) -> Iterable[ir.Model | ir.Graph | ir.Node | ir.Value]:
    yield model
    yield model.graph
    yield from model.graph.inputs
    yield from model.graph.initializers.values()
    for node in model.graph.all_nodes():
        yield node
        yield from node.outputs
