use super::*;
use crate::PushError;
use tvix_node_protocol::messages::PushRefusal;
use tvix_node_protocol::tree::TreeDigest;

/// Bob, who has built something, and Ann, whose store is wanted.
async fn pair(roles: Roles) -> (TestNode, TestNode) {
    let mut ann = TestNode::founder(1).await;
    let bob = ann.invite_as(2, roles, honestly, |_| ()).await;
    ann.meets(bob.key()).await;
    (ann, bob)
}

#[tokio::test]
async fn a_store_fetches_what_is_pushed_and_confirms_it() {
    let (mut ann, bob) = pair(Roles::all()).await;
    let path = bob.shelf.add_small("built");
    let shown = bob.shelf.shown(&path);
    let pushing = bob.handle.push(ann.key(), vec![shown.clone()]);
    let storing = async {
        let push = ann.events.pushes.recv().await.unwrap();
        assert_eq!((push.peer, push.paths.len()), (bob.key(), 1));
        let info = push.paths[0].info.clone();
        let peer = push.peer;
        let taken = push.accept();
        let arrival = ann.handle.fetch_tree(info.tree, vec![peer], None).await.unwrap();
        ann.shelf.adopt(&arrival);
        taken.stored(info.path, info.tree).await.unwrap();
        taken.done().await.unwrap();
    };
    let (pushed, ()) = soon(async { tokio::join!(pushing, storing) }).await;
    pushed.unwrap();
    assert!(ann.shelf.is_complete(shown.info.tree));
}

#[tokio::test]
async fn a_store_that_confirms_something_else_has_confirmed_nothing() {
    let (mut ann, bob) = pair(Roles::all()).await;
    let path = bob.shelf.add_small("built");
    let pushing = bob.handle.push(ann.key(), vec![bob.shelf.shown(&path)]);
    let storing = async {
        let taken = ann.events.pushes.recv().await.unwrap().accept();
        taken.stored(path.clone(), TreeDigest([0; 32])).await.unwrap();
        taken
            .stored(super::shelf::path("other"), bob.shelf.tree_of(&path))
            .await
            .unwrap();
        taken.done().await.unwrap();
    };
    let (pushed, ()) = soon(async { tokio::join!(pushing, storing) }).await;
    assert!(matches!(pushed, Err(PushError::Unconfirmed { .. })), "{pushed:?}");
}

#[tokio::test]
async fn a_store_refuses_with_its_reason() {
    let (mut ann, bob) = pair(Roles::all()).await;
    let path = bob.shelf.add_small("built");
    let pushing = bob.handle.push(ann.key(), vec![bob.shelf.shown(&path)]);
    let refusing = async {
        let push = ann.events.pushes.recv().await.unwrap();
        push.refuse(PushRefusal::Policy, "no record").await;
    };
    let (pushed, ()) = soon(async { tokio::join!(pushing, refusing) }).await;
    let Err(PushError::Refused { reason, message, .. }) = pushed else {
        panic!("{pushed:?}")
    };
    assert_eq!((reason, message.as_str()), (PushRefusal::Policy, "no record"));
}

#[tokio::test]
async fn a_node_without_the_role_is_no_store() {
    let (ann, mut bob) = pair(roles(&[Role::Build])).await;
    let path = ann.shelf.add_small("built");
    let pushed = soon(ann.handle.push(bob.key(), vec![ann.shelf.shown(&path)])).await;
    assert!(
        matches!(
            pushed,
            Err(PushError::Refused {
                reason: PushRefusal::NotAStore,
                ..
            })
        ),
        "{pushed:?}"
    );
    assert!(bob.events.pushes.try_recv().is_err());
}
