//! Binary caches in folders.

#![allow(clippy::unwrap_used)]

mod samples;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use samples::{home_entries, path, source, store, text, write_sample};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::nix::hash::{HashAlgorithm, hash_bytes};
use tvix_node_protocol::nix::narinfo::{MAX_NARINFO_SIZE, TrustedPublicKey};
use tvix_node_protocol::nix::nixbase32;
use tvix_node_protocol::nix::signature::NixSecretKey;
use tvix_node_protocol::path_info::{Origin, PathInfo};
use tvix_node_store::limits::CACHE_INFO_BYTES;
use tvix_node_store::{CacheError, FolderCache, PutReport, ScratchOutput, Store};

fn key(number: u8) -> NixSecretKey {
    NixSecretKey::from_bytes("cache-1", &[number; 32]).unwrap()
}

fn public(number: u8) -> [TrustedPublicKey; 1] {
    [key(number).public().parse().unwrap()]
}

struct Place {
    folder: tempfile::TempDir,
    store: Store,
    cache: PathBuf,
}

impl Place {
    fn new() -> Self {
        let (folder, store) = store();
        let cache = folder.path().join("cache");
        fs::create_dir(&cache).unwrap();
        Self { folder, store, cache }
    }

    fn open(&self) -> FolderCache {
        FolderCache::open(&self.cache).unwrap()
    }

    fn info_file(&self, path: &StorePath) -> PathBuf {
        let hash = nixbase32::encode(path.digest());
        self.cache.join(format!("{hash}.narinfo"))
    }

    /// Changes the `.narinfo` of a path.
    fn edit(&self, path: &StorePath, edit: impl Fn(&str) -> String) {
        let file = self.info_file(path);
        let text = fs::read_to_string(&file).unwrap();
        let edited = edit(&text);
        assert_ne!(edited, text);
        fs::write(file, edited).unwrap();
    }

    /// A source, a text that refers to it, and an output that refers to both and to itself.
    fn closure(&self) -> [PathInfo; 3] {
        let lease = self.store.lease();
        let at = self.folder.path().join("sample");
        write_sample(&at);
        let sample = self.store.add_source(&at, source("sample"), &lease).unwrap();
        let mut note = text("note", b"a note", &[]);
        note.references.insert(sample.path.clone());
        note.path =
            tvix_node_protocol::nix::store_path::build_text_path("note", &note.content, &note.references)
                .unwrap();
        let note = self.store.add_texts(&[note], &lease).unwrap().remove(0);
        let scratch = self.folder.path().join("scratch");
        fs::create_dir(&scratch).unwrap();
        let output = path("output");
        fs::write(
            scratch.join("names"),
            format!("{} {} {output}", sample.path, note.path),
        )
        .unwrap();
        let scratch = ScratchOutput {
            path: output,
            scratch: &scratch,
            ca: None,
            scanned: true,
        };
        let candidates = [sample.path.clone(), note.path.clone()].into();
        let prepared = self
            .store
            .prepare_built(&[scratch], &candidates, &path("output.drv"), &Origin::Built)
            .unwrap();
        let output = self.store.register(prepared, &lease).unwrap().remove(0);
        assert_eq!(output.references.len(), 3);
        self.store
            .add_root(&self.folder.path().join("result"), &output.path)
            .unwrap();
        [sample, note, output]
    }
}

fn archive(store: &Store, path: &StorePath) -> Vec<u8> {
    let mut archive = Vec::new();
    store.dump_nar(path, &mut archive).unwrap();
    archive
}

fn names_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn what_a_killed_process_began_goes_a_day_later() {
    let place = Place::new();
    let [sample, ..] = place.closure();
    let begun = place.cache.join(".tmp");
    fs::create_dir(&begun).unwrap();
    let day = std::time::Duration::from_secs(24 * 3600);
    for (name, age) in [("of-now", day / 24), ("of-yesterday", day + day / 24)] {
        let file = fs::File::create(begun.join(name)).unwrap();
        file.set_modified(std::time::SystemTime::now() - age).unwrap();
    }
    place.open().put(&place.store, &sample.path).unwrap();
    assert_eq!(names_in(&begun), ["of-now"], "somebody may be writing to it");
}

/// A larger disk for what is large.
#[test]
fn archives_may_lie_on_another_disk() {
    use std::io::Write as _;
    use std::os::unix::fs::{MetadataExt as _, symlink};
    let place = Place::new();
    let device = |folder: &std::path::Path| fs::metadata(folder).ok().map(|about| about.dev());
    let shm = std::path::Path::new("/dev/shm");
    let other = tempfile::tempdir_in(shm).ok();
    let other = other.filter(|_| device(shm) != device(place.cache.parent().unwrap()));
    let Some(other) = other else {
        writeln!(
            std::io::stderr(),
            "SKIPPED: archives_may_lie_on_another_disk, because /dev/shm is none"
        )
        .unwrap();
        return;
    };
    fs::create_dir_all(&place.cache).unwrap();
    symlink(other.path(), place.cache.join("nar")).unwrap();
    let [sample, ..] = place.closure();
    let paths = [sample.path.clone()];
    place.open().put(&place.store, &sample.path).unwrap();
    assert_eq!(place.open().has(&paths).unwrap(), [true]);
    assert_eq!(names_in(&other.path().join(".tmp")), [""; 0]);
}

#[test]
fn a_closure_goes_into_a_cache_and_comes_back_from_it() {
    let place = Place::new();
    let [sample, note, output] = place.closure();
    let cache = place.open().signing(key(1));
    let paths = [sample.path.clone(), note.path.clone(), output.path.clone()];
    assert_eq!(cache.has(&paths).unwrap(), [false; 3]);
    let report = cache.put(&place.store, &output.path).unwrap();
    let bytes = sample.nar_size + note.nar_size + output.nar_size;
    let written = 3;
    assert_eq!(
        report,
        PutReport {
            written,
            present: 0,
            bytes
        }
    );
    assert_eq!(cache.has(&paths).unwrap(), [true; 3]);
    assert_eq!(
        fs::read_to_string(place.cache.join("nix-cache-info")).unwrap(),
        "StoreDir: /nix/store\n"
    );
    let mut names = names_in(&place.cache);
    names.retain(|name| !name.ends_with(".narinfo"));
    assert_eq!(names, [".tmp", "nar", "nix-cache-info"]);
    assert_eq!(names_in(&place.cache).len(), 3 + 3);
    assert_eq!(
        names_in(&place.cache.join(".tmp")),
        [""; 0],
        "nothing temporary is left"
    );
    assert_eq!(names_in(&place.cache.join("nar")).len(), 3);

    let (_folder, receiver) = store();
    let lease = receiver.lease();
    let fetched = cache.fetch(&receiver, &output.path, &public(1), &lease).unwrap();
    assert_eq!(fetched.references, output.references);
    assert_eq!(fetched.deriver, output.deriver);
    assert_eq!(fetched.tree, output.tree);
    let url = format!("file://{}", place.cache.display());
    let key = "cache-1".to_owned();
    assert_eq!(fetched.origin, Origin::Cache { url, key });
    for original in [&sample, &note, &output] {
        assert_eq!(
            archive(&receiver, &original.path),
            archive(&place.store, &original.path)
        );
    }
    let note_there = receiver.query(&note.path).unwrap().unwrap();
    assert_eq!((note_there.origin, note_there.ca), (Origin::Content, note.ca));

    // Again, nothing is read: there is nothing to read.
    fs::remove_dir_all(&place.cache).unwrap();
    cache.fetch(&receiver, &output.path, &[], &lease).unwrap();
}

#[test]
fn what_is_there_already_stays_as_it_is() {
    let place = Place::new();
    let [sample, _, output] = place.closure();
    let cache = place.open();
    cache.put(&place.store, &output.path).unwrap();
    let snapshot = || -> Vec<(String, Vec<u8>)> {
        let read = |name: String| {
            let bytes = fs::read(place.cache.join(&name)).unwrap_or_default();
            (name, bytes)
        };
        names_in(&place.cache).into_iter().map(read).collect()
    };
    let before = snapshot();
    let report = cache.put(&place.store, &output.path).unwrap();
    assert_eq!((report.written, report.present, report.bytes), (0, 3, 0));
    assert_eq!(snapshot(), before);

    // A signature that is missing is added, and the others stay.
    for number in [1, 2, 1] {
        let cache = place.open().signing(key(number));
        assert_eq!(cache.put(&place.store, &output.path).unwrap().present, 3);
    }
    let info = cache.info(&output.path).unwrap().unwrap();
    assert_eq!(info.signatures().len(), 2);
    for number in [1, 2] {
        let (_folder, receiver) = store();
        cache
            .fetch(&receiver, &output.path, &public(number), &receiver.lease())
            .unwrap();
    }

    // What was cut or taken away is written anew.
    let archives = place.cache.join("nar");
    let first = archives.join(&names_in(&archives)[0]);
    fs::write(&first, b"cut").unwrap();
    fs::remove_file(place.info_file(&sample.path)).unwrap();
    let there = cache.has(&[sample.path.clone(), output.path.clone()]).unwrap();
    assert!(there.contains(&false));
    let cache = cache.signing(key(1));
    cache.put(&place.store, &output.path).unwrap();
    let (_folder, receiver) = store();
    cache
        .fetch(&receiver, &output.path, &public(1), &receiver.lease())
        .unwrap();
}

#[test]
fn a_cache_is_never_made_where_there_is_no_folder() {
    let (folder, _store) = store();
    let missing = folder.path().join("missing");
    let error = FolderCache::open(&missing).unwrap_err();
    let expected = format!("there is no folder '{}' on this machine", missing.display());
    assert!(error.to_string().starts_with(&expected), "{error}");
    assert!(!missing.exists());
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = FolderCache::open(&file).unwrap_err();
    assert!(matches!(error, CacheError::NotAFolder(_)), "{error}");
    // Gone after it was opened.
    let place = Place::new();
    let [_, _, output] = place.closure();
    let cache = place.open();
    fs::remove_dir(&place.cache).unwrap();
    let error = cache.put(&place.store, &output.path).unwrap_err();
    assert!(matches!(error, CacheError::Io { .. }), "{error}");
    assert!(!place.cache.exists());
}

#[test]
fn a_cache_of_another_store_is_refused() {
    let place = Place::new();
    fs::write(place.cache.join("nix-cache-info"), "StoreDir: /gnu/store\n").unwrap();
    let error = FolderCache::open(&place.cache).unwrap_err().to_string();
    assert!(
        error.contains("/gnu/store") && error.contains("/nix/store"),
        "{error}"
    );
}

#[test]
fn so_much_is_looked_at_of_what_a_cache_says_of_itself_and_no_more() {
    let place = Place::new();
    let other = "StoreDir: /gnu/store\n";
    let after = |bytes: usize| {
        let filling = "#".repeat(bytes - 1);
        fs::write(place.cache.join("nix-cache-info"), format!("{filling}\n{other}")).unwrap();
        FolderCache::open(&place.cache)
    };
    let most = usize::try_from(CACHE_INFO_BYTES).unwrap();
    assert!(matches!(
        after(most - other.len()),
        Err(CacheError::StoreDir { .. })
    ));
    after(most + 1).unwrap();
}

#[test]
fn what_nobody_trusted_vouches_for_is_refused() {
    let place = Place::new();
    let [sample, note, output] = place.closure();
    place.open().put(&place.store, &output.path).unwrap();
    let refused = |trusted: &[TrustedPublicKey]| {
        let (_folder, receiver) = store();
        let error = place
            .open()
            .fetch(&receiver, &output.path, trusted, &receiver.lease())
            .unwrap_err();
        assert!(matches!(error, CacheError::Untrusted { .. }), "{error}");
        assert_eq!(home_entries(&receiver), Vec::<String>::new());
        error.to_string()
    };
    let error = refused(&public(1));
    assert!(error.contains("no signature"), "{error}");
    place
        .open()
        .signing(key(1))
        .put(&place.store, &output.path)
        .unwrap();
    let error = refused(&[]);
    assert!(error.contains("signed by 'cache-1'"), "{error}");
    let error = refused(&public(2));
    assert!(error.contains("signature by 'cache-1' is wrong"), "{error}");
    // The signature covers what it says.
    place.edit(&output.path, |text| {
        text.replace(&format!(" {}", sample.path.to_basename()), "")
    });
    let error = refused(&public(1));
    assert!(error.contains("signature by 'cache-1' is wrong"), "{error}");

    // What is named by its content needs nobody.
    let (_folder, receiver) = store();
    place
        .open()
        .fetch(&receiver, &note.path, &[], &receiver.lease())
        .unwrap();
    assert_eq!(receiver.count().unwrap(), 2);
}

/// Whatever is wrong, nothing of it is registered, and no temporary tree is left.
#[test]
fn what_is_not_as_the_cache_says_is_refused() {
    let place = Place::new();
    let lease = place.store.lease();
    let at = place.folder.path().join("sample");
    write_sample(&at);
    let sample = place.store.add_source(&at, source("sample"), &lease).unwrap();
    let cache = place.open();
    cache.put(&place.store, &sample.path).unwrap();
    let info = fs::read(place.info_file(&sample.path)).unwrap();
    let nar = place
        .cache
        .join("nar")
        .join(&names_in(&place.cache.join("nar"))[0]);
    let bytes = fs::read(&nar).unwrap();
    let refused = || {
        let (_folder, receiver) = store();
        let error = cache.fetch(&receiver, &sample.path, &[], &receiver.lease());
        let error = error.unwrap_err().to_string();
        assert_eq!(home_entries(&receiver), Vec::<String>::new(), "{error}");
        fs::write(place.info_file(&sample.path), &info).unwrap();
        fs::write(&nar, &bytes).unwrap();
        error
    };
    let edit = |from: &'static str, to: &'static str| {
        place.edit(&sample.path, |text| {
            let lines = text.lines().map(|line| match line.strip_prefix(from) {
                Some(_) => format!("{from}{to}\n"),
                None => format!("{line}\n"),
            });
            lines.collect()
        });
        refused()
    };
    // Another file in the archive's place: same size, other content.
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 1;
    fs::write(&nar, &flipped).unwrap();
    let error = refused();
    assert!(error.contains("NAR hash"), "{error}");
    fs::write(&nar, [&bytes[..], b"more"].concat()).unwrap();
    let error = refused();
    assert!(error.contains("goes on after its end"), "{error}");
    fs::write(&nar, &bytes[..bytes.len() - 8]).unwrap();
    let error = refused();
    assert!(error.contains("ends here, in the middle"), "{error}");
    fs::remove_file(&nar).unwrap();
    let error = refused();
    assert!(
        error.contains(&nar.file_name().unwrap().to_string_lossy().into_owned()),
        "{error}"
    );

    let error = edit("NarSize: ", "100");
    assert!(error.contains("larger than the cache says"), "{error}");
    let error = edit("NarSize: ", "1000000000");
    assert!(error.contains("not sha256:"), "{error}");
    let error = edit("FileSize: ", "100");
    assert!(error.contains("bytes, not 100"), "{error}");
    let zeros = "sha256:0000000000000000000000000000000000000000000000000000";
    let error = edit("FileHash: ", zeros);
    assert!(error.contains("has the hash") && error.contains(zeros), "{error}");
    let error = edit("NarHash: ", zeros);
    assert!(error.contains(zeros), "{error}");
    let error = edit("NarHash: ", "sha1:00000000000000000000000000000000");
    assert!(error.contains("SHA-256"), "{error}");
    let error = edit("Compression: ", "bzip2");
    assert!(error.contains("bzip2"), "{error}");
    let error = edit("Compression: ", "zstd");
    assert!(error.contains("zstd") || error.contains("read"), "{error}");
    let error = edit("Compression: ", "xz");
    assert!(error.contains("cannot be read"), "{error}");
    let error = edit("CA: ", "fixed:r:md5:00000000000000000000000000");
    assert!(error.contains("not accepted"), "{error}");
    for url in [
        "../secret",
        "/etc/passwd",
        "nar/../../secret",
        "http://elsewhere/x.nar",
        ".",
    ] {
        place.edit(&sample.path, |text| {
            text.replace("URL: nar/", &format!("URL: {url}\nOld: "))
        });
        let error = refused();
        assert!(error.contains(url), "{error}");
    }
    let other = place.store.add_texts(&[text("other", b"", &[])], &lease).unwrap();
    fs::write(place.info_file(&other[0].path), &info).unwrap();
    let error = cache.info(&other[0].path).unwrap_err();
    assert!(matches!(error, CacheError::OtherPath { .. }), "{error}");
    fs::write(place.info_file(&sample.path), "StorePath /nix/store").unwrap();
    let error = refused();
    assert!(error.contains(".narinfo"), "{error}");
}

#[test]
fn a_reference_that_is_missing_is_named() {
    let place = Place::new();
    let [sample, note, output] = place.closure();
    let cache = place.open().signing(key(1));
    cache.put(&place.store, &output.path).unwrap();
    fs::remove_file(place.info_file(&sample.path)).unwrap();
    let (_folder, receiver) = store();
    let lease = receiver.lease();
    let error = cache
        .fetch(&receiver, &output.path, &public(1), &lease)
        .unwrap_err();
    assert!(
        matches!(&error, CacheError::NotThere { path, .. } if *path == sample.path),
        "{error}"
    );
    // What the store has already need not be in the cache.
    let at = place.folder.path().join("sample");
    receiver.add_source(&at, source("sample"), &lease).unwrap();
    cache.fetch(&receiver, &output.path, &public(1), &lease).unwrap();
    assert!(receiver.query(&note.path).unwrap().is_some());
}

#[test]
fn other_content_under_the_name_is_a_conflict() {
    let place = Place::new();
    let [_, _, output] = place.closure();
    let cache = place.open();
    cache.put(&place.store, &output.path).unwrap();
    place.edit(&output.path, |text| {
        let lines = text.lines().map(|line| match line.starts_with("NarHash") {
            true => "NarHash: sha256:0000000000000000000000000000000000000000000000000000\n".to_owned(),
            false => format!("{line}\n"),
        });
        lines.collect()
    });
    let error = cache.put(&place.store, &output.path).unwrap_err();
    assert!(matches!(error, CacheError::Conflict { .. }), "{error}");
    assert!(error.to_string().contains(&output.nar_hash.to_nix()), "{error}");
}

/// A damaged store is not spread.
#[test]
fn a_damaged_tree_is_not_put() {
    let place = Place::new();
    let [sample, _, output] = place.closure();
    let file = place.store.physical(&sample.path).join("share/text");
    fs::remove_file(&file).unwrap_or_else(|_| {
        // Its directory is read-only for others than root.
        use std::os::unix::fs::PermissionsExt;
        let parent = file.parent().unwrap();
        fs::set_permissions(parent, fs::Permissions::from_mode(0o755)).unwrap();
        fs::remove_file(&file).unwrap();
    });
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(file.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(&file, "SOME TEXT\n").unwrap();
    let error = place.open().put(&place.store, &output.path).unwrap_err();
    assert!(
        matches!(&error, CacheError::Damaged { path, .. } if *path == sample.path),
        "{error}"
    );
    assert_eq!(names_in(&place.cache.join("nar")), Vec::<String>::new());
    assert_eq!(place.open().has(&[output.path]).unwrap(), [false]);
}

/// Replaces the archive of a path by another file.
fn repack(place: &Place, path: &StorePath, compression: &str, packed: &[u8]) {
    let hash = hash_bytes(HashAlgorithm::Sha256, packed);
    let name = format!("nar/packed-{compression}-{}", packed.len());
    fs::write(place.cache.join(&name), packed).unwrap();
    place.edit(path, |text| {
        let lines = text.lines().map(|line| match line.split_once(": ") {
            Some(("URL", _)) => format!("URL: {name}\n"),
            Some(("Compression", _)) => format!("Compression: {compression}\n"),
            Some(("FileHash", _)) => format!("FileHash: {}\n", hash.to_nix_nixbase32_string()),
            Some(("FileSize", _)) => format!("FileSize: {}\n", packed.len()),
            _ => format!("{line}\n"),
        });
        lines.collect()
    });
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let options = lzma_rust2::XzOptions::with_preset(1);
    let mut writer = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

#[test]
fn packed_archives_are_unpacked_and_checked() {
    let place = Place::new();
    let lease = place.store.lease();
    let at = place.folder.path().join("sample");
    write_sample(&at);
    let sample = place.store.add_source(&at, source("sample"), &lease).unwrap();
    let cache = place.open();
    cache.put(&place.store, &sample.path).unwrap();
    let bytes = archive(&place.store, &sample.path);
    let (first, second) = bytes.split_at(bytes.len() / 3);
    // Whole, and in two pieces as programs with several threads write.
    let packed = [
        ("xz", xz(&bytes)),
        ("xz", [xz(first), xz(second)].concat()),
        ("zstd", zstd(&bytes)),
        ("zstd", [zstd(first), zstd(second)].concat()),
    ];
    for (compression, packed) in packed {
        repack(&place, &sample.path, compression, &packed);
        assert_eq!(cache.has(std::slice::from_ref(&sample.path)).unwrap(), [true]);
        let (_folder, receiver) = store();
        cache
            .fetch(&receiver, &sample.path, &[], &receiver.lease())
            .unwrap();
        assert_eq!(archive(&receiver, &sample.path), bytes);

        let refuse = |packed: &[u8]| {
            repack(&place, &sample.path, compression, packed);
            let (_folder, receiver) = store();
            let error = cache.fetch(&receiver, &sample.path, &[], &receiver.lease());
            let error = error.unwrap_err();
            assert_eq!(home_entries(&receiver), Vec::<String>::new(), "{error}");
        };
        refuse(&packed[..packed.len() / 2]);
        refuse(&[&packed[..], b"more"].concat());
        let mut flipped = packed.clone();
        flipped[packed.len() / 2] ^= 0x40;
        refuse(&flipped);
        // A gigabyte of zeros in a few bytes.
        if compression == "xz" {
            refuse(&xz(&vec![0; 64 << 20]));
        }
    }
}

#[test]
fn what_is_said_of_a_path_has_so_many_bytes_and_no_more() {
    let place = Place::new();
    let [sample, ..] = place.closure();
    let cache = place.open();
    cache.put(&place.store, &sample.path).unwrap();
    let hash = nixbase32::encode(sample.path.digest());
    let file = place.cache.join(format!("{hash}.narinfo"));
    let said = fs::read_to_string(&file).unwrap();
    let with = |bytes: usize| {
        let filling = "x".repeat(bytes - said.len() - "Filling: \n".len());
        fs::write(&file, format!("{said}Filling: {filling}\n")).unwrap();
        cache.info(&sample.path)
    };
    let info = with(MAX_NARINFO_SIZE).unwrap().unwrap();
    assert_eq!(info.store_path(), &sample.path);
    let error = with(MAX_NARINFO_SIZE + 1).unwrap_err().to_string();
    assert!(
        error.contains(".narinfo' is refused") && error.contains(&MAX_NARINFO_SIZE.to_string()),
        "{error}"
    );
}
