//! Requests that a builder must not take, each with its own reason.

use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::Input;
use tvix_node_protocol::messages::RefusalReason;

use super::mallory::{Mallory, UpNode, input};

const GRAPH: &str = r#"rec {
    fixed = build "fixed" {
      outputHashMode = "flat"; outputHashAlgo = "sha256";
      outputHash = "a948904f2f0f479b8f8197694b30184b0d2ed1c1cd2a1ec0fb85d299a192a447"; # "hello world\n"
    } "write $out hello world";
    plain = build "plain" { } "write $out something";
    uses = build "uses" { inherit fixed plain; } "copy $plain $out";
    alien = build "alien" { system = "mips-plan9"; } "write $out something";
    needy = build "needy" { requiredSystemFeatures = [ "time-travel" ]; } "write $out something";
}"#;

struct Scene {
    bob: UpNode,
    mallory: Mallory,
    fixed: StorePath,
    plain: StorePath,
    uses: StorePath,
    alien: StorePath,
    needy: StorePath,
    tool: Input,
}

async fn scene(roles: &[&str]) -> Scene {
    let bob = UpNode::start(1);
    let ticket = bob.ticket(roles);
    let attributes = ["fixed", "plain", "uses", "alien", "needy"];
    let (mallory, derivations) = Mallory::join(&ticket, GRAPH, &attributes).await;
    let [fixed, plain, uses, alien, needy] = <[StorePath; 5]>::try_from(derivations).unwrap();
    let tool = mallory
        .derivation(&plain)
        .input_sources()
        .first()
        .unwrap()
        .clone();
    let tool = input(&mallory.info(&tool));
    Scene {
        bob,
        mallory,
        fixed,
        plain,
        uses,
        alien,
        needy,
        tool,
    }
}

impl Scene {
    async fn refused(&self, derivation: &StorePath, inputs: Vec<Input>) -> (RefusalReason, String) {
        let request = self.mallory.request(self.bob.key, derivation, inputs);
        let refusal = self.mallory.refused(request).await;
        (refusal.reason, refusal.message)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_follow_does_not_fit_or_is_not_offered_is_refused_by_name() {
    let scene = scene(&["request"]).await;
    let tool = || vec![scene.tool.clone()];

    // An output path that the derivation claims and that does not follow from it.
    let text =
        String::from_utf8(std::fs::read(scene.mallory.machine.physical(&scene.plain.to_string())).unwrap());
    let claimed = scene.mallory.output(&scene.plain).to_string();
    let other = scene.mallory.output(&scene.uses).to_string();
    let other = other.replace("-uses", "-plain");
    let text = text.unwrap().replace(&claimed, &other);
    let references = [scene.tool.path.clone()];
    let forged = scene
        .mallory
        .add_derivation("plain.drv", text.as_bytes(), &references);
    let (reason, message) = scene.refused(&forged, tool()).await;
    assert_eq!(reason, RefusalReason::OutputPath, "{message}");
    assert!(
        message.contains(&other) && message.contains(&claimed),
        "{message}"
    );

    // A derivation whose text is another than its name says.
    let mut info = scene.mallory.info(&scene.fixed);
    info.path = scene.plain.clone();
    scene.mallory.show(info);
    let (reason, message) = scene.refused(&scene.plain, tool()).await;
    assert_eq!(reason, RefusalReason::InputContent, "{message}");
    assert!(message.contains("plain.drv"), "{message}");
    scene.mallory.show(scene.mallory.info(&scene.plain));

    // One that nobody has.
    let missing = StorePath::from_parts([7; 20], "missing.drv").unwrap();
    let (reason, message) = scene.refused(&missing, tool()).await;
    assert_eq!(reason, RefusalReason::InputMissing, "{message}");

    // Inputs that are not what the build reads.
    let (reason, message) = scene.refused(&scene.plain, vec![]).await;
    assert_eq!(reason, RefusalReason::Structure, "{message}");
    let stray = input(&scene.mallory.info(&scene.fixed));
    let stray = Input {
        references: vec![],
        ..stray
    };
    let (reason, message) = scene.refused(&scene.plain, vec![scene.tool.clone(), stray]).await;
    assert_eq!(reason, RefusalReason::Structure, "{message}");
    assert!(message.contains("nothing needs it"), "{message}");

    // What this builder does not offer.
    let (reason, message) = scene.refused(&scene.alien, tool()).await;
    assert_eq!(reason, RefusalReason::Unsupported, "{message}");
    assert!(message.contains("mips-plan9"), "{message}");
    let (reason, message) = scene.refused(&scene.needy, tool()).await;
    assert_eq!(reason, RefusalReason::Unsupported, "{message}");
    assert!(message.contains("time-travel"), "{message}");
    let (reason, message) = scene.refused(&scene.fixed, tool()).await;
    assert_eq!(reason, RefusalReason::Policy, "{message}");
    assert!(
        message.contains("'tvix-node share on --fixed-outputs'"),
        "{message}"
    );
    scene.mallory.swarm.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inputs_that_do_not_match_their_content_address_are_refused() {
    let scene = scene(&["request"]).await;

    // A source: the tree is another, whatever is said of it.
    let path = scene.tool.path.clone();
    let ca = scene.mallory.info(&path).ca;
    let claim = scene.mallory.claim(&path, "not the tool", ca);
    let (reason, message) = scene.refused(&scene.plain, vec![input(&claim)]).await;
    assert_eq!(reason, RefusalReason::InputContent, "{message}");
    assert!(message.contains("-tool"), "{message}");
    scene.mallory.show(scene.mallory.info(&path));

    // She gives no content address at all, and the true archive's hash with the false tree.
    let honest = scene.mallory.info(&path);
    let claim = scene.mallory.claim(&path, "not the tool", None);
    let (reason, message) = scene.refused(&scene.plain, vec![input(&claim)]).await;
    assert_eq!(reason, RefusalReason::InputContent, "{message}");
    assert!(message.contains("no content address"), "{message}");
    let claim = tvix_node_protocol::path_info::PathInfo {
        nar_hash: honest.nar_hash,
        nar_size: honest.nar_size,
        ..claim
    };
    scene.mallory.show(claim.clone());
    let (reason, message) = scene.refused(&scene.plain, vec![input(&claim)]).await;
    assert_eq!(reason, RefusalReason::InputContent, "{message}");
    scene.mallory.show(honest);

    // A fixed output: what it must be stands in the derivation, so she need not even say it.
    let fixed = scene.mallory.output(&scene.fixed);
    let plain = scene.mallory.output(&scene.plain);
    let false_fixed = scene.mallory.claim(&fixed, "hello trojan\n", None);
    let some_plain = scene.mallory.claim(&plain, "anything", None);
    let inputs = vec![scene.tool.clone(), input(&false_fixed), input(&some_plain)];
    let (reason, message) = scene.refused(&scene.uses, inputs).await;
    assert_eq!(reason, RefusalReason::InputContent, "{message}");
    assert!(message.contains("-fixed"), "{message}");
    scene.mallory.swarm.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_without_the_role_asks_in_vain() {
    let scene = scene(&["store"]).await;
    let (reason, message) = scene.refused(&scene.plain, vec![scene.tool.clone()]).await;
    assert_eq!(reason, RefusalReason::Role, "{message}");
    scene.mallory.swarm.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_counts_once() {
    let scene = scene(&["request"]).await;
    // Refused after the gate, so the nonce has been taken.
    let request = scene
        .mallory
        .request(scene.bob.key, &scene.alien, vec![scene.tool.clone()]);
    let refusal = scene.mallory.refused(request.clone()).await;
    assert_eq!(refusal.reason, RefusalReason::Unsupported);
    let refusal = scene.mallory.refused(request).await;
    assert_eq!(refusal.reason, RefusalReason::Replayed);
    scene.mallory.swarm.shutdown().await;
}
