//! The builtin functions, in files by subject. Each file ends in a table that registers what it has.

mod arith;
mod attrs;
mod context;
mod control;
mod fetch;
mod fetch_mercurial;
mod fetch_tree;
mod files;
mod hash;
mod lists;
pub(crate) mod paths;
mod refused;
mod regex;
mod strings;
mod structured;
mod types;
mod versions;

use crate::compile::Globals;
use crate::error::Result;
use crate::evaluation::Evaluation;
use crate::heap::{AttrsBuilder, Value};
use crate::syntax::position::{Origin, Pos};

/// What a builtin is called with: all its arguments, perhaps not evaluated, and where it is called. It must not
/// return a thunk.
pub(crate) type Run = for<'h> fn(&Evaluation<'h>, &[Value<'h>], Pos) -> Result<Value<'h>>;

/// A builtin function.
pub(crate) struct PrimOp {
    /// Its name in `builtins`.
    pub(crate) name: &'static str,
    /// How many arguments it takes.
    pub(crate) arity: usize,
    /// What it does.
    pub(crate) run: Run,
    /// Whether it forces its first argument before all else.
    pub(crate) strict: bool,
    /// Whether it is left out of traces.
    pub(crate) silent: bool,
    /// Whether it is bound without `builtins.` under its own name, else as `__name`.
    plain: bool,
}

impl PrimOp {
    /// A builtin that is bound as `builtins.name` and `__name`, and forces its first argument first.
    const fn new(name: &'static str, arity: usize, run: Run) -> Self {
        Self {
            name,
            arity,
            run,
            strict: true,
            silent: false,
            plain: false,
        }
    }

    /// It is bound under its own name everywhere.
    const fn plain(self) -> Self {
        Self { plain: true, ..self }
    }

    /// It does not always force its first argument first.
    const fn lazy(self) -> Self {
        Self {
            strict: false,
            ..self
        }
    }

    /// It is left out of traces.
    const fn silent(self) -> Self {
        Self { silent: true, ..self }
    }
}

/// `builtins.nixVersion`. Nixpkgs compares it with the oldest Nix it works with; this is the oldest release that
/// current nixpkgs accepts, so that nothing newer than what is here is switched on.
const NIX_VERSION: &str = "2.18.0";

/// `builtins.langVersion`, as of all Nix releases since 2.11.
const LANG_VERSION: i32 = 6;

const TABLES: &[&[PrimOp]] = &[
    arith::TABLE,
    attrs::TABLE,
    context::TABLE,
    control::TABLE,
    fetch::TABLE,
    fetch_tree::TABLE,
    fetch_mercurial::TABLE,
    files::TABLE,
    hash::TABLE,
    lists::TABLE,
    paths::TABLE,
    refused::TABLE,
    regex::TABLE,
    strings::TABLE,
    structured::TABLE,
    types::TABLE,
    versions::TABLE,
];

/// Makes the variables that are bound everywhere.
///
/// # Errors
/// The embedded Nix code does not load, which is a bug.
pub(crate) fn globals<'h>(evaluation: &Evaluation<'h>) -> Result<Globals<'h>> {
    let heap = evaluation.heap;
    let mut globals = Globals::default();
    let mut builtins = AttrsBuilder::with_capacity(160);
    for primop in TABLES.iter().copied().flatten() {
        let value = Value::primop(heap, primop);
        let name = evaluation.symbol(primop.name.as_bytes());
        builtins.insert(name, value);
        let global = match primop.plain {
            true => name,
            false => evaluation.symbol(format!("__{}", primop.name).as_bytes()),
        };
        globals.insert(global, value);
    }
    let mut constant = |name: &str, value: Value<'h>, plain: bool| {
        let symbol = evaluation.symbol(name.as_bytes());
        builtins.insert(symbol, value);
        let global = match plain {
            true => symbol,
            false => evaluation.symbol(format!("__{name}").as_bytes()),
        };
        globals.insert(global, value);
    };
    constant("true", Value::TRUE, true);
    constant("false", Value::FALSE, true);
    constant("null", Value::NULL, true);
    let options = evaluation.options;
    if options.reading != crate::options::Reading::Pure {
        // Code must not take it for a literal when it is kept for another evaluation.
        constant("currentTime", Value::own_int(heap, evaluation.host.now()), false);
        constant("currentSystem", evaluation.text(options.system.as_bytes()), false);
    }
    constant("nixVersion", evaluation.text(NIX_VERSION.as_bytes()), false);
    constant("langVersion", Value::small_int(LANG_VERSION), false);
    constant("storeDir", evaluation.text(b"/nix/store"), false);
    constant("nixPath", paths::search_path_value(evaluation), false);
    // `derivation` is Nix code that uses what is bound so far.
    let early: Globals<'h> = {
        let mut early = globals.clone();
        let set = Value::attrs(builtins.clone().finish(heap));
        early.insert(evaluation.symbol(b"builtins"), set);
        early
    };
    let derivation = embedded(
        evaluation,
        &early,
        "derivation-internal.nix",
        crate::derivation::DERIVATION_NIX,
    )?;
    let symbol = evaluation.symbol(b"derivation");
    builtins.insert(symbol, derivation);
    globals.insert(symbol, derivation);
    // `builtins.builtins` is `builtins`, which does not exist before it is complete.
    let itself = evaluation.symbol(b"builtins");
    let cell = crate::heap::Thunk::done(heap, Value::NULL);
    builtins.insert(itself, Value::thunk(cell));
    let set = Value::attrs(builtins.finish(heap));
    cell.finish(set);
    globals.insert(itself, set);
    Ok(globals)
}

/// The value of Nix code that is part of this program.
pub(crate) fn embedded<'h>(
    evaluation: &Evaluation<'h>,
    globals: &Globals<'h>,
    name: &str,
    text: &str,
) -> Result<Value<'h>> {
    let origin = Origin::File(format!("«nix-internal»/{name}").into_bytes());
    let (code, env) = evaluation.compile_with(origin, text.as_bytes().to_vec(), b"/", None, globals)?;
    evaluation.eval(code, env)
}
