//! Fixed outputs, whose content is known before: whoever built them, both sides look.

use tvix_node_protocol::messages::{Facts, FailureKind, RefusalReason};
use tvix_node_swarm::BuildEvent;

use super::mallory::{Mallory, UpNode, input};
use crate::harness::sandbox_works;

const GRAPH: &str = r#"let
    fixed = name: script: build name {
      outputHashMode = "flat"; outputHashAlgo = "sha256";
      outputHash = "a948904f2f0f479b8f8197694b30184b0d2ed1c1cd2a1ec0fb85d299a192a447"; # "hello world\n"
    } script;
  in {
    right = fixed "right" "write $out hello world";
    wrong = fixed "wrong" "write $out something else";
  }"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_builder_takes_fixed_outputs_where_its_owner_lets_it_and_believes_no_hash() {
    let test = "a_builder_takes_fixed_outputs_where_its_owner_lets_it_and_believes_no_hash";
    if !tokio::task::block_in_place(|| sandbox_works(test)) {
        return;
    }
    let bob = UpNode::start(1);
    let (mallory, derivations) = Mallory::join(&bob.ticket(&["request"]), GRAPH, &["right", "wrong"]).await;
    let [right, wrong] = derivations.as_slice() else {
        panic!()
    };
    let tool = mallory.derivation(right).input_sources().first().unwrap().clone();
    let request = |derivation| mallory.request(bob.key, derivation, vec![input(&mallory.info(&tool))]);
    let refusal = mallory.refused(request(right)).await;
    assert_eq!(refusal.reason, RefusalReason::Policy, "{}", refusal.message);
    bob.machine.run(&["share", "on", "--fixed-outputs"]).ok();
    let BuildEvent::Finished { record, .. } = mallory.build(request(right)).await else {
        panic!("it is offered")
    };
    assert_eq!(record.outputs["out"].path, mallory.output(right));
    let BuildEvent::Failed(failure) = mallory.build(request(wrong)).await else {
        panic!("its content is not what it must be")
    };
    assert_eq!(failure.kind, FailureKind::Build);
    assert!(failure.message.contains("hash mismatch"), "{}", failure.message);
    // All terms are set at once.
    bob.machine.run(&["share", "on"]).ok();
    let refusal = mallory
        .refused(mallory.request(bob.key, wrong, vec![input(&mallory.info(&tool))]))
        .await;
    assert_eq!(refusal.reason, RefusalReason::Policy, "{}", refusal.message);
    mallory.swarm.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_builder_that_lies_about_a_fixed_output_is_found_out() {
    let alice = UpNode::start(0);
    let facts = Facts {
        version: "test".to_owned(),
        systems: vec![format!("{}-linux", std::env::consts::ARCH)],
        slots: 1,
        free: 1,
        fixed_outputs: true,
        ..Facts::default()
    };
    let ticket = alice.ticket(&["build", "store"]);
    let (mut mallory, derivations) = Mallory::join_offering(&ticket, GRAPH, &["right"], facts).await;
    let out = mallory.output(&derivations[0]);
    let claim = mallory.claim(&out, "hello trojan\n", None);
    alice.machine.expression(GRAPH);
    let building = tokio::task::spawn_blocking(move || {
        let built = alice.machine.run(&["build", "-A", "right", "--no-out-link"]);
        (alice, built)
    });
    let request = mallory.lie_about_the_next(&claim).await;
    assert_eq!(request.derivation, derivations[0]);
    let (alice, built) = building.await.unwrap();
    built.failed(1, &["mallory", &out.to_string(), "hash mismatch"]);
    assert!(!alice.physical(&out).exists());
    mallory.swarm.shutdown().await;
}
