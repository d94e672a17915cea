"""Evaluation on benchmarks: pass@k, cost, degeneration, resumable runs, replays and reports."""
