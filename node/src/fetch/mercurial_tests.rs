use tvix_node_evaluator::Fetch;

use super::super::tests::{Bench, names};
use super::*;

/// Whether `hg` can be run; says so, visibly, where not.
fn hg_is_there(test: &str) -> bool {
    let there = Command::new("hg").arg("--version").stdout(Stdio::null()).status();
    if there.is_err() {
        use std::io::Write as _;
        writeln!(
            std::io::stderr(),
            "SKIPPED: {test}, because the program 'hg' is not there"
        )
        .unwrap();
    }
    there.is_ok()
}

fn hg(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("hg")
        .env("HGPLAIN", "1")
        .args(["--config", "ui.username=tester"])
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A repository with a changeset on `default` and one on `other`, and both names.
fn repository(folder: &Path) -> (String, String) {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    fs::create_dir_all(folder.join("sub")).unwrap();
    hg(folder, &["init"]);
    fs::write(folder.join("a"), "one").unwrap();
    fs::write(folder.join("sub/run"), "#!").unwrap();
    fs::set_permissions(folder.join("sub/run"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("a", folder.join("link")).unwrap();
    hg(folder, &["commit", "--addremove", "--message", "first"]);
    let first = hg(folder, &["log", "--rev=.", "--template", "{node}"]);
    hg(folder, &["branch", "other"]);
    fs::write(folder.join("b"), "two").unwrap();
    hg(folder, &["commit", "--addremove", "--message", "second"]);
    let second = hg(folder, &["log", "--rev=.", "--template", "{node}"]);
    (first, second)
}

fn a_tree(folder: &Path) -> MercurialFetch {
    MercurialFetch {
        url: format!("file://{}", folder.display()),
        name: "source".to_owned(),
        reference: None,
        revision: None,
        expected: None,
    }
}

fn on(branch: &str, revision: &str, count: u64) -> Option<MercurialRevision> {
    Some(MercurialRevision {
        branch: branch.to_owned(),
        changeset: Some((revision.to_owned(), count)),
    })
}

const FIRST: &[&str] = &["/", "/a=one", "/link -> a", "/sub/", "/sub/run*=#!"];

#[test]
fn a_changeset_is_named_by_digits_by_branch_or_not_at_all() {
    if !hg_is_there("a_changeset_is_named_by_digits_by_branch_or_not_at_all") {
        return;
    }
    let bench = Bench::new();
    let folder = bench.folder.path().join("work");
    let (first, second) = repository(&folder);
    let mut wanted = a_tree(&folder);
    let fetched = bench.fetch(&Fetch::Mercurial(wanted.clone())).unwrap();
    assert_eq!(names(&bench.archive(&fetched)), FIRST);
    assert_eq!(fetched.mercurial, on("default", &first, 0));
    wanted.revision = Some(first.clone());
    let pinned = bench.fetch(&Fetch::Mercurial(wanted.clone())).unwrap();
    assert_eq!(pinned, fetched);
    wanted.revision = None;
    wanted.reference = Some("other".to_owned());
    let other = bench.fetch(&Fetch::Mercurial(wanted.clone())).unwrap();
    assert_eq!(names(&bench.archive(&other))[2], "/b=two");
    assert_eq!(other.mercurial, on("other", &second, 1));

    // What is pinned is not asked for again; what is not must still be there.
    fs::rename(&folder, folder.with_extension("away")).unwrap();
    wanted.revision = Some(second);
    assert_eq!(bench.fetch(&Fetch::Mercurial(wanted.clone())).unwrap(), other);
    wanted.revision = None;
    bench.age();
    assert_eq!(bench.fetch(&Fetch::Mercurial(wanted)).unwrap(), other);
    let warnings = bench.store.warnings.borrow();
    assert!(
        warnings[0].contains("continuing with the version fetched before"),
        "{warnings:?}"
    );
}

#[test]
fn what_comes_later_is_pulled() {
    if !hg_is_there("what_comes_later_is_pulled") {
        return;
    }
    let bench = Bench::new();
    let folder = bench.folder.path().join("work");
    let (_, second) = repository(&folder);
    let mut wanted = a_tree(&folder);
    wanted.reference = Some("other".to_owned());
    let before = bench.fetch(&Fetch::Mercurial(wanted.clone())).unwrap();
    assert_eq!(before.mercurial, on("other", &second, 1));
    fs::write(folder.join("c"), "three").unwrap();
    hg(&folder, &["commit", "--addremove", "--message", "third"]);
    let third = hg(&folder, &["log", "--rev=.", "--template", "{node}"]);
    let after = bench.fetch(&Fetch::Mercurial(wanted)).unwrap();
    assert_eq!(after.mercurial, on("other", &third, 2));
}

#[test]
fn a_work_tree_with_changes_is_what_hg_knows_of_as_it_is_now() {
    if !hg_is_there("a_work_tree_with_changes_is_what_hg_knows_of_as_it_is_now") {
        return;
    }
    let bench = Bench::new();
    let folder = bench.folder.path().join("work");
    repository(&folder);
    fs::write(folder.join("a"), "changed").unwrap();
    fs::remove_file(folder.join("link")).unwrap();
    fs::write(folder.join("unknown"), "not added").unwrap();
    let fetched = bench.fetch(&Fetch::Mercurial(a_tree(&folder))).unwrap();
    assert_eq!(
        names(&bench.archive(&fetched)),
        ["/", "/a=changed", "/b=two", "/sub/", "/sub/run*=#!"]
    );
    let expected = MercurialRevision {
        branch: "other".to_owned(),
        changeset: None,
    };
    assert_eq!(fetched.mercurial, Some(expected));
}

#[test]
fn what_is_not_there_or_not_as_demanded_is_refused_by_name() {
    if !hg_is_there("what_is_not_there_or_not_as_demanded_is_refused_by_name") {
        return;
    }
    let bench = Bench::new();
    let folder = bench.folder.path().join("work");
    let nothing = bench.fetch(&Fetch::Mercurial(a_tree(&folder))).unwrap_err();
    assert!(
        nothing.contains("cannot fetch the Mercurial repository 'file://"),
        "{nothing}"
    );
    repository(&folder);
    let mut wanted = a_tree(&folder);
    wanted.revision = Some("5".repeat(40));
    let missing = bench.fetch(&Fetch::Mercurial(wanted.clone())).unwrap_err();
    assert!(missing.contains("unknown revision"), "{missing}");
    wanted.revision = None;
    wanted.expected = Some(NixHash::Sha256([0; 32]));
    let other = bench.fetch(&Fetch::Mercurial(wanted)).unwrap_err();
    assert!(
        other.contains("hash mismatch in the tree fetched from"),
        "{other}"
    );
}
