//! Who needs whom, what differs, what takes how much.

#![allow(clippy::unwrap_used)]

mod samples;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use samples::{path, source, store, text};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::path_info::Origin;
use tvix_node_protocol::tree::Node;
use tvix_node_store::{Difference, ReadError, ScratchOutput, Usage};

#[test]
fn the_shortest_way_from_one_path_to_another_is_found() {
    let (_folder, store) = store();
    let leaf = text("leaf", b"leaf", &[]);
    let near = text("near", b"near", &[&leaf]);
    let far = text("far", b"far", &[&near]);
    let top = text("top", b"top", &[&far, &near]);
    let alone = text("alone", b"alone", &[]);
    let all = [&leaf, &near, &far, &top, &alone].map(Clone::clone);
    store.add_texts(&all, &store.lease()).unwrap();
    let why = |from, to| store.why_depends(from, to).unwrap();
    let chain = vec![top.path.clone(), near.path.clone(), leaf.path.clone()];
    assert_eq!(why(&top.path, &leaf.path), Some(chain));
    assert_eq!(why(&top.path, &top.path), Some(vec![top.path.clone()]));
    assert_eq!(why(&leaf.path, &top.path), None);
    assert_eq!(why(&top.path, &alone.path), None);
    assert_eq!(why(&top.path, &path("unknown")), None);
    let error = store.why_depends(&path("unknown"), &top.path).unwrap_err();
    assert!(matches!(error, ReadError::NotValid(_)), "{error}");
}

#[test]
fn where_a_path_is_mentioned_is_found_in_contents_names_and_links() {
    let (folder, store) = store();
    let lease = store.lease();
    let input = store.add_texts(&[text("input", b"input", &[])], &lease).unwrap();
    let input = input[0].path.clone();
    let scratch = folder.path().join("scratch");
    fs::create_dir_all(scratch.join("sub")).unwrap();
    fs::write(scratch.join("a-content"), format!("xx{input}xx")).unwrap();
    // Across the pieces in which a file is read.
    let mut far = vec![b'.'; (256 << 10) - 20];
    far.extend_from_slice(input.to_string().as_bytes());
    fs::write(scratch.join("sub/far"), far).unwrap();
    fs::write(scratch.join("sub").join(input.to_basename()), "").unwrap();
    symlink(input.to_string(), scratch.join("z-link")).unwrap();
    fs::write(scratch.join("none"), "nothing").unwrap();
    let output = ScratchOutput {
        path: path("output"),
        scratch: &scratch,
        ca: None,
        scanned: true,
    };
    let prepared = store
        .prepare_built(
            &[output],
            &[input.clone()].into(),
            &path("it.drv"),
            &Origin::Built,
        )
        .unwrap();
    let output = store.register(prepared, &lease).unwrap().remove(0);
    let mentions = |most| -> Vec<String> {
        let found = store.mentions(&output.path, &input, most).unwrap();
        found
            .into_iter()
            .map(|place| String::from_utf8(place).unwrap())
            .collect()
    };
    let named = format!("sub/{}", input.to_basename());
    let mut all = vec![
        "a-content".to_owned(),
        named,
        "sub/far".to_owned(),
        "z-link".to_owned(),
    ];
    all.sort();
    assert_eq!(mentions(10), all);
    assert_eq!(mentions(2), all[..2]);
    assert_eq!(
        store.mentions(&input, &output.path, 9).unwrap(),
        Vec::<Vec<u8>>::new()
    );
}

#[test]
fn what_differs_between_trees_is_named_once() {
    let (folder, store) = store();
    let lease = store.lease();
    let add = |name: &str, make: &dyn Fn(&std::path::Path)| {
        let at = folder.path().join(name);
        fs::create_dir_all(at.join("same/deep")).unwrap();
        fs::write(at.join("same/deep/file"), "same").unwrap();
        fs::create_dir(at.join("sub")).unwrap();
        fs::write(at.join("sub/kept"), "kept").unwrap();
        make(&at);
        store.add_source(&at, source(name), &lease).unwrap().tree
    };
    let before = add("before", &|at| {
        fs::write(at.join("sub/file"), "old").unwrap();
        fs::write(at.join("sub/mode"), "mode").unwrap();
        fs::create_dir_all(at.join("gone/deep")).unwrap();
        symlink("a", at.join("link")).unwrap();
    });
    let after = add("after", &|at| {
        fs::write(at.join("sub/file"), "new").unwrap();
        fs::write(at.join("sub/mode"), "mode").unwrap();
        fs::set_permissions(at.join("sub/mode"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(at.join("added"), "").unwrap();
        fs::create_dir(at.join("link")).unwrap();
    });
    assert_eq!(store.diff(before, before).unwrap(), []);
    let differences = store.diff(before, after).unwrap();
    let places: Vec<(&str, bool, bool)> = differences
        .iter()
        .map(|difference| {
            let place = std::str::from_utf8(&difference.place).unwrap();
            (place, difference.before.is_some(), difference.after.is_some())
        })
        .collect();
    assert_eq!(
        places,
        [
            ("added", false, true),
            ("gone", true, false),
            ("link", true, true),
            ("sub/file", true, true),
            ("sub/mode", true, true)
        ]
    );
    let changed = Difference {
        place: b"sub/file".to_vec(),
        before: Some(Node::file(b"old", false)),
        after: Some(Node::file(b"new", false)),
    };
    assert_eq!(differences[3], changed);
    // Whole trees that are no directories.
    let texts = [text("one", b"1", &[]), text("two", b"2", &[])];
    let texts = store.add_texts(&texts, &lease).unwrap();
    let differences = store.diff(texts[0].tree, texts[1].tree).unwrap();
    assert_eq!((differences.len(), differences[0].place.len()), (1, 0));
}

#[test]
fn equal_files_are_counted_once() {
    let (folder, store) = store();
    let lease = store.lease();
    let at = folder.path().join("source");
    fs::create_dir_all(at.join("sub")).unwrap();
    for file in ["one", "two", "sub/three"] {
        fs::write(at.join(file), vec![b'x'; 1000]).unwrap();
    }
    fs::write(at.join("other"), vec![b'y'; 10]).unwrap();
    let first = store.add_source(&at, source("first"), &lease).unwrap();
    let second = store.add_source(&at, source("second"), &lease).unwrap();
    let paths: [&StorePath; 2] = [&first.path, &second.path];
    let usage = store.usage(paths).unwrap();
    let archives = first.nar_size + second.nar_size;
    assert_eq!(
        usage,
        Usage {
            paths: 2,
            archives,
            files: 1010
        }
    );
    let error = store.usage([&path("unknown")]).unwrap_err();
    assert!(matches!(error, ReadError::NotValid(_)), "{error}");
}
