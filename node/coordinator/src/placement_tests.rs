use super::*;

const MB: u64 = 1_000_000;

fn job(input_bytes: Option<u64>) -> Job {
    Job {
        urgency: Urgency::Demanded,
        input_bytes,
        prefer_local: false,
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
    }
}

fn peer(number: u8, bytes_there: Option<u64>, bandwidth: u64) -> Candidate {
    Candidate {
        node: Some(NodeKey([number; 32])),
        name: format!("peer{number}"),
        link: Some(Link {
            round_trip: 10,
            bandwidth,
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
    assert_eq!(waiting_time(&job, &here(Some(100 * MB))), 0);
}

#[test]
fn a_peer_of_which_nothing_is_known_is_taken_to_have_nothing_and_this_node_to_have_all() {
    let job = job(None);
    assert_eq!(waiting_time(&job, &here(None)), 0);
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
        "peer1: has 312 MB of 330 MB of the inputs, 2 free slots"
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
