//! A false tree under an input's name must not spread through an honest builder.

use tvix_node_protocol::StorePath;
use tvix_node_swarm::BuildEvent;

use super::mallory::{Mallory, UpNode, input, store_path};
use crate::harness::sandbox_works;

const PROGRAM: &str = r#"rec {
    compiler = build "compiler" { } "write $out honest";
    program = build "program" { inherit compiler; } "copy $compiler $out";
}"#;

fn has(node: &UpNode, path: &StorePath) -> bool {
    node.machine.run(&["store", "info", &path.to_string()]).status == 0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_built_from_a_false_input_stays_between_builder_and_requester() {
    let test = "what_is_built_from_a_false_input_stays_between_builder_and_requester";
    if !tokio::task::block_in_place(|| sandbox_works(test)) {
        return;
    }
    let bob = UpNode::start(1);
    let ticket = bob.ticket(&["request"]);
    let (mallory, derivations) = Mallory::join(&ticket, PROGRAM, &["compiler", "program"]).await;
    let [compiler, program] = derivations.as_slice() else {
        panic!()
    };
    let (compiler_out, program_out) = (mallory.output(compiler), mallory.output(program));
    let tool = mallory
        .derivation(program)
        .input_sources()
        .first()
        .unwrap()
        .clone();
    let trojan = mallory.claim(&compiler_out, "trojan", None);
    let inputs = vec![input(&mallory.info(&tool)), input(&trojan)];

    let BuildEvent::Finished { record, .. } = mallory
        .build(mallory.request(bob.key, program, inputs.clone()))
        .await
    else {
        panic!("the builder may build it for its requester, and does")
    };
    let built = record.outputs["out"].clone();
    assert_eq!(built.path, program_out);
    let arrival = mallory
        .swarm
        .fetch_tree(built.tree, vec![bob.key], None)
        .await
        .unwrap();
    drop(arrival);

    // Neither the trojan nor what was made with it lies under its name, is known or is found.
    for path in [&compiler_out, &program_out] {
        assert!(!bob.physical(path).exists(), "{path} lies under its name");
        assert!(!has(&bob, path), "{path} is valid");
    }
    let paths = [compiler_out.clone(), program_out.clone()];
    assert_eq!(mallory.swarm.have(bob.key, &paths).await.unwrap(), [false, false]);
    assert_eq!(
        mallory.swarm.path_infos(bob.key, &paths).await.unwrap(),
        [None, None]
    );

    // The same request again is no other: it is not answered from somebody's honest build, nor the other
    // way round.
    let carol = UpNode::start(0);
    carol.join(&bob.ticket(&["request", "build", "store"]), "carol");
    carol.machine.expression(PROGRAM);
    let printed = carol.machine.run(&["build", "-A", "program", "--no-out-link"]);
    assert_eq!(store_path(printed.ok()), program_out);
    assert_eq!(
        std::fs::read_to_string(carol.physical(&program_out)).unwrap(),
        "honest\n"
    );
    assert_eq!(
        std::fs::read_to_string(bob.physical(&program_out)).unwrap(),
        "honest\n"
    );
    let BuildEvent::Finished { record, .. } = mallory.build(mallory.request(bob.key, program, inputs)).await
    else {
        panic!("the trojaned build goes on beside the honest one")
    };
    assert_eq!(record.outputs["out"].tree, built.tree);
    assert_eq!(
        std::fs::read_to_string(bob.physical(&program_out)).unwrap(),
        "honest\n"
    );

    // A third member may not have what was made for Mallory, although it knows the digest.
    let ticket = bob.ticket(&["request", "build", "store"]);
    let (other, _) = Mallory::join(&ticket, PROGRAM, &[]).await;
    assert!(
        other
            .swarm
            .fetch_tree(built.tree, vec![bob.key], None)
            .await
            .is_err()
    );
    mallory.swarm.shutdown().await;
    other.swarm.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_s_word_does_not_count_for_the_inputs_of_its_own_request() {
    let test = "a_member_s_word_does_not_count_for_the_inputs_of_its_own_request";
    if !tokio::task::block_in_place(|| sandbox_works(test)) {
        return;
    }
    let bob = UpNode::start(1);
    // Every role that an invitation gives by itself.
    let ticket = bob.ticket(&["request", "build", "store"]);
    let (mallory, derivations) = Mallory::join(&ticket, PROGRAM, &["compiler", "program"]).await;
    let [compiler, program] = derivations.as_slice() else {
        panic!()
    };
    let tool = mallory
        .derivation(program)
        .input_sources()
        .first()
        .unwrap()
        .clone();
    let trojan = mallory.claim(&mallory.output(compiler), "trojan", None);
    let inputs = vec![input(&mallory.info(&tool)), input(&trojan)];
    let built = mallory.build(mallory.request(bob.key, program, inputs)).await;
    assert!(matches!(built, BuildEvent::Finished { .. }), "{built:?}");
    for path in [&mallory.output(compiler), &mallory.output(program)] {
        assert!(!has(&bob, path), "{path} is valid");
    }
    mallory.swarm.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_false_path_that_a_member_without_a_role_advertises_is_built_instead() {
    let test = "a_false_path_that_a_member_without_a_role_advertises_is_built_instead";
    if !tokio::task::block_in_place(|| sandbox_works(test)) {
        return;
    }
    let bob = UpNode::start(1);
    let ticket = bob.ticket(&["request"]);
    let (mallory, derivations) = Mallory::join(&ticket, PROGRAM, &["program"]).await;
    let program_out = mallory.output(&derivations[0]);
    mallory.claim(&program_out, "false", None);
    mallory.swarm.announce(std::slice::from_ref(&program_out));
    bob.machine.expression(PROGRAM);
    let built = bob.machine.run(&["build", "-A", "program", "--no-out-link"]);
    assert_eq!(store_path(built.ok()), program_out);
    assert!(built.stderr.contains("2 built"), "{}", built.stderr);
    assert_eq!(
        std::fs::read_to_string(bob.physical(&program_out)).unwrap(),
        "honest\n"
    );
    mallory.swarm.shutdown().await;
}
