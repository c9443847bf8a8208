"""A mixture to the Hub, with its model card."""

from contextlib import suppress
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi
from huggingface_hub.errors import RemoteEntryNotFoundError
from peft import PeftModel

from kshot.mixture.folder import CARD_NAME


def push_to_hub(
    model: PeftModel,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload mixture",
) -> str:
    """Save a model's mixtures to a Hub repository, which is made if missing.

    `model.push_to_hub`, which is that of transformers 5, uploads the same weights with a card of its own in
    the place of the mixture's. A card that somebody wrote in the repository is kept.

    Args:
        model: Holds the mixtures.
        repo_id: `org/name`.
        private: Of a repository that is made; None: as the organisation sets it.
        token: Of the Hub; None: the stored one.
        revision: Branch; None: `main`.
        create_pr: Open a pull request instead of committing.
        commit_message: Its first line.

    Returns:
        The commit's address.
    """
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not create_pr:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    with TemporaryDirectory() as folder:
        with suppress(RemoteEntryNotFoundError):
            api.hf_hub_download(repo_id, CARD_NAME, revision=revision, local_dir=folder)
        model.save_pretrained(folder)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message,
        )
    return str(commit.commit_url)
