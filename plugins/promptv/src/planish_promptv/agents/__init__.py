"""The agents of PromptV: prompts, conversations, and the loop of drafts, reviews, repairs and simulations."""
