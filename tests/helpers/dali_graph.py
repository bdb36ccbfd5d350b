"""Read the serialized form of a DALI graph, which is a protocol buffer.

DALI does not ship the description of the messages. The fields below are those of its `dali.proto` that tests look at.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

# message -> (number, name, type, whether it is repeated) of each field; a type that is no scalar is a message.
_MESSAGES: dict[str, list[tuple[int, str, str, bool]]] = {
    "Edge": [(1, "name", "string", False), (2, "device", "string", False), (3, "is_argument", "bool", False)],
    "Argument": [
        (1, "name", "string", False),
        (2, "type", "string", False),
        (3, "float", "float", False),
        (4, "int64", "int64", False),
        (5, "string", "string", False),
        (6, "bool", "bool", False),
    ],
    "Operator": [
        (1, "name", "string", False),
        (2, "input", "Edge", True),
        (3, "output", "Edge", True),
        (4, "argument", "Argument", True),
        (5, "instance", "string", False),
    ],
    "Graph": [
        (1, "num_threads", "int64", False),
        (2, "batch_size", "int64", False),
        (5, "operator", "Operator", True),
        (7, "output", "Edge", True),
    ],
}


@dataclass(frozen=True, kw_only=True)
class Operator:
    """An operator of a graph.

    Attributes:
        kind: Name of the operator, such as "decoders__Image".
        device: "cpu", "gpu" or "mixed".
        inputs: Name and device of each input, without arguments.
        arguments: Names of the inputs that are arguments.
        outputs: Name and device of each output.
        options: The scalar options.
    """

    kind: str
    device: str
    inputs: tuple[tuple[str, str], ...]
    arguments: tuple[str, ...]
    outputs: tuple[tuple[str, str], ...]
    options: dict[str, Any]


def serialize(pipeline: Any) -> bytes:
    """Return the serialized form of a graph that is not built yet, also without its GPU.

    DALI checks each operator against its schema on the way. It refuses to make a pipeline with a number of a device
    where there is no driver, so the number is taken out. It is no part of the graph: the device of each operator is.
    """
    pipeline._device_id = None
    serialized: bytes = pipeline.serialize()
    return serialized


def parse(serialized: bytes) -> tuple[dict[str, Operator], list[tuple[str, str]]]:
    """Parse a serialized graph.

    Returns:
        The operators by the name of their first output, inputs first; and name and device of each output of the graph.
    """
    graph = _graph_class().FromString(serialized)
    operators = {}
    for entry in graph.operator:
        options = {
            argument.name: getattr(argument, argument.type)
            for argument in entry.argument
            if argument.type in ("float", "int64", "string", "bool") and argument.HasField(argument.type)
        }
        operators[entry.output[0].name] = Operator(
            kind=entry.name,
            device=options["device"],
            inputs=tuple((edge.name, edge.device) for edge in entry.input if not edge.is_argument),
            arguments=tuple(edge.name for edge in entry.input if edge.is_argument),
            outputs=tuple((edge.name, edge.device) for edge in entry.output),
            options=options,
        )
    return operators, [(edge.name, edge.device) for edge in graph.output]


@cache
def _graph_class() -> Any:
    """Build the class of the message from the table."""
    file = descriptor_pb2.FileDescriptorProto(name="dali_graph.proto", package="dali_graph", syntax="proto2")
    for message, fields in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for number, name, kind, repeated in fields:
            field = described.field.add(name=name, number=number, label=3 if repeated else 1)
            if kind in _MESSAGES:
                field.type, field.type_name = field.TYPE_MESSAGE, f".dali_graph.{kind}"
            else:
                field.type = getattr(field, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("dali_graph.Graph"))
