"""Which shard a process has by the variables of Slurm, torchrun and Kubernetes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retailtag.errors import UsageError
from retailtag.extraction.schedulers import shard_of
from retailtag.extraction.shards import Shard


def slurm_array(task, first, last, count=None):
    """Variables of one task of ``--array=first-last``."""
    count = last - first + 1 if count is None else count
    names = ("ID", "MIN", "MAX", "COUNT")
    values = (task, first, last, count)
    return {f"SLURM_ARRAY_TASK_{n}": str(v) for n, v in zip(names, values, strict=True)}


def srun(task, of):
    return {"SLURM_PROCID": str(task), "SLURM_STEP_NUM_TASKS": str(of), "SLURM_NTASKS": str(of)}


def torchrun(rank, of, nodes):
    return {"RANK": str(rank), "WORLD_SIZE": str(of), "GROUP_WORLD_SIZE": str(nodes)}


def pod(index, of):
    return {"JOB_COMPLETION_INDEX": str(index), "JOB_COMPLETIONS": str(of)}


@pytest.mark.parametrize(
    ("environment", "shard"),
    [
        (slurm_array(0, 0, 7), Shard(1, 8)),
        (slurm_array(8, 1, 8), Shard(8, 8)),
        (srun(2, 4), Shard(3, 4)),
        (slurm_array(1, 0, 2) | srun(3, 4), Shard(8, 12)),
        (torchrun(5, 8, nodes=2), Shard(6, 8)),
        (torchrun(5, 8, nodes=2) | srun(1, 2), Shard(6, 8)),  # one task of srun per node
        (torchrun(1, 2, nodes=1) | srun(3, 4), Shard(8, 8)),  # each task has its own torchrun
        (torchrun(1, 2, nodes=1) | slurm_array(3, 0, 3), Shard(8, 8)),
        (torchrun(1, 2, nodes=1) | pod(1, 3), Shard(4, 6)),
        (torchrun(3, 4, nodes=2) | {"JOB_COMPLETION_INDEX": "1"}, Shard(4, 4)),
        ({"RANK": "1", "WORLD_SIZE": "3"}, Shard(2, 3)),
        (pod(15, 16), Shard(16, 16)),
        # a batch script runs once, however many tasks its allocation has
        (slurm_array(1, 0, 3) | {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, Shard(2, 4)),
    ],
)
def test_each_scheduler_numbers_the_process(environment, shard):
    assert shard_of("auto", environment)[0] == shard


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_processes_of_nested_schedulers_have_every_shard_once(n_array, n_tasks, n_ranks):
    found = [
        shard_of(
            "auto", slurm_array(a, 0, n_array - 1) | srun(t, n_tasks) | torchrun(r, n_ranks, 1)
        )
        for a in range(n_array)
        for t in range(n_tasks)
        for r in range(n_ranks)
    ]
    n = n_array * n_tasks * n_ranks
    assert [shard for shard, _ in found] == [Shard(i, n) for i in range(1, n + 1)]


def test_numbers_are_not_looked_at_if_they_are_given():
    assert shard_of("2/3", torchrun(0, 8, nodes=1)) == (Shard(2, 3), "")


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({}, "finds no number of this process"),
        ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, "finds no number"),
        # tasks 3 and 5 of eight are repeated: not halves of the catalogue
        (slurm_array(3, 3, 5, count=2), "2 tasks from 3 to 5; to repeat some shards"),
        (slurm_array(3, 3, 3), "needs an array of 0-0 or 1-1"),
        (slurm_array(4, 0, 8, count=3), "3 tasks from 0 to 8"),
        ({"SLURM_ARRAY_TASK_ID": "3"}, "SLURM_ARRAY_TASK_MIN is not set"),
        ({"JOB_COMPLETION_INDEX": "3"}, "set JOB_COMPLETIONS to the completions"),
        (pod(8, 8), "JOB_COMPLETION_INDEX numbers this process 9 of 8"),
        (pod(1, 2) | srun(0, 2), "both Slurm and Kubernetes"),
        (torchrun(1, 8, nodes=2) | slurm_array(1, 0, 3), "torchrun over several nodes in a Slurm"),
        ({"RANK": "0"}, "WORLD_SIZE is not set"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK is 'one', which is no number"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK is '-1'"),
    ],
)
def test_what_gives_no_certain_number_is_refused_in_one_sentence(environment, sentence):
    with pytest.raises(UsageError, match=sentence) as refusal:
        shard_of("auto", environment)
    assert "\n" not in str(refusal.value)
