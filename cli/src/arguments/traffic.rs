//! How much of the link the node uses.

use clap::{Args, ValueEnum};
use tvix_node_protocol::control::TrafficTerms;

use super::numbers::size;

/// Whether every byte costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Metered {
    /// Nothing is sent to others but what this node's own builds need
    Yes,
    /// Others get what they ask for
    No,
}

/// What is to change; without any the limits are shown.
#[derive(Debug, Args)]
pub struct TrafficArguments {
    /// Bytes of content a second to other members, such as 2M, or 'none'
    #[arg(long, value_name = "RATE", value_parser = rate)]
    upload: Option<Rate>,
    /// Bytes of content a second from other members, such as 2M, or 'none'
    #[arg(long, value_name = "RATE", value_parser = rate)]
    download: Option<Rate>,
    /// Whether the connection is metered
    #[arg(long, value_name = "YES|NO", hide_possible_values = true)]
    metered: Option<Metered>,
    /// Print the limits as JSON
    #[arg(long)]
    pub json: bool,
}

/// A rate; none: as fast as the link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate(Option<u64>);

impl TrafficArguments {
    /// Whether anything is to change.
    pub fn is_change(&self) -> bool {
        self.upload.is_some() || self.download.is_some() || self.metered.is_some()
    }

    /// What the terms become.
    pub fn apply(&self, terms: TrafficTerms) -> TrafficTerms {
        TrafficTerms {
            upload: self.upload.map_or(terms.upload, |rate| rate.0),
            download: self.download.map_or(terms.download, |rate| rate.0),
            metered: self
                .metered
                .map_or(terms.metered, |metered| metered == Metered::Yes),
        }
    }
}

fn rate(text: &str) -> Result<Rate, String> {
    if text == "none" {
        return Ok(Rate(None));
    }
    let bytes = size(text).map_err(|error| format!("{error}; or 'none'"))?;
    if bytes < TrafficTerms::LEAST_RATE {
        return Err(format!(
            "with less than {}K a second others take this node for gone; or 'none'",
            TrafficTerms::LEAST_RATE >> 10
        ));
    }
    Ok(Rate(Some(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_stays() {
        let before = TrafficTerms {
            upload: Some(1),
            download: Some(2),
            metered: true,
        };
        let nothing = TrafficArguments {
            upload: None,
            download: None,
            metered: None,
            json: false,
        };
        assert!(!nothing.is_change());
        assert_eq!(nothing.apply(before), before);
        let all = TrafficArguments {
            upload: Some(rate("2M").unwrap()),
            download: Some(rate("none").unwrap()),
            metered: Some(Metered::No),
            json: false,
        };
        let expected = TrafficTerms {
            upload: Some(2 << 20),
            download: None,
            metered: false,
        };
        assert!(all.is_change());
        assert_eq!(all.apply(before), expected);
        for text in ["", "fast", "-1", "2X", "0", "255K"] {
            assert!(rate(text).unwrap_err().contains("none"), "{text}");
        }
    }
}
