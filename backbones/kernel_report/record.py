"""Runs code on tensors without memory, and keeps what a GPU would have been asked for.

The tensors are fake CUDA tensors. The package's own operators run their launch code on them, so that each Triton kernel
comes with the grid, the arguments and the options that it gets on a GPU, whoever wrote it and whatever it is called.
"""

import contextlib
import importlib
import math
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from backbones.flops.shapes import without_truncated_normals
from backbones.kernel_report.backward import followed
from backbones.kernel_report.cards import Card
from backbones.ops.gpu import pretended

# What the caching allocator rounds to.
_ALLOCATION = 512
# They make or rename memory and start nothing.
_FREE = {
    "aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided",
    "aten::_unsafe_view", "aten::lift_fresh", "aten::set_",
}  # fmt: skip
# They write their first argument without reading it.
_OVERWRITING = {"aten::copy_", "aten::fill_", "aten::zero_"}


@dataclass(frozen=True)
class Launch:
    """A Triton kernel as it was asked for.

    Attributes:
        module: Where the kernel is found.
        kernel: Its name there.
        grid: Programs along three axes.
        values: What its parameters that are no constants were given, by name, in order; pointers as addresses.
        tensor_bytes: Memory behind each of its pointers, by name.
        signature: Types of the parameters, as Triton writes them.
        constants: Values of those that are compiled in, by position.
        attributes: What the compiler may know of the others: multiples of 16.
        options: Number of warps and the like.
    """

    module: str
    kernel: str
    grid: tuple[int, int, int]
    values: dict[str, int | float]
    tensor_bytes: dict[str, int]
    signature: dict[str, str]
    constants: dict[tuple, Any]
    attributes: dict[tuple, Any]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """What its file is about, and its own name."""
        *folders, file = self.module.split(".")
        about = folders[-1] if file == "triton_kernels" else file.removesuffix("_triton_kernels")
        return f"{about}.{self.kernel}"

    @property
    def key(self) -> str:
        """Equal for launches that compile to the same and do as much."""
        return repr((self.name, self.grid, self.values, *self.specialization))

    @property
    def specialization(self) -> tuple:
        """What decides the machine code."""
        return self.signature, self.constants, self.attributes, self.options

    @property
    def programs(self) -> int:
        """Programs of the whole grid."""
        return math.prod(self.grid)

    def function(self) -> Any:
        """The kernel itself."""
        return getattr(importlib.import_module(self.module), self.kernel)


@dataclass(frozen=True)
class Step:
    """One kernel, ours or PyTorch's, or a stand-in for another package's.

    Attributes:
        name: Of the kernel, or of PyTorch's operator.
        bytes: Of its distinct tensors, each read or written once.
        flops: Of matrix products, else 0.
        dtype: Of the first tensor.
        launch: Of a Triton kernel.
        work: Thread instructions of a stand-in, as far as they are known.
    """

    name: str
    bytes: int
    flops: int = 0
    dtype: torch.dtype = torch.float32
    launch: Launch | None = None
    work: "Work | None" = None


@dataclass(frozen=True)
class Work:
    """What is known of a kernel of another package.

    Attributes:
        instructions: Of all its warps together.
        registers: Of a thread.
        cycles: Between two instructions of a warp, with as many beside it as fit.
        exponentials: Of all its threads together.
    """

    instructions: float
    registers: int
    cycles: float
    exponentials: float


class _Pointer:
    """Stands for a tensor at a launch: a type, and an address as far aligned as it would be."""

    def __init__(self, x: Tensor, number: int):
        self.dtype = x.dtype
        # Memory as a GPU hands it out starts at a multiple of 512 bytes.
        self._address = (number + 1) * 2**32 + int(x.storage_offset()) * x.element_size()

    def data_ptr(self) -> int:
        return self._address


class Recorder(TorchDispatchMode):
    """A context in which nothing runs: tensors are made on "cuda", and all that is done with them is kept.

    Memory is followed by storages, as PyTorch's allocator would hand them out and take them back; what kernels of
    PyTorch's own need inside of themselves is not seen.

    Args:
        card: Whose sizes the launchers see.

    Attributes:
        steps: What was started, in order.
        live_bytes: Memory in use.
        peak_bytes: Its highest since the last `restart`.
    """

    def __init__(self, card: Card):
        super().__init__()
        self.card = card
        self.steps: list[Step] = []
        self.live_bytes = 0
        self.peak_bytes = 0
        self._storages: set[int] = set()

    @contextlib.contextmanager
    def recording(self) -> Iterator["Recorder"]:
        """The context; leaves everything as it was."""
        jit = _triton_jit()
        with (
            pretended(self.card.gpu),
            patch.object(jit.JITFunction, "run", lambda kernel, *args, **options: self._keep(kernel, args, options)),
            # The device of the launch, that there is none of.
            patch.object(torch.cuda, "_exchange_device", lambda index: -1),
            patch.object(torch.cuda, "_maybe_exchange_device", lambda index: -1),
            without_truncated_normals(),
            followed(),
            FakeTensorMode(),
            self,
        ):
            yield self

    def restart(self) -> None:
        """Forgets the steps, and takes the memory in use for the new peak."""
        self.steps.clear()
        self.peak_bytes = self.live_bytes

    def step(self, name: str, tensors: list[Tensor], work: Work) -> None:
        """Keeps a stand-in for a kernel of a package that is not here."""
        self.steps.append(Step(name, sum(map(_bytes, tensors)), dtype=tensors[0].dtype, work=work))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name
        own = OPDEFS.get(name)
        if own is not None:
            with self:
                return own._init_fn(*args, **kwargs)
        out = func(*args, **kwargs)
        for x in _tensors(out):
            self._follow(x)
        if name not in _FREE and func.namespace != "prim" and not _is_view(func):
            self._count(func, name, args, kwargs, out)
        return out

    def _count(self, func, name, args, kwargs, out):
        read = _tensors((args, kwargs))
        if not read and not _tensors(out):
            return
        if name in _OVERWRITING:
            read = read[1:]
        distinct = {(x.untyped_storage()._cdata, x.storage_offset(), x.shape): x for x in read}
        flops = _products(func._overloadpacket)
        self.steps.append(
            Step(
                name.removeprefix("aten::"),
                sum(map(_bytes, distinct.values())) + sum(map(_bytes, _tensors(out))),
                flops=flops(*args, **kwargs, out_val=out) if flops else 0,
                dtype=(read or _tensors(out))[0].dtype,
            )
        )

    def _follow(self, x: Tensor):
        storage = x.untyped_storage()
        if storage._cdata in self._storages:
            return
        size = -(-storage.nbytes() // _ALLOCATION) * _ALLOCATION
        self._storages.add(storage._cdata)
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._free, storage._cdata, size)

    def _free(self, storage: int, size: int):
        self._storages.discard(storage)
        self.live_bytes -= size

    def _keep(self, kernel, args, options):
        jit = _triton_jit()
        from triton.backends.compiler import GPUTarget
        from triton.compiler import make_backend

        grid = options.pop("grid")
        options.pop("warmup")
        names = [p.name for p in kernel.params]
        given = dict(zip(names, args)) | {k: v for k, v in options.items() if k in names}
        tensors = {k: v for k, v in given.items() if isinstance(v, Tensor)}
        pointers = {k: _Pointer(x, number) for number, (k, x) in enumerate(tensors.items())}
        given = {k: pointers.get(k, v) for k, v in given.items()}
        backend = make_backend(GPUTarget("cuda", self.card.gpu.capability, 32))
        # The very steps of a launch, up to the compiler.
        bind = jit.create_function_from_signature(kernel.signature, kernel.params, backend)
        settings = {k: v for k, v in options.items() if k not in names}
        bound, specialization, _ = bind(**given)
        parsed, signature, constants, attributes = kernel._pack_args(backend, settings, bound, specialization, None)
        grid = grid(bound) if callable(grid) else grid
        launch = Launch(
            module=kernel.fn.__module__,
            kernel=kernel.fn.__name__,
            grid=(*grid, 1, 1)[:3],
            values={
                k: pointers[k].data_ptr() if k in pointers else bound[k] for k in names if signature[k] != "constexpr"
            },
            tensor_bytes={k: _bytes(x) for k, x in tensors.items()},
            signature=signature,
            constants=constants,
            attributes=attributes,
            options={k: v for k, v in settings.items() if k in parsed.__dict__},
        )
        first = next(iter(tensors.values())).dtype if tensors else torch.float32
        self.steps.append(Step(launch.name, sum(launch.tensor_bytes.values()), dtype=first, launch=launch))


def _triton_jit():
    try:
        from triton import knobs
        from triton.runtime import jit
    except ImportError as error:
        raise RuntimeError(
            f"what kernels compile to is found with Triton, which cannot be imported ({error})"
        ) from error
    if knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET=1 replaces Triton's compiler: unset it before Python starts")
    return jit


@contextlib.contextmanager
def autocast(dtype: torch.dtype | None) -> Iterator[None]:
    """`torch.autocast` of "cuda", which itself refuses where there is none; None for none."""
    if dtype is None:
        yield
        return
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_iter(tree) if isinstance(x, Tensor) and x.device.type == "cuda"]


def _bytes(x: Tensor) -> int:
    # What is repeated by a stride of 0 is there once.
    return math.prod(size for size, stride in zip(x.shape, x.stride()) if stride) * x.element_size()


def _is_view(func) -> bool:
    returned = [value.alias_info for value in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in returned)


def _products(packet) -> Any:
    """The formula of a matrix product: torch's own, or of one that comes whole from within an operator of ours."""
    return _WHOLE.get(packet) or flop_registry.get(packet)


def _product_flops(left: Tensor, *_, out_val: Tensor, **__) -> int:
    return 2 * out_val.numel() * left.shape[-1]


_WHOLE = {
    torch.ops.aten.linear: _product_flops,
    torch.ops.aten.matmul: _product_flops,
    torch.ops.aten.addmm_: lambda added, left, *_, **kwargs: _product_flops(left, **kwargs),
}
