"""Pushes the model of every checkpoint to the Hub while training goes on."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
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

    One push at a time, in a thread of its own; a checkpoint that comes while an earlier one
    is still being pushed is left out. Whatever goes wrong is a line in the log; training goes on.
    """

    def __init__(self, repository: str) -> None:
        self.repository = repository
        self.thread: Thread | None = None

    def send(self, model: SentenceTransformer, step: int) -> None:
        """Copy the model to a folder of its own, since weights move on, and send it."""
        if self.thread is not None and self.thread.is_alive():
            tqdm.write(f"step {step:,}: not pushed, an earlier push is still under way")
            return
        try:
            with ExitStack() as stack:
                folder = stack.enter_context(TemporaryDirectory(prefix="simcse-push-"))
                encoder.save(encoder.exported(model), Path(folder))
                cleanup = stack.pop_all()
        except (OSError, SafetensorError) as error:  # no room for the copy
            self._warn(step, error)
            return
        # Not the client's run_as_future: Python would wait for it at exit, however long it takes.
        self.thread = Thread(target=self._push, args=(folder, step, cleanup), daemon=True)
        self.thread.start()

    def finish(self) -> None:
        """Wait for the last push, at most :data:`WAIT_AT_THE_END`."""
        if self.thread is not None:
            self.thread.join(WAIT_AT_THE_END)

    def _push(self, folder: str, step: int, cleanup: ExitStack) -> None:
        api, name = HfApi(), self.repository

        def push() -> None:
            api.create_repo(name, private=True, exist_ok=True)
            if not api.model_info(name).private:
                raise UserError(f"{name} is public; checkpoints go to private ones")
            api.create_branch(name, branch=BRANCH, exist_ok=True)
            api.upload_folder(
                repo_id=name, folder_path=folder, revision=BRANCH, commit_message=f"step {step}"
            )

        try:
            with cleanup:
                with_retries(push, f"push to {name}", attempts=1)
        except Exception as error:  # a thread has nobody to raise to
            self._warn(step, error)

    def _warn(self, step: int, error: Exception) -> None:
        reason = masked(str(error))
        tqdm.write(f"warning: checkpoint of step {step:,} not pushed: {reason}; training goes on")
