"""Import timm and torchvision without the compiler behind ``torch.compile``.

Importing that takes longer than PyTorch itself, two seconds of a core, and tagging one image has no
use for it. torchvision imports it for one function of RoIAlign, timm to keep two methods of
NaFlexViT out of compiled graphs.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

_UTILS = "torch._dynamo.utils"


@contextmanager
def compiler_later() -> Iterator[None]:
    """Inside, what asks for the compiler at import gets stand-ins, which import it when called."""
    if "torch._dynamo" in sys.modules:
        yield
        return
    import torch.compiler

    stand_in = _Utils(_UTILS)
    disable = torch.compiler.disable
    sys.modules[_UTILS] = stand_in
    torch.compiler.disable = _disable_later  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compiler.disable = disable
        stand_in.retire()


class _Utils(ModuleType):
    """What libraries import of the compiler's module; anything else brings the real one."""

    def is_compile_supported(self, device_type: Any) -> Any:
        """Whether ``torch.compile`` works on a device."""
        self.retire()
        return import_module(_UTILS).is_compile_supported(device_type)

    def retire(self) -> None:
        """Make room for the real module."""
        if sys.modules.get(_UTILS) is self:
            del sys.modules[_UTILS]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system looks for these on any module
            raise AttributeError(name)
        self.retire()
        return getattr(import_module(_UTILS), name)


def _disable_later(
    function: Callable[..., Any] | None = None, recursive: bool = True, **more: Any
) -> Any:
    """``torch.compiler.disable``, which imports the compiler at the first call of `function`."""
    if function is None:
        return functools.partial(_disable_later, recursive=recursive, **more)
    disabled: Callable[..., Any] | None = None

    @functools.wraps(function)
    def call(*args: Any, **named: Any) -> Any:
        nonlocal disabled
        if disabled is None:
            import torch.compiler

            disabled = torch.compiler.disable(function, recursive, **more)
        return disabled(*args, **named)

    # What the compiler looks for before it would follow a call into `call`.
    call._torchdynamo_disable = True  # type: ignore[attr-defined]
    return call
