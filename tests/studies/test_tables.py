"""The study's tables against literals."""

from studies.tables import comparison_table, results_table
from studies.variants import VARIANTS


def result(accuracy, tokens, gradients=(4.0, 2.0, 1.0, 1.0)):
    """A result of four layers, of which the third is the deep one."""
    numbers = dict(effective_tokens=0.0, top_share=0.0, mean_distance=0.0, class_effective_tokens=0.0)
    deep = dict(effective_tokens=tokens, top_share=0.25, mean_distance=17.0, class_effective_tokens=2 * tokens)
    layers = [numbers, numbers, deep, numbers]
    reached = zip(layers, gradients, (7.0, 1.0, 1.0, 1.0))
    return dict(
        accuracy=accuracy, layers=[{**layer, "gradient": g, "gradient_tokens": tokens} for layer, g, tokens in reached]
    )


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_a_row_has_each_seed_and_the_spread():
    table = results_table(
        {"vit-plain": [result(0.5, 10.0), result(0.7, 12.0)], "mamba-plain": [result(0.25, 3.0)], "vit-fixed": []},
        VARIANTS,
    )
    header, _, vit, mamba = cells(table)
    assert header[:3] == ["network", "accuracy, %", "each seed"]
    # The spread of two values is their distance over √2.
    assert vit[:3] == ["ViT, plain", "60.0 ± 14.1", "50.0 70.0"]
    assert vit[3:7] == ["11.0 ± 1.4", "25.0 ± 0.0", "17.0 ± 0.0", "22.0 ± 2.8"]
    # The first third of four layers is two, which have 6 of 8; the other number is the first layer's.
    assert vit[7:] == ["75.0 ± 0.0", "7.0 ± 0.0"]
    assert mamba == ["Mamba, plain", "25.0", "25.0", "3.0", "25.0", "17.0", "6.0", "75.0", "7.0"]


def test_differences_of_pairs():
    results = {
        "vit-defocus": [result(a, 1.0) for a in (0.3, 0.4, 0.5)],
        "vit-plain": [result(a, 1.0) for a in (0.1, 0.2, 0.3)],
        "mamba-defocus": [result(0.5, 1.0)],
        "mamba-plain": [result(0.75, 1.0)],
    }
    pairs = [("vit-defocus", "vit-plain"), ("mamba-defocus", "mamba-plain"), ("retnet-defocus", "retnet-plain")]
    table = comparison_table(results, VARIANTS, pairs, lambda found: 100 * found["accuracy"])
    # t = 20 / √(2 · 100 / 3) = 2.449 with 4 degrees of freedom; 2.776 of its standard errors are 22.7.
    assert cells(table)[2:] == [
        ["De-focus ViT − ViT, plain", "+20.0", "-2.7 to +42.7", "0.070"],
        ["De-focus Mamba − Mamba, plain", "-25.0", "–", "–"],
    ]
