//! Outputs of builds, which are not trusted.

#![allow(clippy::unwrap_used)]

mod samples;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode};
use samples::{home_entries, path, source, store, text, write_sample};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::nix::hash::{CAHash, HashAlgorithm, hash_bytes};
use tvix_node_protocol::nix::nixbase32;
use tvix_node_protocol::nix::store_path::build_ca_path;
use tvix_node_protocol::path_info::{Origin, PathInfo};
use tvix_node_store::{AddError, NamingError, Prepared, ScratchOutput, Store};

fn prepare(
    store: &Store,
    outputs: &[(&StorePath, &Path)],
    candidates: &[&StorePath],
) -> Result<Vec<Prepared>, AddError> {
    let outputs: Vec<_> = outputs
        .iter()
        .map(|(path, scratch)| ScratchOutput {
            path: (*path).clone(),
            scratch,
            ca: None,
            scanned: true,
        })
        .collect();
    let candidates = candidates.iter().map(|&path| path.clone()).collect();
    store.prepare_built(&outputs, &candidates, &path("it.drv"), &Origin::Built)
}

fn add(store: &Store, path: &StorePath, scratch: &Path) -> Result<PathInfo, AddError> {
    let prepared = prepare(store, &[(path, scratch)], &[])?;
    Ok(store.register(prepared, &store.lease())?.remove(0))
}

fn hash_part(path: &StorePath) -> String {
    nixbase32::encode(path.digest())
}

/// A path that differs from every other by its hash.
fn numbered(number: u8, name: &str) -> StorePath {
    StorePath::from_parts([number; 20], name).unwrap()
}

#[test]
fn references_are_found_in_contents_names_and_links_and_nothing_else_is() {
    let (folder, store) = store();
    let texts: Vec<_> = (0..6).map(|n| text("input", &[n], &[])).collect();
    let lease = store.lease();
    store.add_texts(&texts, &lease).unwrap();
    let inputs: Vec<&StorePath> = texts.iter().map(|text| &text.path).collect();
    let (out, dev) = (numbered(1, "it"), numbered(2, "it-dev"));
    let scratch = folder.path().join("scratch");
    fs::create_dir_all(scratch.join("d")).unwrap();
    fs::write(scratch.join("d/text"), format!("cat {}/bin", inputs[0])).unwrap();
    // Across the border of two reads of a large file.
    let mut large = vec![0; 3 << 20];
    let hash = hash_part(inputs[1]).into_bytes();
    let at = (1 << 20) + (128 << 10) - 7;
    large[at..at + hash.len()].copy_from_slice(&hash);
    fs::write(scratch.join("large"), large).unwrap();
    fs::write(scratch.join(format!("d/{}-x", hash_part(inputs[2]))), "").unwrap();
    symlink(format!("{}/x", inputs[3]), scratch.join("link")).unwrap();
    // The hash alone counts; a hash that is cut short or has another character in it does not.
    fs::write(scratch.join("hash"), hash_part(inputs[4])).unwrap();
    let cut = hash_part(inputs[5]);
    fs::write(scratch.join("not"), format!("{}e{}", &cut[..31], &cut[1..])).unwrap();
    fs::write(scratch.join("self"), out.to_string()).unwrap();
    fs::write(folder.path().join("dev"), out.to_string()).unwrap();

    let prepared = prepare(
        &store,
        &[(&out, &scratch), (&dev, &folder.path().join("dev"))],
        &inputs,
    )
    .unwrap();
    let references = |at: usize| prepared[at].info().references.clone();
    let mut expected: BTreeSet<StorePath> = inputs[..5].iter().map(|&path| path.clone()).collect();
    expected.insert(out.clone());
    assert_eq!(references(0), expected);
    assert_eq!(references(1), BTreeSet::from([out.clone()]));
    let infos = store.register(prepared, &lease).unwrap();
    assert_eq!(infos[0].deriver, Some(path("it.drv")));
    assert_eq!(store.referrers(&out).unwrap(), [dev]);
}

#[test]
fn outputs_of_one_build_are_registered_together_or_not_at_all() {
    let (folder, store) = store();
    let (good, bad) = (numbered(1, "good"), numbered(2, "bad"));
    fs::write(folder.path().join("good"), "good").unwrap();
    fs::write(
        folder.path().join("bad"),
        text("missing", b"", &[]).path.to_string(),
    )
    .unwrap();
    let missing = text("missing", b"", &[]).path;
    let outputs = [
        (&good, &*folder.path().join("good")),
        (&bad, &*folder.path().join("bad")),
    ];
    let prepared = prepare(&store, &outputs, &[&missing]).unwrap();
    let result = store.register(prepared, &store.lease());
    assert!(
        matches!(result, Err(AddError::MissingReference { .. })),
        "{result:?}"
    );
    assert_eq!(store.count().unwrap(), 0);
    assert_eq!(home_entries(&store), Vec::<String>::new());
}

#[test]
fn what_is_neither_file_directory_nor_link_is_refused_by_name() {
    let (folder, store) = store();
    type Make = fn(&Path) -> bool;
    let kinds: [(&str, Make); 3] = [
        ("a named pipe", |at| {
            rustix::fs::mknodat(CWD, at, FileType::Fifo, Mode::RWXU, 0).unwrap();
            true
        }),
        ("a socket", |at| UnixListener::bind(at).map(drop).is_ok()),
        ("a device node", |at| {
            let null = rustix::fs::makedev(1, 3);
            rustix::fs::mknodat(CWD, at, FileType::CharacterDevice, Mode::RWXU, null).is_ok()
        }),
    ];
    for (number, (kind, make)) in kinds.into_iter().enumerate() {
        let scratch = folder.path().join(number.to_string());
        fs::create_dir_all(scratch.join("sub")).unwrap();
        fs::write(scratch.join("sub/file"), "before it").unwrap();
        if !make(&scratch.join("sub/odd")) {
            println!("SKIPPED: {kind} as output, because it cannot be made here");
            continue;
        }
        let error = add(&store, &path("out"), &scratch).unwrap_err().to_string();
        let out = path("out").to_absolute_path();
        // The place where the build left it says nothing to anybody.
        assert!(
            error.contains(&format!("'{out}/sub/odd' is {kind}"))
                && !error.contains(&*scratch.to_string_lossy()),
            "{error}"
        );
        // The output itself.
        let error = add(&store, &path("out"), &scratch.join("sub/odd"))
            .unwrap_err()
            .to_string();
        assert!(error.contains(&format!("'{out}' is {kind}")), "{error}");
    }
    assert_eq!(home_entries(&store), Vec::<String>::new());
}

#[test]
fn links_are_taken_as_links_wherever_they_point() {
    let (folder, store) = store();
    let secret = folder.path().join("secret");
    fs::create_dir(&secret).unwrap();
    fs::write(secret.join("key"), "secret").unwrap();
    let scratch = folder.path().join("scratch");
    fs::create_dir(&scratch).unwrap();
    symlink(&secret, scratch.join("absolute")).unwrap();
    symlink("../secret/key", scratch.join("relative")).unwrap();
    symlink("loop", scratch.join("loop")).unwrap();
    let info = add(&store, &numbered(1, "out"), &scratch).unwrap();
    let stored = store.physical(&info.path);
    assert_eq!(fs::read_link(stored.join("absolute")).unwrap(), secret);
    assert_eq!(
        fs::read_link(stored.join("relative")).unwrap(),
        Path::new("../secret/key")
    );
    let names: Vec<_> = fs::read_dir(&stored).unwrap().collect();
    assert_eq!(names.len(), 3);
    // The output itself may be a link; it is not followed either.
    symlink(&secret, folder.path().join("out")).unwrap();
    let info = add(&store, &numbered(2, "out"), &folder.path().join("out")).unwrap();
    assert_eq!(fs::read_link(store.physical(&info.path)).unwrap(), secret);
}

#[test]
fn special_bits_and_attributes_stay_outside() {
    let (folder, store) = store();
    let scratch = folder.path().join("scratch");
    write_sample(&scratch);
    fs::set_permissions(scratch.join("bin/tool"), fs::Permissions::from_mode(0o6755)).unwrap();
    fs::set_permissions(scratch.join("share"), fs::Permissions::from_mode(0o3777)).unwrap();
    let attribute = rustix::fs::setxattr(
        scratch.join("share/text"),
        "user.test",
        b"value",
        rustix::fs::XattrFlags::empty(),
    );
    if attribute.is_err() {
        println!("SKIPPED: extended attributes, because this file system has none");
    }
    let info = add(&store, &path("out"), &scratch).unwrap();
    let stored = store.physical(&info.path);
    assert_eq!(
        fs::metadata(stored.join("bin/tool")).unwrap().mode() & 0o7777,
        0o555
    );
    assert_eq!(fs::metadata(stored.join("share")).unwrap().mode() & 0o7777, 0o555);
    let mut value = [0; 16];
    assert!(rustix::fs::getxattr(stored.join("share/text"), "user.test", &mut value[..]).is_err());
    // A copy: nothing that the build still holds leads to it.
    let inode = |at: &Path| fs::metadata(at).unwrap().ino();
    assert_ne!(
        inode(&stored.join("share/text")),
        inode(&scratch.join("share/text"))
    );
}

#[test]
fn what_the_build_made_unreadable_is_read_all_the_same() {
    let (folder, store) = store();
    let scratch = folder.path().join("scratch");
    write_sample(&scratch);
    let expected = store.add_source(&scratch, source("it"), &store.lease()).unwrap();
    fs::set_permissions(scratch.join("bin/tool"), fs::Permissions::from_mode(0o111)).unwrap();
    fs::set_permissions(scratch.join("share/text"), fs::Permissions::from_mode(0o000)).unwrap();
    fs::set_permissions(scratch.join("share"), fs::Permissions::from_mode(0o000)).unwrap();
    let info = add(&store, &path("out"), &scratch).unwrap();
    assert_eq!(info.tree, expected.tree);
    fs::set_permissions(scratch.join("share"), fs::Permissions::from_mode(0o700)).unwrap();
}

/// Files of `/proc` say that they are empty, and are not.
#[test]
fn a_file_that_is_not_as_long_as_it_says_is_refused() {
    let (_folder, store) = store();
    let error = add(&store, &path("out"), Path::new("/proc/self/status"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("changed while it was being read"), "{error}");
}

#[test]
fn fixed_outputs_must_be_what_the_derivation_says() {
    let (folder, store) = store();
    let scratch = folder.path().join("scratch");
    fs::write(&scratch, "content\n").unwrap();
    let flat = |text: &[u8]| CAHash::Flat(hash_bytes(HashAlgorithm::Sha256, text));
    let none: [&StorePath; 0] = [];
    let build = |ca: CAHash, candidates: &BTreeSet<StorePath>| {
        let path = build_ca_path("file", &ca, none, false).unwrap();
        let output = ScratchOutput {
            path,
            scratch: &scratch,
            ca: Some(ca),
            scanned: true,
        };
        store.prepare_built(&[output], candidates, &path_of_drv(), &Origin::Built)
    };
    let empty = BTreeSet::new();
    let prepared = build(flat(b"content\n"), &empty).unwrap();
    assert_eq!(
        prepared[0].info().ca.as_deref(),
        Some(&*flat(b"content\n").to_nix_string())
    );
    for ca in [
        flat(b"other\n"),
        CAHash::Nar(hash_bytes(HashAlgorithm::Sha1, b"content\n")),
    ] {
        let error = build(ca, &empty).unwrap_err();
        assert!(
            matches!(error, AddError::Naming(NamingError::Hash { .. })),
            "{error}"
        );
        let message = error.to_string();
        assert!(message.contains("specified:") && message.contains("got:") && message.contains("-file"));
    }

    // What is named by its content alone may not depend on anything else.
    let input = text("input", b"", &[]).path;
    fs::write(&scratch, input.to_string()).unwrap();
    let result = build(flat(input.to_string().as_bytes()), &BTreeSet::from([input]));
    assert!(matches!(
        result,
        Err(AddError::Naming(NamingError::FixedReference { .. }))
    ));
    drop(prepared);
    assert_eq!(home_entries(&store), Vec::<String>::new());
}

fn path_of_drv() -> StorePath {
    path("file.drv")
}

#[test]
fn another_tree_for_a_name_is_refused_and_can_be_kept_beside() {
    let (folder, store) = store();
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    write_sample(&first);
    write_sample(&second);
    fs::write(second.join("share/text"), "built elsewhere\n").unwrap();
    let out = path("out");
    let accepted = add(&store, &out, &first).unwrap();
    let result = add(&store, &out, &second);
    assert!(matches!(result, Err(AddError::Conflict { .. })), "{result:?}");

    let lease = store.lease();
    let prepared = prepare(&store, &[(&out, &second)], &[]).unwrap();
    let other = store.register_unaccepted(prepared, &lease).unwrap().remove(0);
    assert_ne!(other.tree, accepted.tree);
    assert_eq!(
        store.query(&out).unwrap(),
        Some(accepted.clone()),
        "the name means what it meant"
    );
    assert_eq!(store.count().unwrap(), 1);
    assert_eq!(store.unaccepted(&out).unwrap(), std::slice::from_ref(&other));
    assert_eq!(
        fs::read(store.physical_unaccepted(&out, &other.tree).join("share/text")).unwrap(),
        b"built elsewhere\n"
    );
    assert_eq!(
        fs::read(store.physical(&out).join("share/text")).unwrap(),
        b"some text\n"
    );
    assert!(store.tree(&other.tree).unwrap().is_some());
    let mut archive = Vec::new();
    assert_eq!(
        store.dump_unaccepted(&out, &other.tree, &mut archive).unwrap(),
        other.nar_size
    );
    let result = store.accept(&out, &other.tree, &lease);
    assert!(matches!(result, Err(AddError::Conflict { .. })), "{result:?}");
}

#[test]
fn a_tree_kept_beside_can_become_the_accepted_one() {
    let (folder, store) = store();
    let scratch = folder.path().join("scratch");
    write_sample(&scratch);
    let input = text("input", b"", &[]);
    fs::write(scratch.join("share/text"), input.path.to_string()).unwrap();
    let out = path("out");
    let lease = store.lease();
    let prepared = prepare(&store, &[(&out, &scratch)], &[&input.path]).unwrap();
    // What it refers to need not be there for that.
    let info = store.register_unaccepted(prepared, &lease).unwrap().remove(0);
    assert_eq!(store.query(&out).unwrap(), None);
    let result = store.accept(&out, &info.tree, &lease);
    assert!(
        matches!(result, Err(AddError::MissingReference { .. })),
        "{result:?}"
    );
    store.add_texts(&[input], &lease).unwrap();
    store.accept(&out, &info.tree, &lease).unwrap();
    assert_eq!(store.query(&out).unwrap().unwrap().tree, info.tree);
    assert_eq!(store.unaccepted(&out).unwrap(), []);
    assert_eq!(store.dump_nar(&out, &mut Vec::new()).unwrap(), info.nar_size);
    let missing = store.accept(&path("gone"), &info.tree, &lease);
    assert!(matches!(missing, Err(AddError::NoSuchTree { .. })), "{missing:?}");
}

#[test]
fn what_is_not_scanned_refers_to_nothing() {
    let (folder, store) = store();
    let (scratch, input) = (folder.path().join("scratch"), numbered(1, "input"));
    fs::write(&scratch, input.to_string()).unwrap();
    let found = |scanned| {
        let (path, ca) = (path("it"), None);
        let output = ScratchOutput {
            path,
            scratch: &scratch,
            ca,
            scanned,
        };
        let candidates = BTreeSet::from([input.clone()]);
        let prepared = store.prepare_built(&[output], &candidates, &path_of_drv(), &Origin::Built);
        prepared.unwrap()[0].info().references.clone()
    };
    assert_eq!(found(true), BTreeSet::from([input.clone()]));
    assert_eq!(found(false), BTreeSet::new());
}
