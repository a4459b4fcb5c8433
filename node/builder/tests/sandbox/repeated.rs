//! Builds of what has been built before.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use crate::stage::{OUT, Stage};

#[tokio::test]
async fn a_rebuild_is_compared_and_what_differs_is_kept() {
    let Some(stage) = Stage::new().await else { return };
    let first = stage.act(&["write", OUT, "some text"]).await.built();
    let same = stage.act(&["write", OUT, "some text"]).await.built();
    assert_eq!(same.differences(&first.outputs).await.unwrap(), BTreeMap::new());

    let mut other = stage.act(&["write", OUT, "some more"]).await.built();
    let found = other.differences(&first.outputs).await.unwrap();
    assert_eq!(
        found["out"][0].to_string(),
        "the output itself differs from byte 5 on (9 bytes)"
    );
    let kept = other.keep("out", stage.builder.config()).unwrap();
    assert!(other.keep("out", stage.builder.config()).is_err());
    other.discard().await;
    assert_eq!(std::fs::read(kept).unwrap(), b"some more");
    drop((first, same));
    assert!(stage.leftovers().is_empty());
}

#[tokio::test]
async fn a_folder_that_nobody_may_write_to_can_be_kept() {
    let Some(stage) = Stage::new().await else { return };
    let mut built = stage.act(&["read-only", OUT]).await.built();
    let kept = built.keep("out", stage.builder.config()).unwrap();
    built.discard().await;
    assert_eq!(std::fs::read(kept.join("file")).unwrap(), b"x");
    // To be removed with the rest of the test.
    std::fs::set_permissions(kept, PermissionsExt::from_mode(0o755)).unwrap();
}
