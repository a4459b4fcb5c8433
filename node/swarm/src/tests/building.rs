use super::shelf::path;
use super::*;
use crate::net::Door;
use crate::protocols::build::{BuildEvent, IncomingBuild, Interest, RunningBuild, until_unwanted};
use crate::{BuildCall, BuildCallError};
use std::collections::BTreeMap;
use tvix_node_protocol::build::{
    BuildKind, BuildLimits, BuildOptions, BuildRecord, BuildRequest, BuiltOutput, RequestHash,
};
use tvix_node_protocol::envelope::{Envelope, seal};
use tvix_node_protocol::limits::ENVELOPE_BYTES;
use tvix_node_protocol::messages::{
    BuildFailure, BuildFrame, FailedFolder, FailureKind, Pushed, RefusalReason,
};
use tvix_node_protocol::path_info::NarHash;
use tvix_node_protocol::tree::TreeDigest;

/// Ann, who asks, and Bob, who builds.
async fn pair() -> (TestNode, TestNode) {
    let ann = TestNode::founder(1).await;
    let mut bob = ann.invite(2).await;
    bob.meets(ann.key()).await;
    (ann, bob)
}

pub(super) fn request(from: &TestNode, to: &TestNode, nonce: u8) -> BuildRequest {
    BuildRequest {
        swarm: from.handle.swarm(),
        requester: from.key(),
        builder: to.key(),
        derivation: path("x.drv"),
        inputs: vec![],
        outputs: vec!["out".into()],
        kind: BuildKind::Regular,
        desired_store: None,
        options: BuildOptions::default(),
        limits: BuildLimits::NONE,
        urgency: 0,
        fresh: false,
        keep_failed: false,
        nonce: [nonce; 16],
        issued_at: now(),
        not_after: now() + 600,
    }
}

fn record(request: &BuildRequest, hash: RequestHash, builder: u8) -> Envelope {
    let output = BuiltOutput {
        path: path("x"),
        tree: TreeDigest([1; 32]),
        nar_hash: NarHash([2; 32]),
        nar_size: 3,
        references: vec![],
    };
    let record = BuildRecord {
        build_key: request.build_key().unwrap(),
        request: Some(hash),
        derivation: request.derivation.clone(),
        inputs: vec![],
        outputs: BTreeMap::from([("out".to_owned(), output)]),
        builder: key(builder),
        started: 1,
        finished: 2,
        sandbox: "test".into(),
    };
    seal(&record, &secret(builder)).unwrap()
}

async fn incoming(node: &mut TestNode) -> IncomingBuild {
    soon(node.events.builds.recv()).await.unwrap()
}

/// A build that both sides have agreed on.
pub(super) async fn running(ann: &TestNode, bob: &mut TestNode) -> (BuildCall, RunningBuild) {
    running_of(ann, bob, 1).await
}

/// The same, of a request with this nonce.
pub(super) async fn running_of(ann: &TestNode, bob: &mut TestNode, nonce: u8) -> (BuildCall, RunningBuild) {
    let mut call = soon(ann.handle.request_build(request(ann, bob, nonce)))
        .await
        .unwrap();
    let running = incoming(bob).await.accept().await.unwrap();
    assert_eq!(event(&mut call).await.unwrap(), BuildEvent::Accepted);
    (call, running)
}

/// The next event that is no heartbeat.
pub(super) async fn event(call: &mut BuildCall) -> Result<BuildEvent, BuildCallError> {
    loop {
        match soon(call.next()).await {
            Ok(BuildEvent::Heartbeat) => {}
            event => return event,
        }
    }
}

#[tokio::test]
async fn a_build_is_asked_for_done_and_recorded() {
    let (ann, mut bob) = pair().await;
    let mut call = soon(ann.handle.request_build(request(&ann, &bob, 1)))
        .await
        .unwrap();
    let incoming = incoming(&mut bob).await;
    let (asked, hash) = (incoming.request.clone(), incoming.hash);
    let build = incoming.accept().await.unwrap();
    build.log(b"compiling\n").await.unwrap();
    build.log(&vec![b'x'; 200_000]).await.unwrap();
    build
        .finish(record(&asked, hash, 2), Pushed::NotAsked)
        .await
        .unwrap();
    assert_eq!(event(&mut call).await.unwrap(), BuildEvent::Accepted);
    let mut log = vec![];
    let last = loop {
        match event(&mut call).await.unwrap() {
            BuildEvent::Log(bytes) => log.extend(bytes),
            other => break other,
        }
    };
    assert_eq!(log.len(), 200_010);
    let BuildEvent::Finished { record, pushed, .. } = last else {
        panic!("{last:?}")
    };
    assert_eq!((record.builder, pushed), (bob.key(), Pushed::NotAsked));
    assert!(matches!(call.next().await, Err(BuildCallError::Over)));
}

#[tokio::test]
async fn heartbeats_come_while_a_builder_finds_out_whether_it_takes_a_request() {
    let (ann, mut bob) = pair().await;
    let mut call = soon(ann.handle.request_build(request(&ann, &bob, 1)))
        .await
        .unwrap();
    let incoming = incoming(&mut bob).await;
    assert_eq!(soon(call.next()).await.unwrap(), BuildEvent::Heartbeat);
    drop(incoming.accept().await.unwrap());
    assert_eq!(event(&mut call).await.unwrap(), BuildEvent::Accepted);
}

#[tokio::test]
async fn heartbeats_come_while_a_build_is_silent() {
    let (ann, mut bob) = pair().await;
    let (mut call, _running) = running(&ann, &mut bob).await;
    assert_eq!(soon(call.next()).await.unwrap(), BuildEvent::Heartbeat);
    assert_eq!(soon(call.next()).await.unwrap(), BuildEvent::Heartbeat);
}

#[tokio::test]
async fn a_builder_that_goes_on_and_on_is_not_listened_to() {
    let (ann, mut bob) = pair().await;
    let (mut call, running) = running(&ann, &mut bob).await;
    assert_eq!(call.log_left, crate::limits::LOG_OF_A_CALL);
    call.log_left = 10;
    running.log(b"0123456789").await.unwrap();
    running.log(b"x").await.unwrap();
    let first = event(&mut call).await.unwrap();
    assert_eq!(first, BuildEvent::Log(b"0123456789".to_vec()));
    let error = event(&mut call).await.unwrap_err();
    assert!(
        matches!(error, BuildCallError::LogTooLong { builder } if builder == bob.key()),
        "{error}"
    );
    assert!(matches!(call.next().await, Err(BuildCallError::Over)));
}

#[tokio::test]
async fn a_refusal_of_the_node_reaches_the_requester() {
    let (ann, mut bob) = pair().await;
    let mut call = soon(ann.handle.request_build(request(&ann, &bob, 1)))
        .await
        .unwrap();
    let incoming = incoming(&mut bob).await;
    incoming
        .refuse(RefusalReason::OutputPath, "it does not follow")
        .await;
    let BuildEvent::Refused(refusal) = event(&mut call).await.unwrap() else {
        panic!()
    };
    assert_eq!(refusal.reason, RefusalReason::OutputPath);
    assert_eq!(refusal.message, "it does not follow");
}

#[tokio::test]
async fn a_failure_reaches_the_requester_with_the_end_of_the_log() {
    let (ann, mut bob) = pair().await;
    let (mut call, running) = running(&ann, &mut bob).await;
    let failure = BuildFailure {
        kind: FailureKind::Build,
        message: "exit status 1".into(),
        tail: b"no such file".to_vec(),
        folder: Some(FailedFolder::Shown {
            tree: TreeDigest([1; 32]),
            nar_hash: NarHash([2; 32]),
            nar_size: 3,
        }),
    };
    running.fail(failure.clone()).await.unwrap();
    assert_eq!(event(&mut call).await.unwrap(), BuildEvent::Failed(failure));
}

#[tokio::test]
async fn cancelling_stops_the_far_build() {
    let (ann, mut bob) = pair().await;
    let (call, build) = running(&ann, &mut bob).await;
    call.cancel().await.unwrap();
    let why = soon(until_unwanted(&mut build.interest())).await;
    assert_eq!(why, Interest::Cancelled);
    // And so does letting go of it.
    let mut call = soon(ann.handle.request_build(request(&ann, &bob, 2)))
        .await
        .unwrap();
    let mut build = incoming(&mut bob).await.accept().await.unwrap();
    assert_eq!(soon(call.next()).await.unwrap(), BuildEvent::Accepted);
    drop(call);
    soon(build.cancelled()).await;
}

#[tokio::test]
async fn a_requester_that_dies_stops_the_far_build() {
    let (ann, mut bob) = pair().await;
    let (_call, build) = running(&ann, &mut bob).await;
    ann.handle.shutdown().await;
    let why = soon(until_unwanted(&mut build.interest())).await;
    assert_eq!(why, Interest::Lost);
}

/// Who reads nothing any more is not taken for one who was lost.
#[tokio::test]
async fn cancelling_is_heard_in_the_middle_of_a_long_log() {
    let (ann, mut bob) = pair().await;
    let (call, build) = running(&ann, &mut bob).await;
    let mut interest = build.interest();
    let writing = tokio::spawn(async move { while build.log(&[b'x'; 1 << 16]).await.is_ok() {} });
    tokio::time::sleep(Duration::from_millis(200)).await;
    call.cancel().await.unwrap();
    assert_eq!(soon(until_unwanted(&mut interest)).await, Interest::Cancelled);
    writing.await.unwrap();
}

#[tokio::test]
async fn a_builder_that_dies_or_lets_go_is_noticed() {
    let (ann, mut bob) = pair().await;
    let (mut call, build) = running(&ann, &mut bob).await;
    drop(build);
    let BuildEvent::Failed(failure) = event(&mut call).await.unwrap() else {
        panic!()
    };
    assert_eq!(failure.kind, FailureKind::Machine);
    let mut call = soon(ann.handle.request_build(request(&ann, &bob, 2)))
        .await
        .unwrap();
    let _build = incoming(&mut bob).await.accept().await.unwrap();
    assert_eq!(soon(call.next()).await.unwrap(), BuildEvent::Accepted);
    bob.handle.shutdown().await;
    assert!(matches!(event(&mut call).await, Err(BuildCallError::Call(_))));
}

#[tokio::test]
async fn a_record_for_something_else_is_not_taken() {
    let (ann, mut bob) = pair().await;
    type Forge = fn(&BuildRequest, RequestHash) -> Envelope;
    let forgeries: [Forge; 4] = [
        |request, hash| record(request, hash, 1),
        |request, _| record(request, RequestHash([0; 32]), 2),
        |request, hash| {
            let mut other = request.clone();
            other.outputs = vec!["dev".into()];
            record(&other, hash, 2)
        },
        |request, hash| {
            let mut envelope = record(request, hash, 2);
            envelope.signature[0] ^= 1;
            envelope
        },
    ];
    for (nonce, forge) in (10..).zip(forgeries) {
        let mut call = soon(ann.handle.request_build(request(&ann, &bob, nonce)))
            .await
            .unwrap();
        let incoming = incoming(&mut bob).await;
        let forged = forge(&incoming.request, incoming.hash);
        let build = incoming.accept().await.unwrap();
        build.finish(forged, Pushed::NotAsked).await.unwrap();
        assert_eq!(event(&mut call).await.unwrap(), BuildEvent::Accepted);
        let error = event(&mut call).await.unwrap_err();
        assert!(matches!(error, BuildCallError::WrongRecord { .. }), "{error}");
    }
    let core = ann.handle.core();
    assert!(crate::core::lock(&core.standing).is_liar(bob.key(), now()));
}

/// Sends bytes as a request and reads the answer.
async fn send_raw(ann: &TestNode, bob: &TestNode, bytes: &[u8]) -> RefusalReason {
    let mut wire = ann.handle.core().open(bob.key(), Door::Build).await.unwrap();
    wire.writer.send_raw(bytes).await.unwrap();
    wire.writer.flush().await.unwrap();
    match soon(wire.reader.receive::<BuildFrame>()).await.unwrap() {
        BuildFrame::Refused(refusal) => refusal.reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_does_not_pass_the_gate_is_refused_over_the_wire_and_does_not_reach_the_node() {
    let (ann, mut bob) = pair().await;
    let sealed = |change: fn(&mut BuildRequest), signer: u8| {
        let mut request = request(&ann, &bob, 1);
        change(&mut request);
        seal(&request, &secret(signer)).unwrap().to_bytes().unwrap()
    };
    let cases = [
        (b"nonsense".to_vec(), RefusalReason::Malformed),
        (sealed(|_| (), 9), RefusalReason::Structure),
        (
            sealed(|request| request.builder = key(1), 1),
            RefusalReason::Addressee,
        ),
        (
            sealed(|request| (request.issued_at, request.not_after) = (1, 2), 1),
            RefusalReason::Expired,
        ),
        (
            sealed(
                |request| (request.issued_at, request.not_after) = (u64::MAX - 1, u64::MAX),
                1,
            ),
            RefusalReason::FromTheFuture,
        ),
    ];
    for (bytes, reason) in cases {
        assert_eq!(send_raw(&ann, &bob, &bytes).await, reason);
    }
    assert!(bob.events.builds.try_recv().is_err());
}

#[tokio::test]
async fn a_request_too_large_is_refused_by_its_size_over_the_wire() {
    let (ann, bob) = pair().await;
    let mut wire = ann.handle.core().open(bob.key(), Door::Build).await.unwrap();
    let size = u32::try_from(ENVELOPE_BYTES + 1).unwrap();
    wire.writer.send_bytes(&size.to_le_bytes()).await.unwrap();
    wire.writer.flush().await.unwrap();
    let BuildFrame::Refused(refusal) = soon(wire.reader.receive::<BuildFrame>()).await.unwrap() else {
        panic!()
    };
    assert_eq!(refusal.reason, RefusalReason::TooLarge);
}

#[tokio::test]
async fn a_request_sent_twice_is_refused_also_after_a_restart_of_the_builder() {
    let (ann, mut bob) = pair().await;
    let bytes = seal(&request(&ann, &bob, 1), &secret(1))
        .unwrap()
        .to_bytes()
        .unwrap();
    let mut wire = ann.handle.core().open(bob.key(), Door::Build).await.unwrap();
    wire.writer.send_raw(&bytes).await.unwrap();
    wire.writer.flush().await.unwrap();
    let _taken = incoming(&mut bob).await;
    assert_eq!(send_raw(&ann, &bob, &bytes).await, RefusalReason::Replayed);
    let mut bob = bob.restart().await;
    bob.meets(ann.key()).await;
    assert_eq!(send_raw(&ann, &bob, &bytes).await, RefusalReason::Replayed);
}

#[tokio::test]
async fn who_lacks_the_role_is_refused_over_the_wire() {
    let ann = TestNode::founder(1).await;
    let mut guest = ann.invite_as(2, roles(&[Role::Store]), honestly, |_| ()).await;
    guest.meets(ann.key()).await;
    let mut call = soon(guest.handle.request_build(request(&guest, &ann, 1)))
        .await
        .unwrap();
    let BuildEvent::Refused(refusal) = event(&mut call).await.unwrap() else {
        panic!()
    };
    assert_eq!(refusal.reason, RefusalReason::Role);
    let mut call = soon(ann.handle.request_build(request(&ann, &guest, 1)))
        .await
        .unwrap();
    let BuildEvent::Refused(refusal) = event(&mut call).await.unwrap() else {
        panic!()
    };
    assert_eq!(refusal.reason, RefusalReason::Role, "the builder may not build");
}

#[tokio::test]
async fn two_hundred_builds_are_asked_for_at_once() {
    let (ann, mut bob) = pair().await;
    let mut calls = tokio::task::JoinSet::new();
    for nonce in 0..200 {
        let (handle, request) = (ann.handle.clone(), request(&ann, &bob, nonce));
        calls.spawn(async move {
            let mut call = handle.request_build(request).await.unwrap();
            event(&mut call).await.unwrap()
        });
    }
    let mut builds = vec![];
    for _ in 0..200 {
        builds.push(incoming(&mut bob).await.accept().await.unwrap());
    }
    while let Some(event) = soon(calls.join_next()).await {
        assert_eq!(event.unwrap(), BuildEvent::Accepted);
    }
}
