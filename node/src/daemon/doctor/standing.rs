//! How this node stands in its team, by the roster.

use tvix_node_protocol::control::{Finding, Health, WaitingView};
use tvix_node_protocol::roster::{Lapse, Role};

use super::{finding, good};
use crate::daemon::clock::now;
use crate::daemon::team_api::waiting_view;
use crate::team::TeamNode;

/// Seconds before the end of this node's membership from which on it is said: a holiday.
const SOON: u64 = 30 * 24 * 3600;

/// How this node stands in a team, by the roster as it knows it.
enum Standing {
    /// It is a member, and no more after `end`; none: that does not end.
    Member { end: Option<u64> },
    /// It was vouched for, and that does not count any more. `inviters`: who can vouch for it anew.
    Waits { own: WaitingView, inviters: Vec<String> },
    /// By its key it never comes back.
    Out,
    /// No founder is left, so nobody is a member.
    NoFounder,
}

/// Whether somebody should renew a membership that ends then.
pub(in crate::daemon) fn ends_soon(end: u64, now: u64) -> bool {
    end.saturating_sub(now) < SOON
}

/// So many seconds, in the unit that they fill at least twice.
fn so_long(seconds: u64) -> String {
    let units = [(24 * 3600, "days"), (3600, "hours"), (60, "minutes")];
    let fits = units.into_iter().find(|(unit, _)| seconds >= 2 * unit);
    let (unit, name) = fits.unwrap_or((1, "seconds"));
    format!("{} {name}", seconds / unit)
}

/// Whether this node is a member, and for how long, and who waits to be one again.
pub(super) fn of_roster(team: &TeamNode) -> Finding {
    let swarm = &team.swarm;
    let members = swarm.members();
    let waiting = swarm.team().waiting().into_iter();
    let (own, others): (Vec<WaitingView>, Vec<WaitingView>) = waiting
        .map(|waits| waiting_view(team, waits))
        .partition(|waits| waits.me);
    let inviters = members
        .iter()
        .filter(|(_, member)| member.roles.has(Role::Invite));
    let standing = match members.get(swarm.key()) {
        Some(member) => Standing::Member {
            end: member.not_after,
        },
        None if swarm.team().is_out() => Standing::Out,
        None if members.is_empty() => Standing::NoFounder,
        None => match own.into_iter().next() {
            Some(own) => Standing::Waits {
                own,
                inviters: inviters.map(|(_, member)| member.name.clone()).collect(),
            },
            None => Standing::Out,
        },
    };
    let refused = team.refused_by().into_iter();
    let refused: Vec<(String, String)> = refused.map(|(key, why)| (team.name_of(key), why)).collect();
    roster(&standing, &others, &refused, now())
}

/// `others`: who needs somebody to renew them. `refused`: members that do not let this node in, and why not.
fn roster(standing: &Standing, others: &[WaitingView], refused: &[(String, String)], now: u64) -> Finding {
    let bad = |found: String, advice: String| finding("roster", Health::Bad, found, Some(advice));
    let end = match standing {
        Standing::Member { end } => *end,
        Standing::Waits { own, inviters } => {
            let why = match own.why {
                Lapse::Ended => "its membership has ended".to_owned(),
                _ => format!("it was {}", own.reason()),
            };
            return bad(
                format!("this node is no member of its team any more: {why}"),
                format!(
                    "ask somebody who may invite ({}) to run 'tvix-node renew {}'; the node need not join anew",
                    inviters.join(", "),
                    own.name
                ),
            );
        }
        Standing::Out => {
            return bad(
                "this node is no member of its team any more: its key was put out".to_owned(),
                "ask a member for a new ticket, give the team up with 'tvix-node leave', and redeem the ticket: the node \
                 comes back by another key, since one that was put out does not"
                    .to_owned(),
            );
        }
        Standing::NoFounder => {
            return bad(
                "all founders of the team are out, so nobody is a member any more, and nobody can renew"
                    .to_owned(),
                "give the team up with 'tvix-node leave', and found a new one ('tvix-node invite')"
                    .to_owned(),
            );
        }
    };
    if !refused.is_empty() {
        let each: Vec<String> = refused
            .iter()
            .map(|(name, why)| format!("{name}: {why}"))
            .collect();
        return bad(
            format!("members do not let this node in, or cannot speak with it ({})", each.join("; ")),
            "where a program is older than another, update it; where this node's membership is over, somebody whom they let in and who may invite runs 'tvix-node renew' for this node; \
             where it was put out, only a new ticket helps, after 'tvix-node leave'"
                .to_owned(),
        );
    }
    if let Some(end) = end
        && ends_soon(end, now)
    {
        return finding(
            "roster",
            Health::Warning,
            format!(
                "this node's membership ends in {}",
                so_long(end.saturating_sub(now))
            ),
            Some("ask somebody who may invite to run 'tvix-node renew' for it".to_owned()),
        );
    }
    if !others.is_empty() {
        let named = others
            .iter()
            .map(|waits| format!("{} ({})", waits.name, waits.reason()));
        return finding(
            "roster",
            Health::Warning,
            format!("somebody should renew {}", named.collect::<Vec<_>>().join(", ")),
            Some(
                "who may invite runs 'tvix-node renew MEMBER', or a founder 'tvix-node revoke MEMBER' for who is not to \
                 come back; 'tvix-node members' lists them"
                    .to_owned(),
            ),
        );
    }
    good("roster", "no membership ends soon")
}

#[cfg(test)]
mod tests {
    use tvix_node_protocol::envelope::NodeKey;
    use tvix_node_protocol::roster::Roles;

    use super::*;

    fn waits(name: &str, why: Lapse) -> WaitingView {
        WaitingView {
            key: NodeKey([4; 32]),
            name: name.to_owned(),
            roles: Roles::all(),
            issued_by: NodeKey([3; 32]),
            issuer: "carol".to_owned(),
            not_after: 100,
            me: false,
            why,
        }
    }

    #[test]
    fn memberships_that_end_are_seen_before_they_do() {
        let day = 24 * 3600;
        let of = |end, others: &[WaitingView]| roster(&Standing::Member { end }, others, &[], 0);
        assert_eq!(of(None, &[]).state, Health::Good);
        assert_eq!(of(Some(100 * day), &[]).state, Health::Good);
        for (end, said) in [
            (10 * day, "in 10 days"),
            (day, "in 24 hours"),
            (90, "in 90 seconds"),
        ] {
            let soon = of(Some(end), &[]);
            assert_eq!(soon.state, Health::Warning);
            assert!(soon.found.contains(said), "{soon:?}");
        }
        let found = of(
            None,
            &[waits("bob", Lapse::Ended), waits("dave", Lapse::IssuerOut)],
        )
        .found;
        assert_eq!(
            found,
            "somebody should renew bob (ended), dave (invited by carol, who is out)"
        );
    }

    #[test]
    fn who_is_no_member_any_more_is_told_who_can_mend_that() {
        let orphaned = Standing::Waits {
            own: waits("dave", Lapse::IssuerOut),
            inviters: vec!["ann".to_owned(), "bob".to_owned()],
        };
        let told = |standing: &Standing| {
            let found = roster(standing, &[], &[], 0);
            assert_eq!(found.state, Health::Bad);
            format!("{} -> {}", found.found, found.advice.unwrap())
        };
        let text = told(&orphaned);
        assert!(text.contains("invited by carol, who is out -> ask somebody who may invite (ann, bob)"));
        assert!(text.contains("'tvix-node renew dave'"), "{text}");
        let ended = Standing::Waits {
            own: waits("dave", Lapse::Ended),
            inviters: vec!["ann".to_owned()],
        };
        assert!(told(&ended).contains("its membership has ended -> ask"));
        assert!(told(&Standing::Out).contains("new ticket"));
        assert!(told(&Standing::NoFounder).contains("found a new one"));
        // By what others say, of whom this node has not heard why.
        let refused = [("ann".to_owned(), "who vouched is out".to_owned())];
        let found = roster(&Standing::Member { end: None }, &[], &refused, 0);
        assert_eq!(found.state, Health::Bad);
        assert!(found.found.contains("ann: who vouched is out"), "{found:?}");
    }
}
