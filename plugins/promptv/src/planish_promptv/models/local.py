"""Models of the transformers library on this machine. Heavy libraries are imported when the first model is loaded."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

from planish.errors import ConfigError, MissingRequirement
from planish_promptv.models.protocol import (
    Capabilities,
    ContextOverflow,
    Message,
    Price,
    Reply,
    Request,
    Usage,
    without_reasoning,
)


class TransformersProvider:
    """Folders or hub ids as models; one request at a time, each with its own seed, so results do not depend on order.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        loaded: name -> (model, tokenizer) that are in memory already.
    """

    address = "transformers"

    def __init__(self, device: str = "auto", loaded: dict[str, tuple[Any, Any]] | None = None) -> None:
        self._device = device
        self._models: dict[str, tuple[Any, Any]] = dict(loaded or {})
        self._lock = threading.Lock()

    async def complete(self, request: Request) -> Reply:
        """See `protocol.Provider`."""
        return await asyncio.to_thread(self._answer, request)

    def capabilities(self, model: str) -> Capabilities:
        """See `protocol.Provider`."""
        return Capabilities(json_mode="none")

    def price(self, model: str) -> Price | None:
        """Own hardware: no price a token."""
        return None

    async def aclose(self) -> None:
        """Forget the models."""
        self._models.clear()

    def _answer(self, request: Request) -> Reply:
        started = time.monotonic()
        with self._lock:
            model, tokenizer = self._load(request.model)
            return self._generate(request, model, tokenizer, started)

    def _generate(self, request: Request, model: Any, tokenizer: Any, started: float) -> Reply:
        import torch

        ids = _prompt(tokenizer, request.messages).to(model.device)
        room = _context(model) - ids.shape[1]
        if room < 1:
            raise ContextOverflow(
                f"model {request.model!r}: {ids.shape[1]} tokens do not fit into its context"
            )
        length = min(request.max_tokens, room)
        sampling: dict[str, Any] = {"do_sample": False}
        if request.temperature > 0:
            sampling = {
                "do_sample": True,
                "temperature": request.temperature,
                "top_p": request.top_p,
                "top_k": 0,
            }
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(request.seed)
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=length,
                pad_token_id=tokenizer.pad_token_id
                if tokenizer.pad_token_id is not None
                else tokenizer.eos_token_id,
                **sampling,
            )
        new = output[0, ids.shape[1] :]
        ended = len(new) < length or new[-1].item() == tokenizer.eos_token_id
        return Reply(
            text=without_reasoning(tokenizer.decode(new, skip_special_tokens=True)),
            finish_reason="stop" if ended else "length",
            usage=Usage(prompt=ids.shape[1], completion=len(new)),
            model=request.model,
            latency_s=time.monotonic() - started,
        )

    def _load(self, name: str) -> tuple[Any, Any]:
        if name not in self._models:
            try:
                import torch
                from transformers import AutoModelForCausalLM, AutoTokenizer
            except ModuleNotFoundError:
                raise MissingRequirement(
                    "provider 'transformers' needs: pip install 'planish-promptv[local]'"
                ) from None
            if name.startswith((".", "/", "~")) and not Path(name).is_dir():
                raise ConfigError(f"model {name!r}: no such folder")
            device = self._device
            if device == "auto":
                device = "cuda" if torch.cuda.is_available() else "cpu"
            try:
                tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
                model = AutoModelForCausalLM.from_pretrained(
                    name, trust_remote_code=False, use_safetensors=True
                )
            except (OSError, ValueError) as error:
                raise ConfigError(f"model {name!r}: {' '.join(str(error).split())[:200]}") from None
            self._models[name] = (model.to(device).eval(), tokenizer)
        return self._models[name]


def _prompt(tokenizer: Any, messages: tuple[Message, ...]) -> Any:
    """Token ids [1, T]: by the model's chat template, or plain text where it has none."""
    if getattr(tokenizer, "chat_template", None):
        text = tokenizer.apply_chat_template(
            [message.model_dump() for message in messages], tokenize=False, add_generation_prompt=True
        )
        return tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    text = "".join(f"{message.role}:\n{message.content}\n\n" for message in messages) + "assistant:\n"
    return tokenizer(text, return_tensors="pt")["input_ids"]


def _context(model: Any) -> int:
    """Tokens that fit; a large number where the config does not say."""
    return int(getattr(model.config, "max_position_embeddings", None) or 1 << 20)
