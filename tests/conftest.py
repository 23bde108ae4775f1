"""Settings of the whole suite: one thread (results do not depend on the machine) and no network."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes that tests start, too
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch

from beft.training.machine import avoid_undescribed_amx

avoid_undescribed_amx()
torch.set_num_threads(1)
