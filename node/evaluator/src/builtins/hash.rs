//! Hashes.

use tvix_node_protocol::nix::hash::{HashAlgorithm, NixHash, hash_bytes};

use super::PrimOp;
use super::files::Follow;
use crate::error::Result;
use crate::evaluation::Evaluation;
use crate::heap::Value;
use crate::pure::hash_text::{self, Notation};
use crate::syntax::position::Pos;

pub(super) const TABLE: &[PrimOp] = &[
    PrimOp::new("hashString", 2, hash_string),
    PrimOp::new("hashFile", 2, hash_file),
    PrimOp::new("convertHash", 1, convert_hash),
];

fn algorithm<'h>(
    evaluation: &Evaluation<'h>,
    value: Value<'h>,
    pos: Pos,
    trace: &'static str,
) -> Result<HashAlgorithm> {
    let name = evaluation.string_no_context(value, pos, trace)?;
    hash_text::algorithm(name.bytes()).map_err(|error| evaluation.error(pos, error.to_string()))
}

fn base16(hash: &NixHash) -> String {
    hash.digest_as_bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn hash_string<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let trace = "while evaluating the first argument passed to builtins.hashString";
    let algorithm = algorithm(evaluation, arguments[0], pos, trace)?;
    let text = evaluation.string(
        arguments[1],
        pos,
        "while evaluating the second argument passed to builtins.hashString",
    )?;
    Ok(evaluation.text(base16(&hash_bytes(algorithm, text.bytes())).as_bytes()))
}

fn hash_file<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let trace = "while evaluating the first argument passed to builtins.hashFile";
    let algorithm = algorithm(evaluation, arguments[0], pos, trace)?;
    let path = evaluation.realise_path(arguments[1], pos, Follow::All)?;
    let contents = evaluation.read_file(&path, pos)?;
    Ok(evaluation.text(base16(&hash_bytes(algorithm, &contents)).as_bytes()))
}

fn convert_hash<'h>(evaluation: &Evaluation<'h>, arguments: &[Value<'h>], pos: Pos) -> Result<Value<'h>> {
    let attrs = evaluation.attrs(
        arguments[0],
        pos,
        "while evaluating the first argument passed to builtins.convertHash",
    )?;
    let text = evaluation.attribute(
        attrs,
        evaluation.symbol(b"hash"),
        "while locating the attribute 'hash'",
    )?;
    let text = evaluation.string_no_context(text.value(), pos, "while evaluating the attribute 'hash'")?;
    let wanted = match attrs.get(evaluation.symbol(b"hashAlgo")) {
        None => None,
        Some(attr) => Some(algorithm(
            evaluation,
            attr.value(),
            pos,
            "while evaluating the attribute 'hashAlgo'",
        )?),
    };
    let format = evaluation.attribute(
        attrs,
        evaluation.symbol(b"toHashFormat"),
        "while locating the attribute 'toHashFormat'",
    )?;
    let format = evaluation.string_no_context(
        format.value(),
        pos,
        "while evaluating the attribute 'toHashFormat'",
    )?;
    let hash =
        hash_text::parse(text.bytes(), wanted).map_err(|error| evaluation.error(pos, error.to_string()))?;
    if format.bytes() == b"base32" {
        evaluation.host.message(
            crate::host::MessageKind::Warning,
            "\"base32\" is a deprecated alias for hash format \"nix32\".",
        );
    }
    match Notation::from_name(format.bytes()) {
        Some(notation) => Ok(evaluation.text(hash.to_text(notation).as_bytes())),
        None => {
            let name = String::from_utf8_lossy(format.bytes());
            Err(evaluation.error(
                pos,
                format!("unknown hash format '{name}', expect 'base16', 'base32', 'base64', or 'sri'"),
            ))
        }
    }
}
