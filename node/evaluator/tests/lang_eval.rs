//! The evaluator against the language tests of stock Nix (`tests/functional/lang` of its sources).
//!
//! Set `NIX_LANG_TESTS` to that folder to run them; they are not part of this project. `eval-okay-*.nix` must print
//! what its `.exp` (or `.exp.xml`) says, `eval-fail-*.nix` must be refused. Tests that need an experimental feature
//! or a lint flag are left out, and listed.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

use tvix_node_evaluator::{
    Action, Argument, DryRun, Event, ExpressionSource, Format, Options, SearchPathEntry, Target, evaluate,
};

/// Tests that are left out, with the reason.
const LEFT_OUT: &[(&str, &str)] = &[
    ("eval-okay-flake-ref-to-string", "flakes are not there"),
    ("eval-okay-parse-flake-ref", "flakes are not there"),
];

/// The files of the folder that begin so and end in `.nix`, or nothing, with a note, if there is no folder.
fn files(test: &str, prefix: &str) -> Vec<PathBuf> {
    let Some(folder) = std::env::var_os("NIX_LANG_TESTS") else {
        println!("SKIPPED: {test} because NIX_LANG_TESTS does not name a folder with Nix's language tests");
        return Vec::new();
    };
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("the folder can be read").path())
        .filter(|path| path.extension() == Some(OsStr::new("nix")))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        })
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} has no {prefix}*.nix", folder.display());
    files
}

/// Why a test is left out, if it is.
fn left_out(file: &Path, flags: &str) -> Option<String> {
    let name = file.file_stem()?.to_string_lossy();
    if let Some((_, reason)) = LEFT_OUT.iter().find(|(left_out, _)| *left_out == name) {
        return Some((*reason).to_owned());
    }
    ["--extra-experimental-features", "--lint-", "--repair"]
        .iter()
        .find(|flag| flags.contains(*flag))
        .map(|flag| format!("it needs {flag}"))
}

/// Prints the value of a test, as the flags beside it say.
fn outcome(file: &Path, flags: &str, xml: bool) -> Result<String, String> {
    let folder = file.parent().expect("the file is in a folder");
    let root = folder.parent().expect("the folder is in a folder");
    let mut options = Options {
        base: root.to_owned(),
        ..Options::default()
    };
    let mut attribute = String::new();
    let mut words = flags.split_whitespace();
    while let Some(word) = words.next() {
        let mut next = || words.next().expect("the flag has a value").to_owned();
        match word {
            "-A" => attribute = next(),
            "-I" => options.search_path.push(SearchPathEntry::parse(&next())),
            "--arg" => options.arguments.push((next(), Argument::Expression(next()))),
            "--argstr" => options.arguments.push((next(), Argument::Text(next()))),
            _ => {}
        }
    }
    options
        .search_path
        .extend(SearchPathEntry::parse_list("lang/dir3:lang/dir4"));
    let format = if xml {
        Format::Xml {
            strict: true,
            locations: false,
        }
    } else {
        Format::Strict
    };
    let target = Target {
        source: ExpressionSource::File(file.to_owned()),
        attribute,
        action: Action::Print(format),
    };
    let mut result = Err("no outcome".to_owned());
    evaluate(
        &options,
        &[target],
        &Host(DryRun::default()),
        &mut |event| match event {
            Event::Value { text, .. } => result = Ok(String::from_utf8_lossy(&text).into_owned()),
            Event::Failed { error, .. } => result = Err(error.text),
            Event::Finished { .. } | Event::Derivation(_) => {}
        },
    )
    .map_err(|error| error.text)?;
    result
}

fn flags(file: &Path) -> String {
    fs::read_to_string(file.with_extension("flags")).unwrap_or_default()
}

#[test]
fn eval_okay() {
    let mut wrong = Vec::new();
    let mut passed = 0;
    for file in files("eval_okay", "eval-okay-") {
        let flags = flags(&file);
        if let Some(reason) = left_out(&file, &flags) {
            println!("left out: {} because {reason}", file.display());
            continue;
        }
        let xml = file.with_extension("exp.xml").exists();
        let expected = file.with_extension(if xml { "exp.xml" } else { "exp" });
        let Ok(expected) = fs::read_to_string(&expected) else {
            println!(
                "left out: {} because nothing says what it should print",
                file.display()
            );
            continue;
        };
        let root = file
            .parent()
            .and_then(Path::parent)
            .expect("the folder is in a folder");
        match outcome(&file, &flags, xml) {
            Ok(text) => {
                let text = text.replace(&*root.to_string_lossy(), "/pwd");
                if text.trim_end() == expected.trim_end() {
                    passed += 1;
                } else {
                    wrong.push(format!(
                        "{}:\n  expected {expected}\n  found    {text}",
                        file.display()
                    ));
                }
            }
            Err(error) => wrong.push(format!("{}: {error}", file.display())),
        }
    }
    println!("{passed} evaluated as expected");
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn eval_fail() {
    let mut wrong = Vec::new();
    let mut refused = 0;
    for file in files("eval_fail", "eval-fail-") {
        let flags = flags(&file);
        if let Some(reason) = left_out(&file, &flags) {
            println!("left out: {} because {reason}", file.display());
            continue;
        }
        match outcome(&file, &flags, false) {
            Ok(text) => wrong.push(format!("{}: evaluates to {text}", file.display())),
            Err(_) => refused += 1,
        }
    }
    println!("{refused} refused");
    assert!(
        wrong.is_empty(),
        "{} not refused:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// A dry run with the environment that the tests expect.
struct Host(DryRun);

impl tvix_node_evaluator::Host for Host {
    fn physical(&self, logical: &Path) -> PathBuf {
        self.0.physical(logical)
    }
    fn lstat(&self, logical: &Path) -> std::io::Result<Option<tvix_node_evaluator::FileKind>> {
        self.0.lstat(logical)
    }
    fn read_file(&self, logical: &Path) -> std::io::Result<Vec<u8>> {
        self.0.read_file(logical)
    }
    fn add_source(
        &self,
        source: &tvix_node_evaluator::Source<'_>,
    ) -> Result<tvix_node_protocol::nix::store_path::StorePath, tvix_node_evaluator::HostError> {
        self.0.add_source(source)
    }
    fn add_text(
        &self,
        path: &tvix_node_protocol::nix::store_path::StorePath,
        contents: &[u8],
        references: &std::collections::BTreeSet<tvix_node_protocol::nix::store_path::StorePath>,
    ) -> Result<(), tvix_node_evaluator::HostError> {
        self.0.add_text(path, contents, references)
    }
    fn instantiate(
        &self,
        derivation: &tvix_node_evaluator::Instantiated<'_>,
    ) -> Result<(), tvix_node_evaluator::HostError> {
        self.0.instantiate(derivation)
    }
    fn realise(
        &self,
        wanted: &[tvix_node_evaluator::Wanted],
    ) -> Result<tvix_node_evaluator::Ticket, tvix_node_evaluator::HostError> {
        self.0.realise(wanted)
    }
    fn finished(
        &self,
        wait: bool,
    ) -> Result<
        Vec<(tvix_node_evaluator::Ticket, tvix_node_evaluator::Realised)>,
        tvix_node_evaluator::HostError,
    > {
        self.0.finished(wait)
    }
    fn is_valid(
        &self,
        path: &tvix_node_protocol::nix::store_path::StorePath,
    ) -> Result<bool, tvix_node_evaluator::HostError> {
        self.0.is_valid(path)
    }
    fn references(
        &self,
        path: &tvix_node_protocol::nix::store_path::StorePath,
    ) -> Result<
        std::collections::BTreeSet<tvix_node_protocol::nix::store_path::StorePath>,
        tvix_node_evaluator::HostError,
    > {
        self.0.references(path)
    }
    fn variable(&self, name: &str) -> Option<OsString> {
        match name {
            "TEST_VAR" => Some("foo".into()),
            "HOME" => Some("/fake-home".into()),
            _ => None,
        }
    }
    fn now(&self) -> i64 {
        self.0.now()
    }
    fn message(&self, _: tvix_node_evaluator::MessageKind, _: &str) {}
}
