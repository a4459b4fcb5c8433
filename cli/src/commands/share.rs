//! `share`.

use tvix_node::background::connect_or_start;
use tvix_node::home::Home;
use tvix_node_protocol::control::{OwnerAnswer, OwnerQuestion, SharingMode, SharingTerms};

use super::{Failure, print, print_json};
use crate::arguments::{ShareArguments, UsageError};
use crate::progress::clean;

/// Shows and sets the terms of sharing.
pub async fn share(home: &Home, arguments: &ShareArguments) -> Result<u8, Failure> {
    let question = match arguments.terms().map_err(UsageError::new)? {
        Some(terms) => OwnerQuestion::SetSharing { terms },
        None => OwnerQuestion::Sharing,
    };
    let answer = connect_or_start(home).await?.ask_owner(&question).await?;
    let OwnerAnswer::Sharing {
        terms,
        withheld,
        load,
    } = &answer
    else {
        return Err(Failure::Unexpected);
    };
    if arguments.json {
        print_json(&answer)?;
    } else {
        print(text(terms, withheld.as_deref(), *load).as_bytes())?;
    }
    Ok(0)
}

fn text(terms: &SharingTerms, withheld: Option<&str>, load: u32) -> String {
    let mode = match terms.mode {
        SharingMode::On => "on",
        SharingMode::Off => "off",
        SharingMode::WhenIdle => "when idle",
    };
    let mut text = format!("share    {mode}\n");
    for quiet in &terms.quiet {
        text += &format!("quiet    {quiet}\n");
    }
    if terms.mains_only {
        text += "power    on mains only\n";
    }
    if let Some(limit) = terms.max_load {
        text += &format!(
            "load     while other programs keep at most {} cores busy\n",
            cores(limit)
        );
    }
    text += match terms.fixed_outputs {
        true => "network  fixed outputs of others are built, too, and reach the public network from here\n",
        false => "network  fixed outputs of others, which need it, are not built\n",
    };
    match withheld {
        Some(why) => text += &format!("now      nothing is built for others, because {}\n", clean(why)),
        None => {
            text += &format!(
                "now      others get free slots; other programs keep {} cores busy\n",
                cores(load)
            )
        }
    }
    text
}

fn cores(hundredths: u32) -> String {
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

#[cfg(test)]
mod tests {
    use tvix_node_protocol::control::QuietHours;

    use super::*;

    #[test]
    fn the_terms_are_shown_with_what_follows_from_them_now() {
        let terms = SharingTerms {
            mode: SharingMode::WhenIdle,
            quiet: vec![QuietHours::parse("22:00-07:30").unwrap()],
            mains_only: true,
            max_load: Some(150),
            fixed_outputs: true,
        };
        let expected = "\
share    when idle
quiet    22:00-07:30
power    on mains only
load     while other programs keep at most 1.50 cores busy
network  fixed outputs of others are built, too, and reach the public network from here
now      nothing is built for others, because its owner uses it
";
        assert_eq!(text(&terms, Some("its owner uses it"), 0), expected);
        let on = text(&SharingTerms::default(), None, 25);
        assert!(
            on.starts_with("share    on\nnetwork  fixed outputs of others, which need it, are not built\n")
                && on.contains("keep 0.25 cores busy"),
            "{on}"
        );
    }
}
