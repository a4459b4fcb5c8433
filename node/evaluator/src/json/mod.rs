//! Values as JSON, and back (`read`).

mod canonical;
mod read;

pub(crate) use canonical::canonical;

use crate::error::Result;
use crate::evaluation::{ContextBuilder, Evaluation};
use crate::heap::{Attr, Kind, Value, View};
use crate::pure::json_float;
use crate::syntax::position::Pos;

impl<'h> Evaluation<'h> {
    /// The JSON text of a value, as `builtins.toJSON` makes it. What its strings refer to goes to `context`; with
    /// `copy` paths are copied to the store.
    ///
    /// # Errors
    /// It holds a function, or a string that is not UTF-8, or evaluating it fails.
    pub(crate) fn to_json(
        &self,
        value: Value<'h>,
        pos: Pos,
        context: &mut ContextBuilder<'h>,
        copy: bool,
    ) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        self.write_json(value, pos, context, copy, &mut out)?;
        Ok(out)
    }

    fn write_json(
        &self,
        value: Value<'h>,
        pos: Pos,
        context: &mut ContextBuilder<'h>,
        copy: bool,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let value = self.force_at(value, pos)?;
        match value.view() {
            View::Null => out.extend_from_slice(b"null"),
            View::Bool(value) => out.extend_from_slice(if value { b"true" } else { b"false" }),
            View::Int(int) => out.extend_from_slice(int.to_string().as_bytes()),
            View::Float(float) => out.extend_from_slice(json_float::text(float).as_bytes()),
            View::Str(text) => {
                context.add(text.context());
                self.write_json_string(text.bytes(), pos, out)?;
            }
            View::Path(path) if copy => {
                let stored = self.copy_to_store(path.bytes(), pos)?;
                context.add(stored.context());
                self.write_json_string(stored.bytes(), pos, out)?;
            }
            View::Path(path) => self.write_json_string(path.bytes(), pos, out)?,
            View::List(list) => {
                out.push(b'[');
                self.deeper(pos, || {
                    for (index, item) in list.iter().enumerate() {
                        if index > 0 {
                            out.push(b',');
                        }
                        self.write_json(item, pos, context, copy, out).map_err(|error| {
                            error.frame(pos, format!("while evaluating list element at index {index}"))
                        })?;
                    }
                    Ok(())
                })?;
                out.push(b']');
            }
            View::Attrs(_) => {
                let peeled = self.peel(value, pos)?;
                if peeled.called && !matches!(peeled.value.kind(), Kind::Str | Kind::Path) {
                    let (found, shown) = (self.describe(peeled.value), self.show(peeled.value));
                    let verb = if peeled.value.as_attrs().is_some() {
                        "must"
                    } else {
                        "should"
                    };
                    let message = format!("`__toString` {verb} return a string, but got {found}: {shown}");
                    return Err(peeled.trace(self.error(peeled.pos, message)));
                }
                let Some(attrs) = peeled.value.as_attrs() else {
                    // As in Nix, a path that `__toString` returned is not copied.
                    let copy = copy && !peeled.called;
                    return self
                        .deeper(pos, || self.write_json(peeled.value, pos, context, copy, out))
                        .map_err(|error| peeled.trace(error));
                };
                let mut sorted: Vec<&Attr<'h>> = attrs.iter().collect();
                self.sort_by_name(&mut sorted, |attr| attr.name);
                out.push(b'{');
                self.deeper(pos, || {
                    for (index, attr) in sorted.iter().enumerate() {
                        if index > 0 {
                            out.push(b',');
                        }
                        let name = self.symbols.borrow().bytes(attr.name).to_vec();
                        self.write_json_string(&name, pos, out)?;
                        out.push(b':');
                        self.write_json(attr.value(), attr.pos, context, copy, out)
                            .map_err(|error| {
                                let name = self.name(attr.name);
                                error.frame(attr.pos, format!("while evaluating attribute '{name}'"))
                            })?;
                    }
                    Ok(())
                })?;
                out.push(b'}');
            }
            View::Closure(_) | View::PrimOp(_) | View::Partial(_) => {
                let found = self.describe(value);
                return Err(self.error(pos, format!("cannot convert {found} to JSON")));
            }
            View::Thunk => unreachable!("the value was forced"),
        }
        Ok(())
    }

    fn write_json_string(&self, text: &[u8], pos: Pos, out: &mut Vec<u8>) -> Result<()> {
        if let Err(error) = std::str::from_utf8(text) {
            let at = error.valid_up_to();
            let message = format!(
                "JSON serialization error: [json.exception.type_error.316] invalid UTF-8 byte at index {at}: 0x{:02X}",
                text[at]
            );
            return Err(self.error(pos, message));
        }
        push_string(out, text);
        Ok(())
    }
}

/// Appends a string with its quotes.
pub(crate) fn push_string(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    for byte in text {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x0c => out.extend_from_slice(b"\\f"),
            0..0x20 => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => out.push(*byte),
        }
    }
    out.push(b'"');
}
