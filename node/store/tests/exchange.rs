//! Nix's export format.

#![allow(clippy::unwrap_used)]

mod samples;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use samples::{home_entries, path, source, store, text, write_sample};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::path_info::{Origin, PathInfo};
use tvix_node_store::limits::{EXPORT_REFERENCES, NAR_TOKEN};
use tvix_node_store::{ContentName, ImportError, Naming, ReadError, ScratchOutput, Store};

/// A source, a text that refers to it, an output that refers to it and to itself.
fn sample_paths(store: &Store, folder: &std::path::Path) -> Vec<PathInfo> {
    let lease = store.lease();
    write_sample(&folder.join("sample"));
    let sample = store
        .add_source(&folder.join("sample"), source("sample"), &lease)
        .unwrap();
    let first = text("first", b"first", &[]);
    let second = text("second", b"second", &[&first]);
    let texts = store.add_texts(&[first, second], &lease).unwrap();
    let scratch = folder.join("scratch");
    fs::write(&scratch, format!("{} {}", sample.path, path("output"))).unwrap();
    let output = ScratchOutput {
        path: path("output"),
        scratch: &scratch,
        ca: None,
        scanned: true,
    };
    let candidates = BTreeSet::from([sample.path.clone()]);
    let prepared = store
        .prepare_built(&[output], &candidates, &path("output.drv"), &Origin::Built)
        .unwrap();
    let output = store.register(prepared, &lease).unwrap().remove(0);
    [vec![sample], texts, vec![output]].concat()
}

fn export(store: &Store, infos: &[PathInfo]) -> Vec<u8> {
    let paths: BTreeSet<StorePath> = infos.iter().map(|info| info.path.clone()).collect();
    let mut stream = Vec::new();
    store.export(&paths, &mut stream).unwrap();
    stream
}

#[test]
fn what_is_exported_can_be_imported() {
    let (folder, from) = store();
    let infos = sample_paths(&from, folder.path());
    let mut stream = export(&from, &infos);
    stream.extend_from_slice(b"what follows is not read");
    let (_folder, to) = store();
    let mut reader = &stream[..];
    let imported = to.import(&mut reader, &Origin::Built, &to.lease()).unwrap();
    assert_eq!(reader, b"what follows is not read");
    assert_eq!(imported.len(), infos.len());
    for info in &infos {
        let there = to.query(&info.path).unwrap().unwrap();
        let registered = info.registered;
        assert_eq!(PathInfo { registered, ..there }, *info);
        assert_eq!(to.verify_path(&info.path).unwrap(), None);
    }
    // Again is nothing new.
    to.import(&mut &stream[..], &Origin::Built, &to.lease()).unwrap();
    assert_eq!(to.count().unwrap(), infos.len() as u64);
}

#[test]
fn what_is_no_export_or_cut_short_is_refused() {
    let (folder, from) = store();
    let infos = sample_paths(&from, folder.path());
    let stream = export(&from, &infos);
    for cut in [0, 7, 8, 100, stream.len() / 2, stream.len() - 1] {
        let (_folder, to) = store();
        let error = to.import(&mut &stream[..cut], &Origin::Built, &to.lease());
        assert!(error.is_err(), "{cut}");
    }
    let (_folder, to) = store();
    let import = |stream: &[u8]| to.import(&mut &stream[..], &Origin::Built, &to.lease());
    let mut wrong = stream.clone();
    wrong[0] = 9;
    let error = import(&wrong).unwrap_err();
    assert!(error.to_string().contains("nix-store --export"), "{error}");
    // A reference that is neither there nor comes before.
    let alone = export(&from, &infos[2..3]);
    let error = import(&alone).unwrap_err();
    assert!(matches!(error, ImportError::Add(_)), "{error}");
    // A store of another directory.
    let text = String::from_utf8_lossy(&alone).into_owned();
    let at = text.find("/nix/store").unwrap();
    let mut other = alone.clone();
    other[at..at + 10].copy_from_slice(b"/gnu/store");
    let error = import(&other).unwrap_err();
    assert!(error.to_string().contains("/gnu/store"), "{error}");
    // A token that pretends to be huge.
    let mut huge = alone;
    let length = at - 8;
    huge[length..at].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(import(&huge).is_err());
    assert_eq!(home_entries(&to), Vec::<String>::new());
    let error = from
        .export(&[path("unknown")].into(), &mut Vec::new())
        .unwrap_err();
    assert!(matches!(error, ReadError::NotValid(_)), "{error}");
}

/// Whoever made the stream says how much follows. What is said to be too much is not waited for.
#[test]
fn a_path_of_an_export_refers_to_so_many_and_is_so_long_and_no_more() {
    let (folder, from) = store();
    let infos = sample_paths(&from, folder.path());
    let first = &infos[1];
    let stream = export(&from, std::slice::from_ref(first));
    let name = first.path.to_absolute_path();
    let at = stream
        .windows(name.len())
        .position(|part| part == name.as_bytes());
    let at = at.unwrap();
    let (_folder, to) = store();
    // What is said in the place of a number in the stream, which ends there.
    let import = |place: usize, said: u64| {
        let cut = [&stream[..place], &said.to_le_bytes()].concat();
        let error = to.import(&mut &cut[..], &Origin::Built, &to.lease());
        error.unwrap_err().to_string()
    };
    let (of_length, of_count) = (at - 8, at + name.len().next_multiple_of(8));
    for (place, most, complaint) in [
        (of_length, NAR_TOKEN as u64, "a store path of 4097 bytes"),
        (of_count, EXPORT_REFERENCES, "-first refers to 1048577 paths"),
    ] {
        let error = import(place, most);
        assert!(error.contains("it ends in the middle"), "{error}");
        let error = import(place, most + 1);
        assert!(error.contains(complaint), "{error}");
    }
}

/// With the size that it had, so that only the hash tells.
#[test]
fn what_is_damaged_leaves_as_nothing_that_looks_whole() {
    let (folder, from) = store();
    let infos = sample_paths(&from, folder.path());
    for info in &infos {
        let mut archive = Vec::new();
        from.export_nar(&info.path, &mut archive).unwrap();
        let mut plain = Vec::new();
        from.dump_nar(&info.path, &mut plain).unwrap();
        assert!(archive == plain, "{}", info.path);
    }
    let harmed = &infos[1].path;
    let file = from.physical(harmed);
    let mut content = fs::read(&file).unwrap();
    content[0] ^= 1;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&file, content).unwrap();

    let (mut archive, mut stream) = (Vec::new(), Vec::new());
    for error in [
        from.export_nar(harmed, &mut archive).unwrap_err(),
        from.export(&[harmed.clone()].into(), &mut stream).unwrap_err(),
    ] {
        let text = error.to_string();
        assert!(
            text.contains(harmed.name()) && text.contains("has another archive"),
            "{text}"
        );
    }
    let (_folder, to) = store();
    let naming = Naming::Content(ContentName::source("harmed"));
    to.add_nar(&archive[..], naming, &to.lease()).unwrap_err();
    to.import(&mut &stream[..], &Origin::Built, &to.lease())
        .unwrap_err();
    assert_eq!(to.count().unwrap(), 0);
    let absent = from.export_nar(&path("unknown"), &mut Vec::new()).unwrap_err();
    assert!(matches!(absent, ReadError::NotValid(_)), "{absent}");
}

#[test]
fn stock_nix_reads_and_writes_the_same() {
    let (folder, from) = store();
    let version = Command::new("nix-store").arg("--version").output();
    if !version.is_ok_and(|output| output.status.success()) {
        println!("SKIPPED: exchange with stock Nix, which is not installed");
        return;
    }
    let root = folder.path().join("root");
    let nix = |arguments: &[&str]| {
        let mut command = Command::new("nix-store");
        command.args(["--store", root.to_str().unwrap()]).args(arguments);
        command.env("HOME", folder.path()).env_remove("NIX_REMOTE");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command
    };
    let infos = sample_paths(&from, folder.path());
    let stream = export(&from, &infos);
    let mut import = nix(&["--import"]).spawn().unwrap();
    import.stdin.take().unwrap().write_all(&stream).unwrap();
    let mut imported = String::new();
    import
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut imported)
        .unwrap();
    assert!(import.wait().unwrap().success());
    assert_eq!(imported.lines().count(), infos.len());
    let output = infos[3].path.to_absolute_path();
    let references = nix(&["--query", "--references", &output])
        .output()
        .unwrap()
        .stdout;
    assert_eq!(String::from_utf8(references).unwrap().lines().count(), 2);

    let paths: Vec<String> = infos.iter().map(|info| info.path.to_absolute_path()).collect();
    let mut arguments = vec!["--export"];
    arguments.extend(paths.iter().map(String::as_str));
    let exported = nix(&arguments).output().unwrap();
    assert!(exported.status.success());
    let (_folder, to) = store();
    to.import(&mut &exported.stdout[..], &Origin::Built, &to.lease())
        .unwrap();
    for info in &infos {
        let there = to.query(&info.path).unwrap().unwrap();
        assert_eq!(
            (there.nar_hash, &there.references),
            (info.nar_hash, &info.references)
        );
        assert_eq!(there.deriver, info.deriver);
    }
}

/// Whatever a stream says, what is added from it is whole.
#[test]
fn a_changed_export_is_refused_or_another_one() {
    let (_folder, from) = store();
    let first = text("first", b"first", &[]);
    let second = text("second", b"second", &[&first]);
    let infos = from.add_texts(&[first, second], &from.lease()).unwrap();
    let stream = export(&from, &infos);
    let (_folder, to) = store();
    let (mut random, mut refused) = (5_u64, 0);
    let mut below = |bound: usize| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(random >> 33).unwrap() % bound
    };
    for _ in 0..200 {
        let mut changed = stream.clone();
        for _ in 0..=below(3) {
            let at = below(changed.len().max(1));
            match below(4) {
                _ if at >= changed.len() => {}
                0 => changed[at] ^= 1 << below(8),
                1 => changed[at] = u8::try_from(below(256)).unwrap(),
                2 => {
                    let end = (at + below(32)).min(changed.len());
                    changed.drain(at..end);
                }
                _ => changed.truncate(at),
            }
        }
        match to.import(&mut &changed[..], &Origin::Built, &to.lease()) {
            Err(_) => refused += 1,
            Ok(infos) => {
                for info in infos {
                    assert_eq!(to.verify_path(&info.path).unwrap(), None);
                }
            }
        }
    }
    assert!(refused > 100, "{refused} of 200 refused");
}
