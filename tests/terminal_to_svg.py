"""A screen as 'tmux capture-pane -e -p' tells it, from standard input, as an SVG picture. The argument is its title."""
import html
import re
import sys

NAMED = ["#2e3436", "#ef5350", "#7cb342", "#f9a825", "#42a5f5", "#ab47bc", "#26c6da", "#e0e0e0",
         "#757575", "#ff8a80", "#aed581", "#ffd54f", "#90caf9", "#ce93d8", "#80deea", "#ffffff"]
PLAIN, GROUND = "#d0d0d0", "#16191d"
WIDE, HIGH = 8.43, 18
# Browsers draw several spaces as one.
NO_BREAK = chr(0xA0)


def of_256(n):
    if n < 16:
        return NAMED[n]
    if n < 232:
        levels = [0, 95, 135, 175, 215, 255]
        n -= 16
        return "#%02x%02x%02x" % (levels[n // 36], levels[n // 6 % 6], levels[n % 6])
    return "#%02x%02x%02x" % ((8 + 10 * (n - 232),) * 3)


def styled(style, codes):
    """The style after an SGR sequence: colour, ground, bold, dim, reversed."""
    color, ground, bold, dim, turned = style
    codes = [int(c or 0) for c in codes]
    while codes:
        code = codes.pop(0)
        if code == 0:
            color, ground, bold, dim, turned = PLAIN, None, False, False, False
        elif code in (1, 2, 7):
            bold, dim, turned = bold or code == 1, dim or code == 2, turned or code == 7
        elif code == 22:
            bold = dim = False
        elif code == 27:
            turned = False
        elif code in (38, 48):
            if codes.pop(0) == 5:
                value = of_256(codes.pop(0))
            else:
                value = "#%02x%02x%02x" % (codes.pop(0), codes.pop(0), codes.pop(0))
            color, ground = (value, ground) if code == 38 else (color, value)
        elif 30 <= code <= 37 or 90 <= code <= 97:
            color = NAMED[code - 30 if code < 90 else code - 82]
        elif 40 <= code <= 47 or 100 <= code <= 107:
            ground = NAMED[code - 40 if code < 100 else code - 92]
        elif code in (39, 49):
            color, ground = (PLAIN, ground) if code == 39 else (color, None)
    return color, ground, bold, dim, turned


lines = sys.stdin.read().split("\n")
while lines and not lines[-1]:
    lines.pop()
boxes, texts, columns = [], [], 0
style = (PLAIN, None, False, False, False)
for row, line in enumerate(lines):
    column = 0
    for part in re.split(r"(\x1b\[[0-9;]*m)", line):
        sequence = re.fullmatch(r"\x1b\[([0-9;]*)m", part)
        if sequence:
            style = styled(style, sequence.group(1).split(";"))
            continue
        if not part:
            continue
        color, ground, bold, dim, turned = style
        if turned:
            color, ground = ground or GROUND, color
        x, y = column * WIDE, row * HIGH
        if ground:
            boxes.append(f'<rect x="{x:.1f}" y="{y}" width="{len(part) * WIDE:.1f}" height="{HIGH}" fill="{ground}"/>')
        if part.strip():
            more = ' font-weight="bold"' if bold else ""
            more += ' opacity="0.6"' if dim else ""
            texts.append(f'<text x="{x:.1f}" y="{y + 14}" fill="{color}"{more} textLength="{len(part) * WIDE:.1f}">'
                         f"{html.escape(part).replace(chr(32), NO_BREAK)}</text>")
        column += len(part)
    columns = max(columns, column)
wide, high = columns * WIDE + 24, len(lines) * HIGH + 48
print(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide:.0f} {high}" width="{wide:.0f}" height="{high}" '
      f'font-family="monospace" font-size="14">')
print(f'<rect width="100%" height="100%" rx="8" fill="{GROUND}"/>')
print(f'<text x="{wide / 2:.0f}" y="22" fill="#9e9e9e" text-anchor="middle">{html.escape(sys.argv[1])}</text>')
print('<g transform="translate(12 36)">')
print("\n".join(boxes + texts))
print("</g></svg>")
