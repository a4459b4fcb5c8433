use super::*;

fn path(name: &str) -> StorePath {
    StorePath::from_parts([name.as_bytes()[0]; 20], name).unwrap()
}

fn input(name: &str, references: &[&str]) -> Input {
    Input {
        path: path(name),
        tree: TreeDigest([1; 32]),
        nar_hash: NarHash([2; 32]),
        nar_size: 3,
        references: references.iter().map(|name| path(name)).collect(),
    }
}

fn request() -> BuildRequest {
    BuildRequest {
        swarm: SwarmId([0; 32]),
        requester: NodeKey([1; 32]),
        builder: NodeKey([2; 32]),
        derivation: path("x.drv"),
        inputs: vec![input("a", &[]), input("b", &["a", "b"])],
        outputs: vec!["dev".into(), "out".into()],
        kind: BuildKind::Regular,
        desired_store: Some(DesiredStore::Folder("/cache".into())),
        options: BuildOptions::default(),
        limits: BuildLimits::NONE,
        urgency: 0,
        fresh: false,
        keep_failed: false,
        nonce: [9; 16],
        issued_at: 100,
        not_after: 200,
    }
}

#[test]
fn a_request_comes_back_from_the_wire() {
    let bytes = cbor::to_vec(&request()).unwrap();
    assert_eq!(
        cbor::from_slice::<BuildRequest>(&bytes, 10_000).unwrap(),
        request()
    );
    assert_eq!(request().check_structure(), Ok(()));
}

#[test]
fn a_limit_on_processes_is_written_only_where_there_is_one() {
    let written = |processes| {
        let mut request = request();
        request.limits.processes = processes;
        let bytes = cbor::to_vec(&request).unwrap();
        assert_eq!(cbor::from_slice::<BuildRequest>(&bytes, 10_000).unwrap(), request);
        bytes.windows(9).any(|part| part == b"processes")
    };
    assert!(!written(None));
    assert!(written(Some(50)));
    assert_eq!(BuildLimits::NONE.processes(), 8192);
}

#[test]
fn what_does_not_hold_together_is_refused() {
    let refused = |change: fn(&mut BuildRequest)| {
        let mut request = request();
        change(&mut request);
        request.check_structure().unwrap_err()
    };
    assert!(matches!(
        refused(|r| r.inputs.reverse()),
        StructureError::InputsUnsorted(_)
    ));
    assert!(matches!(
        refused(|r| r.inputs[0] = r.inputs[1].clone()),
        StructureError::InputsUnsorted(_)
    ));
    assert!(matches!(
        refused(|r| drop(r.inputs.remove(0))),
        StructureError::ClosureIncomplete { .. }
    ));
    assert!(matches!(
        refused(|r| r.derivation = path("x")),
        StructureError::NotADerivation(_)
    ));
    assert!(matches!(refused(|r| r.outputs.clear()), StructureError::Outputs));
    assert!(matches!(
        refused(|r| r.outputs.reverse()),
        StructureError::Outputs
    ));
    assert!(matches!(refused(|r| r.not_after = 99), StructureError::Times));
}

#[test]
fn the_build_key_follows_the_work_and_nothing_else() {
    let key = |change: fn(&mut BuildRequest)| {
        let mut request = request();
        change(&mut request);
        request.build_key().unwrap()
    };
    let same = key(|_| ());
    assert_eq!(same, key(|r| r.nonce = [1; 16]));
    assert_eq!(same, key(|r| r.requester = NodeKey([7; 32])));
    assert_eq!(same, key(|r| r.kind = BuildKind::Ifd));
    assert_eq!(same, key(|r| r.limits.time = Some(1)));
    assert_ne!(same, key(|r| r.inputs[0].tree = TreeDigest([8; 32])));
    assert_ne!(same, key(|r| r.derivation = path("y.drv")));
    assert_ne!(same, key(|r| drop(r.outputs.pop())));
    assert_ne!(same, key(|r| r.options.cores = 4));
}

#[test]
fn a_request_names_so_many_inputs_and_outputs_and_no_more() {
    let with = |inputs: usize, outputs: usize| {
        let mut request = request();
        let one = input("input", &[]);
        let number = |number: usize| StorePath::from_parts([1; 20], &format!("{number:06}")).unwrap();
        request.inputs = (0..inputs)
            .map(|at| Input {
                path: number(at),
                ..one.clone()
            })
            .collect();
        request.outputs = (0..outputs).map(|output| format!("{output:06}")).collect();
        request.check_structure()
    };
    assert_eq!(with(CLOSURE_PATHS, OUTPUTS), Ok(()));
    for (refused, words) in [
        (with(CLOSURE_PATHS + 1, OUTPUTS), ["inputs", "32769", "32768"]),
        (with(CLOSURE_PATHS, OUTPUTS + 1), ["outputs", "257", "256"]),
    ] {
        let error = refused.unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
}
