//! `store references`, `referrers`, `closure`, `deriver`, `why-depends`, `diff`, `du`, `gc` and `verify`.

use serde_json::json;
use tvix_node::background::connect_or_start;
use tvix_node::home::Home;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::control::{DamagedPath, Repair, StoreAnswer, StoreQuestion};
use tvix_node_protocol::path_info::PathInfo;

use super::path::{store_path, store_paths};
use super::table::size;
use super::{Failure, note, print, print_json};
use crate::arguments::CollectArguments;
use crate::progress::{clean, count};

/// Exit status where damage was found.
const DAMAGED: u8 = 1;

/// Exit status where the derivation of a path is not known.
const UNKNOWN: u8 = 1;

/// Which paths are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// What the paths refer to.
    References,
    /// What refers to them.
    Referrers,
    /// They and everything they refer to.
    Closure,
    /// The derivations that made them.
    Deriver,
}

/// Prints related paths, one a line.
pub async fn related(home: &Home, relation: Relation, paths: &[String]) -> Result<u8, Failure> {
    let paths = store_paths(home, paths)?;
    let mut found: Vec<StorePath> = Vec::new();
    let mut status = 0;
    match relation {
        Relation::Closure => found.extend(
            infos(home, StoreQuestion::Closure { paths })
                .await?
                .into_iter()
                .map(|info| info.path),
        ),
        Relation::Referrers => {
            for path in paths {
                let infos = infos(home, StoreQuestion::Referrers { path }).await?;
                found.extend(infos.into_iter().map(|info| info.path));
            }
        }
        Relation::References | Relation::Deriver => {
            let client = connect_or_start(home).await?;
            for path in paths {
                let known = client.path_infos(vec![path.clone()]).await?.pop();
                let info = known.ok_or_else(|| absent(home, &path))?;
                match (relation, info.deriver) {
                    (Relation::Deriver, Some(deriver)) => found.push(deriver),
                    // It may be a source, or have come without that: nobody here can tell.
                    (Relation::Deriver, None) => {
                        note(&format!(
                            "error: it is not known which derivation made {path}, if one did"
                        ));
                        status = UNKNOWN;
                    }
                    _ => found.extend(info.references),
                }
            }
        }
    }
    found.sort();
    found.dedup();
    let lines: String = found.iter().map(|path| format!("{path}\n")).collect();
    print(lines.as_bytes())?;
    Ok(status)
}

/// Prints a shortest chain from one path to another.
pub async fn why_depends(home: &Home, path: &str, needed: &str) -> Result<u8, Failure> {
    let (path, needed) = (store_path(home, path)?, store_path(home, needed)?);
    let question = StoreQuestion::WhyDepends {
        path: path.clone(),
        needed: needed.clone(),
    };
    let StoreAnswer::Chain { links } = ask(home, &question).await? else {
        return Err(other_answer());
    };
    if links.is_empty() {
        return Err(Failure::Absent(format!("{path} does not need {needed}")));
    }
    let mut text = String::new();
    for (index, link) in links.iter().enumerate() {
        let arrow = if index == 0 { "" } else { "-> " };
        text += &format!("{}{arrow}{}\n", "   ".repeat(index.saturating_sub(1)), link.path);
        for place in &link.places {
            text += &format!("{}in {}\n", "   ".repeat(index + 1), clean(&format!("/{place}")));
        }
    }
    print(text.as_bytes())?;
    Ok(0)
}

/// Prints where the trees of two paths differ.
pub async fn diff(home: &Home, before: &str, after: &str) -> Result<u8, Failure> {
    let question = StoreQuestion::Diff {
        before: store_path(home, before)?,
        after: store_path(home, after)?,
    };
    let StoreAnswer::Differences { differences } = ask(home, &question).await? else {
        return Err(other_answer());
    };
    let mut text = String::new();
    for difference in differences {
        let line = match (difference.before, difference.after) {
            (Some(before), Some(after)) => format!("~ /{}: {before}, then {after}", difference.place),
            (Some(before), None) => format!("- /{}: {before}", difference.place),
            (None, after) => format!("+ /{}: {}", difference.place, after.unwrap_or_default()),
        };
        text += &clean(&line);
        text.push('\n');
    }
    print(text.as_bytes())?;
    Ok(0)
}

/// Prints what paths take with everything they refer to.
pub async fn usage(home: &Home, paths: &[String], as_json: bool) -> Result<u8, Failure> {
    let paths = store_paths(home, paths)?;
    let StoreAnswer::Usage {
        paths,
        archives,
        files,
    } = ask(home, &StoreQuestion::Usage { paths }).await?
    else {
        return Err(other_answer());
    };
    if as_json {
        print_json(&json!({ "paths": paths, "archives": archives, "files": files }))?;
    } else {
        let (archives, files) = (size(archives), size(files));
        let text = format!(
            "paths        {paths}\narchives     {archives}\nfiles        {files} (equal files counted once)\n"
        );
        print(text.as_bytes())?;
    }
    Ok(0)
}

/// Collects garbage and prints what went.
pub async fn collect(home: &Home, collect: &CollectArguments) -> Result<u8, Failure> {
    let question = StoreQuestion::Collect {
        dry_run: collect.dry_run,
        younger_than: collect.older_than,
        target: collect.target_size,
        most: collect.max_freed,
    };
    let StoreAnswer::Collected {
        removed,
        removed_beside,
        bytes,
        kept,
        pins,
        programs,
        stale_roots,
        failures,
        broken_off,
    } = ask(home, &question).await?
    else {
        return Err(other_answer());
    };
    if collect.json {
        let absolute =
            |paths: &[StorePath]| -> Vec<String> { paths.iter().map(StorePath::to_absolute_path).collect() };
        let (removed, pins) = (absolute(&removed), absolute(&pins));
        let programs: Vec<_> = programs
            .iter()
            .map(|used| json!({ "path": used.path.to_absolute_path(), "process": used.process }))
            .collect();
        print_json(&json!({
            "dryRun": collect.dry_run, "removed": removed, "removedBeside": removed_beside, "bytes": bytes,
            "kept": kept, "pins": pins, "programs": programs, "staleRoots": stale_roots, "failures": failures,
            "brokenOff": broken_off,
        }))?;
    } else {
        let mut text: String = removed.iter().map(|path| format!("{path}\n")).collect();
        let verb = if collect.dry_run { "would go" } else { "went" };
        text += &format!("{} paths {verb} ({}), {kept} stay\n", removed.len(), size(bytes));
        if collect.dry_run {
            let because = "stays with what it refers to, because it is pinned";
            text.extend(pins.iter().map(|path| format!("{path} {because}\n")));
            text.extend(programs.iter().map(|used| {
                let by = used.process.map_or_else(
                    || "a program that 'run' or 'shell' started".to_owned(),
                    |process| format!("process {process}"),
                );
                format!(
                    "{} stays with what it refers to, because {by} uses it\n",
                    used.path
                )
            }));
        }
        if !collect.dry_run && !pins.is_empty() {
            let pinned = count(pins.len() as u64, "path");
            text +=
                &format!("pins keep {pinned} with what they refer to ('tvix-node store pins' lists them)\n");
        }
        if !collect.dry_run && !programs.is_empty() {
            let used = count(programs.len() as u64, "path");
            text += &format!(
                "running programs keep {used} with what they refer to ('tvix-node store gc --dry-run' lists them)\n"
            );
        }
        if removed_beside > 0 {
            text += &format!("{removed_beside} trees beside the accepted ones {verb}\n");
        }
        if broken_off > 0 {
            text += &format!("what broken transfers left went ({})\n", size(broken_off));
        }
        for link in stale_roots {
            text += &clean(&format!("'{link}' is no root any more"));
            text.push('\n');
        }
        for failure in failures {
            text += &clean(&format!("not removed yet: {failure}"));
            text.push('\n');
        }
        print(text.as_bytes())?;
    }
    Ok(0)
}

/// Checks paths, or everything, repairs what is damaged where that is asked for, and prints it.
pub async fn verify(home: &Home, paths: &[String], repair: bool, as_json: bool) -> Result<u8, Failure> {
    let paths = store_paths(home, paths)?;
    let StoreAnswer::Verified {
        trees,
        bytes,
        damaged,
    } = ask(home, &StoreQuestion::Verify { paths, repair }).await?
    else {
        return Err(other_answer());
    };
    let repaired = |damage: &&DamagedPath| matches!(damage.repair, Some(Repair::Done { .. }));
    let repaired = damaged.iter().filter(repaired).count();
    let status = if damaged.len() == repaired { 0 } else { DAMAGED };
    if as_json {
        let damaged: Vec<_> = damaged
            .iter()
            .map(|damage| {
                json!({
                    "path": damage.path.to_absolute_path(), "accepted": damage.accepted, "reason": damage.reason,
                    "repair": damage.repair,
                })
            })
            .collect();
        print_json(&json!({ "trees": trees, "bytes": bytes, "damaged": damaged }))?;
        return Ok(status);
    }
    let mut text = String::new();
    for damage in &damaged {
        let beside = if damage.accepted {
            ""
        } else {
            " (a tree beside the accepted one)"
        };
        text += &clean(&format!("{}{beside} is damaged: {}", damage.path, damage.reason));
        text.push('\n');
        match &damage.repair {
            None => {}
            Some(Repair::Done { from }) => {
                text += &clean(&format!(
                    "{} is whole again, with content from {from}",
                    damage.path
                ));
                text.push('\n');
            }
            Some(Repair::Failed { reason }) => {
                note(&clean(&format!(
                    "error: {} was not repaired: {reason}",
                    damage.path
                )));
            }
        }
    }
    text += &format!(
        "{trees} trees ({}) looked at, {} damaged",
        size(bytes),
        damaged.len()
    );
    text += &match repair {
        true => format!(", {repaired} repaired\n"),
        false => "\n".to_owned(),
    };
    print(text.as_bytes())?;
    Ok(status)
}

async fn infos(home: &Home, question: StoreQuestion) -> Result<Vec<PathInfo>, Failure> {
    match ask(home, &question).await? {
        StoreAnswer::Paths { infos } => Ok(infos),
        _ => Err(other_answer()),
    }
}

/// Asks the node of this home.
pub(super) async fn ask(home: &Home, question: &StoreQuestion) -> Result<StoreAnswer, Failure> {
    Ok(connect_or_start(home).await?.ask_store(question).await?)
}

fn absent(home: &Home, path: &StorePath) -> Failure {
    Failure::Absent(format!(
        "{path} is not in the store of '{}'",
        home.root().display()
    ))
}

fn other_answer() -> Failure {
    Failure::Absent(
        "the node answered another question than it was asked; this is a bug in tvix-node".to_owned(),
    )
}
