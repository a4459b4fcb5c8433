//! Reading archives (NAR) from streams that may hold anything.

#![allow(clippy::unwrap_used)]

mod samples;

use std::io::{BufReader, Cursor, Read};

use samples::{home_entries, source, store, write_sample};
use tvix_node_protocol::nix::nar::Encoder;
use tvix_node_store::{AddError, Fault, NarFault, Store};

/// The tokens of an archive, written as they are.
fn tokens(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in words {
        bytes.extend((word.len() as u64).to_le_bytes());
        bytes.extend(*word);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    bytes
}

const MAGIC: &[u8] = b"nix-archive-1";

/// A directory with files of these names.
fn directory_of(names: &[&[u8]]) -> Vec<u8> {
    let mut words: Vec<&[u8]> = vec![MAGIC, b"(", b"type", b"directory"];
    for name in names {
        words.extend([&b"entry"[..], b"(", b"name", name, b"node", b"("]);
        words.extend([&b"type"[..], b"regular", b"contents", b"x", b")", b")"]);
    }
    words.push(b")");
    tokens(&words)
}

fn sample_archive(store: &Store, folder: &tempfile::TempDir) -> Vec<u8> {
    write_sample(&folder.path().join("sample"));
    let info = store
        .add_source(&folder.path().join("sample"), source("sample"), &store.lease())
        .unwrap();
    let mut archive = Vec::new();
    store.dump_nar(&info.path, &mut archive).unwrap();
    archive
}

fn refused(store: &Store, archive: &[u8]) -> NarFault {
    match store.add_nar(archive, source("odd"), &store.lease()) {
        Err(AddError::Nar(fault)) => fault,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_not_an_archive_is_refused_at_its_byte() {
    let (_folder, store) = store();
    let file = |words: &[&[u8]]| tokens(&[&[MAGIC, &b"("[..], b"type"], words].concat());
    let start = 24 + 16 + 16;
    let mut padded = file(&[b"symlink", b"target", b"x", b")"]);
    padded[start as usize + 16 + 16 + 8 + 1] = 7;
    let entry = start + 24;
    for (archive, offset, message) in [
        (
            b"#!/bin/sh\necho this is no archive at all".to_vec(),
            0,
            "does not begin as an archive",
        ),
        (tokens(&[MAGIC, b"["]), 24, "'[' stands where '(' should"),
        (file(&[b"device"]), start, "'device' stands where"),
        (
            file(&[b"regular", b"executable", b"x"]),
            start + 16 + 24,
            "an empty word",
        ),
        (
            file(&[b"regular", b"content"]),
            start + 16,
            "'content' stands where 'contents'",
        ),
        (
            file(&[b"symlink", b"target", b"", b")"]),
            start + 32,
            "target of 0 bytes",
        ),
        (
            file(&[b"symlink", b"target", b"a\0b", b")"]),
            start + 32,
            "without NUL",
        ),
        (
            file(&[b"symlink", b"target", &[b'x'; 5000], b")"]),
            start + 32,
            "5000 bytes",
        ),
        (file(&[&[b'd'; 1000]]), start, "a token of 1000 bytes"),
        (padded, start + 16 + 16 + 8 + 1, "not zero"),
        (
            directory_of(&[b"b", b"a"]),
            entry + 16 * 12,
            "'a' does not come after 'b'",
        ),
        (
            directory_of(&[b"a", b"a"]),
            entry + 16 * 12,
            "'a' does not come after 'a'",
        ),
        (directory_of(&[b".."]), entry + 48, "means another directory"),
        (directory_of(&[b"."]), entry + 48, "means another directory"),
        (directory_of(&[b""]), entry + 48, "is empty"),
        (directory_of(&[b"a/b"]), entry + 48, "contains a slash"),
        (directory_of(&[b"a\0"]), entry + 48, "contains a NUL"),
        (directory_of(&[&[b'n'; 256]]), entry + 48, "more than 255"),
        (
            tokens(&[MAGIC, b"(", b"type", b"directory", b"x"]),
            entry,
            "'entry' or ')'",
        ),
        (
            [directory_of(&[]), vec![0]].concat(),
            entry + 16,
            "follows the end",
        ),
    ] {
        let fault = refused(&store, &archive);
        assert!(fault.to_string().contains(message), "{message}: {fault}");
        assert_eq!(fault.offset, offset, "{fault}");
    }
    assert_eq!(home_entries(&store), Vec::<String>::new());
}

#[test]
fn nesting_ends_where_stock_nix_ends_it() {
    let (_folder, store) = store();
    let nested = |directories: usize| {
        let mut encoder = Encoder::new(Vec::new()).unwrap();
        encoder.start_directory(None).unwrap();
        for _ in 1..directories {
            encoder.start_directory(Some(b"d")).unwrap();
        }
        for _ in 0..directories {
            encoder.end_directory().unwrap();
        }
        encoder.finish().unwrap()
    };
    store
        .add_nar(&nested(64)[..], source("deep"), &store.lease())
        .unwrap();
    // One more, which the encoder would not write.
    let mut words: Vec<&[u8]> = vec![MAGIC];
    for _ in 0..64 {
        words.extend([
            &b"("[..],
            b"type",
            b"directory",
            b"entry",
            b"(",
            b"name",
            b"d",
            b"node",
        ]);
    }
    words.extend([&b"("[..], b"type", b"directory"]);
    let fault = refused(&store, &tokens(&words));
    assert!(matches!(fault.fault, Fault::Depth), "{fault}");
    // Where the directory begins that is one too many.
    let at = 24 + 64 * 136;
    assert_eq!(fault.offset, at);
    assert_eq!(
        fault.to_string(),
        format!("the archive (NAR) is refused at byte {at}: it nests deeper than 64 directories")
    );
    // As deep as there are bytes: no stack is used up.
    let mut words: Vec<&[u8]> = vec![MAGIC];
    for _ in 0..100_000 {
        words.extend([
            &b"("[..],
            b"type",
            b"directory",
            b"entry",
            b"(",
            b"name",
            b"d",
            b"node",
        ]);
    }
    let fault = refused(&store, &tokens(&words));
    assert!(matches!(fault.fault, Fault::Depth));
    assert_eq!(fault.offset, at);
}

#[test]
fn an_archive_cut_anywhere_is_refused_and_leaves_nothing() {
    let (folder, store) = store();
    fs_sample(&folder);
    let info = store
        .add_source(&folder.path().join("small"), source("small"), &store.lease())
        .unwrap();
    let mut archive = Vec::new();
    store.dump_nar(&info.path, &mut archive).unwrap();
    let other = Store::open(&folder.path().join("other")).unwrap();
    for length in 0..archive.len() {
        let fault = refused(&other, &archive[..length]);
        assert!(matches!(fault.fault, Fault::Ended), "cut at {length}: {fault}");
        assert!(fault.offset <= length as u64);
    }
    assert_eq!(home_entries(&other), Vec::<String>::new());
}

/// A few hundred bytes with every kind of object.
fn fs_sample(folder: &tempfile::TempDir) {
    let at = folder.path().join("small");
    std::fs::create_dir_all(at.join("d")).unwrap();
    std::fs::write(at.join("d/file"), "text").unwrap();
    std::os::unix::fs::symlink("d", at.join("link")).unwrap();
}

/// Changed bytes give another tree or an error, never the same tree: an accepted archive is the only one
/// of its tree.
#[test]
fn an_archive_with_any_byte_changed_is_not_the_same_tree() {
    let (folder, store) = store();
    fs_sample(&folder);
    let info = store
        .add_source(&folder.path().join("small"), source("small"), &store.lease())
        .unwrap();
    let mut archive = Vec::new();
    store.dump_nar(&info.path, &mut archive).unwrap();
    for at in 0..archive.len() {
        for bit in [0x01, 0x20, 0x80] {
            let mut changed = archive.clone();
            changed[at] ^= bit;
            if let Ok(prepared) = store.prepare_nar(&mut &changed[..], source("changed")) {
                assert_ne!(prepared.info().tree, info.tree, "byte {at} ^ {bit:#x}");
                assert_ne!(prepared.info().nar_hash, info.nar_hash);
            }
        }
    }
    assert_eq!(home_entries(&store), [info.path.to_basename()]);
}

#[test]
fn a_stream_is_not_read_past_the_end_of_the_archive() {
    let (folder, store) = store();
    let archive = sample_archive(&store, &folder);
    let mut stream = BufReader::new(Cursor::new([&archive[..], &archive, b"rest"].concat()));
    let first = store.prepare_nar(&mut stream, source("sample")).unwrap();
    let second = store.prepare_nar(&mut stream, source("sample")).unwrap();
    assert_eq!(first.info(), second.info());
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"rest");
}

#[test]
fn a_stream_that_fails_is_an_error_with_its_place() {
    struct Failing(Cursor<Vec<u8>>);
    impl Read for Failing {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            match self.0.read(buffer)? {
                0 => Err(std::io::Error::other("the line is dead")),
                read => Ok(read),
            }
        }
    }
    let (folder, store) = store();
    let archive = sample_archive(&store, &folder);
    for length in [0, 100, 1 << 20, archive.len() - 4] {
        let stream = Failing(Cursor::new(archive[..length].to_vec()));
        let error = store
            .add_nar(stream, source("sample"), &store.lease())
            .unwrap_err();
        let AddError::Nar(fault) = &error else {
            panic!("{error:?}");
        };
        assert!(
            fault.offset <= length as u64 && error.to_string().contains("the line is dead"),
            "{error}"
        );
    }
}

/// A length of 2^63 bytes must not be believed before the bytes are there.
#[test]
fn claimed_sizes_cost_no_memory() {
    let (_folder, store) = store();
    let mut archive = tokens(&[MAGIC, b"(", b"type", b"regular", b"contents"]);
    archive.extend(u64::MAX.to_le_bytes());
    archive.extend(b"few bytes");
    assert!(matches!(refused(&store, &archive).fault, Fault::Ended));
    let mut archive = tokens(&[MAGIC, b"(", b"type", b"symlink", b"target"]);
    archive.extend((u64::MAX / 2).to_le_bytes());
    assert!(matches!(refused(&store, &archive).fault, Fault::Length(_)));
}
