"""Runs the command `llm-embedder`, also as `python -m embedder.cli`."""

from __future__ import annotations

from embedder.interrupt import end_at_interrupt


def main() -> None:
    """Run what was typed."""
    end_at_interrupt("interrupted; nothing was begun")
    # Here, so that the interrupt is known before anything is imported that takes time.
    from embedder.cli.commands import APP

    APP(prog_name="llm-embedder")


if __name__ == "__main__":
    main()
