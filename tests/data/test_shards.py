import io
import json
import pickle
import subprocess
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from davae.data.errors import DataError
from davae.data.shards import ShardSource


def encode(seed: int, file_format: str = "PNG", size: tuple[int, int] = (20, 18)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, file_format)
    return buffer.getvalue()


def write_shard(path, members):
    """Write (name, bytes or str) members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            data = data.encode() if isinstance(data, str) else data
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def shards(tmp_path):
    """Two shards of four samples with a label and a caption each, keys not in alphabetical order."""
    for shard in range(2):
        members = []
        for sample in (3, 1, 2, 0):
            number = 4 * shard + sample
            members += [
                (f"k{number}.png", encode(number)),
                (f"k{number}.cls", str(number % 3)),
                (f"k{number}.txt", f"caption {number}\n"),
            ]
        write_shard(tmp_path / f"train-{shard:05d}.tar", members)
    return tmp_path


IDS = [f"train-{shard:05d}/k{4 * shard + sample}" for shard in range(2) for sample in (3, 1, 2, 0)]


def test_reads_samples_in_shard_order(shards):
    source = ShardSource(shards, 16)
    assert (source.ids, len(source), source.skipped) == (IDS, 8, ())
    numbers = [int(name.rpartition("k")[2]) for name in IDS]
    assert source.labels == [number % 3 for number in numbers]
    assert source.all_captions == [(f"caption {number}",) for number in numbers]
    assert source.class_names == ("0", "1", "2")
    images = source.images(range(8), 18)
    for image, number in zip(images, numbers, strict=True):
        original = np.asarray(Image.open(io.BytesIO(encode(number))))[:, 1:19]
        assert np.array_equal(image.permute(1, 2, 0).numpy(), original)


def test_images_do_not_depend_on_the_batch(shards):
    source = ShardSource(shards, 16)
    together = source.images(range(8), 16)
    assert torch.equal(together, torch.cat([source.images([index], 16) for index in range(8)]))
    assert torch.equal(together[[6, 1, 1, 0, 7, 2]], source.images([6, 1, 1, 0, 7, 2], 16))


def test_pickles_and_works_in_loader_workers(shards):
    source = ShardSource(shards, 16)
    expected = source.images(range(8), 16)
    assert torch.equal(pickle.loads(pickle.dumps(source)).images(range(8), 16), expected)
    loader = torch.utils.data.DataLoader(
        range(8), batch_size=6, num_workers=1, collate_fn=lambda indices: source.images(indices, 16)
    )
    assert torch.equal(torch.cat(list(loader)), expected)


@pytest.mark.parametrize(
    ("pattern", "num_shards"),
    [
        ("", 2),
        ("train-*.tar", 2),
        ("train-{00000..00001}.tar", 2),
        ("train-0000{0,1}.tar", 2),
        ("tr{ain,}-{00001..00001}.tar", None),
        ("train-00000.tar", 1),
        ("train-0000[0].tar", 1),
    ],
)
def test_patterns(shards, pattern, num_shards):
    where = str(shards / pattern)
    if num_shards is None:
        with pytest.raises(DataError, match=r"no file for .*tr-00001\.tar"):
            ShardSource(where, 16)
    else:
        assert ShardSource(where, 16).ids == IDS[: 4 * num_shards]


def test_ids_keep_the_folder_that_the_pattern_leaves_open(tmp_path):
    for folder in "ab":
        write_shard(tmp_path / folder / "0.tar", [("k.png", encode(0))])
    assert ShardSource(str(tmp_path / "*" / "0.tar"), 16).ids == ["a/0/k", "b/0/k"]
    assert ShardSource(str(tmp_path / "{a,b}" / "0.tar"), 16).ids == ["a/0/k", "b/0/k"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("nowhere", "got nothing there"),
        ("nothing-*.tar", "got no file for"),
        ("train-{00000..00002}.tar", "no file for .*train-00002.tar"),
        ("train-{00001..00000}.tar", "ranges that go up"),
    ],
)
def test_missing_shards(shards, pattern, message):
    with pytest.raises(DataError, match=message):
        ShardSource(str(shards / pattern), 16)


def test_folder_without_shards(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(0))
    (tmp_path / "notes.txt").write_text("no shard")
    with pytest.raises(DataError, match="no shard in .*got 2 other entries.*image folder"):
        ShardSource(tmp_path, 16)


def test_annotations_in_json(tmp_path):
    members = [
        ("./deep/a.b.json", "{}"),
        ("./deep/a.jpg", encode(0, "JPEG")),
        ("./deep/a.json", json.dumps({"caption": "an a", "label": 1})),
        ("./deep/a.seg.png", encode(1)),
        ("b.webp", encode(2, "WEBP")),
        ("b.json", json.dumps({"prompt": "ignored", "label": 5})),
        ("b.txt", "from the text"),
        ("b.cls", " 0\n"),
        ("._b.webp", b"resource fork"),
        ("README", "no sample"),
    ]
    source = ShardSource(write_shard(tmp_path / "s.tar", members), 16)
    assert (source.ids, source.skipped) == (["s/deep/a", "s/b"], ())
    assert (source.all_captions, source.labels) == ([("an a",), ("from the text",)], [1, 0])


@pytest.mark.parametrize(
    "content",
    [
        ["ant", "bee", "cat"],
        {"0": "ant", "1": "bee", "2": "cat"},
        {"1": {"name": "bee"}, "2": {"name": "cat"}, "0": {"name": "ant", "wnid": "n0"}},
    ],
)
def test_class_names(shards, content):
    (shards / "classes.json").write_text(json.dumps(content))
    assert ShardSource(shards, 16).class_names == ("ant", "bee", "cat")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('["ant", "bee"]', r"label of train-00000/k2 .* got 2; allowed are 0 to 1"),
        ('{"1": "ant", "2": "bee", "3": "cat"}', "cannot read class names"),
        ("[1, 2, 3]", "cannot read class names"),
        ("3", "cannot read class names"),
        ("[", "cannot read class names"),
    ],
)
def test_wrong_class_names(shards, content, message):
    (shards / "classes.json").write_text(content)
    with pytest.raises(DataError, match=message):
        ShardSource(shards, 16)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("k.cls", "dog")], "the label of s/k: got label 'dog'"),
        ([("k.cls", "-1")], "got label '-1'"),
        ([("k.json", "{")], r"cannot read s/k\.json"),
        ([("k.json", "[]")], r"s/k\.json: got \[\]; allowed is a JSON object"),
        ([("k.txt", b"caf\xe9")], r"s/k\.txt.*UTF-8"),
        ([("k.jpg", encode(0, "JPEG"))], r"several images: got k\.jpg, k\.png"),
        ([("k.png", encode(1))], r"two samples with one key: got k\.png"),
        ([("l.png", encode(1)), ("l.cls", "0")], "incomplete: got 1 for 2 images, none for s/k"),
    ],
)
def test_wrong_samples(tmp_path, members, message):
    shard = write_shard(tmp_path / "s.tar", [("k.png", encode(0)), *members])
    with pytest.raises(DataError, match=message):
        ShardSource(shard, 16)


def test_unusable_images_are_skipped_and_named(tmp_path):
    members = [
        ("small.png", encode(0, size=(40, 15))),
        ("cut.jpg", encode(0, "JPEG")[:300]),
        ("empty.png", b""),
        ("alone.txt", "a caption without an image"),
        ("v1.5.png", encode(0)),
        ("good.png", encode(0)),
    ]
    source = ShardSource(write_shard(tmp_path / "s.tar", members), 16)
    assert source.ids == ["s/good"]
    reasons = dict(source.skipped)
    assert list(reasons) == ["s/alone", "s/cut", "s/empty", "s/small", "s/v1"]
    expected = ["no image: only .txt", "unreadable", "empty", "40x15", "no image: only .5.png"]
    assert all(word in reason for word, reason in zip(expected, reasons.values(), strict=True))


def test_only_unusable_images(tmp_path):
    shard = write_shard(tmp_path / "s.tar", [("a.png", encode(0))])
    with pytest.raises(DataError, match="no usable image.*s/a: too small"):
        ShardSource(shard, 64)


def test_truncated_shards(tmp_path):
    data = [encode(seed, size=(40, 40)) for seed in range(3)]
    whole = write_shard(tmp_path / "whole.tar", [(f"k{i}.png", data[i]) for i in range(3)]).read_bytes()
    step = 512 + -(-len(data[0]) // 512) * 512
    cut = tmp_path / "cut.tar"
    # Within a member, within a header, between two members, and with the end mark alone missing.
    for kept, last in (
        (2 * step + 600, "k1.png"),
        (2 * step + 100, "k1.png"),
        (step, "k0.png"),
        (3 * step, "k2.png"),
    ):
        cut.write_bytes(whole[:kept])
        with pytest.raises(DataError, match=rf"cut\.tar is truncated .*last whole member is {last}.*fetch"):
            ShardSource(cut, 16)
    for kept in (0, 100, 700):
        cut.write_bytes(whole[:kept])
        with pytest.raises(DataError, match=r"cut\.tar cannot be read.*no member is whole"):
            ShardSource(cut, 16)


def test_damaged_header(tmp_path):
    data = encode(0)
    shard = write_shard(tmp_path / "s.tar", [("a.png", data), ("b.png", data)])
    raw = bytearray(shard.read_bytes())
    raw[512 + -(-len(data) // 512) * 512] ^= 0xFF  # in the second header: tarfile alone takes this for the end
    shard.write_bytes(raw)
    with pytest.raises(DataError, match=r"last whole member is a\.png, number 1"):
        ShardSource(shard, 16)


def test_compressed_shard(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.png"), io.BytesIO())
    with pytest.raises(DataError, match="unpack it"):
        ShardSource(tmp_path, 16)


def test_fingerprint_follows_the_content(shards):
    before = ShardSource(shards, 16)
    assert ShardSource(str(shards / "train-*.tar"), 16).fingerprint == before.fingerprint
    assert ShardSource(str(shards / "train-00000.tar"), 16).fingerprint != before.fingerprint
    (shards / "classes.json").write_text('["ant", "bee", "cat"]')
    named = ShardSource(shards, 16)
    assert named.fingerprint == before.fingerprint
    assert named.labelled_fingerprint != before.labelled_fingerprint


def test_a_shard_that_was_written_again_holds_the_same_images(shards):
    before = ShardSource(shards, 16)
    shard = shards / "train-00001.tar"
    with tarfile.open(shard) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    write_shard(shard, [("filler.cls", "9"), *sorted(members.items())])
    again = ShardSource(shards, 16)
    assert again.ids != before.ids
    assert sorted(again.ids) == sorted(before.ids)
    assert (again.fingerprint, again.labelled_fingerprint) == (before.fingerprint, before.labelled_fingerprint)
    write_shard(shard, [*members.items(), ("k9.png", encode(9)), ("k9.cls", "0")])
    assert ShardSource(shards, 16).fingerprint != before.fingerprint


def write_tar(path, *members, **settings):
    """Write (TarInfo or name, bytes) members."""
    with tarfile.open(path, "w", **settings) as tar:
        for member, data in members:
            header = tarfile.TarInfo(member) if isinstance(member, str) else member
            header.size = len(data) if header.isreg() else 0
            tar.addfile(header, io.BytesIO(data))
    return path


def link(name, target, kind=tarfile.SYMTYPE):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member, b""


def test_links_are_what_they_link_to(tmp_path):
    shard = write_tar(
        tmp_path / "s.tar",
        ("./a/one.png", encode(1)),
        ("a/one.txt", b"a one"),
        link("b/hard.png", "a/one.png", tarfile.LNKTYPE),
        link("b/soft.png", "../a/one.png"),
        link("b/soft.txt", "../a/one.txt"),
        link("chain.png", "b/soft.png"),
        link("early.png", "late.png"),
        ("late.png", encode(2)),
        link("dangling.png", "/elsewhere/x.png"),
        link("circle.png", "elcric.png"),
        link("elcric.png", "circle.png"),
    )
    source = ShardSource(shard, 16)
    assert source.ids == ["s/a/one", "s/b/hard", "s/b/soft", "s/chain", "s/early", "s/late"]
    assert source.all_captions == [("a one",), (), ("a one",), (), (), ()]
    images = source.images(range(6), 16)
    assert all(torch.equal(image, images[0]) for image in images[1:4])
    assert torch.equal(images[4], images[5])
    assert not torch.equal(images[0], images[4])
    assert {name: "link" in reason for name, reason in source.skipped} == dict.fromkeys(
        ["s/circle", "s/dangling", "s/elcric"], True
    )


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_names_that_are_no_text(tmp_path, form):
    names = ["x" * 300, "y/" * 90 + "z", "caf\udce9"]
    members = [(f"{name}.png", encode(seed)) for seed, name in enumerate(names)]
    source = ShardSource(write_tar(tmp_path / "s.tar", *members, format=form), 16)
    assert source.ids == [f"s/{name}" for name in names]
    assert source.images(range(3), 16).shape == (3, 3, 16, 16)


def test_images_with_holes_are_named(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(0))
    with (tmp_path / "b.png").open("wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 20)
        file.write(encode(1))
    made = subprocess.run(["tar", "-cSf", "s.tar", "a.png", "b.png"], cwd=tmp_path, check=False)
    if made.returncode:
        pytest.skip("there is no GNU tar here")
    source = ShardSource(tmp_path / "s.tar", 16)
    assert source.ids == ["s/a"]
    assert [name for name, reason in source.skipped if "stored with holes" in reason] == ["s/b"]


def test_what_is_no_sample_is_passed_over_or_named(tmp_path):
    folder = tarfile.TarInfo("a.png")
    folder.type = tarfile.DIRTYPE
    shard = write_tar(
        tmp_path / "s.tar",
        (folder, b""),
        ("__MACOSX/._b.png", b"resource fork"),
        ("__MACOSX/b.png", b"resource fork"),
        (".cache/c.png", encode(1)),
        ("x/.hidden.png", encode(1)),
        ("b.png", encode(0)),
        ("metadata.jsonl", b"{}"),
        ("inner.tar", b"a tar"),
    )
    source = ShardSource(shard, 16)
    assert source.ids == ["s/b"]
    reasons = dict(source.skipped)
    assert reasons.keys() == {"s/inner", "s/metadata"}
    assert "no image: only .tar" in reasons["s/inner"]
    assert "KEY.txt, KEY.json), not in metadata.jsonl" in reasons["s/metadata"]


def test_one_key_in_two_spellings_is_refused(tmp_path):
    with pytest.raises(DataError, match="two samples with one key: got a.png"):
        ShardSource(write_tar(tmp_path / "s.tar", ("./a.png", encode(0)), ("a.png", encode(0))), 16)


def test_tars_put_one_after_the_other_are_refused(tmp_path):
    one, two = (write_tar(tmp_path / name, (f"{name[0]}.png", encode(0))) for name in ("a.tar", "b.tar"))
    (tmp_path / "both.tar").write_bytes(one.read_bytes() + two.read_bytes())
    with pytest.raises(DataError, match=r"more bytes after its end mark.*last whole member is a\.png"):
        ShardSource(tmp_path / "both.tar", 16)
