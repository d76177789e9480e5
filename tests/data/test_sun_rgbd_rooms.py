from manystream.data.sun_rgbd import scene_groups


def together(*folders: str, labels=None) -> bool:
    """Whether all folders are one group."""
    return len(set(scene_groups(folders, labels or ["office"] * len(folders)))) == 1


def test_all_recordings_of_a_place_are_together():
    assert together(
        "xtion/sun3ddata/brown_bm_1/brown_bm_1/0000103-000003416566",
        "xtion/sun3ddata/brown_bm_1/other_visit/0000001-000000000000",
    )
    assert not together(
        "xtion/sun3ddata/brown_bm_1/brown_bm_1/0000103-000003416566",
        "xtion/sun3ddata/brown_bm_2/brown_bm_2/0000103-000003416566",
    )


def test_frames_of_a_video_are_together_whatever_their_number():
    video = "kv2/kinect2data/{}_2014-05-26_14-{}_260595134347_rgbf{}-resize"
    assert together(video.format("000002", "23-37", "000103"), video.format("9", "23-37", "7"))
    assert not together(video.format("1", "23-37", "103"), video.format("1", "23-38", "103"))


def test_consecutive_numbers_of_one_label_are_together():
    nyu = "kv1/NYUdata/NYU{}"
    assert together(nyu.format("0003"), nyu.format("0004"), nyu.format("0005"))
    assert together(nyu.format("0004"), nyu.format("0003"))
    assert not together(nyu.format("0003"), nyu.format("0005"))
    assert not together(nyu.format("0003"), nyu.format("0004"), labels=["office", "kitchen"])
    assert not together(nyu.format("0003"), "kv1/b3dodata/img_0004")
    assert together("kv1/b3dodata/img_0063", "kv1/b3dodata/img_0064")


def test_pictures_of_one_visit_are_together():
    shot = "realsense/{}/2014_10_21-15_21_{}-1311000073"
    assert together(shot.format("sa", "11"), shot.format("sa", "59"))
    assert not together(shot.format("sa", "11"), shot.format("lg", "12"))
    assert not together(shot.format("sa", "11"), shot.format("sa", "12"), labels=["lab", "office"])
    minute_apart = [
        "kv2/align_kv2/2014-12-18_11-3{}-54_2605",
        "xtion/xtion_align_data/2014_12_18_12_{}_40",
    ]
    for name in minute_apart:
        assert together(name.format(1), name.format(2))
        assert together(name.format(1), name.format(3), name.format(2))
        assert not together(name.format(1), name.format(3))


def test_a_visit_may_pass_midnight():
    assert together("realsense/sa/2014_10_31-23_59_50-1", "realsense/sa/2014_11_01-00_00_10-1")


def test_names_that_tell_nothing_are_alone():
    folders = ["kv2/x/room", "realsense/sa/2014_99_99-15_21_11-1", "realsense/sa/hall"]
    assert scene_groups(folders, ["office"] * 3) == folders
