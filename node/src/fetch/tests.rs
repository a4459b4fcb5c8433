use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::{Arc, Mutex};

use tvix_node_protocol::nix::hash::{CAHash, HashAlgorithm, hash_bytes};
use tvix_node_protocol::nix::store_path::build_ca_path;
use tvix_node_protocol::path_info::{NarHash, Origin};
use tvix_node_protocol::tree::TreeDigest;

use super::*;

/// A store that knows what was added by its path alone.
#[derive(Default)]
pub(super) struct Shelf {
    found: RefCell<BTreeMap<String, StorePath>>,
    archives: RefCell<BTreeMap<StorePath, Vec<u8>>>,
    pub(super) warnings: RefCell<Vec<String>>,
}

impl Store for Shelf {
    fn find(&self, fingerprint: &str) -> Result<Option<StorePath>, HostError> {
        Ok(self.found.borrow().get(fingerprint).cloned())
    }

    fn add(&self, tree: &SourceTree, source: AddSource) -> Result<PathInfo, HostError> {
        let mut archive = Vec::new();
        tree.write_archive(&mut archive)
            .map_err(|error| HostError::new(error.to_string()))?;
        let nar_hash = hash_bytes(HashAlgorithm::Sha256, &archive);
        let content = match source.method {
            AddedAs::Nar => CAHash::Nar(nar_hash.clone()),
            // The bytes of a file follow its length, behind "contents".
            AddedAs::Flat => CAHash::Flat(hash_bytes(HashAlgorithm::Sha256, &file_of(&archive))),
        };
        let path = build_ca_path(&source.name, &content, std::iter::empty(), false).unwrap();
        if let Some(fingerprint) = source.fingerprint {
            self.found.borrow_mut().insert(fingerprint, path.clone());
        }
        let info = PathInfo {
            path: path.clone(),
            tree: TreeDigest([0; 32]),
            nar_hash: NarHash(nar_hash.digest_as_bytes().try_into().unwrap()),
            nar_size: archive.len() as u64,
            references: Default::default(),
            deriver: None,
            ca: None,
            origin: Origin::Content,
            registered: 0,
            signatures: Vec::new(),
        };
        self.archives.borrow_mut().insert(path, archive);
        Ok(info)
    }

    fn physical(&self, logical: &Path) -> PathBuf {
        logical.to_owned()
    }

    fn warn(&self, text: &str) {
        self.warnings.borrow_mut().push(text.to_owned());
    }
}

fn file_of(archive: &[u8]) -> Vec<u8> {
    let at = archive
        .windows(8)
        .position(|window| window == b"contents")
        .expect("a file")
        + 8;
    let length = u64::from_le_bytes(archive[at..at + 8].try_into().unwrap()) as usize;
    archive[at + 8..at + 8 + length].to_vec()
}

/// A server of one resource: what it has, and the requests that it got.
#[derive(Clone, Default)]
struct Server {
    body: Arc<Mutex<Option<Vec<u8>>>>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(body: &[u8]) -> (Self, String) {
        let server = Self::default();
        server.serve(Some(body));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/file", listener.local_addr().unwrap());
        let own = server.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                let mut lines = BufReader::new(&stream).lines();
                let mut request = String::new();
                while let Some(Ok(line)) = lines
                    .next()
                    .filter(|line| !matches!(line, Ok(line) if line.is_empty()))
                {
                    request += &(line + "\n");
                }
                let answer = own.answer(&request);
                own.requests.lock().unwrap().push(request);
                (&stream).write_all(&answer).unwrap();
            }
        });
        (server, url)
    }

    /// From now on it has this, or nothing.
    fn serve(&self, body: Option<&[u8]>) {
        *self.body.lock().unwrap() = body.map(<[u8]>::to_vec);
    }

    fn answer(&self, request: &str) -> Vec<u8> {
        let Some(body) = self.body.lock().unwrap().clone() else {
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec();
        };
        let tag = format!("\"{}\"", blake3::hash(&body).to_hex());
        if request.contains(&tag) {
            return format!("HTTP/1.1 304 Not Modified\r\nETag: {tag}\r\nConnection: close\r\n\r\n")
                .into_bytes();
        }
        let head = format!(
            "HTTP/1.1 200 OK\r\nETag: {tag}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        [head.as_bytes(), &body].concat()
    }

    fn asked(&self) -> usize {
        self.requests.lock().unwrap().len()
    }
}

/// A fetcher with a folder of its own.
pub(super) struct Bench {
    fetcher: Fetcher,
    pub(super) store: Shelf,
    pub(super) folder: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Bench {
    pub(super) fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let folder = tempfile::tempdir().unwrap();
        Self {
            fetcher: Fetcher::new(folder.path().join("fetch"), runtime.handle().clone()),
            store: Shelf::default(),
            folder,
            _runtime: runtime,
        }
    }

    pub(super) fn fetch(&self, wanted: &Fetch) -> Result<Fetched, String> {
        self.fetcher
            .fetch(wanted, &self.store)
            .map_err(|error| error.to_string())
    }

    pub(super) fn archive(&self, fetched: &Fetched) -> Vec<u8> {
        self.store.archives.borrow()[&fetched.path].clone()
    }

    /// Makes everything that is remembered too old to count as current.
    pub(super) fn age(&self) {
        for file in fs::read_dir(self.folder.path().join("fetch/known")).unwrap() {
            let file = file.unwrap().path();
            let mut value: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
            value["value"]["at"] = 1.into();
            fs::write(&file, value.to_string()).unwrap();
        }
    }
}

fn a_file(url: &str, expected: Option<NixHash>) -> Fetch {
    Fetch::File {
        url: url.to_owned(),
        name: "x".to_owned(),
        ingestion: Ingestion::Flat,
        expected,
    }
}

#[test]
fn a_file_is_asked_for_once_and_then_whether_it_changed() {
    let bench = Bench::new();
    let (server, url) = Server::start(b"one");
    let first = bench.fetch(&a_file(&url, None)).unwrap();
    assert_eq!(file_of(&bench.archive(&first)), b"one");
    assert_eq!(bench.fetch(&a_file(&url, None)).unwrap(), first);
    assert_eq!(server.asked(), 1, "what is current is not asked for");
    bench.age();
    assert_eq!(bench.fetch(&a_file(&url, None)).unwrap(), first);
    assert_eq!(server.asked(), 2);
    assert!(
        server.requests.lock().unwrap()[1]
            .to_lowercase()
            .contains("if-none-match")
    );
    assert_eq!(bench.fetch(&a_file(&url, None)).unwrap(), first);
    assert_eq!(server.asked(), 2, "that it is unchanged makes it current again");
    bench.age();
    server.serve(Some(b"two"));
    let second = bench.fetch(&a_file(&url, None)).unwrap();
    assert_eq!(file_of(&bench.archive(&second)), b"two");
}

#[test]
fn what_was_fetched_before_beats_nothing_and_that_is_said() {
    let bench = Bench::new();
    let (server, url) = Server::start(b"one");
    let first = bench.fetch(&a_file(&url, None)).unwrap();
    server.serve(None);
    bench.age();
    assert_eq!(bench.fetch(&a_file(&url, None)).unwrap(), first);
    let warnings = bench.store.warnings.borrow().join("\n");
    assert!(
        warnings.contains("404") && warnings.contains("fetched before"),
        "{warnings}"
    );
    // A store that has lost it makes it nothing.
    bench.store.found.borrow_mut().clear();
    let error = bench.fetch(&a_file(&url, None)).unwrap_err();
    assert!(
        error.contains(&format!("unable to download '{url}'")) && error.contains("404"),
        "{error}"
    );
}

#[test]
fn a_demanded_hash_is_checked_against_what_came() {
    let bench = Bench::new();
    let (server, url) = Server::start(b"one");
    let right = hash_bytes(HashAlgorithm::Sha256, b"one");
    bench.fetch(&a_file(&url, Some(right.clone()))).unwrap();
    let wrong = NixHash::Sha256([0; 32]);
    let error = bench.fetch(&a_file(&url, Some(wrong.clone()))).unwrap_err();
    for part in [
        "hash mismatch",
        &url,
        &wrong.to_sri_string(),
        &right.to_sri_string(),
    ] {
        assert!(error.contains(part), "{error}");
    }
    // What is current here may be what somebody has changed meanwhile: it is asked for again.
    let asked = server.asked();
    server.serve(Some(b"two"));
    let two = hash_bytes(HashAlgorithm::Sha256, b"two");
    bench.fetch(&a_file(&url, Some(two))).unwrap();
    assert_eq!(server.asked(), asked + 1);
}

fn a_tar(url: &str, expected: Option<NixHash>) -> Fetch {
    Fetch::Archive {
        url: url.to_owned(),
        name: "source".to_owned(),
        expected,
    }
}

#[test]
fn an_archive_becomes_the_folder_in_it() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(4);
    header.set_mode(0o755);
    header.set_mtime(1_000_000);
    builder.append_data(&mut header, "top/run", &b"text"[..]).unwrap();
    let tarball = builder.into_inner().unwrap();
    let same = tempfile::tempdir().unwrap();
    fs::write(same.path().join("run"), "text").unwrap();
    fs::set_permissions(same.path().join("run"), fs::Permissions::from_mode(0o755)).unwrap();
    let mut expected = Vec::new();
    SourceTree::new(same.path().to_owned(), None)
        .write_archive(&mut expected)
        .unwrap();

    let bench = Bench::new();
    let (server, url) = Server::start(&tarball);
    let fetched = bench.fetch(&a_tar(&url, None)).unwrap();
    assert_eq!(bench.archive(&fetched), expected);
    assert_eq!(fetched.last_modified, Some(1_000_000));
    assert_eq!(fetched.nar_hash, hash_bytes(HashAlgorithm::Sha256, &expected));
    let error = bench
        .fetch(&a_tar(&url, Some(NixHash::Sha256([0; 32]))))
        .unwrap_err();
    assert!(error.contains("hash mismatch in the tree"), "{error}");
    server.serve(Some(b"<html>"));
    bench.age();
    let error = bench.fetch(&a_tar(&url, None)).unwrap_err();
    assert!(error.contains("cannot unpack"), "{error}");
    // A file of this machine is read anew each time.
    let file = same.path().join("x.tar");
    fs::write(&file, &tarball).unwrap();
    let local = format!("file://{}", file.display());
    assert_eq!(bench.fetch(&a_tar(&local, None)).unwrap().path, fetched.path);
    fs::write(&file, "changed").unwrap();
    bench.fetch(&a_tar(&local, None)).unwrap_err();
}

#[test]
fn what_cannot_be_fetched_is_refused_by_name() {
    let bench = Bench::new();
    let folder = bench.folder.path().display();
    for (url, why) in [
        ("no url", "cannot fetch 'no url'"),
        ("ftp://h/x", "only http, https and file"),
        ("file://host/x", "no host"),
        (&format!("file://{folder}"), "not a regular file"),
        (&format!("file://{folder}/none"), "No such file"),
    ] {
        let error = bench.fetch(&a_file(url, None)).unwrap_err();
        assert!(error.contains(why), "{url}: {error}");
    }
}

#[test]
fn a_path_is_added_as_it_is() {
    let bench = Bench::new();
    let place = bench.folder.path().join("place");
    fs::create_dir(&place).unwrap();
    fs::write(place.join("a"), "text").unwrap();
    let wanted = |expected| Fetch::Path {
        path: place.clone(),
        name: "source".to_owned(),
        expected,
    };
    let fetched = bench.fetch(&wanted(None)).unwrap();
    assert!(fetched.last_modified.is_some_and(|time| time > 1_600_000_000));
    assert_eq!(
        bench.fetch(&wanted(Some(fetched.nar_hash.clone()))).unwrap().path,
        fetched.path
    );
    bench.fetch(&wanted(Some(NixHash::Sha256([0; 32])))).unwrap_err();
}

/// Paths of files and links in an archive, by the names in it, with their contents or targets.
pub(super) fn names(archive: &[u8]) -> Vec<String> {
    use tvix_node_protocol::nix::nar::{Event, decode_events_reader};
    let mut at: Vec<String> = Vec::new();
    let mut found = Vec::new();
    let mut archive = archive;
    decode_events_reader(&mut archive, |event| {
        let path = |name: Option<&[u8]>| {
            let name = String::from_utf8_lossy(name.unwrap_or_default()).into_owned();
            at.iter().chain([&name]).cloned().collect::<Vec<_>>().join("/")
        };
        match event {
            Event::DirectoryStart { name } => {
                let path = path(name);
                found.push(format!("{path}/"));
                at.push(String::from_utf8_lossy(name.unwrap_or_default()).into_owned());
            }
            Event::DirectoryEnd { .. } => drop(at.pop()),
            Event::Regular {
                name,
                executable,
                mut contents,
            } => {
                let path = path(name);
                let mut text = Vec::new();
                contents.copy_to(&mut text)?;
                let mark = if executable { "*" } else { "" };
                found.push(format!("{path}{mark}={}", String::from_utf8_lossy(&text)));
            }
            Event::Symlink { name, target } => {
                found.push(format!("{} -> {}", path(name), String::from_utf8_lossy(target)));
            }
        }
        Ok(())
    })
    .unwrap();
    found
}
