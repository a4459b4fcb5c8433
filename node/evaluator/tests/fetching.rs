//! `fetchurl`, `fetchTarball`, `fetchGit` and `fetchTree`: what the host is asked for, and what becomes of its answer.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::PathBuf;

use tvix_node_evaluator::{
    Action, DryRun, Event, ExpressionSource, Fetch, Fetched, Format, GitFetch, GitRevision, Host, HostError,
    Ingestion, Instantiated, MercurialFetch, MercurialRevision, MessageKind, Options, Reading, Realised,
    SearchPathEntry, Source, Target, Ticket, Wanted, evaluate,
};
use tvix_node_protocol::nix::hash::{CAHash, NixHash};
use tvix_node_protocol::nix::store_path::{StorePath, build_ca_path};

/// A host that writes down what it is asked to fetch.
#[derive(Default)]
struct Fetching {
    inner: DryRun,
    asked: RefCell<Vec<Fetch>>,
    git: Option<GitRevision>,
    mercurial: Option<MercurialRevision>,
    last_modified: Option<u64>,
    /// The one path that is in the store from the start.
    there: Option<StorePath>,
}

fn fetched_path() -> StorePath {
    StorePath::from_parts([9; 20], "source").expect("a path")
}

impl Host for Fetching {
    fn fetch(&self, wanted: &Fetch) -> Result<Fetched, HostError> {
        self.asked.borrow_mut().push(wanted.clone());
        Ok(Fetched {
            path: fetched_path(),
            nar_hash: NixHash::Sha256([1; 32]),
            last_modified: self.last_modified,
            git: self.git.clone(),
            mercurial: self.mercurial.clone(),
        })
    }
    fn add_source(&self, source: &Source<'_>) -> Result<StorePath, HostError> {
        self.inner.add_source(source)
    }
    fn add_text(
        &self,
        path: &StorePath,
        text: &[u8],
        references: &BTreeSet<StorePath>,
    ) -> Result<(), HostError> {
        self.inner.add_text(path, text, references)
    }
    fn instantiate(&self, derivation: &Instantiated<'_>) -> Result<(), HostError> {
        self.inner.instantiate(derivation)
    }
    fn realise(&self, wanted: &[Wanted]) -> Result<Ticket, HostError> {
        self.inner.realise(wanted)
    }
    fn finished(&self, wait: bool) -> Result<Vec<(Ticket, Realised)>, HostError> {
        self.inner.finished(wait)
    }
    fn is_valid(&self, path: &StorePath) -> Result<bool, HostError> {
        Ok(self.there.as_ref() == Some(path))
    }
    fn references(&self, path: &StorePath) -> Result<BTreeSet<StorePath>, HostError> {
        self.inner.references(path)
    }
    fn now(&self) -> i64 {
        self.inner.now()
    }
    fn message(&self, _: MessageKind, _: &str) {}
}

fn eval_with(host: &Fetching, options: &Options, expression: &str) -> Result<String, String> {
    let target = Target {
        source: ExpressionSource::Text(expression.to_owned()),
        attribute: String::new(),
        action: Action::Print(Format::Strict),
    };
    let mut result = Err("no event came".to_owned());
    evaluate(options, &[target], host, &mut |event| match event {
        Event::Value { text, .. } => result = Ok(String::from_utf8_lossy(&text).into_owned()),
        Event::Failed { error, .. } => result = Err(error.text),
        Event::Finished { .. } | Event::Derivation(_) => {}
    })
    .expect("the options are valid");
    result
}

/// What the host is asked for, and the printed result.
fn asked(expression: &str) -> (Fetch, String) {
    let host = Fetching::default();
    let printed = eval_with(&host, &Options::default(), expression);
    let printed = printed.unwrap_or_else(|error| panic!("{expression}: {error}"));
    let asked = host.asked.borrow();
    assert_eq!(asked.len(), 1, "{expression}");
    (asked[0].clone(), printed)
}

const HASH: &str = "0000000000000000000000000000000000000000000000000000000000000000";

#[test]
fn files_and_archives_are_asked_for_as_written() {
    let path = fetched_path().to_absolute_path();
    let file = |name: &str, expected| Fetch::File {
        url: "http://h/a/x.txt".to_owned(),
        name: name.to_owned(),
        ingestion: Ingestion::Flat,
        expected,
    };
    let zeros = Some(NixHash::Sha256([0; 32]));
    let context = format!("{{ {path:?} = {{ path = true; }}; }}");
    for (expression, wanted) in [
        (
            r#"builtins.fetchurl "http://h/a/x.txt""#.to_owned(),
            file("x.txt", None),
        ),
        (
            r#"builtins.fetchurl { url = "http://h/a/x.txt"; name = "y"; }"#.to_owned(),
            file("y", None),
        ),
        (
            format!(r#"builtins.fetchurl {{ url = "http://h/a/x.txt"; sha256 = "{HASH}"; }}"#),
            file("x.txt", zeros.clone()),
        ),
        (
            r#"builtins.fetchurl { url = "http://h/a/x.txt"; sha256 = ""; }"#.to_owned(),
            file("x.txt", zeros.clone()),
        ),
        (
            r#"fetchTarball "http://h/x.tar.gz""#.to_owned(),
            Fetch::Archive {
                url: "http://h/x.tar.gz".to_owned(),
                name: "source".to_owned(),
                expected: None,
            },
        ),
        (
            format!(r#"fetchTarball {{ url = "channel:nixos-24.05"; sha256 = "{HASH}"; name = "n"; }}"#),
            Fetch::Archive {
                url: "https://channels.nixos.org/nixos-24.05/nixexprs.tar.xz".to_owned(),
                name: "n".to_owned(),
                expected: zeros,
            },
        ),
    ] {
        let (found, printed) = asked(&expression);
        assert_eq!(found, wanted, "{expression}");
        assert_eq!(printed, format!("{path:?}"));
        let (_, printed) = asked(&format!("builtins.getContext ({expression})"));
        assert_eq!(printed, context, "{expression}");
    }
}

#[test]
fn what_is_pinned_and_there_is_not_fetched() {
    let hash = NixHash::Sha256([0; 32]);
    for (expression, content, name) in [
        ("builtins.fetchurl", CAHash::Flat(hash.clone()), "x"),
        ("fetchTarball", CAHash::Nar(hash), "source"),
    ] {
        let stored = build_ca_path(name, &content, std::iter::empty(), false).expect("a path");
        let host = Fetching {
            there: Some(stored.clone()),
            ..Fetching::default()
        };
        let expression = format!(r#"{expression} {{ url = "http://h/x"; sha256 = "{HASH}"; }}"#);
        let printed = eval_with(&host, &Options::default(), &expression).expect(&expression);
        assert_eq!(printed, format!("{:?}", stored.to_absolute_path()));
        assert!(host.asked.borrow().is_empty());
    }
}

fn git(url: &str) -> GitFetch {
    GitFetch {
        url: url.to_owned(),
        name: "source".to_owned(),
        reference: None,
        revision: None,
        all_references: false,
        shallow: false,
        submodules: false,
        export_ignore: true,
        expected: None,
    }
}

#[test]
fn trees_of_every_kind_are_asked_for() {
    let revision = "0123456789abcdef0123456789abcdef01234567";
    let wanted = |expression: &str| asked(expression).0;
    assert_eq!(wanted("fetchGit /a/b"), Fetch::Git(git("/a/b")));
    assert_eq!(
        wanted(r#"fetchGit "git+https://h/x.git""#),
        Fetch::Git(git("https://h/x.git"))
    );
    let everything = format!(
        r#"fetchGit {{ url = "u@h:p"; name = "n"; ref = "v1"; rev = "{revision}"; allRefs = true; submodules = true;
          shallow = true; narHash = "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="; }}"#
    );
    let all = GitFetch {
        name: "n".to_owned(),
        reference: Some("v1".to_owned()),
        revision: Some(revision.to_owned()),
        all_references: true,
        shallow: true,
        submodules: true,
        export_ignore: false,
        expected: Some(NixHash::Sha256([0; 32])),
        ..git("u@h:p")
    };
    assert_eq!(wanted(&everything), Fetch::Git(all));
    let by_tree = GitFetch {
        shallow: true,
        export_ignore: false,
        ..git("https://h/x")
    };
    assert_eq!(
        wanted(r#"fetchTree { type = "git"; url = "https://h/x"; }"#),
        Fetch::Git(by_tree)
    );
    let file = Fetch::File {
        url: "http://h/x".to_owned(),
        name: "source".to_owned(),
        ingestion: Ingestion::Nar,
        expected: None,
    };
    assert_eq!(
        wanted(r#"fetchTree { type = "file"; url = "http://h/x"; }"#),
        file
    );
    let archive = Fetch::Archive {
        url: "http://h/x.tar".to_owned(),
        name: "source".to_owned(),
        expected: None,
    };
    assert_eq!(
        wanted(r#"fetchTree { type = "tarball"; url = "http://h/x.tar"; }"#),
        archive
    );
    let path = Fetch::Path {
        path: PathBuf::from("/proc"),
        name: "source".to_owned(),
        expected: None,
    };
    assert_eq!(
        wanted(r#"fetchTree { type = "path"; path = "/proc/../proc/"; }"#),
        path
    );
}

#[test]
fn a_tree_says_where_it_comes_from() {
    let revision = "0123456789abcdef0123456789abcdef01234567";
    let out = fetched_path().to_absolute_path();
    let nar_hash = NixHash::Sha256([1; 32]).to_sri_string();
    let of = |git: Option<GitRevision>, last_modified, expression: &str| {
        let host = Fetching {
            git,
            last_modified,
            ..Fetching::default()
        };
        eval_with(&host, &Options::default(), expression).expect(expression)
    };
    let committed = GitRevision {
        revision: Some(revision.to_owned()),
        changed: None,
        count: Some(12),
    };
    assert_eq!(
        of(Some(committed), Some(1_686_503_798), "fetchGit /x"),
        format!(
            "{{ lastModified = 1686503798; lastModifiedDate = \"20230611171638\"; narHash = \"{nar_hash}\"; outPath = \
             \"{out}\"; rev = \"{revision}\"; revCount = 12; shortRev = \"0123456\"; submodules = false; }}"
        )
    );
    let changed = GitRevision {
        revision: None,
        changed: Some(revision.to_owned()),
        count: None,
    };
    let zeros = "0".repeat(40);
    assert_eq!(
        of(
            Some(changed.clone()),
            None,
            "fetchGit { url = /x; submodules = true; }"
        ),
        format!(
            "{{ dirtyRev = \"{revision}-dirty\"; dirtyShortRev = \"0123456-dirty\"; narHash = \"{nar_hash}\"; outPath = \
             \"{out}\"; rev = \"{zeros}\"; revCount = 0; shortRev = \"0000000\"; submodules = true; }}"
        )
    );
    let tree = of(
        Some(changed),
        None,
        r#"builtins.attrNames (fetchTree { type = "git"; url = /x; })"#,
    );
    assert_eq!(
        tree,
        r#"[ "dirtyRev" "dirtyShortRev" "narHash" "outPath" "submodules" ]"#
    );
    let said = r#"removeAttrs (fetchTree { type = "tarball"; url = "http://h/x"; lastModified = 1; revCount = 2; })
        [ "narHash" "outPath" ]"#;
    let expected = r#"{ lastModified = 1; lastModifiedDate = "19700101000001"; revCount = 2; }"#;
    assert_eq!(of(None, Some(5), said), expected);
}

#[test]
fn mercurial_trees_are_asked_for_and_say_where_they_come_from() {
    let revision = "0123456789abcdef0123456789abcdef01234567";
    let tree = |url: &str| MercurialFetch {
        url: url.to_owned(),
        name: "source".to_owned(),
        reference: None,
        revision: None,
        expected: None,
    };
    let pinned = MercurialFetch {
        name: "n".to_owned(),
        revision: Some(revision.to_owned()),
        ..tree("https://h/x")
    };
    let branch = MercurialFetch {
        reference: Some("v1.0".to_owned()),
        ..tree("https://h/x")
    };
    for (expression, expected) in [
        ("builtins.fetchMercurial /a/b".to_owned(), tree("file:///a/b")),
        (
            format!(r#"builtins.fetchMercurial {{ url = "https://h/x"; rev = "{revision}"; name = "n"; }}"#),
            pinned.clone(),
        ),
        (
            r#"builtins.fetchMercurial { url = "https://h/x"; rev = "v1.0"; }"#.to_owned(),
            branch.clone(),
        ),
        (
            format!(r#"fetchTree {{ type = "hg"; url = "https://h/x"; rev = "{revision}"; }}"#),
            MercurialFetch {
                name: "source".to_owned(),
                ..pinned
            },
        ),
        (
            r#"fetchTree { type = "hg"; url = "https://h/x"; ref = "v1.0"; }"#.to_owned(),
            branch,
        ),
    ] {
        assert_eq!(asked(&expression).0, Fetch::Mercurial(expected), "{expression}");
    }
    let out = fetched_path().to_absolute_path();
    let of = |changeset: Option<(String, u64)>, expression: &str| {
        let host = Fetching {
            mercurial: Some(MercurialRevision {
                branch: "default".to_owned(),
                changeset,
            }),
            ..Fetching::default()
        };
        eval_with(&host, &Options::default(), expression).expect(expression)
    };
    assert_eq!(
        of(Some((revision.to_owned(), 7)), "builtins.fetchMercurial /x"),
        format!(
            "{{ branch = \"default\"; outPath = \"{out}\"; rev = \"{revision}\"; revCount = 7; shortRev = \"0123456789ab\"; }}"
        )
    );
    assert_eq!(
        of(None, "builtins.fetchMercurial /x"),
        format!(
            "{{ branch = \"default\"; outPath = \"{out}\"; rev = \"{}\"; shortRev = \"000000000000\"; }}",
            "0".repeat(40)
        )
    );
    assert_eq!(
        of(
            Some((revision.to_owned(), 7)),
            r#"removeAttrs (fetchTree { type = "hg"; url = "https://h/x"; }) [ "narHash" "outPath" ]"#
        ),
        format!("{{ rev = \"{revision}\"; revCount = 7; shortRev = \"0123456\"; }}")
    );
}

#[test]
fn wrong_arguments_are_refused_with_a_reason() {
    for (expression, reason) in [
        ("builtins.fetchMercurial { }", "'url' argument required"),
        (
            r#"builtins.fetchMercurial { url = "x"; foo = 1; }"#,
            "unsupported argument 'foo' to 'fetchMercurial'",
        ),
        (
            r#"builtins.fetchMercurial { url = "x"; rev = "--config=x"; }"#,
            "invalid Mercurial branch/tag name '--config=x'",
        ),
        ("builtins.fetchurl { }", "'url' argument required"),
        (
            r#"builtins.fetchurl { url = "x"; foo = 1; }"#,
            "unsupported argument 'foo' to 'fetchurl'",
        ),
        (
            r#"builtins.fetchurl "http://h/x%20y""#,
            "Please pass an attribute set with 'url' and 'name'",
        ),
        (
            r#"builtins.fetchurl { url = "http://h/x%20y"; }"#,
            "Please add a valid 'name' attribute",
        ),
        (
            r#"builtins.fetchurl { url = "http://h/x"; name = "a b"; }"#,
            "Please change the value for the 'name'",
        ),
        (
            r#"fetchTarball { url = "http://h/x"; sha256 = "zz"; }"#,
            "hash 'zz' has wrong length",
        ),
        ("fetchTarball 1", "expected a string but found an integer"),
        (
            r#"fetchGit { url = "x"; type = "git"; }"#,
            "unexpected argument 'type'",
        ),
        (
            r#"fetchGit { url = "x"; foo = "y"; }"#,
            "input attribute 'foo' not supported by scheme 'git'",
        ),
        (r#"fetchGit { url = "x"; rev = "abc"; }"#, "'abc' is not a commit"),
        (
            r#"fetchGit { url = "x"; ref = "a..b"; }"#,
            "invalid Git branch/tag name 'a..b'",
        ),
        (
            r#"fetchGit { url = "x"; submodules = 1; }"#,
            "'submodules' is not a Boolean",
        ),
        (
            r#"fetchGit { url = "x"; revCount = -1; }"#,
            "negative value given for 'fetchGit' argument 'revCount'",
        ),
        (
            r#"fetchGit { url = "x"; ref = [ ]; }"#,
            "argument 'ref' to 'fetchGit' is a list",
        ),
        (
            r#"fetchGit { url = "x"; submodules = true; exportIgnore = true; }"#,
            "not supported together",
        ),
        (
            r#"fetchGit { url = "x"; lfs = true; }"#,
            "Git LFS is not supported",
        ),
        (
            r#"fetchGit { url = "x"; publicKey = "y"; }"#,
            "verified fetches are not supported",
        ),
        ("fetchGit { }", "input attribute 'url' is missing"),
        (r#"fetchTree { url = "x"; }"#, "argument 'type' is missing"),
        (
            r#"fetchTree { type = "git"; url = "x"; name = "y"; }"#,
            "argument 'name' isn’t supported",
        ),
        (
            r#"fetchTree { type = "github"; owner = "x"; repo = "y"; }"#,
            "belong to flakes",
        ),
        (
            r#"fetchTree { type = "what"; }"#,
            "cannot fetch unsupported input of type 'what'",
        ),
        (
            r#"fetchTree { type = "path"; path = "a"; }"#,
            "it uses a relative path",
        ),
        (r#"fetchTree "path:/x""#, "belongs to flakes"),
    ] {
        let host = Fetching::default();
        let error = eval_with(&host, &Options::default(), expression).expect_err(expression);
        assert!(error.contains(reason), "{expression}: {error}");
        assert!(host.asked.borrow().is_empty(), "{expression}");
    }
}

#[test]
fn restricted_evaluations_fetch_nothing_and_pure_ones_what_is_pinned() {
    let run = |reading, expression: &str| {
        let options = Options {
            reading,
            search_path: vec![SearchPathEntry::parse("/allowed")],
            ..Options::default()
        };
        eval_with(&Fetching::default(), &options, expression)
    };
    for expression in [
        r#"builtins.fetchurl "http://h/x""#,
        r#"fetchTarball "https://h/x""#,
        r#"fetchTarball "file:///etc/x""#,
        r#"fetchGit "https://h/x""#,
        r#"fetchGit "/etc/x""#,
        r#"fetchTree { type = "file"; url = "https://h/x"; }"#,
        r#"fetchTree { type = "path"; path = "/etc"; }"#,
    ] {
        let error = run(Reading::Restricted, expression).expect_err(expression);
        assert!(
            error.contains("is forbidden in restricted"),
            "{expression}: {error}"
        );
    }
    run(Reading::Restricted, r#"fetchTarball "file:///allowed/x""#).expect("it is in the search path");
    for expression in [
        r#"builtins.fetchurl "http://h/x""#,
        r#"fetchGit { url = "https://h/x"; ref = "main"; }"#,
        r#"fetchTree { type = "file"; url = "https://h/x"; }"#,
    ] {
        let error = run(Reading::Pure, expression).expect_err(expression);
        assert!(error.contains("in pure evaluation mode"), "{expression}: {error}");
    }
    for expression in [
        format!(r#"builtins.fetchurl {{ url = "http://h/x"; sha256 = "{HASH}"; }}"#),
        format!(r#"fetchTree {{ type = "file"; url = "http://h/x"; narHash = "sha256:{HASH}"; }}"#),
        format!(
            r#"fetchGit {{ url = "https://h/x"; rev = "{}"; }}"#,
            "1".repeat(40)
        ),
    ] {
        run(Reading::Pure, &expression).expect(&expression);
    }
}

#[test]
fn the_search_path_and_files_may_be_archives_elsewhere() {
    let host = Fetching::default();
    let options = Options {
        search_path: vec![SearchPathEntry::parse("x=https://h/x.tar.gz")],
        ..Options::default()
    };
    // What the host says lies in the store, where nothing is on this machine.
    let error = eval_with(&host, &options, "<x/a.nix>").expect_err("nothing is there");
    assert!(error.contains("was not found in the Nix search path"), "{error}");
    let target = Target {
        source: ExpressionSource::Tarball("channel:nixos-24.05".to_owned()),
        attribute: String::new(),
        action: Action::Print(Format::Strict),
    };
    let mut errors = Vec::new();
    evaluate(&options, &[target], &host, &mut |event| {
        if let Event::Failed { error, .. } = event {
            errors.push(error.text);
        }
    })
    .expect("the options are valid");
    let path = fetched_path().to_absolute_path();
    assert!(
        errors[0].contains(&format!("path '{path}' does not exist")),
        "{errors:?}"
    );
    let urls: Vec<String> = host
        .asked
        .borrow()
        .iter()
        .map(|wanted| match wanted {
            Fetch::Archive { url, .. } => url.clone(),
            other => panic!("{other:?}"),
        })
        .collect();
    let channel = "https://channels.nixos.org/nixos-24.05/nixexprs.tar.xz";
    assert_eq!(urls, ["https://h/x.tar.gz", channel]);
}
