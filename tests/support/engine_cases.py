"""Situations that reach each path of the CPU engines, beside those of cases.py: sums, rows, positions of every size.

The engines cut sums into chunks, rows and channels into tiles and panels, and positions of all images into blocks;
bfloat16 is multiplied in pairs. Sizes here lie below, at and above these limits.
"""

from typing import Any

from cases import CASES, Case, make_case

_PAD_1 = ((1, 1),) * 3
_NONE = ((0, 0),) * 3
_SQUARE: dict[str, Any] = {"kernel_size": (3, 3, 3), "padding": _PAD_1}
_BIASED = _SQUARE | {"bias": True}
_POINTWISE: dict[str, Any] = {"kernel_size": (1, 1, 1)}


def _grouped(groups: int, channels: int, rows: int, **changes: Any) -> dict[str, Any]:
    return {"groups": groups, "in_channels": groups * channels, "out_channels": groups * rows, **changes}


def _depthwise(channels: int, **changes: Any) -> dict[str, Any]:
    return _grouped(channels, 1, 1, **_SQUARE) | changes


_PLANES: dict[str, dict[str, Any]] = {
    # Sums longer than a chunk: over channels and taps, over channels alone; in the gradients over rows and positions.
    "terms_1152": {"in_channels": 128, "out_channels": 7, "input_size": (5, 4), **_SQUARE, "bias": True},
    "terms_2313": {"in_channels": 257, "out_channels": 5, "input_size": (4, 3), **_SQUARE},
    "terms_2700_of_the_gradient": {"in_channels": 5, "out_channels": 300, "input_size": (4, 3), **_SQUARE},
    "channels_1100": {"in_channels": 1100, "out_channels": 6, "input_size": (3, 3), **_POINTWISE},
    "channels_1031_and_2_taps": {"in_channels": 1031, "out_channels": 3, "input_size": (3, 3), "kernel_size": (2, 1)},
    "channels_2052_and_2_taps": {"in_channels": 2052, "out_channels": 3, "input_size": (3, 2), "kernel_size": (1, 2)},
    "rows_1100": {"in_channels": 5, "out_channels": 1100, "input_size": (3, 3), **_POINTWISE, "bias": True},
    "positions_5043": {"batch": 3, "in_channels": 3, "out_channels": 9, "input_size": (41, 41), **_SQUARE},
    # Patches beyond a block of the weight gradient.
    "patches_300": {"in_channels": 34, "out_channels": 70, "input_size": (6, 5), **_SQUARE},
    # Taps in blocks, of panels of channels where few rows leave few tasks.
    "taps_25_of_32_channels": {"in_channels": 32, "out_channels": 6, "input_size": (6, 9), "kernel_size": (5, 5)}
    | {"padding": ((2, 2), (2, 2))},
    # Positions of several images in one panel, and of one image alone.
    "positions_of_5_images": {"batch": 5, "in_channels": 16, "out_channels": 18, "input_size": (7, 7), **_SQUARE},
    "one_position_of_37_images": {"batch": 37, "in_channels": 10, "input_size": (3, 2), "kernel_size": (3, 2)},
    "few_positions_of_130_channels": {"in_channels": 130, "out_channels": 100, "input_size": (2, 3), **_BIASED},
    "one_pixel_of_5_images": {"batch": 5, "in_channels": 9, "input_size": (1, 1), **_SQUARE, "bias": True},
    # Rows of positions longer than a panel, with neighbours and with gaps.
    "wide": {"input_size": (3, 150), **_SQUARE, "bias": True},
    "wide_strided": {"batch": 1, "input_size": (4, 203), **_SQUARE, "stride": (1, 2)},
    "wide_dilated": {"batch": 1, "input_size": (3, 140), **_SQUARE, "dilation": (1, 3), "padding": ((1, 1), (3, 3))},
    # Taps that read only padding in some panels of positions, with runs and blocks of every length.
    "missing_taps": {"in_channels": 9, "out_channels": 100, "input_size": (12, 16), **_SQUARE, "dilation": (5, 5)}
    | {"padding": ((5, 5), (5, 5)), "bias": True},
    # Weights that the gradient turns a few rows at a time: rows and channels left over, panels of several tasks,
    # groups, few terms of many taps.
    "turned": {"in_channels": 70, "out_channels": 200, "input_size": (5, 31), **_SQUARE},
    "turned_for_many_panels": {"in_channels": 7, "out_channels": 98, "input_size": (20, 41), **_SQUARE},
    "turned_as_a_whole": {"in_channels": 7, "out_channels": 98, "input_size": (29, 41), **_SQUARE},
    "turned_in_groups": _grouped(2, 9, 104, input_size=(8, 7), **_SQUARE),
    "turned_under_81_taps": {"in_channels": 8, "out_channels": 100, "input_size": (10, 9), "kernel_size": (9, 9)}
    | {"padding": ((4, 4), (4, 4))},
    "missing_taps_of_300_channels": {"in_channels": 7, "out_channels": 300, "input_size": (9, 16), **_SQUARE}
    | {"dilation": (4, 1), "padding": ((4, 4), (1, 1))},
    # Planes with borders, read where they lie: bands, chunks of channels, kernel planes beyond the image.
    "planes": {"in_channels": 40, "out_channels": 7, "input_size": (21, 33), **_SQUARE, "bias": True},
    "planes_of_the_gradient": {"in_channels": 6, "out_channels": 70, "input_size": (19, 30), **_SQUARE},
    "planes_dilated": {"in_channels": 34, "out_channels": 8, "input_size": (20, 50), **_SQUARE, "dilation": (2, 3)}
    | {"padding": ((2, 1), (0, 4))},
    "planes_of_groups": _grouped(2, 32, 5, input_size=(17, 40), **_SQUARE),
    # Positions in a line whose last axis is of size 1, with a stride that says nothing of their distance.
    "last_axis_of_one": {"batch": 1, "in_channels": 64, "out_channels": 5, "input_size": (15, 1), "kernel_size": (2, 2)}
    | {"stride": (1, 2), "padding": ((3, 1), (0, 2)), "dilation": (3, 1)},
    # Taps farther from each other than a row is long; rows of an odd number of positions, of many channels and rows.
    "far_taps": {"in_channels": 17, "input_size": (4, 100), **_SQUARE, "dilation": (1, 40)},
    "odd_rows": {"in_channels": 34, "out_channels": 20, "batch": 3, "input_size": (9, 11), **_SQUARE, "bias": True},
    "odd_rows_strided": {"in_channels": 18, "out_channels": 33, "input_size": (7, 21), **_SQUARE, "stride": (2, 2)},
    # Few channels and long rows: in one piece and in more, terms of more than one block, rows and lanes left over.
    "few_channels": {"in_channels": 3, "out_channels": 20, "input_size": (9, 61), "kernel_size": (7, 7)}
    | {"stride": (2, 2), "padding": ((3, 3), (3, 3)), "bias": True},
    "one_channel": {"in_channels": 1, "out_channels": 9, "input_size": (4, 500), **_SQUARE, "bias": True},
    "few_far_taps": {"in_channels": 2, "out_channels": 17, "input_size": (5, 120), **_SQUARE, "dilation": (1, 40)},
    # Few channels whose rows of patches are strips of memory: strips of odd and even length, in two pieces, apart; one
    # panel and two, lanes and positions left over.
    "strips": {"in_channels": 3, "out_channels": 20, "input_size": (9, 61), **_SQUARE, "stride": (2, 2), "bias": True},
    "strips_of_one_channel": {"in_channels": 1, "out_channels": 8, "input_size": (3, 12), "kernel_size": (2, 1)},
    "strips_in_two_panels": {"in_channels": 2, "out_channels": 75, "input_size": (4, 14), **_SQUARE, "bias": True},
    "strips_of_a_long_row": {"in_channels": 5, "out_channels": 6, "input_size": (3, 290), "kernel_size": (3, 2)},
    "strips_apart": {"in_channels": 3, "out_channels": 33, "input_size": (8, 60), "kernel_size": (2, 3)}
    | {"stride": (4, 4), "padding": ((1, 0), (5, 3))},
    "strips_of_many_channels": {"in_channels": 31, "out_channels": 20, "input_size": (2, 70), "kernel_size": (1, 2)},
    "strips_of_groups": _grouped(2, 3, 9, input_size=(4, 17), kernel_size=(2, 3)),
    # Sums of more than one block, whose end lies within a strip, of even and of odd length; half a tile left over.
    "long_strips": {"in_channels": 60, "out_channels": 7, "input_size": (4, 70), **_SQUARE, "bias": True},
    "long_odd_strips": {"in_channels": 61, "out_channels": 19, "input_size": (3, 77), **_SQUARE, "bias": True},
    # Few rows of weights, or of the gradient, by dot products; in two pieces, apart, in a result with gaps.
    "strips_of_few_rows": {"in_channels": 10, "out_channels": 3, "input_size": (5, 20), **_SQUARE, "bias": True},
    "strips_of_two_rows": {"in_channels": 8, "out_channels": 2, "input_size": (3, 640), "kernel_size": (2, 4)}
    | {"stride": (1, 2), "padding": ((1, 1), (2, 0))},
    "strips_of_one_row": {"in_channels": 1, "out_channels": 16, "input_size": (6, 30), **_SQUARE},
    "strips_of_one_row_apart": {"in_channels": 1, "out_channels": 16, "input_size": (9, 61), **_SQUARE}
    | {"stride": (2, 2)},
    # Lines of neighbouring taps turned together, inside the image and at its border; patches of a taller tile.
    "lines_of_patches": {"in_channels": 3, "out_channels": 20, "input_size": (8, 48), "kernel_size": (4, 4)}
    | {"stride": (4, 4)},
    "lines_of_shared_taps": {"in_channels": 3, "out_channels": 9, "input_size": (5, 61), "kernel_size": (3, 5)}
    | {"stride": (1, 2)},
    # Few rows of the gradient, whose windows overlap by one chunk and by more, in two pieces; taps that reach no row.
    "folded": {"in_channels": 2, "out_channels": 24, "input_size": (9, 20), "kernel_size": (3, 5), "stride": (2, 2)},
    "folded_in_two_pieces": {"in_channels": 3, "out_channels": 7, "input_size": (4, 1100), **_SQUARE, "stride": (1, 2)},
    "folded_dilated": {"in_channels": 4, "out_channels": 9, "input_size": (11, 33), "kernel_size": (3, 7)}
    | {"stride": (2, 1), "dilation": (3, 1), "padding": ((2, 4), (3, 0))},
    "folded_interlaced": {"in_channels": 2, "out_channels": 9, "input_size": (4, 110), "kernel_size": (2, 4)}
    | {"stride": (1, 3), "dilation": (1, 2), "padding": ((0, 1), (5, 0))},
    "folded_far_padding": {"in_channels": 3, "out_channels": 10, "input_size": (4, 65), "kernel_size": (3, 7)}
    | {"stride": (3, 3), "padding": ((4, 1), (8, 9))},
    "folded_cropped": {"in_channels": 2, "out_channels": 8, "input_size": (7, 90), **_SQUARE, "stride": (2, 2)}
    | {"padding": ((0, 2), (1, -7))},
    # Few channels under many taps; odd channels, whose pairs reach from tap to tap.
    "stem": {"in_channels": 3, "out_channels": 17, "input_size": (15, 19), "kernel_size": (7, 7), "stride": (2, 2)}
    | {"padding": ((3, 3), (3, 3)), "bias": True},
    "patchify": {"in_channels": 3, "out_channels": 24, "input_size": (8, 12), "kernel_size": (4, 4), "stride": (4, 4)},
    "shared_phases": {"in_channels": 9, "out_channels": 16, "input_size": (6, 8), "kernel_size": (2, 2)}
    | {"stride": (2, 2), "bias": True},
    "shared_phases_of_100_channels": {"in_channels": 7, "out_channels": 100, "input_size": (5, 8)}
    | {"kernel_size": (2, 2), "stride": (2, 2), "bias": True},
    "stride_2_of_2_groups": _grouped(2, 9, 97, **_SQUARE, input_size=(8, 7), stride=(2, 1), bias=True),
    "stride_2_of_groups_of_100": _grouped(2, 9, 100, **_SQUARE, input_size=(8, 7), stride=(2, 1), bias=True),
    # Strides and dilations in which taps and phases interlace.
    "stride_3": {"in_channels": 8, "input_size": (11, 10), **_SQUARE, "stride": (3, 3)},
    "stride_2_kernel_5": {"in_channels": 8, "input_size": (9, 11), "kernel_size": (5, 5), "stride": (2, 2)}
    | {"padding": ((2, 2), (2, 1)), "bias": True},
    "stride_3_kernel_2": {"input_size": (10, 8), "kernel_size": (2, 2), "stride": (3, 3), "padding": _PAD_1},
    "dilation_2_stride_2": {"in_channels": 9, "input_size": (10, 9), **_SQUARE, "dilation": (2, 2), "stride": (2, 2)},
    "dilation_3_stride_2": {"in_channels": 8, "input_size": (11, 9), **_SQUARE, "dilation": (3, 2), "stride": (2, 3)},
    # Phases of the stride that no tap reaches.
    "stride_2_kernel_1": {"in_channels": 34, "out_channels": 12, "input_size": (7, 8), "kernel_size": (1, 1)}
    | {"stride": (2, 2), "bias": True},
    "stride_3_of_groups": _grouped(2, 17, 6, input_size=(8, 9), kernel_size=(2, 1), stride=(3, 2), bias=True),
    # Padding beyond the image; taps that read it nowhere; a high end that is cropped.
    "padding_beyond_the_image": {"in_channels": 9, "input_size": (3, 2), **_SQUARE, "padding": ((5, 4), (3, 6))},
    "taps_that_miss": {"in_channels": 8, "input_size": (2, 3), "kernel_size": (7, 5), "padding": ((5, 4), (4, 4))},
    "cropped": {"in_channels": 9, "input_size": (8, 7), **_SQUARE, "padding": ((1, -2), (0, -1)), "bias": True},
    "cropped_strided": {"input_size": (9, 8), **_SQUARE, "padding": ((0, -3), (2, -2)), "stride": (2, 1)},
    "no_images": {"batch": 0, "in_channels": 16, **_SQUARE},
    # Groups of 1, 2, 3, 4 and 12 channels with as many rows, with more and with fewer.
    "groups_1_to_3": _grouped(5, 1, 3, **_SQUARE, bias=True),
    "groups_2_to_2": _grouped(8, 2, 2, **_SQUARE),
    "groups_3_to_1": _grouped(3, 3, 1, **_SQUARE, bias=True),
    "groups_4_to_4": _grouped(9, 4, 4, **_SQUARE, bias=True),
    "groups_4_to_2_strided": _grouped(3, 4, 2, **_SQUARE, stride=(2, 2), input_size=(9, 8)),
    "groups_12_to_12": _grouped(3, 12, 12, **_SQUARE),
    "groups_12_to_70": _grouped(2, 12, 70, input_size=(4, 3), bias=True),
    # One channel and one row for each of an odd number of groups, or of more than there are lanes.
    "depthwise_17": _depthwise(17, bias=True),
    "depthwise_64_strided": _depthwise(64, stride=(2, 2), input_size=(8, 9)),
    "depthwise_70_on_1_position": _depthwise(70, padding=_NONE, input_size=(3, 3), batch=3),
    "depthwise_7x7": _depthwise(6, kernel_size=(7, 7), padding=((3, 3), (3, 3)), input_size=(5, 9), bias=True),
    "depthwise_13x13": _depthwise(3, kernel_size=(13, 13), padding=((6, 6), (6, 6)), input_size=(7, 7)),
    "depthwise_wide": _depthwise(2, input_size=(3, 90), bias=True),
    "depthwise_wide_strided": _depthwise(3, input_size=(4, 140), stride=(1, 2)),
    "depthwise_dilated": _depthwise(5, dilation=(2, 3), padding=((2, 2), (3, 3)), input_size=(8, 40)),
    "depthwise_stride_3": _depthwise(5, kernel_size=(5, 5), stride=(3, 2), padding=((2, 2),) * 2, input_size=(9, 11)),
    "depthwise_cropped": _depthwise(4, padding=((1, -1), (0, -2)), input_size=(8, 9)),
    "depthwise_asymmetric": _depthwise(4, padding=((0, 2), (2, 0)), input_size=(5, 6), bias=True),
}  # fmt: skip
# Rows fill tiles of 6 and panels of vectors; channels are rows of the gradient, fill pairs, and decide how patches are
# read.
_PLANES |= {
    f"rows_{rows}": {"in_channels": 3, "out_channels": rows, "bias": True} for rows in (1, 5, 6, 7, 64, 65, 130)
}
_PLANES |= {
    f"channels_{channels}": {"in_channels": channels, "out_channels": 5, "bias": True}
    for channels in (1, 2, 3, 7, 8, 9, 17, 64, 65)
}  # fmt: skip

_LINES: dict[str, dict[str, Any]] = {
    "channels_1031": {"in_channels": 1031, "out_channels": 7, "input_size": (6,), "bias": True},
    "few_channels": {"in_channels": 2, "out_channels": 5, "input_size": (400,), "kernel_size": (40,), "stride": (3,)},
    "long": {"in_channels": 9, "out_channels": 7, "input_size": (300,), "padding": ((3, 0),)},
    "many_taps": {"in_channels": 12, "input_size": (40,), "kernel_size": (64,), "padding": ((32, 32),), "groups": 2},
    "strided": {"in_channels": 16, "input_size": (75,), "stride": (2,), "padding": _PAD_1},
    "dilated": {"in_channels": 10, "input_size": (64,), "kernel_size": (11,), "dilation": (5,)}
    | {"padding": ((25, 25),), "bias": True},
    "causal_depthwise": _depthwise(20, kernel_size=(4,), padding=((3, 0),), input_size=(70,), bias=True),
}
_VOLUMES: dict[str, dict[str, Any]] = {
    "one_channel": {"in_channels": 1, "out_channels": 9, "input_size": (4, 5, 9), **_SQUARE, "bias": True},
    "terms_1080": {"in_channels": 40, "out_channels": 6, "input_size": (3, 3, 4), **_SQUARE},
    "patchify": {"batch": 3, "in_channels": 3, "out_channels": 20, "input_size": (2, 4, 4), "kernel_size": (2, 2, 2)}
    | {"stride": (2, 2, 2), "bias": True},
    "shared_and_not": {"in_channels": 8, "input_size": (4, 5, 6), "kernel_size": (1, 3, 2), "stride": (1, 2, 2)}
    | {"padding": ((0, 0), (1, 1), (0, 0))},
    "wide": {"batch": 1, "in_channels": 4, "input_size": (2, 3, 80), **_SQUARE},
    "odd_rows": {"in_channels": 18, "out_channels": 20, "input_size": (3, 4, 9), **_SQUARE},
    "folded": {"in_channels": 2, "out_channels": 9, "input_size": (5, 4, 60), **_SQUARE, "stride": (2, 1, 2)},
    "planes": {"in_channels": 40, "out_channels": 32, "input_size": (4, 12, 20), **_SQUARE, "stride": (2, 1, 1)},
    "strips": {"in_channels": 2, "out_channels": 9, "input_size": (3, 4, 26), **_SQUARE, "stride": (1, 2, 2)},
    "long_strips": {"batch": 1, "in_channels": 12, "out_channels": 12, "input_size": (3, 3, 66), **_SQUARE},
    "depthwise": _depthwise(9, input_size=(3, 4, 5), bias=True),
    "groups_4": _grouped(3, 4, 4, **_SQUARE, input_size=(3, 4, 5), stride=(1, 2, 1)),
}

PATH_CASES: list[Case] = [
    make_case(name, rank, **changes)
    for rank, situations in ((1, _LINES), (2, _PLANES), (3, _VOLUMES))
    for name, changes in situations.items()
]
ENGINE_CASES: list[Case] = [*CASES, *PATH_CASES]

# Large enough to be cut into tasks for several threads, and such that the images begin anywhere in a tile.
SHARED_CASES = [
    make_case("dense", 2, batch=7, in_channels=16, out_channels=24, input_size=(9, 11), **_BIASED),
    make_case("small_images", 2, batch=7, in_channels=40, out_channels=70, input_size=(3, 3), **_BIASED),
    make_case("far_padding", 2, batch=7, in_channels=8, out_channels=20, input_size=(3, 5),
              **(_BIASED | {"padding": ((2, 2), (2, 2))})),
    make_case("missing_taps", 2, batch=7, in_channels=9, out_channels=100, input_size=(12, 16), dilation=(5, 5),
              **(_BIASED | {"padding": ((5, 5), (5, 5))})),
    make_case("turned", 2, batch=7, in_channels=20, out_channels=200, input_size=(9, 11), **_BIASED),
    make_case("long_sums", 2, batch=7, in_channels=260, out_channels=9, input_size=(5, 4), **_BIASED),
    make_case("many_channels", 2, batch=7, in_channels=1100, out_channels=12, input_size=(3, 3), kernel_size=(1, 1),
              bias=True),
    # The number of images decides between two engines.
    make_case("few_positions", 2, batch=7, in_channels=200, out_channels=70, input_size=(2, 2), **_BIASED),
    make_case("few_positions_of_many_channels", 2, batch=7, in_channels=1300, out_channels=40, input_size=(1, 2),
              kernel_size=(1, 2), padding=((0, 0), (1, 0)), bias=True),
    make_case("few_channels", 2, batch=7, in_channels=3, out_channels=18, input_size=(21, 23), stride=(2, 2),
              **_BIASED),
    make_case("few_channels_in_long_rows", 2, batch=7, in_channels=3, out_channels=18, input_size=(9, 53),
              stride=(2, 2), **_BIASED),
    make_case("grouped", 2, batch=7, in_channels=12, out_channels=12, groups=3, input_size=(13, 11), **_BIASED),
    make_case("strided", 2, batch=7, in_channels=9, out_channels=17, input_size=(15, 13), stride=(2, 3), **_BIASED),
    make_case("shared_phases", 2, batch=7, in_channels=9, out_channels=16, input_size=(10, 14), kernel_size=(2, 2),
              stride=(2, 2)),
    make_case("depthwise", 2, batch=7, in_channels=33, out_channels=33, groups=33, input_size=(13, 11), **_BIASED),
    make_case("depthwise_strided", 2, batch=7, in_channels=20, out_channels=20, groups=20, input_size=(15, 13),
              stride=(2, 2), **_BIASED),
    make_case("line", 1, batch=7, in_channels=20, out_channels=24, input_size=(75,), **_BIASED),
    make_case("volume", 3, batch=7, in_channels=6, out_channels=9, input_size=(5, 6, 7), **_BIASED),
]  # fmt: skip

# Published layers with smaller images and fewer channels.
_LAYERS: dict[str, dict[str, Any]] = {
    "stem": {"in_channels": 3, "out_channels": 32, "input_size": (40, 40), "kernel_size": (7, 7), "stride": (2, 2)}
    | {"padding": ((3, 3), (3, 3))},
    "one_channel": {"in_channels": 1, "out_channels": 16, "input_size": (24, 40), **_SQUARE},
    "dense": {"in_channels": 64, "out_channels": 64, "input_size": (14, 14), **_SQUARE},
    "deep": {"batch": 4, "in_channels": 256, "out_channels": 64, "input_size": (7, 7), **_SQUARE},
    "strided": {"in_channels": 64, "out_channels": 64, "input_size": (16, 16), "stride": (2, 2), **_SQUARE},
    "pointwise": {"in_channels": 512, "out_channels": 64, "input_size": (14, 14), "kernel_size": (1, 1)},
    "pointwise_strided": {"in_channels": 128, "input_size": (14, 14), "kernel_size": (1, 1), "stride": (2, 2)},
    "5x5": {"in_channels": 96, "out_channels": 32, "input_size": (14, 14), "kernel_size": (5, 5)}
    | {"padding": ((2, 2), (2, 2))},
    "many_taps": {"in_channels": 24, "out_channels": 32, "input_size": (12, 12), "kernel_size": (9, 9)}
    | {"padding": ((4, 4), (4, 4))},
    "dilated": {"in_channels": 256, "out_channels": 32, "input_size": (12, 12), "kernel_size": (3, 3)}
    | {"padding": ((6, 6), (6, 6)), "dilation": (6, 6)},
    "patchify": {"in_channels": 3, "out_channels": 96, "input_size": (32, 32), "kernel_size": (4, 4), "stride": (4, 4)},
    "grouped": {"in_channels": 64, "out_channels": 64, "groups": 16, "input_size": (16, 16), **_SQUARE},
    "depthwise": {"in_channels": 64, "out_channels": 64, "groups": 64, "input_size": (16, 16), **_SQUARE},
    "depthwise_13x13": {"in_channels": 32, "out_channels": 32, "groups": 32, "input_size": (14, 14)}
    | {"kernel_size": (13, 13), "padding": ((6, 6), (6, 6))},
}
LAYERS = [make_case(name, 2, **changes) for name, changes in _LAYERS.items()] + [
    make_case("conv1d", 1, in_channels=256, out_channels=64, input_size=(150,), stride=(2,), **_SQUARE),
    make_case("volume", 3, in_channels=32, out_channels=32, input_size=(6, 8, 8), **_SQUARE),
]
