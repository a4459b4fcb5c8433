//! Values as XML.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::Result;
use crate::evaluation::{ContextBuilder, Evaluation, formals_of, parameter_of, position_of};
use crate::heap::{Attr, Attrs, Value, View};
use crate::pure::float_format;
use crate::syntax::position::{Origin, Pos};
use crate::syntax::symbol::known;

impl<'h> Evaluation<'h> {
    /// The XML text of a value. Without `strict` nothing is evaluated for it; with `locations` attributes and
    /// functions say where they are defined. What its strings refer to goes to `context`.
    ///
    /// # Errors
    /// Evaluating it fails.
    pub(crate) fn to_xml(
        &self,
        value: Value<'h>,
        strict: bool,
        locations: bool,
        context: &mut ContextBuilder<'h>,
        pos: Pos,
    ) -> Result<Vec<u8>> {
        let mut writer = Writer {
            evaluation: self,
            strict,
            locations,
            context,
            out: b"<?xml version='1.0' encoding='utf-8'?>\n".to_vec(),
            depth: 0,
            seen: BTreeSet::new(),
        };
        writer.open("expr", &BTreeMap::new());
        writer.value(value, pos)?;
        writer.close("expr");
        Ok(writer.out)
    }
}

type XmlAttrs = BTreeMap<&'static str, Vec<u8>>;

struct Writer<'w, 'h> {
    evaluation: &'w Evaluation<'h>,
    strict: bool,
    locations: bool,
    context: &'w mut ContextBuilder<'h>,
    out: Vec<u8>,
    depth: usize,
    /// Derivations that were written before.
    seen: BTreeSet<Vec<u8>>,
}

impl<'h> Writer<'_, 'h> {
    fn tag(&mut self, name: &str, attrs: &XmlAttrs, end: &[u8]) {
        self.out.resize(self.out.len() + 2 * self.depth, b' ');
        self.out.push(b'<');
        self.out.extend_from_slice(name.as_bytes());
        for (key, value) in attrs {
            self.out.push(b' ');
            self.out.extend_from_slice(key.as_bytes());
            self.out.extend_from_slice(b"=\"");
            for byte in value {
                match byte {
                    b'"' => self.out.extend_from_slice(b"&quot;"),
                    b'<' => self.out.extend_from_slice(b"&lt;"),
                    b'>' => self.out.extend_from_slice(b"&gt;"),
                    b'&' => self.out.extend_from_slice(b"&amp;"),
                    // Else a parser would make a blank of it.
                    b'\n' => self.out.extend_from_slice(b"&#xA;"),
                    byte => self.out.push(*byte),
                }
            }
            self.out.push(b'"');
        }
        self.out.extend_from_slice(end);
    }

    fn empty(&mut self, name: &str, attrs: &XmlAttrs) {
        self.tag(name, attrs, b" />\n");
    }

    fn open(&mut self, name: &str, attrs: &XmlAttrs) {
        self.tag(name, attrs, b">\n");
        self.depth += 1;
    }

    fn close(&mut self, name: &str) {
        self.depth -= 1;
        self.out.resize(self.out.len() + 2 * self.depth, b' ');
        self.out.extend_from_slice(format!("</{name}>\n").as_bytes());
    }

    fn simple(&mut self, name: &str, value: Vec<u8>) {
        self.empty(name, &BTreeMap::from([("value", value)]));
    }

    fn place(&self, attrs: &mut XmlAttrs, pos: Pos) {
        let sources = self.evaluation.sources.borrow();
        if let Some(location) = sources.resolve(pos) {
            if let Origin::File(path) = location.file.origin() {
                attrs.insert("path", path.clone());
            }
            attrs.insert("line", location.line.to_string().into_bytes());
            attrs.insert("column", location.column.to_string().into_bytes());
        }
    }

    /// The value as far as it is evaluated, or forced if everything is.
    fn look(&self, value: Value<'h>, pos: Pos) -> Result<Option<Value<'h>>> {
        if self.strict {
            return self.evaluation.force_at(value, pos).map(Some);
        }
        Ok(match value.as_thunk() {
            None => Some(value),
            Some(thunk) => thunk.result(),
        })
    }

    fn value(&mut self, value: Value<'h>, pos: Pos) -> Result<()> {
        let Some(value) = self.look(value, pos)? else {
            self.empty("unevaluated", &BTreeMap::new());
            return Ok(());
        };
        match value.view() {
            View::Int(int) => self.simple("int", int.to_string().into_bytes()),
            View::Float(float) => self.simple("float", float_format::general(float).into_bytes()),
            View::Bool(value) => self.simple("bool", value.to_string().into_bytes()),
            View::Null => self.empty("null", &BTreeMap::new()),
            View::Str(text) => {
                self.context.add(text.context());
                self.simple("string", text.bytes().to_vec());
            }
            View::Path(path) => self.simple("path", path.bytes().to_vec()),
            View::List(list) => {
                self.open("list", &BTreeMap::new());
                self.evaluation.deeper(pos, || {
                    for item in list.iter() {
                        self.value(item, pos)?;
                    }
                    Ok(())
                })?;
                self.close("list");
            }
            View::Attrs(attrs) if self.evaluation.is_derivation(value)? => self.derivation(attrs)?,
            View::Attrs(attrs) => {
                self.open("attrs", &BTreeMap::new());
                self.attrs(attrs)?;
                self.close("attrs");
            }
            View::Closure(_) => self.function(value),
            View::Partial(partial) if partial.function().is_closure() => self.function(value),
            View::PrimOp(_) | View::Partial(_) => self.empty("unevaluated", &BTreeMap::new()),
            View::Thunk => unreachable!("the value was forced"),
        }
        Ok(())
    }

    fn attrs(&mut self, attrs: Attrs<'h>) -> Result<()> {
        let mut sorted: Vec<&Attr<'h>> = attrs.iter().collect();
        self.evaluation.sort_by_name(&mut sorted, |attr| attr.name);
        self.evaluation.deeper(Pos::NONE, || {
            for attr in sorted {
                let name = self.evaluation.symbols.borrow().bytes(attr.name).to_vec();
                let mut xml = BTreeMap::from([("name", name)]);
                if self.locations {
                    self.place(&mut xml, attr.pos);
                }
                self.open("attr", &xml);
                self.value(attr.value(), attr.pos)?;
                self.close("attr");
            }
            Ok(())
        })
    }

    fn derivation(&mut self, attrs: Attrs<'h>) -> Result<()> {
        let mut xml = BTreeMap::new();
        let mut drv_path = Vec::new();
        for (name, key) in [(known::DRV_PATH, "drvPath"), (known::OUT_PATH, "outPath")] {
            let Some(attr) = attrs.get(name) else { continue };
            if let Some(text) = self
                .look(attr.value(), attr.pos)?
                .and_then(|value| value.as_str())
            {
                xml.insert(key, text.bytes().to_vec());
                if name == known::DRV_PATH {
                    drv_path = text.bytes().to_vec();
                }
            }
        }
        self.open("derivation", &xml);
        if !drv_path.is_empty() && self.seen.insert(drv_path) {
            self.attrs(attrs)?;
        } else {
            self.empty("repeated", &BTreeMap::new());
        }
        self.close("derivation");
        Ok(())
    }

    fn function(&mut self, function: Value<'h>) {
        let mut xml = BTreeMap::new();
        if self.locations {
            self.place(&mut xml, position_of(function));
        }
        self.open("function", &xml);
        let name = parameter_of(function).map(|name| self.evaluation.name(name).into_bytes());
        match formals_of(function) {
            None => self.empty("varpat", &name.into_iter().map(|name| ("name", name)).collect()),
            Some(formals) => {
                let mut xml: XmlAttrs = name.into_iter().map(|name| ("name", name)).collect();
                if formals.ellipsis {
                    xml.insert("ellipsis", b"1".to_vec());
                }
                self.open("attrspat", &xml);
                let mut names: Vec<String> = formals
                    .formals
                    .iter()
                    .map(|formal| self.evaluation.name(formal.name))
                    .collect();
                names.sort_unstable();
                for name in names {
                    self.empty("attr", &BTreeMap::from([("name", name.into_bytes())]));
                }
                self.close("attrspat");
            }
        }
        self.close("function");
    }
}
