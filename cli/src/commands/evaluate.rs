//! `instantiate` and `eval`.

use std::collections::BTreeMap;

use tvix_node::command::{Building, Evaluation, Format, Notice, run_eval, run_instantiate};
use tvix_node::home::Home;

use super::{Failure, print, with_progress};
use crate::arguments::{OutputArguments, ValueArguments};

/// Prints the derivations of the targets, one a line.
pub async fn instantiate(
    home: &Home,
    evaluation: &Evaluation,
    building: &Building,
    output: &OutputArguments,
) -> Result<u8, Failure> {
    let paths = with_progress(output, false, async |notice| {
        run_instantiate(home, evaluation, building, notice).await
    })
    .await?;
    let text: String = paths.into_iter().map(|path| path + "\n").collect();
    print(text.as_bytes())?;
    Ok(0)
}

/// Prints the values of the targets, in their order, those of targets that failed left out.
pub async fn eval(
    home: &Home,
    evaluation: &Evaluation,
    format: &ValueArguments,
    output: &OutputArguments,
) -> Result<u8, Failure> {
    let mut values: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
    let result = with_progress(output, false, async |notice| {
        let mut collect = |told| match told {
            Notice::Value { target, text } => {
                values.insert(target, text);
            }
            told => notice(told),
        };
        run_eval(home, evaluation, format.format(), &mut collect).await
    })
    .await;
    let mut bytes = Vec::new();
    for value in values.into_values() {
        bytes.extend(value);
        if !format.raw {
            bytes.push(b'\n');
        }
    }
    print(&bytes)?;
    result.map(|()| 0)
}

impl ValueArguments {
    fn format(&self) -> Format {
        if self.json {
            Format::Json
        } else if self.xml {
            Format::Xml {
                strict: self.strict,
                locations: true,
            }
        } else if self.raw {
            Format::Raw
        } else if self.strict {
            Format::Strict
        } else {
            Format::Lazy
        }
    }
}
