"""Processes to be killed: forked in milliseconds from one that has imported everything."""

import multiprocessing
import os
import sys

import torch

import train
from emaae.runs import folder as run_folder
from emaae.system.errors import reporting_errors

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    ["children", "emaae.runs.folder", "emaae.training", "matplotlib.backends.backend_agg"]
)


def start(work, *arguments) -> multiprocessing.Process:
    process = context.Process(target=_run, args=(work, arguments), daemon=True)
    process.start()
    return process


def _run(work, arguments):
    torch.set_num_threads(1)
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    work(*arguments)


def training(argv: list[str]) -> None:
    """`python train.py ARGV`, saving its state every 20 ms, so that it can be interrupted often."""
    run_folder.KEEP_LAST_EVERY_S = 0.02
    with reporting_errors("train.py"):
        sys.exit(train.main(argv))
