"""What Bozkurt et al. 2021 report: their Tables 1 to 3 and the medians of their text, method by method."""

from __future__ import annotations

PAPER_TABLE_1 = {
    "toeplitz-1": (88.07, 93.41, 85.04, 82.66, 96.35, 89.71, 96.07),
    "toeplitz-7": (87.59, 92.84, 84.18, 82.89, 95.87, 89.38, 96.08),
    "toeplitz-0": (87.57, 91.63, 83.97, 84.94, 96.89, 89.40, 95.29),
    "toeplitz-3": (87.13, 91.65, 83.48, 83.89, 96.08, 89.23, 95.44),
    "toeplitz-2": (86.65, 91.44, 82.27, 83.95, 96.08, 88.91, 95.07),
    "toeplitz-5": (86.63, 91.94, 83.06, 81.87, 95.79, 88.84, 95.35),
    "global": (86.27, 92.95, 81.98, 80.43, 95.30, 88.55, 95.48),
    "full-bigru": (87.97, 93.95, 83.22, 84.16, 95.82, 90.54, 95.51),
    "partial-bigru": (87.52, 94.14, 82.54, 83.33, 94.78, 90.83, 95.44),
    "iv3-context": (86.95, 92.00, 83.52, 82.64, 95.61, 89.24, 95.56),
    "inception-v3": (84.87, 88.83, 84.66, 78.18, 95.84, 85.73, 96.23),
    "hames": (84.48, 88.87, 80.93, 81.85, 93.81, 87.81, 94.78),
    "kaur": (72.12, 82.44, 62.75, 66.09, 89.48, 79.35, 89.18),
}
"""Accuracy, sensitivity of epidermis, DEJ and dermis, specificity of the same, all in per cent."""

PAPER_TABLE_2 = {
    "global": (0, 0, 0, 0, 0),
    "toeplitz-1": (1, 1, 0, 1, 3),
    "toeplitz-5": (0, 1, 3, 0, 4),
    "toeplitz-7": (0, 5, 1, 1, 7),
    "full-bigru": (0, 4, 0, 3, 7),
    "toeplitz-3": (0, 7, 2, 0, 9),
    "toeplitz-0": (0, 18, 0, 0, 18),
    "toeplitz-2": (0, 22, 0, 0, 22),
    "inception-v3": (3, 25, 8, 32, 68),
    "hames": (14, 59, 11, 56, 140),
    "kaur": (12, 133, 12, 44, 201),
}
"""Impossible transitions on 198 stacks, in the order of `IMPOSSIBLE_TRANSITIONS`, then their total."""

PAPER_TABLE_3 = {
    "toeplitz-1": (5.76, 9.24),
    "toeplitz-7": (6.79, 8.87),
    "full-bigru": (6.86, 9.29),
    "toeplitz-0": (6.94, 9.34),
    "toeplitz-5": (7.16, 9.71),
    "global": (7.23, 10.65),
    "toeplitz-2": (7.47, 9.70),
    "toeplitz-3": (7.83, 9.10),
    "inception-v3": (9.82, 10.59),
    "hames": (11.40, 11.72),
    "kaur": (18.20, 19.45),
}
"""Mean absolute error in um of the epidermis-DEJ and the DEJ-dermis boundary."""

PAPER_MEDIANS = {"full-bigru": 5.0, "partial-bigru": 5.0, "hames": 6.0, "inception-v3": 6.0}
"""Median absolute error in um of the epidermis-DEJ boundary, as the text gives it."""
