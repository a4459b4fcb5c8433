//! What a build does when nobody means harm.

use crate::stage::Stage;
use tvix_node_builder::Cause;

/// Stands for the path of the output `out`, as `builtins.placeholder "out"`.
pub const OUT: &str = "/1rz4g4znpzjwh1xymhjpm42vipw92pr73vdgl6xs1hycac8kf2n9";

#[tokio::test]
async fn an_output_comes_out_and_nothing_stays() {
    let Some(stage) = Stage::new().await else { return };
    let built = stage.act(&["write", OUT, "hello"]).await.unwrap();
    assert_eq!(std::fs::read(&built.outputs["out"]).unwrap(), b"hello");
    assert_eq!(stage.leftovers().len(), 1);
    built.discard().await;
    assert!(stage.leftovers().is_empty());
}

#[tokio::test]
async fn a_builder_that_fails_is_told_apart_and_leaves_nothing() {
    let Some(stage) = Stage::new().await else { return };
    let error = stage.act(&["no such act"]).await.unwrap_err();
    assert!(matches!(*error.cause, Cause::Exit(1)), "{error}");
    assert!(
        error.log_tail.iter().any(|line| line.contains("no such act")),
        "{error:?}"
    );
    assert!(stage.leftovers().is_empty());
}
