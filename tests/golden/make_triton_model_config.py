"""Write ``triton_model_config.binpb``: the description of Triton's ``model_config.proto``.

    pip install --no-deps tritonclient==2.73.0 && python tests/golden/make_triton_model_config.py

tritonclient (BSD-3-Clause, NVIDIA) itself wants older versions of protobuf than retailtag's
development environment has, hence the copy.
"""

import ast
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent


def main():
    source = Path(find_spec("tritonclient").origin).parent / "grpc" / "model_config_pb2.py"
    (serialised,) = [
        node.args[0].value
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and getattr(node.func, "attr", "") == "AddSerializedFile"
        and isinstance(node.args[0], ast.Constant)
    ]
    (HERE / "triton_model_config.binpb").write_bytes(serialised)


if __name__ == "__main__":
    main()
