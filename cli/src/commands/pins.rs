//! `store pin`, `unpin` and `pins`.

use serde_json::{Value, json};
use tvix_node::background::connect_or_start;
use tvix_node::home::Home;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::control::{PinView, StoreAnswer, StoreQuestion};

use super::path::store_paths;
use super::{Failure, print, print_json};

/// Keeps paths until they are unpinned.
pub async fn pin(home: &Home, paths: &[String]) -> Result<u8, Failure> {
    let paths = store_paths(home, paths)?;
    ask(home, StoreQuestion::Pin { paths }).await?;
    Ok(0)
}

/// Keeps paths no longer.
pub async fn unpin(home: &Home, paths: &[String]) -> Result<u8, Failure> {
    let paths = store_paths(home, paths)?;
    ask(home, StoreQuestion::Unpin { paths }).await?;
    Ok(0)
}

/// Prints what is pinned, one path a line.
pub async fn list(home: &Home, as_json: bool) -> Result<u8, Failure> {
    let pins = ask(home, StoreQuestion::Pins).await?;
    if as_json {
        let view = |pin: &PinView| json!({ "path": pin.path.to_absolute_path(), "since": pin.since });
        print_json(&pins.iter().map(view).collect::<Vec<Value>>())?;
    } else {
        let lines: String = pins.iter().map(|pin| format!("{}\n", pin.path)).collect();
        print(lines.as_bytes())?;
    }
    Ok(0)
}

/// Whether a path itself is pinned.
pub async fn is_pinned(home: &Home, path: &StorePath) -> Result<bool, Failure> {
    let pins = ask(home, StoreQuestion::Pins).await?;
    Ok(pins.iter().any(|pin| pin.path == *path))
}

async fn ask(home: &Home, question: StoreQuestion) -> Result<Vec<PinView>, Failure> {
    match connect_or_start(home).await?.ask_store(&question).await? {
        StoreAnswer::Pins { pins } => Ok(pins),
        _ => Err(Failure::Unexpected),
    }
}
