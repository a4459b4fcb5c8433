//! On which terms the node builds for others.

use clap::{Args, ValueEnum};
use tvix_node_protocol::control::{QuietHours, SharingMode, SharingTerms};

/// Whether it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// In slots that its own builds leave
    On,
    /// Never
    Off,
    /// While no command uses the node and the machine has little else to do
    WhenIdle,
}

/// The terms; without any they are shown.
#[derive(Debug, Args)]
pub struct ShareArguments {
    /// Whether this node builds for others; what is not said beside it is no term any more [default: show the terms]
    #[arg(value_name = "MODE")]
    mode: Option<Mode>,
    /// Hours in which it does not, by this machine's clock, such as 22:00-07:30; may be given several times
    #[arg(long, value_name = "FROM-UNTIL", value_parser = QuietHours::parse, requires = "mode")]
    quiet: Vec<QuietHours>,
    /// Not while the machine runs on its battery
    #[arg(long, requires = "mode")]
    mains_only: bool,
    /// Not while other programs keep more than so many cores busy, such as 1.5
    #[arg(long, value_name = "CORES", value_parser = load, requires = "mode")]
    max_load: Option<u32>,
    /// Build fixed outputs of others, too: they reach the public network from this machine, and nothing of the local one
    #[arg(long, requires = "mode")]
    fixed_outputs: bool,
    /// Print the terms as JSON
    #[arg(long)]
    pub json: bool,
}

/// Quiet hours: a person has a handful, and each is looked at every few seconds.
const QUIET_HOURS: usize = 16;

impl ShareArguments {
    /// The terms to set; none: they are only shown.
    ///
    /// # Errors
    /// More quiet hours than there may be, in words.
    pub fn terms(&self) -> Result<Option<SharingTerms>, String> {
        if self.quiet.len() > QUIET_HOURS {
            return Err(format!(
                "at most {QUIET_HOURS} times of quiet hours can be set, not {}",
                self.quiet.len()
            ));
        }
        Ok(self.mode.map(|mode| SharingTerms {
            mode: match mode {
                Mode::On => SharingMode::On,
                Mode::Off => SharingMode::Off,
                Mode::WhenIdle => SharingMode::WhenIdle,
            },
            quiet: self.quiet.clone(),
            mains_only: self.mains_only,
            max_load: self.max_load,
            fixed_outputs: self.fixed_outputs,
        }))
    }
}

/// Reads cores, in hundredths.
fn load(text: &str) -> Result<u32, String> {
    let cores = text
        .parse::<f64>()
        .ok()
        .filter(|cores| (0.01..=10_000.0).contains(cores));
    // In range, so nothing is lost but digits after the second.
    cores
        .map(|cores| (cores * 100.0).round() as u32)
        .ok_or_else(|| "a number of cores is expected, such as 1.5; at least 0.01".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_is_a_number_of_cores() {
        assert_eq!(load("1.5"), Ok(150));
        assert_eq!(load("2"), Ok(200));
        for text in ["", "0", "-1", "half", "NaN", "1e9"] {
            assert!(load(text).is_err(), "{text}");
        }
    }
}
