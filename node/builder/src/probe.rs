//! Whether sandboxes work on this machine.

use tvix_node_protocol::build::BuildLimits;

use crate::StorePath;
use crate::config::Config;
use crate::diagnosis::SandboxError;
use crate::error::Cause;
use crate::helper_process::WaitingHelper;
use crate::run::setup_failure;
use crate::scratch::Scratch;
use crate::wire::{Bytes, Order, Report};

/// Names the folder of a probe.
const PROBE: &str = "00000000000000000000000000000000-probe.drv";

/// Sets a sandbox up and lets it go again.
pub(crate) async fn probe(config: &Config) -> Result<(), SandboxError> {
    let other = |step: &str, message: String| SandboxError::new(step, std::io::Error::other(message));
    let path = StorePath::from_basename(PROBE.as_bytes())
        .map_err(|error| other("naming a probe", error.to_string()))?;
    let scratch = Scratch::create(&config.scratch, &path)
        .map_err(|cause| other("making a folder", cause.to_string()))?;
    let order = Order {
        scratch: Bytes::path(scratch.path()),
        slot: Bytes::path(&scratch.path().join("slot")),
        host_id: rustix::process::geteuid()
            .is_root()
            .then_some(config.first_build_user),
        task: None,
        inputs: Vec::new(),
        files: Vec::new(),
        paths: Vec::new(),
        fixed_output: false,
        proxy: false,
        tunnel: false,
        ipv6: false,
        kvm: config.features.contains("kvm"),
        niceness: 0,
        processes: BuildLimits::PROCESSES,
        memory: None,
        memory_group: None,
        file_bytes: None,
    };
    let failed = |(step, source)| SandboxError::new(step, source);
    let waiting = WaitingHelper::start(config).map_err(failed)?;
    let mut helper = waiting.begin(&order).await.map_err(failed)?;
    let (mut started, mut failure) = (false, None);
    let end = loop {
        match helper.control.report().await {
            Ok(Some((Report::Started, _))) => started = true,
            Ok(Some((Report::Ended { .. }, _))) => {}
            Ok(Some((report, _))) => failure = failure.or(Some(report)),
            Ok(None) => break None,
            Err(error) => break Some(error.to_string()),
        }
    };
    let status = helper.wait().await;
    scratch.discard().await;
    match (failure.map(setup_failure), started) {
        (Some(Cause::Sandbox(error)), _) => Err(error),
        (Some(cause), _) => Err(other("probing", cause.to_string())),
        (None, true) => Ok(()),
        (None, false) => Err(other(
            "starting the sandbox helper",
            end.unwrap_or_else(|| format!("it ended without a word ({status})")),
        )),
    }
}
