//! Paths from upstream binary caches: over HTTP from a server in this process, and from folders.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tvix_node_protocol::StorePath;
use tvix_node_protocol::nix::signature::NixSecretKey;
use tvix_node_store::{FolderCache, Store};

use super::cache_server::{CacheServer, Manner};
use super::harness::{Finished, Machine, sandbox_works, skipped};

const EXPRESSION: &str = r#"rec {
  low = build "low" { } "write $out low";
  high = build "high" { inherit low; } "write $out $low";
  fixed = build "fixed" {
    outputHashMode = "flat"; outputHashAlgo = "sha256";
    outputHash = builtins.hashString "sha256" "fixed\n";
  } "write $out fixed";
}"#;

fn key(number: u8) -> NixSecretKey {
    NixSecretKey::from_bytes("cache.test-1", &[number; 32]).expect("a key")
}

/// A cache with everything that the expression makes, signed or not.
struct Cache {
    machine: Machine,
    folder: PathBuf,
    high: String,
    fixed: String,
}

impl Cache {
    fn new(signing: Option<NixSecretKey>) -> Self {
        let machine = Machine::new();
        machine.expression(EXPRESSION);
        let build = |attribute| {
            machine
                .run(&["build", "-A", attribute, "--no-out-link"])
                .ok()
                .to_owned()
        };
        let (high, fixed) = (build("high"), build("fixed"));
        machine.run(&["down"]).ok();
        let folder = machine.folder().join("cache");
        fs::create_dir(&folder).expect("a folder");
        let store = Store::open(&machine.home()).expect("the store is free");
        let mut cache = FolderCache::open(&folder).expect("a folder");
        if let Some(key) = signing {
            cache = cache.signing(key);
        }
        for path in [&high, &fixed] {
            let path = StorePath::from_absolute_path(path.as_bytes()).expect("a path");
            cache.put(&store, &path).expect("it is there");
        }
        Self {
            machine,
            folder,
            high,
            fixed,
        }
    }

    /// A machine with the same expression that is configured with caches and keys.
    fn client(&self, caches: &[&str], keys: &[NixSecretKey]) -> Machine {
        let machine = Machine::new();
        machine.expression(EXPRESSION);
        fs::create_dir_all(machine.home()).expect("a folder");
        let keys: Vec<String> = keys.iter().map(NixSecretKey::public).collect();
        let config = format!("substituters = {caches:?}\ntrusted-public-keys = {keys:?}\n");
        fs::write(machine.home().join("config.toml"), config).expect("a file");
        machine
    }
}

fn build(machine: &Machine, attribute: &str, more: &[&str]) -> Finished {
    let line = [
        "build",
        "-A",
        attribute,
        "--no-out-link",
        "--log-format",
        "internal-json",
    ];
    machine.run(&[line.as_slice(), more].concat())
}

/// How many events of a kind a build told.
fn count(finished: &Finished, kind: &str) -> usize {
    let kind = format!("\"event\":\"{kind}\"");
    finished
        .stderr
        .lines()
        .filter(|line| line.contains(&kind))
        .count()
}

#[track_caller]
fn fetched(finished: &Finished, path: &str, paths: usize) {
    assert_eq!(finished.ok(), path);
    let counts = (
        count(finished, "fetch-finished"),
        count(finished, "build-started"),
    );
    assert_eq!(counts, (paths, 0), "{}", finished.stderr);
}

#[track_caller]
fn built(finished: &Finished, path: &str) {
    assert_eq!(finished.ok(), path);
    assert_eq!(count(finished, "fetch-finished"), 0, "{}", finished.stderr);
    assert!(count(finished, "build-started") > 0, "{}", finished.stderr);
}

#[test]
fn signed_paths_come_from_a_cache_over_http() {
    if !sandbox_works("signed_paths_come_from_a_cache_over_http") {
        return;
    }
    let cache = Cache::new(Some(key(1)));
    let server = CacheServer::up(&cache.folder, Manner::Well);
    let client = cache.client(&[&server.url], &[key(1)]);
    fetched(&build(&client, "high", &[]), &cache.high, 2);
    assert_eq!(server.asked(".nar"), 2);
    assert_eq!(client.run(&["store", "verify"]).status, 0);
    let why = client.run(&["why", &cache.high]);
    let from = format!(
        "was fetched from the cache {}, signed by cache.test-1",
        server.url
    );
    assert!(why.ok().contains(&from), "{}", why.stdout);
    let status = client.run(&["status"]);
    assert!(
        status.ok().contains(&format!("cache    {}: 2 paths", server.url)),
        "{}",
        status.stdout
    );
    // What is here is not asked for again.
    let asked = server.asked("");
    assert_eq!(build(&client, "high", &[]).ok(), cache.high);
    assert_eq!(server.asked(""), asked);
    drop(cache.machine);
}

/// A trusted key is somebody's word, which the owner's rules may not take.
#[test]
fn where_the_owner_believes_nobody_s_word_no_cache_is_believed_either() {
    if !sandbox_works("where_the_owner_believes_nobody_s_word_no_cache_is_believed_either") {
        return;
    }
    let cache = Cache::new(Some(key(1)));
    let server = CacheServer::up(&cache.folder, Manner::Well);
    let client = cache.client(&[&server.url], &[key(1)]);
    client.run(&["trust", "set", "self"]).ok();
    built(&build(&client, "high", &[]), &cache.high);
    assert_eq!(server.asked(".nar"), 0);
}

#[test]
fn what_nobody_trusted_signed_is_built_and_what_names_itself_is_taken() {
    if !sandbox_works("what_nobody_trusted_signed_is_built_and_what_names_itself_is_taken") {
        return;
    }
    // Unsigned, signed by a key that is not configured, and by one that only has its name.
    let cases = [
        (None, vec![key(1)]),
        (Some(key(1)), vec![]),
        (Some(key(2)), vec![key(1)]),
    ];
    for (signing, keys) in cases {
        let cache = Cache::new(signing);
        let server = CacheServer::up(&cache.folder, Manner::Well);
        let client = cache.client(&[&server.url], &keys);
        built(&build(&client, "high", &[]), &cache.high);
        assert!(server.asked(".narinfo") >= 2 && server.asked(".nar") == 0);
        // It needs no signature, and is checked against its name.
        fetched(&build(&client, "fixed", &[]), &cache.fixed, 1);
        let why = client.run(&["why", &cache.fixed]);
        assert!(
            why.ok().contains("is named by its content, which was fetched"),
            "{}",
            why.stdout
        );
    }
    let cache = Cache::new(None);
    let lying = CacheServer::up(&cache.folder, Manner::Damaged);
    let client = cache.client(&[&lying.url], &[]);
    built(&build(&client, "fixed", &[]), &cache.fixed);
    assert!(lying.asked(".nar") > 0);
}

#[test]
fn a_cache_does_not_lead_to_what_else_this_machine_can_reach() {
    if !sandbox_works("a_cache_does_not_lead_to_what_else_this_machine_can_reach") {
        return;
    }
    let cache = Cache::new(Some(key(1)));
    let inside = CacheServer::up(&cache.folder, Manner::Well);
    let port = inside.url.rsplit(':').next().and_then(|port| port.parse().ok());
    let leading = CacheServer::up(&cache.folder, Manner::Astray(port.expect("a port")));
    let client = cache.client(&[&leading.url], &[key(1)]);
    built(&build(&client, "high", &[]), &cache.high);
    assert!(leading.asked(".nar") > 0);
    assert_eq!(inside.asked(""), 0);
    let status = client.run(&["status"]);
    assert!(
        status.ok().contains("a cache may lead to its own host"),
        "{}",
        status.stdout
    );
}

#[test]
fn bad_caches_are_passed_over() {
    if !sandbox_works("bad_caches_are_passed_over") {
        return;
    }
    let cache = Cache::new(Some(key(1)));
    let good = CacheServer::up(&cache.folder, Manner::Well);
    for manner in [Manner::Damaged, Manner::Silent] {
        let bad = CacheServer::up(&cache.folder, manner);
        // Nobody listens at the first one, and the last one is no cache.
        let elsewhere = cache.machine.folder().join("empty");
        fs::create_dir_all(&elsewhere).expect("a folder");
        let none = CacheServer::up(&elsewhere, Manner::Well);
        let caches = ["http://127.0.0.1:1", &bad.url, &good.url, &none.url];
        let client = cache.client(&caches, &[key(1)]);
        fetched(&build(&client, "high", &[]), &cache.high, 2);
        assert_eq!(client.run(&["store", "verify"]).status, 0);
        let status = client.run(&["status"]);
        for cache in [caches[0], &none.url] {
            let skipped = format!("cache    {cache}: skipped for ");
            assert!(status.ok().contains(&skipped), "{}", status.stdout);
        }
        assert!(none.asked("") <= 1, "it is asked what it is, and then left alone");
    }
    // Where none is good it is built.
    let bad = CacheServer::up(&cache.folder, Manner::Damaged);
    let client = cache.client(&[&bad.url], &[key(1)]);
    built(&build(&client, "high", &[]), &cache.high);
}

#[test]
fn a_download_that_drips_gets_a_rival_and_is_given_up_in_the_end() {
    if !sandbox_works("a_download_that_drips_gets_a_rival_and_is_given_up_in_the_end") {
        return;
    }
    let cache = Cache::new(Some(key(1)));
    let dripping = CacheServer::up(&cache.folder, Manner::Dripping);
    // The other one answers first, so the download begins there.
    let late = CacheServer::up(&cache.folder, Manner::Late);
    let client = cache.client(&[&dripping.url, &late.url], &[key(1)]);
    fetched(&build(&client, "high", &[]), &cache.high, 2);
    assert!(dripping.asked(".nar") > 0 && late.asked(".nar") == 2);
    // Where nobody else has it, it is built after all.
    let client = cache.client(&[&dripping.url], &[key(1)]);
    built(&build(&client, "high", &[]), &cache.high);
    let status = client.run(&["status"]);
    for part in [
        &format!("cache    {}: skipped for ", dripping.url),
        " bytes came in 30 seconds",
    ] {
        assert!(status.ok().contains(part), "{}", status.stdout);
    }
}

#[test]
fn why_a_cache_is_of_no_use_is_told_once_to_each_command() {
    if !sandbox_works("why_a_cache_is_of_no_use_is_told_once_to_each_command") {
        return;
    }
    let cache = Cache::new(Some(key(2)));
    let folder = format!("file://{}", cache.folder.display());
    let nowhere = format!("{folder}/nowhere");
    // A key of the name that signed, mistyped, and a cache that is not there.
    let client = cache.client(&[&folder, &nowhere], &[key(1)]);
    let told = |finished: &Finished, part: &str| {
        let lines = finished.stderr.lines();
        lines
            .filter(|line| line.contains("warning") && line.contains(part))
            .count()
    };
    for more in [&["-j", "0"][..], &[]] {
        let line = ["build", "-A", "high", "--no-out-link"];
        let finished = client.run(&[&line[..], more].concat());
        assert_eq!(finished.status == 0, more.is_empty(), "{}", finished.stderr);
        for part in ["its signature by 'cache.test-1' is wrong", "there is no folder"] {
            assert_eq!(told(&finished, part), 1, "{part}: {}", finished.stderr);
        }
    }
    // What is here is not asked for, so there is nothing to tell.
    let again = build(&client, "high", &[]);
    assert_eq!(told(&again, "cache"), 0, "{}", again.stderr);
}

#[test]
fn a_path_that_cannot_be_unpacked_is_no_reason_to_leave_a_cache_alone() {
    if !sandbox_works("a_path_that_cannot_be_unpacked_is_no_reason_to_leave_a_cache_alone") {
        return;
    }
    let cache = Cache::new(Some(key(1)));
    let name = cache.high.trim_start_matches("/nix/store/");
    let narinfo = cache.folder.join(format!("{}.narinfo", &name[..32]));
    let said = fs::read_to_string(&narinfo).expect("it is signed");
    assert!(said.contains("Compression: none\n"), "{said}");
    fs::write(&narinfo, said.replace("Compression: none", "Compression: br")).expect("it is ours");
    let server = CacheServer::up(&cache.folder, Manner::Well);
    let client = cache.client(&[&server.url], &[key(1)]);
    // Its input comes from there all the same.
    let finished = build(&client, "high", &[]);
    assert_eq!(finished.ok(), cache.high);
    assert_eq!(
        (
            count(&finished, "fetch-finished"),
            count(&finished, "build-started")
        ),
        (1, 1),
        "{}",
        finished.stderr
    );
    assert!(
        finished.stderr.contains("is packed with br"),
        "{}",
        finished.stderr
    );
    let status = client.run(&["status"]);
    assert!(!status.ok().contains("skipped"), "{}", status.stdout);
}

#[test]
fn a_cache_that_stock_nix_made_is_fetched_from_over_http() {
    const NAME: &str = "a_cache_that_stock_nix_made_is_fetched_from_over_http";
    if !sandbox_works(NAME) {
        return;
    }
    let ours = Cache::new(Some(key(1)));
    let folder = ours.machine.folder();
    let nix = |arguments: &[&str]| {
        let mut command = Command::new("nix");
        command.args(["--extra-experimental-features", "nix-command"]);
        command.args(arguments).args(["--option", "substitute", "false"]);
        command.env("HOME", folder).env_remove("NIX_REMOTE");
        command.output()
    };
    if nix(&["--version"]).is_err() {
        skipped(NAME, "stock Nix is not installed");
        return;
    }
    let run = |arguments: &[&str]| {
        let output = nix(arguments).expect("it is installed");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
    };
    let place = |name: &str| folder.join(name).display().to_string();
    let (root, secret) = (place("root"), place("secret"));
    let generate = [
        "--generate-binary-cache-key",
        "stock.test-1",
        &secret,
        &place("public"),
    ];
    let generated = Command::new("nix-store").args(generate).status();
    assert!(generated.expect("it comes with nix").success());
    let stock_key =
        || NixSecretKey::parse(&fs::read_to_string(&secret).expect("it was made")).expect("a key");
    let (from, public) = (format!("file://{}", ours.folder.display()), key(1).public());
    let trusted = ["--option", "trusted-public-keys", &public];
    run(&[
        ["copy", "--from", &from, "--to", &root, &ours.high].as_slice(),
        &trusted,
    ]
    .concat());
    for compression in ["none", "xz", "zstd"] {
        let made = folder.join(compression);
        let to = format!(
            "file://{}?compression={compression}&secret-key={secret}",
            made.display()
        );
        run(&["copy", "--from", &root, "--to", &to, &ours.high]);
        let server = CacheServer::up(&made, Manner::Well);
        let distrusting = ours.client(&[&server.url], &[key(3)]);
        built(&build(&distrusting, "high", &[]), &ours.high);
        let client = ours.client(&[&server.url], &[stock_key()]);
        fetched(&build(&client, "high", &[]), &ours.high, 2);
        assert_eq!(client.run(&["store", "verify"]).status, 0, "{compression}");
    }
}

#[test]
fn a_command_may_bring_caches_of_its_own() {
    if !sandbox_works("a_command_may_bring_caches_of_its_own") {
        return;
    }
    let cache = Cache::new(Some(key(1)));
    let client = cache.client(&[], &[]);
    let folder = format!("file://{}", cache.folder.display());
    let public = key(1).public();
    let flags = [
        "--extra-substituters",
        &folder,
        "--extra-trusted-public-keys",
        &public,
    ];
    fetched(&build(&client, "high", &flags), &cache.high, 2);
    // They are the command's alone.
    built(&build(&client, "fixed", &[]), &cache.fixed);
    let client = cache.client(&[], &[]);
    let wrong = build(&client, "fixed", &["--extra-substituters", "ftp://x"]);
    wrong.failed(2, &["'ftp://x' is no binary cache that can be used"]);
    let wrong = build(&client, "fixed", &["--extra-trusted-public-keys", "x"]);
    wrong.failed(2, &["'x' is no public key"]);
}

#[test]
fn a_damaged_path_is_repaired_from_a_cache() {
    if !sandbox_works("a_damaged_path_is_repaired_from_a_cache") {
        return;
    }
    // What was accepted once need not be signed to be recognised.
    let cache = Cache::new(None);
    let server = CacheServer::up(&cache.folder, Manner::Well);
    let client = cache.client(&[&server.url], &[]);
    built(&build(&client, "high", &[]), &cache.high);
    let harmed = client.physical(&cache.high);
    fs::set_permissions(&harmed, fs::Permissions::from_mode(0o644)).expect("it is ours");
    fs::write(&harmed, "nothing").expect("it is writable now");
    let repaired = client.run(&["store", "verify", "--repair"]);
    let whole = format!("{} is whole again, with content from {}", cache.high, server.url);
    assert!(repaired.ok().contains(&whole), "{}", repaired.stdout);
    assert_eq!(client.run(&["store", "verify", &cache.high]).status, 0);

    fs::set_permissions(&harmed, fs::Permissions::from_mode(0o644)).expect("it is ours");
    fs::write(&harmed, "nothing").expect("it is writable now");
    remove_archives(&cache.folder);
    client
        .run(&["store", "verify", "--repair"])
        .failed(1, &["-high was not repaired"]);
    assert_eq!(fs::read(&harmed).expect("it is left"), b"nothing");
}

fn remove_archives(folder: &Path) {
    for entry in fs::read_dir(folder.join("nar")).expect("a folder") {
        fs::remove_file(entry.expect("an entry").path()).expect("it is ours");
    }
}
