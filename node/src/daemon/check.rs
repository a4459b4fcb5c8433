//! Building again what is there, and comparing: `build --check`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tvix_node_builder::{Built, Difference};
use tvix_node_coordinator::{BuildFailure, CheckOutcome, Event, FailureKind, SessionId};
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::BuildLimits;
use tvix_node_protocol::control::{EventKind, OutputDifference};

use super::engine::{LentSlot, LentTo, Message, THIS_NODE};
use super::job::failure_of;
use super::limits::{DIFFERENT_PLACE, DIFFERENT_PLACES};
use super::perform::{JobError, Jobs, Listener, Plan, Work};

/// What is to be built again.
pub struct Check {
    /// For which session.
    pub session: u64,
    /// What.
    pub derivation: StorePath,
    /// `NIX_BUILD_CORES`; 0: all.
    pub cores: u32,
    /// Bounds.
    pub limits: BuildLimits,
    /// Keep its folder if it fails.
    pub keep_failed: bool,
}

/// Tells the session of its check.
struct ToSession<'a> {
    check: &'a Check,
    slot: &'a LentSlot,
    engine: &'a mpsc::Sender<Message>,
}

impl ToSession<'_> {
    async fn tell(&self, event: EventKind) {
        let session = self.check.session;
        // Where the engine has ended, nobody listens.
        drop(self.engine.send(Message::Tell { session, event }).await);
    }
}

impl Listener for ToSession<'_> {
    async fn started(&mut self) {
        self.tell(EventKind::BuildStarted {
            derivation: self.check.derivation.clone(),
            node: THIS_NODE.to_owned(),
        })
        .await;
    }

    async fn line(&mut self, line: &[u8]) {
        let line = String::from_utf8_lossy(line).into_owned();
        self.slot.line(line.clone()).await;
        self.tell(EventKind::Log {
            derivation: self.check.derivation.clone(),
            line,
        })
        .await;
    }
}

impl Jobs {
    /// Builds again and compares, and tells the engine what came of it.
    pub async fn check(
        self: Arc<Self>,
        check: Check,
        engine: mpsc::Sender<Message>,
        cancel: CancellationToken,
    ) {
        let outcome = match self.compare(&check, &engine, &cancel).await {
            Ok(Some(built)) => built,
            Ok(None) => CheckOutcome::Failed(BuildFailure {
                kind: FailureKind::Cancelled,
                error: "it was cancelled".to_owned(),
                log_tail: Vec::new(),
            }),
            Err(error) => CheckOutcome::Failed(failure_of(&error)),
        };
        let event = Event::Checked {
            session: SessionId(check.session),
            derivation: check.derivation,
            outcome,
        };
        // Where the engine has ended, nobody needs to know.
        drop(engine.send(Message::Happened(event)).await);
    }

    /// None where it was cancelled before it had a slot.
    async fn compare(
        &self,
        check: &Check,
        engine: &mpsc::Sender<Message>,
        cancel: &CancellationToken,
    ) -> Result<Option<CheckOutcome>, JobError> {
        let plan = self.depot.plan(check.derivation.clone()).await?;
        // Named before it waits for a slot.
        self.builder.check(&plan.derivation, &check.derivation, false)?;
        let before = self.outputs_before(&plan).await?;
        let (reply, slot) = oneshot::channel();
        let message = Message::LendSlot {
            derivation: check.derivation.clone(),
            to: LentTo::Session(check.session),
            urgency: u8::MAX,
            reply,
        };
        // Where the engine has ended, no slot comes; the owner's terms keep none from a check.
        drop(engine.send(message).await);
        let Some(Ok(Ok(slot))) = cancel.run_until_cancelled(slot).await else {
            return Ok(None);
        };
        let began = Instant::now();
        let work = Work {
            wanted: plan.outputs.keys().cloned().collect(),
            plan,
            cores: check.cores,
            limits: check.limits,
            slot: slot.slot,
            request: None,
            keep_failed: check.keep_failed,
            gives_way: false,
            signer: Arc::clone(&self.secret),
        };
        let mut listener = ToSession {
            check,
            slot: &slot,
            engine,
        };
        let mut built = self.execute(&work, &mut listener, cancel.clone()).await?;
        // Fails only where this process ends.
        let Ok(found) = built.differences(&before).await else {
            return Ok(None);
        };
        let mut differences = BTreeMap::new();
        for (name, places) in found {
            let kept = self.keep(&mut built, &name);
            let difference = difference(work.plan.outputs[&name].clone(), kept, &places);
            differences.insert(name, difference);
        }
        built.discard().await;
        let duration = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(Some(CheckOutcome::Built {
            duration,
            differences,
        }))
    }

    /// Where the outputs of the derivation lie.
    ///
    /// # Errors
    /// [`JobError::NothingToCompare`]: what is said to be the same has been compared.
    async fn outputs_before(&self, plan: &Plan) -> Result<BTreeMap<String, PathBuf>, JobError> {
        let paths = plan.outputs.values().cloned().collect();
        let there = self.depot.infos(paths).await?;
        let outputs = plan.outputs.iter();
        let missing = outputs
            .clone()
            .filter(|(_, path)| !there.iter().any(|info| info.path == **path));
        let missing: Vec<String> = missing.map(|(name, _)| name.clone()).collect();
        if !missing.is_empty() {
            return Err(JobError::NothingToCompare { missing });
        }
        Ok(outputs
            .map(|(name, path)| (name.clone(), self.depot.physical(path)))
            .collect())
    }

    /// That an output differs is what the user wants to hear of, so one that cannot be kept is only logged.
    fn keep(&self, built: &mut Built, output: &str) -> Option<PathBuf> {
        match built.keep(output, self.builder.config()) {
            Ok(kept) => Some(kept),
            Err(error) => {
                tracing::warn!(%error, output, "an output that differs could not be kept");
                None
            }
        }
    }
}

/// As a session is told it, within bounds: places have names that the build chose.
fn difference(path: StorePath, kept: Option<PathBuf>, places: &[Difference]) -> OutputDifference {
    let shortened = |place: &Difference| {
        let text = place.to_string();
        match text.char_indices().nth(DIFFERENT_PLACE) {
            None => text,
            Some((end, _)) => format!("{}…", &text[..end]),
        }
    };
    OutputDifference {
        path,
        kept: kept.map(|kept| kept.display().to_string()),
        places: places.iter().take(DIFFERENT_PLACES).map(shortened).collect(),
        more: places.len() > DIFFERENT_PLACES,
    }
}

#[cfg(test)]
mod tests {
    use tvix_node_builder::DifferenceKind;

    use super::*;

    /// Their names are the build's choice, and so is how many there are.
    #[test]
    fn so_many_places_are_told_and_so_much_of_each() {
        let path = || StorePath::from_parts([1; 20], "built").unwrap();
        let place = |name: &str| Difference {
            path: PathBuf::from(name),
            kind: DifferenceKind::New,
        };
        let told = difference(path(), None, &vec![place("a"); DIFFERENT_PLACES]);
        assert_eq!(told.places, vec!["\"a\" is new"; DIFFERENT_PLACES]);
        assert!(!told.more);
        let told = difference(path(), None, &vec![place("a"); DIFFERENT_PLACES + 1]);
        assert_eq!(told.places.len(), DIFFERENT_PLACES);
        assert!(told.more);
        let around = place("a").to_string().len() - 1;
        // Each of these letters has two bytes.
        for (letters, cut) in [(DIFFERENT_PLACE - around, false), (DIFFERENT_PLACE, true)] {
            let told = difference(path(), None, &[place(&"é".repeat(letters))]);
            let shown = &told.places[0];
            assert_eq!(shown.chars().count(), DIFFERENT_PLACE + usize::from(cut));
            assert_eq!(shown.ends_with('…'), cut, "{shown}");
        }
    }
}
