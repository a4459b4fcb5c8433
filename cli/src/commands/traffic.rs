//! `traffic`.

use tvix_node::background::connect_or_start;
use tvix_node::home::Home;
use tvix_node_protocol::control::{OwnerAnswer, OwnerQuestion, TrafficTerms};

use super::{Failure, print, print_json};
use crate::arguments::TrafficArguments;

/// Shows and sets the limits of traffic.
pub async fn traffic(home: &Home, arguments: &TrafficArguments) -> Result<u8, Failure> {
    let client = connect_or_start(home).await?;
    let mut answer = client.ask_owner(&OwnerQuestion::Traffic).await?;
    if let (OwnerAnswer::Traffic { terms }, true) = (&answer, arguments.is_change()) {
        let terms = arguments.apply(*terms);
        answer = client.ask_owner(&OwnerQuestion::SetTraffic { terms }).await?;
    }
    let OwnerAnswer::Traffic { terms } = &answer else {
        return Err(Failure::Unexpected);
    };
    if arguments.json {
        print_json(&answer)?;
    } else {
        print(text(terms).as_bytes())?;
    }
    Ok(0)
}

fn text(terms: &TrafficTerms) -> String {
    let rate = |rate: Option<u64>| match rate {
        None => "as fast as the link is".to_owned(),
        Some(rate) if rate % (1 << 20) == 0 => format!("{} MiB/s", rate >> 20),
        Some(rate) => format!("{} KiB/s", rate.div_ceil(1 << 10)),
    };
    let metered = match terms.metered {
        true => "yes: others get nothing but what this node's own builds need",
        false => "no",
    };
    format!(
        "upload    {}\ndownload  {}\nmetered   {metered}\n",
        rate(terms.upload),
        rate(terms.download)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_shown_in_units() {
        let terms = TrafficTerms {
            upload: Some(2 << 20),
            download: Some(300 << 10),
            metered: true,
        };
        assert_eq!(
            text(&terms),
            "upload    2 MiB/s\ndownload  300 KiB/s\nmetered   yes: others get nothing but what this node's own builds need\n"
        );
        let whole = text(&TrafficTerms::default());
        assert!(whole.contains("as fast as the link is") && whole.ends_with("no\n"));
    }
}
