"""One self-contained HTML page of a program: its layers, its memory over time, what each pass did.

The page fetches nothing and runs its own script alone: both stand in its content policy by their
hashes. Everything that a program names reaches it as JSON, and the screen as text.
"""

from .notebook import summary_html
from .write import Shown, StageLike, write_page

__all__ = ["Shown", "StageLike", "summary_html", "write_page"]
