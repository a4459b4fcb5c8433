//! `trust`.

use std::collections::BTreeMap;

use tvix_node::background::connect_or_start;
use tvix_node::home::Home;
use tvix_node_protocol::control::{Explanation, NamedRequirement, OwnerAnswer, OwnerQuestion};
use tvix_node_protocol::envelope::NodeKey;
use tvix_node_protocol::trust::{Requirement, TrustRule};

use super::path::store_path;
use super::table::{short, table};
use super::{Failure, note, print, print_json};
use crate::arguments::TrustCommand;
use crate::progress::clean;

/// Shows and sets the rules of trust.
pub async fn trust(home: &Home, command: TrustCommand) -> Result<u8, Failure> {
    let (question, as_json) = match command {
        TrustCommand::Show { json } => (OwnerQuestion::Trust, json),
        TrustCommand::Set { rule } => {
            let require = rule.requirement()?;
            let question = OwnerQuestion::SetTrust {
                paths: rule.rule.paths,
                builder: rule.rule.builder,
                require,
            };
            (question, false)
        }
        TrustCommand::Unset { of } => {
            let question = OwnerQuestion::UnsetTrust {
                paths: of.paths,
                builder: of.builder,
            };
            (question, false)
        }
        TrustCommand::Explain { path, json } => {
            let path = store_path(home, &path)?;
            (OwnerQuestion::ExplainTrust { path }, json)
        }
    };
    let answer = connect_or_start(home).await?.ask_owner(&question).await?;
    if as_json {
        print_json(&answer)?;
        return Ok(0);
    }
    match &answer {
        OwnerAnswer::Trust {
            rules,
            names,
            me,
            slots,
        } => {
            print(rules_text(rules, &Names::new(names, *me)).as_bytes())?;
            let samples = matches!(
                &question,
                OwnerQuestion::SetTrust {
                    require: NamedRequirement::Sample { .. },
                    ..
                }
            );
            if samples && *slots == 0 {
                note(
                    "warning: this node has no slots, so it can build nothing again to compare: 'tvix-node up --slots N'",
                );
            }
        }
        OwnerAnswer::Explained(explanation) => print(explanation_text(explanation).as_bytes())?,
        _ => return Err(Failure::Unexpected),
    }
    Ok(0)
}

/// What people call nodes.
struct Names {
    names: BTreeMap<NodeKey, String>,
    me: NodeKey,
}

impl Names {
    fn new(names: &[(NodeKey, String)], me: NodeKey) -> Self {
        Self {
            names: names.iter().cloned().collect(),
            me,
        }
    }

    fn of(&self, node: NodeKey) -> String {
        if node == self.me {
            return "this node".to_owned();
        }
        match self.names.get(&node) {
            Some(name) => clean(name),
            None => short(node),
        }
    }

    fn requirement(&self, requirement: &Requirement) -> String {
        match requirement {
            Requirement::Own => "self".to_owned(),
            Requirement::Roster => "roster".to_owned(),
            Requirement::Sample { percent } => format!("sample {percent}%"),
            Requirement::Quorum { needed, of } => {
                let of: Vec<String> = of.iter().map(|node| self.of(*node)).collect();
                format!("quorum {needed} of {}", of.join(", "))
            }
        }
    }
}

fn rules_text(rules: &[TrustRule], names: &Names) -> String {
    let mut rows: Vec<[String; 4]> = rules
        .iter()
        .map(|rule| {
            [
                rule.paths
                    .as_ref()
                    .map_or_else(|| "all".to_owned(), ToString::to_string),
                rule.builder
                    .map_or_else(|| "any".to_owned(), |builder| names.of(builder)),
                names.requirement(&rule.requirement),
                rule.because.clone().unwrap_or_default(),
            ]
        })
        .collect();
    if !rules
        .iter()
        .any(|rule| rule.paths.is_none() && rule.builder.is_none())
    {
        let default = ["all", "any", "roster", "what holds where no rule fits"];
        rows.push(default.map(str::to_owned));
    }
    table(["PATHS", "BUILDER", "REQUIRED", "BECAUSE"], rows)
}

fn explanation_text(explanation: &Explanation) -> String {
    let names = Names::new(&explanation.names, explanation.me);
    let mut text = match &explanation.rule {
        Some(rule) => {
            let paths = rule
                .paths
                .as_ref()
                .map_or_else(|| "all paths".to_owned(), ToString::to_string);
            format!("the rule for {paths}: {}\n", names.requirement(&rule.requirement))
        }
        None => "no rule is for it: the roster decides\n".to_owned(),
    };
    if let Some(quorum) = &explanation.quorum {
        text += &format!("{}\n", clean(quorum));
    }
    match &explanation.here {
        Some(here) => text += &format!("it is in the store: {}\n", clean(here)),
        None => text += "it is not in the store\n",
    }
    for shown in &explanation.shown {
        let verdict = if shown.accepted {
            "is believed"
        } else {
            "is not believed"
        };
        text += &format!(
            "what {} shows {verdict}: {}\n",
            names.of(shown.peer),
            clean(&shown.why)
        );
    }
    if explanation.shown.is_empty() && explanation.here.is_none() {
        text += "nobody who can be asked has it\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use tvix_node_protocol::control::ShownVerdict;
    use tvix_node_protocol::trust::PathPattern;

    use super::*;

    fn names() -> Names {
        let names = [(NodeKey([2; 32]), "bob".to_owned())];
        Names::new(&names, NodeKey([1; 32]))
    }

    fn quorum() -> TrustRule {
        TrustRule {
            paths: Some(PathPattern::new("*openssl*").unwrap()),
            builder: None,
            requirement: Requirement::Quorum {
                needed: 2,
                of: vec![NodeKey([1; 32]), NodeKey([2; 32]), NodeKey([3; 32])],
            },
            because: None,
        }
    }

    #[test]
    fn rules_are_shown_with_the_one_that_always_holds() {
        let distrusted = TrustRule {
            paths: None,
            builder: Some(NodeKey([2; 32])),
            requirement: Requirement::Own,
            because: Some("it differed".to_owned()),
        };
        let expected = "\
PATHS      BUILDER  REQUIRED                                  BECAUSE
*openssl*  any      quorum 2 of this node, bob, 030303030303
all        bob      self                                      it differed
all        any      roster                                    what holds where no rule fits
";
        assert_eq!(rules_text(&[quorum(), distrusted], &names()), expected);
    }

    #[test]
    fn an_explanation_says_the_rule_the_agreement_and_what_each_member_shows() {
        let explanation = Explanation {
            rule: Some(quorum()),
            here: None,
            quorum: Some("too few: …".to_owned()),
            shown: vec![ShownVerdict {
                peer: NodeKey([2; 32]),
                accepted: false,
                why: "nobody else built it".to_owned(),
            }],
            names: vec![(NodeKey([2; 32]), "bob".to_owned())],
            me: NodeKey([1; 32]),
        };
        let expected = "\
the rule for *openssl*: quorum 2 of this node, bob, 030303030303
too few: …
it is not in the store
what bob shows is not believed: nobody else built it
";
        assert_eq!(explanation_text(&explanation), expected);
    }
}
