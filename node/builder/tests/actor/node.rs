//! A node of its own, to be killed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use tvix_node_builder::{BuildInput, BuildSpec, Builder, Config, Helper, SandboxPath, StorePath};
use tvix_node_protocol::nix::derivation::{DerivationFields, OutputKind, read_derivation};

use crate::Done;

/// Runs a build that never ends, and says when it has begun.
pub fn build_and_wait(scratch: &str, token: &str) -> Done {
    let actor = StorePath::from_parts([7; 20], "actor")?;
    let fields = DerivationFields {
        name: "endless".to_owned(),
        outputs: BTreeMap::from([("out".to_owned(), OutputKind::InputAddressed)]),
        input_derivations: BTreeMap::new(),
        input_sources: BTreeSet::from([actor.clone()]),
        system: format!("{}-linux", std::env::consts::ARCH).into_bytes(),
        builder: actor.to_absolute_path().into_bytes(),
        arguments: ["linger", "all", token]
            .map(|argument| argument.as_bytes().to_vec())
            .to_vec(),
        environment: BTreeMap::new(),
    };
    let made = fields.instantiate(|_| None)?;
    let derivation = read_derivation(&made.drv_path, &made.aterm)?;
    let physical = std::env::current_exe()?;
    let mut config = Config::new(scratch, Helper::this_program());
    for path in std::env::var("ACTOR_LIBRARIES")?.split(':') {
        show(&mut config, path);
    }
    let builder = Builder::new(config)?;
    let input = BuildInput {
        path: actor,
        physical,
    };
    let spec = BuildSpec::new(derivation, made.drv_path, vec![input]);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (events, mut heard) = tokio::sync::mpsc::channel(16);
        let cancel = tokio_util::sync::CancellationToken::new();
        let listen = async {
            while let Some(event) = heard.recv().await {
                if let tvix_node_builder::BuildEvent::Log(line) = event {
                    println!("{}", String::from_utf8_lossy(&line));
                }
            }
        };
        let (result, ()) = tokio::join!(builder.build(spec, events, cancel), listen);
        result.map(drop)
    })?;
    Ok(())
}

fn show(config: &mut Config, path: &str) {
    let path = PathBuf::from(path);
    if path.exists() {
        let outside = path.clone();
        config.sandbox_paths.insert(
            path,
            SandboxPath {
                outside,
                writable: false,
            },
        );
    }
}
