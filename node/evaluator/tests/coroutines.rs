//! Targets as coroutines over one heap: what holds when one of them waits.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};

use tvix_node_evaluator::{
    Action, Event, ExpressionSource, FileKind, Format, Host, HostError, Instantiated, MessageKind, Options,
    Realised, Source, Summary, Target, Ticket, Wanted, evaluate,
};
use tvix_node_protocol::nix::store_path::StorePath;

/// A host that builds when the test says so. The output of the derivation `name` is the text `contents[name]`; a
/// derivation without contents fails.
#[derive(Default)]
struct Scripted {
    contents: BTreeMap<&'static str, &'static str>,
    /// Answers the newest build first, so that waits end in another order than they began.
    newest_first: bool,
    /// The connection breaks instead of answering.
    broken: bool,
    waiting: RefCell<VecDeque<(Ticket, String)>>,
    built: RefCell<BTreeMap<PathBuf, &'static str>>,
    log: RefCell<Vec<String>>,
    tickets: Cell<u64>,
    most_waiting: Cell<usize>,
}

impl Scripted {
    fn new(contents: &[(&'static str, &'static str)]) -> Self {
        Self {
            contents: contents.iter().copied().collect(),
            ..Self::default()
        }
    }

    fn note(&self, what: impl Into<String>) {
        self.log.borrow_mut().push(what.into());
    }
}

impl Host for Scripted {
    fn lstat(&self, logical: &Path) -> io::Result<Option<FileKind>> {
        Ok(self
            .built
            .borrow()
            .get(logical)
            .map(|_| FileKind::Regular { executable: false }))
    }

    fn read_file(&self, logical: &Path) -> io::Result<Vec<u8>> {
        match self.built.borrow().get(logical) {
            Some(text) => Ok(text.as_bytes().to_vec()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn add_source(&self, source: &Source<'_>) -> Result<StorePath, HostError> {
        Err(HostError::new(format!(
            "no sources here: {}",
            source.path.display()
        )))
    }

    fn add_text(&self, _: &StorePath, _: &[u8], _: &BTreeSet<StorePath>) -> Result<(), HostError> {
        Ok(())
    }

    fn instantiate(&self, derivation: &Instantiated<'_>) -> Result<(), HostError> {
        let text = String::from_utf8_lossy(derivation.aterm).into_owned();
        let output = text
            .split('"')
            .nth(3)
            .expect("a derivation has an output")
            .to_owned();
        let name = output
            .split_once('-')
            .expect("a store path has a name")
            .1
            .to_owned();
        let contents = self.contents.iter().find(|(known, _)| **known == name);
        if let Some((_, contents)) = contents {
            // Present only once built; kept under a name that nothing reads until then.
            self.built
                .borrow_mut()
                .insert(PathBuf::from(format!("pending{output}")), contents);
        }
        Ok(())
    }

    fn realise(&self, wanted: &[Wanted]) -> Result<Ticket, HostError> {
        let ticket = Ticket(self.tickets.replace(self.tickets.get() + 1));
        let [Wanted::Outputs { drv_path, .. }] = wanted else {
            panic!("one derivation is asked for")
        };
        let name = drv_path.name().trim_end_matches(".drv").to_owned();
        self.note(format!("build {name}"));
        self.waiting.borrow_mut().push_back((ticket, name));
        self.most_waiting
            .set(self.most_waiting.get().max(self.waiting.borrow().len()));
        Ok(ticket)
    }

    fn finished(&self, wait: bool) -> Result<Vec<(Ticket, Realised)>, HostError> {
        if !wait {
            return Ok(Vec::new());
        }
        if self.broken {
            return Err(HostError::new("the connection to the node is gone"));
        }
        let next = match self.newest_first {
            true => self.waiting.borrow_mut().pop_back(),
            false => self.waiting.borrow_mut().pop_front(),
        };
        let Some((ticket, name)) = next else {
            panic!("the evaluation waits for nothing")
        };
        if !self.contents.contains_key(name.as_str()) {
            self.note(format!("failed {name}"));
            return Ok(vec![(
                ticket,
                Err(HostError::new(format!("the build of {name} failed"))),
            )]);
        }
        self.note(format!("built {name}"));
        let mut built = self.built.borrow_mut();
        let pending: Vec<PathBuf> = built
            .keys()
            .filter(|path| path.starts_with("pending"))
            .cloned()
            .collect();
        for path in pending {
            let output = path.to_string_lossy().trim_start_matches("pending").to_owned();
            if output.ends_with(&format!("-{name}"))
                && let Some(text) = built.remove(&path)
            {
                built.insert(PathBuf::from(output), text);
            }
        }
        Ok(vec![(ticket, Ok(()))])
    }

    fn is_valid(&self, _: &StorePath) -> Result<bool, HostError> {
        Ok(false)
    }

    fn references(&self, _: &StorePath) -> Result<BTreeSet<StorePath>, HostError> {
        Ok(BTreeSet::new())
    }

    fn now(&self) -> i64 {
        0
    }

    fn message(&self, _: MessageKind, text: &str) {
        self.note(text);
    }
}

/// `ifd "x"` is the value of what the derivation `x` makes.
const IFD: &str =
    "let ifd = name: import (derivation { inherit name; builder = \"b\"; system = \"s\"; }); in ";

/// Evaluates attributes of one expression and gives what each came to.
fn run(host: &Scripted, options: &Options, text: &str, attributes: &[&str]) -> (Vec<String>, Summary) {
    let targets: Vec<Target> = attributes
        .iter()
        .map(|attribute| Target {
            source: ExpressionSource::Text(format!("{IFD}{text}")),
            attribute: (*attribute).to_owned(),
            action: Action::Print(Format::Strict),
        })
        .collect();
    let mut results = vec![String::new(); targets.len()];
    let summary = evaluate(options, &targets, host, &mut |event| match event {
        Event::Value { target, text } => {
            results[target] = String::from_utf8_lossy(&text).into_owned();
            host.note(format!("value {}", attributes[target]));
        }
        Event::Failed { target, error, .. } => {
            results[target] = error.message;
            host.note(format!("error {}", attributes[target]));
        }
        Event::Finished { .. } => {}
        Event::Derivation(_) => panic!("values were asked for"),
    })
    .expect("the options are valid");
    (results, summary)
}

#[test]
fn only_the_target_that_waits_is_suspended() {
    let host = Scripted::new(&[("x", "42")]);
    let (results, _) = run(
        &host,
        &Options::default(),
        "{ slow = ifd \"x\"; a = 1 + 1; b = 2 + 2; }",
        &["slow", "a", "b"],
    );
    assert_eq!(results, ["42", "2", "4"]);
    assert_eq!(
        *host.log.borrow(),
        ["build x", "value a", "value b", "built x", "value slow"]
    );
}

#[test]
fn twenty_targets_go_on_while_one_builds() {
    let host = Scripted::new(&[("x", "0")]);
    let names: Vec<String> = (0..20).map(|number| format!("t{number}")).collect();
    let set: String = names
        .iter()
        .map(|name| format!("{name} = \"{name}\"; "))
        .collect();
    let mut attributes = vec!["slow"];
    attributes.extend(names.iter().map(String::as_str));
    let (_, summary) = run(
        &host,
        &Options::default(),
        &format!("{{ slow = ifd \"x\"; {set} }}"),
        &attributes,
    );
    assert_eq!(summary.failures, 0);
    let log = host.log.borrow();
    assert_eq!(log.first().map(String::as_str), Some("build x"));
    assert_eq!(log.last().map(String::as_str), Some("value slow"));
    assert_eq!(log.iter().filter(|line| line.starts_with("value t")).count(), 20);
}

#[test]
fn a_thunk_that_another_target_forces_is_waited_for() {
    let host = Scripted::new(&[("x", "7")]);
    let (results, _) = run(
        &host,
        &Options::default(),
        "let shared = ifd \"x\"; in { a = shared + 1; b = shared + 2; c = shared; }",
        &["a", "b", "c"],
    );
    assert_eq!(results, ["8", "9", "7"]);
    let builds = host.log.borrow().iter().filter(|line| *line == "build x").count();
    assert_eq!(builds, 1, "the shared thunk is forced once");
}

#[test]
fn targets_that_wait_for_each_other_are_an_infinite_recursion() {
    for newest_first in [false, true] {
        let host = Scripted {
            newest_first,
            ..Scripted::new(&[("x", "1"), ("y", "2")])
        };
        let (results, _) = run(
            &host,
            &Options::default(),
            "let a = ifd \"x\" + b; b = ifd \"y\" + a; in { inherit a b; }",
            &["a", "b"],
        );
        assert_eq!(
            results,
            ["infinite recursion encountered", "infinite recursion encountered"]
        );
    }
}

#[test]
fn a_wait_that_ends_is_no_recursion() {
    let host = Scripted::new(&[("x", "1"), ("y", "2")]);
    let (results, _) = run(
        &host,
        &Options::default(),
        "let a = ifd \"x\" + b; b = ifd \"y\"; c = a + b; in { inherit a b c; }",
        &["c", "a", "b"],
    );
    assert_eq!(results, ["5", "3", "2"]);
}

#[test]
fn a_failed_force_leaves_the_thunk_as_it_was() {
    let host = Scripted::new(&[]);
    let (results, _) = run(
        &host,
        &Options::default(),
        "let shared = ifd \"x\"; in { a = shared; b = shared; }",
        &["a", "b"],
    );
    assert_eq!(results, ["the build of x failed", "the build of x failed"]);
    let (results, _) = run(
        &host,
        &Options::default(),
        "let t = throw \"no\"; in { a = t; b = t; }",
        &["a", "b"],
    );
    assert_eq!(results, ["no", "no"]);
}

#[test]
fn a_broken_connection_fails_those_that_wait_and_no_others() {
    let host = Scripted {
        broken: true,
        ..Scripted::new(&[("x", "1")])
    };
    let (results, _) = run(
        &host,
        &Options::default(),
        "{ a = ifd \"x\"; b = 1; c = ifd \"x\"; }",
        &["a", "b", "c"],
    );
    assert_eq!(
        results,
        [
            "the connection to the node is gone",
            "1",
            "the connection to the node is gone"
        ]
    );
}

#[test]
fn a_failed_build_is_not_caught_by_try_eval() {
    let host = Scripted::new(&[]);
    let (results, _) = run(
        &host,
        &Options::default(),
        "{ a = (builtins.tryEval (ifd \"x\")).success; b = (builtins.tryEval (throw \"x\")).success; }",
        &["a", "b"],
    );
    assert_eq!(results, ["the build of x failed", "false"]);
}

#[test]
fn stacks_are_capped_and_the_others_wait_their_turn() {
    let host = Scripted::new(&[("a", "1"), ("b", "2"), ("c", "3"), ("d", "4"), ("e", "5")]);
    let options = Options {
        max_live_stacks: 2,
        ..Options::default()
    };
    let (results, _) = run(
        &host,
        &options,
        "builtins.listToAttrs (map (name: { inherit name; value = ifd name; }) [ \"a\" \"b\" \"c\" \"d\" \"e\" ])",
        &["a", "b", "c", "d", "e"],
    );
    assert_eq!(results, ["1", "2", "3", "4", "5"]);
    assert_eq!(host.most_waiting.get(), 2);
}

#[test]
fn the_call_depth_is_the_targets_own() {
    let host = Scripted::new(&[("x", "0")]);
    let options = Options {
        max_call_depth: 100,
        ..Options::default()
    };
    // Each target nests 60 calls and is suspended at the bottom: together more than the limit.
    let (results, _) = run(
        &host,
        &options,
        "let deep = n: if n == 0 then ifd \"x\" else 1 + deep (n - 1); in { a = deep 60; b = deep 60; c = deep 200; }",
        &["a", "b", "c"],
    );
    assert_eq!(results, ["60", "60", "stack overflow; max-call-depth exceeded"]);
}

/// With the default, which is Nix's.
#[test]
fn calls_nest_so_deep_and_no_deeper() {
    let host = Scripted::new(&[]);
    let most = tvix_node_evaluator::limits::MAX_CALL_DEPTH;
    let text = format!(
        "let deep = n: if n == 1 then 1 else 1 + deep (n - 1); in {{ a = deep {most}; b = deep {}; }}",
        most + 1
    );
    let (results, _) = run(&host, &Options::default(), &text, &["a", "b"]);
    assert_eq!(
        results,
        [&most.to_string(), "stack overflow; max-call-depth exceeded"]
    );
}

#[test]
fn endless_calls_are_an_error_message() {
    let host = Scripted::new(&[]);
    let (results, _) = run(
        &host,
        &Options::default(),
        "let f = n: 1 + f (n + 1); g = n: g n; h = x: x.y { y = h; }; in { a = f 0; b = g 0; c = h { y = h; }; }",
        &["a", "b", "c"],
    );
    assert!(
        results
            .iter()
            .all(|result| result == "stack overflow; max-call-depth exceeded"),
        "{results:?}"
    );
}

#[test]
fn deep_chains_of_thunks_end_in_a_value_or_a_message() {
    let host = Scripted::new(&[]);
    // No call is nested here, so only the stack itself is the limit.
    for count in [1_000, 100_000, 400_000] {
        let mut text = String::from("rec { a0 = 0; ");
        for number in 1..=count {
            text.push_str(&format!("a{number} = a{} + 1; ", number - 1));
        }
        text.push('}');
        let (results, _) = run(&host, &Options::default(), &text, &[&format!("a{count}")]);
        let enough = results == [count.to_string()];
        assert!(
            enough || results == ["stack overflow; max-call-depth exceeded"],
            "{results:?}"
        );
        assert!(enough || count > 1_000);
    }
}

#[test]
fn a_list_of_a_million_is_no_recursion() {
    let host = Scripted::new(&[]);
    let (results, _) = run(
        &host,
        &Options::default(),
        "{ sum = builtins.foldl' (a: b: a + b) 0 (builtins.genList (n: n) 1000000); \
           last = builtins.elemAt (builtins.sort (a: b: a < b) (builtins.genList (n: 0 - n) 100000)) 0; \
           calls = let f = n: if n == 0 then 0 else 1 + f (n - 1); in f 1000; }",
        &["sum", "last", "calls"],
    );
    assert_eq!(results, ["499999500000", "-99999", "1000"]);
}
