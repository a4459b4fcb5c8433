//! The policy in small random worlds: honest builders that are given false inputs, members without a role that
//! show what they like, and records of all of them going round. Whatever happens, what is accepted is what
//! honest inputs lead to. In some worlds the first liar builds for the team, too, with every role there is, and two
//! of three builders have to agree.
//!
//! A seed that fails is printed; `TRUST_SEED=N` runs it alone.

use tvix_node_protocol::build::BuildKey;
use tvix_node_protocol::envelope::{NodeSecret, seal};
use tvix_node_protocol::nix::hash::NixHash;
use tvix_node_protocol::path_info::NarHash;
use tvix_node_protocol::roster::{Founder, Genesis, Roles};
use tvix_node_protocol::trust::TrustRule;
use tvix_node_swarm::roster::Roster;

use super::*;

/// Marsaglia's xorshift; good enough to choose with.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap() % sides
    }
}

fn secret(number: usize) -> NodeSecret {
    NodeSecret::from_bytes(&[u8::try_from(number + 1).unwrap(); 32])
}

/// Worlds in one run: most of their time goes into signing records.
const WORLDS: u64 = 60;

/// Honest members with all roles, and liars that have `request` alone.
const HONEST: usize = 2;
const LIARS: usize = 2;

/// What the node that judges has as its rules.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rules {
    /// None: the roster decides.
    None,
    /// Two of three builders have to agree, one of which is a liar.
    Quorum,
}

fn members(rules: Rules) -> Members {
    let mut founders: Vec<Founder> = (0..HONEST + LIARS)
        .map(|number| Founder {
            key: secret(number).key(),
            name: format!("member-{number}"),
        })
        .collect();
    founders.sort_by_key(|founder| founder.key);
    let (name, threshold, salt) = ("team".into(), 1, [0; 32]);
    let genesis = Genesis {
        name,
        founders,
        threshold,
        salt,
    };
    let untrusted: Roles = [Role::Build, Role::Store, Role::Invite].into_iter().collect();
    let trusted_liars = usize::from(rules == Rules::Quorum);
    let distrusted =
        (HONEST + trusted_liars..HONEST + LIARS).map(|liar| (secret(liar).key(), untrusted.clone()));
    Roster::new(genesis)
        .unwrap()
        .members(0)
        .without(&distrusted.collect())
}

/// What a build makes of its inputs: something else of every false one.
fn made(path: &StorePath, inputs: &[(StorePath, TreeDigest)]) -> TreeDigest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(path.to_basename().as_bytes());
    for (path, tree) in inputs {
        hasher.update(path.to_basename().as_bytes());
        hasher.update(&tree.0);
    }
    TreeDigest(*hasher.finalize().as_bytes())
}

/// A path of the world: a source, which names itself, or what is built from earlier ones.
struct Thing {
    info: PathInfo,
    inputs: Vec<usize>,
}

fn world(dice: &mut Dice) -> Vec<Thing> {
    let mut things: Vec<Thing> = Vec::new();
    for number in 0..12 {
        let name = format!("thing-{number}");
        let mut hash = [0; 20];
        hash.copy_from_slice(&blake3::hash(name.as_bytes()).as_bytes()[..20]);
        let mut info = PathInfo {
            path: StorePath::from_parts(hash, &name).unwrap(),
            tree: TreeDigest([0; 32]),
            nar_hash: NarHash(*blake3::hash(name.as_bytes()).as_bytes()),
            nar_size: 1,
            references: BTreeSet::new(),
            deriver: None,
            ca: None,
            origin: Origin::Built,
            registered: 1,
            signatures: vec![],
        };
        let mut inputs = Vec::new();
        if number < 3 {
            let ca = CAHash::Nar(NixHash::Sha256(info.nar_hash.0));
            info.path = build_ca_path(&name, &ca, std::iter::empty(), false).unwrap();
            info.ca = Some(ca.to_nix_string());
        } else {
            info.deriver = Some(StorePath::from_parts(hash, &format!("{name}.drv")).unwrap());
            inputs = (0..number).filter(|_| dice.roll(3) == 0).collect();
        }
        let true_inputs: Vec<_> = inputs
            .iter()
            .map(|input: &usize| (things[*input].info.path.clone(), things[*input].info.tree))
            .collect();
        info.tree = made(&info.path, &true_inputs);
        things.push(Thing { info, inputs });
    }
    things
}

fn record(info: &PathInfo, inputs: &[(StorePath, TreeDigest)], builder: usize) -> Envelope {
    let output = BuiltOutput {
        path: info.path.clone(),
        tree: info.tree,
        nar_hash: info.nar_hash,
        nar_size: info.nar_size,
        references: vec![],
    };
    let inputs = inputs
        .iter()
        .cloned()
        .map(|(path, tree)| RecordInput { path, tree });
    let record = BuildRecord {
        build_key: BuildKey([0; 32]),
        request: None,
        derivation: info.deriver.clone().unwrap_or_else(|| info.path.clone()),
        inputs: inputs.collect(),
        outputs: [("out".to_owned(), output)].into(),
        builder: secret(builder).key(),
        started: 1,
        finished: 2,
        sandbox: "test".into(),
    };
    seal(&record, &secret(builder)).unwrap()
}

/// Something that is shown: by an honest builder that was given whatever a requester gave it, or by a liar
/// that makes it up.
fn shown(dice: &mut Dice, things: &[Thing]) -> (NodeKey, Shown, usize) {
    let at = dice.roll(things.len());
    let thing = &things[at];
    let lie = |dice: &mut Dice| TreeDigest([u8::try_from(dice.roll(3) + 1).unwrap(); 32]);
    let mut inputs = Vec::new();
    for input in &thing.inputs {
        let input = &things[*input].info;
        // A source is checked by its name before it is built from; of the rest any may be false.
        let false_one = input.ca.is_none() && dice.roll(4) == 0;
        inputs.push((input.path.clone(), if false_one { lie(dice) } else { input.tree }));
    }
    let mut info = thing.info.clone();
    let builder = dice.roll(HONEST + LIARS);
    if builder >= HONEST && info.ca.is_none() && dice.roll(3) > 0 {
        info.tree = lie(dice);
    } else {
        info.tree = made(&info.path, &inputs);
    }
    let signed = (info.ca.is_none() && dice.roll(5) > 0).then(|| record(&info, &inputs, builder));
    // Honest members show under its name only what they accept; liars show anything, an honest builder's
    // record of a build from their false inputs too.
    let honest = info.tree == thing.info.tree;
    let peer = if honest && dice.roll(2) == 0 {
        dice.roll(HONEST)
    } else {
        HONEST + dice.roll(LIARS)
    };
    let record = signed;
    (secret(peer).key(), Shown { info, record }, at)
}

fn grounds(rules: Rules) -> Grounds {
    let mut policy = TrustPolicy::default();
    if rules == Rules::Quorum {
        let of = (0..=HONEST).map(|number| secret(number).key()).collect();
        let requirement = Requirement::Quorum { needed: 2, of };
        let rule = TrustRule {
            paths: None,
            builder: None,
            requirement,
            because: None,
        };
        policy.set(rule).unwrap();
    }
    Grounds {
        members: vec![Arc::new(members(rules))],
        policy: Arc::new(policy),
        me: NodeKey([0xee; 32]),
    }
}

/// How many paths are accepted that do not name themselves.
fn run(seed: u64, rules: Rules) -> usize {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let (grounds, things) = (grounds(rules), world(&mut dice));
    let mut accepted = Accepted::default();
    let mut count = 0;
    // What was signed so far and goes round.
    let mut signed: BTreeMap<StorePath, Vec<BuildRecord>> = BTreeMap::new();
    for _ in 0..160 {
        let (peer, shown, at) = shown(&mut dice, &things);
        let word = if dice.roll(2) == 0 {
            Word::Counts
        } else {
            Word::DoesNotCount
        };
        let known = signed.entry(shown.info.path.clone()).or_default();
        known.extend(shown.record.as_ref().map(|record| opened(record).unwrap()));
        // Not everybody can be reached every time.
        let reached: BTreeSet<NodeKey> = (0..HONEST + LIARS)
            .filter(|_| dice.roll(4) > 0)
            .map(|number| secret(number).key())
            .collect();
        let records: Vec<BuildRecord> = known
            .iter()
            .filter(|record| reached.contains(&record.builder))
            .cloned()
            .collect();
        // What is fetched under a name that names itself is checked when it comes, so only its record counts.
        if let Verdict::Accepted(_) = judge(&grounds, peer, &shown, &records, &accepted, word) {
            let truth = &things[at].info;
            assert_eq!(
                shown.info.tree, truth.tree,
                "seed {seed}: a false {} is accepted",
                truth.path
            );
            let new = accepted.here.insert(truth.path.clone(), truth.tree).is_none();
            count += usize::from(new && truth.ca.is_none());
        }
    }
    count
}

fn run_all(rules: Rules) -> usize {
    if let Some(seed) = std::env::var("TRUST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
    {
        return run(seed, rules).max(usize::MAX / 2);
    }
    (0..WORLDS).map(|seed| run(seed, rules)).sum()
}

#[test]
fn nothing_false_is_ever_accepted() {
    let accepted = run_all(Rules::None);
    // The worlds are no desert: most of what is true gets through.
    assert!(accepted > 5 * usize::try_from(WORLDS).unwrap(), "{accepted}");
}

#[test]
fn nothing_false_is_accepted_where_a_trusted_builder_lies_and_two_have_to_agree() {
    let accepted = run_all(Rules::Quorum);
    assert!(accepted > usize::try_from(WORLDS).unwrap(), "{accepted}");
}

/// The worlds are hard enough to show a guard that is missing.
#[test]
fn a_trusted_builder_that_lies_is_believed_where_nobody_has_to_agree() {
    let believed = |seed| {
        let grounds = Grounds {
            policy: Arc::new(TrustPolicy::default()),
            ..grounds(Rules::Quorum)
        };
        let mut dice = Dice(seed | 1);
        let things = world(&mut dice);
        let mut shown = (0..160).map(|_| shown(&mut dice, &things));
        shown.any(|(peer, shown, at)| {
            let verdict = judge(&grounds, peer, &shown, &[], &Accepted::default(), Word::Counts);
            matches!(verdict, Verdict::Accepted(_)) && shown.info.tree != things[at].info.tree
        })
    };
    assert!((0..WORLDS).any(believed));
}
