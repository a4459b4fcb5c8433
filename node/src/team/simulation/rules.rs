//! What the owners of machines believe: rules for paths, and for single builders. Which path a rule is for is worked out
//! here from names, without the code that is checked.

use std::collections::BTreeSet;

use tvix_node_protocol::StorePath;
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::trust::{PathPattern, Requirement, TrustPolicy, TrustRule};

use super::dice::Dice;
use super::plan::Job;

/// What has to speak for a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    Roster,
    Sample(u8),
    /// So many of these.
    Quorum {
        needed: usize,
        of: Vec<usize>,
    },
    Own,
}

impl Rule {
    /// Whether it asks for more than somebody's word, and so reaches what is made of the path.
    pub fn binds(&self) -> bool {
        matches!(self, Self::Quorum { .. } | Self::Own)
    }

    fn requirement(&self, keys: &[NodeKey]) -> Requirement {
        match self {
            Self::Roster => Requirement::Roster,
            Self::Sample(percent) => Requirement::Sample { percent: *percent },
            Self::Quorum { needed, of } => Requirement::Quorum {
                needed: u32::try_from(*needed).unwrap(),
                of: of.iter().map(|at| keys[*at]).collect(),
            },
            Self::Own => Requirement::Own,
        }
    }
}

/// For which paths a rule is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Paths {
    All,
    Whole(StorePath),
    Named(String),
    Begins(String),
    Ends(String),
    Contains(String),
    /// What begins like this and has one letter more.
    OneMore(String),
}

impl Paths {
    fn pattern(&self) -> Option<PathPattern> {
        let text = match self {
            Self::All => return None,
            Self::Whole(path) => path.to_absolute_path(),
            Self::Named(name) => name.clone(),
            Self::Begins(name) => format!("{name}*"),
            Self::Ends(name) => format!("*{name}"),
            Self::Contains(name) => format!("*{name}*"),
            Self::OneMore(name) => format!("{name}?"),
        };
        Some(PathPattern::new(&text).unwrap())
    }

    fn has(&self, path: &StorePath) -> bool {
        let name = path.name();
        match self {
            Self::All => true,
            Self::Whole(whole) => whole == path,
            Self::Named(own) => name == own,
            Self::Begins(begin) => name.starts_with(begin),
            Self::Ends(end) => name.ends_with(end),
            Self::Contains(part) => name.contains(part),
            Self::OneMore(begin) => name.len() == begin.len() + 1 && name.starts_with(begin),
        }
    }
}

/// All rules of an owner, in the order in which they are tried: those for all paths come last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    pub paths: Vec<(Paths, Rule)>,
    /// Of whom nothing counts, for which paths; true: it does count.
    pub builders: Vec<(usize, Paths, bool)>,
}

impl Rules {
    /// One rule for everything.
    pub fn for_all(rule: Rule) -> Self {
        Self {
            paths: vec![(Paths::All, rule)],
            builders: vec![],
        }
    }

    pub fn of(&self, path: &StorePath) -> &Rule {
        let first = self.paths.iter().find(|(paths, _)| paths.has(path));
        first.map_or(&Rule::Roster, |(_, rule)| rule)
    }

    /// Those of the outputs of a job that ask for more than a word, each once.
    pub fn binding<'a>(&'a self, job: &Job) -> Vec<&'a Rule> {
        let mut binding: Vec<&Rule> = vec![];
        for rule in job.outputs.values().map(|path| self.of(path)) {
            if rule.binds() && !binding.contains(&rule) {
                binding.push(rule);
            }
        }
        binding
    }

    /// Whether what a builder made, or says, of a path counts for nothing.
    pub fn distrusts(&self, builder: usize, path: &StorePath) -> bool {
        let mut of = self.builders.iter().filter(|(of, _, _)| *of == builder);
        of.find(|(_, paths, _)| paths.has(path))
            .is_some_and(|(_, _, counts)| !counts)
    }

    /// Whether it does for no path.
    pub fn distrusts_wholly(&self, builder: usize) -> bool {
        let mut of = self.builders.iter().filter(|(of, _, _)| *of == builder);
        of.next()
            .is_some_and(|(_, paths, counts)| *paths == Paths::All && !counts)
    }

    pub fn asks_several(&self) -> bool {
        let mut rules = self.paths.iter();
        rules.any(|(_, rule)| matches!(rule, Rule::Quorum { .. }))
    }

    /// As the owner sets them, one after the other: the one that is set last is tried first.
    pub fn policy(&self, keys: &[NodeKey]) -> TrustPolicy {
        let mut policy = TrustPolicy::default();
        let mut set = |paths: &Paths, builder: Option<NodeKey>, requirement| {
            let rule = TrustRule {
                paths: paths.pattern(),
                builder,
                requirement,
                because: None,
            };
            policy.set(rule).unwrap();
        };
        for (paths, rule) in self.paths.iter().rev() {
            set(paths, None, rule.requirement(keys));
        }
        for (builder, paths, counts) in self.builders.iter().rev() {
            let requirement = match counts {
                true => Requirement::Roster,
                false => Requirement::Own,
            };
            set(paths, Some(keys[*builder]), requirement);
        }
        policy
    }

    /// Rules that differ from path to path, and from builder to builder. `builders`: who may be one of several that have
    /// to agree; `builds`: whether the machine can build itself; `stores`: whose word counts.
    pub fn mixed(
        dice: &mut Dice,
        jobs: &[Job],
        (at, nodes): (usize, usize),
        (builders, builds): (&[usize], bool),
        stores: &[usize],
    ) -> Self {
        let mut rules = Self::default();
        for _ in 0..dice.between(1, 3) {
            let paths = some_paths(dice, jobs);
            let rule = some_rule(dice, builders, builds);
            rules.paths.push((paths, rule));
        }
        if dice.percent(30) {
            rules.paths.push((Paths::All, some_rule(dice, builders, builds)));
        }
        if dice.percent(35) {
            let stores: Vec<usize> = stores.iter().copied().filter(|store| *store != at).collect();
            let builder = match stores.len() {
                count if count > 0 && dice.percent(60) => stores[dice.below(count)],
                _ => (at + 1 + dice.below(nodes - 1)) % nodes,
            };
            if dice.percent(30) {
                rules.builders.push((builder, some_paths(dice, jobs), true));
            }
            let paths = match dice.percent(50) {
                true => Paths::All,
                false => some_paths(dice, jobs),
            };
            rules.builders.push((builder, paths, false));
        }
        rules
    }
}

fn some_rule(dice: &mut Dice, builders: &[usize], builds: bool) -> Rule {
    match dice.below(100) {
        0..40 if builders.len() >= 3 => {
            let of: BTreeSet<usize> = dice.some(builders.len(), 3).into_iter().collect();
            let needed = if dice.percent(80) { 2 } else { 3 };
            Rule::Quorum {
                needed,
                of: of.into_iter().map(|number| builders[number]).collect(),
            }
        }
        40..70 if builds => Rule::Own,
        70..85 => Rule::Sample(10),
        _ => Rule::Roster,
    }
}

/// A pattern that fits something, most of the time what other things are made of.
fn some_paths(dice: &mut Dice, jobs: &[Job]) -> Paths {
    let any = &jobs[dice.below(jobs.len())];
    let job = match any.inputs.len() {
        0 => any,
        inputs => &jobs[any.inputs[dice.below(inputs)]],
    };
    let outputs: Vec<&StorePath> = job.outputs.values().collect();
    let path = outputs[dice.below(outputs.len())];
    let name = path.name().to_owned();
    match dice.below(6) {
        0 => Paths::Whole(path.clone()),
        1 => Paths::Named(name),
        2 => Paths::Begins(name),
        // Sources are called like that, too.
        3 => Paths::Ends(name.trim_start_matches("job").to_owned()),
        4 => Paths::Contains(name.trim_start_matches('j').to_owned()),
        _ => Paths::OneMore(name[..name.len() - 1].to_owned()),
    }
}
