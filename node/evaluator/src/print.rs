//! Values as text, in Nix's own form.
//!
//! Two forms: the whole value as `nix-instantiate --eval` prints it ([`Evaluation::print`]), and a short one for
//! errors and messages ([`Evaluation::show`]), which never evaluates anything.

use rustc_hash::FxHashSet;

use crate::error::Result;
use crate::evaluation::Evaluation;
use crate::evaluation::position_of;
use crate::heap::{Attr, Value, View};
use crate::pure::{escape, float_format};
use crate::syntax::position::Pos;

pub(crate) use crate::pure::float_format::fixed as fixed_float;

/// What errors show of a value at most, as in Nix.
const SHOWN_DEPTH: usize = 10;
const SHOWN_ITEMS: usize = 10;
const SHOWN_BYTES: usize = 1024;

impl<'h> Evaluation<'h> {
    /// Prints a value; what is not evaluated is printed as `<CODE>`. A set or list that was printed before is
    /// printed as `«repeated»`.
    ///
    /// # Errors
    /// It nests too deep.
    pub(crate) fn print(&self, value: Value<'h>, out: &mut Vec<u8>) -> Result<()> {
        self.print_value(value, out, &mut FxHashSet::default())
    }

    fn print_value(&self, value: Value<'h>, out: &mut Vec<u8>, seen: &mut FxHashSet<usize>) -> Result<()> {
        let evaluated = match value.as_thunk() {
            None => value,
            Some(thunk) => match thunk.result() {
                Some(result) => result,
                None => {
                    out.extend_from_slice(b"<CODE>");
                    return Ok(());
                }
            },
        };
        match evaluated.view() {
            View::Attrs(attrs) => {
                if !attrs.is_empty() && !seen.insert(evaluated.address()) {
                    out.extend_from_slice("«repeated»".as_bytes());
                    return Ok(());
                }
                let mut sorted: Vec<&Attr<'h>> = attrs.iter().collect();
                self.sort_by_name(&mut sorted, |attr| attr.name);
                out.extend_from_slice(b"{ ");
                self.deeper(Pos::NONE, || {
                    for attr in sorted {
                        escape::push_name(out, self.symbols.borrow().bytes(attr.name));
                        out.extend_from_slice(b" = ");
                        self.print_value(attr.value(), out, seen)?;
                        out.extend_from_slice(b"; ");
                    }
                    Ok(())
                })?;
                out.push(b'}');
            }
            View::List(list) => {
                // A list is repeated where the same element or variable is, not where an equal list is.
                if !list.is_empty() && !seen.insert(value.address()) {
                    out.extend_from_slice("«repeated»".as_bytes());
                    return Ok(());
                }
                out.extend_from_slice(b"[ ");
                self.deeper(Pos::NONE, || {
                    for item in list.iter() {
                        self.print_value(item, out, seen)?;
                        out.push(b' ');
                    }
                    Ok(())
                })?;
                out.push(b']');
            }
            View::Closure(_) => out.extend_from_slice(b"<LAMBDA>"),
            View::PrimOp(_) => out.extend_from_slice(b"<PRIMOP>"),
            View::Partial(partial) if partial.function().is_closure() => out.extend_from_slice(b"<LAMBDA>"),
            View::Partial(_) => out.extend_from_slice(b"<PRIMOP-APP>"),
            View::Str(text) => escape::push_string(out, text.bytes()),
            view => print_simple(view, out),
        }
        Ok(())
    }

    /// The value as errors show it: shortened, nothing evaluated for it.
    pub(crate) fn show(&self, value: Value<'h>) -> String {
        let mut show = Show {
            evaluation: self,
            out: Vec::new(),
            attrs: 0,
            items: 0,
            seen: FxHashSet::default(),
            most: Most {
                depth: SHOWN_DEPTH,
                items: SHOWN_ITEMS,
                bytes: SHOWN_BYTES,
            },
        };
        show.value(value, 0);
        String::from_utf8_lossy(&show.out).into_owned()
    }

    /// As [`Self::show`], without shortening (`builtins.trace`).
    pub(crate) fn show_whole(&self, value: Value<'h>) -> String {
        let mut show = Show {
            evaluation: self,
            out: Vec::new(),
            attrs: 0,
            items: 0,
            seen: FxHashSet::default(),
            most: Most {
                depth: usize::MAX,
                items: usize::MAX,
                bytes: usize::MAX,
            },
        };
        show.value(value, 0);
        String::from_utf8_lossy(&show.out).into_owned()
    }
}

/// Numbers, constants and paths.
fn print_simple(view: View<'_>, out: &mut Vec<u8>) {
    match view {
        View::Int(int) => out.extend_from_slice(int.to_string().as_bytes()),
        View::Float(float) => out.extend_from_slice(float_format::general(float).as_bytes()),
        View::Bool(value) => out.extend_from_slice(if value { b"true" } else { b"false" }),
        View::Null => out.extend_from_slice(b"null"),
        View::Path(path) => out.extend_from_slice(path.bytes()),
        _ => unreachable!("printed by the caller"),
    }
}

struct Show<'e, 'h> {
    evaluation: &'e Evaluation<'h>,
    out: Vec<u8>,
    /// Attributes and list items printed so far, of all sets and lists.
    attrs: usize,
    items: usize,
    seen: FxHashSet<usize>,
    most: Most,
}

/// How much is shown at most.
struct Most {
    depth: usize,
    items: usize,
    bytes: usize,
}

impl<'h> Show<'_, 'h> {
    fn text(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    fn elided(&mut self, count: usize, one: &str, many: &str) {
        let text = format!("«{count} {} elided»", if count == 1 { one } else { many });
        self.text(&text);
    }

    fn value(&mut self, value: Value<'h>, depth: usize) {
        let evaluated = match value.as_thunk() {
            None => value,
            Some(thunk) => match (thunk.result(), thunk.state()) {
                (Some(result), _) => result,
                (None, crate::heap::State::Forced(_)) => return self.text("«potential infinite recursion»"),
                (None, _) => return self.text("«thunk»"),
            },
        };
        match evaluated.view() {
            View::Attrs(attrs) => {
                if !self.seen.insert(evaluated.address()) {
                    return self.text("«repeated»");
                }
                if depth >= self.most.depth {
                    return self.text("{ ... }");
                }
                let mut sorted: Vec<&Attr<'h>> = attrs.iter().collect();
                let symbols = self.evaluation.symbols.borrow();
                let important = |attr: &Attr<'h>| matches!(symbols.bytes(attr.name), b"type" | b"_type");
                sorted.sort_by_key(|attr| (!important(attr), symbols.bytes(attr.name)));
                drop(symbols);
                self.text("{");
                for (index, attr) in sorted.iter().enumerate() {
                    self.text(" ");
                    if self.attrs >= self.most.items {
                        self.elided(sorted.len() - index, "attribute", "attributes");
                        break;
                    }
                    escape::push_name(&mut self.out, self.evaluation.symbols.borrow().bytes(attr.name));
                    self.text(" = ");
                    self.value(attr.value(), depth + 1);
                    self.text(";");
                    self.attrs += 1;
                }
                self.text(" }");
            }
            View::List(list) => {
                if !list.is_empty() && !self.seen.insert(evaluated.address()) {
                    return self.text("«repeated»");
                }
                if depth >= self.most.depth {
                    return self.text("[ ... ]");
                }
                self.text("[");
                for (index, item) in list.iter().enumerate() {
                    self.text(" ");
                    if self.items >= self.most.items {
                        self.elided(list.len() - index, "item", "items");
                        break;
                    }
                    self.value(item, depth + 1);
                    self.items += 1;
                }
                self.text(" ]");
            }
            View::Str(text) => match text.bytes().get(..self.most.bytes) {
                Some(start) if start.len() < text.bytes().len() => {
                    escape::push_string(&mut self.out, start);
                    self.text(" ");
                    self.elided(text.bytes().len() - self.most.bytes, "byte", "bytes");
                }
                _ => escape::push_string(&mut self.out, text.bytes()),
            },
            View::Closure(closure) => {
                let name = closure.lambda().name;
                self.lambda(name, evaluated);
            }
            View::Partial(partial) => match partial.function().view() {
                View::PrimOp(primop) => {
                    let text = format!("«partially applied primop {}»", primop.name);
                    self.text(&text);
                }
                View::Closure(closure) => self.lambda(closure.lambda().name, evaluated),
                _ => unreachable!("only closures and builtins are partially applied"),
            },
            View::PrimOp(primop) => {
                let text = format!("«primop {}»", primop.name);
                self.text(&text);
            }
            view => print_simple(view, &mut self.out),
        }
    }

    fn lambda(&mut self, name: Option<crate::syntax::symbol::Symbol>, function: Value<'h>) {
        let name = name.map_or_else(String::new, |name| format!(" {}", self.evaluation.name(name)));
        let place = self.evaluation.location(position_of(function));
        let text = format!("«lambda{name} @ {place}»");
        self.text(&text);
    }
}
