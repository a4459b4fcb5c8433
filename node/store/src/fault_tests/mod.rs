//! Every file operation fails or is cut, one after the other; the store must come through.
//!
//! [`work`] has every operation that writes, [`whole`] what must be so afterwards. The killed processes are this test
//! program itself, started again with a plan in its environment. The short runs take some steps of each operation;
//! `--ignored` takes every one. Both say how many.

#![allow(clippy::unwrap_used)]

mod cuts;
mod failures;
mod order;
mod place;
mod whole;
mod work;

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use tvix_node_protocol::StorePath;
use tvix_node_protocol::nix::store_path::build_text_path;

use crate::faults::{Faults, Step};
use crate::{ContentName, Naming, Text};
use place::Place;
use whole::assert_whole;
use work::{Told, Work};

type Failure = Box<dyn std::error::Error>;

fn text(name: &str, content: &str, references: &[&Text]) -> Text {
    let references: BTreeSet<StorePath> = references.iter().map(|text| text.path.clone()).collect();
    Text {
        path: build_text_path(name, content.as_bytes(), &references).unwrap(),
        references,
        content: content.as_bytes().to_vec(),
    }
}

fn source(name: &str) -> Naming {
    Naming::Content(ContentName::source(name))
}

/// An operation of the work, and which steps of all the work it takes.
struct Operation {
    name: &'static str,
    steps: Range<u64>,
    kinds: Vec<Step>,
}

/// Which steps of an operation are tried.
enum Sample {
    /// So many, the first and the last among them.
    Some(u64),
    /// The last of each kind after which something else is to be seen: before the last bytes of something, before it has its
    /// name, before it is synced, before what was there goes.
    LastOfEachKind,
    All,
}

impl Operation {
    fn sample(&self, sample: &Sample) -> Vec<u64> {
        match sample {
            Sample::All => self.steps.clone().collect(),
            Sample::Some(most) => {
                let count = (self.steps.end - self.steps.start).min(*most);
                let last = self.steps.end - self.steps.start - 1;
                let step = |number| self.steps.start + last * number / (count - 1).max(1);
                (0..count).map(step).collect()
            }
            Sample::LastOfEachKind => {
                let kinds = self.kinds.iter().copied().zip(self.steps.clone());
                let last: HashMap<Step, u64> = kinds.filter(|(kind, _)| is_seen(*kind)).collect();
                let mut steps: Vec<u64> = last.into_values().collect();
                steps.sort_unstable();
                steps
            }
        }
    }
}

fn is_seen(kind: Step) -> bool {
    matches!(
        kind,
        Step::Write
            | Step::MakeSymlink
            | Step::Rename
            | Step::Remove
            | Step::Sync
            | Step::SyncFile
            | Step::IndexSync
    )
}

/// The operations of one round in a new home.
fn operations() -> Vec<Operation> {
    let (place, faults) = (Place::new(), Faults::default());
    faults.record();
    let mut operations: Vec<Operation> = Vec::new();
    let mut begin = |told: Told| {
        if let Told::Begin(name) = told {
            let at = faults.count();
            operations
                .last_mut()
                .into_iter()
                .for_each(|last| last.steps.end = at);
            operations.push(Operation {
                name,
                steps: at..at,
                kinds: Vec::new(),
            });
        }
    };
    let mut work = Work::new(&place, &faults, &mut begin);
    work.all().unwrap();
    let store = work.store.take().unwrap();
    drop(work);
    let end = faults.count();
    operations.last_mut().unwrap().steps.end = end;
    let kinds = faults.recorded();
    for operation in &mut operations {
        let steps = operation.steps.clone().map(|step| usize::try_from(step).unwrap());
        operation.kinds = steps.map(|step| kinds[step]).collect();
        assert!(!operation.steps.is_empty(), "'{}' takes no steps", operation.name);
    }
    assert_whole(&store, &place);
    operations
}

/// Does something at steps of each operation, and says at how many.
fn at_steps(sample: &Sample, act: &mut dyn FnMut(u64)) {
    let mut total = (0, 0);
    for operation in operations() {
        let steps = operation.sample(sample);
        let of = operation.steps.end - operation.steps.start;
        println!("{:>5} of {of:>5} steps: {}", steps.len(), operation.name);
        total = (total.0 + steps.len(), total.1 + of);
        steps.into_iter().for_each(&mut *act);
    }
    println!("{:>5} of {:>5} steps in all", total.0, total.1);
}
