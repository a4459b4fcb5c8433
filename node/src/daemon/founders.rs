//! Whether the founders of a team have something to do.

use tvix_node_protocol::control::{Finding, Health};
use tvix_node_protocol::roster::Genesis;

use crate::team::TeamNode;

/// A founder that others have put out, who are too few.
struct ToBeOut {
    name: String,
    by: Vec<String>,
}

/// What founders should look at in a team.
pub(super) fn of_founders(team: &TeamNode) -> Vec<Finding> {
    let (state, members) = (team.swarm.team(), team.swarm.members());
    let left: Vec<_> = members
        .iter()
        .filter(|(_, member)| member.issued_by.is_none())
        .collect();
    let pending = left.iter().filter_map(|(key, member)| {
        let by: Vec<String> = state.put_out_by(*key).into_iter().map(|by| by.name).collect();
        let name = member.name.clone();
        (!by.is_empty()).then_some(ToBeOut { name, by })
    });
    let alone = alone(
        state.genesis(),
        left.iter().any(|(key, _)| *key == team.swarm.key()),
    );
    let others = findings(state.genesis(), left.len(), &pending.collect::<Vec<_>>());
    alone
        .filter(|_| !left.is_empty())
        .into_iter()
        .chain(others)
        .collect()
}

/// What hangs on one key in a team that began with one founder. `is_own`: this node's.
fn alone(genesis: &Genesis, is_own: bool) -> Option<Finding> {
    let [founder] = genesis.founders.as_slice() else {
        return None;
    };
    let team = "a team that outlives that begins with several founders, each with a key from 'tvix-node founder-key': \
                'tvix-node invite --new-team --founder NAME=KEY'";
    let about = "founders".to_owned();
    Some(match is_own {
        true => Finding {
            about,
            state: Health::Warning,
            found: "this node is the team's only founder, and nobody becomes one later: if its key is lost, nobody can renew those it \
                    invited, and the team ends with their memberships; if it is stolen, nobody can put it out"
                .to_owned(),
            advice: Some(format!(
                "keep a backup of 'identity' and 'teams' in its home; {team}"
            )),
        },
        false => Finding {
            about,
            state: Health::Good,
            found: format!(
                "all memberships go back to {}, the team's only founder: without its key they cannot be renewed",
                founder.name
            ),
            advice: None,
        },
    })
}

fn findings(genesis: &Genesis, left: usize, pending: &[ToBeOut]) -> Vec<Finding> {
    let (began, needed) = (genesis.founders.len(), genesis.threshold);
    let warning = |found: String, advice: String| Finding {
        about: "founders".to_owned(),
        state: Health::Warning,
        found,
        advice: Some(advice),
    };
    let mut findings: Vec<Finding> = pending
        .iter()
        .map(|ToBeOut { name, by }| {
            let (said, by) = (by.len(), by.join(", "));
            warning(
                format!("{said} of {needed} founders ({by}) said that {name} is to be out"),
                format!(
                    "if its key is lost or stolen, another founder runs 'tvix-node revoke {name}', too; if it is not, ask {by}, whose key \
                     may be in other hands"
                ),
            )
        })
        .collect();
    if left > 0 && left < began && left <= usize::from(needed) {
        findings.push(warning(
            format!(
                "{left} of {began} founders are left, and it takes {needed} to put a founder out: the team cannot do without one more"
            ),
            "keep backups of the founders' homes, and found a new team in time ('tvix-node invite --new-team --founder NAME=KEY')"
                .to_owned(),
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use tvix_node_protocol::envelope::NodeKey;
    use tvix_node_protocol::roster::Founder;

    use super::*;

    fn genesis(founders: u8, threshold: u16) -> Genesis {
        let founder = |seed: u8| Founder {
            key: NodeKey([seed; 32]),
            name: format!("founder {seed}"),
        };
        Genesis {
            name: "team".to_owned(),
            founders: (0..founders).map(founder).collect(),
            threshold,
            salt: [0; 32],
        }
    }

    #[test]
    fn the_only_founder_hears_what_hangs_on_its_key_and_what_helps() {
        let found = alone(&genesis(1, 1), true).unwrap();
        assert_eq!(found.state, Health::Warning);
        assert!(found.found.contains("only founder") && found.found.contains("nobody becomes one later"));
        let advice = found.advice.unwrap();
        assert!(
            advice.contains("backup") && advice.contains("--new-team --founder"),
            "{advice}"
        );
        let found = alone(&genesis(1, 1), false).unwrap();
        assert_eq!((found.state, found.advice), (Health::Good, None));
        assert!(found.found.contains("go back to founder 0"), "{}", found.found);
        assert!(alone(&genesis(2, 1), true).is_none());
    }

    #[test]
    fn founders_hear_of_one_that_others_want_out() {
        let ann = ToBeOut {
            name: "ann".to_owned(),
            by: vec!["bob".to_owned()],
        };
        let found = findings(&genesis(3, 2), 3, &[ann]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].found, "1 of 2 founders (bob) said that ann is to be out");
        assert_eq!(found[0].state, Health::Warning);
        let advice = found[0].advice.as_deref().unwrap();
        assert!(
            advice.contains("'tvix-node revoke ann'") && advice.contains("ask bob"),
            "{advice}"
        );
    }

    #[test]
    fn a_team_that_can_do_without_no_founder_any_more_is_told() {
        let warns =
            |founders, threshold, left| !findings(&genesis(founders, threshold), left, &[]).is_empty();
        assert!(warns(3, 2, 2) && warns(3, 2, 1) && warns(2, 1, 1));
        assert!(!warns(3, 2, 3) && !warns(5, 3, 4));
        // What was chosen when it was founded, and what is told elsewhere.
        assert!(!warns(1, 1, 1) && !warns(2, 2, 2) && !warns(3, 2, 0));
    }
}
