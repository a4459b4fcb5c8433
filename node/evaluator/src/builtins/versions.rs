//! Versions and package names.

use super::PrimOp;

pub(super) const TABLE: &[PrimOp] = &[];
