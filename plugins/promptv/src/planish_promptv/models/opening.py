"""From options to a provider."""

from __future__ import annotations

from planish.errors import ConfigError
from planish_promptv import hooks
from planish_promptv.config import GenerationConfig
from planish_promptv.models.prices import Prices
from planish_promptv.models.protocol import ROLES, Provider

NAMES = ("openai", "transformers", "scripted")


def open_provider(config: GenerationConfig) -> Provider:
    """The provider that ``config`` describes.

    Raises:
        ConfigError: something is missing for it, or nobody knows its name.
    """
    check(config)
    if config.provider == "openai":
        from planish_promptv.models.http import OpenAICompatProvider, Patience

        assert config.base_url is not None
        return OpenAICompatProvider(
            config.base_url,
            config.api_key_env,
            Prices.read(config.prices),
            Patience(timeout=config.request_timeout, tries=config.tries, base=config.retry_base),
            config.concurrency,
            config.requests_per_minute,
            config.tokens_per_minute,
        )
    if config.provider == "transformers":
        from planish_promptv.models.local import TransformersProvider

        return TransformersProvider(config.device)
    if config.provider == "scripted":
        from planish_promptv.models.scripted import Script, ScriptedProvider

        assert config.script is not None
        return ScriptedProvider(Script.read(config.script))
    found: Provider | None = hooks.provider(config.provider, config)
    if found is None:
        raise ConfigError(f"provider = {config.provider!r} is not one of {', '.join(NAMES)}, nor a plugin's")
    return found


def check(config: GenerationConfig) -> None:
    """What can be found wrong with the options before anything is asked.

    Raises:
        ConfigError: no endpoint, no model, no script, or a cost limit without prices.
    """
    if config.provider == "openai" and not config.base_url:
        raise ConfigError("base_url: give the endpoint, for instance http://localhost:11434/v1 (--base-url)")
    if config.provider == "scripted" and config.script is None:
        raise ConfigError("script: provider 'scripted' needs a file of replies (--script)")
    if config.provider in ("openai", "transformers"):
        for role in used_roles(config):
            if not config.model_of(role):
                raise ConfigError(f"model: none for the role {role!r} (--model, or models.{role})")
    prices = Prices.read(config.prices)
    limits = [config.budget.cost, getattr(config, "total_budget", config.budget).cost]
    if any(limit is not None for limit in limits):
        for role in used_roles(config):
            if prices.of(config.model_of(role)) is None:
                raise ConfigError(
                    f"budget.cost: no price is known for model {config.model_of(role)!r}; add it to the price table (prices)"
                )


def used_roles(config: GenerationConfig) -> list[str]:
    """The roles that a run with these options may call."""
    unused = set()
    if config.mode != "coopetitive":
        unused.add("prosecutor")
    if config.bench_source == "provided":
        unused |= {"bencher", "learner_bench"}
    return [role for role in ROLES if role not in unused]
