"""Language models behind one protocol: any OpenAI-compatible endpoint, local transformers, scripts, and replays."""
