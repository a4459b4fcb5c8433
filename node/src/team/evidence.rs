//! What members know of paths, and whether this node believes it.
//!
//! What has to be asked of the network and of the store is behind [`Surroundings`], so that the same code decides in
//! a team that is simulated.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::BuildRecord;
use tvix_node_protocol::envelope::{Envelope, NodeKey};
use tvix_node_protocol::messages::Shown;
use tvix_node_protocol::path_info::{Origin, PathInfo};
use tvix_node_protocol::trust::{Requirement, TrustPolicy};

use super::limits::{CLOSURE, EVIDENCE, PROVIDERS, SHOWN_BYTES};
use super::policy::{Accepted, Grounds, Verdict, Word, judge, names_itself, opened, source_address};

/// What members said of paths lately. A path's info does not change while its holder has it; one that
/// is gone costs a fetch that fails, after which it is forgotten.
#[derive(Debug, Default)]
pub struct ShownPaths(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    /// By path, so that what is known of one can be forgotten at once.
    paths: HashMap<StorePath, BTreeMap<NodeKey, Shown>>,
    /// Bytes of all of it, roughly.
    bytes: usize,
}

/// Bytes of what was shown of a path, roughly: all of it that its length is up to who shows it.
fn size(shown: &Shown) -> usize {
    let info = &shown.info;
    let record = shown.record.as_ref();
    let record = record.map_or(0, |record| record.payload.len() + record.domain.len());
    let references: usize = info.references.iter().map(|path| 64 + path.name().len()).sum();
    let signatures: usize = info.signatures.iter().map(|text| 32 + text.len()).sum();
    512 + references + signatures + info.ca.as_ref().map_or(0, String::len) + record
}

impl ShownPaths {
    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        // Entries are inserted whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, peer: NodeKey, path: &StorePath) -> Option<Shown> {
        self.lock().paths.get(path)?.get(&peer).cloned()
    }

    fn keep(&self, peer: NodeKey, shown: &Shown) {
        let new = size(shown);
        if new > SHOWN_BYTES {
            return;
        }
        let mut kept = self.lock();
        if kept.bytes.saturating_add(new) > SHOWN_BYTES {
            *kept = Kept::default();
        }
        kept.bytes += new;
        let known = kept.paths.entry(shown.info.path.clone()).or_default();
        if let Some(old) = known.insert(peer, shown.clone()) {
            kept.bytes = kept.bytes.saturating_sub(size(&old));
        }
    }

    /// This was not to be had.
    pub fn forget(&self, path: &StorePath) {
        let mut kept = self.lock();
        if let Some(old) = kept.paths.remove(path) {
            kept.bytes = kept.bytes.saturating_sub(old.values().map(size).sum());
        }
    }
}

/// What has been found out on the way, for paths that are judged together.
#[derive(Debug, Default)]
pub struct Findings {
    /// What is accepted of what they were built from.
    accepted: Accepted,
    /// What builders signed of paths on which several have to agree.
    signed: BTreeMap<StorePath, Vec<BuildRecord>>,
}

/// A path that can be had from members, and is believed.
#[derive(Debug, Clone)]
pub struct Remote {
    /// What is known of it.
    pub shown: Shown,
    /// Why it is believed.
    pub origin: Origin,
    /// Who has exactly this content, the best first.
    pub providers: Vec<NodeKey>,
}

/// A closure: what of it is here, and what can be had.
#[derive(Debug, Default)]
pub struct Survey {
    /// Paths that are here, and with them what they refer to.
    pub here: BTreeMap<StorePath, PathInfo>,
    /// Paths that are not.
    pub there: BTreeMap<StorePath, Remote>,
}

/// What a path's name is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamedBy {
    /// What lies under it: it is a source, a derivation, or a fixed output. Its name decides, and nobody's word.
    Content,
    /// The derivation that makes it: somebody has to be believed.
    Derivation,
}

/// What a node needs of the world to find out what it believes.
pub trait Surroundings: Sync {
    /// What is judged on now.
    fn grounds(&self) -> Grounds;

    /// This node.
    fn me(&self) -> NodeKey;

    /// Members that can be asked at once.
    fn connected(&self) -> BTreeSet<NodeKey>;

    /// What members said of paths lately.
    fn remembered(&self) -> &ShownPaths;

    /// What makes the name of a path, by the derivations that are worked on here; none: none of them knows it. They are
    /// told of together with all that they need.
    fn named_by(&self, path: &StorePath) -> Option<NamedBy>;

    /// Something for which these rules ask for more than somebody's word, and of which a path was made, in as many steps as
    /// there are, by the derivations that are worked on here; none: they know of nothing.
    fn bound_input(&self, path: &StorePath, policy: &Arc<TrustPolicy>) -> Option<StorePath>;

    /// The content address that a derivation which is worked on here gives for a fixed output.
    fn content_address(&self, path: &StorePath) -> impl Future<Output = Option<String>> + Send;

    /// Asks a member what it knows of these paths; answered in their order.
    fn ask_paths(
        &self,
        peer: NodeKey,
        paths: &[StorePath],
    ) -> impl Future<Output = Result<Vec<Option<Shown>>, String>> + Send;

    /// Members that are said to have these paths, the best first.
    fn holders(&self, paths: &[StorePath]) -> impl Future<Output = BTreeMap<StorePath, Vec<NodeKey>>> + Send;

    /// What is known of those of these paths that are here under their names, in their order. They stay.
    fn held(&self, paths: &[StorePath])
    -> impl Future<Output = Result<Vec<Option<PathInfo>>, String>> + Send;

    /// Those of these paths that are here, and that members may not know of: nobody is asked for them by name who does
    /// not say that he has them.
    fn hidden(&self, paths: &[StorePath])
    -> impl Future<Output = Result<BTreeSet<StorePath>, String>> + Send;

    /// Keeps what builders signed of these paths, and gives all that is kept of them.
    fn keep_signed(
        &self,
        paths: Vec<StorePath>,
        signed: BTreeMap<StorePath, Vec<Envelope>>,
    ) -> impl Future<Output = Result<Vec<(StorePath, Vec<BuildRecord>)>, String>> + Send;
}

/// What a node finds out of what it and others know.
pub trait Evidence: Surroundings {
    /// What a member knows of these paths, in their order. A member that cannot be asked knows nothing.
    fn shown_by(
        &self,
        peer: NodeKey,
        paths: &[StorePath],
    ) -> impl Future<Output = Vec<Option<Shown>>> + Send {
        async move {
            let mut answers: Vec<Option<Shown>> = paths
                .iter()
                .map(|path| self.remembered().get(peer, path))
                .collect();
            let unknown: Vec<usize> = (0..paths.len()).filter(|at| answers[*at].is_none()).collect();
            if unknown.is_empty() {
                return answers;
            }
            let asked: Vec<StorePath> = unknown.iter().map(|at| paths[*at].clone()).collect();
            match self.ask_paths(peer, &asked).await {
                Ok(shown) => {
                    for (at, shown) in unknown.into_iter().zip(shown) {
                        if let Some(shown) = &shown {
                            self.remembered().keep(peer, shown);
                        }
                        answers[at] = shown;
                    }
                }
                Err(error) => tracing::debug!(%peer, %error, "a member did not say what it knows of paths"),
            }
            answers
        }
    }

    fn shown_with(
        &self,
        peer: NodeKey,
        paths: &[StorePath],
    ) -> impl Future<Output = (NodeKey, Vec<Option<Shown>>)> + Send {
        async move { (peer, self.shown_by(peer, paths).await) }
    }

    /// What a member shows of a path whose content decides, with the content address that leads to its name where it has
    /// left that out, and it is known or follows. It is held against what comes.
    fn addressed(&self, mut shown: Shown) -> impl Future<Output = Shown> + Send {
        async move {
            if names_itself(&shown.info) {
                return shown;
            }
            let left_out = shown.info.ca.take();
            shown.info.ca = Some(source_address(shown.info.nar_hash));
            if !names_itself(&shown.info) {
                shown.info.ca = self.content_address(&shown.info.path).await;
            }
            if !names_itself(&shown.info) {
                shown.info.ca = left_out;
            }
            shown
        }
    }

    /// Finds what builders signed of those of these paths on which several have to agree: what is kept here,
    /// and what those that can be reached show of them. All of it is kept, so that it can be shown.
    ///
    /// # Errors
    /// The own store's, in words.
    fn gather_signed(
        &self,
        paths: &[StorePath],
        findings: &mut Findings,
    ) -> impl Future<Output = Result<(), String>> + Send {
        async move {
            let grounds = self.grounds();
            let connected = self.connected();
            let mut wanted: Vec<StorePath> = Vec::new();
            let mut questions: BTreeMap<NodeKey, Vec<StorePath>> = BTreeMap::new();
            for path in paths {
                let Requirement::Quorum { of, .. } = grounds.policy.for_path(path) else {
                    continue;
                };
                if findings.signed.contains_key(path) {
                    continue;
                }
                wanted.push(path.clone());
                for builder in of.iter().filter(|builder| connected.contains(builder)) {
                    questions.entry(*builder).or_default().push(path.clone());
                }
            }
            if wanted.is_empty() {
                return Ok(());
            }
            let asked = questions
                .iter()
                .map(|(peer, paths)| self.shown_with(*peer, paths));
            let mut shown: BTreeMap<StorePath, Vec<Envelope>> = BTreeMap::new();
            for (peer, answers) in futures::future::join_all(asked).await {
                for answer in answers.into_iter().flatten() {
                    if let Some(record) = answer.record.filter(|record| record.signer == peer) {
                        shown.entry(answer.info.path).or_default().push(record);
                    }
                }
            }
            findings.signed.extend(self.keep_signed(wanted, shown).await?);
            Ok(())
        }
    }

    /// Whether what a member shows of a path is believed, and why. Where it depends on a record, what
    /// speaks for the inputs of that record is asked of the same member. `findings` gathers what has been
    /// found out on the way, for the paths that are judged together.
    ///
    /// # Errors
    /// Why it is not believed, in words.
    fn accept(
        &self,
        peer: NodeKey,
        shown: &Shown,
        word: Word,
        findings: &mut Findings,
    ) -> impl Future<Output = Result<Origin, String>> + Send {
        async move {
            let grounds: Grounds = self.grounds();
            let mut stack = vec![shown.clone()];
            let mut budget = EVIDENCE;
            let mut counted: BTreeSet<StorePath> = BTreeSet::new();
            while let Some(top) = stack.last() {
                if stack.len() > EVIDENCE {
                    return Err(format!(
                        "{} is not accepted: its records go in a circle",
                        top.info.path
                    ));
                }
                let of = top.info.path.clone();
                if !names_itself(&top.info) {
                    if is_named_by_content(self, &of) {
                        return Err(no_content_address(&of, peer));
                    }
                    self.gather_signed(std::slice::from_ref(&of), findings).await?;
                }
                let bound = match word {
                    // A rule of its own that takes no word decides by itself.
                    Word::Counts if grounds.policy.for_path(&of).takes_a_word() => {
                        bound_input(self, &grounds, top)
                    }
                    Word::Counts | Word::DoesNotCount | Word::InputsDecide => None,
                };
                let word = if bound.is_some() { Word::InputsDecide } else { word };
                let signed = findings.signed.get(&of).map_or(&[][..], Vec::as_slice);
                let needs = match judge(&grounds, peer, top, signed, &findings.accepted, word) {
                    Verdict::Refused(why) => {
                        return Err(match bound {
                            Some(input) => format!("{why}: {input} ('tvix-node trust explain {input}')"),
                            None => why,
                        });
                    }
                    Verdict::Accepted(origin) => {
                        let (path, tree) = (top.info.path.clone(), top.info.tree);
                        stack.pop();
                        if stack.is_empty() {
                            return Ok(origin);
                        }
                        findings.accepted.elsewhere.insert((path, tree));
                        continue;
                    }
                    Verdict::Needs(needs) => needs,
                };
                let paths: Vec<StorePath> = needs.iter().map(|(path, _)| path.clone()).collect();
                // What is here has been accepted.
                let here: Vec<PathInfo> = self.held(&paths).await?.into_iter().flatten().collect();
                if !here.is_empty() {
                    let here = here.into_iter().map(|info| (info.path, info.tree));
                    findings.accepted.here.extend(here);
                    continue;
                }
                let new = paths
                    .iter()
                    .filter(|path| counted.insert((*path).clone()))
                    .count();
                budget = budget.checked_sub(new).ok_or_else(|| {
                    format!(
                        "{of} is not accepted: more than {EVIDENCE} other paths would have to be looked at for it"
                    )
                })?;
                for ((path, tree), shown) in needs.into_iter().zip(self.shown_by(peer, &paths).await) {
                    let Some(shown) = shown.filter(|shown| shown.info.tree == tree) else {
                        return Err(format!(
                            "{of} is not accepted: nothing is known here of {path}, from which it was built, and {peer} \
                             does not show it"
                        ));
                    };
                    // A builder checks by its name what names itself before it builds from it; so its record,
                    // which counts here, speaks for the content.
                    if names_itself(&shown.info) {
                        findings.accepted.elsewhere.insert((path, tree));
                    } else {
                        stack.push(shown);
                    }
                }
            }
            Err("there is nothing to believe".to_owned())
        }
    }

    /// Looks for paths and everything they refer to: here, then at these members, then at whoever has them.
    ///
    /// What a known derivation makes refers to what known derivations make, and otherwise only to what names itself:
    /// sources, and what these refer to. So a member who is believed for a path is not believed for the sources that he
    /// says it refers to.
    ///
    /// # Errors
    /// Which path cannot be had, and why, in words.
    fn survey(
        &self,
        roots: &[StorePath],
        providers: &[NodeKey],
    ) -> impl Future<Output = Result<Survey, String>> + Send {
        async move {
            let mut survey = Survey::default();
            let mut findings = Findings::default();
            let mut seen: BTreeSet<StorePath> = roots.iter().cloned().collect();
            let mut level: Vec<StorePath> = seen.iter().cloned().collect();
            // What derivations that are known here make or read, and what that refers to.
            let mut reached: BTreeSet<StorePath> = BTreeSet::new();
            while !level.is_empty() {
                let known = level.iter().filter(|path| self.named_by(path).is_some());
                reached.extend(known.cloned());
                let missing = self.take_here(level, &mut survey).await?;
                let by_content = |path: &&StorePath| {
                    let made = self.named_by(path) == Some(NamedBy::Derivation);
                    !made && (reached.contains(*path) || path.is_derivation())
                };
                let by_content: BTreeSet<StorePath> = missing.iter().filter(by_content).cloned().collect();
                let mut reasons = BTreeMap::new();
                let hidden = self.hidden(&missing).await?;
                let at_once = |path: &StorePath| match hidden.contains(path) {
                    true => Vec::new(),
                    false => providers.to_vec(),
                };
                let asked: BTreeMap<StorePath, Vec<NodeKey>> = missing
                    .into_iter()
                    .map(|path| (path.clone(), at_once(&path)))
                    .collect();
                let found = self.take_there(asked, &by_content, &mut survey, &mut findings, &mut reasons);
                let missing = found.await;
                if !missing.is_empty() {
                    let mut holders = self.holders(&missing).await;
                    let others = missing.into_iter().map(|path| {
                        let mut holders = holders.remove(&path).unwrap_or_default();
                        let asked = at_once(&path);
                        holders.retain(|peer| *peer != self.me() && !asked.contains(peer));
                        (path, holders)
                    });
                    let others = others.collect();
                    let found =
                        self.take_there(others, &by_content, &mut survey, &mut findings, &mut reasons);
                    if let Some(path) = found.await.first() {
                        let why = reasons.remove(path);
                        return Err(
                            why.unwrap_or_else(|| format!("nobody in the team is known to have {path}"))
                        );
                    }
                }
                let known = survey.there.iter().filter(|(path, _)| reached.contains(*path));
                let of_known = known.flat_map(|(_, remote)| &remote.shown.info.references);
                let of_known: Vec<StorePath> = of_known.cloned().collect();
                reached.extend(of_known);
                let references = survey
                    .there
                    .values()
                    .flat_map(|remote| &remote.shown.info.references);
                level = references.filter(|path| !seen.contains(*path)).cloned().collect();
                level.sort();
                level.dedup();
                seen.extend(level.iter().cloned());
                if seen.len() > CLOSURE {
                    return Err(format!("the closure has more than the {CLOSURE} paths allowed"));
                }
            }
            Ok(survey)
        }
    }

    /// Of these paths, those that are not here.
    fn take_here(
        &self,
        paths: Vec<StorePath>,
        survey: &mut Survey,
    ) -> impl Future<Output = Result<Vec<StorePath>, String>> + Send {
        async move {
            let infos = self.held(&paths).await?;
            let mut missing = Vec::new();
            for (path, info) in paths.into_iter().zip(infos) {
                match info {
                    Some(info) => drop(survey.here.insert(path, info)),
                    None => missing.push(path),
                }
            }
            Ok(missing)
        }
    }

    /// Asks for each of these paths the first few of its holders. Gives those paths that none of them has
    /// and is believed for. `by_content`: those that have to name themselves.
    fn take_there(
        &self,
        paths: BTreeMap<StorePath, Vec<NodeKey>>,
        by_content: &BTreeSet<StorePath>,
        survey: &mut Survey,
        findings: &mut Findings,
        reasons: &mut BTreeMap<StorePath, String>,
    ) -> impl Future<Output = Vec<StorePath>> + Send {
        async move {
            let mut questions: BTreeMap<NodeKey, Vec<StorePath>> = BTreeMap::new();
            for (path, holders) in &paths {
                for peer in holders.iter().take(PROVIDERS) {
                    questions.entry(*peer).or_default().push(path.clone());
                }
            }
            let mut asked = Vec::with_capacity(questions.len());
            for (peer, paths) in &questions {
                asked.push(self.shown_with(*peer, paths));
            }
            let mut answers: BTreeMap<(NodeKey, StorePath), Shown> = BTreeMap::new();
            for (peer, shown) in futures::future::join_all(asked).await {
                let paths = questions.get(&peer).into_iter().flatten();
                let known = paths
                    .zip(shown)
                    .filter_map(|(path, shown)| Some(((peer, path.clone()), shown?)));
                answers.extend(known);
            }
            let shown: Vec<StorePath> = answers.keys().map(|(_, path)| path.clone()).collect();
            if let Err(error) = self.gather_signed(&shown, findings).await {
                tracing::warn!(error, "what builders signed could not be looked up");
            }
            let mut missing = Vec::new();
            for (path, holders) in paths {
                let mut found: Option<Remote> = None;
                for peer in holders.into_iter().take(PROVIDERS) {
                    let Some(mut shown) = answers.remove(&(peer, path.clone())) else {
                        continue;
                    };
                    let has_to = by_content.contains(&path) || is_named_by_content(self, &path);
                    if has_to {
                        shown = self.addressed(shown).await;
                    }
                    if let Some(remote) = &mut found {
                        if remote.shown.info.tree == shown.info.tree {
                            remote.providers.push(peer);
                        }
                        continue;
                    }
                    if has_to && !names_itself(&shown.info) {
                        reasons
                            .entry(path.clone())
                            .or_insert_with(|| no_content_address(&path, peer));
                        continue;
                    }
                    match self.accept(peer, &shown, Word::Counts, findings).await {
                        Ok(origin) => {
                            let providers = vec![peer];
                            found = Some(Remote {
                                shown,
                                origin,
                                providers,
                            });
                        }
                        Err(why) => drop(reasons.entry(path.clone()).or_insert(why)),
                    }
                }
                match found {
                    Some(remote) => drop(survey.there.insert(path, remote)),
                    None => missing.push(path),
                }
            }
            missing
        }
    }
}

impl<S: Surroundings> Evidence for S {}

/// Whether nobody needs to be believed for a path, and nobody is: the content that leads to its name is the right one.
pub(super) fn is_named_by_content(node: &(impl Surroundings + ?Sized), path: &StorePath) -> bool {
    path.is_derivation() || node.named_by(path) == Some(NamedBy::Content)
}

/// Something of which a path was made, and for which the rules of this node ask for more than somebody's word: by the
/// derivations that are worked on here, and by what is shown of it.
fn bound_input(node: &(impl Surroundings + ?Sized), grounds: &Grounds, shown: &Shown) -> Option<StorePath> {
    let (policy, path) = (&grounds.policy, &shown.info.path);
    if !policy.may_ask_for_more_than_a_word() {
        return None;
    }
    if let Some(input) = node.bound_input(path, policy) {
        return Some(input);
    }
    let record = opened(shown.record.as_ref()?).ok()?;
    let of_path = record.outputs.values().any(|output| output.path == *path);
    let mut inputs = record
        .inputs
        .into_iter()
        .map(|input| input.path)
        .filter(|_| of_path);
    inputs.find(|input| !policy.for_path(input).takes_a_word() && !is_named_by_content(node, input))
}

fn no_content_address(path: &StorePath, peer: NodeKey) -> String {
    format!(
        "{path} from {peer} is not accepted: its name follows from its content, and no content address is shown that \
         leads to it"
    )
}

/// Whether a record holds and names a path as an output.
pub(super) fn names(envelope: &Envelope, path: &StorePath) -> bool {
    opened(envelope).is_ok_and(|record| record.outputs.values().any(|output| output.path == *path))
}

#[cfg(test)]
#[path = "evidence_tests.rs"]
mod tests;
