use std::path::Path;

use tokio::sync::{mpsc, watch};
use tvix_node_builder::{Builder, Config, Helper};
use tvix_node_coordinator::{OwnBuilder, Urgency};
use tvix_node_protocol::envelope::NodeSecret;
use tvix_node_store::Store;
use tvix_node_swarm::Priority;

use super::*;
use crate::daemon::depot::Depot;
use crate::daemon::durations::DurationsFile;
use crate::daemon::perform::Jobs;
use crate::team::membership::{Membership, Parts};
use crate::team::private::PrivateBook;
use crate::team::share::ShareBook;
use crate::team::traffic::TrafficBook;
use crate::team::trust::TrustBook;

/// One of a node that is in no team and can build nothing.
fn engine(home: &Path) -> Engine {
    let file = |name: &str| home.join(name);
    let secret = NodeSecret::from_bytes(&[1; 32]);
    let store = Store::open(&file("home")).unwrap();
    let private = PrivateBook::open(file("private.json")).unwrap();
    let trust = TrustBook::open(file("trust.json"), secret.key(), Arc::default());
    let trust = Arc::new(trust.unwrap());
    let depot = Arc::new(Depot::new(store, Arc::new(private), Arc::clone(&trust)));
    let helper = Helper::program(file("no-such-program"));
    let jobs = Arc::new(Jobs {
        depot: Arc::clone(&depot),
        builder: Builder::new(Config::new(file("builds"), helper)).unwrap(),
        secret: Arc::new(secret),
        trust: Arc::clone(&trust),
        building: Arc::default(),
        down: CancellationToken::new(),
    });
    let own = OwnBuilder {
        slots: 1,
        systems: std::iter::empty().collect(),
        features: std::iter::empty().collect(),
    };
    let (sender, inbox) = mpsc::channel(16);
    let (free, free_slots) = watch::channel(own.slots);
    let team = Arc::new(Membership::new(Parts {
        teams: file("teams"),
        spool: file("spool"),
        depot: Arc::clone(&depot),
        jobs: Arc::clone(&jobs),
        engine: sender.clone(),
        own: own.clone(),
        free: free_slots,
        trust,
        roll: Arc::default(),
        share: Arc::new(ShareBook::open(file("share.json")).unwrap()),
        traffic: Arc::new(TrafficBook::open(file("traffic.json")).unwrap()),
        listen: None,
        relay: false,
    }));
    Engine::new(
        (depot, jobs, team),
        own,
        (free, watch::channel(false).0),
        (watch::channel(0).1, false),
        None,
        DurationsFile(file("durations")),
        (sender, inbox),
    )
}

fn fetch(number: u64) -> Action {
    Action::Fetch {
        fetch: FetchId(number),
        path: StorePath::from_parts([1; 20], "wanted").unwrap(),
        from: Vec::new(),
        urgency: Urgency::Speculative,
        awaited: false,
    }
}

fn hurry(number: u64, urgency: Urgency, awaited: bool) -> Action {
    Action::HurryFetch {
        fetch: FetchId(number),
        urgency,
        awaited,
    }
}

#[tokio::test]
async fn a_fetch_that_runs_becomes_as_urgent_as_what_waits_for_it() {
    let home = tempfile::tempdir().unwrap();
    let mut engine = engine(home.path());
    for number in [1, 2] {
        engine.act(fetch(number));
    }
    // What the fetch was given, which goes by what it is now.
    let [one, other] = [1, 2].map(|number| engine.rising[&FetchId(number)].clone());
    assert_eq!(one.now(), Priority::Speculative);
    for (urgency, awaited, becomes) in [
        (Urgency::Demanded, false, Priority::Demanded),
        (Urgency::Demanded, true, Priority::Awaited),
        (Urgency::Import, false, Priority::Import),
        // Who has come before waits all the same.
        (Urgency::Speculative, false, Priority::Import),
    ] {
        engine.act(hurry(1, urgency, awaited));
        assert_eq!(one.now(), becomes);
        assert_eq!(other.now(), Priority::Speculative, "nothing more waits for it");
    }
}

#[tokio::test]
async fn what_is_known_of_a_fetch_goes_with_it() {
    let home = tempfile::tempdir().unwrap();
    let mut engine = engine(home.path());
    for number in 1..=4 {
        engine.act(fetch(number));
    }
    engine.act(Action::CancelFetch { fetch: FetchId(1) });
    let error = || "nobody has it".to_owned();
    for event in [
        Event::FetchFinished { fetch: FetchId(2) },
        Event::FetchFailed {
            fetch: FetchId(3),
            error: error(),
        },
        Event::NoRoom {
            fetch: FetchId(4),
            error: error(),
        },
    ] {
        engine.forget(&event);
    }
    assert!(engine.rising.is_empty() && engine.transfers.is_empty());
    // Late, and of nobody any more.
    engine.act(hurry(1, Urgency::Import, true));
    assert!(engine.rising.is_empty());
}
