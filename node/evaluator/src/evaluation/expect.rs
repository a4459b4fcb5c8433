//! Forcing values of an expected type, and the errors where they are of another one.

use super::Evaluation;
use crate::error::{Error, Result};
use crate::heap::{Attr, Attrs, List, Str, Value, View};
use crate::syntax::position::Pos;
use crate::syntax::symbol::{Symbol, known};

impl<'h> Evaluation<'h> {
    /// The type of a value with its article, as errors name it.
    pub(crate) fn describe(&self, value: Value<'h>) -> String {
        match value.view() {
            View::Thunk => "a thunk".to_owned(),
            View::Attrs(_) => "a set".to_owned(),
            View::List(_) => "a list".to_owned(),
            View::Str(text) if text.context().is_some() => "a string with context".to_owned(),
            View::Str(_) => "a string".to_owned(),
            View::Path(_) => "a path".to_owned(),
            View::Int(_) => "an integer".to_owned(),
            View::Float(_) => "a float".to_owned(),
            View::Bool(_) => "a Boolean".to_owned(),
            View::Null => "null".to_owned(),
            View::Closure(_) => "a function".to_owned(),
            View::PrimOp(primop) => format!("the built-in function '{}'", primop.name),
            View::Partial(partial) => match partial.function().view() {
                View::PrimOp(primop) => format!("the partially applied built-in function '{}'", primop.name),
                _ => "a function".to_owned(),
            },
        }
    }

    /// The error that a value is of another type than expected.
    #[cold]
    #[inline(never)]
    pub(crate) fn expected(&self, pos: Pos, what: &str, value: Value<'h>) -> Error {
        let (found, shown) = (self.describe(value), self.show(value));
        self.error(pos, format!("expected {what} but found {found}: {shown}"))
    }

    /// A set.
    #[inline]
    pub(crate) fn attrs(&self, value: Value<'h>, pos: Pos, context: &'static str) -> Result<Attrs<'h>> {
        match self.force_at(value, pos) {
            Ok(value) => match value.as_attrs() {
                Some(attrs) => Ok(attrs),
                None => Err(self.expected(Pos::NONE, "a set", value).frame(pos, context)),
            },
            Err(error) => Err(error.frame(pos, context)),
        }
    }

    /// A list.
    #[inline]
    pub(crate) fn list(&self, value: Value<'h>, pos: Pos, context: &'static str) -> Result<List<'h>> {
        match self.force_at(value, pos) {
            Ok(value) => match value.as_list() {
                Some(list) => Ok(list),
                None => Err(self.expected(Pos::NONE, "a list", value).frame(pos, context)),
            },
            Err(error) => Err(error.frame(pos, context)),
        }
    }

    /// A function, or a set that can be called.
    pub(crate) fn function(&self, value: Value<'h>, pos: Pos, context: &'static str) -> Result<Value<'h>> {
        match self.force_at(value, pos) {
            Ok(value) => match value.view() {
                View::Closure(_) | View::PrimOp(_) | View::Partial(_) => Ok(value),
                View::Attrs(attrs) if attrs.get(known::FUNCTOR).is_some() => Ok(value),
                _ => Err(self.expected(pos, "a function", value).frame(pos, context)),
            },
            Err(error) => Err(error.frame(pos, context)),
        }
    }

    /// A string, with whatever context it has.
    #[inline]
    pub(crate) fn string(&self, value: Value<'h>, pos: Pos, context: &'static str) -> Result<Str<'h>> {
        match self.force_at(value, pos) {
            Ok(value) => match value.as_str() {
                Some(text) => Ok(text),
                None => Err(self.expected(pos, "a string", value).frame(pos, context)),
            },
            Err(error) => Err(error.frame(pos, context)),
        }
    }

    /// A string that refers to no store path.
    #[inline]
    pub(crate) fn string_no_context(
        &self,
        value: Value<'h>,
        pos: Pos,
        context: &'static str,
    ) -> Result<Str<'h>> {
        let text = self.string(value, pos, context)?;
        match text.context() {
            None => Ok(text),
            Some(_) => Err(self.refers_to_store(text, Pos::NONE).frame(pos, context)),
        }
    }

    /// The error that a string refers to a store path where it must not.
    #[cold]
    pub(crate) fn refers_to_store(&self, text: Str<'h>, pos: Pos) -> Error {
        let element = text.context().and_then(|context| context.elements().first());
        let element = element.map_or_else(String::new, |element| element.display());
        let text = String::from_utf8_lossy(text.bytes());
        self.error(
            pos,
            format!("the string '{text}' is not allowed to refer to a store path (such as '{element}')"),
        )
    }

    /// An integer.
    #[inline]
    pub(crate) fn int(&self, value: Value<'h>, pos: Pos, context: &'static str) -> Result<i64> {
        match self.force_at(value, pos) {
            Ok(value) => match value.as_int() {
                Some(int) => Ok(int),
                None => Err(self.expected(pos, "an integer", value).frame(pos, context)),
            },
            Err(error) => Err(error.frame(pos, context)),
        }
    }

    /// A floating point number, made from an integer if need be.
    pub(crate) fn float(&self, value: Value<'h>, pos: Pos, context: &'static str) -> Result<f64> {
        let value = self
            .force_at(value, pos)
            .map_err(|error| error.frame(pos, context))?;
        match value.view() {
            View::Int(int) => Ok(int as f64),
            View::Float(float) => Ok(float),
            _ => Err(self.expected(pos, "a float", value).frame(pos, context)),
        }
    }

    /// `true` or `false`.
    #[inline]
    pub(crate) fn bool(&self, value: Value<'h>, pos: Pos, context: &'static str) -> Result<bool> {
        match self.force_at(value, pos) {
            Ok(value) => match value.as_bool() {
                Some(value) => Ok(value),
                None => Err(self.expected(pos, "a Boolean", value).frame(pos, context)),
            },
            Err(error) => Err(error.frame(pos, context)),
        }
    }

    /// An attribute that a builtin needs.
    pub(crate) fn attribute(
        &self,
        attrs: Attrs<'h>,
        name: Symbol,
        context: &'static str,
    ) -> Result<&'h Attr<'h>> {
        match attrs.get(name) {
            Some(attr) => Ok(attr),
            None => {
                let name = self.name(name);
                Err(self
                    .error(Pos::NONE, format!("attribute '{name}' missing"))
                    .frame(Pos::NONE, context))
            }
        }
    }

    /// Whether an evaluated value is a set with `type = "derivation"`.
    pub(crate) fn is_derivation(&self, value: Value<'h>) -> Result<bool> {
        let Some(attr) = value.as_attrs().and_then(|attrs| attrs.get(known::TYPE)) else {
            return Ok(false);
        };
        let kind = self.force_at(attr.value(), attr.pos)?;
        Ok(kind.as_str().is_some_and(|kind| kind.bytes() == b"derivation"))
    }
}
