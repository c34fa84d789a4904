"""Pushes the model of every checkpoint to the Hub while training goes on."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from threading import Thread

from huggingface_hub import HfApi
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from tqdm import tqdm

from simcse.encoders import encoder
from simcse.errors import UserError
from simcse.hub.failures import masked, with_retries

BRANCH = "checkpoints"
WAIT_AT_THE_END = 300.0
"""Seconds that the end of training waits for the last push."""


class CheckpointPushes:
    """Sends each checkpoint's model, without optimiser state, to a branch of a private repository.

    One push at a time, in a thread of its own; a checkpoint that comes while the one before is
    still on its way is left out. Whatever goes wrong is a line, never the end of the training.
    """

    def __init__(self, repository: str) -> None:
        self.repository = repository
        self.thread: Thread | None = None

    def send(self, model: SentenceTransformer, step: int) -> None:
        """Copy the model to a folder of its own, since weights move on, and send it."""
        if self.thread is not None and self.thread.is_alive():
            tqdm.write(f"step {step:,}: not pushed, the push before is under way")
            return
        folder = None
        try:
            folder = Path(tempfile.mkdtemp(prefix="simcse-push-"))
            encoder.save(encoder.exported(model), folder)
        except (OSError, SafetensorError) as error:  # no room for the copy
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            self._warn(step, error)
            return
        self.thread = Thread(target=self._push, args=(folder, step), daemon=True)
        self.thread.start()

    def finish(self) -> None:
        """Wait for the last push, but not for ever."""
        if self.thread is not None:
            self.thread.join(WAIT_AT_THE_END)

    def _push(self, folder: Path, step: int) -> None:
        api = HfApi()
        try:
            with_retries(
                lambda: api.create_repo(self.repository, private=True, exist_ok=True),
                f"create {self.repository}",
                attempts=1,
            )
            info = with_retries(
                lambda: api.model_info(self.repository), f"look for {self.repository}", attempts=1
            )
            if not info.private:
                raise UserError(f"{self.repository} is public; checkpoints go to private ones")
            with_retries(
                lambda: api.create_branch(self.repository, branch=BRANCH, exist_ok=True),
                f"make branch {BRANCH}",
                attempts=1,
            )
            with_retries(
                lambda: api.upload_folder(
                    repo_id=self.repository,
                    folder_path=folder,
                    revision=BRANCH,
                    commit_message=f"step {step}",
                ),
                f"push to {self.repository}",
                attempts=1,
            )
        except Exception as error:  # a thread has nobody to raise to
            self._warn(step, error)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _warn(self, step: int, error: Exception) -> None:
        reason = masked(str(error))
        tqdm.write(f"warning: checkpoint of step {step:,} not pushed: {reason}; training goes on")
