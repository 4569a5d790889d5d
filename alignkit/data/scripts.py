"""Scripts that do not separate words by spaces, as ranges for a regular expression's character class."""

from __future__ import annotations

CJK = (
    "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    "\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # kana
    "\u3105-\u312f"  # bopomofo
)
"""Chinese and Japanese: one character is counted as one word."""

UNSPACED = CJK + "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3"
"""`CJK`, Thai, Lao, Burmese, Khmer, and Hangul, whose words are spaced but carry their particles."""
