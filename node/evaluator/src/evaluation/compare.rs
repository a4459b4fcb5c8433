//! Equality and order.

use std::cmp::Ordering;

use super::Evaluation;
use crate::error::{Error, ErrorKind, EvalError, Result};
use crate::heap::{Kind, Value, View};
use crate::syntax::position::Pos;
use crate::syntax::symbol::known;

impl<'h> Evaluation<'h> {
    /// `a == b`, both evaluated already.
    pub(crate) fn equal(&self, a: Value<'h>, b: Value<'h>, pos: Pos) -> Result<bool> {
        match (a.view(), b.view()) {
            (View::Int(a), View::Int(b)) => Ok(a == b),
            (View::Int(a), View::Float(b)) => Ok(a as f64 == b),
            (View::Float(a), View::Int(b)) => Ok(a == b as f64),
            (View::Float(a), View::Float(b)) => Ok(a == b),
            (View::Bool(a), View::Bool(b)) => Ok(a == b),
            (View::Null, View::Null) => Ok(true),
            (View::Str(a), View::Str(b)) | (View::Path(a), View::Path(b)) => Ok(a.bytes() == b.bytes()),
            (View::List(a), View::List(b)) => {
                // Not at once equal to itself: what its elements throw is thrown.
                if a.len() != b.len() {
                    return Ok(false);
                }
                self.deeper(pos, || {
                    for (a, b) in a.slots().iter().zip(b.slots()) {
                        if !self.equal_elements(a.get(), b.get(), pos)? {
                            return Ok(false);
                        }
                    }
                    Ok(true)
                })
            }
            (View::Attrs(x), View::Attrs(y)) => self.deeper(pos, || {
                if self.is_derivation(a)?
                    && self.is_derivation(b)?
                    && let (Some(x), Some(y)) = (x.get(known::OUT_PATH), y.get(known::OUT_PATH))
                {
                    return self.equal_elements(x.value(), y.value(), pos);
                }
                if x.len() != y.len() {
                    return Ok(false);
                }
                for (x, y) in x.iter().zip(y.iter()) {
                    if x.name != y.name || !self.equal_elements(x.value(), y.value(), pos)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }),
            // Functions are never equal, not even to themselves, except as the same element (see below).
            _ => Ok(false),
        }
    }

    /// Equality of elements of lists and sets: one and the same element is equal to itself, whatever it is. Nix
    /// compares the addresses of values there, and nixpkgs relies on it for sets that hold functions.
    pub(crate) fn equal_elements(&self, a: Value<'h>, b: Value<'h>, pos: Pos) -> Result<bool> {
        let (forced_a, forced_b) = (self.force_at(a, pos)?, self.force_at(b, pos)?);
        if a.same(b) {
            return Ok(true);
        }
        self.equal(forced_a, forced_b, pos)
    }

    /// `a < b`, both evaluated already.
    pub(crate) fn less(&self, a: Value<'h>, b: Value<'h>, pos: Pos) -> Result<bool> {
        match (a.view(), b.view()) {
            (View::Int(a), View::Int(b)) => Ok(a < b),
            (View::Int(a), View::Float(b)) => Ok((a as f64) < b),
            (View::Float(a), View::Int(b)) => Ok(a < b as f64),
            (View::Float(a), View::Float(b)) => Ok(a < b),
            (View::Str(a), View::Str(b)) | (View::Path(a), View::Path(b)) => Ok(a.bytes() < b.bytes()),
            (View::List(a), View::List(b)) => self.deeper(pos, || {
                let mut index = 0;
                loop {
                    let Some(right) = b.get(index) else {
                        return Ok(false);
                    };
                    let Some(left) = a.get(index) else { return Ok(true) };
                    if !self.equal_elements(left, right, pos)? {
                        let (left, right) = (self.force(left)?, self.force(right)?);
                        return self
                            .less(left, right, pos)
                            .map_err(|error| error.frame(Pos::NONE, "while comparing two list elements"));
                    }
                    index += 1;
                }
            }),
            _ => {
                let (kind_a, kind_b) = (self.describe(a), self.describe(b));
                let (a_shown, b_shown) = (self.show(a), self.show(b));
                let why = match a.kind() == b.kind() {
                    true => {
                        format!("values of that type are incomparable (values are {a_shown} and {b_shown})")
                    }
                    false => format!("values are {a_shown} and {b_shown}"),
                };
                Err(self.error(pos, format!("cannot compare {kind_a} with {kind_b}; {why}")))
            }
        }
    }

    /// The order of two values by `<`.
    pub(crate) fn order(&self, a: Value<'h>, b: Value<'h>, pos: Pos) -> Result<Ordering> {
        if self.less(a, b, pos)? {
            return Ok(Ordering::Less);
        }
        Ok(if self.less(b, a, pos)? {
            Ordering::Greater
        } else {
            Ordering::Equal
        })
    }

    /// Says, as an error, why two values that were just found unequal are unequal.
    pub(super) fn explain_difference(&self, a: Value<'h>, b: Value<'h>, pos: Pos) -> Result<()> {
        let (a, b) = (self.force(a)?, self.force(b)?);
        let (kind_a, kind_b) = (a.kind(), b.kind());
        let number = |kind: Kind| matches!(kind, Kind::Int | Kind::Float);
        if number(kind_a) && number(kind_b) {
            if self.equal(a, b, pos)? {
                return Ok(());
            }
            return Err(self.different(format!(
                "{} with value '{}' is not equal to {} with value '{}'",
                self.describe(a),
                self.show(a),
                self.describe(b),
                self.show(b)
            )));
        }
        if kind_a != kind_b {
            return Err(self.different(format!(
                "{} of value '{}' is not equal to {} of value '{}'",
                self.describe(a),
                self.show(a),
                self.describe(b),
                self.show(b)
            )));
        }
        match (a.view(), b.view()) {
            (View::List(x), View::List(y)) => {
                if x.same(y) {
                    return Ok(());
                }
                if x.len() != y.len() {
                    return Err(self.different(format!(
                        "list of size '{}' is not equal to list of size '{}', left hand side is '{}', \
                         right hand side is '{}'",
                        x.len(),
                        y.len(),
                        self.show(a),
                        self.show(b)
                    )));
                }
                for (index, (x, y)) in x.iter().zip(y.iter()).enumerate() {
                    if !x.same(y) {
                        self.deeper(pos, || self.explain_difference(x, y, pos))
                            .map_err(|error| {
                                error.frame(pos, format!("while comparing list element {index}"))
                            })?;
                    }
                }
                Ok(())
            }
            (View::Attrs(x), View::Attrs(y)) => {
                if x.same(y) {
                    return Ok(());
                }
                if self.is_derivation(a)?
                    && self.is_derivation(b)?
                    && let (Some(x), Some(y)) = (x.get(known::OUT_PATH), y.get(known::OUT_PATH))
                {
                    return self
                        .deeper(pos, || self.explain_difference(x.value(), y.value(), pos))
                        .map_err(|error| {
                            error.frame(pos, "while comparing a derivation by its 'outPath' attribute")
                        });
                }
                if x.len() != y.len() {
                    return Err(self.different(format!(
                        "attribute names of attribute set '{}' differs from attribute set '{}'",
                        self.show(a),
                        self.show(b)
                    )));
                }
                for (left, right) in x.iter().zip(y.iter()) {
                    if y.get(left.name).is_none() {
                        return Err(self.different(format!(
                            "attribute name '{}' is contained in '{}', but not in '{}'",
                            self.name(left.name),
                            self.show(a),
                            self.show(b)
                        )));
                    }
                    if x.get(right.name).is_none() {
                        return Err(self.different(format!(
                            "attribute name '{}' is missing in '{}', but is contained in '{}'",
                            self.name(right.name),
                            self.show(a),
                            self.show(b)
                        )));
                    }
                    if left.value().same(right.value()) {
                        continue;
                    }
                    self.deeper(pos, || self.explain_difference(left.value(), right.value(), pos))
                        .map_err(|error| {
                            let name = self.name(left.name);
                            error
                                .frame(right.pos, "where right hand side is")
                                .frame(left.pos, "where left hand side is")
                                .frame(pos, format!("while comparing attribute '{name}'"))
                        })?;
                }
                Ok(())
            }
            _ if kind_a == Kind::Function => Err(self.different(
                "distinct functions and immediate comparisons of identical functions compare as unequal"
                    .to_owned(),
            )),
            _ => {
                if self.equal(a, b, pos)? {
                    return Ok(());
                }
                let kind = match kind_a {
                    Kind::Int => "integer",
                    Kind::Float => "float",
                    Kind::Bool => "boolean",
                    Kind::Path => "path",
                    _ => "string",
                };
                Err(self.different(format!(
                    "{kind} '{}' is not equal to {kind} '{}'",
                    self.show(a),
                    self.show(b)
                )))
            }
        }
    }

    #[cold]
    fn different(&self, message: String) -> Error {
        EvalError::new(ErrorKind::Assertion, Pos::NONE, message)
    }
}
