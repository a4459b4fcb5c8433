use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;

use super::*;

/// An entry: its name, its kind, its content or target.
type Item<'a> = (&'a str, tar::EntryType, &'a str);

fn packed(items: &[Item<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (number, (name, kind, content)) in items.iter().enumerate() {
        let mut header = tar::Header::new_ustar();
        // Not through the library, which refuses the names that this program must refuse.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(if name.ends_with("run") { 0o755 } else { 0o640 });
        header.set_mtime(100 + number as u64);
        let data = if kind.is_file() { content.as_bytes() } else { b"" };
        if !kind.is_file() && !kind.is_dir() {
            header.set_link_name_literal(content).unwrap();
        }
        header.set_size(data.len() as u64);
        header.set_cksum();
        builder.append(&header, data).unwrap();
    }
    builder.into_inner().unwrap()
}

fn unpacked(bytes: &[u8]) -> Result<(tempfile::TempDir, Unpacked), String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("archive");
    fs::write(&file, bytes).unwrap();
    let unpacked = unpack(File::open(&file).unwrap(), &folder.path().join("out"))?;
    Ok((folder, unpacked))
}

use tar::EntryType::{Directory, Fifo, Link, Regular, Symlink};

const SAMPLE: &[Item<'_>] = &[
    ("top/", Directory, ""),
    ("top/a", Regular, "text"),
    ("top/sub/run", Regular, "#!"),
    ("top/link", Symlink, "../../outside"),
    ("top/empty/", Directory, ""),
    ("top/same", Link, "top/a"),
];

fn check_sample(root: &Path) {
    assert_eq!(fs::read(root.join("a")).unwrap(), b"text");
    assert_eq!(fs::read(root.join("same")).unwrap(), b"text");
    let mode = |name: &str| fs::metadata(root.join(name)).unwrap().permissions().mode() & 0o111;
    assert_eq!((mode("a"), mode("sub/run")), (0, 0o111));
    assert_eq!(
        fs::read_link(root.join("link")).unwrap(),
        Path::new("../../outside")
    );
    assert!(root.join("empty").is_dir());
    assert_eq!(fs::read_dir(root).unwrap().count(), 5);
}

#[test]
fn archives_of_every_compression_unpack_to_the_same() {
    let plain = packed(SAMPLE);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&plain).unwrap();
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::default());
    bzip2.write_all(&plain).unwrap();
    let mut xz = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
    xz.write_all(&plain).unwrap();
    let xz = xz.finish().unwrap();
    let zstd =
        ruzstd::encoding::compress_to_vec(plain.as_slice(), ruzstd::encoding::CompressionLevel::Fastest);
    for bytes in [plain, gzip.finish().unwrap(), bzip2.finish().unwrap(), xz, zstd] {
        let (folder, unpacked) = unpacked(&bytes).unwrap();
        assert_eq!(unpacked.root, folder.path().join("out/top"));
        assert_eq!(unpacked.last_modified, 105);
        check_sample(&unpacked.root);
    }
}

#[test]
fn only_a_folder_alone_at_the_top_is_left_out() {
    for items in [
        &[("top/a", Regular, ""), ("b", Regular, "")][..],
        &[("a", Regular, "")],
    ] {
        let (folder, unpacked) = unpacked(&packed(items)).unwrap();
        assert_eq!(unpacked.root, folder.path().join("out"));
    }
}

#[test]
fn a_later_entry_takes_the_place_of_an_earlier_one() {
    let items = [
        ("a", Symlink, "/etc/passwd"),
        ("a", Regular, "new"),
        ("b", Regular, ""),
    ];
    let (_folder, unpacked) = unpacked(&packed(&items)).unwrap();
    assert_eq!(fs::read(unpacked.root.join("a")).unwrap(), b"new");
    assert!(
        !fs::symlink_metadata(unpacked.root.join("a"))
            .unwrap()
            .is_symlink()
    );
}

#[test]
fn nothing_is_written_outside_or_through_links() {
    for (items, why) in [
        (&[("../a", Regular, "x")][..], "leads out"),
        (&[("/a", Regular, "x")], "leads out"),
        (&[("x/../../a", Regular, "x")], "leads out"),
        (&[("d", Symlink, "/tmp"), ("d/a", Regular, "x")], "both a folder"),
        (&[("d", Symlink, "/tmp"), ("d/", Directory, "")], "both a folder"),
        (
            &[("l", Symlink, "/etc/passwd"), ("h", Link, "l")],
            "no file of the archive",
        ),
        (&[("h", Link, "../../etc/passwd")], "no file of the archive"),
        (&[("p", Fifo, "")], "neither a file"),
    ] {
        let error = unpacked(&packed(items)).err().expect(why);
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn what_is_no_archive_is_refused() {
    let mut cut = packed(SAMPLE);
    cut.truncate(700);
    for (bytes, why) in [
        (&b""[..], "empty"),
        (&[b'x'; 2000], "not a valid tar"),
        (b"\x1f\x8bnot gzip", "not a valid tar"),
        (b"PK\x03\x04zip", "not a valid zip file"),
        (&cut, "not a valid tar"),
    ] {
        let error = unpacked(bytes).err().expect(why);
        assert!(error.contains(why) || why.starts_with("not"), "{error}");
    }
}
