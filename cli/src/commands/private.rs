//! `private`.

use tvix_node::background::connect_or_start;
use tvix_node::home::Home;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::control::{OwnerAnswer, OwnerQuestion};
use tvix_node_protocol::trust::PathPattern;

use super::path::store_path;
use super::{Failure, print};
use crate::arguments::{PrivateCommand, UsageError};

/// Lists and changes what is private.
pub async fn private(home: &Home, command: Option<PrivateCommand>) -> Result<u8, Failure> {
    let (hide, what) = match command {
        None | Some(PrivateCommand::List) => {
            let answer = connect_or_start(home)
                .await?
                .ask_owner(&OwnerQuestion::Private)
                .await?;
            let OwnerAnswer::Private { patterns, paths } = answer else {
                return Err(Failure::Unexpected);
            };
            print(list(&patterns, &paths).as_bytes())?;
            return Ok(0);
        }
        Some(PrivateCommand::Add { what }) => (true, what),
        Some(PrivateCommand::Remove { what }) => (false, what),
    };
    let (mut paths, mut patterns) = (Vec::new(), Vec::new());
    for text in &what {
        match store_path(home, text) {
            Ok(path) => paths.push(path),
            Err(_) => {
                let pattern = PathPattern::new(text).map_err(|error| UsageError::new(error.to_string()))?;
                patterns.push(pattern);
            }
        }
    }
    let question = OwnerQuestion::SetPrivate {
        private: hide,
        paths,
        patterns,
    };
    connect_or_start(home).await?.ask_owner(&question).await?;
    Ok(0)
}

fn list(patterns: &[PathPattern], paths: &[StorePath]) -> String {
    let patterns = patterns.iter().map(|pattern| format!("{pattern}\n"));
    let paths = paths.iter().map(|path| format!("{path}\n"));
    patterns.chain(paths).collect()
}
