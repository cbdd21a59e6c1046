"""A stand-in accelerator made of the CPU, to test that code keeps tensors of two devices apart.

`register` adds a device ``sim`` to torch. A tensor on it wraps a tensor on the CPU that holds its
values, and every operation runs on those. Like CUDA it refuses to mix with tensors on the CPU, and
refuses ``.numpy()``. It checks where tensors are, not speed, memory, autocast or streams.

torch cannot forget a device: once there, it is the accelerator that ``pin_memory`` and
`torch.accelerator` take. Autograd counts the devices at the first backward pass of the process and
refuses those that come later. Tests on this device therefore have a process of their own.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils import backend_registration

NAME = "sim"
# CUDA too copies between devices here, and takes an index from the CPU.
MAY_MIX = ("aten::copy_", "aten::_copy_from", "aten::index", "aten::index_put", "aten::index_put_")
_libraries: list[torch.library.Library] = []  # torch drops what is no longer referred to


class SimTensor(Tensor):
    """A tensor on the device ``sim``; `host` holds its values on the CPU."""

    host: Tensor
    n_calls = 0  # operations on the device so far, in this process
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: Tensor) -> SimTensor:
        """Wrap a tensor on the CPU."""
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            host.shape,
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=f"{NAME}:0",
        )
        tensor.host = host
        return tensor

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        """Compute on the CPU, unless the arguments lie on two devices."""
        return _run(function, *args, **(kwargs or {}))

    def numpy(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse, as a tensor on CUDA does."""
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy; use Tensor.cpu().")

    __array__ = numpy

    def tolist(self) -> Any:
        """Values as Python numbers, which waits for a device but needs no copy by the caller."""
        return self.host.tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        """Values and device; torch's own would compute with the tensor."""
        return f"{self.host!r} on {NAME}"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as a tensor on the CPU, which ``torch.load(map_location="cpu")`` would give."""
        return self.host.__reduce_ex__(protocol)


def _run(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Result of an operation on tensors of the device, or that makes one there."""
    name = function._schema.name
    tensors = list(_tensors((args, kwargs)))
    on_sim = [tensor for tensor in tensors if isinstance(tensor, SimTensor)]
    # A single number on the CPU may take part, as on CUDA.
    on_cpu = [t for t in tensors if not isinstance(t, SimTensor) and t.ndim > 0]
    if on_sim and on_cpu and name not in MAY_MIX:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but {name} got both {NAME}:0 and cpu."
        )
    SimTensor.n_calls += 1
    if name == "aten::_fused_sdp_choice":
        return 0  # the attention that the CPU would choose has kernels for the CPU alone
    target = kwargs.get("device")
    if target is not None:
        kwargs["device"] = "cpu"
    given = {id(_host(tensor)): tensor for tensor in tensors}
    out = function(*_mapped(_host, args), **_mapped(_host, kwargs))
    to_cpu = target is not None and torch.device(target).type == "cpu"

    def placed(tensor: Tensor) -> Tensor:
        if id(tensor) in given:  # computed in place
            assert given[id(tensor)].shape == tensor.shape, f"{name} changed a shape in place"
            return given[id(tensor)]
        return tensor if to_cpu else SimTensor(tensor)

    return _mapped(placed, out)


def _host(tensor: Tensor) -> Tensor:
    return tensor.host if isinstance(tensor, SimTensor) else tensor


def _tensors(value: Any) -> Iterator[Tensor]:
    """Tensors in nested lists, tuples and dictionaries; torch's own walk takes twice the time."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same lists, tuples and dictionaries, with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(change, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(change, item) for item in value)
    return value


class _Module(backend_registration._DummyBackendModule):
    """What ``torch.sim`` offers; gradient checkpointing wants more than torch's own example."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """Autocast is none here: torch has no rules of this device for it."""
        return []

    def get_rng_state(self, device: int) -> Tensor:
        """State of the CPU's generator, which draws for the device too."""
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor) -> None:
        """Restore what `get_rng_state` gave."""
        torch.set_rng_state(state)

    def device(self, index: int) -> Any:
        """Context in which a device is the current one; there is only one."""
        return contextlib.nullcontext()


def register(patch: Any) -> None:
    """Add the device to torch for good; `patch` is a `pytest.MonkeyPatch` for what can be undone.

    Call it before the first backward pass of the process.
    """
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
    library = torch.library.Library("_", "IMPL")
    library.fallback(_run, "PrivateUse1")  # for functions without a tensor, such as torch.zeros
    _libraries.append(library)
    # By default modules are moved by exchanging the memory of their parameters, which a wrapper
    # does not have.
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    patch.setattr(torch.__future__, "_swap_module_params_on_conversion", swaps)
    torch.__future__.set_swap_module_params_on_conversion(True)
    # A view of a wrapper cannot be an inference tensor. Decorated functions hold the class itself,
    # so its methods are replaced.
    for method in ("__enter__", "__exit__"):
        patch.setattr(torch.inference_mode, method, getattr(torch.no_grad, method))
    # torch makes these below the dispatch of Python, or resizes them there
    for maker in ("tensor", "as_tensor", "arange"):
        patch.setattr(torch, maker, _moving(getattr(torch, maker)))


def _moving(make: Any) -> Any:
    """`make`, whose result is made on the CPU and then moved to the device."""

    @functools.wraps(make)
    def moved(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        made: Tensor = make(*args, **kwargs)
        return made if device is None else made.to(device)

    return moved
