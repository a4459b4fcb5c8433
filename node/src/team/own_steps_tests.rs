use std::collections::BTreeMap;

use tvix_node_protocol::StorePath;
use tvix_node_protocol::build::SwarmId;
use tvix_node_protocol::envelope::NodeKey;

use super::*;
use crate::team::together::{Heard, Progress};

const KEY: BuildKey = BuildKey([1; 32]);
const TEAM: SwarmId = SwarmId([1; 32]);

fn record() -> Box<BuildRecord> {
    Box::new(BuildRecord {
        build_key: KEY,
        request: None,
        derivation: StorePath::from_parts([1; 20], "a.drv").unwrap(),
        inputs: vec![],
        outputs: BTreeMap::new(),
        builder: NodeKey([1; 32]),
        started: 1,
        finished: 2,
        sandbox: String::new(),
    })
}

/// How a command came by what it wanted.
#[derive(Debug, PartialEq, Eq)]
enum How {
    Followed,
    WasHere,
    Built,
}

struct Work {
    here: bool,
    /// Whether what the record says lies here afterwards.
    told: bool,
    building: Arc<SharedBuilds>,
    /// Who asks for the same meanwhile.
    other: tokio::sync::oneshot::Sender<super::super::together::Waiting>,
}

impl OwnWork for Work {
    type Built = How;
    type Failure = &'static str;

    async fn follow(&mut self, other: &SharedBuild) -> Result<Option<How>, &'static str> {
        let mut following = other.follow();
        loop {
            if let Heard::Over(ended) = following.next().await {
                let built = matches!(&*ended, Ended::Built { .. });
                return Ok(built.then_some(How::Followed));
            }
        }
    }

    async fn here_meanwhile(&mut self) -> Option<How> {
        self.here.then_some(How::WasHere)
    }

    async fn carry_out(self, owned: &Owned) -> Result<(How, Option<Box<BuildRecord>>), &'static str> {
        let other = self.building.join_own(TEAM, KEY, BuildLimits::NONE);
        self.other.send(other.expect("it runs")).ok();
        assert!(!owned.build.cancel.is_cancelled());
        Ok((How::Built, self.told.then(record)))
    }

    fn nothing_to_join() -> &'static str {
        "nothing"
    }

    fn cancelled() -> &'static str {
        "cancelled"
    }

    fn told(_: &&'static str) -> Option<messages::BuildFailure> {
        None
    }
}

/// How the command came by it, and what one heard who had asked for the same.
async fn built(here: bool, told: bool) -> (How, Option<Arc<Ended>>) {
    let building = Arc::new(SharedBuilds::default());
    let (other, waiting) = tokio::sync::oneshot::channel();
    let work = Work {
        here,
        told,
        building: Arc::clone(&building),
        other,
    };
    let shared = (KEY, BuildLimits::NONE, Some(&Audience::Everyone));
    let (cancel, down) = (CancellationToken::new(), CancellationToken::new());
    let how = build(work, &building, shared, cancel, &down).await.unwrap();
    let heard = waiting.await.ok().map(|waiting| match waiting.build.progress() {
        Progress::Over(ended) => ended,
        progress => panic!("it is not over: {progress:?}"),
    });
    (how, heard)
}

#[tokio::test]
async fn what_has_come_meanwhile_is_not_built() {
    assert!(matches!(built(true, true).await, (How::WasHere, None)));
}

#[tokio::test]
async fn who_waits_for_an_own_build_is_told_its_record_alone_where_what_that_says_lies_here() {
    let (how, heard) = built(false, true).await;
    let heard = heard.expect("somebody waited");
    assert_eq!(how, How::Built);
    assert!(
        matches!(&*heard, Ended::Built { accepted: true, .. }),
        "{heard:?}"
    );
    // One of its names has another tree: it finds out for itself.
    let (how, heard) = built(false, false).await;
    let heard = heard.expect("somebody waited");
    assert_eq!(how, How::Built);
    assert!(matches!(&*heard, Ended::Refused(_)), "{heard:?}");
}

#[tokio::test]
async fn the_build_of_the_same_for_another_is_waited_for_and_not_begun_again() {
    let building = Arc::new(SharedBuilds::default());
    let (theirs, _) = building.join(TEAM, Some(KEY), BuildLimits::NONE);
    theirs.build.set(Progress::Running { for_one: false });
    let work = Work {
        here: false,
        told: true,
        building: Arc::clone(&building),
        other: tokio::sync::oneshot::channel().0,
    };
    let shared = (KEY, BuildLimits::NONE, Some(&Audience::Everyone));
    let (cancel, down) = (CancellationToken::new(), CancellationToken::new());
    let building = build(work, &building, shared, cancel, &down);
    let ending = async {
        theirs.build.set(Progress::Over(Arc::new(Ended::Built {
            record: record(),
            accepted: true,
            aside: vec![],
        })));
    };
    let (how, ()) = tokio::join!(biased; building, ending);
    assert_eq!(how, Ok(How::Followed));
}

#[tokio::test]
async fn without_a_slot_nothing_is_begun() {
    let building = Arc::new(SharedBuilds::default());
    let work = |here| Work {
        here,
        told: true,
        building: Arc::clone(&building),
        other: tokio::sync::oneshot::channel().0,
    };
    let (cancel, down) = (CancellationToken::new(), CancellationToken::new());
    let build = |work| {
        build(
            work,
            &building,
            (KEY, BuildLimits::NONE, None),
            cancel.clone(),
            &down,
        )
    };
    assert_eq!(build(work(false)).await, Err("nothing"));
    assert_eq!(build(work(true)).await, Ok(How::WasHere));
    // One that still waits for its slot is joined as well.
    let (theirs, _) = building.join(TEAM, Some(KEY), BuildLimits::NONE);
    let ending = async {
        theirs.build.set(Progress::Running { for_one: false });
        theirs.build.set(Progress::Over(Arc::new(Ended::Built {
            record: record(),
            accepted: true,
            aside: vec![],
        })));
    };
    let (how, ()) = tokio::join!(biased; build(work(false)), ending);
    assert_eq!(how, Ok(How::Followed));
}
