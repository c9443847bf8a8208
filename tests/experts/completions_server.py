"""A local server that speaks `/v1/completions` as vLLM does, a real model with PEFT adapters behind it."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..endpoint.server import LocalServer, Reply, fails

BASE = "the-base"


class ModelServer(LocalServer):
    """Serves a base model and adapters, by the names they are given.

    Args:
        base: Folder of the base model.
        adapters: Served name and folder.
        knows: Ways to the log-probabilities of a prompt: `prompt_logprobs` (vLLM) and `echo` (older servers).
        applies: Whether adapters are applied.
    """

    def __init__(
        self,
        base: Path,
        adapters: Mapping[str, Path],
        *,
        knows: tuple[str, ...] = ("prompt_logprobs", "echo"),
        applies: bool = True,
    ) -> None:
        self.knows = knows
        self.applies = applies
        self.adapters = dict(adapters)
        self._tokenizer = AutoTokenizer.from_pretrained(base)
        self._one_at_a_time = threading.Lock()
        self._model: Any = AutoModelForCausalLM.from_pretrained(base)
        for name, folder in adapters.items():
            if isinstance(self._model, PeftModel):
                self._model.load_adapter(folder, adapter_name=name)
            else:
                self._model = PeftModel.from_pretrained(self._model, folder, adapter_name=name)
        self._model.eval()
        super().__init__(self.honest)

    @property
    def completions(self) -> list[dict[str, Any]]:
        """Requests for completions."""
        return [request for request in self.requests if request["path"] == "/v1/completions"]

    def honest(self, request: dict[str, Any], number: int) -> Reply:
        if request["path"] == "/v1/models":
            cards = [{"id": name, "object": "model", "parent": BASE} for name in self.adapters]
            return Reply({"object": "list", "data": [{"id": BASE, "parent": None}, *cards]})
        if request["model"] not in {BASE, *self.adapters}:
            return fails(404, f"The model `{request['model']}` does not exist.")
        with self._one_at_a_time, torch.inference_mode():
            return Reply(self._complete(request))

    def change(self, change: Callable[[dict[str, Any]], Any], *, model: str | None = None) -> None:
        """Let `change` have the choice of every completion, of one model alone if one is named."""

        def reply(request: dict[str, Any], number: int) -> Reply:
            honest = self.honest(request, number)
            if request["path"] == "/v1/completions" and model in (None, request["model"]):
                change(honest.body["choices"][0])
            return honest

        self.reply = reply

    def _complete(self, request: dict[str, Any]) -> dict[str, Any]:
        prompt, model = request["prompt"], request["model"]
        assert request["temperature"] == 0
        if model == BASE or not self.applies:
            with self._model.disable_adapter():
                new, logprobs = self._greedy(prompt, request), self._logprobs(prompt)
        else:
            self._model.set_adapter(model)
            new, logprobs = self._greedy(prompt, request), self._logprobs(prompt)
        text = self._tokenizer.decode(new, skip_special_tokens=True)
        choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": "length", "logprobs": None}
        if "prompt_logprobs" in self.knows:
            choice["prompt_logprobs"] = None
            if request.get("prompt_logprobs") is not None:
                pairs = zip(prompt[1:], logprobs, strict=True)
                choice["prompt_logprobs"] = [None, *({str(id_): {"logprob": one}} for id_, one in pairs)]
            if request.get("return_token_ids"):
                choice["token_ids"] = new
        if request.get("echo"):
            echoed = [None, *logprobs] if "echo" in self.knows else []
            choice["logprobs"] = {"token_logprobs": [*echoed, -0.5]}
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(new)}
        return {"id": "1", "object": "text_completion", "model": model, "choices": [choice], "usage": usage}

    def _logprobs(self, prompt: list[int]) -> list[float]:
        logits = self._model(input_ids=torch.tensor([prompt])).logits[0, :-1].float()
        ids = torch.tensor(prompt[1:])
        return logits.log_softmax(dim=-1)[range(len(ids)), ids].tolist()

    def _greedy(self, prompt: list[int], request: dict[str, Any]) -> list[int]:
        ends = {self._tokenizer.eos_token_id, *request.get("stop_token_ids", [])}
        new: list[int] = []
        while len(new) < request["max_tokens"]:
            new.append(self._model(input_ids=torch.tensor([prompt + new])).logits[0, -1].argmax().item())
            if new[-1] in ends:
                break
        return new
