//! On which terms this node builds for others, and whether the machine lets it at the moment.
//!
//! The owner's work goes first: builds for others get slots that the node's own builds leave ([`crate::daemon`]), and
//! none where the terms say so. A build that is under way when that comes about is stopped, and its requester is told
//! why and looks for another builder.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tvix_node_protocol::control::{SharingMode, SharingTerms, TrafficTerms};

use super::limits::{SETTLING, SHARE_PAUSE};
use super::load::Gauge;
use super::owner_file::{read_versioned, write_whole};
use crate::daemon::engine::Message;

/// Version of the file: 2 since fixed outputs of others are a term.
const VERSION: u32 = 2;

/// Of each core, in hundredths, what other programs may keep busy on a machine that counts as idle, where the terms do
/// not say: a desktop on which nobody works.
const IDLE_LOAD: u32 = 15;

/// Of a limit on the load, in hundredths, below which builds for others begin again: not at once, or they would begin
/// and stop by turns.
const AGAIN: u32 = 80;

/// Why the terms cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// The file system.
    #[error("the terms of sharing in '{}' cannot be {action}: {source}", .file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// What is in it.
    #[error(
        "the terms of sharing in '{}' cannot be understood: {reason}. Repair the file, or remove it to lend on the default \
         terms", .file.display()
    )]
    Damaged {
        /// Which.
        file: PathBuf,
        /// Why not.
        reason: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: u32,
    terms: SharingTerms,
}

/// The terms, and what follows from them at the moment.
#[derive(Debug)]
pub struct ShareBook {
    file: PathBuf,
    changing: Mutex<()>,
    terms: watch::Sender<SharingTerms>,
    withheld: watch::Sender<Option<String>>,
    /// The terms that this follows from; none: nobody has looked yet.
    considered: watch::Sender<Option<SharingTerms>>,
    /// What other programs keep busy, in hundredths of one core.
    load: watch::Sender<u32>,
}

impl ShareBook {
    /// The terms of a home; those that hold by default where it has none.
    ///
    /// # Errors
    /// See [`ShareError`].
    pub fn open(file: PathBuf) -> Result<Self, ShareError> {
        let terms = match fs::read(&file) {
            Ok(bytes) => read(&file, &bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => SharingTerms::default(),
            Err(source) => {
                let action = "read";
                return Err(ShareError::File { file, action, source });
            }
        };
        // What needs no look at the machine holds from the first moment.
        let withheld = (terms.mode == SharingMode::Off).then(|| OFF.to_owned());
        Ok(Self {
            file,
            changing: Mutex::default(),
            terms: watch::channel(terms).0,
            withheld: watch::channel(withheld).0,
            considered: watch::channel(None).0,
            load: watch::channel(0).0,
        })
    }

    /// The terms.
    pub fn terms(&self) -> SharingTerms {
        self.terms.borrow().clone()
    }

    /// The terms, and when they change.
    pub fn changes(&self) -> watch::Receiver<SharingTerms> {
        self.terms.subscribe()
    }

    /// Why fixed outputs are not built for others; none: they are.
    pub fn withholds_fixed_outputs(&self) -> Option<&'static str> {
        (!self.terms.borrow().fixed_outputs).then_some(NO_FIXED_OUTPUTS)
    }

    /// Waits until fixed outputs are not built for others any more, and gives the reason.
    pub async fn fixed_outputs_withdrawn(&self) -> &'static str {
        let mut terms = self.terms.subscribe();
        // An error says that the book is gone, and with it what it allowed.
        drop(terms.wait_for(|terms| !terms.fixed_outputs).await);
        NO_FIXED_OUTPUTS
    }

    /// Why nothing is lent now; none: something is.
    pub fn withheld(&self) -> watch::Receiver<Option<String>> {
        self.withheld.subscribe()
    }

    /// Waits until what is withheld follows from the terms as they are now.
    pub async fn settled(&self) {
        let mut considered = self.considered.subscribe();
        let is_current =
            |considered: &Option<SharingTerms>| considered.as_ref() == Some(&*self.terms.borrow());
        // Where nobody looks after them any more, the node is ending.
        drop(tokio::time::timeout(SETTLING, considered.wait_for(is_current)).await);
    }

    /// What other programs keep busy, in hundredths of one core.
    pub fn load(&self) -> u32 {
        *self.load.borrow()
    }

    /// Lends on these terms from now on. Blocks.
    ///
    /// # Errors
    /// See [`ShareError`]; nothing has changed then.
    pub fn set(&self, terms: SharingTerms) -> Result<(), ShareError> {
        let _turn = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let written = Written {
            version: VERSION,
            terms: terms.clone(),
        };
        let failed = |source| ShareError::File {
            file: self.file.clone(),
            action: "written",
            source,
        };
        let bytes = serde_json::to_vec_pretty(&written).map_err(|error| failed(error.into()))?;
        write_whole(&self.file, &bytes).map_err(failed)?;
        if terms.mode == SharingMode::Off {
            self.withheld.send_replace(Some(OFF.to_owned()));
        }
        self.terms.send_replace(terms);
        Ok(())
    }

    /// Looks after the terms until the node ends: what follows from them is told to the engine whenever it
    /// changes. `in_use`: whether a command of the owner uses the node.
    /// `traffic`: how much of the link may be used.
    pub async fn keep(
        self: Arc<Self>,
        engine: mpsc::Sender<Message>,
        in_use: watch::Receiver<bool>,
        mut traffic: watch::Receiver<TrafficTerms>,
    ) {
        let mut terms = self.terms.subscribe();
        let mut used = in_use.clone();
        let mut gauge = Gauge::new(Path::new("/proc"));
        let mut told: Option<String> = None;
        loop {
            let current = terms.borrow_and_update().clone();
            let load = gauge.read();
            self.load.send_replace(load.unwrap_or(0));
            let machine = Machine {
                minute: minute_of_day(&chrono::Local::now()),
                on_battery: on_battery(Path::new("/sys/class/power_supply")),
                load,
                cores: cores(),
                in_use: *used.borrow_and_update(),
                metered: traffic.borrow_and_update().metered,
                withheld: told.is_some(),
            };
            let withheld = withheld(&current, &machine);
            if withheld != told {
                tracing::info!(
                    reason = withheld.as_deref().unwrap_or("none"),
                    "what keeps this node from building for others"
                );
                self.withheld.send_replace(withheld.clone());
                told.clone_from(&withheld);
                if engine.send(Message::Withhold { reason: withheld }).await.is_err() {
                    return;
                }
            }
            self.considered.send_replace(Some(current));
            tokio::select! {
                () = tokio::time::sleep(SHARE_PAUSE) => {}
                changed = terms.changed() => if changed.is_err() { return },
                changed = used.changed() => if changed.is_err() { return },
                changed = traffic.changed() => if changed.is_err() { return },
            }
        }
    }
}

/// What is said where fixed outputs are not built for others, with the way out.
const NO_FIXED_OUTPUTS: &str = "this builder does not build fixed outputs for others, because their builds reach the \
    network from its machine; its owner allows it with 'tvix-node share on --fixed-outputs'";

/// What is said where nothing is lent at all.
const OFF: &str = "its owner does not share it";

fn read(file: &Path, bytes: &[u8]) -> Result<SharingTerms, ShareError> {
    let damaged = |reason: String| ShareError::Damaged {
        file: file.to_owned(),
        reason,
    };
    let written: Written = read_versioned(bytes, VERSION).map_err(|error| damaged(error.to_string()))?;
    Ok(written.terms)
}

/// What the terms are applied to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Machine {
    /// Minute of the day, by its clock and its time zone.
    minute: u16,
    on_battery: bool,
    /// What other programs keep busy, in hundredths of one core; none: it cannot be found out.
    load: Option<u32>,
    cores: u32,
    /// A command of the owner uses the node.
    in_use: bool,
    /// Every byte over its link costs.
    metered: bool,
    /// Nothing has been lent so far.
    withheld: bool,
}

/// Why nothing is lent; none: something is.
fn withheld(terms: &SharingTerms, machine: &Machine) -> Option<String> {
    if terms.mode == SharingMode::Off {
        return Some(OFF.to_owned());
    }
    if machine.metered {
        return Some("its connection is metered".to_owned());
    }
    if let Some(quiet) = terms.quiet.iter().find(|quiet| quiet.has(machine.minute)) {
        return Some(format!("its owner has set quiet hours, {quiet}"));
    }
    if terms.mains_only && machine.on_battery {
        return Some("it runs on its battery".to_owned());
    }
    if terms.mode == SharingMode::WhenIdle && machine.in_use {
        return Some("its owner uses it".to_owned());
    }
    let limit = match (terms.max_load, terms.mode) {
        (Some(limit), _) => limit,
        (None, SharingMode::WhenIdle) => IDLE_LOAD.saturating_mul(machine.cores.max(1)),
        (None, _) => return None,
    };
    let Some(load) = machine.load else {
        return Some(
            "its owner has set a limit on its load, and the load cannot be found out there".to_owned(),
        );
    };
    let limit = if machine.withheld {
        limit.saturating_mul(AGAIN) / 100
    } else {
        limit
    };
    (load > limit).then(|| {
        format!(
            "its owner's work keeps {}.{:02} cores busy, and builds for others stop at {}.{:02}",
            load / 100,
            load % 100,
            limit / 100,
            limit % 100
        )
    })
}

fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(1))
}

/// The minute of the day at this moment, wherever that is.
fn minute_of_day(now: &impl chrono::Timelike) -> u16 {
    u16::try_from(now.hour() * 60 + now.minute()).unwrap_or(u16::MAX)
}

/// Whether the machine has a battery and no mains that are on. `supplies`: the kernel's folder of them.
fn on_battery(supplies: &Path) -> bool {
    let (mut mains, mut battery) = (false, false);
    for supply in fs::read_dir(supplies).into_iter().flatten().flatten() {
        let read = |name: &str| fs::read_to_string(supply.path().join(name)).unwrap_or_default();
        match read("type").trim() {
            "Battery" => battery |= read("scope").trim() != "Device",
            _ => mains |= read("online").trim() == "1",
        }
    }
    battery && !mains
}

#[cfg(test)]
mod tests {
    use super::*;
    use tvix_node_protocol::control::QuietHours;

    fn idle() -> Machine {
        Machine {
            minute: 12 * 60,
            on_battery: false,
            load: Some(0),
            cores: 4,
            in_use: false,
            metered: false,
            withheld: false,
        }
    }

    #[test]
    fn the_minute_of_the_day_is_that_of_the_place() {
        use chrono::{FixedOffset, TimeZone as _};
        let there = FixedOffset::east_opt(5 * 3600 + 30 * 60).unwrap();
        let at = |seconds: i64| minute_of_day(&there.timestamp_opt(seconds, 0).unwrap());
        assert_eq!(at(0), 5 * 60 + 30);
        assert_eq!(at(18 * 3600 + 29 * 60 + 59), 23 * 60 + 59);
        assert_eq!(at(18 * 3600 + 30 * 60), 0);
    }

    fn terms(mode: SharingMode) -> SharingTerms {
        SharingTerms {
            mode,
            ..SharingTerms::default()
        }
    }

    #[test]
    fn each_term_withholds_by_its_reason_and_nothing_else_does() {
        let on = terms(SharingMode::On);
        let busy = Machine {
            load: Some(400),
            in_use: true,
            on_battery: true,
            ..idle()
        };
        assert_eq!(withheld(&on, &busy), None, "nothing is asked for");
        assert!(withheld(&terms(SharingMode::Off), &idle()).is_some());
        let metered = Machine {
            metered: true,
            ..idle()
        };
        assert!(withheld(&on, &metered).unwrap().contains("metered"));
        let quiet = SharingTerms {
            quiet: vec![QuietHours::parse("11:00-13:00").unwrap()],
            ..on.clone()
        };
        assert!(withheld(&quiet, &idle()).unwrap().contains("11:00-13:00"));
        let later = Machine {
            minute: 13 * 60,
            ..idle()
        };
        assert_eq!(withheld(&quiet, &later), None);
        let mains = SharingTerms {
            mains_only: true,
            ..on.clone()
        };
        assert!(withheld(&mains, &busy).unwrap().contains("battery"));
        assert_eq!(withheld(&mains, &idle()), None);
        let limited = SharingTerms {
            max_load: Some(150),
            ..on
        };
        assert!(withheld(&limited, &busy).unwrap().contains("4.00 cores"));
        let unknown = Machine { load: None, ..idle() };
        assert!(withheld(&limited, &unknown).is_some());
    }

    #[test]
    fn an_idle_machine_is_one_that_nobody_uses() {
        let when_idle = terms(SharingMode::WhenIdle);
        assert_eq!(withheld(&when_idle, &idle()), None);
        let used = Machine {
            in_use: true,
            ..idle()
        };
        assert!(withheld(&when_idle, &used).unwrap().contains("uses it"));
        let working = Machine {
            load: Some(200),
            ..idle()
        };
        assert!(withheld(&when_idle, &working).is_some());
    }

    #[test]
    fn it_begins_again_only_well_below_the_limit() {
        let limited = SharingTerms {
            max_load: Some(100),
            ..terms(SharingMode::On)
        };
        let at = |load, before| {
            withheld(
                &limited,
                &Machine {
                    load: Some(load),
                    withheld: before,
                    ..idle()
                },
            )
            .is_some()
        };
        assert!(!at(90, false) && at(110, false));
        assert!(at(90, true) && !at(70, true));
    }

    #[test]
    fn terms_are_there_again_after_a_restart_and_damaged_ones_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("share.json");
        let book = ShareBook::open(file.clone()).unwrap();
        assert_eq!(book.terms(), SharingTerms::default());
        let wanted = SharingTerms {
            mode: SharingMode::Off,
            max_load: Some(50),
            fixed_outputs: true,
            ..SharingTerms::default()
        };
        assert!(book.withholds_fixed_outputs().is_some(), "unless asked for");
        book.set(wanted.clone()).unwrap();
        let again = ShareBook::open(file.clone()).unwrap();
        assert_eq!(again.terms(), wanted);
        assert!(again.withheld().borrow().is_some(), "from the first moment");
        assert!(again.withholds_fixed_outputs().is_none());
        // What a program wrote that did not know of fixed outputs.
        let older = r#"{"version":1,"terms":{"mode":"on","quiet":[],"mainsOnly":false,"maxLoad":150}}"#;
        fs::write(&file, older).unwrap();
        let older = ShareBook::open(file.clone()).unwrap();
        assert_eq!(older.terms().max_load, Some(150));
        assert!(older.withholds_fixed_outputs().is_some());
        for text in [
            "",
            "{}",
            r#"{"version":9}"#,
            r#"{"version":1,"terms":{"mode":"sometimes"}}"#,
        ] {
            fs::write(&file, text).unwrap();
            assert!(ShareBook::open(file.clone()).is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn that_fixed_outputs_are_not_built_any_more_is_heard_by_who_builds_one() {
        let folder = tempfile::tempdir().unwrap();
        let book = ShareBook::open(folder.path().join("share.json")).unwrap();
        let with = |fixed_outputs| SharingTerms {
            fixed_outputs,
            ..SharingTerms::default()
        };
        book.set(with(true)).unwrap();
        let mut withdrawn = std::pin::pin!(book.fixed_outputs_withdrawn());
        assert!(futures::poll!(&mut withdrawn).is_pending());
        book.set(with(false)).unwrap();
        assert!(withdrawn.await.contains("--fixed-outputs"));
    }

    #[test]
    fn a_laptop_on_its_battery_is_told_from_one_on_mains() {
        let folder = tempfile::tempdir().unwrap();
        let supply = |name: &str, kind: &str, online: &str| {
            let place = folder.path().join(name);
            fs::create_dir_all(&place).unwrap();
            fs::write(place.join("type"), kind).unwrap();
            fs::write(place.join("online"), online).unwrap();
        };
        assert!(!on_battery(&folder.path().join("none")));
        assert!(!on_battery(folder.path()), "a desktop");
        supply("BAT0", "Battery\n", "");
        assert!(on_battery(folder.path()));
        supply("AC", "Mains\n", "0\n");
        assert!(on_battery(folder.path()));
        supply("AC", "Mains\n", "1\n");
        assert!(!on_battery(folder.path()));
    }
}
