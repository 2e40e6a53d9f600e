"""Write an ONNX function as Python expressions: every operation on a `Value` appends a node to its `Tape`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, FunctionProto, NodeProto, TensorProto, helper, numpy_helper


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the function under construction. Python numbers beside it become constants: a float is float32, an
    int is int64.
    """

    tape: Tape
    name: str

    def __add__(self, other: Operand) -> Value:
        return self.tape.op("Add", self, other)

    def __radd__(self, other: Operand) -> Value:
        return self.tape.op("Add", other, self)

    def __sub__(self, other: Operand) -> Value:
        return self.tape.op("Sub", self, other)

    def __rsub__(self, other: Operand) -> Value:
        return self.tape.op("Sub", other, self)

    def __mul__(self, other: Operand) -> Value:
        return self.tape.op("Mul", self, other)

    def __rmul__(self, other: Operand) -> Value:
        return self.tape.op("Mul", other, self)

    def __truediv__(self, other: Operand) -> Value:
        return self.tape.op("Div", self, other)

    def __rtruediv__(self, other: Operand) -> Value:
        return self.tape.op("Div", other, self)

    def __neg__(self) -> Value:
        return self.tape.op("Neg", self)

    def __matmul__(self, other: Value) -> Value:
        return self.tape.op("MatMul", self, other)

    def __gt__(self, other: Operand) -> Value:
        return self.tape.op("Greater", self, other)

    def __lt__(self, other: Operand) -> Value:
        return self.tape.op("Less", self, other)

    def __and__(self, other: Value) -> Value:
        return self.tape.op("And", self, other)

    def equals(self, other: Operand) -> Value:
        """Element by element; `==` stays Python's, of the two names."""
        return self.tape.op("Equal", self, other)

    @property
    def T(self) -> Value:
        """A matrix turned round."""
        return self.tape.op("Transpose", self, perm=[1, 0])

    def sum(self, axis: int) -> Value:
        """Sum along an axis, which goes."""
        return self.tape.op("ReduceSum", self, [axis], keepdims=0)

    def max(self, axis: int | None = None) -> Value:
        """Largest entry along an axis, which goes; of all entries without one."""
        return self._reduce("ReduceMax", axis)

    def min(self, axis: int | None = None) -> Value:
        """Smallest entry along an axis, which goes; of all entries without one."""
        return self._reduce("ReduceMin", axis)

    def _reduce(self, op_type: str, axis: int | None) -> Value:
        axes = () if axis is None else ([axis],)
        return self.tape.op(op_type, self, *axes, keepdims=0)

    def column(self) -> Value:
        """[n] → [n, 1]."""
        return self.tape.op("Unsqueeze", self, [1])

    def row(self) -> Value:
        """[n] → [1, n]."""
        return self.tape.op("Unsqueeze", self, [0])

    def abs(self) -> Value:
        """|x|."""
        return self.tape.op("Abs", self)

    def sqrt(self) -> Value:
        """√x."""
        return self.tape.op("Sqrt", self)

    def to_float(self) -> Value:
        """As float32."""
        return self.tape.op("Cast", self, to=TensorProto.FLOAT)

    def to_int(self) -> Value:
        """As int64."""
        return self.tape.op("Cast", self, to=TensorProto.INT64)

    def size(self, axis: int) -> Value:
        """The length of an axis, a scalar."""
        return self.tape.op("Squeeze", self.size_vector(axis), [0])

    def size_vector(self, axis: int) -> Value:
        """The length of an axis, [1], for building shapes."""
        return self.tape.op("Shape", self, start=axis, end=axis + 1)


Number = float | int | bool
Operand = Value | Number | Sequence[int]
Step = Callable[..., tuple[Value, ...]]


class Tape:
    """The nodes of one ONNX function. Constants stand first, shared by all; a loop's nodes go into its own graph."""

    def __init__(self) -> None:
        self._constants: list[NodeProto] = []
        self._known: dict[object, Value] = {}
        self._nodes: list[NodeProto] = []
        self._count = 0

    def op(self, op_type: str, *inputs: Operand | None, **attributes: Any) -> Value:
        """Append a node of one output."""
        return self.ops(op_type, 1, *inputs, **attributes)[0]

    def ops(self, op_type: str, outputs: int, *inputs: Operand | None, **attributes: Any) -> tuple[Value, ...]:
        """Append a node of several outputs."""
        names = ["" if value is None else self.value(value).name for value in inputs]
        results = tuple(self._fresh(op_type) for _ in range(outputs))
        self._nodes.append(helper.make_node(op_type, names, [result.name for result in results], **attributes))
        return results

    def value(self, operand: Operand) -> Value:
        """A constant for a Python number or a list of whole numbers; a Value as it is."""
        if isinstance(operand, Value):
            return operand
        key = (type(operand), tuple(operand) if isinstance(operand, Sequence) else operand)
        if key not in self._known:
            attribute: dict[str, Any]
            if isinstance(operand, bool):
                attribute = {"value": helper.make_tensor("", TensorProto.BOOL, [], [operand])}
            elif isinstance(operand, int):
                attribute = {"value_int": operand}
            elif isinstance(operand, float):
                attribute = {"value_float": operand}
            else:
                attribute = {"value_ints": list(operand)}
            self._known[key] = self._constant(helper.make_node("Constant", [], [""], **attribute))
        return self._known[key]

    def attribute(self, name: str, kind: AttributeProto.AttributeType) -> Value:
        """A scalar attribute of the function, FLOAT or INT."""
        key = ("attribute", name)
        if key not in self._known:
            node = helper.make_node("Constant", [], [""])
            field = "value_float" if kind == AttributeProto.FLOAT else "value_int"
            node.attribute.append(AttributeProto(name=field, type=kind, ref_attr_name=name))
            self._known[key] = self._constant(node)
        return self._known[key]

    def table(self, numbers: tuple[int, ...]) -> Value:
        """A constant [n] of int32."""
        tensor = numpy_helper.from_array(np.array(numbers, np.int32), "")
        return self._constant(helper.make_node("Constant", [], [""], value=tensor))

    def input(self, name: str) -> Value:
        """An input of the function."""
        return Value(self, name)

    def loop(self, trips: Operand | None, state: Sequence[Operand], step: Step) -> tuple[Value, ...]:
        """Repeat `step` while it says so, at most `trips` times; it is always taken once (unless trips is 0).

        Args:
            trips: the most repeats; None: no bound.
            state: what is carried, of types and shapes that stay.
            step: (index, *state) → (whether to go on, *next state).

        Returns:
            the state at the end.
        """
        outer, self._nodes = self._nodes, []
        index, again = self._fresh("index"), self._fresh("again")
        carried = [self._fresh("carried") for _ in state]
        goes_on, *following = step(index, *carried)
        # A loop's outputs must be made in it: a state that only passes through is copied.
        results = [self.op("Identity", value) for value in (goes_on, *following)]
        graph = helper.make_graph(
            self._nodes,
            self._fresh("step").name,
            [
                helper.make_tensor_value_info(index.name, TensorProto.INT64, []),
                helper.make_tensor_value_info(again.name, TensorProto.BOOL, []),
                # Types and shapes are inferred from the state.
                *(onnx.ValueInfoProto(name=value.name) for value in carried),
            ],
            [onnx.ValueInfoProto(name=value.name) for value in results],
        )
        graph.output[0].CopyFrom(helper.make_tensor_value_info(results[0].name, TensorProto.BOOL, []))
        self._nodes = outer
        return self.ops("Loop", len(state), trips, True, *state, body=graph)

    def function(
        self, domain: str, name: str, inputs: Sequence[str], results: Mapping[str, Value], attributes: Sequence[str]
    ) -> FunctionProto:
        """The finished function; `results` are its outputs by name."""
        for output, value in results.items():
            self._nodes.append(helper.make_node("Identity", [value.name], [output]))
        nodes = [*self._constants, *self._nodes]
        opset = [helper.make_opsetid("", 24)]
        return helper.make_function(domain, name, list(inputs), list(results), nodes, opset, list(attributes))

    def _constant(self, node: NodeProto) -> Value:
        value = self._fresh("Constant")
        node.output[0] = value.name
        self._constants.append(node)
        return value

    def _fresh(self, stem: str) -> Value:
        self._count += 1
        return Value(self, f"{stem}_{self._count}")
