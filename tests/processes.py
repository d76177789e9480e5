"""Functions in processes of their own, one or several that train together.

They are forked from a server that has imported everything and computed nothing, so that each starts
at once and none inherits what a test has done.
"""

import io
import multiprocessing
import os
import signal
import socket
import traceback
import warnings
from multiprocessing.connection import wait

import torch
import torch.distributed as dist

KILLED = -signal.SIGKILL
ENOUGH_SECONDS = 120


def in_processes(target, *arguments, count: int = 1, may_fail: bool = False) -> list:
    """Call a function in each of ``count`` processes; its answers, or ``KILLED`` where it was.

    An error is raised here, or if it may be is the answer, as text. Several processes find
    themselves in an environment as torchrun makes it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.killing", "tests.training.together"])
    places = _places(count)
    pipes = [context.Pipe(duplex=False) for _ in places]
    processes = [
        context.Process(target=_call, args=(sending, place, target, arguments))
        for (_, sending), place in zip(pipes, places, strict=True)
    ]
    for process in processes:
        process.start()
    for _, sending in pipes:
        sending.close()
    answers = [_answer(process, pipe) for process, (pipe, _) in zip(processes, pipes, strict=True)]
    failed = [answer for answer in answers if isinstance(answer, str)]
    assert may_fail or not failed, "\n".join(failed)
    return answers


def _places(count: int) -> list[dict[str, str]]:
    if count == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "GROUP_RANK": "0",
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "tests",
        }
        for rank in range(count)
    ]


def _call(sending, place, target, arguments) -> None:
    # Else its loaders would fork from servers of their own, which outlive a process that is killed.
    multiprocessing.set_start_method("fork", force=True)
    os.environ.update(place)
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    # Of 1×1 kernels, which have no layout.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    # DistributedDataParallel makes itself known to autograd on a CUDA stream of its own.
    warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream does not match")
    try:
        answer = io.BytesIO()  # tensors would go through shared memory, one descriptor each
        torch.save(target(*arguments), answer)
        sending.send((True, answer.getvalue()))
    except BaseException:
        sending.send((False, traceback.format_exc()))
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _answer(process, pipe):
    """What a process sent, or how it died; its own children may hold the pipe open for longer."""
    wait([pipe, process.sentinel], ENOUGH_SECONDS)
    try:
        right, answer = pipe.recv() if pipe.poll() else (False, None)
    except EOFError:
        right, answer = False, None
    process.join(10)
    if process.is_alive():
        process.kill()
        process.join()
        assert answer is not None, f"a process says nothing for {ENOUGH_SECONDS} s"
    if answer is None:
        return process.exitcode
    return torch.load(io.BytesIO(answer), weights_only=False) if right else answer
