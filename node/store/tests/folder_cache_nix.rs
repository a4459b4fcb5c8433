//! Binary caches in folders, shared with stock Nix.

#![allow(clippy::unwrap_used)]

mod samples;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use samples::{path, source, store, write_sample};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::nix::narinfo::{Compression, TrustedPublicKey};
use tvix_node_protocol::nix::signature::NixSecretKey;
use tvix_node_protocol::path_info::Origin;
use tvix_node_store::{FolderCache, ScratchOutput};

/// Stock Nix with a store of its own in this folder; nothing where it is not installed.
struct Nix<'a>(&'a Path);

impl<'a> Nix<'a> {
    fn new(root: &'a Path) -> Option<Self> {
        let version = Command::new("nix").arg("--version").output();
        if version.is_ok_and(|output| output.status.success()) {
            return Some(Self(root));
        }
        println!("SKIPPED: exchange with stock Nix, which is not installed");
        None
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new("nix")
            .args(["--extra-experimental-features", "nix-command"])
            .args(arguments)
            .args([
                "--option",
                "substitute",
                "false",
                "--option",
                "require-sigs",
                "true",
            ])
            .env("HOME", self.0)
            .env("XDG_CACHE_HOME", self.0.join("cache"))
            .env_remove("NIX_REMOTE")
            .env_remove("NIX_CONFIG")
            .output()
            .unwrap()
    }

    fn text(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn store(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

fn parse(path: &str) -> StorePath {
    StorePath::from_absolute_path(path.as_bytes()).unwrap()
}

#[test]
fn stock_nix_takes_what_is_put() {
    let (folder, store) = store();
    let folder = folder.path();
    let Some(nix) = Nix::new(folder) else { return };
    let lease = store.lease();
    write_sample(&folder.join("sample"));
    let sample = store
        .add_source(&folder.join("sample"), source("sample"), &lease)
        .unwrap();
    let (first, second) = (path("first"), StorePath::from_parts([9; 20], "second").unwrap());
    for (output, names) in [
        (&first, vec![&sample.path]),
        (&second, vec![&first, &sample.path]),
    ] {
        let scratch = folder.join(output.name());
        let names: Vec<String> = names.iter().map(|path| path.to_string()).collect();
        fs::write(&scratch, format!("{output} {}", names.join(" "))).unwrap();
        let scratch = ScratchOutput {
            path: output.clone(),
            scratch: &scratch,
            ca: None,
            scanned: true,
        };
        let candidates = BTreeSet::from([sample.path.clone(), first.clone()]);
        let prepared = store
            .prepare_built(&[scratch], &candidates, &path("it.drv"), &Origin::Built)
            .unwrap();
        store.register(prepared, &lease).unwrap();
    }
    let cache = folder.join("folder-cache");
    fs::create_dir(&cache).unwrap();
    let key = NixSecretKey::from_bytes("node-1", &[3; 32]).unwrap();
    let public = key.public();
    let cache = FolderCache::open(&cache).unwrap();
    cache.put(&store, &second).unwrap();
    let (url, second) = (cache.url(), second.to_absolute_path());
    let to = nix.store("root");
    let copy = [
        "copy",
        "--from",
        &url,
        "--to",
        &to,
        &second,
        "--option",
        "trusted-public-keys",
        &public,
    ];
    let refused = nix.run(&copy);
    assert!(!refused.status.success(), "nobody signed it");
    let cache = cache.signing(key);
    cache.put(&store, &parse(&second)).unwrap();
    nix.text(&copy);
    nix.text(&["store", "verify", "--store", &to, "--all", "--no-trust"]);
    for info in store.closure([&parse(&second)]).unwrap() {
        let path = info.path.to_absolute_path();
        let dumped = nix.run(&["store", "dump-path", "--store", &to, &path]);
        let mut archive = Vec::new();
        store.dump_nar(&info.path, &mut archive).unwrap();
        assert!(dumped.stdout == archive, "{path}");
    }

    // Signed by stock Nix, and back.
    let (secret, public) = (nix.store("secret"), nix.store("public"));
    let made = Command::new("nix-store")
        .args(["--generate-binary-cache-key", "nix-1", &secret, &public])
        .status()
        .unwrap();
    assert!(made.success());
    let key = NixSecretKey::parse(&fs::read_to_string(&secret).unwrap()).unwrap();
    assert_eq!(key.public(), fs::read_to_string(&public).unwrap().trim());
    nix.text(&["store", "sign", "--store", &to, "-r", "-k", &secret, &second]);
    let signed = folder.join("signed");
    let url = format!("file://{}", signed.display());
    nix.text(&["copy", "--from", &to, "--to", &url, &second]);
    let cache = FolderCache::open(&signed).unwrap();
    let (_folder, receiver) = samples::store();
    let lease = receiver.lease();
    let trusted: [TrustedPublicKey; 1] = [key.public().parse().unwrap()];
    assert!(cache.fetch(&receiver, &parse(&second), &[], &lease).is_err());
    let info = cache.fetch(&receiver, &parse(&second), &trusted, &lease).unwrap();
    let key = "nix-1".to_owned();
    assert_eq!(info.origin, Origin::Cache { url, key });
}

#[test]
fn what_stock_nix_put_is_taken() {
    let (folder, store) = store();
    let folder = folder.path();
    let Some(nix) = Nix::new(folder) else { return };
    let from = nix.store("root");
    write_sample(&folder.join("sample"));
    let sample = folder.join("sample");
    let sample = sample.to_str().unwrap();
    let added = nix.text(&["store", "add-path", "--store", &from, sample]);
    let made = nix.text(&[
        "eval",
        "--store",
        &from,
        "--raw",
        "--impure",
        "--expr",
        &format!(r#"builtins.toFile "text" "${{builtins.storePath "{added}"}}""#),
    ]);
    for (compression, known) in [
        ("none", Compression::None),
        ("xz", Compression::Xz),
        ("zstd", Compression::Zstd),
    ] {
        let cache = folder.join(compression);
        let url = format!("file://{}?compression={compression}", cache.display());
        nix.text(&["copy", "--from", &from, "--to", &url, &made]);
        let cache = FolderCache::open(&cache).unwrap();
        let paths = [parse(&added), parse(&made)];
        assert_eq!(cache.has(&paths).unwrap(), [true, true]);
        assert_eq!(cache.info(&paths[0]).unwrap().unwrap().compression(), &known);
        let (_folder, receiver) = samples::store();
        let info = cache.fetch(&receiver, &paths[1], &[], &receiver.lease()).unwrap();
        assert_eq!(info.references, BTreeSet::from([paths[0].clone()]));
        let mut archive = Vec::new();
        receiver.dump_nar(&paths[0], &mut archive).unwrap();
        let dumped = nix.run(&["store", "dump-path", "--store", &from, &added]);
        assert!(dumped.stdout == archive, "{compression}");
        // Into the same folder.
        let own = store
            .add_source(&folder.join("sample"), source("own"), &store.lease())
            .unwrap();
        cache.put(&store, &own.path).unwrap();
        let own = own.path.to_absolute_path();
        nix.text(&["copy", "--from", &cache.url(), "--to", &from, &own]);
    }
}
