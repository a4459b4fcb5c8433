use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::Command;

use tvix_node_evaluator::Fetch;

use super::super::tests::{Bench, names};
use super::*;

/// Whether there is a `git` to test with.
fn git_is_there(test: &str) -> bool {
    let there = Command::new("git").arg("--version").output().is_ok();
    if !there {
        println!("SKIPPED: {test} because there is no program 'git'");
    }
    there
}

fn git(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .args([
            "-c",
            "user.name=n",
            "-c",
            "user.email=e@example.org",
            "-c",
            "commit.gpgsign=false",
        ])
        .args([
            "-c",
            "protocol.file.allow=always",
            "-c",
            "init.defaultBranch=main",
            "-C",
        ])
        .arg(folder)
        .args(arguments)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_COMMITTER_DATE", "1000000000 +0000")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "git {arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A repository with two commits, the second one on the branch `other`.
fn repository(folder: &Path) -> (String, String) {
    fs::create_dir_all(folder.join("sub")).unwrap();
    git(folder, &["init", "--quiet"]);
    fs::write(folder.join("a"), "one\r\n").unwrap();
    fs::write(folder.join("sub/run"), "#!").unwrap();
    fs::set_permissions(folder.join("sub/run"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("a", folder.join("link")).unwrap();
    fs::create_dir(folder.join("bare")).unwrap();
    fs::write(folder.join("bare/left-out"), "").unwrap();
    fs::write(folder.join("id"), "$Format:%H$").unwrap();
    let attributes = "bare/left-out export-ignore\nid export-subst\na text eol=lf\n";
    fs::write(folder.join(".gitattributes"), attributes).unwrap();
    git(folder, &["add", "."]);
    git(folder, &["commit", "--quiet", "-m", "first"]);
    let first = git(folder, &["rev-parse", "HEAD"]);
    git(folder, &["checkout", "--quiet", "-b", "other"]);
    fs::write(folder.join("b"), "two").unwrap();
    git(folder, &["add", "."]);
    git(folder, &["commit", "--quiet", "-m", "second"]);
    let second = git(folder, &["rev-parse", "HEAD"]);
    git(folder, &["checkout", "--quiet", "main"]);
    (first, second)
}

fn a_tree(url: &str) -> GitFetch {
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

const FIRST: &[&str] = &[
    "/",
    "/.gitattributes=bare/left-out export-ignore\nid export-subst\na text eol=lf\n",
    "/a=one\n",
    "/bare/",
    "/id=$Format:%H$",
    "/link -> a",
    "/sub/",
    "/sub/run*=#!",
];

#[test]
fn a_commit_is_the_bytes_of_its_objects() {
    if !git_is_there("a_commit_is_the_bytes_of_its_objects") {
        return;
    }
    let bench = Bench::new();
    let work = bench.folder.path().join("work");
    let (first, second) = repository(&work);
    let bare = bench.folder.path().join("bare.git");
    git(
        bench.folder.path(),
        &["clone", "--quiet", "--bare", "work", "bare.git"],
    );
    // From a work tree, and from a repository that must be copied first.
    for url in [work.display().to_string(), format!("file://{}", bare.display())] {
        let mut wanted = a_tree(&url);
        wanted.revision = Some(first.clone());
        let fetched = bench.fetch(&Fetch::Git(wanted.clone())).unwrap();
        assert_eq!(names(&bench.archive(&fetched)), FIRST);
        assert_eq!(fetched.last_modified, Some(1_000_000_000));
        let git = fetched.git.clone().unwrap();
        assert_eq!(
            (git.revision.as_deref(), git.count, git.changed),
            (Some(first.as_str()), Some(1), None)
        );

        wanted.export_ignore = false;
        let whole = bench.fetch(&Fetch::Git(wanted.clone())).unwrap();
        assert_eq!(names(&bench.archive(&whole)).len(), FIRST.len() + 1);

        let mut other = a_tree(&url);
        other.reference = Some("other".to_owned());
        let fetched = bench.fetch(&Fetch::Git(other)).unwrap();
        let git = fetched.git.clone().unwrap();
        assert_eq!(
            (git.revision.as_deref(), git.count),
            (Some(second.as_str()), Some(2))
        );
        assert!(names(&bench.archive(&fetched)).contains(&"/b=two".to_owned()));

        let mut missing = a_tree(&url);
        missing.reference = Some("none".to_owned());
        let error = bench.fetch(&Fetch::Git(missing)).unwrap_err();
        assert!(
            error.contains("cannot fetch the Git repository") && error.contains("none"),
            "{error}"
        );
        let mut missing = a_tree(&url);
        missing.revision = Some("1".repeat(40));
        let error = bench.fetch(&Fetch::Git(missing)).unwrap_err();
        assert!(error.contains("allRefs"), "{error}");
        let mut pinned = a_tree(&url);
        pinned.revision = Some(first.clone());
        pinned.expected = Some(NixHash::Sha256([0; 32]));
        let error = bench.fetch(&Fetch::Git(pinned)).unwrap_err();
        assert!(error.contains("hash mismatch in the tree"), "{error}");
    }
    // A shallow copy has no count.
    let mut shallow = a_tree(&format!("file://{}", bare.display()));
    shallow.shallow = true;
    let fetched = bench.fetch(&Fetch::Git(shallow)).unwrap();
    assert_eq!(fetched.git.unwrap().count, None);
}

#[test]
fn a_work_tree_is_what_git_knows_of_as_it_is_now() {
    if !git_is_there("a_work_tree_is_what_git_knows_of_as_it_is_now") {
        return;
    }
    let bench = Bench::new();
    let work = bench.folder.path().join("work");
    let (first, _) = repository(&work);
    let wanted = Fetch::Git(a_tree(&work.display().to_string()));
    let clean = bench.fetch(&wanted).unwrap();
    assert_eq!(clean.git.clone().unwrap().revision, Some(first.clone()));
    fs::write(work.join("unknown"), "").unwrap();
    assert_eq!(
        bench.fetch(&wanted).unwrap().path,
        clean.path,
        "files that git does not know do not count"
    );
    fs::write(work.join("sub/run"), "changed").unwrap();
    fs::remove_file(work.join("link")).unwrap();
    let dirty = bench.fetch(&wanted).unwrap();
    let git = dirty.git.clone().unwrap();
    assert_eq!((git.revision, git.changed, git.count), (None, Some(first), None));
    let found = names(&bench.archive(&dirty));
    assert!(found.contains(&"/sub/run*=changed".to_owned()), "{found:?}");
    let gone = ["/link", "/bare/left-out", "/unknown"];
    assert!(
        !found
            .iter()
            .any(|name| gone.iter().any(|gone| name.starts_with(gone)))
    );
    assert!(
        bench
            .store
            .warnings
            .borrow()
            .iter()
            .any(|text| text.contains("is dirty"))
    );
}

#[test]
fn submodules_are_part_of_the_tree_where_asked_for() {
    if !git_is_there("submodules_are_part_of_the_tree_where_asked_for") {
        return;
    }
    let bench = Bench::new();
    let module = bench.folder.path().join("module");
    repository(&module);
    let work = bench.folder.path().join("work");
    repository(&work);
    git(&work, &["submodule", "--quiet", "add", "../module", "lib/module"]);
    git(&work, &["commit", "--quiet", "-m", "with a module"]);
    let mut wanted = a_tree(&work.display().to_string());
    wanted.export_ignore = false;
    wanted.reference = Some("main".to_owned());
    let without = bench.fetch(&Fetch::Git(wanted.clone())).unwrap();
    let found = names(&bench.archive(&without));
    assert!(
        found.contains(&"/lib/module/".to_owned()),
        "an empty folder: {found:?}"
    );
    assert!(!found.iter().any(|name| name.starts_with("/lib/module/a")));
    wanted.submodules = true;
    let with = bench.fetch(&Fetch::Git(wanted.clone())).unwrap();
    let found = names(&bench.archive(&with));
    assert!(found.contains(&"/lib/module/a=one\n".to_owned()), "{found:?}");
    // The work tree as it is has the same files.
    wanted.reference = None;
    let present = bench.fetch(&Fetch::Git(wanted)).unwrap();
    let found = names(&bench.archive(&present));
    assert!(found.contains(&"/lib/module/sub/run*=#!".to_owned()), "{found:?}");
}

/// Each commit has the one before as its submodule.
#[test]
fn submodules_are_so_deep_and_no_deeper() {
    if !git_is_there("submodules_are_so_deep_and_no_deeper") {
        return;
    }
    let bench = Bench::new();
    let work = bench.folder.path().join("work");
    repository(&work);
    let mut commits = vec![git(&work, &["rev-parse", "HEAD"])];
    let module = format!("[submodule \"m\"]\n\tpath = m\n\turl = {}\n", work.display());
    fs::write(work.join(".gitmodules"), module).unwrap();
    git(&work, &["add", ".gitmodules"]);
    while let [.., below] = commits.as_slice()
        && commits.len() < SUBMODULE_DEPTH + 2
    {
        let entry = format!("160000,{below},m");
        git(&work, &["update-index", "--add", "--cacheinfo", &entry]);
        git(&work, &["commit", "--quiet", "-m", "deeper"]);
        commits.push(git(&work, &["rev-parse", "HEAD"]));
    }
    let fetch = |commit: &String| {
        let mut wanted = a_tree(&work.display().to_string());
        wanted.revision = Some(commit.clone());
        wanted.submodules = true;
        bench.fetch(&Fetch::Git(wanted))
    };
    let deepest = fetch(&commits[SUBMODULE_DEPTH]).unwrap();
    let found = names(&bench.archive(&deepest));
    let file = format!("/{}sub/run*=#!", "m/".repeat(SUBMODULE_DEPTH));
    assert!(found.contains(&file), "{found:?}");
    let error = fetch(&commits[SUBMODULE_DEPTH + 1]).unwrap_err();
    assert!(
        error.contains("its submodules are nested deeper than 16"),
        "{error}"
    );
}
