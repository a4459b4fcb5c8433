//! `store info`, `log` and `why`.

use std::io::IsTerminal as _;

use serde_json::{Value, json};
use tvix_node::background::connect_or_start;
use tvix_node::home::Home;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::control::{OwnerAnswer, OwnerQuestion, Provenance};
use tvix_node_protocol::path_info::{Origin, PathInfo};

use super::path::store_path;
use super::pins::is_pinned;
use super::{Failure, print, print_json};
use crate::progress::clean;

/// Prints what is known of a path.
pub async fn info(home: &Home, path: &str, as_json: bool) -> Result<u8, Failure> {
    let path = store_path(home, path)?;
    let client = connect_or_start(home).await?;
    let known = client.path_infos(vec![path.clone()]).await?;
    let Some(info) = known.first() else {
        return Err(Failure::Absent(format!(
            "{path} is not in the store of '{}'",
            home.root().display()
        )));
    };
    let pinned = is_pinned(home, &path).await?;
    let private = client.ask_owner(&OwnerQuestion::IsPrivate { path }).await?;
    let private = matches!(private, OwnerAnswer::IsPrivate { private: true });
    if as_json {
        let mut value = info_json(info);
        value["private"] = private.into();
        value["pinned"] = pinned.into();
        print_json(&value)?;
    } else {
        let mut text = info_text(info);
        if private {
            text += "private      no member learns of it or gets it\n";
        }
        if pinned {
            text += "pinned       it and what it refers to stay until 'tvix-node store unpin'\n";
        }
        print(text.as_bytes())?;
    }
    Ok(0)
}

/// Prints the log of the build that made a path: byte by byte, but to a terminal nothing that could command it.
pub async fn log(home: &Home, path: &str) -> Result<u8, Failure> {
    let path = store_path(home, path)?;
    let client = connect_or_start(home).await?;
    let mut log = client.log(path).await?;
    let mut lines = std::io::stdout().is_terminal().then(Vec::new);
    while let Some(chunk) = log.chunk().await? {
        match &mut lines {
            None => print(&chunk)?,
            Some(begun) => {
                begun.extend_from_slice(&chunk);
                let whole = begun
                    .iter()
                    .rposition(|byte| *byte == b'\n')
                    .map_or(0, |end| end + 1);
                print(harmless(&begun[..whole]).as_bytes())?;
                begun.drain(..whole);
            }
        }
    }
    print(harmless(&lines.unwrap_or_default()).as_bytes())?;
    Ok(0)
}

/// Lines as a terminal may show them.
fn harmless(log: &[u8]) -> String {
    let text = String::from_utf8_lossy(log);
    let lines = text
        .split_inclusive('\n')
        .map(|line| match line.strip_suffix('\n') {
            Some(line) => format!("{}\n", clean(line)),
            None => clean(line),
        });
    lines.collect()
}

/// Prints where a path came from and why.
pub async fn why(home: &Home, path: &str, as_json: bool) -> Result<u8, Failure> {
    let path = store_path(home, path)?;
    let client = connect_or_start(home).await?;
    let pinned = is_pinned(home, &path).await?;
    let provenance = client.why(path).await?;
    if as_json {
        let mut value = json!({
            "pinned": pinned,
            "summary": provenance.summary,
            "reason": provenance.reason,
            "node": provenance.node,
            "started": provenance.started,
            "finished": provenance.finished,
        });
        value["info"] = info_json(&provenance.info);
        print_json(&value)?;
    } else {
        let mut text = why_text(&provenance);
        if pinned {
            text += "it is pinned: it and what it refers to stay until 'tvix-node store unpin'\n";
        }
        print(text.as_bytes())?;
    }
    Ok(0)
}

/// What is known of a path, with store paths and hashes as Nix writes them.
fn info_json(info: &PathInfo) -> Value {
    let references: Vec<String> = info.references.iter().map(StorePath::to_absolute_path).collect();
    json!({
        "path": info.path.to_absolute_path(),
        "treeDigest": info.tree.to_string(),
        "narHash": info.nar_hash.to_nix(),
        "narSize": info.nar_size,
        "references": references,
        "deriver": info.deriver.as_ref().map(StorePath::to_absolute_path),
        "ca": info.ca,
        "origin": info.origin,
        "registered": info.registered,
        "signatures": info.signatures,
    })
}

fn info_text(info: &PathInfo) -> String {
    let mut text = format!(
        "path         {}\ntree digest  {}\nNAR hash     {}\nNAR size     {}\n",
        info.path,
        info.tree,
        info.nar_hash.to_nix(),
        info.nar_size,
    );
    for (index, reference) in info.references.iter().enumerate() {
        let label = if index == 0 { "references" } else { "" };
        text += &format!("{label:<12} {reference}\n");
    }
    if let Some(deriver) = &info.deriver {
        text += &format!("deriver      {deriver}\n");
    }
    if let Some(address) = &info.ca {
        text += &format!("content      {address}\n");
    }
    text += &format!("origin       {}\n", origin(&info.origin));
    for signature in &info.signatures {
        text += &format!("signature    {signature}\n");
    }
    text
}

fn origin(origin: &Origin) -> String {
    match origin {
        Origin::Content => "named by its content".to_owned(),
        Origin::Built => "built by this node".to_owned(),
        Origin::Record { builder } => format!("built by the node {builder}"),
        Origin::Peer { peer } => format!("taken from the node {peer}"),
        Origin::Cache { url, key } => format!("taken from {url}, signed by {key}"),
        Origin::Imported => "imported from an export".to_owned(),
    }
}

fn why_text(provenance: &Provenance) -> String {
    let mut text = format!("{}\n", provenance.summary);
    if let Some(reason) = &provenance.reason {
        text += &format!("placed there because: {reason}\n");
    }
    if let (Some(started), Some(finished)) = (provenance.started, provenance.finished) {
        text += &format!(
            "the build took {}\n",
            crate::progress::running(finished.saturating_sub(started) * 1000)
        );
    }
    if let Some(deriver) = &provenance.info.deriver {
        text += &format!("its derivation is {deriver}");
        text += &match provenance.has_log {
            true => format!("; 'tvix-node log {deriver}' has the log\n"),
            false => "\n".to_owned(),
        };
    }
    text
}
