//! Evaluates without a store: prints derivation paths, or values.
//!
//! ```text
//! cargo run --release -p tvix-node-evaluator --example instantiate -- FILE [-A ATTRIBUTE]… [options]
//! cargo run --release -p tvix-node-evaluator --example instantiate -- -E EXPRESSION --eval [--strict]
//! ```
//!
//! Options: `--eval`, `--strict`, `--json`, `--xml`, `--raw`, `--show-trace`, `-I ENTRY`, `--arg NAME EXPRESSION`,
//! `--argstr NAME TEXT`, `--stats`, `--cache DIRECTORY` (of compiled files), `--write DIRECTORY` (writes the `.drv` files there). `NIX_PATH` is read. Each line of the
//! output is an attribute and a derivation, separated by a tab.

use std::process::ExitCode;

use tvix_node_evaluator::{
    Action, Argument, DryRun, Event, ExpressionSource, Format, Options, SearchPathEntry, Target, evaluate,
};

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(3),
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<bool, String> {
    let base = std::env::current_dir().map_err(|error| error.to_string())?;
    let mut options = Options {
        base,
        ..Options::default()
    };
    let mut source = None;
    let mut attributes = Vec::new();
    let mut action = Action::Instantiate;
    let mut strict = false;
    let mut stats = false;
    let mut write = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || {
            arguments
                .next()
                .ok_or_else(|| format!("{argument} needs a value"))
        };
        match argument.as_str() {
            "-A" => attributes.push(value()?),
            "-E" => source = Some(ExpressionSource::Text(value()?)),
            "-I" => options.search_path.push(SearchPathEntry::parse(&value()?)),
            "--arg" => {
                let name = value()?;
                options.arguments.push((name, Argument::Expression(value()?)));
            }
            "--argstr" => {
                let name = value()?;
                options.arguments.push((name, Argument::Text(value()?)));
            }
            "--eval" => action = Action::Print(Format::Lazy),
            "--json" => action = Action::Print(Format::Json),
            "--xml" => {
                action = Action::Print(Format::Xml {
                    strict: false,
                    locations: true,
                })
            }
            "--raw" => action = Action::Print(Format::Raw),
            "--strict" => strict = true,
            "--show-trace" => options.show_trace = true,
            "--stats" => stats = true,
            "--cache" => options.code_cache = Some(value()?.into()),
            "--write" => write = Some(std::path::PathBuf::from(value()?)),
            name => match name.strip_prefix('<').and_then(|name| name.strip_suffix('>')) {
                Some(name) => source = Some(ExpressionSource::SearchPath(name.to_owned())),
                None if name.starts_with('-') => return Err(format!("unknown option '{name}'")),
                None => source = Some(ExpressionSource::File(name.into())),
            },
        }
    }
    if let Ok(path) = std::env::var("NIX_PATH") {
        options.search_path.extend(SearchPathEntry::parse_list(&path));
    }
    if strict {
        action = match action {
            Action::Print(Format::Lazy) => Action::Print(Format::Strict),
            Action::Print(Format::Xml { locations, .. }) => Action::Print(Format::Xml {
                strict: true,
                locations,
            }),
            action => action,
        };
    }
    let source = source.unwrap_or(ExpressionSource::File("default.nix".into()));
    if attributes.is_empty() {
        attributes.push(String::new());
    }
    let targets: Vec<Target> = attributes
        .into_iter()
        .map(|attribute| Target {
            source: source.clone(),
            attribute,
            action,
        })
        .collect();
    let host = DryRun::new(move |derivation| {
        if let Some(directory) = &write {
            let path = directory.join(derivation.drv_path.to_basename());
            if let Err(error) = std::fs::write(&path, derivation.aterm) {
                eprintln!("cannot write {}: {error}", path.display());
            }
        }
    });
    let summary = evaluate(&options, &targets, &host, &mut |event| match event {
        Event::Derivation(found) => {
            let output = match found.output_name.as_str() {
                "" | "out" => String::new(),
                output => format!("!{output}"),
            };
            println!("{}\t{}{output}", found.attribute, found.drv_path);
        }
        Event::Value { text, .. } => println!("{}", String::from_utf8_lossy(&text)),
        Event::Failed { attribute, error, .. } => {
            if !attribute.is_empty() {
                eprintln!("{attribute}:");
            }
            eprintln!("{}", error.text);
        }
        Event::Finished { .. } => {}
    })
    .map_err(|error| error.text)?;
    if stats {
        eprintln!(
            "{} derivations, {} failures, {} bytes of heap",
            summary.derivations, summary.failures, summary.heap_bytes
        );
    }
    Ok(summary.failures == 0)
}
