//! `fetchMercurial`.
//!
//! Source of the behaviour: `fetchMercurial.cc` of Nix 2.34.

use super::PrimOp;
use super::fetch_tree::{NO_REVISION, SOURCE, checked_reference, is_revision};
use crate::error::Result;
use crate::evaluation::{Coerce, ContextBuilder, Evaluation};
use crate::fetch::{Fetch, Fetched, MercurialFetch};
use crate::heap::{AttrsBuilder, Value, View};
use crate::options::Reading;
use crate::syntax::position::Pos;

pub(super) const TABLE: &[PrimOp] = &[PrimOp::new("fetchMercurial", 1, fetch_mercurial).plain()];

/// How many digits of a changeset its short form has, as `hg` prints it.
const SHORT_REVISION: usize = 12;

fn fetch_mercurial<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let mut context = ContextBuilder::default();
    let wanted = wanted(evaluation, arguments[0], pos, &mut context)?;
    if !context.is_empty() {
        evaluation.realise_context(context, pos)?;
    }
    evaluation.check_url(&wanted.url, pos)?;
    if evaluation.options.reading == Reading::Pure && wanted.revision.is_none() {
        let message = "in pure evaluation mode, 'fetchMercurial' requires a Mercurial revision";
        return Err(evaluation.error(pos, message));
    }
    let fetched = evaluation.fetch(&Fetch::Mercurial(wanted), pos)?;
    Ok(described(evaluation, &fetched, pos))
}

fn wanted<'h>(
    evaluation: &Evaluation<'h>,
    argument: Value<'h>,
    pos: Pos,
    context: &mut ContextBuilder<'h>,
) -> Result<MercurialFetch> {
    let argument = evaluation.force_at(argument, pos)?;
    let mut wanted = MercurialFetch {
        url: String::new(),
        name: SOURCE.to_owned(),
        reference: None,
        revision: None,
        expected: None,
    };
    let View::Attrs(attrs) = argument.view() else {
        let trace = "while evaluating the first argument passed to builtins.fetchMercurial";
        let url = evaluation.coerce(argument, pos, context, Coerce::PLAIN, trace)?;
        wanted.url = complete(&String::from_utf8_lossy(url));
        return Ok(wanted);
    };
    for attr in attrs.iter() {
        let value = attr.value();
        let text = |trace| -> Result<String> {
            let text = evaluation.string_no_context(value, attr.pos, trace)?;
            Ok(String::from_utf8_lossy(text.bytes()).into_owned())
        };
        match evaluation.name(attr.name).as_str() {
            "url" => {
                let trace = "while evaluating the `url` attribute passed to builtins.fetchMercurial";
                let url = evaluation.coerce(value, attr.pos, context, Coerce::PLAIN, trace)?;
                wanted.url = complete(&String::from_utf8_lossy(url));
            }
            // A changeset or a name, unlike in `fetchGit`.
            "rev" => {
                let text = text("while evaluating the `rev` attribute passed to builtins.fetchMercurial")?;
                if text.len() == 40 && is_revision(&text) {
                    wanted.revision = Some(text);
                } else {
                    wanted.reference = checked_reference(evaluation, Some(text), attr.pos)?;
                }
            }
            "name" => {
                wanted.name =
                    text("while evaluating the `name` attribute passed to builtins.fetchMercurial")?;
            }
            other => {
                let message = format!("unsupported argument '{other}' to 'fetchMercurial'");
                return Err(evaluation.error(attr.pos, message));
            }
        }
    }
    match wanted.url.is_empty() {
        true => Err(evaluation.error(pos, "'url' argument required")),
        false => Ok(wanted),
    }
}

/// A text without a scheme is a path.
fn complete(url: &str) -> String {
    match url.is_empty() || url.contains("://") {
        true => url.to_owned(),
        false => format!("file://{url}"),
    }
}

/// The set that the builtin returns. A work tree with changes has a changeset of zeros and no count.
fn described<'h>(evaluation: &Evaluation<'h>, fetched: &Fetched, pos: Pos) -> Value<'h> {
    let mut attrs = AttrsBuilder::with_capacity(5);
    let mut put = |name: &str, value: Value<'h>| {
        attrs.insert_at(evaluation.symbol(name.as_bytes()), pos, value);
    };
    let text = |text: &str| evaluation.text(text.as_bytes());
    put("outPath", Value::str(evaluation.store_path_str(&fetched.path)));
    let mercurial = fetched.mercurial.as_ref();
    if let Some(mercurial) = mercurial {
        put("branch", text(&mercurial.branch));
    }
    let changeset = mercurial.and_then(|mercurial| mercurial.changeset.as_ref());
    let revision = changeset.map_or(NO_REVISION, |(revision, _)| revision.as_str());
    put("rev", text(revision));
    put("shortRev", text(&revision[..SHORT_REVISION.min(revision.len())]));
    if let Some((_, count)) = changeset {
        let count = i64::try_from(*count).unwrap_or(i64::MAX);
        put("revCount", Value::int(evaluation.heap, count));
    }
    Value::attrs(attrs.finish(evaluation.heap))
}
