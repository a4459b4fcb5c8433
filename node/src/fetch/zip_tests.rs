use std::fs;
use std::io::{Cursor, Write as _};
use std::os::unix::fs::PermissionsExt as _;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::*;

/// A zip file of entries: a name that ends with a slash is a folder's, `->` parts a link from its target.
fn packed(entries: &[(&str, &str)], method: CompressionMethod) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let date = DateTime::from_date_and_time(2024, 2, 29, 12, 34, 56).unwrap();
    for (name, content) in entries {
        let mode = if name.ends_with("run") { 0o755 } else { 0o644 };
        let options = SimpleFileOptions::default()
            .compression_method(method)
            .last_modified_time(date)
            .unix_permissions(mode);
        match name.split_once("->") {
            Some((name, to)) => writer.add_symlink(name, to, options).unwrap(),
            None if name.ends_with('/') => writer.add_directory(*name, options).unwrap(),
            None => {
                writer.start_file(*name, options).unwrap();
                writer.write_all(content.as_bytes()).unwrap();
            }
        }
    }
    writer.finish().unwrap().into_inner()
}

fn unpacked(bytes: &[u8]) -> Result<(tempfile::TempDir, Unpacked), String> {
    let folder = tempfile::tempdir().unwrap();
    let unpacked = extract(Cursor::new(bytes), &folder.path().join("out"))?;
    Ok((folder, unpacked))
}

#[test]
fn files_folders_links_modes_and_times_are_taken() {
    let entries = [
        ("top/", ""),
        ("top/a", "text"),
        ("top/sub/run", "#!"),
        ("top/link->../../outside", ""),
        ("top/empty/", ""),
    ];
    for method in [CompressionMethod::Stored, CompressionMethod::DEFLATE] {
        let (folder, unpacked) = unpacked(&packed(&entries, method)).unwrap();
        let root = folder.path().join("out/top");
        assert_eq!(unpacked.root, root);
        // `date -u -d "2024-02-29 12:34:56" +%s`
        assert_eq!(unpacked.last_modified, 1_709_210_096);
        assert_eq!(fs::read(root.join("a")).unwrap(), b"text");
        let mode = |name: &str| fs::metadata(root.join(name)).unwrap().permissions().mode() & 0o111;
        assert_eq!((mode("a"), mode("sub/run")), (0, 0o111));
        assert_eq!(
            fs::read_link(root.join("link")).unwrap(),
            Path::new("../../outside")
        );
        assert!(root.join("empty").is_dir());
    }
}

#[test]
fn nothing_is_written_outside_or_through_links() {
    for (entries, why) in [
        (&[("../a", "x")][..], "leads out"),
        (&[("/a", "x")], "leads out"),
        (&[("d->/tmp", ""), ("d/a", "x")], "both a folder"),
    ] {
        let bytes = packed(entries, CompressionMethod::Stored);
        let error = unpacked(&bytes).err().expect(why);
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn the_target_of_a_link_has_so_many_bytes_and_no_more() {
    let most = usize::try_from(LINK_BYTES).unwrap();
    let link = |bytes: usize| {
        let entry = format!("top/link->{}", "t".repeat(bytes));
        let bytes = packed(&[("top/a", "x"), (&entry, "")], CompressionMethod::Stored);
        unpacked(&bytes).err()
    };
    let error = link(most + 1).unwrap();
    assert!(
        error.contains(&format!("more than {LINK_BYTES} bytes")),
        "{error}"
    );
    // The kernel counts the byte at its end as well.
    assert_eq!(link(most - 1), None);
}

#[test]
fn what_is_damaged_is_refused() {
    let whole = packed(&[("a", "some text of a file")], CompressionMethod::Stored);
    let at = whole.windows(4).position(|window| window == b"some").unwrap();
    let mut changed = whole.clone();
    changed[at] ^= 1;
    for (bytes, why) in [
        (&whole[..whole.len() / 2], "not a valid zip file"),
        (&changed, "checksum"),
    ] {
        let error = unpacked(bytes).err().expect(why);
        assert!(error.to_lowercase().contains(why), "{error}");
    }
    let empty = packed(&[], CompressionMethod::Stored);
    assert_eq!(unpacked(&empty).err().as_deref(), Some("it is empty"));
}

#[test]
fn dates_are_counted_from_1970() {
    for (date, expected) in [
        ((1980, 1, 1, 0, 0, 0), 315_532_800),
        ((2000, 3, 1, 0, 0, 0), 951_868_800),
        ((2026, 12, 31, 23, 59, 58), 1_798_761_598),
    ] {
        let (year, month, day, hour, minute, second) = date;
        let date = DateTime::from_date_and_time(year, month, day, hour, minute, second).unwrap();
        assert_eq!(seconds(date), expected);
    }
}
