use super::*;

const MB: u64 = 1_000_000;

fn job(input_bytes: Option<u64>) -> Job {
    Job {
        urgency: Urgency::Demanded,
        input_bytes,
        prefer_local: false,
        took: None,
    }
}

fn here(bytes_there: Option<u64>) -> Candidate {
    Candidate {
        node: None,
        name: "home".to_owned(),
        slots_free: 2,
        slots: 2,
        bytes_there,
        link: None,
        own_bandwidth: None,
        load: 0,
        cores: 4,
        took: None,
    }
}

fn peer(number: u8, bytes_there: Option<u64>, bandwidth: u64) -> Candidate {
    Candidate {
        node: Some(NodeKey([number; 32])),
        name: format!("peer{number}"),
        link: Some(Link {
            round_trip: Some(10),
            bandwidth: Some(bandwidth),
        }),
        ..here(bytes_there)
    }
}

#[test]
fn missing_inputs_cost_the_time_to_move_them() {
    let job = job(Some(100 * MB));
    let near = waiting_time(&job, &peer(1, Some(100 * MB), 10 * MB));
    assert_eq!(waiting_time(&job, &peer(1, Some(0), 10 * MB)) - near, 10_000);
    assert_eq!(waiting_time(&job, &peer(1, Some(50 * MB), 10 * MB)) - near, 5_000);
    assert_eq!(waiting_time(&job, &here(Some(100 * MB))), UNKNOWN_BUILD);
}

#[test]
fn a_peer_of_which_nothing_is_known_is_taken_to_have_nothing_and_this_node_to_have_all() {
    let job = job(None);
    assert_eq!(waiting_time(&job, &here(None)), UNKNOWN_BUILD);
    assert!(waiting_time(&job, &peer(1, None, 100 * MB)) > 1_000);
}

#[test]
fn equal_places_share_the_work() {
    let job = job(Some(0));
    let mut busy = peer(1, Some(0), MB);
    busy.slots_free = 1;
    let idle = peer(2, Some(0), MB);
    let chosen = choose(waiting_time, &job, &[busy, idle], &Circumstances::default());
    assert_eq!(chosen.and_then(|(node, _)| node), Some(NodeKey([2; 32])));
}

#[test]
fn a_link_without_bandwidth_is_no_bug() {
    assert!(waiting_time(&job(Some(u64::MAX)), &peer(1, Some(0), 0)) > 0);
}

#[test]
fn among_equals_this_node_comes_first() {
    let job = job(Some(0));
    let free = |_: &Job, _: &Candidate| 0;
    let chosen = choose(
        free,
        &job,
        &[here(None), peer(1, None, MB)],
        &Circumstances::default(),
    );
    assert_eq!(chosen.map(|(node, _)| node), Some(None));
    assert_eq!(choose(free, &job, &[], &Circumstances::default()), None);
}

#[test]
fn reasons_are_words_a_person_can_read() {
    let job = job(Some(330 * MB));
    let both = [here(Some(10 * MB)), peer(1, Some(312 * MB), 100 * MB)];
    let reason = |candidates: &[Candidate], circumstances: Circumstances| {
        choose(waiting_time, &job, candidates, &circumstances)
            .map(|(_, reason)| reason)
            .unwrap_or_default()
    };
    assert_eq!(
        reason(&both, Circumstances::default()),
        "peer1: has 312 MB of 330 MB of the inputs, 100 MB/s, 10 ms away, 2 free slots"
    );
    assert_eq!(
        reason(&both[..1], Circumstances::default()),
        "this node: the only builder that has free slots"
    );
    let only = Circumstances {
        only_capable: true,
        before: vec!["b: gone".to_owned()],
        ..Circumstances::default()
    };
    assert_eq!(
        reason(&both[..1], only),
        "this node: the only builder that can build it; tried before: b: gone"
    );
    let silent = Circumstances {
        silent: Some("b".to_owned()),
        ..Circumstances::default()
    };
    assert_eq!(reason(&both, silent), "peer1: b has been silent for 2 s");
}

#[test]
fn sizes_are_given_in_the_unit_that_fits() {
    assert_eq!(size(999), "999 B");
    assert_eq!(size(330_000_000), "330 MB");
    assert_eq!(size(12_000), "12 kB");
    assert_eq!(size(1_250_000_000), "1.2 GB");
}

#[test]
fn what_was_measured_counts_and_what_was_not_is_assumed() {
    let job = job(Some(100 * MB));
    let unknown = Candidate {
        link: Some(Link::default()),
        ..peer(1, Some(0), MB)
    };
    let assumed =
        100 * MB * 1000 / ASSUMED_BANDWIDTH + u64::from(ASSUMED_ROUND_TRIP) * 2 + SENDING + UNKNOWN_BUILD;
    assert_eq!(waiting_time(&job, &unknown), assumed);
    let (slow, fast) = (peer(2, Some(0), MB), peer(3, Some(0), 500 * MB));
    let chosen = choose(
        waiting_time,
        &job,
        &[slow.clone(), fast],
        &Circumstances::default(),
    );
    assert_eq!(chosen.and_then(|(node, _)| node), Some(NodeKey([3; 32])));
    // This node is counted like any other: what it lacks comes at the speed that was measured.
    let lacking = Candidate {
        own_bandwidth: Some(10 * MB),
        ..here(Some(0))
    };
    assert_eq!(waiting_time(&job, &lacking), 10_000 + UNKNOWN_BUILD);
    let both = [lacking, peer(4, Some(100 * MB), MB)];
    let chosen = choose(waiting_time, &job, &both, &Circumstances::default());
    assert_eq!(chosen.and_then(|(node, _)| node), Some(NodeKey([4; 32])));
    let distant = Candidate {
        link: Some(Link {
            round_trip: Some(300),
            bandwidth: None,
        }),
        ..slow
    };
    let near = Candidate {
        node: Some(NodeKey([9; 32])),
        ..unknown
    };
    let chosen = choose(waiting_time, &job, &[distant, near], &Circumstances::default());
    assert_eq!(chosen.and_then(|(node, _)| node), Some(NodeKey([9; 32])));
}

#[test]
fn who_was_faster_with_this_package_before_is_preferred() {
    let job = Job {
        took: Some(8_000),
        ..job(Some(0))
    };
    let seen = |number, took| Candidate {
        took,
        ..peer(number, Some(0), MB)
    };
    let all = [seen(1, Some(12_000)), seen(2, Some(4_000)), seen(3, None)];
    let (node, reason) = choose(waiting_time, &job, &all, &Circumstances::default()).unwrap();
    assert_eq!(node, Some(NodeKey([2; 32])));
    assert!(reason.contains("built it before in 4.0 s"), "{reason}");
    // Of whom nothing is known is taken to be as the others are: worth a try before the slow one.
    let (node, _) = choose(
        waiting_time,
        &job,
        &[all[0].clone(), all[2].clone()],
        &Circumstances::default(),
    )
    .unwrap();
    assert_eq!(node, Some(NodeKey([3; 32])));
}

#[test]
fn a_machine_that_its_owner_keeps_busy_is_passed_over_for_an_equal_one() {
    let busy = Candidate {
        load: 400,
        ..peer(1, Some(0), MB)
    };
    let chosen = choose(
        waiting_time,
        &job(Some(0)),
        &[busy, peer(2, Some(0), MB)],
        &Circumstances::default(),
    );
    assert_eq!(chosen.and_then(|(node, _)| node), Some(NodeKey([2; 32])));
}
