//! JSON and TOML texts as values.

use std::vec::Drain;

use crate::error::Result;
use crate::evaluation::Evaluation;
use crate::heap::{AttrsBuilder, List, Value};
use crate::pure::builder::Builder;
use crate::pure::json_parse::{JsonErrorKind, parse};
use crate::pure::toml_parse;
use crate::syntax::position::Pos;
use crate::syntax::symbol::Symbol;

impl<'h> Evaluation<'h> {
    /// The value of a JSON text, as `builtins.fromJSON` makes it.
    ///
    /// # Errors
    /// It is not JSON, holds what Nix cannot hold, or nests too deep.
    pub(crate) fn parse_json(&self, text: &[u8], pos: Pos) -> Result<Value<'h>> {
        parse(text, &mut Values(self)).map_err(|error| match &error.kind {
            JsonErrorKind::IntegerRange(_) => self.error(pos, error.kind.to_string()),
            _ => self
                .error(pos, format!("failed to parse JSON {error}"))
                .frame(pos, "while decoding a JSON string"),
        })
    }
}

impl<'h> Evaluation<'h> {
    /// The value of a TOML text, as `builtins.fromTOML` makes it.
    ///
    /// # Errors
    /// It is not TOML, or holds what Nix cannot hold.
    pub(crate) fn parse_toml(&self, text: &[u8], pos: Pos) -> Result<Value<'h>> {
        toml_parse::parse(text, &mut Values(self))
            .map_err(|error| self.error(pos, format!("while parsing TOML: {error}")))
    }
}

/// Makes values of what a text has.
struct Values<'e, 'h>(&'e Evaluation<'h>);

impl<'h> Builder for Values<'_, 'h> {
    type Value = Value<'h>;
    type Key = Symbol;

    fn null(&mut self) -> Value<'h> {
        Value::NULL
    }

    fn boolean(&mut self, value: bool) -> Value<'h> {
        Value::bool(value)
    }

    fn integer(&mut self, value: i64) -> Value<'h> {
        Value::int(self.0.heap, value)
    }

    fn float(&mut self, value: f64) -> Value<'h> {
        Value::float(self.0.heap, value)
    }

    fn string(&mut self, text: &str) -> Value<'h> {
        self.0.text(text.as_bytes())
    }

    fn key(&mut self, text: &str) -> Symbol {
        self.0.symbol(text.as_bytes())
    }

    fn list(&mut self, items: Drain<'_, Value<'h>>) -> Value<'h> {
        match items.as_slice() {
            [] => self.0.empty_list,
            items => Value::list(List::from_slice(self.0.heap, items)),
        }
    }

    fn object(&mut self, members: Drain<'_, (Symbol, Value<'h>)>) -> Value<'h> {
        // Of equal names the last one counts; the builder keeps the first.
        let mut attrs = AttrsBuilder::with_capacity(members.len());
        for (name, value) in members.rev() {
            attrs.insert(name, value);
        }
        Value::attrs(attrs.finish(self.0.heap))
    }
}
