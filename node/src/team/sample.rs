//! A share of what others built is built here again and compared, where the owner's rules say so.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::{BuildLimits, BuildRecord};
use tvix_node_protocol::envelope::Envelope;
use tvix_node_protocol::trust::{Requirement, TrustRule};
use tvix_node_swarm::Priority;

use super::TeamNode;
use super::fetch::FetchFailure;
use super::limits::{SAMPLES, SERVED_DISK, SERVED_LOG, SERVED_SILENCE, SERVED_TIME};
use super::policy::opened;
use crate::daemon::depot::DepotError;
use crate::daemon::engine::{LentSlot, LentTo, Message};
use crate::daemon::perform::{JobError, Listener, Work};

/// Derivations that are being sampled, so that a build with several outputs is sampled once.
#[derive(Debug, Default)]
pub struct Sampling(Mutex<BTreeSet<StorePath>>);

impl Sampling {
    fn enter(self: &Arc<Self>, derivation: &StorePath) -> Result<Place, bool> {
        let mut under_way = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if under_way.contains(derivation) {
            return Err(false);
        }
        if under_way.len() >= SAMPLES {
            return Err(true);
        }
        under_way.insert(derivation.clone());
        Ok(Place {
            sampling: Arc::clone(self),
            derivation: derivation.clone(),
        })
    }
}

/// One sample, for as long as it is under way.
#[derive(Debug)]
struct Place {
    sampling: Arc<Sampling>,
    derivation: StorePath,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut under_way = self.sampling.0.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.remove(&self.derivation);
    }
}

/// Why nothing could be compared.
#[derive(Debug, thiserror::Error)]
enum SampleFailure {
    #[error(transparent)]
    Depot(#[from] DepotError),
    #[error("its inputs cannot be had: {0}")]
    Inputs(#[from] FetchFailure),
    #[error("its inputs are something else here than the builder used")]
    OtherInputs,
    #[error("this node is going down")]
    Ending,
    #[error("no slot is lent: {0}")]
    Withheld(String),
    #[error("it cannot be built here: {0}")]
    Build(#[from] JobError),
    #[error("a record cannot be read back: {0}")]
    Record(String),
}

/// What a sample says is kept in its log.
struct ToLog<'a>(&'a LentSlot);

impl Listener for ToLog<'_> {
    async fn started(&mut self) {}

    async fn line(&mut self, line: &[u8]) {
        self.0.line(String::from_utf8_lossy(line).into_owned()).await;
    }
}

impl TeamNode {
    /// Something was accepted that another member built. Where the rules and the dice say so, it is built here
    /// again, when nothing else wants a slot.
    pub fn sample(self: &Arc<Self>, envelope: &Envelope) {
        let Ok(record) = opened(envelope) else { return };
        if record.builder == self.swarm.key() {
            return;
        }
        let policy = self.trust.policy();
        let shares = record.outputs.values();
        let shares = shares.map(|output| policy.sampled(record.builder, &output.path));
        let percent = shares.max().unwrap_or(0);
        if percent == 0 || !is_chosen(percent) {
            return;
        }
        let derivation = &record.derivation;
        if self.slots == 0 {
            tracing::warn!(%derivation, "what another member built is to be sampled, and this node has no slots to build it");
            return;
        }
        let place = match self.sampling.enter(derivation) {
            Ok(place) => place,
            Err(false) => return,
            Err(true) => {
                tracing::warn!(%derivation, "not sampled: {SAMPLES} others wait to be");
                return;
            }
        };
        let node = Arc::clone(self);
        tokio::spawn(async move {
            let _work = node.depot.work();
            match node.compare(&record).await {
                Ok(None) => {
                    tracing::info!(derivation = %record.derivation, builder = %record.builder, "sampled: it comes out the same here");
                }
                Ok(Some(difference)) => node.differs(&record, &difference).await,
                Err(error) => {
                    let name = node.name_of(record.builder);
                    let text = format!("{} by {name} could not be sampled: {error}", record.derivation);
                    drop(node.engine.send(Message::Warn { text }).await);
                }
            }
            drop(place);
        });
    }

    /// Builds it here, and says what came out differently.
    async fn compare(self: &Arc<Self>, record: &BuildRecord) -> Result<Option<String>, SampleFailure> {
        let (me, derivation) = (self.swarm.key(), record.derivation.clone());
        let (_, _, wanted) = self.depot.checked(derivation.clone()).await?;
        let wanted: Vec<StorePath> = wanted.into_iter().collect();
        self.ensure(&wanted, &[record.builder], &Priority::Speculative.into(), None)
            .await?;
        let plan = self.depot.plan(derivation.clone()).await?;
        let used = record.inputs.iter().map(|input| (&input.path, input.tree));
        if !used.eq(plan.closure.iter().map(|info| (&info.path, info.tree))) {
            return Err(SampleFailure::OtherInputs);
        }
        let (reply, slot) = oneshot::channel();
        let to = format!("this node, to compare with {}", self.name_of(record.builder));
        let message = Message::LendSlot {
            derivation,
            to: LentTo::Sample(to),
            urgency: 0,
            reply,
        };
        self.engine
            .send(message)
            .await
            .map_err(|_| SampleFailure::Ending)?;
        let slot = slot.await.map_err(|_| SampleFailure::Ending)?;
        let slot = slot.map_err(SampleFailure::Withheld)?;
        let work = Work {
            wanted: plan.outputs.keys().cloned().collect(),
            plan,
            cores: 0,
            limits: BuildLimits {
                time: Some(SERVED_TIME),
                silence: Some(SERVED_SILENCE),
                log: Some(SERVED_LOG),
                disk: Some(SERVED_DISK),
                ..BuildLimits::NONE
            },
            slot: slot.slot,
            request: None,
            keep_failed: false,
            gives_way: true,
            signer: Arc::clone(self.view.secret()),
        };
        let performed = self
            .jobs
            .perform(&work, &mut ToLog(&slot), CancellationToken::new())
            .await?;
        let own = opened(&performed.record).map_err(SampleFailure::Record)?;
        debug_assert_eq!(own.builder, me);
        let (kept, audience) = (performed.record, self.view.audience());
        self.depot
            .blocking(move |store| Ok(store.put_record(&kept, &audience)?))
            .await?;
        Ok(difference(record, &own))
    }

    /// Says it loudly, and believes that builder no more.
    async fn differs(&self, record: &BuildRecord, difference: &str) {
        let name = self.name_of(record.builder);
        let because = format!("{} came out differently here: {difference}", record.derivation);
        let rule = TrustRule {
            paths: None,
            builder: Some(record.builder),
            requirement: Requirement::Own,
            because: Some(because.clone()),
        };
        let trust = Arc::clone(&self.trust);
        let changed = tokio::task::spawn_blocking(move || trust.change(|policy| policy.set(rule))).await;
        let after = match changed
            .map_err(|error| error.to_string())
            .and_then(|changed| changed.map_err(|error| error.to_string()))
        {
            Ok(()) => "its records do not count here any more ('tvix-node trust')".to_owned(),
            Err(error) => {
                format!("and that it is not to be believed any more could not be written down: {error}")
            }
        };
        self.tell_offers().await;
        let text =
            format!("{name} is not to be trusted, or the build is not reproducible: {because}; {after}");
        drop(self.engine.send(Message::Warn { text }).await);
    }
}

/// What two records of one derivation differ in, in words.
fn difference(theirs: &BuildRecord, own: &BuildRecord) -> Option<String> {
    let mut differences = Vec::new();
    for (name, output) in &own.outputs {
        match theirs.outputs.get(name) {
            Some(other) if other.tree == output.tree => {}
            Some(other) => differences.push(format!(
                "the output '{name}' has the tree {} here and {} there",
                output.tree, other.tree
            )),
            None => differences.push(format!("it has no output '{name}' there")),
        }
    }
    (!differences.is_empty()).then(|| differences.join(", "))
}

/// Rolls the dice, which the builder must not be able to foresee. Where the machine has none, it is chosen.
fn is_chosen(percent: u8) -> bool {
    let mut bytes = [0; 4];
    match getrandom::fill(&mut bytes) {
        Ok(()) => u32::from_le_bytes(bytes) % 100 < u32::from(percent),
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(number: usize) -> StorePath {
        StorePath::from_parts([0; 20], &format!("p{number}.drv")).unwrap()
    }

    #[test]
    fn a_derivation_is_sampled_once_and_only_so_many_at_a_time() {
        let sampling = Arc::new(Sampling::default());
        let mut places: Vec<Place> = (0..SAMPLES)
            .map(|number| sampling.enter(&path(number)).unwrap())
            .collect();
        assert_eq!(sampling.enter(&path(0)).err(), Some(false));
        assert_eq!(sampling.enter(&path(SAMPLES)).err(), Some(true));
        places.pop();
        assert!(sampling.enter(&path(SAMPLES)).is_ok());
    }

    #[test]
    fn the_share_that_is_asked_for_is_chosen() {
        assert!((0..200).all(|_| is_chosen(100)));
        assert!((0..200).all(|_| !is_chosen(0)));
        let half = (0..4000).filter(|_| is_chosen(50)).count();
        assert!((1500..2500).contains(&half), "{half}");
    }
}
