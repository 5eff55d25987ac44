"""Labels and names of files of Cityscapes."""

from defocus_eval.formats.cityscapes import LABEL_OF_TRAIN_ID, LABELS, frame_of


def test_labels_of_cityscapes():
    """From the label table of cityscapesScripts."""
    train_ids = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert LABEL_OF_TRAIN_ID.tolist() == train_ids
    assert [label.id for label in LABELS] == list(range(34))
    assert [label.id for label in LABELS if label.has_instances] == list(range(24, 34))
    names = {7: "road", 11: "building", 19: "traffic light", 23: "sky", 24: "person", 29: "caravan", 33: "bicycle"}
    assert {key: LABELS[key].name for key in names} == names
    assert (LABELS[9].train_id, LABELS[29].category, LABELS[19].category) == (255, "vehicle", "object")


def test_the_frame_is_what_files_of_an_image_share():
    assert frame_of("aachen_000001_000019_gtFine_labelIds") == frame_of("aachen_000001_000019_leftImg8bit")
    assert frame_of("ADE_val_00000001") is None
