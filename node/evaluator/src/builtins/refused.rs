//! Builtins of Nix that are not there (yet): they exist, so that code can ask for them, and refuse by name.

use super::PrimOp;
use crate::error::Result;
use crate::evaluation::Evaluation;
use crate::heap::Value;
use crate::syntax::position::Pos;

pub(super) const TABLE: &[PrimOp] =
    &[PrimOp::new("outputOf", 2, |e, _, pos| refuse(e, "outputOf", pos)).lazy()];

fn refuse<'h>(evaluation: &Evaluation<'h>, name: &str, pos: Pos) -> Result<Value<'h>> {
    Err(evaluation.error(pos, format!("the builtin '{name}' is not supported yet")))
}
