use super::*;

use std::sync::Arc;

use tvix_node_protocol::build::{BuildKey, BuiltOutput, RecordInput};
use tvix_node_protocol::envelope::{NodeSecret, seal};
use tvix_node_protocol::nix::hash::{CAHash, NixHash};
use tvix_node_protocol::nix::store_path::build_ca_path;
use tvix_node_protocol::path_info::NarHash;
use tvix_node_protocol::roster::{Founder, Genesis};
use tvix_node_protocol::tree::TreeDigest;
use tvix_node_protocol::trust::{PathPattern, Requirement, TrustPolicy, TrustRule};
use tvix_node_swarm::roster::Roster;

fn key(number: u8) -> NodeKey {
    NodeSecret::from_bytes(&[number; 32]).key()
}

/// Member 1 lies, member 2 does not; both have every role, so the word of both counts.
const LIAR: u8 = 1;
const HONEST: u8 = 2;

struct Team {
    grounds: Grounds,
    shown: BTreeMap<(NodeKey, StorePath), Shown>,
    named: BTreeMap<StorePath, NamedBy>,
    fixed: BTreeMap<StorePath, String>,
    /// By path: what it was made of, for which the rules ask for more.
    bound: BTreeMap<StorePath, StorePath>,
    remembered: ShownPaths,
}

impl Team {
    fn new(shown: &[(u8, PathInfo)], named: &[(&StorePath, NamedBy)]) -> Self {
        let founder = |number: u8| Founder {
            key: key(number),
            name: format!("member-{number}"),
        };
        let mut founders = vec![founder(LIAR), founder(HONEST)];
        founders.sort_by_key(|founder| founder.key);
        let roster = Roster::new(Genesis {
            name: "team".into(),
            founders,
            threshold: 1,
            salt: [0; 32],
        })
        .unwrap();
        let shown = shown.iter().cloned().map(|(peer, info)| {
            let record = None;
            ((key(peer), info.path.clone()), Shown { info, record })
        });
        Self {
            grounds: Grounds {
                members: vec![Arc::new(roster.members(0))],
                policy: Arc::new(TrustPolicy::default()),
                me: key(9),
            },
            shown: shown.collect(),
            named: named.iter().map(|(path, by)| ((*path).clone(), *by)).collect(),
            fixed: BTreeMap::new(),
            bound: BTreeMap::new(),
            remembered: ShownPaths::default(),
        }
    }
}

impl Surroundings for Team {
    fn grounds(&self) -> Grounds {
        self.grounds.clone()
    }

    fn me(&self) -> NodeKey {
        self.grounds.me
    }

    fn connected(&self) -> BTreeSet<NodeKey> {
        [key(LIAR), key(HONEST)].into()
    }

    fn remembered(&self) -> &ShownPaths {
        &self.remembered
    }

    fn named_by(&self, path: &StorePath) -> Option<NamedBy> {
        self.named.get(path).copied()
    }

    fn bound_input(&self, path: &StorePath, _: &Arc<TrustPolicy>) -> Option<StorePath> {
        self.bound.get(path).cloned()
    }

    async fn content_address(&self, path: &StorePath) -> Option<String> {
        self.fixed.get(path).cloned()
    }

    async fn ask_paths(&self, peer: NodeKey, paths: &[StorePath]) -> Result<Vec<Option<Shown>>, String> {
        let shown = paths
            .iter()
            .map(|path| self.shown.get(&(peer, path.clone())).cloned());
        Ok(shown.collect())
    }

    async fn holders(&self, paths: &[StorePath]) -> BTreeMap<StorePath, Vec<NodeKey>> {
        let holders = |path: &StorePath| {
            let peers = [key(LIAR), key(HONEST)].into_iter();
            peers
                .filter(|peer| self.shown.contains_key(&(*peer, path.clone())))
                .collect()
        };
        paths.iter().map(|path| (path.clone(), holders(path))).collect()
    }

    async fn held(&self, paths: &[StorePath]) -> Result<Vec<Option<PathInfo>>, String> {
        Ok(vec![None; paths.len()])
    }

    async fn hidden(&self, _: &[StorePath]) -> Result<BTreeSet<StorePath>, String> {
        Ok(BTreeSet::new())
    }

    async fn keep_signed(
        &self,
        paths: Vec<StorePath>,
        mut signed: BTreeMap<StorePath, Vec<Envelope>>,
    ) -> Result<Vec<(StorePath, Vec<BuildRecord>)>, String> {
        let all = paths.into_iter().map(|path| {
            let signed = signed.remove(&path).unwrap_or_default();
            let records = signed.iter().filter_map(|envelope| opened(envelope).ok());
            (path, records.collect())
        });
        Ok(all.collect())
    }
}

/// Without a content address.
fn info(path: &StorePath, content: u8, references: &[&StorePath]) -> PathInfo {
    PathInfo {
        path: path.clone(),
        tree: TreeDigest([content; 32]),
        nar_hash: NarHash([content; 32]),
        nar_size: 1,
        references: references.iter().map(|path| (*path).clone()).collect(),
        deriver: None,
        ca: None,
        origin: Origin::Built,
        registered: 1,
        signatures: vec![],
    }
}

/// A source with this content, as those show it who have it.
fn source(content: u8) -> PathInfo {
    let ca = CAHash::Nar(NixHash::Sha256([content; 32]));
    let path = build_ca_path("source", &ca, std::iter::empty(), false).unwrap();
    PathInfo {
        ca: Some(ca.to_nix_string()),
        ..info(&path, content, &[])
    }
}

fn output(number: u8) -> StorePath {
    StorePath::from_parts([number; 20], "output").unwrap()
}

async fn tree_of(team: &Team, root: &StorePath, path: &StorePath) -> Result<(u8, Origin), String> {
    let survey = team.survey(std::slice::from_ref(root), &[key(LIAR)]).await?;
    let remote = &survey.there[path];
    Ok((remote.shown.info.tree.0[0], remote.origin.clone()))
}

#[tokio::test]
async fn a_source_that_an_output_refers_to_is_taken_by_its_name_and_on_nobody_s_word() {
    let (root, source) = (output(1), source(7));
    let path = source.path.clone();
    let false_one = info(&path, 66, &[]);
    let shown = [(LIAR, info(&root, 1, &[&path])), (LIAR, false_one)];
    let known = [(&root, NamedBy::Derivation)];
    let team = Team::new(&shown, &known);
    let why = tree_of(&team, &root, &path).await.unwrap_err();
    assert!(why.contains("no content address is shown"), "{why}");
    // Whoever shows its content address is found, whether the derivation that reads it is known or not.
    let all = [&shown[..], &[(HONEST, source)]].concat();
    for known in [&known[..], &[known[0], (&path, NamedBy::Content)]] {
        let team = Team::new(&all, known);
        assert_eq!(tree_of(&team, &root, &path).await, Ok((7, Origin::Content)));
    }
}

#[tokio::test]
async fn what_sources_refer_to_is_taken_by_its_name() {
    let (first, second) = (output(1), source(7));
    let text = CAHash::Text([5; 32]);
    let path = build_ca_path("text", &text, [&second.path], false).unwrap();
    let text = PathInfo {
        ca: Some(text.to_nix_string()),
        ..info(&path, 5, &[&second.path])
    };
    let shown = [
        (LIAR, info(&first, 1, &[&path])),
        (LIAR, text),
        (LIAR, info(&second.path, 66, &[])),
        (HONEST, second.clone()),
    ];
    let team = Team::new(&shown, &[(&first, NamedBy::Derivation)]);
    assert_eq!(
        tree_of(&team, &first, &second.path).await,
        Ok((7, Origin::Content))
    );
}

#[tokio::test]
async fn what_derivations_make_is_taken_on_a_word_with_what_it_refers_to() {
    let (first, second) = (output(1), output(2));
    let shown = [
        (LIAR, info(&first, 1, &[&first, &second])),
        (LIAR, info(&second, 2, &[])),
    ];
    let peer = key(LIAR);
    let all = [(&first, NamedBy::Derivation), (&second, NamedBy::Derivation)];
    // Of what no derivation here knows nothing can be told but what a member says.
    for known in [&all[..], &[]] {
        let team = Team::new(&shown, known);
        let taken = tree_of(&team, &first, &second).await;
        assert_eq!(taken, Ok((2, Origin::Peer { peer })), "{known:?}");
    }
    let team = Team::new(&shown, &all[..1]);
    let why = tree_of(&team, &first, &second).await.unwrap_err();
    assert!(why.contains("no content address is shown"), "{why}");
}

#[tokio::test]
async fn nobody_s_word_is_enough_for_a_source_a_fixed_output_or_a_derivation() {
    let source = source(7);
    let derivation = StorePath::from_parts([3; 20], "hello.drv").unwrap();
    let made = output(4);
    let known = [(&source.path, NamedBy::Content), (&made, NamedBy::Derivation)];
    let team = Team::new(&[], &known);
    let judged = async |info: PathInfo| {
        let shown = Shown { info, record: None };
        let mut findings = Findings::default();
        team.accept(key(LIAR), &shown, Word::Counts, &mut findings).await
    };
    for path in [&source.path, &derivation] {
        let why = judged(info(path, 66, &[])).await.unwrap_err();
        assert!(why.contains("no content address is shown"), "{why}");
    }
    // With another tree this fails when it comes.
    assert_eq!(judged(source).await, Ok(Origin::Content));
    let peer = key(LIAR);
    assert_eq!(judged(info(&made, 1, &[])).await, Ok(Origin::Peer { peer }));
}

#[tokio::test]
async fn a_content_address_that_was_left_out_is_put_in_where_it_is_known_or_follows() {
    // As an import or an old cache leaves them.
    let source = source(7);
    let plain = info(&source.path, 7, &[]);
    let flat = CAHash::Flat(NixHash::Sha256([8; 32]));
    let fetched = build_ca_path("fetched", &flat, std::iter::empty(), false).unwrap();
    let shown = [(LIAR, plain), (LIAR, info(&fetched, 66, &[]))];
    let known = [(&source.path, NamedBy::Content), (&fetched, NamedBy::Content)];
    let mut team = Team::new(&shown, &known);
    let path = &source.path;
    assert_eq!(tree_of(&team, path, path).await, Ok((7, Origin::Content)));
    let why = tree_of(&team, &fetched, &fetched).await.unwrap_err();
    assert!(why.contains("no content address is shown"), "{why}");
    // What comes is held against it.
    team.fixed.insert(fetched.clone(), flat.to_nix_string());
    let survey = team
        .survey(std::slice::from_ref(&fetched), &[key(LIAR)])
        .await
        .unwrap();
    assert_eq!(survey.there[&fetched].shown.info.ca, Some(flat.to_nix_string()));
    assert_eq!(survey.there[&fetched].origin, Origin::Content);
}

/// What a member made of these inputs, and signed.
fn made(by: u8, info: PathInfo, inputs: &[(&StorePath, u8)]) -> Shown {
    let output = BuiltOutput {
        path: info.path.clone(),
        tree: info.tree,
        nar_hash: info.nar_hash,
        nar_size: info.nar_size,
        references: vec![],
    };
    let inputs = inputs.iter().map(|(path, content)| RecordInput {
        path: (*path).clone(),
        tree: TreeDigest([*content; 32]),
    });
    let record = BuildRecord {
        build_key: BuildKey([0; 32]),
        request: None,
        derivation: StorePath::from_parts([9; 20], "any.drv").unwrap(),
        inputs: inputs.collect(),
        outputs: BTreeMap::from([("out".to_owned(), output)]),
        builder: key(by),
        started: 1,
        finished: 2,
        sandbox: "test".into(),
    };
    let record = Some(seal(&record, &NodeSecret::from_bytes(&[by; 32])).unwrap());
    Shown { info, record }
}

#[tokio::test]
async fn what_members_made_of_different_builds_of_one_input_is_believed_in_one_question() {
    let input = output(5);
    let mut team = Team::new(&[], &[(&input, NamedBy::Derivation)]);
    for builder in [LIAR, HONEST] {
        let shown = made(builder, info(&input, builder, &[]), &[]);
        team.shown.insert((key(builder), input.clone()), shown);
    }
    let mut findings = Findings::default();
    for builder in [LIAR, HONEST, LIAR] {
        let shown = made(
            builder,
            info(&output(builder), builder, &[]),
            &[(&input, builder)],
        );
        let believed = team.accept(key(builder), &shown, Word::DoesNotCount, &mut findings);
        let builder = key(builder);
        assert_eq!(believed.await, Ok(Origin::Record { builder }));
    }
    // Who does not show what it was made of is not believed because another one does.
    let shown = made(LIAR, info(&output(LIAR), LIAR, &[]), &[(&input, 66)]);
    let why = team.accept(key(LIAR), &shown, Word::DoesNotCount, &mut findings);
    let why = why.await.unwrap_err();
    assert!(why.contains("does not show it"), "{why}");
}

/// A team with a rule that two have to agree on one path.
fn with_quorum_on(input: &StorePath) -> Team {
    let mut team = Team::new(&[], &[(input, NamedBy::Derivation)]);
    let mut policy = TrustPolicy::default();
    let rule = TrustRule {
        paths: Some(PathPattern::new(&input.to_absolute_path()).unwrap()),
        builder: None,
        requirement: Requirement::Quorum {
            needed: 2,
            of: vec![key(LIAR), key(HONEST)],
        },
        because: None,
    };
    policy.set(rule).unwrap();
    team.grounds.policy = Arc::new(policy);
    team
}

#[tokio::test]
async fn a_word_for_what_was_made_from_a_path_does_not_get_round_the_quorum_on_that() {
    let (input, made_of_it) = (output(5), output(6));
    let mut team = with_quorum_on(&input);
    team.bound.insert(made_of_it.clone(), input.clone());
    let word = |content| Shown {
        info: info(&made_of_it, content, &[]),
        record: None,
    };
    // By what a derivation here says, whatever is shown.
    let mut findings = Findings::default();
    let why = team
        .accept(key(LIAR), &word(1), Word::Counts, &mut findings)
        .await;
    let why = why.unwrap_err();
    assert!(
        why.contains("asks for more") && why.contains(input.name()),
        "{why}"
    );

    // By what its builder signed, where nothing is known here: so far only he made the input.
    team.bound.clear();
    let shown_input = made(LIAR, info(&input, 5, &[]), &[]);
    team.shown.insert((key(LIAR), input.clone()), shown_input);
    let signed = made(LIAR, info(&made_of_it, 1, &[]), &[(&input, 5)]);
    let mut findings = Findings::default();
    let why = team.accept(key(LIAR), &signed, Word::Counts, &mut findings).await;
    let why = why.unwrap_err();
    assert!(why.contains("have to agree"), "{why}");

    // The other one made the same of it: the record counts, and with it what was made.
    let shown_input = made(HONEST, info(&input, 5, &[]), &[]);
    team.shown.insert((key(HONEST), input.clone()), shown_input);
    team.bound.insert(made_of_it.clone(), input.clone());
    let mut findings = Findings::default();
    let builder = key(LIAR);
    let believed = team.accept(builder, &signed, Word::Counts, &mut findings).await;
    assert_eq!(believed, Ok(Origin::Record { builder }));

    // Without such a rule the word is enough.
    team.grounds.policy = Arc::default();
    let believed = team
        .accept(key(LIAR), &word(1), Word::Counts, &mut findings)
        .await;
    assert_eq!(believed, Ok(Origin::Peer { peer: key(LIAR) }));
}

#[tokio::test]
async fn no_word_is_enough_for_a_path_on_which_several_have_to_agree_whoever_gives_it() {
    let path = output(5);
    let mut team = with_quorum_on(&path);
    for peer in [LIAR, HONEST] {
        let shown = Shown {
            info: info(&path, 5, &[]),
            record: None,
        };
        team.shown.insert((key(peer), path.clone()), shown.clone());
        let mut findings = Findings::default();
        let believed = team.accept(key(peer), &shown, Word::Counts, &mut findings);
        assert!(believed.await.is_err(), "two words are no two records");
    }
}

#[test]
fn what_members_said_of_paths_is_remembered_within_its_bound_however_they_fill_it() {
    let long = || "x".repeat(8 << 20);
    let signed = PathInfo {
        signatures: vec![long()],
        ..info(&output(0), 1, &[])
    };
    let addressed = PathInfo {
        ca: Some(long()),
        ..info(&output(0), 1, &[])
    };
    let mut recorded = made(LIAR, info(&output(0), 1, &[]), &[]);
    recorded.record.as_mut().unwrap().payload = vec![0; 8 << 20];
    let mut named = made(LIAR, info(&output(0), 1, &[]), &[]);
    named.record.as_mut().unwrap().domain = long();
    let plain = |info| Shown { info, record: None };
    for mut shown in [plain(signed), plain(addressed), recorded, named] {
        let remembered = ShownPaths::default();
        for number in 0..20 {
            shown.info.path = output(number);
            remembered.keep(key(LIAR), &shown);
            let kept = remembered.lock();
            assert!(kept.paths.len() << 23 <= SHOWN_BYTES && kept.bytes <= SHOWN_BYTES);
        }
        assert!(remembered.get(key(LIAR), &output(19)).is_some());
    }
}

#[tokio::test]
async fn so_many_other_paths_are_looked_at_to_believe_one() {
    let team = Team::new(&[], &[]);
    let inputs: Vec<StorePath> = (0..=EVIDENCE)
        .map(|number| {
            let mut hash = [1; 20];
            hash[..8].copy_from_slice(&number.to_le_bytes());
            StorePath::from_parts(hash, "input").unwrap()
        })
        .collect();
    let judged = async |inputs: &[StorePath]| {
        let inputs: Vec<(&StorePath, u8)> = inputs.iter().map(|path| (path, 1)).collect();
        let shown = made(LIAR, info(&output(1), 1, &[]), &inputs);
        let mut findings = Findings::default();
        let judged = team.accept(key(LIAR), &shown, Word::DoesNotCount, &mut findings);
        judged.await.unwrap_err()
    };
    let why = judged(&inputs[1..]).await;
    assert!(why.contains("does not show it"), "{why}");
    let why = judged(&inputs).await;
    assert!(why.contains("would have to be looked at"), "{why}");
}

#[tokio::test]
async fn a_closure_of_more_paths_than_allowed_is_not_asked_for() {
    let root = output(1);
    let references: Vec<StorePath> = (0..CLOSURE)
        .map(|number| {
            let mut hash = [1; 20];
            hash[..8].copy_from_slice(&number.to_le_bytes());
            StorePath::from_parts(hash, "reference").unwrap()
        })
        .collect();
    let survey = async |references: &[StorePath]| {
        let references: Vec<&StorePath> = references.iter().collect();
        let team = Team::new(&[(LIAR, info(&root, 1, &references))], &[]);
        tree_of(&team, &root, &root).await.unwrap_err()
    };
    let why = survey(&references[1..]).await;
    assert!(why.contains("nobody in the team is known to have"), "{why}");
    let why = survey(&references).await;
    assert!(why.contains("the closure has more than"), "{why}");
}
