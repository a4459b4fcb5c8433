//! Regular expressions.

use super::PrimOp;

pub(super) const TABLE: &[PrimOp] = &[];
