//! How builds end.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use tvix_node_builder::{Builder, Cause, Config, Helper};

use crate::stage::{ACTOR, OUT, Stage, fields, is_running, libraries, processes_with, skipped, spec, token};

#[tokio::test]
async fn an_exit_code_is_reported_with_the_end_of_the_log() {
    let Some(stage) = Stage::new().await else { return };
    let played = stage.act(&["no such act"]).await;
    let error = played.result.unwrap_err();
    assert!(matches!(*error.cause, Cause::Exit(1)), "{error}");
    assert!(
        error.log_tail.iter().any(|line| line.contains("no such act")),
        "{error:?}"
    );
    assert!(
        error
            .to_string()
            .contains("-play.drv' failed: the builder failed with exit code 1"),
        "{error}"
    );
    assert!(matches!(
        stage.act(&["exit", "77"]).await.cause(),
        Cause::Exit(77)
    ));
}

#[tokio::test]
async fn a_signal_is_reported_as_one() {
    let Some(stage) = Stage::new().await else { return };
    let cause = stage.act(&["die", "11"]).await.cause();
    // Process 1 of a namespace cannot be killed from inside, not even by itself, as in Nix.
    assert!(matches!(cause, Cause::OutputMissing { .. }), "{cause}");
}

#[tokio::test]
async fn a_builder_that_is_not_there_is_named() {
    let Some(stage) = Stage::new().await else { return };
    let mut asked = fields(&[]);
    asked.builder = b"/bin/sh".to_vec();
    let played = stage.play(spec(asked)).await;
    let cause = played.cause();
    assert!(
        matches!(&cause, Cause::Execute { builder, .. } if builder == "/bin/sh"),
        "{cause}"
    );
    assert!(cause.to_string().contains("no program of the machine"), "{cause}");
}

#[tokio::test]
async fn a_build_that_takes_too_long_is_ended() {
    let Some(stage) = Stage::new().await else { return };
    // A busy machine may not even start it within the shorter ones.
    for seconds in [1, 5, 25, 125] {
        let token = token();
        let mut asked = spec(fields(&["linger", "all", &token]));
        asked.limits.time = Some(seconds);
        let played = stage.play(asked).await;
        let begun = played.log.iter().any(|line| line.contains("lingering"));
        assert!(matches!(played.cause(), Cause::TimedOut(limit) if limit == seconds));
        assert!(!is_running(&token));
        assert!(stage.leftovers().is_empty());
        if begun {
            return;
        }
    }
    panic!("it never began");
}

#[tokio::test]
async fn a_build_that_says_nothing_for_too_long_is_ended() {
    let Some(stage) = Stage::new().await else { return };
    let mut asked = spec(fields(&["wait"]));
    asked.limits.silence = Some(1);
    assert!(matches!(stage.play(asked).await.cause(), Cause::Silent(1)));
}

#[tokio::test]
async fn what_a_stopped_build_said_last_is_heard_though_its_line_has_no_end() {
    let Some(stage) = Stage::new().await else { return };
    let mut asked = spec(fields(&["ask", "Continue? [y/N] "]));
    asked.limits.silence = Some(2);
    let played = stage.play(asked).await;
    assert_eq!(played.log, ["Continue? [y/N] "]);
    let error = played.result.unwrap_err();
    assert!(matches!(*error.cause, Cause::Silent(2)), "{error}");
    assert_eq!(error.log_tail, ["Continue? [y/N] "]);
}

/// Where this program runs the next test again: the folder that a small file system is mounted on.
const SMALL_DISK: &str = "TVIX_NODE_TEST_SMALL_DISK";

#[tokio::test]
async fn on_a_full_disk_it_is_the_machine_that_fails() {
    if std::env::var_os(SMALL_DISK).is_none() {
        return again_on_a_small_disk("ends::on_a_full_disk_it_is_the_machine_that_fails");
    }
    let Some(stage) = Stage::new().await else { return };
    let full = spec(fields(&["fill", "file", "/build/file"]));
    let cause = stage.play(full).await.cause();
    let said = cause.to_string();
    assert!(matches!(cause, Cause::DiskOfBuilder(_)), "{said}");
    assert!(
        said.contains("exit code") && said.contains("disk of this builder is full"),
        "{said}"
    );
    // Gone with the build's folder.
    let other = spec(fields(&["exit", "77"]));
    assert!(matches!(stage.play(other).await.cause(), Cause::Exit(77)));
}

/// Runs a test of this program again with its temporary folders on 64 MB of memory, in a mount namespace of its own: a full
/// disk would fail other tests.
fn again_on_a_small_disk(test: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let within = |then: &str| {
        let mut command = Command::new("unshare");
        // An ordinary user may mount in a user namespace alone; root builds as other users, who are not in a new one.
        if !rustix::process::geteuid().is_root() {
            command.args(["--map-current-user", "--keep-caps"]);
        }
        let mount = format!("mount -t tmpfs -o size=64m,mode=1777 none \"${SMALL_DISK}\" && {then}");
        command.args(["--mount", "sh", "-c"]).arg(mount);
        command
            .env(SMALL_DISK, folder.path())
            .env("TMPDIR", folder.path());
        command
    };
    match within("true").output() {
        Ok(probed) if probed.status.success() => {}
        other => return skipped(test, &format!("no file system can be mounted here: {other:?}")),
    }
    let mut command = within("exec \"$0\" \"$@\"");
    command.arg(std::env::current_exe().expect("this program"));
    let output = command
        .args(["--exact", test, "--nocapture"])
        .output()
        .expect("it ran before");
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}{errors}"
    );
}

#[tokio::test]
async fn a_log_within_the_limit_arrives_whole() {
    let Some(stage) = Stage::new().await else { return };
    let mut asked = spec(fields(&["say", "some line of text", "10000"]));
    asked.limits.log = Some(180_000);
    let played = stage.play(asked).await;
    assert_eq!(played.log.len(), 10_000);
    assert!(played.log.iter().all(|line| line == "some line of text"));
}

#[tokio::test]
async fn a_cancelled_build_is_gone() {
    let Some(stage) = Stage::new().await else { return };
    let token = token();
    let asked = spec(fields(&["linger", "all", &token]));
    let played = stage.play_until(asked, |line| line.contains("lingering")).await;
    assert!(matches!(played.cause(), Cause::Cancelled));
    assert!(!is_running(&token));
}

#[tokio::test]
async fn a_build_whose_future_is_dropped_is_gone_in_the_end() {
    let Some(stage) = Stage::new().await else { return };
    let token = token();
    let (events, mut heard) = tokio::sync::mpsc::channel(16);
    let cancel = tokio_util::sync::CancellationToken::new();
    let asked = spec(fields(&["linger", "all", &token]));
    {
        let build = stage.builder.build(asked, events, cancel);
        tokio::select! {
            result = build => panic!("{result:?}"),
            () = async {
                while !matches!(heard.recv().await, Some(tvix_node_builder::BuildEvent::Log(_))) {}
            } => {}
        }
    }
    // The channel closes when the build's own task has ended.
    while heard.recv().await.is_some() {}
    assert!(!is_running(&token));
}

#[tokio::test]
async fn the_folder_of_a_failed_build_is_kept_when_asked_for() {
    let Some(stage) = Stage::new().await else { return };
    let mut asked = spec(fields(&["write", "/build/evidence", "x"]));
    asked.keep_failed = true;
    let error = stage.play(asked).await.result.unwrap_err();
    let kept = error.kept.unwrap();
    assert_eq!(std::fs::read(kept.join("evidence")).unwrap(), b"x");
}

#[tokio::test]
async fn a_build_dies_with_its_helper() {
    let Some(stage) = Stage::new().await else { return };
    let token = token();
    let asked = spec(fields(&["linger", "all", &token]));
    let (events, mut heard) = tokio::sync::mpsc::channel(16);
    let kill = async {
        while let Some(event) = heard.recv().await {
            if matches!(event, tvix_node_builder::BuildEvent::Log(_)) {
                let first = processes_with(&token).min().unwrap();
                let status = std::fs::read_to_string(format!("/proc/{first}/status")).unwrap();
                let helper = status
                    .lines()
                    .find_map(|line| line.strip_prefix("PPid:"))
                    .unwrap();
                let helper = rustix::process::Pid::from_raw(helper.trim().parse().unwrap()).unwrap();
                rustix::process::kill_process(helper, rustix::process::Signal::KILL).unwrap();
            }
        }
    };
    let build = stage
        .builder
        .build(asked, events, tokio_util::sync::CancellationToken::new());
    let (result, ()) = tokio::join!(build, kill);
    assert!(matches!(*result.unwrap_err().cause, Cause::HelperDied(_)));
    assert!(!is_running(&token));
}

/// The helper of the next build is started early. It is used, replaced where it is gone, and ends with the
/// builder.
#[tokio::test]
async fn a_helper_waits_for_the_next_build() {
    let token = token();
    let marked = |config: &mut Config| config.helper.arguments = vec![token.clone().into()];
    let Some(stage) = Stage::with(marked).await else {
        return;
    };
    let waiting = async |wanted: bool| {
        for _ in 0..6000 {
            match processes_with(&token).next() {
                Some(pid) if wanted => return pid,
                None if !wanted => return 0,
                _ => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
            }
        }
        panic!("waited in vain");
    };
    stage.look(&["say", "first", "1"]).await;
    let first = waiting(true).await;
    stage.look(&["say", "second", "1"]).await;
    let second = waiting(true).await;
    assert_ne!(first, second);
    let pid = rustix::process::Pid::from_raw(second.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    waiting(false).await;
    assert_eq!(stage.look(&["say", "third", "1"]).await, ["third"]);
    waiting(true).await;
    drop(stage);
    waiting(false).await;
}

/// A node that is killed takes its builds with it, and the next one removes what they left.
#[tokio::test]
async fn builds_end_with_the_node() {
    if Stage::new().await.is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let scratch = folder.path().join("builds");
    let token = token();
    let libraries: Vec<String> = libraries()
        .keys()
        .map(|path| path.display().to_string())
        .collect();
    let mut node = Command::new(ACTOR)
        .args(["node", &scratch.display().to_string(), &token])
        .env("ACTOR_LIBRARIES", libraries.join(":"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(node.stdout.take().unwrap());
    let begun = output
        .lines()
        .map_while(Result::ok)
        .any(|line| line.contains("lingering"));
    node.kill().unwrap();
    node.wait().unwrap();
    assert!(begun);
    // Waits for the helper, which sees its node's end.
    Builder::new(Config::new(&scratch, Helper::program(ACTOR))).unwrap();
    assert!(!is_running(&token));
    assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0);
}

#[tokio::test]
async fn placeholders_are_replaced_everywhere() {
    let Some(stage) = Stage::new().await else { return };
    let mut asked = fields(&["environment"]);
    asked
        .environment
        .insert(b"where".to_vec(), format!("<{OUT}>").into_bytes());
    let asked = spec(asked);
    let out = asked.derivation.outputs()["out"]
        .path("play", "out")
        .unwrap()
        .unwrap();
    let log = stage.play(asked).await.log;
    assert!(log.contains(&format!("where=<{out}>")), "{log:?}");
}
