//! From what a user typed to what the evaluator is given.

use std::path::{Path, PathBuf};

use tvix_node_evaluator::{Action, ExpressionSource, Options, SearchPathEntry, Target};

use super::error::CommandError;
use super::options::{Evaluation, Expression};
use crate::home::Home;

/// Checks the files named and makes the evaluator's options and targets.
///
/// # Errors
/// [`CommandError::NoFile`], [`CommandError::Usage`].
pub fn prepare(
    home: &Home,
    evaluation: &Evaluation,
    action: Action,
) -> Result<(Options, Vec<Target>), CommandError> {
    let base = std::env::current_dir().map_err(|source| CommandError::Io {
        what: "the current folder cannot be read".to_owned(),
        source,
    })?;
    let mut options = Options {
        arguments: evaluation.arguments.clone(),
        reading: evaluation.reading,
        show_trace: evaluation.show_trace,
        code_cache: match evaluation.no_eval_cache {
            true => None,
            false => home.code_folder(),
        },
        search_path: evaluation
            .search_path
            .iter()
            .map(|entry| SearchPathEntry::parse(entry))
            .collect(),
        base: base.clone(),
        ..Options::default()
    };
    if let Some(depth) = evaluation.max_call_depth {
        options.max_call_depth = depth;
    }
    if let Some(system) = &evaluation.system {
        options.system.clone_from(system);
    }
    if let Some(path) = std::env::var_os("NIX_PATH") {
        let path = path
            .into_string()
            .map_err(|path| CommandError::Usage(format!("NIX_PATH is not UTF-8: {}", path.display())))?;
        options.search_path.extend(SearchPathEntry::parse_list(&path));
    }
    let source = match &evaluation.expression {
        Expression::Default => file(
            &base,
            "./default.nix",
            ": name a file with -f, or an expression with -E",
        )?,
        Expression::Text(text) => ExpressionSource::Text(text.clone()),
        Expression::File(name) => named(&base, name)?,
    };
    let whole = [String::new()];
    let attributes = if evaluation.attributes.is_empty() {
        &whole[..]
    } else {
        &evaluation.attributes
    };
    let targets = attributes
        .iter()
        .map(|attribute| Target {
            source: source.clone(),
            attribute: attribute.clone(),
            action,
        })
        .collect();
    Ok((options, targets))
}

fn named(base: &Path, name: &str) -> Result<ExpressionSource, CommandError> {
    if let Some(name) = name.strip_prefix('<').and_then(|name| name.strip_suffix('>')) {
        return Ok(ExpressionSource::SearchPath(name.to_owned()));
    }
    if ["http://", "https://", "file://", "channel:"]
        .iter()
        .any(|scheme| name.starts_with(scheme))
    {
        return Ok(ExpressionSource::Tarball(name.to_owned()));
    }
    file(base, name, " (given with -f)")
}

fn file(base: &Path, name: &str, hint: &'static str) -> Result<ExpressionSource, CommandError> {
    let path = base.join(name);
    let missing = |path: PathBuf| Err(CommandError::NoFile { path, hint });
    match std::fs::metadata(&path) {
        Ok(metadata) if metadata.is_dir() && !path.join("default.nix").exists() => {
            missing(Path::new(name).join("default.nix"))
        }
        Ok(_) => Ok(ExpressionSource::File(path)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => missing(PathBuf::from(name)),
        Err(source) => Err(CommandError::Io {
            what: format!("'{name}' cannot be read"),
            source,
        }),
    }
}
