//! What builds are given, and what comes out of them.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::symlink;

use tvix_node_builder::{BuildInput, Cause, GraphPath, StorePath};
use tvix_node_protocol::nix::derivation::OutputKind;
use tvix_node_protocol::nix::hash::{CAHash, NixHash};
use tvix_node_protocol::nix::store_path::hash_placeholder;
use tvix_node_protocol::path_info::NarHash;

use crate::stage::{ACTOR, OUT, Stage, actor_path, fields, skipped, spec};

#[tokio::test]
async fn an_output_comes_out_and_nothing_stays() {
    let Some(stage) = Stage::new().await else { return };
    let played = stage.act(&["write", OUT, "hello"]).await;
    assert!(played.started);
    let built = played.built();
    assert_eq!(std::fs::read(&built.outputs["out"]).unwrap(), b"hello");
    assert_eq!(stage.leftovers().len(), 1);
    built.discard().await;
    assert!(stage.leftovers().is_empty());
}

#[tokio::test]
async fn a_built_that_is_dropped_is_removed_as_well() {
    let Some(stage) = Stage::new().await else { return };
    drop(stage.act(&["write", OUT, "hello"]).await);
    assert!(stage.leftovers().is_empty());
}

#[tokio::test]
async fn inputs_of_every_kind_are_there_and_nothing_else() {
    let Some(stage) = Stage::new().await else { return };
    let things = stage.folder.path().join("things");
    std::fs::create_dir_all(things.join("folder/deep")).unwrap();
    std::fs::write(things.join("folder/deep/file"), "in a folder").unwrap();
    std::fs::write(things.join("file"), "a file").unwrap();
    symlink("/nix/store/somewhere", things.join("link")).unwrap();
    symlink("file", things.join("undeclared")).unwrap();

    let path = |number, name: &str| StorePath::from_parts([number; 20], name).unwrap();
    let mut asked = spec(fields(&["list", "/nix/store"]));
    for (number, name) in [(1, "folder"), (2, "file"), (3, "link")] {
        asked.inputs.push(BuildInput {
            path: path(number, name),
            physical: things.join(name),
        });
    }
    let listed = stage.play(asked.clone()).await.log;
    let names: Vec<String> = listed
        .iter()
        .map(|line| line[33..].split(' ').next().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["folder", "file", "link", "actor"], "{listed:?}");

    for (act, expected) in [
        (
            ["read", &format!("{}/deep/file", path(1, "folder"))],
            "in a folder",
        ),
        (["read", &path(2, "file").to_string()], "a file"),
    ] {
        let mut asked = asked.clone();
        asked.derivation = spec(fields(&act)).derivation;
        assert_eq!(stage.play(asked).await.log, [expected]);
    }
}

#[tokio::test]
async fn an_input_that_is_not_there_is_named() {
    let Some(stage) = Stage::new().await else { return };
    let mut asked = spec(fields(&["write", OUT, "x"]));
    let missing = StorePath::from_parts([1; 20], "missing").unwrap();
    asked.inputs.push(BuildInput {
        path: missing.clone(),
        physical: stage.folder.path().join("missing"),
    });
    let played = stage.play(asked).await;
    assert!(!played.started);
    assert!(matches!(played.cause(), Cause::Input { path, .. } if path == missing));
    assert!(stage.leftovers().is_empty());
}

#[tokio::test]
async fn an_input_that_is_to_be_built_now_is_not_in_the_way() {
    let Some(stage) = Stage::new().await else { return };
    let mut asked = spec(fields(&["write", OUT, "new"]));
    let out = asked.derivation.outputs()["out"]
        .path("play", "out")
        .unwrap()
        .unwrap();
    asked.inputs.push(BuildInput {
        path: out,
        physical: ACTOR.into(),
    });
    let built = stage.play(asked).await.built();
    assert_eq!(std::fs::read(&built.outputs["out"]).unwrap(), b"new");
}

#[tokio::test]
async fn the_environment_is_that_of_nix() {
    let Some(stage) = Stage::new().await else { return };
    let mut asked = fields(&["environment"]);
    for (name, value) in [
        ("name", "play"),
        ("HOME", "/mine"),
        ("TMPDIR", "/mine"),
        ("passAsFile", "text"),
        ("text", "long"),
    ] {
        asked.environment.insert(name.into(), value.into());
    }
    asked.outputs.insert("dev".to_owned(), OutputKind::InputAddressed);
    let mut asked = spec(asked);
    asked.cores = 3;
    let paths: BTreeMap<_, _> = asked
        .derivation
        .outputs()
        .iter()
        .map(|(name, output)| (name.clone(), output.path("play", name).unwrap().unwrap()))
        .collect();
    let log = stage.play(asked).await.log;
    let expected = [
        "HOME=/mine".to_owned(),
        "NIX_BUILD_CORES=3".to_owned(),
        "NIX_BUILD_TOP=/build".to_owned(),
        "NIX_LOG_FD=2".to_owned(),
        "NIX_STORE=/nix/store".to_owned(),
        "PATH=/path-not-set".to_owned(),
        "PWD=/build".to_owned(),
        "TEMP=/build".to_owned(),
        "TEMPDIR=/build".to_owned(),
        "TERM=xterm-256color".to_owned(),
        "TMP=/build".to_owned(),
        "TMPDIR=/build".to_owned(),
        format!("dev={}", paths["dev"]),
        "name=play".to_owned(),
        format!("out={}", paths["out"]),
        "passAsFile=text".to_owned(),
        // SHA-256 of "text" in base 32.
        "textPath=/build/.attr-1lf969yddshzhld7sr1vbagr07bnygg99lgl6gk5kxcnp4z9wbcq".to_owned(),
    ];
    assert_eq!(log, expected);
}

#[tokio::test]
async fn a_fixed_output_build_gets_the_variables_it_names() {
    let Some(stage) = Stage::new().await else { return };
    let mut asked = fields(&["environment"]);
    asked.outputs.insert(
        "out".to_owned(),
        OutputKind::Fixed(CAHash::Flat(NixHash::Sha256([9; 32]))),
    );
    asked
        .environment
        .insert(b"impureEnvVars".to_vec(), b"ONE TWO".to_vec());
    let mut asked = spec(asked);
    asked.impure_environment.insert("ONE".to_owned(), b"1".to_vec());
    asked
        .impure_environment
        .insert("OTHER".to_owned(), b"not named".to_vec());
    let log = stage.play(asked).await.log;
    for line in ["NIX_OUTPUT_CHECKED=1", "ONE=1", "TWO="] {
        assert!(log.iter().any(|found| found == line), "{line} in {log:?}");
    }
    assert!(!log.iter().any(|line| line.starts_with("OTHER")));
}

#[tokio::test]
async fn files_and_structured_attributes_are_in_the_build_folder() {
    let Some(stage) = Stage::new().await else { return };
    let mut asked = fields(&["read", ".attrs.sh"]);
    asked.environment.insert(
        b"__json".to_vec(),
        br#"{"name":"play","list":[1,"two"]}"#.to_vec(),
    );
    let log = stage.play(spec(asked)).await.log;
    assert_eq!(log[0], "declare -a list=(1 'two' )");
    assert_eq!(log[1], "declare name='play'");
    assert!(
        log[2].starts_with("declare -A outputs=(['out']='/nix/store/"),
        "{log:?}"
    );
}

#[tokio::test]
async fn what_is_passed_as_a_file_is_one() {
    let Some(stage) = Stage::new().await else { return };
    let file = "/build/.attr-1lf969yddshzhld7sr1vbagr07bnygg99lgl6gk5kxcnp4z9wbcq";
    let mut asked = fields(&["read", file]);
    for (name, value) in [("passAsFile", "text".to_owned()), ("text", format!("long {OUT}"))] {
        asked.environment.insert(name.into(), value.into());
    }
    let asked = spec(asked);
    let out = asked.derivation.outputs()["out"]
        .path("play", "out")
        .unwrap()
        .unwrap();
    assert_eq!(stage.play(asked).await.log, [format!("long {out}")]);
}

#[tokio::test]
async fn the_graph_of_an_input_is_in_the_build_folder() {
    let Some(stage) = Stage::new().await else { return };
    let actor = actor_path();
    let facts = GraphPath {
        path: actor.clone(),
        nar_hash: NarHash([0; 32]),
        nar_size: 5,
        references: BTreeSet::from([actor.clone()]),
        ca: None,
    };
    let mut asked = fields(&["read", "graph"]);
    asked.environment.insert(
        b"exportReferencesGraph".to_vec(),
        format!("graph {actor}").into_bytes(),
    );
    let mut asked = spec(asked);
    asked.graph = vec![facts.clone()];
    assert_eq!(
        stage.play(asked).await.log,
        [actor.to_string().as_str(), "", "1", actor.to_string().as_str()]
    );
    let mut asked = fields(&["read", ".attrs.json"]);
    asked.environment.insert(
        b"__json".to_vec(),
        format!(r#"{{"exportReferencesGraph":{{"graph":["{actor}"]}},"name":"play"}}"#).into_bytes(),
    );
    let mut asked = spec(asked);
    asked.graph = vec![facts];
    let log = stage.play(asked).await.log;
    assert!(log[0].contains(r#""closureSize":5"#), "{log:?}");
    assert!(log[0].contains(r#""outputs":{"out":"/nix/store/"#), "{log:?}");
}

/// A program of the 32-bit machine that this one can also be: writes what machine it is on.
#[cfg(target_arch = "x86_64")]
#[tokio::test]
async fn thirty_two_bit_builders_run_on_a_thirty_two_bit_machine() {
    use std::os::unix::fs::PermissionsExt;
    let Some(stage) = Stage::new().await else { return };
    let program = stage.folder.path().join("machine");
    std::fs::write(&program, machine_program()).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let written = stage.folder.path().join("written");
    let outside = loop {
        match std::process::Command::new(&program).arg(&written).status() {
            // What another test just started has it open for writing, until it is what it was started as.
            Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => std::thread::yield_now(),
            outside => break outside,
        }
    };
    match outside {
        Ok(status) => assert!(status.success(), "{status}"),
        Err(error) => {
            skipped(
                "a 32-bit builder",
                &format!("this machine runs no such program: {error}"),
            );
            return;
        }
    }
    assert_eq!(std::fs::read(written).unwrap(), b"x86_64");
    let path = StorePath::from_parts([1; 20], "machine").unwrap();
    let mut asked = fields(&[OUT]);
    asked.builder = path.to_absolute_path().into_bytes();
    asked.system = b"i686-linux".to_vec();
    let mut asked = spec(asked);
    asked.inputs.push(BuildInput {
        path,
        physical: program,
    });
    let built = stage.play(asked).await.built();
    assert_eq!(std::fs::read(&built.outputs["out"]).unwrap(), b"i686\0\0");
}

/// An ELF file for i386: `uname`, and its field `machine` to the file that the first argument names.
#[cfg(target_arch = "x86_64")]
fn machine_program() -> Vec<u8> {
    const BASE: u32 = 0x0804_8000;
    const HEADERS: u32 = 52 + 32;
    const SPACE: u32 = BASE + 0x1000; // struct new_utsname: six fields of 65 bytes, the fifth is `machine`
    let mut code = Vec::new();
    code.extend([0x8b, 0x5c, 0x24, 0x08]); // mov ebx, [esp + 8]
    code.extend([0xb9, 0x41, 0, 0, 0]); // mov ecx, O_WRONLY | O_CREAT
    code.extend([0xba, 0xa4, 0x01, 0, 0]); // mov edx, 0644
    code.extend([0xb8, 5, 0, 0, 0, 0xcd, 0x80]); // open
    code.extend([0x89, 0xc6, 0xbb]); // mov esi, eax; mov ebx, SPACE
    code.extend(SPACE.to_le_bytes());
    code.extend([0xb8, 122, 0, 0, 0, 0xcd, 0x80]); // uname
    code.extend([0x89, 0xf3, 0xb9]); // mov ebx, esi; mov ecx, machine
    code.extend((SPACE + 4 * 65).to_le_bytes());
    code.extend([0xba, 6, 0, 0, 0]); // mov edx, 6
    code.extend([0xb8, 4, 0, 0, 0, 0xcd, 0x80]); // write
    code.extend([0x31, 0xdb, 0xb8, 1, 0, 0, 0, 0xcd, 0x80]); // exit 0

    let mut program = Vec::new();
    program.extend(b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0");
    program.extend([2, 0, 3, 0]); // executable, i386
    for word in [1, BASE + HEADERS, 52, 0, 0] {
        program.extend(word.to_le_bytes());
    }
    for half in [52u16, 32, 1, 0, 0, 0] {
        program.extend(half.to_le_bytes());
    }
    // One segment, to be loaded with all rights, longer in memory than in the file.
    let size = HEADERS + u32::try_from(code.len()).expect("a short program");
    for word in [1, 0, BASE, BASE, size, 0x2000, 7, 0x1000] {
        program.extend(word.to_le_bytes());
    }
    program.extend(code);
    program
}

#[tokio::test]
async fn several_outputs_come_out_by_name() {
    let Some(stage) = Stage::new().await else { return };
    let mut asked = fields(&["write", OUT, "one", &hash_placeholder("dev"), "two"]);
    asked.outputs.insert("dev".to_owned(), OutputKind::InputAddressed);
    let built = stage.play(spec(asked)).await.built();
    for (name, text) in [("out", "one"), ("dev", "two")] {
        assert_eq!(std::fs::read_to_string(&built.outputs[name]).unwrap(), text);
    }
    let mut asked = fields(&["write", OUT, "one"]);
    asked.outputs.insert("dev".to_owned(), OutputKind::InputAddressed);
    let played = stage.play(spec(asked)).await;
    assert!(matches!(played.cause(), Cause::OutputMissing { output, .. } if output == "dev"));
}

#[tokio::test]
async fn builds_run_side_by_side() {
    let Some(stage) = Stage::new().await else { return };
    let specs = (0..4).map(|slot| {
        let mut asked = spec(fields(&["write", OUT, "x"]));
        asked.slot = slot;
        stage.play(asked)
    });
    let mut specs: Vec<_> = specs.collect();
    let (d, c, b, a) = (
        specs.pop().unwrap(),
        specs.pop().unwrap(),
        specs.pop().unwrap(),
        specs.pop().unwrap(),
    );
    let (a, b, c, d) = tokio::join!(a, b, c, d);
    for played in [a, b, c, d] {
        drop(played.built());
    }
}

#[tokio::test]
async fn a_slot_in_use_is_refused() {
    let Some(stage) = Stage::new().await else { return };
    let endless = stage.play_until(spec(fields(&["wait"])), |line| line == "waiting");
    let other = async {
        // The first one is polled first, and takes the slot with its first step.
        stage.play(spec(fields(&["write", OUT, "x"]))).await
    };
    let (first, second) = tokio::join!(endless, other);
    assert!(matches!(second.cause(), Cause::SlotTaken(0)));
    assert!(matches!(first.cause(), Cause::Cancelled));
    // And is free again afterwards.
    drop(stage.act(&["write", OUT, "x"]).await.built());
}

/// What builds of a slot share is used again, and no build leaves anything in it for the next.
#[tokio::test]
async fn one_build_after_another_sees_the_same() {
    let Some(stage) = Stage::new().await else { return };
    let folder = stage.folder.path().join("input");
    std::fs::create_dir(&folder).unwrap();
    let mut seen = Vec::new();
    for _ in 0..3 {
        drop(stage.act(&["mess", OUT]).await.built());
        let mut asked = spec(fields(&["list", "/nix/store"]));
        for number in 1..20 {
            asked.inputs.push(BuildInput {
                path: StorePath::from_parts([number; 20], "input").unwrap(),
                physical: folder.clone(),
            });
        }
        let mut log = stage.play(asked).await.log;
        for place in ["/", "/etc", "/dev", "/build", "/tmp"] {
            log.extend(stage.look(&["list", place]).await);
        }
        seen.push(log);
    }
    let spare = stage.builder.config().scratch.join("slot-0/spare");
    assert_eq!(std::fs::read_dir(spare).unwrap().count(), 19);
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[0], seen[2]);
    assert_eq!(stage.leftovers(), Vec::<std::path::PathBuf>::new());
}
