//! `derivationStrict`.

use std::collections::{BTreeMap, BTreeSet};

use tvix_node_protocol::nix::derivation::{DrvError, FieldsView, OutputKind};
use tvix_node_protocol::nix::hash::{CAHash, HashAlgorithm, NixHash};
use tvix_node_protocol::nix::store_path::{StorePath, absolute_path};

use super::output_hash::{digest_length, parse_hash};
use super::structured::Structured;
use crate::error::Result;
use crate::evaluation::{Coerce, ContextBuilder, Evaluation};
use crate::heap::{Attr, Attrs, AttrsBuilder, ContextElement, Str, Value, View};
use crate::host::{Instantiated, MessageKind};
use crate::json;
use crate::pure::store_name;
use crate::syntax::position::Pos;
use crate::syntax::symbol::known;

/// What the attributes of a derivation say, collected one by one.
struct Fields<'h> {
    name: String,
    builder: &'h [u8],
    system: &'h [u8],
    arguments: Vec<&'h [u8]>,
    /// Sorted by name, as attributes come in that order.
    environment: Vec<(&'h [u8], &'h [u8])>,
    context: ContextBuilder<'h>,
    structured: Option<Structured>,
    ignore_nulls: bool,
    outputs: BTreeSet<String>,
    hash: Option<Vec<u8>>,
    algorithm: Option<HashAlgorithm>,
    recursive: bool,
}

/// Makes a derivation of a set of attributes, hands it to the host, and gives back its `drvPath` and outputs.
///
/// # Errors
/// A required attribute is missing, one cannot be coerced, or the derivation is of a kind not supported.
pub(crate) fn derivation_strict<'h>(
    evaluation: &Evaluation<'h>,
    arguments: &[Value<'h>],
    pos: Pos,
) -> Result<Value<'h>> {
    let attrs = evaluation.attrs(
        arguments[0],
        pos,
        "while evaluating the argument passed to builtins.derivationStrict",
    )?;
    let name_attr = evaluation.attribute(
        attrs,
        known::NAME,
        "in the attrset passed as argument to builtins.derivationStrict",
    )?;
    let name = evaluation
        .string_no_context(
            name_attr.value(),
            Pos::NONE,
            "while evaluating the `name` attribute passed to builtins.derivationStrict",
        )
        .map_err(|error| error.frame(name_attr.pos, "while evaluating the derivation attribute 'name'"))?;
    let name = String::from_utf8_lossy(name.bytes()).into_owned();
    instantiate(evaluation, attrs, name.clone(), pos).map_err(|error| {
        let place = evaluation.location(name_attr.pos);
        let mut error = error.frame(
            Pos::NONE,
            format!("while evaluating derivation '{name}'\n  whose name attribute is located at {place}"),
        );
        if let Some(frame) = error.frames.last_mut() {
            frame.shown = crate::error::Shown::Always;
        }
        error
    })
}

fn instantiate<'h>(
    evaluation: &Evaluation<'h>,
    attrs: Attrs<'h>,
    name: String,
    pos: Pos,
) -> Result<Value<'h>> {
    let flag = |symbol, context| match attrs.get(symbol) {
        Some(attr) => evaluation.bool(attr.value(), pos, context),
        None => Ok(false),
    };
    let structured = flag(
        known::STRUCTURED_ATTRS,
        "while evaluating the `__structuredAttrs` attribute passed to builtins.derivationStrict",
    )?;
    let ignore_nulls = flag(
        known::IGNORE_NULLS,
        "while evaluating the `__ignoreNulls` attribute passed to builtins.derivationStrict",
    )?;
    check_name(evaluation, &name, pos)?;
    let mut fields = Fields {
        name,
        builder: b"",
        system: b"",
        arguments: Vec::new(),
        environment: Vec::with_capacity(attrs.len()),
        context: ContextBuilder::default(),
        structured: structured.then(Structured::default),
        ignore_nulls,
        outputs: BTreeSet::from(["out".to_owned()]),
        hash: None,
        algorithm: None,
        recursive: false,
    };
    let mut sorted: Vec<&Attr<'h>> = attrs.iter().collect();
    evaluation.sort_by_name(&mut sorted, |attr| attr.name);
    for attr in sorted {
        fields.attribute(evaluation, attr, pos).map_err(|error| {
            let key = evaluation.name(attr.name);
            let name = &fields.name;
            error.frame(
                attr.pos,
                format!("while evaluating attribute '{key}' of derivation '{name}'"),
            )
        })?;
    }
    fields.finish(evaluation, pos)
}

/// A derivation's name is the name of its store paths.
fn check_name(evaluation: &Evaluation<'_>, name: &str, pos: Pos) -> Result<()> {
    if name.ends_with(".drv") {
        return Err(evaluation.error(
            pos,
            "derivation names are allowed to end in '.drv' only if they produce a single derivation file",
        ));
    }
    store_name::check(name).map_err(|error| {
        evaluation.error(
            pos,
            format!("invalid derivation name: {error}. Please pass a different 'name'."),
        )
    })
}

impl<'h> Fields<'h> {
    fn attribute(&mut self, evaluation: &Evaluation<'h>, attr: &Attr<'h>, pos: Pos) -> Result<()> {
        if attr.name == known::IGNORE_NULLS {
            return Ok(());
        }
        let value = attr.value();
        if self.ignore_nulls && matches!(evaluation.force_at(value, pos)?.view(), View::Null) {
            return Ok(());
        }
        match attr.name {
            known::CONTENT_ADDRESSED => {
                if evaluation.bool(value, pos, "")? {
                    let message = format!(
                        "the derivation '{}' sets '__contentAddressed': floating content-addressed derivations \
                         are not supported yet",
                        self.name
                    );
                    return Err(evaluation.error(attr.pos, message));
                }
                return Ok(());
            }
            known::IMPURE => {
                if evaluation.bool(value, pos, "")? {
                    let message = format!(
                        "the derivation '{}' sets '__impure': impure derivations are not supported",
                        self.name
                    );
                    return Err(evaluation.error(attr.pos, message));
                }
                return Ok(());
            }
            known::ARGS => {
                for argument in evaluation.list(value, pos, "")?.iter() {
                    let argument = evaluation.coerce(
                        argument,
                        pos,
                        &mut self.context,
                        Coerce::ATTRIBUTE,
                        "while evaluating an element of the argument list",
                    )?;
                    self.arguments.push(argument);
                }
                return Ok(());
            }
            _ => {}
        }
        match self.structured.is_some() {
            true => self.structured_attribute(evaluation, attr, pos),
            false => self.plain_attribute(evaluation, attr, pos),
        }
    }

    fn plain_attribute(&mut self, evaluation: &Evaluation<'h>, attr: &Attr<'h>, pos: Pos) -> Result<()> {
        let mut text =
            evaluation.coerce(attr.value(), Pos::NONE, &mut self.context, Coerce::ATTRIBUTE, "")?;
        match attr.name {
            known::BUILDER => self.builder = text,
            known::SYSTEM => self.system = text,
            known::OUTPUT_HASH => self.hash = Some(text.to_vec()),
            known::OUTPUT_HASH_ALGO => self.algorithm = algorithm(text),
            known::OUTPUT_HASH_MODE => self.mode(evaluation, text, pos)?,
            known::OUTPUTS => {
                let names = text
                    .split(u8::is_ascii_whitespace)
                    .filter(|name| !name.is_empty());
                self.outputs(evaluation, names.map(<[u8]>::to_vec).collect(), pos)?;
            }
            known::JSON => {
                evaluation.host.message(
                    MessageKind::Warning,
                    &format!(
                        "in derivation '{}': setting structured attributes via '__json' is deprecated, and may be \
                         disallowed in future versions of Nix. Set '__structuredAttrs = true' instead.",
                        self.name
                    ),
                );
                // Nix reads them, and writes them down again.
                let read = match text.trim_ascii_start().starts_with(b"{") {
                    true => json::canonical(text).map_err(|error| error.to_string()),
                    false => Err("an object is expected".to_owned()),
                };
                let read = read.map_err(|error| {
                    evaluation.error(pos, format!("cannot process __json attribute: {error}"))
                })?;
                text = Str::new(evaluation.heap, &read).bytes();
            }
            _ => {}
        }
        if let Some(name) = evaluation.name_value(attr.name).as_str() {
            self.environment.push((name.bytes(), text));
        }
        Ok(())
    }

    fn structured_attribute(&mut self, evaluation: &Evaluation<'h>, attr: &Attr<'h>, pos: Pos) -> Result<()> {
        if attr.name == known::STRUCTURED_ATTRS {
            return Ok(());
        }
        let value = attr.value();
        let key = evaluation.symbols.borrow().bytes(attr.name).to_vec();
        let json = evaluation.to_json(value, pos, &mut self.context, true)?;
        if let Some(structured) = &mut self.structured {
            structured.insert(&key, json);
        }
        match attr.name {
            known::BUILDER => {
                let text = evaluation.string(value, pos, "")?;
                self.context.add(text.context());
                self.builder = text.bytes();
            }
            known::SYSTEM => {
                self.system = evaluation.string_no_context(value, attr.pos, "")?.bytes();
            }
            known::OUTPUT_HASH => {
                self.hash = Some(
                    evaluation
                        .string_no_context(value, attr.pos, "")?
                        .bytes()
                        .to_vec(),
                );
            }
            known::OUTPUT_HASH_ALGO => {
                self.algorithm = algorithm(evaluation.string_no_context(value, pos, "")?.bytes());
            }
            known::OUTPUT_HASH_MODE => {
                let text = evaluation.string_no_context(value, pos, "")?;
                self.mode(evaluation, text.bytes(), pos)?;
            }
            known::OUTPUTS => {
                let mut names = Vec::new();
                for name in evaluation.list(value, pos, "")?.iter() {
                    names.push(evaluation.string_no_context(name, pos, "")?.bytes().to_vec());
                }
                self.outputs(evaluation, names, pos)?;
            }
            _ => {}
        }
        if matches!(
            key.as_slice(),
            b"allowedReferences"
                | b"allowedRequisites"
                | b"disallowedReferences"
                | b"disallowedRequisites"
                | b"maxSize"
                | b"maxClosureSize"
        ) {
            let key = String::from_utf8_lossy(&key);
            evaluation.host.message(
                MessageKind::Warning,
                &format!(
                    "In a derivation named '{}', 'structuredAttrs' disables the effect of the derivation attribute \
                     '{key}'; use 'outputChecks.<output>.{key}' instead",
                    self.name
                ),
            );
        }
        Ok(())
    }

    fn mode(&mut self, evaluation: &Evaluation<'h>, mode: &[u8], pos: Pos) -> Result<()> {
        self.recursive = match mode {
            b"recursive" | b"nar" => true,
            b"flat" => false,
            other => {
                let other = String::from_utf8_lossy(other);
                let message = match other.as_ref() {
                    "text" | "git" => {
                        format!("the value '{other}' for 'outputHashMode' is not supported yet")
                    }
                    _ => format!("invalid value '{other}' for 'outputHashMode' attribute"),
                };
                return Err(evaluation.error(pos, message));
            }
        };
        Ok(())
    }

    fn outputs(&mut self, evaluation: &Evaluation<'h>, names: Vec<Vec<u8>>, pos: Pos) -> Result<()> {
        self.outputs.clear();
        for name in names {
            let name = String::from_utf8_lossy(&name).into_owned();
            if name == "drvPath" {
                return Err(evaluation.error(pos, format!("invalid derivation output name '{name}'")));
            }
            if !self.outputs.insert(name.clone()) {
                return Err(evaluation.error(pos, format!("duplicate derivation output '{name}'")));
            }
        }
        if self.outputs.is_empty() {
            return Err(evaluation.error(pos, "derivation cannot have an empty set of outputs"));
        }
        Ok(())
    }

    fn finish(self, evaluation: &Evaluation<'h>, pos: Pos) -> Result<Value<'h>> {
        if self.builder.is_empty() {
            return Err(evaluation.error(pos, "required attribute 'builder' missing"));
        }
        if self.system.is_empty() {
            return Err(evaluation.error(pos, "required attribute 'system' missing"));
        }
        let kind = match &self.hash {
            None => OutputKind::InputAddressed,
            Some(hash) => {
                if self.outputs.len() != 1 || !self.outputs.contains("out") {
                    return Err(evaluation.error(
                        pos,
                        "multiple outputs are not supported in fixed-output derivations",
                    ));
                }
                let hash = output_hash(evaluation, hash, self.algorithm, pos)?;
                OutputKind::Fixed(if self.recursive {
                    CAHash::Nar(hash)
                } else {
                    CAHash::Flat(hash)
                })
            }
        };
        let json;
        let mut environment = self.environment;
        if let Some(structured) = self.structured {
            json = structured.finish();
            environment.push((b"__json", &json));
        }
        // The paths of outputs are filled in when they are known.
        environment.retain(|(name, _)| !self.outputs.iter().any(|output| output.as_bytes() == *name));
        let outputs = self
            .outputs
            .into_iter()
            .map(|output| (output, kind.clone()))
            .collect();
        let (input_derivations, input_sources) = inputs(evaluation, self.context, pos)?;
        let fields = FieldsView {
            name: &self.name,
            outputs: &outputs,
            input_derivations,
            input_sources,
            system: self.system,
            builder: self.builder,
            arguments: self.arguments,
            environment,
        };
        let instantiated = fields
            .instantiate(|input| evaluation.derivations.modulo(input))
            .map_err(|error| evaluation.error(pos, describe(&error)))?;
        if evaluation.derivations.get(&instantiated.drv_path).is_none() {
            let references = fields.references();
            // Remembered only once it was taken: a failure must fail again when it is asked for again.
            evaluation
                .host
                .instantiate(&Instantiated {
                    drv_path: &instantiated.drv_path,
                    aterm: &instantiated.aterm,
                    references: &references,
                })
                .map_err(|error| evaluation.host_error(pos, &error))?;
            evaluation.remember(
                &instantiated.drv_path,
                instantiated.modulo,
                &instantiated.outputs,
                &references,
            );
        }
        Ok(result(evaluation, &instantiated.drv_path, &instantiated.outputs))
    }
}

/// The set that `derivationStrict` returns.
fn result<'h>(
    evaluation: &Evaluation<'h>,
    drv_path: &StorePath,
    outputs: &BTreeMap<String, StorePath>,
) -> Value<'h> {
    let heap = evaluation.heap;
    let kept = evaluation.intern_path(drv_path);
    let mut attrs = AttrsBuilder::with_capacity(outputs.len() + 1);
    let string = |path: &StorePath, element| {
        let context = evaluation.context_of(element);
        Value::str(Str::with_context(heap, &absolute_path(path), context))
    };
    attrs.insert(known::DRV_PATH, string(drv_path, ContextElement::Deep(kept)));
    for (output, path) in outputs {
        let symbol = evaluation.symbol(output.as_bytes());
        let output = evaluation.intern_output(output);
        attrs.insert(symbol, string(path, ContextElement::Output(kept, output)));
    }
    Value::attrs(attrs.finish(heap))
}

/// Outputs of derivations, and store paths as they are; sorted, each once.
type Inputs<'h> = (Vec<(&'h StorePath, &'h str)>, Vec<&'h StorePath>);

/// Turns what the attributes refer to into inputs. All input derivations are known then.
fn inputs<'h>(evaluation: &Evaluation<'h>, context: ContextBuilder<'h>, pos: Pos) -> Result<Inputs<'h>> {
    let (mut derivations, mut sources) = (Vec::new(), Vec::new());
    let mut deep = false;
    for element in context.elements() {
        match *element {
            ContextElement::Opaque(path) => sources.push(path),
            ContextElement::Output(path, output) => {
                evaluation.derivation(path, pos)?;
                derivations.push((path, output));
            }
            ContextElement::Deep(path) => {
                deep = true;
                for path in evaluation.derivation_closure(path, pos)? {
                    let path = evaluation.intern_path(&path);
                    if path.name().ends_with(".drv") {
                        let known = evaluation.derivation(path, pos)?;
                        derivations.extend(known.outputs.iter().map(|(output, _)| (path, *output)));
                    }
                    sources.push(path);
                }
            }
        }
    }
    if deep {
        derivations.sort_unstable();
        derivations.dedup();
        sources.sort_unstable();
        sources.dedup();
    }
    debug_assert!(derivations.is_sorted() && sources.is_sorted());
    Ok((derivations, sources))
}

/// A hash algorithm by name; an unknown name counts as none, as in Nix.
fn algorithm(name: &[u8]) -> Option<HashAlgorithm> {
    crate::pure::hash_text::algorithm(name).ok()
}

/// The hash of a fixed output. An empty one stands for one that is not known yet: zeros.
fn output_hash(
    evaluation: &Evaluation<'_>,
    text: &[u8],
    algorithm: Option<HashAlgorithm>,
    pos: Pos,
) -> Result<NixHash> {
    let text = String::from_utf8_lossy(text);
    if text.is_empty() {
        let Some(algorithm) = algorithm else {
            return Err(evaluation.error(pos, "empty hash requires explicit hash algorithm"));
        };
        let zero = [0; 64];
        let length = digest_length(algorithm);
        let hash = NixHash::from_algorithm_and_digest(algorithm, &zero[..length])
            .map_err(|error| evaluation.error(pos, error.to_string()))?;
        evaluation.host.message(
            MessageKind::Warning,
            &format!("found empty hash, assuming '{}'", hash.to_sri_string()),
        );
        return Ok(hash);
    }
    parse_hash(&text, algorithm).map_err(|error| evaluation.error(pos, error))
}

fn describe(error: &DrvError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
