//! Fetching Git repositories, beside what [`fetch::tests`](super::super::tests) has of it.

use std::fs;

use tvix_node_evaluator::Fetch;

use super::super::tests::{Bench, a_tree, git, git_is_there, names, repository};
use super::*;

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
