"""From candidates to rewards given by an LLM."""
