"""A sheet of boxes, arrows and text that becomes an SVG file: the same drawing gives the same bytes.

The background is white, so that the drawing is readable on a dark page as well.
"""

from xml.sax.saxutils import escape

INK, QUIET, LINE = "#1c2530", "#5b6673", "#3c4754"
CONV, NORM, NEURON, JOIN, POOL, READ = "#cfe2f5", "#e6e9ed", "#fbd9b5", "#c9e7cf", "#e4dbf3", "#f6f0c8"
FUSED = "#c2410c"
FONT = "Helvetica, Arial, 'DejaVu Sans', sans-serif"


class Sheet:
    """A drawing with coordinates in pixels, y downwards.

    Args:
        width, height: size of the sheet.
        title, text: title and description for screen readers.
    """

    def __init__(self, width: int, height: int, title: str, text: str):
        self.width, self.height = width, height
        self.title, self.description = title, text
        self.parts: list[str] = []

    def add(self, tag: str, content: str | None = None, **attributes) -> None:
        names = " ".join(f'{k.replace("_", "-")}="{v}"' for k, v in attributes.items())
        self.parts.append(f"<{tag} {names}/>" if content is None else f"<{tag} {names}>{content}</{tag}>")

    def text(self, x, y, words: str, size=12, colour=INK, anchor="middle", weight="normal", style="normal") -> None:
        face = {"font_size": size, "font_weight": weight, "font_style": style}
        self.add("text", escape(words), x=x, y=y, fill=colour, text_anchor=anchor, **face)

    def box(self, x, y, w, h, lines: str | list[str], fill, size=12) -> None:
        """Draws a filled box with centre x and upper edge y."""
        self.add("rect", x=x - w / 2, y=y, width=w, height=h, rx=4, fill=fill, stroke=LINE, stroke_width=1)
        lines = [lines] if isinstance(lines, str) else lines
        first = y + h / 2 - (len(lines) - 1) * (size + 3) / 2 + size * 0.36
        for i, line in enumerate(lines):
            self.text(x, round(first + i * (size + 3), 1), line, size)

    def circle(self, x, y, words: str, r=13, fill=JOIN) -> None:
        self.add("circle", cx=x, cy=y, r=r, fill=fill, stroke=LINE, stroke_width=1)
        self.text(x, y + 4.5, words, 13, style="italic" if words.isalpha() else "normal")

    def frame(self, x, y, w, h, colour=FUSED, dash="5 3", fill="none") -> None:
        """Draws a dashed frame with upper left corner (x, y)."""
        line = {"stroke": colour, "stroke_width": 1.4, "stroke_dasharray": dash}
        self.add("rect", x=x, y=y, width=w, height=h, rx=7, fill=fill, **line)

    def line(self, *points, head=True, colour=LINE) -> None:
        """Draws a line through the points, with an arrow head at its end."""
        path = "M" + " L".join(f"{x},{y}" for x, y in points)
        arrow = {"marker_end": "url(#head)"} if head else {}
        self.add("path", d=path, fill="none", stroke=colour, stroke_width=1.3, **arrow)

    def dot(self, x, y) -> None:
        self.add("circle", cx=x, cy=y, r=2.6, fill=LINE)

    def __str__(self) -> str:
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}" '
            f'viewBox="0 0 {self.width} {self.height}" font-family="{FONT}" role="img">'
        )
        marker = (
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7.2" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0,0.8 L7.5,4 L0,7.2 z" fill="{LINE}"/></marker></defs>'
        )
        paper = f'<rect width="{self.width}" height="{self.height}" rx="10" fill="#ffffff"/>'
        about = f"<title>{escape(self.title)}</title><desc>{escape(self.description)}</desc>"
        return "\n".join([head, about, marker, paper, *self.parts, "</svg>", ""])
