//! Running targets: from expressions to events.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::os::unix::ffi::OsStrExt;

use tvix_node_protocol::nix::store_path::StorePath;

use crate::error::{Error, Rendered, Result};
use crate::evaluation::{Coerce, ContextBuilder, Evaluation, files};
use crate::heap::{Attr, Attrs, AttrsBuilder, Heap, Value};
use crate::host::Host;
use crate::options::{Argument, Options};
use crate::schedule::{self, Jobs};
use crate::syntax::position::{Origin, Pos};
use crate::syntax::symbol::known;
use crate::target::{Action, Event, ExpressionSource, Format, NamedDerivation, Summary, Target};

/// Evaluates targets on the calling thread until all have ended.
///
/// Every target (and every member of a set or list that is instantiated) runs as a coroutine over one heap, so that
/// one that waits for import-from-derivation does not hold up the others. Derivations go to the host as they are
/// instantiated, `sink` is told what the targets come to. A target that fails does not end the others.
///
/// Where the heap passes [`Options::heap_limit`], what is not begun yet goes on with a fresh one, so that thousands of
/// targets need no more memory than some hundreds.
///
/// # Errors
/// The evaluation could not begin: an argument does not parse, or there is no memory for a stack.
pub fn evaluate(
    options: &Options,
    targets: &[Target],
    host: &dyn Host,
    sink: &mut dyn FnMut(Event),
) -> std::result::Result<Summary, Rendered> {
    let left: Vec<Cell<usize>> = targets.iter().map(|_| Cell::new(1)).collect();
    let mut work: Vec<Work> = (0..targets.len()).map(Work::Target).collect();
    let mut summary = Summary::default();
    let sink = RefCell::new(sink);
    let tell = |event| (sink.borrow_mut())(event);
    loop {
        work = generation(options, targets, host, &tell, &left, work, &mut summary)?;
        if work.is_empty() {
            return Ok(summary);
        }
    }
}

/// Performs work on a heap of its own, which is freed at the end. What was not begun when the heap had become too
/// large is left for the next one: what was evaluated for it is evaluated again there.
fn generation(
    options: &Options,
    targets: &[Target],
    host: &dyn Host,
    tell: &dyn Fn(Event),
    left: &[Cell<usize>],
    work: Vec<Work>,
    summary: &mut Summary,
) -> std::result::Result<Vec<Work>, Rendered> {
    let heap = Heap::new();
    let evaluation = Evaluation::new(&heap, host, options).map_err(|error| Rendered {
        text: format!("error: {}", error.message),
        message: error.message,
    })?;
    let jobs = Jobs::from(VecDeque::from([Job::Begin(work)]));
    let run = Run {
        evaluation: &evaluation,
        arguments: Cell::new(Attrs::from_sorted(&heap, &[])),
        refused: RefCell::default(),
        targets,
        left,
        jobs: &jobs,
        tell,
        roots: RefCell::default(),
        summary: Cell::new(*summary),
        begun: Cell::new(false),
        postponed: RefCell::default(),
    };
    schedule::run(&evaluation, &jobs, &|job| run.perform(job)).map_err(|error| {
        let message = format!(
            "cannot make a stack of {} bytes: {error}",
            crate::limits::STACK_SIZE
        );
        Rendered {
            text: format!("error: {message}"),
            message,
        }
    })?;
    evaluation.keep_compiled();
    if let Some(refused) = run.refused.take() {
        return Err(refused);
    }
    *summary = run.summary.get();
    summary.heap_bytes = summary.heap_bytes.max(heap.allocated());
    summary.heaps += 1;
    Ok(run.postponed.take())
}

/// The arguments for automatically called functions.
fn arguments<'h>(evaluation: &Evaluation<'h>) -> Result<Attrs<'h>> {
    let base = evaluation.options.base.as_os_str().as_bytes();
    let mut attrs = AttrsBuilder::with_capacity(evaluation.options.arguments.len());
    for (name, argument) in &evaluation.options.arguments {
        let value = match argument {
            Argument::Text(text) => evaluation.text(text.as_bytes()),
            Argument::Expression(text) => {
                let (code, env) =
                    evaluation.compile_text(Origin::String, text.as_bytes().to_vec(), base, None)?;
                evaluation.delay(code, env)
            }
        };
        attrs.insert(evaluation.symbol(name.as_bytes()), value);
    }
    Ok(attrs.finish(evaluation.heap))
}

/// Work that can be begun on any heap.
enum Work {
    /// The target with this index.
    Target(usize),
    /// A member of a set or list that a target instantiates.
    Member {
        /// Index of the target.
        target: usize,
        /// Attribute path from the expression on.
        attribute: String,
        /// Whether a set is entered without asking for it.
        enter: bool,
    },
}

/// What runs as one coroutine. Everything that parses or evaluates does, because the caller's stack may be small.
enum Job<'h> {
    /// Compiles the arguments, then makes jobs of the work.
    Begin(Vec<Work>),
    /// Work to be begun.
    Work(Work),
    /// A member of a set or list, whose value is known on this heap.
    Member {
        value: Value<'h>,
        target: usize,
        attribute: String,
        enter: bool,
    },
}

struct Run<'e, 'h> {
    evaluation: &'e Evaluation<'h>,
    arguments: Cell<Attrs<'h>>,
    /// Why the evaluation could not begin.
    refused: RefCell<Option<Rendered>>,
    targets: &'e [Target],
    /// How many pieces of work are left of each target, those of other heaps included.
    left: &'e [Cell<usize>],
    jobs: &'e Jobs<Job<'h>>,
    tell: &'e dyn Fn(Event),
    /// Values of expressions, so that targets with equal sources share them.
    roots: RefCell<BTreeMap<ExpressionSource, Value<'h>>>,
    summary: Cell<Summary>,
    /// Whether any work was begun on this heap: some must be, so that it comes to an end.
    begun: Cell<bool>,
    /// What is left for the next heap.
    postponed: RefCell<Vec<Work>>,
}

impl<'h> Run<'_, 'h> {
    fn emit(&self, event: Event) {
        let mut summary = self.summary.get();
        match &event {
            Event::Derivation(_) => summary.derivations += 1,
            Event::Failed { .. } => summary.failures += 1,
            Event::Value { .. } | Event::Finished { .. } => {}
        }
        self.summary.set(summary);
        (self.tell)(event);
    }

    fn render(&self, error: &Error) -> Rendered {
        error.render(
            &self.evaluation.sources.borrow(),
            self.evaluation.options.show_trace,
        )
    }

    fn fail(&self, target: usize, attribute: &str, error: &Error) {
        let error = self.render(error);
        self.emit(Event::Failed {
            target,
            attribute: attribute.to_owned(),
            error,
        });
    }

    fn done(&self, target: usize) {
        let left = &self.left[target];
        left.set(left.get() - 1);
        if left.get() == 0 {
            self.emit(Event::Finished { target });
        }
    }

    /// Whether the heap has become so large that what is not begun is left for the next one.
    fn is_full(&self) -> bool {
        let limit = self.evaluation.options.heap_limit;
        self.begun.get() && self.evaluation.heap.allocated() > limit
    }

    fn perform(&self, job: Job<'h>) {
        match job {
            Job::Begin(work) => match arguments(self.evaluation) {
                Ok(arguments) => {
                    self.arguments.set(arguments);
                    self.jobs.borrow_mut().extend(work.into_iter().map(Job::Work));
                }
                Err(error) => *self.refused.borrow_mut() = Some(self.render(&error)),
            },
            Job::Work(work) if self.is_full() => self.postponed.borrow_mut().push(work),
            Job::Member {
                target,
                attribute,
                enter,
                ..
            } if self.is_full() => self.postponed.borrow_mut().push(Work::Member {
                target,
                attribute,
                enter,
            }),
            Job::Work(work) => {
                self.begun.set(true);
                self.begin(work);
            }
            Job::Member {
                value,
                target,
                attribute,
                enter,
            } => {
                self.begun.set(true);
                self.member(value, target, attribute, enter);
            }
        }
    }

    fn begin(&self, work: Work) {
        match work {
            Work::Target(index) => {
                if let Some(target) = self.targets.get(index) {
                    self.target(index, target);
                }
            }
            Work::Member {
                target,
                attribute,
                enter,
            } => {
                let source = &self.targets[target].source;
                let found = self
                    .root(source)
                    .and_then(|root| self.evaluation.find_along(root, &attribute, self.arguments.get()));
                match found {
                    Ok(value) => self.member(value, target, attribute, enter),
                    Err(error) => {
                        self.fail(target, &attribute, &error);
                        self.done(target);
                    }
                }
            }
        }
    }

    fn target(&self, index: usize, target: &Target) {
        let value = self.root(&target.source).and_then(|root| {
            self.evaluation
                .find_along(root, &target.attribute, self.arguments.get())
        });
        match (value, target.action) {
            (Err(error), _) => self.fail(index, &target.attribute, &error),
            (Ok(value), Action::Instantiate) => self.instantiate(value, target.attribute.clone(), index),
            (Ok(value), Action::Print(format)) => match self.print(value, format) {
                Ok(text) => self.emit(Event::Value { target: index, text }),
                Err(error) => self.fail(index, &target.attribute, &error),
            },
        }
        self.done(index);
    }

    /// The value of an expression, not evaluated yet.
    fn root(&self, source: &ExpressionSource) -> Result<Value<'h>> {
        if let Some(value) = self.roots.borrow().get(source) {
            return Ok(*value);
        }
        let evaluation = self.evaluation;
        let base = evaluation.options.base.as_os_str().as_bytes();
        let value = match source {
            ExpressionSource::File(path) => {
                let path = files::canonical(&files::join(base, path.as_os_str().as_bytes()).split_off(
                    if path.is_absolute() {
                        files::join(base, b"").len()
                    } else {
                        0
                    },
                ));
                evaluation.import_lazily(&path, Pos::NONE)?
            }
            ExpressionSource::SearchPath(name) => {
                let path = evaluation.find_file(&evaluation.search_path(), name.as_bytes(), Pos::NONE)?;
                evaluation.import_lazily(&path, Pos::NONE)?
            }
            ExpressionSource::Tarball(url) => {
                let path = evaluation.fetch_archive(url, Pos::NONE)?;
                evaluation.import_lazily(&path, Pos::NONE)?
            }
            ExpressionSource::Text(text) => {
                let (code, env) =
                    evaluation.compile_text(Origin::String, text.as_bytes().to_vec(), base, None)?;
                evaluation.delay(code, env)
            }
        };
        self.roots.borrow_mut().insert(source.clone(), value);
        Ok(value)
    }

    fn print(&self, value: Value<'h>, format: Format) -> Result<Vec<u8>> {
        let evaluation = self.evaluation;
        let value = match self.arguments.get().is_empty() {
            true => evaluation.force(value)?,
            false => evaluation.auto_call(value, self.arguments.get())?,
        };
        let mut text = Vec::new();
        match format {
            Format::Lazy => evaluation.print(value, &mut text)?,
            Format::Strict => {
                evaluation.force_deep(value)?;
                evaluation.print(value, &mut text)?;
            }
            Format::Json => {
                text = evaluation.to_json(value, Pos::NONE, &mut ContextBuilder::default(), true)?;
            }
            Format::Xml { strict, locations } => {
                let mut context = ContextBuilder::default();
                text = evaluation.to_xml(value, strict, locations, &mut context, Pos::NONE)?;
            }
            Format::Raw => {
                let mut context = ContextBuilder::default();
                let trace = "while generating the output";
                text = evaluation
                    .coerce(value, Pos::NONE, &mut context, Coerce::COPY, trace)?
                    .to_vec();
            }
        }
        Ok(text)
    }

    /// Names all derivations in a value; members of sets and lists become jobs of their own.
    fn instantiate(&self, value: Value<'h>, attribute: String, target: usize) {
        let found = self
            .evaluation
            .auto_call(value, self.arguments.get())
            .and_then(|value| match self.evaluation.is_derivation(value)? {
                true => self.named(value, &attribute, target).map(|()| None),
                false => Ok(Some(value)),
            });
        let value = match found {
            Ok(None) => return,
            Ok(Some(value)) => value,
            Err(error) => return self.fail(target, &attribute, &error),
        };
        if let Some(attrs) = value.as_attrs() {
            let combine = self
                .evaluation
                .symbols
                .borrow()
                .lookup(b"_combineChannels")
                .is_some_and(|name| attrs.get(name).is_some());
            let mut sorted: Vec<&'h Attr<'h>> = attrs.iter().collect();
            self.evaluation.sort_by_name(&mut sorted, |attr| attr.name);
            for attr in sorted {
                let name = self.evaluation.name(attr.name);
                if is_member_name(&name) {
                    self.push_member(attr.value(), extend(&attribute, &name), combine, target);
                }
            }
        } else if let Some(list) = value.as_list() {
            for (index, item) in list.iter().enumerate() {
                self.push_member(item, extend(&attribute, &index.to_string()), true, target);
            }
        } else {
            let error = self.evaluation.error(
                Pos::NONE,
                "expression does not evaluate to a derivation (or a set or list of those)",
            );
            self.fail(target, &attribute, &error);
        }
    }

    /// Makes a job of a member of a set or list.
    fn push_member(&self, value: Value<'h>, attribute: String, enter: bool, target: usize) {
        self.left[target].set(self.left[target].get() + 1);
        self.jobs.borrow_mut().push_back(Job::Member {
            value,
            target,
            attribute,
            enter,
        });
    }

    /// A member of a set or list: named if it is a derivation, entered if it is a set that asks for it (or if
    /// `enter` says so).
    fn member(&self, value: Value<'h>, target: usize, attribute: String, enter: bool) {
        let entered = self.evaluation.force(value).and_then(|value| {
            if self.evaluation.is_derivation(value)? {
                self.named(value, &attribute, target)?;
                return Ok(None);
            }
            let asks = match value
                .as_attrs()
                .and_then(|attrs| attrs.get(known::RECURSE_FOR_DERIVATIONS))
            {
                Some(attr) => self.evaluation.bool(
                    attr.value(),
                    attr.pos,
                    "while evaluating the attribute `recurseForDerivations`",
                )?,
                None => false,
            };
            Ok((asks || enter).then_some(value))
        });
        match entered {
            Ok(None) => {}
            Ok(Some(value)) => self.instantiate(value, attribute, target),
            Err(error) => self.fail(target, &attribute, &error),
        }
        self.done(target);
    }

    /// Reports a derivation, which is instantiated by asking for its path.
    fn named(&self, value: Value<'h>, attribute: &str, target: usize) -> Result<()> {
        let evaluation = self.evaluation;
        let Some(attrs) = value.as_attrs() else {
            return Ok(());
        };
        let text = |name, context| -> Result<Option<String>> {
            match attrs.get(name) {
                None => Ok(None),
                Some(attr) => {
                    let text = evaluation.string(attr.value(), attr.pos, context)?;
                    Ok(Some(String::from_utf8_lossy(text.bytes()).into_owned()))
                }
            }
        };
        let missing = |what: &str| {
            evaluation.error(
                Pos::NONE,
                format!("derivation '{attribute}' lacks a '{what}' attribute"),
            )
        };
        let name = text(
            known::NAME,
            "while evaluating the 'name' attribute of a derivation",
        )?
        .ok_or_else(|| missing("name"))?;
        let drv_path = text(
            known::DRV_PATH,
            "while evaluating the 'drvPath' attribute of a derivation",
        )?
        .ok_or_else(|| missing("drvPath"))?;
        let drv_path = StorePath::from_absolute_path(drv_path.as_bytes()).map_err(|error| {
            evaluation.error(Pos::NONE, format!("'{drv_path}' is not a store path: {error}"))
        })?;
        let system = text(
            known::SYSTEM,
            "while evaluating the 'system' attribute of a derivation",
        )?;
        let output_name = text(
            known::OUTPUT_NAME,
            "while evaluating the 'outputName' attribute of a derivation",
        )?;
        let known = evaluation.derivation(&drv_path, Pos::NONE)?;
        let outputs = known
            .outputs
            .iter()
            .map(|(output, path)| ((*output).to_owned(), (*path).clone()))
            .collect();
        self.emit(Event::Derivation(NamedDerivation {
            target,
            attribute: attribute.to_owned(),
            name,
            system: system.unwrap_or_else(|| "unknown".to_owned()),
            drv_path,
            output_name: output_name.unwrap_or_default(),
            outputs,
        }));
        Ok(())
    }
}

fn extend(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

/// Whether an attribute can be named on a command line; Nix looks for derivations in no others.
fn is_member_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'+'))
}
