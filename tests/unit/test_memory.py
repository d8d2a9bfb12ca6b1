"""Short memory: every kind of error is known as one, batches are halved, and what fitted is remembered."""

from __future__ import annotations

import pytest
import torch

from embedder.models.memory import TRIED_AGAIN, BatchLimit, halving_on_memory_error, is_memory_error, one_memory_error


def cpu_message():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**14)
    return str(caught.value)


SHORT = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError(cpu_message()),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("ONNX Runtime: Failed to allocate memory for requested buffer of size 123"),
    RuntimeError("std::bad_alloc"),
]
OTHER = [
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("shape '[2, 3]' is invalid for input of size 7"),
    IndexError("index out of range in self"),
    OSError("out of memory"),
]


@pytest.mark.parametrize("error", SHORT)
def test_one_memory_error_knows_every_kind(error):
    assert is_memory_error(error)
    with pytest.raises(torch.OutOfMemoryError), one_memory_error():
        raise error


@pytest.mark.parametrize("error", OTHER)
def test_one_memory_error_leaves_what_has_another_cause(error):
    assert not is_memory_error(error)
    with pytest.raises(type(error)) as caught, one_memory_error():
        raise error
    assert caught.value is error


class Small:
    """Doubles numbers, so many at once at most."""

    def __init__(self, most):
        self.most, self.sizes = most, []

    def __call__(self, numbers):
        self.sizes.append(sum(numbers))
        if sum(numbers) > self.most:
            raise torch.OutOfMemoryError("pretended")
        return [2 * number for number in numbers]


def test_halving_remembers_the_size_and_the_next_batch_does_not_fail():
    small, limit = Small(3), BatchLimit("doubling", "ones")
    for _ in range(3):
        assert halving_on_memory_error(small, [1] * 8, limit, sum) == [2] * 8
    assert small.sizes == [8, 4, 2, 2, 2, 2, *[2] * 8]
    assert limit.most == 2


def test_halving_without_a_limit_tries_the_whole_batch_each_time():
    small = Small(2)
    for _ in range(2):
        halving_on_memory_error(small, [1] * 4)
    assert small.sizes == [4, 2, 2] * 2


def test_halving_tries_a_single_item_whatever_the_limit():
    small, limit = Small(9), BatchLimit("doubling")
    limit.lower(4)
    assert halving_on_memory_error(small, [9], limit, sum) == [18]
    small.most = 8
    with pytest.raises(torch.OutOfMemoryError):
        halving_on_memory_error(small, [9], limit, sum)
    assert limit.most == 2


def test_batch_limit_says_in_the_log_what_is_tried(caplog):
    BatchLimit("encoding", "padded tokens").lower(65536)
    assert caplog.messages == ["encoding: 65536 padded tokens at once do not fit into memory; 32768 are tried"]


def test_batch_limit_grows_again_when_many_batches_of_its_size_have_fitted():
    small, limit = Small(2), BatchLimit("doubling")
    halving_on_memory_error(small, [1] * 4, limit, sum)
    small.most = 100
    assert limit.most == 2
    for _ in range(TRIED_AGAIN):
        halving_on_memory_error(small, [1], limit, sum)
    assert limit.most == 2, "small batches tell nothing"
    for _ in range(TRIED_AGAIN):
        halving_on_memory_error(small, [1, 1], limit, sum)
    assert limit.most == 4
