//! `doctor`.

use tvix_node::background::connect_or_start;
use tvix_node::home::Home;
use tvix_node_protocol::control::{Finding, Health, OwnerAnswer, OwnerQuestion};

use super::{Failure, print, print_json};
use crate::progress::clean;

/// Prints how the node is. The exit status is 1 where something does not work.
pub async fn doctor(home: &Home, as_json: bool) -> Result<u8, Failure> {
    let answer = connect_or_start(home)
        .await?
        .ask_owner(&OwnerQuestion::Health)
        .await?;
    let OwnerAnswer::Health { findings } = answer else {
        return Err(Failure::Unexpected);
    };
    if as_json {
        print_json(&findings)?;
    } else {
        print(text(&findings).as_bytes())?;
    }
    let bad = findings.iter().any(|finding| finding.state == Health::Bad);
    Ok(u8::from(bad))
}

fn text(findings: &[Finding]) -> String {
    let about = findings
        .iter()
        .map(|finding| finding.about.chars().count())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for finding in findings {
        let state = match finding.state {
            Health::Good => "good",
            Health::Warning => "warning",
            Health::Bad => "bad",
        };
        let name = clean(&finding.about);
        text += &format!("{state:<8} {name:<about$}  {}\n", clean(&finding.found));
        if let Some(advice) = &finding.advice {
            text += &format!("{:<8} {:<about$}  -> {}\n", "", "", clean(advice));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_says_how_it_is_and_what_to_do() {
        let finding = |about: &str, state, advice: Option<&str>| Finding {
            about: about.to_owned(),
            state,
            found: format!("{about} it is"),
            advice: advice.map(str::to_owned),
        };
        let shown = text(&[
            finding("sandbox", Health::Good, None),
            finding("disk", Health::Bad, Some("make room")),
        ]);
        let expected = "\
good     sandbox  sandbox it is
bad      disk     disk it is
                  -> make room
";
        assert_eq!(shown, expected);
    }
}
