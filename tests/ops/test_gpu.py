"""Launchers are answered by the device at hand, by the interpreter's sizes, or by a GPU that is pretended."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from backbones.ops import gpu

CARD = gpu.Gpu("card", 86, 82, 6 * 2**20, 2**16, 100 * 2**10, 48)


@pytest.fixture
def two_cards(monkeypatch):
    """Two GPUs of different sizes, the second one current."""

    def properties(index):
        return SimpleNamespace(
            name=f"card {index}",
            major=9,
            minor=index,
            multi_processor_count=(132, 108)[index],
            L2_cache_size=(50, 40)[index] * 2**20,
            regs_per_multiprocessor=65536,
            shared_memory_per_multiprocessor=233472,
            max_threads_per_multi_processor=2048,
            warp_size=32,
        )

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    gpu._ask.cache_clear()
    yield
    gpu._ask.cache_clear()


@pytest.mark.usefixtures("two_cards")
def test_each_device_answers_for_itself():
    first, second = (gpu.gpu_of(torch.device("cuda", index)) for index in range(2))
    assert first == gpu.Gpu("card 0", 90, 132, 50 * 2**20, 65536, 233472, 64)
    assert (second.capability, second.multiprocessors, second.l2_bytes) == (91, 108, 40 * 2**20)
    assert gpu.gpu_of(torch.device("cuda")) == second


def test_a_device_without_cuda_is_the_interpreter():
    assert gpu.gpu_of(torch.device("cpu")) == gpu.INTERPRETER


def test_pretended_gpus_nest_and_end_with_their_block():
    other = gpu.Gpu("other", 80, 108, 40 * 2**20, 2**16, 164 * 2**10, 64)
    with gpu.pretended(CARD):
        with pytest.raises(KeyError), gpu.pretended(other):
            assert gpu.gpu_of(torch.device("cuda")) == other
            raise KeyError
        assert gpu.gpu_of(torch.device("cuda")) == gpu.gpu_of(torch.device("cpu")) == CARD
    assert gpu.gpu_of(torch.device("cpu")) == gpu.INTERPRETER


def test_sizes_of_launches():
    assert [gpu.ceil_div(n, 32) for n in (0, 1, 32, 33, 4705)] == [0, 1, 1, 2, 148]
    assert [gpu.next_power_of_2(n) for n in (1, 2, 3, 16, 17, 64)] == [1, 2, 4, 16, 32, 64]


@pytest.mark.parametrize("capability, hip, precision", [(80, None, "tf32x3"), (75, None, "ieee"), (94, "6.4", "ieee")])
def test_fp32_is_multiplied_in_three_parts_where_tensor_cores_know_tf32(capability, hip, precision, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", hip)
    with gpu.pretended(replace(CARD, capability=capability)):
        assert gpu.dot_precision(torch.device("cuda")) == precision


def test_the_interpreter_multiplies_as_it_does():
    assert gpu.dot_precision(torch.device("cpu")) == "ieee"
