import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from davae.data.errors import DataError
from davae.data.folder import FolderSource


def write(path, value: int = 0, size: tuple[int, int] = (20, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path)
    return path


def write_metadata(folder, *entries):
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(entry) for entry in entries) + "\n\n")


@pytest.fixture
def noisy(tmp_path):
    """Nine different images, all of another size."""
    generator = np.random.default_rng(0)
    for index in range(9):
        pixels = generator.integers(0, 256, (20 + index, 30 - index, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    return tmp_path


def test_finds_images_recursively_in_a_stable_order(tmp_path):
    names = ["b.JPG", "a.png", "deep/er/c.webp", "deep/d.bmp", "deep/e.tif", "z.jpeg"]
    for value, name in enumerate(names):
        write(tmp_path / name, 20 * value)
    write(tmp_path / ".hidden.png")
    write(tmp_path / ".thumbnails" / "a.png")
    (tmp_path / "notes.md").write_text("no image")
    source = FolderSource(tmp_path, 16)
    assert source.ids == sorted(names)
    assert (source.labels, source.all_captions) == ([0] * 6, [()] * 6)
    assert (source.class_names, source.skipped, len(source)) == ((), (), 6)
    values = source.images(range(6), 16)[:, 0, 8, 8].tolist()
    assert np.abs(np.subtract(values, [20 * names.index(name) for name in source.ids])).max() <= 3


def test_images_do_not_depend_on_the_batch(noisy):
    source = FolderSource(noisy, 16)
    together = source.images(range(9), 16)
    assert (together.dtype, together.shape) == (torch.uint8, (9, 3, 16, 16))
    assert torch.equal(together, torch.cat([source.images([index], 16) for index in range(9)]))
    assert torch.equal(together[[7, 2, 2]], source.images([7, 2, 2], 16))
    assert source.images([], 16).shape == (0, 3, 16, 16)


def test_sizes_are_height_and_width_of_the_usable_images(noisy):
    write(noisy / "small.png", size=(8, 8))
    source = FolderSource(noisy, 16)
    assert source.sizes == [(20 + index, 30 - index) for index in range(9)]


def test_a_turned_photograph_has_its_shown_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    source = FolderSource(tmp_path, 16)
    assert source.sizes == [(40, 20)]
    assert source.images([0], (36, 18)).shape == (1, 3, 36, 18)


def test_images_of_any_shape(noisy):
    source = FolderSource(noisy, 16)
    wide = source.images(range(9), (16, 20))
    assert wide.shape == (9, 3, 16, 20)
    assert torch.equal(wide, torch.cat([source.images([index], (16, 20)) for index in range(9)]))
    assert torch.equal(source.images(range(9), (16, 16)), source.images(range(9), 16))
    with pytest.raises(DataError, match="never enlarged"):
        source.images([0], (21, 16))


def test_pickles(noisy):
    source = FolderSource(noisy, 16)
    copy = pickle.loads(pickle.dumps(source))
    assert (copy.ids, copy.fingerprint) == (source.ids, source.fingerprint)
    assert torch.equal(copy.images(range(9), 16), source.images(range(9), 16))


def test_works_in_loader_workers(noisy):
    source = FolderSource(noisy, 16)
    loader = torch.utils.data.DataLoader(
        range(9), batch_size=6, num_workers=1, collate_fn=lambda indices: source.images(indices, 16)
    )
    assert torch.equal(torch.cat(list(loader)), source.images(range(9), 16))


def test_class_folders(tmp_path):
    for name in ("dog/1.png", "cat/2.png", "cat/sub/1.png", "owl/1.png"):
        write(tmp_path / name)
    (tmp_path / "empty").mkdir()
    source = FolderSource(tmp_path, 16)
    assert source.class_names == ("cat", "dog", "owl")
    assert dict(zip(source.ids, source.labels, strict=True)) == {
        "cat/2.png": 0,
        "cat/sub/1.png": 0,
        "dog/1.png": 1,
        "owl/1.png": 2,
    }


def test_a_class_keeps_its_number_when_its_images_are_skipped(tmp_path):
    write(tmp_path / "a" / "small.png", size=(4, 4))
    write(tmp_path / "b" / "1.png")
    source = FolderSource(tmp_path, 16)
    assert (source.class_names, source.labels) == (("a", "b"), [1])


def test_linked_class_folders_are_followed_and_loops_are_not(tmp_path):
    write(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "set" / "b").mkdir(parents=True)
    write(tmp_path / "set" / "b" / "2.png")
    (tmp_path / "set" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "b" / "up").symlink_to(tmp_path / "set")
    assert FolderSource(tmp_path / "set", 16).ids == ["a/1.png", "b/2.png"]


@pytest.mark.parametrize("key", ["text", "caption", "prompt"])
def test_metadata_in_the_root(tmp_path, key):
    write(tmp_path / "x" / "a.png")
    write(tmp_path / "b.png")
    write(tmp_path / "unlisted.png")
    write_metadata(
        tmp_path, {"file_name": "x/a.png", key: "an a "}, {"file_name": "./b.png"}, {"file_name": "gone.png"}
    )
    source = FolderSource(tmp_path, 16)
    assert (source.ids, source.all_captions) == (["b.png", "x/a.png"], [(), ("an a",)])
    assert [name for name, _ in source.skipped] == ["gone.png", "unlisted.png"]
    assert "metadata.jsonl line 3" in source.skipped[0][1]
    assert "not listed" in source.skipped[1][1]


def test_metadata_beside_the_images(tmp_path):
    for name in ("train/a.png", "other/a.png"):
        write(tmp_path / name)
    write_metadata(tmp_path / "train", {"file_name": "a.png", "text": "one"})
    write_metadata(tmp_path / "other", {"file_name": "a.png", "text": "two"})
    source = FolderSource(tmp_path, 16)
    assert (source.ids, source.all_captions) == (["other/a.png", "train/a.png"], [("two",), ("one",)])
    assert source.class_names == ()


def test_metadata_labels(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.png")
    write_metadata(tmp_path, {"file_name": "a.png", "label": 2}, {"file_name": "b.png", "label": 0})
    source = FolderSource(tmp_path, 16)
    assert (source.labels, source.class_names) == ([2, 0], ("0", "1", "2"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file_name": "b.png"', "metadata.jsonl line 2: got .*allowed is a JSON object"),
        ('["b.png"]', "line 2: got .*allowed is a JSON object"),
        ('{"text": "b"}', "line 2: got .*file_name"),
        ('{"file_name": "b.png", "text": 3}', "line 2: got text 3"),
        ('{"file_name": "b.png", "label": "dog"}', "line 2: got label 'dog'"),
        ('{"file_name": "b.png", "label": -1}', "line 2: got label -1"),
        ('{"file_name": "b.png", "label": true}', "line 2: got label True"),
        ('{"file_name": "a.png"}', "line 2: got a.png a second time"),
        ('{"file_name": "b.png", "label": 1}', "labels of .* incomplete: got 1 for 2 images, none for a.png"),
    ],
)
def test_wrong_metadata(tmp_path, line, message):
    for name in "ab":
        write(tmp_path / f"{name}.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png"}\n' + line + "\n")
    with pytest.raises(DataError, match=message):
        FolderSource(tmp_path, 16)


def test_sidecar_captions(tmp_path):
    write(tmp_path / "a.png")
    write(tmp_path / "b.png")
    (tmp_path / "a.txt").write_bytes("\ufeffa caf\u00e9\n".encode())
    assert FolderSource(tmp_path, 16).all_captions == [("a caf\u00e9",), ()]
    assert FolderSource(tmp_path, 16, captions_from="none").all_captions == [(), ()]
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"a\.txt.*UTF-8"):
        FolderSource(tmp_path, 16)


def test_metadata_goes_before_sidecars(tmp_path):
    write(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("side")
    write_metadata(tmp_path, {"file_name": "a.png", "text": "meta"})
    assert FolderSource(tmp_path, 16).all_captions == [("meta",)]
    write(tmp_path / "unlisted.png")
    plain = FolderSource(tmp_path, 16, captions_from="none")
    assert (plain.ids, plain.all_captions) == (["a.png", "unlisted.png"], [(), ()])


def test_unusable_images_are_skipped_and_named(tmp_path):
    write(tmp_path / "good.png")
    write(tmp_path / "small.png", size=(40, 15))
    whole = write(tmp_path / "cut.jpg", size=(64, 64)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[:-20])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "page.jpg").write_text("<html>")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nothing.png")
    source = FolderSource(tmp_path, 16)
    assert source.ids == ["good.png"]
    reasons = dict(source.skipped)
    assert list(reasons) == ["cut.jpg", "dangling.png", "empty.png", "page.jpg", "small.png"]
    expected = ["truncated", "No such file", "empty", "not an image", "40x15"]
    assert all(word in reason for word, reason in zip(expected, reasons.values(), strict=True))


def test_missing_folder(tmp_path):
    with pytest.raises(DataError, match="cannot open image folder .*got nothing"):
        FolderSource(tmp_path / "nowhere", 16)
    with pytest.raises(DataError, match="got a file"):
        FolderSource(write(tmp_path / "a.png"), 16)


def test_folder_without_images(tmp_path):
    with pytest.raises(DataError, match="got 0 other files"):
        FolderSource(tmp_path, 16)
    (tmp_path / "0.tar").write_bytes(b"")
    with pytest.raises(DataError, match="got 1 other files.*as shards"):
        FolderSource(tmp_path, 16)


def test_only_unusable_images(tmp_path):
    write(tmp_path / "a.png", size=(8, 8))
    with pytest.raises(DataError, match=r"no usable image.*a\.png: too small.*ask for smaller images"):
        FolderSource(tmp_path, 16)


@pytest.mark.parametrize(
    "options", [{"min_side": 0}, {"min_side": 16, "captions_from": "metdata"}], ids=["min_side", "captions_from"]
)
def test_wrong_options(tmp_path, options):
    write(tmp_path / "a.png")
    with pytest.raises(DataError, match="allowed are"):
        FolderSource(tmp_path, **options)


def test_never_enlarges(noisy):
    with pytest.raises(DataError, match=r"image 0\.png: .*never enlarged"):
        FolderSource(noisy, 16).images([0], 21)


def test_files_that_change_later_are_named(noisy):
    source = FolderSource(noisy, 16)
    (noisy / "3.png").unlink()
    (noisy / "4.png").write_bytes(b"other")
    for index in (3, 4):
        with pytest.raises(DataError, match=rf"cannot load image {index}\.png"):
            source.images(range(index, 9), 16)


def test_fingerprint_follows_ids_and_contents_and_nothing_else(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    write(one / "a.png")
    write(one / "b.png", 200)
    (one / "a.txt").write_text("first")
    before = FolderSource(one, 16).fingerprint
    assert before.startswith("images-2-")
    shutil.copytree(one, two, copy_function=shutil.copy)  # with other modification times
    (two / "a.txt").write_text("second")
    os.utime(one / "b.png", ns=(1, 1))
    assert FolderSource(one, 16).fingerprint == FolderSource(two, 16).fingerprint == before
    (two / "b.png").rename(two / "c.png")
    assert FolderSource(two, 16).fingerprint != before
    write(one / "b.png", 201)
    assert FolderSource(one, 16).fingerprint != before


def test_a_corrected_label_is_another_labelled_set_of_the_same_images(tmp_path):
    for name in ("ant/1.png", "bee/2.png"):
        write(tmp_path / name)
    entries = [{"file_name": "ant/1.png", "label": 0}, {"file_name": "bee/2.png", "label": 1}]
    seen = []
    for labels in ((0, 1), (1, 1), (0, 1)):
        rows = [entry | {"label": label} for entry, label in zip(entries, labels, strict=True)]
        write_metadata(tmp_path, *rows)
        source = FolderSource(tmp_path, 16)
        seen.append((source.fingerprint, source.labelled_fingerprint))
    assert seen[0] == seen[2]
    assert seen[0][0] == seen[1][0]
    assert seen[0][1] != seen[1][1]


def test_labels_that_cannot_be_classes_are_refused_by_name(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.png")
    for label in (1_000_000_000, 10**30):
        write_metadata(tmp_path, {"file_name": "a.png", "label": 0}, {"file_name": "b.png", "label": label})
        with pytest.raises(DataError, match=r"label of b\.png .* no class.* below 100000"):
            FolderSource(tmp_path, 16)
    write_metadata(tmp_path, {"file_name": "a.png", "label": 0}, {"file_name": "b.png", "label": 99_999})
    assert len(FolderSource(tmp_path, 16).class_names) == 100_000


def test_an_image_that_grew_later_is_named(noisy):
    source = FolderSource(noisy, 16)
    with (noisy / "3.png").open("ab") as file:
        file.write(b"more")
    with pytest.raises(DataError, match=r"cannot load image 3\.png: got .*the file has .* bytes, it had"):
        source.images([3], 16)
