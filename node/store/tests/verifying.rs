//! Finding damage, and repairing it.

#![allow(clippy::unwrap_used)]

mod samples;

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use samples::sent::Sent;
use samples::{home_entries, path, source, store, text, write_sample};
use tvix_node_protocol::path_info::{Origin, PathInfo};
use tvix_node_protocol::tree::BlobDigest;
use tvix_node_store::{AddError, ArrivedError, GcOptions, RepairError, ScratchOutput, Store, VerifyError};

fn add_sample(store: &Store, folder: &Path) -> PathInfo {
    let at = folder.join("sample");
    write_sample(&at);
    add_again(store, folder)
}

fn add_again(store: &Store, folder: &Path) -> PathInfo {
    let at = folder.join("sample");
    store.add_source(&at, source("sample"), &store.lease()).unwrap()
}

fn set_mode(at: &Path, mode: u32) {
    fs::set_permissions(at, fs::Permissions::from_mode(mode)).unwrap();
}

/// Sets the time that everything in a store has.
fn set_time(at: &Path) {
    let one = Timespec {
        tv_sec: 1,
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: one,
        last_modification: one,
    };
    rustix::fs::utimensat(CWD, at, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Does something in a read-only directory of the store, and covers the tracks.
fn tamper(at: &Path, action: impl FnOnce(&Path)) {
    let parent = at.parent().unwrap();
    set_mode(parent, 0o755);
    action(at);
    set_mode(parent, 0o555);
    set_time(parent);
}

fn overwrite(at: &Path, bytes: &[u8]) {
    set_mode(at, 0o644);
    fs::write(at, bytes).unwrap();
    set_mode(at, 0o444);
    set_time(at);
}

#[test]
fn every_kind_of_damage_is_found_and_named() {
    type Harm = fn(&Path);
    let harms: [(&str, &str, Harm); 10] = [
        ("share/text", "has the hash", |at| overwrite(at, b"SOME TEXT\n")),
        ("share/text", "another size", |at| {
            overwrite(at, b"longer than it was\n")
        }),
        ("share/text", "was written to", |at| {
            overwrite(at, b"some text\n");
            fs::File::options().read(true).open(at).unwrap();
            set_mode(at, 0o644);
            fs::write(at, b"some text\n").unwrap();
            set_mode(at, 0o444);
        }),
        ("share/text", "permissions", |at| set_mode(at, 0o666)),
        ("bin/tool", "permissions", |at| set_mode(at, 0o4555)),
        ("share/text", "is gone", |at| {
            tamper(at, |at| fs::remove_file(at).unwrap())
        }),
        ("share/text", "another kind", |at| {
            tamper(at, |at| {
                fs::remove_file(at).unwrap();
                symlink("/etc/passwd", at).unwrap();
            });
        }),
        ("bin/link", "points elsewhere", |at| {
            tamper(at, |at| {
                fs::remove_file(at).unwrap();
                symlink("../share/again", at).unwrap();
            });
        }),
        ("share/new", "was not there", |at| {
            tamper(at, |at| fs::write(at, "").unwrap())
        }),
        ("share/empty", "permissions", |at| set_mode(at, 0o755)),
    ];
    for (place, reason, harm) in harms {
        let (folder, store) = store();
        let info = add_sample(&store, folder.path());
        let other = store
            .add_texts(&[text("other", b"other", &[])], &store.lease())
            .unwrap();
        assert_eq!(store.verify_path(&info.path).unwrap(), None);
        assert_eq!(store.verify(&mut |_, _| {}).unwrap().damaged, []);
        let at = store.physical(&info.path).join(place);
        harm(&at);
        let damage = store.verify_path(&info.path).unwrap().expect(place);
        assert!(damage.reason.contains(reason), "{}", damage.reason);
        assert_eq!(
            (&damage.path, damage.tree, damage.accepted),
            (&info.path, info.tree, true)
        );
        let mut seen = Vec::new();
        let report = store
            .verify(&mut |info, damage| seen.push((info.path.clone(), damage.is_some())))
            .unwrap();
        assert_eq!(report.damaged, [damage]);
        assert_eq!(
            (report.trees, report.bytes),
            (2, info.nar_size + other[0].nar_size)
        );
        assert!(seen.contains(&(info.path, true)) && seen.contains(&(other[0].path.clone(), false)));
    }
}

#[test]
fn trees_beside_the_accepted_ones_are_checked_too() {
    let (folder, store) = store();
    let scratch = folder.path().join("scratch");
    write_sample(&scratch);
    let output = ScratchOutput {
        path: path("it"),
        scratch: &scratch,
        ca: None,
        scanned: true,
    };
    let prepared = store
        .prepare_built(&[output], &[].into(), &path("it.drv"), &Origin::Built)
        .unwrap();
    let lease = store.lease();
    let info = store.register_unaccepted(prepared, &lease).unwrap().remove(0);
    assert_eq!(store.verify(&mut |_, _| {}).unwrap().damaged, []);
    let error = store.verify_path(&info.path).unwrap_err();
    assert!(matches!(error, VerifyError::NotValid(_)), "{error}");
    overwrite(
        &store
            .physical_unaccepted(&info.path, &info.tree)
            .join("share/text"),
        b"SOME TEXT\n",
    );
    let report = store.verify(&mut |_, _| {}).unwrap();
    assert_eq!(report.damaged.len(), 1);
    assert!(!report.damaged[0].accepted);
}

#[test]
fn a_damaged_tree_is_repaired_from_what_a_peer_sends() {
    let (folder, receiver) = store();
    let info = add_sample(&receiver, folder.path());
    let sent = Sent::of(&receiver, info.tree);
    let harmed = receiver.physical(&info.path);
    let text = harmed.join("share/text");
    overwrite(&text, b"SOME TEXT\n");
    tamper(&harmed.join("share/more"), |at| fs::write(at, "").unwrap());
    let before = fs::metadata(&harmed).unwrap().ino();
    let mut open = fs::File::open(harmed.join("large")).unwrap();

    // Only the whole tree will do, and the store's own files are not asked.
    let mut less = sent.clone();
    less.blobs.remove(&BlobDigest::of(b""));
    let error = receiver.repair(&info.path, &less).unwrap_err();
    assert!(
        matches!(
            error,
            RepairError::Add(AddError::Arrived(ArrivedError::MissingBlob { .. }))
        ),
        "{error}"
    );
    let mut wrong = sent.clone();
    let bytes = wrong.blobs.get_mut(&BlobDigest::of(b"some text\n")).unwrap();
    bytes[0] ^= 1;
    receiver.repair(&info.path, &wrong).unwrap_err();
    assert!(receiver.verify_path(&info.path).unwrap().is_some());
    assert_eq!(fs::metadata(&harmed).unwrap().ino(), before);
    assert_eq!(home_entries(&receiver), [info.path.to_basename()]);

    let repaired = receiver.repair(&info.path, &sent).unwrap();
    assert_eq!(repaired, info);
    assert_eq!(receiver.verify(&mut |_, _| {}).unwrap().damaged, []);
    assert_ne!(fs::metadata(&harmed).unwrap().ino(), before);
    assert_eq!(
        home_entries(&receiver),
        [info.path.to_basename()],
        "nothing is left"
    );
    // Who had the damaged tree open reads on.
    assert_eq!(open.read_to_end(&mut Vec::new()).unwrap(), 3 << 20);
    // It is a tree like any other.
    receiver.gc(&GcOptions::default()).unwrap();
    assert_eq!(home_entries(&receiver), Vec::<String>::new());
}

#[test]
fn what_is_added_again_takes_the_place_of_what_has_been_touched() {
    let harms: [fn(&Path); 4] = [
        |tree| {
            let large = tree.join("large");
            set_mode(&large, 0o644);
            fs::write(&large, vec![b'x'; 10]).unwrap();
            set_mode(&large, 0o444);
        },
        |tree| tamper(&tree.join("share/text"), |at| fs::remove_file(at).unwrap()),
        |tree| tamper(&tree.join("share/empty"), |at| fs::remove_dir(at).unwrap()),
        |tree| {
            for directory in ["", "bin", "share", "share/empty"] {
                set_mode(&tree.join(directory), 0o755);
            }
            fs::remove_dir_all(tree).unwrap();
        },
    ];
    for harm in harms {
        let (folder, store) = store();
        let info = add_sample(&store, folder.path());
        harm(&store.physical(&info.path));
        assert!(store.verify_path(&info.path).unwrap().is_some());
        assert_eq!(add_again(&store, folder.path()), info);
        assert_eq!(store.verify_path(&info.path).unwrap(), None);
        drop(store);
        let store = Store::open(&folder.path().join("home")).unwrap();
        assert_eq!(home_entries(&store), [info.path.to_basename()]);
        assert_eq!(store.verify_path(&info.path).unwrap(), None);
    }
    // What is whole stays where it is.
    let (folder, store) = store();
    let info = add_sample(&store, folder.path());
    let inode = || fs::metadata(store.physical(&info.path)).unwrap().ino();
    let before = inode();
    add_again(&store, folder.path());
    assert_eq!(inode(), before);
}

#[test]
fn a_tree_that_is_gone_comes_back_and_one_in_use_stays_until_the_next_start() {
    let (folder, receiver) = store();
    let info = add_sample(&receiver, folder.path());
    let sent = Sent::of(&receiver, info.tree);
    let harmed = receiver.physical(&info.path);
    for directory in ["", "bin", "share", "share/empty"] {
        set_mode(&harmed.join(directory), 0o755);
    }
    fs::remove_dir_all(&harmed).unwrap();
    let damage = receiver.verify_path(&info.path).unwrap().unwrap();
    assert!(damage.reason.contains("is gone"), "{}", damage.reason);
    receiver.repair(&info.path, &sent).unwrap();
    assert_eq!(receiver.verify_path(&info.path).unwrap(), None);

    let lease = receiver.lease();
    lease.hold_one(&info.path).unwrap().unwrap();
    overwrite(&harmed.join("share/text"), b"SOME TEXT\n");
    receiver.repair(&info.path, &sent).unwrap();
    assert_eq!(receiver.verify_path(&info.path).unwrap(), None);
    assert_eq!(home_entries(&receiver).len(), 2);
    drop((lease, receiver));
    let receiver = Store::open(&folder.path().join("home")).unwrap();
    assert_eq!(home_entries(&receiver), [info.path.to_basename()]);
    assert_eq!(receiver.verify_path(&info.path).unwrap(), None);
}

#[test]
fn what_is_not_there_is_not_repaired() {
    let (folder, receiver) = store();
    let (_other, sender) = store();
    let info = add_sample(&sender, folder.path());
    let sent = Sent::of(&sender, info.tree);
    let error = receiver.repair(&info.path, &sent).unwrap_err();
    assert!(matches!(error, RepairError::NotValid(_)), "{error}");
}
