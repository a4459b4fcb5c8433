//! Which expression, and with which arguments.

use clap::{ArgAction, ArgMatches, Args};
use tvix_node::command::{Argument, Evaluation, Expression, Reading};

use super::flake::flake_advice;
use super::parse::UsageError;

/// Which expression is evaluated, and how.
#[derive(Debug, Args)]
#[command(next_help_heading = "Evaluation")]
pub struct EvaluationArguments {
    /// The file or folder that holds the expression; the same as -f FILE
    #[arg(value_name = "FILE")]
    position: Option<String>,
    /// The file or folder that holds the expression, or '<name>' to look it up with -I and NIX_PATH
    /// [default: ./default.nix]
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    file: Option<String>,
    /// The expression itself
    #[arg(
        short = 'E',
        long = "expr",
        value_name = "EXPRESSION",
        allow_hyphen_values = true,
        conflicts_with = "file"
    )]
    expression: Option<String>,
    /// An attribute of the expression; may be given several times [default: the whole expression]
    #[arg(short = 'A', long = "attr", value_name = "ATTRIBUTE")]
    attributes: Vec<String>,
    /// A place to look up <...>: 'FOLDER', or 'NAME=PATH'; goes before NIX_PATH
    #[arg(short = 'I', long = "include", value_name = "PATH")]
    search_path: Vec<String>,
    /// Give the functions of the expression an argument: the value of an expression
    #[arg(long = "arg", value_names = ["NAME", "EXPRESSION"], num_args = 2, action = ArgAction::Append, allow_hyphen_values = true)]
    arg: Vec<String>,
    /// Give the functions of the expression an argument: a string
    #[arg(long = "argstr", value_names = ["NAME", "STRING"], num_args = 2, action = ArgAction::Append, allow_hyphen_values = true)]
    argstr: Vec<String>,
    /// Value of builtins.currentSystem [default: this machine's]
    #[arg(long, value_name = "SYSTEM")]
    eval_system: Option<String>,
    /// See the whole machine: files, environment, clock; the default, as with -f in Nix
    #[arg(long, conflicts_with_all = ["restrict_eval", "pure_eval"])]
    impure: bool,
    /// Read nothing but what -I and NIX_PATH name and the store, and fetch nothing
    #[arg(long, conflicts_with = "pure_eval")]
    restrict_eval: bool,
    /// Read nothing but the store, see neither environment nor clock, and fetch only what is pinned by its hash
    #[arg(long)]
    pure_eval: bool,
    /// How deep calls of functions may nest before that counts as endless [default: 10000, as in Nix]
    #[arg(long, value_name = "NUMBER")]
    max_call_depth: Option<u32>,
    /// Show where an error comes from, call by call
    #[arg(long)]
    show_trace: bool,
    /// Parse and compile every file anew, and keep none for the next evaluation
    #[arg(long)]
    no_eval_cache: bool,
}

impl EvaluationArguments {
    /// What is to be evaluated. `matches` are those of the command, because the last `--arg` or
    /// `--argstr` of a name counts.
    ///
    /// # Errors
    /// Several expressions, flake references, and what else cannot be meant.
    pub fn to_evaluation(&self, matches: &ArgMatches) -> Result<Evaluation, UsageError> {
        Ok(Evaluation {
            expression: self.expression()?,
            attributes: self.attributes.clone(),
            search_path: self.search_path.clone(),
            arguments: self.arguments(matches),
            system: self.eval_system.clone(),
            reading: self.reading(),
            max_call_depth: self.max_call_depth,
            show_trace: self.show_trace,
            no_eval_cache: self.no_eval_cache,
        })
    }

    const fn reading(&self) -> Reading {
        match (self.pure_eval, self.restrict_eval) {
            (true, _) => Reading::Pure,
            (false, true) => Reading::Restricted,
            (false, false) => Reading::Impure,
        }
    }

    fn expression(&self) -> Result<Expression, UsageError> {
        for file in self.position.iter().chain(&self.file) {
            if let Some(advice) = flake_advice(file, &self.attributes) {
                return Err(UsageError::new(advice));
            }
            if file == "-" {
                return Err(UsageError::new(
                    "'-' (an expression on standard input) is not supported: use -E \"$(cat)\"",
                ));
            }
            if file.starts_with("/nix/store/") && file.ends_with(".drv") {
                return Err(UsageError::new(format!(
                    "'{file}' is a derivation, and only expressions are built: name the expression it came from, with \
                     -f FILE -A ATTRIBUTE"
                )));
            }
        }
        match (&self.position, &self.file, &self.expression) {
            (None, None, None) => Ok(Expression::Default),
            (None, Some(file), _) | (Some(file), None, None) => Ok(Expression::File(file.clone())),
            (None, None, Some(text)) => Ok(Expression::Text(text.clone())),
            (Some(file), _, _) => Err(UsageError::new(second_file(file))),
        }
    }

    /// Arguments by name; of several with one name the last counts, as in Nix.
    fn arguments(&self, matches: &ArgMatches) -> Vec<(String, Argument)> {
        let mut given: Vec<(usize, String, Argument)> = Vec::new();
        type Make = fn(String) -> Argument;
        let kinds: [(&str, &[String], Make); 2] = [
            ("arg", &self.arg, Argument::Expression),
            ("argstr", &self.argstr, Argument::Text),
        ];
        for (id, values, make) in kinds {
            let places = matches.indices_of(id).into_iter().flatten();
            for (pair, place) in values.chunks_exact(2).zip(places.step_by(2)) {
                given.push((place, pair[0].clone(), make(pair[1].clone())));
            }
        }
        given.sort_by_key(|(place, _, _)| *place);
        let mut arguments: Vec<(String, Argument)> = Vec::new();
        for (_, name, argument) in given {
            arguments.retain(|(other, _)| *other != name);
            arguments.push((name, argument));
        }
        arguments
    }
}

/// What is said where something to evaluate is named besides another.
pub fn second_file(file: &str) -> String {
    format!("'{file}' would be a second expression to evaluate: name one, and its attributes with -A")
}
