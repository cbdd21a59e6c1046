"""The compiler of torch is imported when it is used, not when a model is loaded."""

import json
import subprocess
import sys

import torch.compiler

from retailtag.backbones.late_compiler import _UTILS, _disable_later, _Utils, compiler_later

HEAVY = ["torch._dynamo", "torch._inductor", "sympy", "triton", "sklearn", "scipy", "pandas"]
HEAVY += ["matplotlib", "jinja2", "open_clip", "openvino", "onnxruntime"]
# Everything that `predict` needs for one image, then what was put off.
SCRIPT = f"""
import json, sys
from retailtag.cli import main
from retailtag.runs import predict, prediction_files
from retailtag.tagger import loading
from retailtag import api, outcomes
from retailtag.backbones.factory import load_backbone
import torch
backbone = load_backbone("demo:cnn", random_weights=True)
backbone.embed(torch.zeros((1, 3, *backbone.preprocess.size), dtype=torch.uint8))
loaded = [name for name in {HEAVY!r} if name in sys.modules]
from torchvision.ops import roi_align
pooled = roi_align(torch.ones(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 2, 2]]), 2)
from timm.models import naflexvit
rope = naflexvit.NaFlexRopeIterator.__next__
import torch._dynamo.utils
print(json.dumps([
    loaded, pooled.shape, rope._torchdynamo_disable, hasattr(torch._dynamo.utils, "counters"),
    torch.compiler.disable.__module__,
]))
"""


def test_tagging_an_image_imports_no_compiler_and_both_work_later():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    loaded, shape, is_marked, has_counters, home = json.loads(done.stdout)
    assert loaded == []
    assert shape == [1, 1, 2, 2]
    assert is_marked
    assert has_counters
    assert home == "torch.compiler"


def test_a_function_that_is_never_compiled_does_what_it_did():
    def double(x, *, plus=0):
        """Twice a number."""
        return 2 * x + plus

    for later in (_disable_later(double), _disable_later(recursive=False)(double)):
        assert later.__doc__ == "Twice a number."
        assert [later(2), later(3, plus=1)] == [4, 7]


def test_stand_ins_end_with_the_block_and_give_way_to_what_is_asked_for(monkeypatch):
    import torch._dynamo.utils as real

    with compiler_later():  # loaded already: nothing to put off
        assert sys.modules[_UTILS] is real
    stand_in = _Utils(_UTILS)
    monkeypatch.setitem(sys.modules, _UTILS, stand_in)
    monkeypatch.setattr(
        "retailtag.backbones.late_compiler.import_module",
        lambda name: sys.modules.get(name, real),
    )
    assert stand_in.counters is real.counters
    assert _UTILS not in sys.modules
    assert isinstance(stand_in.is_compile_supported("cpu"), bool)
    assert torch.compiler.disable.__name__ == "disable"
