"""Block-wise fit: parts of a model, each fitted alone against the teacher's, side by side."""

from adntn.training.blocks.find import Block, find_blocks
from adntn.training.blocks.jobs import BlockFit, Done, Job, run_job
from adntn.training.blocks.make import Maker
from adntn.training.blocks.results import fingerprint, keep, kept, put

__all__ = ["Block", "BlockFit", "Done", "Job", "Maker", "find_blocks", "fingerprint", "keep", "kept", "put", "run_job"]
