//! What a build for another member reads: taken by content, and sorted into what this node accepts and
//! what is only that member's word.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::{BuildRequest, Input};
use tvix_node_protocol::envelope::{Envelope, NodeKey};
use tvix_node_protocol::messages::{Refusal, RefusalReason, Shown};
use tvix_node_protocol::nix::derivation::{Derivation, DrvError, read_derivation};
use tvix_node_protocol::path_info::{Origin, PathInfo};
use tvix_node_store::AddError;

use super::TeamNode;
use super::evidence::{Evidence as _, Findings, Surroundings};
use super::fetch::{FetchFailure, Item, Keep};
use super::limits::{PROVIDERS, REQUEST_DERIVATION_BYTES, REQUEST_DERIVATIONS, REQUEST_INPUT_BYTES};
use super::policy::{Word, names_itself, source_address};
use super::purpose::Purpose;
use super::surroundings::InStore;
use crate::daemon::depot::{DepotError, read_sized_from};
use crate::daemon::derivations::{Checked, CheckedDerivations, KnownAs};

/// The complete closure of what a build reads.
pub struct Inputs {
    /// What is known of each, sorted by path.
    pub closure: Vec<PathInfo>,
    /// Where each lies.
    pub physical: Vec<PathBuf>,
    /// Whether this node accepts every one. If not, what is built is for the requester alone.
    pub accepted: bool,
    /// Those that were here before they were asked for.
    held: Vec<StorePath>,
}

pub(super) fn refusal(reason: RefusalReason, message: impl Into<String>) -> Refusal {
    let message = message.into();
    Refusal { reason, message }
}

/// To others what is private is as if it were not here, and it cannot be brought either.
fn not_to_be_had(path: &StorePath) -> Refusal {
    refusal(RefusalReason::InputMissing, format!("{path} cannot be had here"))
}

/// The store here failed, which is no fault of the request.
fn failed(error: DepotError) -> Refusal {
    refusal(
        RefusalReason::Busy,
        format!("the builder's store failed: {error}"),
    )
}

impl TeamNode {
    /// The derivation of a request, its output paths recomputed from its content and that of everything it
    /// needs. Texts that are not here are asked of the requester; each is checked against its own name.
    pub async fn derivation(
        &self,
        requester: NodeKey,
        root: &StorePath,
    ) -> Result<(Derivation, Checked, BTreeSet<StorePath>), Refusal> {
        let mut read: HashMap<StorePath, Derivation> = HashMap::new();
        let mut frontier = vec![root.clone()];
        let mut room = DerivationRoom::default();
        while !frontier.is_empty() {
            room.check_number(root, read.len() + frontier.len())?;
            let found = self.read_derivations(requester, frontier, &mut room).await?;
            let inputs: BTreeSet<StorePath> = found
                .values()
                .flat_map(|derivation| derivation.input_derivations().keys())
                .cloned()
                .collect();
            read.extend(found);
            frontier = self.derivations.unknown(inputs.iter());
            frontier.retain(|path| !read.contains_key(path));
        }
        let (derivations, root) = (Arc::clone(&self.derivations), root.clone());
        let checked = self.depot.blocking(move |_| {
            let unknown = |path: &StorePath| DrvError::UnknownInput {
                name: root.to_string(),
                input: path.clone(),
            };
            let get = |path: &StorePath| read.get(path).cloned().ok_or_else(|| unknown(path));
            let derivation = get(&root)?;
            let checked = derivations.check(&root, &derivation, |path| Ok(get(path)?))?;
            let inputs = derivations.direct_inputs(&derivation)?;
            Ok((derivation, checked, inputs))
        });
        checked.await.map_err(|error| match error {
            DepotError::Derivation(error) => {
                let reason = match error {
                    DrvError::Mismatch { .. } => RefusalReason::OutputPath,
                    DrvError::Unsupported(_) => RefusalReason::Unsupported,
                    _ => RefusalReason::Structure,
                };
                refusal(reason, error.to_string())
            }
            error => failed(error),
        })
    }

    async fn read_derivations(
        &self,
        requester: NodeKey,
        paths: Vec<StorePath>,
        room: &mut DerivationRoom,
    ) -> Result<HashMap<StorePath, Derivation>, Refusal> {
        let (private, team) = (Arc::clone(&self.depot.private), self.view.team());
        let mut left = *room;
        let here = self.depot.blocking(move |store| {
            let valid = store.known_to(team, paths.iter())?;
            let mut found = HashMap::new();
            let mut missing = Vec::new();
            for (path, valid) in paths.into_iter().zip(valid) {
                if valid && !private.is_private(&path) {
                    let (derivation, size) = read_sized_from(store, &path)?;
                    // Members may have brought it here.
                    if let Err(refusal) = left.take(size) {
                        return Ok(Err(refusal));
                    }
                    found.insert(path, derivation);
                } else {
                    missing.push(path);
                }
            }
            Ok(Ok((found, missing, left)))
        });
        let (mut found, missing, left) = here.await.map_err(failed)??;
        *room = left;
        if missing.is_empty() {
            return Ok(found);
        }
        let texts = self.swarm.texts(requester, &missing).await.map_err(|error| {
            refusal(
                RefusalReason::InputMissing,
                format!("the derivations of the request could not be fetched from its requester: {error}"),
            )
        })?;
        for (path, text) in missing.into_iter().zip(texts) {
            let Some(text) = text else {
                let message = format!("the requester does not have the derivation {path}");
                return Err(refusal(RefusalReason::InputMissing, message));
            };
            room.take(text.len())?;
            let derivation = read_derivation(&path, &text)
                .map_err(|error| refusal(RefusalReason::InputContent, error.to_string()))?;
            found.insert(path, derivation);
        }
        Ok(found)
    }

    /// Brings what a build reads here, by content, from whoever has it. `direct`: what it reads itself.
    ///
    /// # Errors
    /// The refusal to send.
    pub async fn inputs(
        self: &Arc<Self>,
        request: &BuildRequest,
        direct: &BTreeSet<StorePath>,
    ) -> Result<Inputs, Refusal> {
        check_closure_of(&request.inputs, direct)?;
        check_sizes(&request.inputs)?;
        let paths: Vec<StorePath> = request.inputs.iter().map(|input| input.path.clone()).collect();
        let own = self.held_for_team(paths).await.map_err(failed)?;
        let mut known: BTreeMap<StorePath, Known> = BTreeMap::new();
        let mut missing = Vec::new();
        for (input, own) in request.inputs.iter().zip(own) {
            // Whoever names a private tree would get it copied out of here. To others it is as if it were not here,
            // and it cannot be brought either.
            if !matches!(own, InStore::Not) && self.depot.private.is_private(&input.path) {
                return Err(not_to_be_had(&input.path));
            }
            match own {
                InStore::Seen(info) if info.tree == input.tree => {
                    let here = known_here(&self.derivations, input, info)?;
                    known.insert(input.path.clone(), here);
                }
                // What came from another team is brought by this one, too, or not used for it.
                InStore::Hidden(info) => missing.push((input, info.tree != input.tree)),
                InStore::Seen(_) => missing.push((input, true)),
                InStore::Not => missing.push((input, false)),
            }
        }
        if !missing.is_empty() {
            let derivations = self.derivations.as_ref();
            judge_missing(self.as_ref(), derivations, request.requester, missing, &mut known).await?;
            self.bring_inputs(&known).await?;
        }
        self.lay_out(request, known).await
    }

    /// Whether something that was here has become private while others were brought, and a slot was waited for.
    ///
    /// # Errors
    /// The refusal to send.
    pub(super) fn still_open(&self, inputs: &Inputs) -> Result<(), Refusal> {
        let private = inputs
            .held
            .iter()
            .find(|path| self.depot.private.is_private(path));
        private.map_or(Ok(()), |path| Err(not_to_be_had(path)))
    }

    async fn bring_inputs(self: &Arc<Self>, known: &BTreeMap<StorePath, Known>) -> Result<(), Refusal> {
        let items = known.iter().filter_map(|(path, known)| match known {
            Known::Coming(item) => Some((path.clone(), item.clone())),
            Known::Here(_) => None,
        });
        let brought = self.bring_all(items.collect(), Purpose::another(), None).await;
        brought.map_err(not_brought)
    }

    async fn lay_out(
        &self,
        request: &BuildRequest,
        mut known: BTreeMap<StorePath, Known>,
    ) -> Result<Inputs, Refusal> {
        let mut inputs = Inputs {
            closure: Vec::with_capacity(request.inputs.len()),
            physical: Vec::with_capacity(request.inputs.len()),
            accepted: true,
            held: Vec::new(),
        };
        for input in &request.inputs {
            let (info, mut aside) = match known.remove(&input.path) {
                Some(Known::Here(info)) => {
                    inputs.held.push(info.path.clone());
                    (info, false)
                }
                Some(Known::Coming(item)) => (item.info, matches!(item.keep, Keep::Aside)),
                None => continue,
            };
            // Somebody who is believed may have brought the same content meanwhile; one of another team is believed there,
            // and has brought it for that team.
            let mut lies_aside = aside;
            if aside {
                let held = self
                    .held_for_team(vec![info.path.clone()])
                    .await
                    .map_err(failed)?;
                match held.into_iter().next() {
                    Some(InStore::Seen(here)) if here.tree == info.tree => {
                        (aside, lies_aside) = (false, false)
                    }
                    Some(InStore::Hidden(here)) if here.tree == info.tree => lies_aside = false,
                    _ => {}
                }
            }
            inputs.accepted &= !aside;
            inputs.physical.push(if lies_aside {
                self.depot.store().physical_unaccepted(&info.path, &info.tree)
            } else {
                self.depot.physical(&info.path)
            });
            inputs.closure.push(info);
        }
        Ok(inputs)
    }
}

/// What the derivations of one request may still have.
#[derive(Debug, Clone, Copy)]
struct DerivationRoom(usize);

impl Default for DerivationRoom {
    fn default() -> Self {
        Self(REQUEST_DERIVATION_BYTES)
    }
}

impl DerivationRoom {
    fn check_number(self, root: &StorePath, number: usize) -> Result<(), Refusal> {
        if number > REQUEST_DERIVATIONS {
            let message = format!("{root} needs more than the {REQUEST_DERIVATIONS} derivations allowed");
            return Err(refusal(RefusalReason::TooLarge, message));
        }
        Ok(())
    }

    /// For one more text.
    fn take(&mut self, bytes: usize) -> Result<(), Refusal> {
        self.0 = self.0.checked_sub(bytes).ok_or_else(|| {
            let limit = REQUEST_DERIVATION_BYTES;
            let message = format!("the request's derivations have more than the {limit} bytes allowed");
            refusal(RefusalReason::TooLarge, message)
        })?;
        Ok(())
    }
}

fn check_sizes(inputs: &[Input]) -> Result<(), Refusal> {
    let sizes = inputs.iter().map(|input| input.nar_size);
    let bytes = sizes.fold(0_u64, u64::saturating_add);
    if bytes > REQUEST_INPUT_BYTES {
        let message =
            format!("the inputs have {bytes} bytes, more than the {REQUEST_INPUT_BYTES} this builder takes");
        return Err(refusal(RefusalReason::TooLarge, message));
    }
    Ok(())
}

/// Decides, references first, which of the missing inputs are accepted.
pub(super) async fn judge_missing(
    node: &impl Surroundings,
    derivations: &CheckedDerivations,
    requester: NodeKey,
    missing: Vec<(&Input, bool)>,
    known: &mut BTreeMap<StorePath, Known>,
) -> Result<(), Refusal> {
    let paths: Vec<StorePath> = missing.iter().map(|(input, _)| input.path.clone()).collect();
    let shown = node.shown_by(requester, &paths);
    let holders = node.holders(&paths);
    let (shown, mut holders) = tokio::join!(shown, holders);
    let mut shown: BTreeMap<StorePath, Shown> = paths
        .iter()
        .cloned()
        .zip(shown)
        .filter_map(|(path, shown)| Some((path, shown?)))
        .collect();
    let mut by_request = Findings::default();
    let mut by_others = Findings::default();
    for (input, taken) in in_order(missing) {
        let path = &input.path;
        let mut others = holders.remove(path).unwrap_or_default();
        others.retain(|peer| *peer != requester && *peer != node.me());
        let said = shown.remove(path).filter(|shown| shown.info.tree == input.tree);
        let mut info = claimed(input, said.as_ref());
        match derivations.known_as(path) {
            // What a derivation fixes is known here, whatever the requester says.
            KnownAs::Fixed(ca) => info.ca = Some(ca),
            KnownAs::Output => {}
            // Nothing but its name can speak for a source. A record of this node will name it with this
            // content, and others will believe that it was checked.
            KnownAs::Source => {
                if !names_itself(&info) {
                    info.ca = Some(source_address(info.nar_hash));
                }
                if !names_itself(&info) {
                    return Err(nothing_speaks_for(path));
                }
            }
        }
        let references_accepted = input
            .references
            .iter()
            .filter(|other| *other != path)
            .all(|path| {
                let keep = match known.get(path) {
                    Some(Known::Here(_)) => return true,
                    Some(Known::Coming(item)) => &item.keep,
                    None => return false,
                };
                matches!(keep, Keep::Accepted { .. })
            });
        let mut record: Option<Envelope> = None;
        let mut verdict = if names_itself(&info) {
            Ok(Origin::Content)
        } else if let Some(said) = &said {
            record = said.record.clone();
            check_references(input, &said.info)?;
            node.accept(requester, said, Word::DoesNotCount, &mut by_request)
                .await
        } else {
            Err(format!("{path} is not shown by the requester"))
        };
        if verdict.is_err()
            && let Some((peer, shown)) = shown_elsewhere(node, &others, input).await
            && let Ok(origin) = node.accept(peer, &shown, Word::Counts, &mut by_others).await
        {
            record = shown.record;
            verdict = Ok(origin);
        }
        // A name that has another tree here keeps it.
        let keep = match verdict {
            Ok(origin) if references_accepted && !taken => {
                let record = record.filter(|record| {
                    origin
                        == Origin::Record {
                            builder: record.signer,
                        }
                });
                info.origin = origin;
                Keep::Accepted { record }
            }
            Ok(_) => Keep::Aside,
            Err(why) => {
                tracing::info!(%path, %requester, why, "an input is used for its requester alone");
                Keep::Aside
            }
        };
        let mut providers = vec![requester];
        providers.extend(others);
        let item = Item {
            info,
            providers,
            keep,
        };
        known.insert(path.clone(), Known::Coming(item));
    }
    Ok(())
}

/// What another member than the requester shows of exactly this content.
async fn shown_elsewhere(
    node: &impl Surroundings,
    others: &[NodeKey],
    input: &Input,
) -> Option<(NodeKey, Shown)> {
    for peer in others.iter().take(PROVIDERS) {
        let shown = node
            .shown_by(*peer, std::slice::from_ref(&input.path))
            .await
            .pop();
        if let Some(shown) = shown.flatten()
            && shown.info.tree == input.tree
            && check_references(input, &shown.info).is_ok()
        {
            return Some((*peer, shown));
        }
    }
    None
}

/// What is known of an input.
pub(super) enum Known {
    /// It is here, under its name, with the content asked for.
    Here(PathInfo),
    /// It is to come.
    Coming(Item),
}

/// An input that is here, under its name, with the content asked for. What was taken on a member's word or record before
/// anybody knew that it is a source or a fixed output is refused here: a record of this node would name it.
pub(super) fn known_here(
    derivations: &CheckedDerivations,
    input: &Input,
    info: PathInfo,
) -> Result<Known, Refusal> {
    check_references(input, &info)?;
    let believed = matches!(info.origin, Origin::Peer { .. } | Origin::Record { .. });
    let leads_here = match derivations.known_as(&info.path) {
        KnownAs::Output => true,
        KnownAs::Fixed(ca) => info.ca.as_ref() == Some(&ca),
        KnownAs::Source if names_itself(&info) => true,
        KnownAs::Source => names_itself(&PathInfo {
            ca: Some(source_address(info.nar_hash)),
            ..info.clone()
        }),
    };
    if believed && !leads_here {
        return Err(nothing_speaks_for(&info.path));
    }
    Ok(Known::Here(info))
}

fn nothing_speaks_for(path: &StorePath) -> Refusal {
    let message = format!(
        "{path} is no output of the derivations of the request, and no content address is given that leads to its name"
    );
    refusal(RefusalReason::InputContent, message)
}

/// What the requester says an input is.
fn claimed(input: &Input, said: Option<&Shown>) -> PathInfo {
    PathInfo {
        path: input.path.clone(),
        tree: input.tree,
        nar_hash: input.nar_hash,
        nar_size: input.nar_size,
        references: input.references.iter().cloned().collect(),
        deriver: said.and_then(|shown| shown.info.deriver.clone()),
        ca: said.and_then(|shown| shown.info.ca.clone()),
        origin: Origin::Content,
        registered: 0,
        signatures: Vec::new(),
    }
}

/// The inputs must be the closure of what the derivation reads: nothing less, and nothing more either.
pub(super) fn check_closure_of(inputs: &[Input], direct: &BTreeSet<StorePath>) -> Result<(), Refusal> {
    let find = |path: &StorePath| inputs.binary_search_by(|input| input.path.cmp(path)).ok();
    let mut reached = BTreeSet::new();
    let mut frontier: Vec<&StorePath> = direct.iter().collect();
    while let Some(path) = frontier.pop() {
        let Some(at) = find(path) else {
            let message =
                format!("{path} is needed by the build, but is not among the inputs of the request");
            return Err(refusal(RefusalReason::Structure, message));
        };
        if reached.insert(at) {
            frontier.extend(&inputs[at].references);
        }
    }
    match inputs.iter().enumerate().find(|(at, _)| !reached.contains(at)) {
        None => Ok(()),
        Some((_, stray)) => {
            let message = format!(
                "{} is among the inputs of the request, but nothing needs it",
                stray.path
            );
            Err(refusal(RefusalReason::Structure, message))
        }
    }
}

/// What an input refers to follows from its content.
pub(super) fn check_references(input: &Input, info: &PathInfo) -> Result<(), Refusal> {
    if input.references.iter().eq(&info.references) && input.nar_hash == info.nar_hash {
        return Ok(());
    }
    let message = format!(
        "the request says something else of {} than what is known of the same content",
        input.path
    );
    Err(refusal(RefusalReason::InputContent, message))
}

/// Why a build cannot be begun whose inputs did not come.
pub(super) fn not_brought(error: FetchFailure) -> Refusal {
    let reason = match &error {
        FetchFailure::Store {
            source: DepotError::Add(error),
            ..
        } if is_other_content(error) => RefusalReason::InputContent,
        FetchFailure::NotToBeHad(_) | FetchFailure::Transfer { .. } | FetchFailure::Reference(_) => {
            RefusalReason::InputMissing
        }
        FetchFailure::Store { .. } | FetchFailure::Room { .. } | FetchFailure::Lost(_) => {
            RefusalReason::Machine
        }
    };
    let message = match error {
        // How full the disk is, and where, is not for everybody.
        FetchFailure::Room { path, .. } => format!("this builder has no room for {path}"),
        error => error.to_string(),
    };
    refusal(reason, message)
}

fn is_other_content(error: &AddError) -> bool {
    matches!(
        error,
        AddError::Naming(_)
            | AddError::Archive { .. }
            | AddError::Tree { .. }
            | AddError::Source(_)
            | AddError::Arrived(_)
    )
}

/// References before what refers to them. The inputs have been checked to be a closure.
fn in_order(missing: Vec<(&Input, bool)>) -> Vec<(&Input, bool)> {
    let mut left: BTreeMap<&StorePath, (&Input, bool)> = missing
        .into_iter()
        .map(|(input, taken)| (&input.path, (input, taken)))
        .collect();
    let mut ordered = Vec::with_capacity(left.len());
    while let Some((_, first)) = left.pop_first() {
        let mut stack = vec![first];
        while let Some((input, _)) = stack.last() {
            let next = input.references.iter().find_map(|path| left.remove(path));
            match next {
                Some(next) => stack.push(next),
                None => ordered.extend(stack.pop()),
            }
        }
    }
    ordered
}

#[cfg(test)]
#[path = "inputs_tests.rs"]
mod tests;
